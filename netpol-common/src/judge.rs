//! The decision procedure.
//!
//! A packet passes at most three hooks of a node: what a pod sends, what leaves by a device that is no pod's, and what a pod
//! receives. [`judge`] is the first and the last, [`host_egress`] the one between.

mod deferred;
mod related;
mod rules;

use self::{deferred::*, related::*, rules::*};
use crate::{
    ALL_PORTS, Address, ClassId, Deferral, Direction, Dropped, Endpoint, FRAGMENT_LIFETIME, Flow,
    FlowKey, FlowRef, Found, Fragment, FragmentKey, Frame, Isolation, Kind, MarkField, NO_CLASS,
    NO_PORTS, Packet, Parsed, Peer, Piece, PortSetId, Reason, RuleKey, RulesetId, Scratch, Tick,
    TunnelKey, guard, icmp, is_stream,
    packet::{is_link_local, is_loopback, protocol},
    parse::{parse, parse_from, quote, start},
};

/// How to look things up. The kernel's maps implement this, and tables in memory.
pub trait Tables {
    /// A place in a flow table.
    type Flow: FlowRef;

    /// The number of the last change of any table.
    fn epoch(&self) -> u32;
    /// The coarse clock.
    fn now(&self) -> Tick;
    /// The endpoint behind a host interface.
    fn endpoint(&self, interface: u32) -> Option<&Endpoint>;
    /// The host interface of the endpoint that has a slot.
    fn interface_of(&self, slot: u32) -> Option<u32>;
    /// A flow whose opener has had an answer.
    fn flow(&self, key: &FlowKey) -> Option<Self::Flow>;
    /// Any other flow.
    fn opening(&self, key: &FlowKey) -> Option<Self::Flow>;
    /// Adds a flow that is being opened.
    fn remember(&self, key: &FlowKey, flow: &Flow);
    /// Takes a flow over into the table of those whose opener has had an answer.
    fn settle(&self, key: &FlowKey, flow: &Flow);
    /// What the first fragment of a datagram said.
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;
    /// Notes what the first fragment says.
    fn note_fragment(&self, key: &FragmentKey, fragment: Fragment);
    /// The key that was left under the number of a ticket.
    fn ticket(&self, number: u32) -> Option<FlowKey>;
    /// Leaves a key under the number of a ticket.
    fn issue(&self, number: u32, key: &FlowKey);
    /// Whether the node takes packets out of this envelope.
    fn tunnel(&self, key: TunnelKey) -> bool;
    /// Which bits of a mark are ours.
    fn mark_field(&self) -> MarkField;
    /// What is known about a single address.
    fn host(&self, address: &Address) -> Option<Peer>;
    /// What is known about the longest prefix that holds an address.
    fn net(&self, address: &Address) -> Option<Peer>;
    /// A row of a ruleset.
    fn rule(&self, key: &RuleKey) -> Option<PortSetId>;
    /// Whether a port set holds a destination port (host byte order).
    fn port(&self, set: PortSetId, protocol: u8, port: u16) -> bool;
    /// Counts a verdict. `length` in bytes, Ethernet header included.
    fn count(&self, slot: u32, direction: Direction, reason: Reason, length: u32);
    /// Records a dropped packet.
    fn report<F: Frame>(&self, frame: &F, dropped: &Dropped<'_>);
    /// Tells the way of a packet of an endpoint, for a developer.
    #[inline(always)]
    fn trace(&self, _endpoint: &Endpoint, _scratch: &Scratch, _verdict: (Direction, Reason)) {}
}

/// Everything about one packet at the hook of a pod.
pub(crate) struct Case<'a> {
    pub packet: &'a Packet,
    pub key: &'a FlowKey,
    pub endpoint: &'a Endpoint,
    /// What the rules said.
    pub rules: &'a Found,
    pub interface: u32,
    pub epoch: u32,
    pub now: Tick,
    pub direction: Direction,
    /// In which direction the flow was opened: in the packet's own, if there is none.
    pub origin: Direction,
    /// The flags of the remote address.
    pub host: u32,
    /// Whether the flow tables have the key.
    pub found: bool,
    /// Whether the entry is this packet's flow: neither expired nor another conversation on the same ports.
    pub live: bool,
}

/// Judges one packet on its way to (`Ingress`) or from (`Egress`) the pod behind the frame's interface.
#[inline(always)]
pub fn judge<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    scratch: &mut Scratch,
    direction: Direction,
) -> Reason {
    // Read before anything else: whatever changes while this packet is judged has a higher number, so that a flow noted
    // here on the ground of older tables will be judged again.
    let epoch = tables.epoch();
    let interface = frame.interface();
    let deferral = take_deferral(frame, tables);
    let Some(endpoint) = tables.endpoint(interface) else {
        // A pod that nobody knows yet may receive what another one was not allowed to send.
        return match (deferral, direction) {
            (Some(deferral), Direction::Ingress) => {
                judge_translated(frame, tables, scratch, deferral, (epoch, true))
                    .unwrap_or(Reason::Unknown)
            }
            _ => Reason::Unknown,
        };
    };
    let Ok(head) = start(frame) else {
        let parsed = Parsed::Opaque(Reason::Malformed);
        let reason = no_packet(
            frame,
            tables,
            endpoint,
            &scratch.packet,
            (parsed, direction),
        );
        return conclude(frame, tables, endpoint, scratch, (direction, reason, false));
    };
    if matches!(direction, Direction::Egress) && !guard::hardware(endpoint, &head) {
        let spoofed = (direction, Reason::Spoofed, false);
        return conclude(frame, tables, endpoint, scratch, spoofed);
    }
    let parsed = parse_from(frame, &head, &mut scratch.packet);
    if !matches!(parsed, Parsed::Packet) {
        if let (Some(deferral), Parsed::Opaque(reason), Direction::Ingress) =
            (deferral, parsed, direction)
            && frame.came_in_by() != 0
        {
            // What its sender's rules cannot read.
            report_unread(frame, tables, scratch, (deferral.slot, reason));
            return reason;
        }
        let reason = no_packet(
            frame,
            tables,
            endpoint,
            &scratch.packet,
            (parsed, direction),
        );
        return conclude(frame, tables, endpoint, scratch, (direction, reason, false));
    }
    let now = tables.now();
    if let (Some(deferral), Direction::Ingress) = (deferral, direction)
        && is_ours(frame, tables, &scratch.packet)
    {
        let mut context = Deferred {
            deferral,
            epoch,
            now,
            arrives: true,
            quotes: false,
        };
        if let Some(reason) = translated(frame, tables, scratch, &mut context) {
            if matches!(reason, Reason::Itself) {
                tables.count(endpoint.slot, direction, reason, frame.len());
            }
            return reason;
        }
    }
    let mut reason = guard::addresses(endpoint, &scratch.packet, &head, direction);
    if reason.is_none() && matches!(scratch.packet.piece, Piece::Later) {
        // Whatever has no ports is stopped where rules may need them; a pod that no policy selects is never restricted.
        reason = complete(tables, &mut scratch.packet, interface, now)
            .filter(|_| endpoint.isolation(direction).ruleset().is_some());
    }
    let reason = match reason {
        Some(reason) => reason,
        None => track(frame, tables, scratch, endpoint, (epoch, now, direction)),
    };
    if matches!(scratch.packet.piece, Piece::First) && reason.passes() {
        note_fragment(tables, &scratch.packet, interface, now);
    }
    conclude(frame, tables, endpoint, scratch, (direction, reason, true))
}

/// Judges one packet that leaves by a device that is no pod's: the verdict on what a pod has sent to a Service or to its
/// node, now that the packet carries its real destination.
#[inline(always)]
pub fn host_egress<F: Frame, T: Tables>(frame: &F, tables: &T, scratch: &mut Scratch) -> Reason {
    let epoch = tables.epoch();
    let Some(deferral) = take_deferral(frame, tables) else {
        return Reason::Unknown;
    };
    let reason = judge_translated(frame, tables, scratch, deferral, (epoch, false));
    if matches!(reason, Some(Reason::Itself)) {
        // Only the mark tells the hook of the pod that this comes from the pod itself: masquerade has changed its source.
        frame.set_mark(tables.mark_field().write(frame.mark(), deferral));
    }
    reason.unwrap_or(Reason::Deferred)
}

/// Counts a verdict, and records a drop. `parsed` says whether the scratch memory holds the packet.
#[inline(always)]
fn conclude<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    endpoint: &Endpoint,
    scratch: &Scratch,
    (direction, reason, parsed): (Direction, Reason, bool),
) -> Reason {
    tables.count(endpoint.slot, direction, reason, frame.len());
    tables.trace(endpoint, scratch, (direction, reason));
    if !reason.passes() {
        let dropped = Dropped {
            packet: &scratch.packet,
            parsed,
            service: &scratch.other,
            translated: false,
            interface: frame.interface(),
            slot: endpoint.slot,
            direction,
            reason,
        };
        tables.report(frame, &dropped);
    }
    reason
}

/// The verdict on what is not a packet of some flow.
#[inline(never)]
fn no_packet<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    endpoint: &Endpoint,
    packet: &Packet,
    (parsed, direction): (Parsed, Direction),
) -> Reason {
    let sends = matches!(direction, Direction::Egress);
    let isolated = endpoint.isolation(direction).ruleset().is_some();
    match parsed {
        Parsed::Arp if sends && endpoint.guarded() && !guard::arp(frame, endpoint) => {
            Reason::Spoofed
        }
        Parsed::Neighbour if sends => {
            if endpoint.guarded() && !guard::neighbour(frame, endpoint, packet) {
                return Reason::Spoofed;
            }
            // To a single address that is not of this link's own kind: if a router passes it on, it carries data for
            // somebody whom the rules may forbid. It is judged where it leaves, if it does.
            let to = &packet.destination;
            let stays = to.0[0] == 0xff || is_link_local(to);
            if !stays && endpoint.egress.ruleset().is_some() {
                defer(frame, tables, endpoint, None, false);
            }
            Reason::Neighbour
        }
        Parsed::Packet | Parsed::Arp | Parsed::Neighbour => Reason::Neighbour,
        Parsed::Router if !sends => Reason::Neighbour,
        // Also from a pod that no policy selects: it would speak for the node.
        Parsed::Router => Reason::Router,
        // Fails closed when isolated. A pod that no policy selects is never restricted.
        Parsed::Opaque(reason) if isolated => reason,
        Parsed::Opaque(reason) if sends && endpoint.guarded() && guard::disguised(frame) => reason,
        Parsed::Opaque(_) => Reason::Untracked,
    }
}

/// Completes a later fragment by what the first one said. A reason, if it must not pass; without a first fragment it stays
/// without ports.
#[inline(never)]
fn complete<T: Tables>(
    tables: &T,
    packet: &mut Packet,
    interface: u32,
    now: Tick,
) -> Option<Reason> {
    let first = tables.fragment(&packet.fragment_key(interface));
    if let Some(first) = first
        && now.wrapping_sub(first.seen) <= FRAGMENT_LIFETIME
    {
        if packet.offset < first.headers {
            return Some(Reason::Fragment);
        }
        packet.complete(&first);
    }
    None
}

#[inline(never)]
fn note_fragment<T: Tables>(tables: &T, packet: &Packet, interface: u32, now: Tick) {
    tables.note_fragment(&packet.fragment_key(interface), packet.fragment(now));
}

/// The verdict on a packet of a flow.
#[inline(always)]
fn track<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    scratch: &mut Scratch,
    endpoint: &Endpoint,
    (epoch, now, direction): (u32, Tick, Direction),
) -> Reason {
    let interface = frame.interface();
    scratch.key = scratch.packet.flow_key(interface, direction);
    let (packet, key) = (&scratch.packet, &scratch.key);
    let mut case = Case {
        packet,
        key,
        endpoint,
        rules: &scratch.found,
        interface,
        epoch,
        now,
        direction,
        origin: direction,
        host: 0,
        found: false,
        live: false,
    };
    if !packet.tracked() {
        let redirects = matches!(packet.kind, Kind::Router)
            || packet.protocol == protocol::ICMP && packet.flags == icmp::REDIRECT;
        if redirects && matches!(direction, Direction::Egress) {
            return Reason::Router;
        }
        // Here and not in there: the stack of the two does not add up.
        if matches!(packet.kind, Kind::Error)
            && quote(frame, packet, &mut scratch.quoted)
            && let Some(reason) = related(frame, tables, &case, &scratch.quoted, &mut scratch.other)
        {
            return reason;
        }
        return decide(frame, tables, &mut case, &mut scratch.flow);
    }
    let mut settled = true;
    let mut place = tables.flow(key);
    if place.is_none() {
        settled = false;
        place = tables.opening(key);
    }
    if place.is_none() {
        // Another CPU may have taken it over from there in between.
        settled = true;
        place = tables.flow(key);
    }
    if let Some(place) = &place {
        let known = place.load();
        case.found = true;
        scratch.flow = known;
        case.live = is_live(&known, packet, direction, now)
            && answers(&known, direction, frame.is_own(packet.piece));
        if case.live && known.epoch == epoch {
            let next = known.advance(packet, direction, epoch, now);
            if !settled && known.settles(direction) {
                tables.settle(key, &next);
            } else if next != known {
                // Written back at most once a tick, and when the phase changes.
                place.store(&next);
            }
            // A connection that is opened on the ports of an older one may be answered by somebody else.
            let anew = !known.resolved() || packet.opens();
            if known.deferred()
                && matches!(direction, Direction::Egress)
                && (anew || must_mark(endpoint, packet.protocol, &known))
            {
                defer(frame, tables, endpoint, Some(key), anew);
                return Reason::Deferred;
            }
            return Reason::Flow;
        }
    }
    decide(frame, tables, &mut case, &mut scratch.flow)
}

/// Whether an entry is the flow of this packet.
#[inline(always)]
fn is_live(known: &Flow, packet: &Packet, direction: Direction, now: Tick) -> bool {
    // A SYN against the direction of the flow opens another connection.
    let other = packet.opens() && known.origin != direction as u8;
    !other && !known.expired(packet.protocol, now)
}

/// Whether this may be a packet of a flow that only some may go on with. One that the pod has opened to a virtual address is
/// answered by the node itself, or once it is known by whom; one that the node has opened, by the node.
#[inline(always)]
fn answers(known: &Flow, direction: Direction, from_here: bool) -> bool {
    matches!(direction, Direction::Egress)
        || from_here
        || !known.local() && (!known.deferred() || known.resolved())
}

/// The verdict on a packet whose flow is new, or was allowed under older tables, or that has none.
#[inline(always)]
fn decide<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    case: &mut Case<'_>,
    flow: &mut Flow,
) -> Reason {
    case.host = host(tables, &case.key.remote);
    if case.live {
        case.origin = flow.origin();
    }
    if matches!(case.direction, Direction::Egress) {
        if let Some(reason) = unfit(tables, case) {
            return reason;
        }
        if matches!(case.origin, Direction::Egress) && case.host & (Peer::NODE | Peer::SERVICE) != 0
        {
            return decide_deferred(frame, tables, case, flow);
        }
    }
    decide_here(frame, tables, case, flow)
}

/// The verdict on a packet whose other end is who it says.
#[inline(never)]
fn decide_here<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    case: &Case<'_>,
    flow: &mut Flow,
) -> Reason {
    let sends = matches!(case.direction, Direction::Egress);
    let (origin, host) = (case.origin, case.host);
    // A Service opens nothing: this answers a conversation of which nothing is known any more. Nor does an address of the node
    // open anything on the ports by which the pod has spoken to it: somebody whom the pod must not speak to could make its
    // packets answers.
    let unresolved = case.found && flow.deferred();
    let service = host & (Peer::SERVICE | Peer::NODE) == Peer::SERVICE;
    let answer = !sends && !case.live && (service || unresolved);
    // Under the address of a Service, if it has answered there.
    let from_here = !sends && frame.is_own(case.packet.piece);
    let node = from_here && host & (Peer::SERVICE | Peer::NODE) != 0;
    let about = About {
        endpoint: case.endpoint,
        protocol: case.packet.protocol,
        found: case.rules,
    };
    let verdict = if answer && !node && case.endpoint.egress.ruleset().is_some() {
        return Reason::NoFlow;
    } else if case.live && !sends && flow.deferred() {
        // Also where it was somebody else who answered before.
        if from_here {
            Ok(Reason::Node)
        } else {
            permit(
                tables,
                &about,
                case.endpoint.egress,
                &flow.backend,
                flow.backend_port,
            )
        }
    } else if node || sends && case.live && flow.local() {
        // The pod's own node. A connection that kube-proxy has translated to a node address came in by a device: it is not
        // the node.
        match case.endpoint.isolation(origin).ruleset() {
            Some(_) => Ok(Reason::Node),
            None => Ok(Reason::Open),
        }
    } else {
        // The port of the side to which the flow was opened.
        let port = match origin {
            Direction::Ingress => case.key.local_port,
            Direction::Egress => case.key.remote_port,
        };
        let isolation = case.endpoint.isolation(origin);
        permit(tables, &about, isolation, &case.key.remote, port)
    };
    match verdict {
        Ok(reason) => {
            // Also what the node opens in spite of the rules: what the pod answers is no conversation of its own.
            let opened = node && !(case.live && flow.deferred());
            let noted = opened || matches!(reason, Reason::Open | Reason::Rule);
            // From the port of a tunnel of the node: no answer may go there.
            let tunnel = matches!(origin, Direction::Ingress)
                && case.packet.protocol == protocol::UDP
                && tables.tunnel(TunnelKey {
                    protocol: protocol::UDP as u16,
                    port: case.key.remote_port,
                });
            if noted && case.packet.tracked() && !answer && !tunnel {
                let flags = match origin {
                    // It is not deferred any more.
                    Direction::Egress if sends => 0,
                    _ if case.live => flow.flags,
                    _ if node => Flow::LOCAL,
                    _ if host & Peer::NODE != 0 => Flow::MASQUERADED,
                    _ => 0,
                };
                note(tables, case, flow, flags);
            }
            reason
        }
        // The entry of a revoked flow stays: it tells that the other side did not open this conversation either.
        Err(NotAllowed) if case.live => Reason::Revoked,
        Err(NotAllowed) if matches!(case.packet.kind, Kind::Portless) => Reason::Fragment,
        Err(NotAllowed) if case.packet.strays() => Reason::NoFlow,
        Err(NotAllowed) => Reason::Denied,
    }
}

/// What a pod must not send, whatever its rules say.
#[inline(never)]
fn unfit<T: Tables>(tables: &T, case: &Case<'_>) -> Option<Reason> {
    if !case.endpoint.guarded() {
        return None;
    }
    let packet = case.packet;
    if is_loopback(&packet.destination) {
        return Some(Reason::Spoofed);
    }
    let envelope = matches!(
        packet.protocol,
        protocol::IPV4 | protocol::IPV6 | protocol::GRE
    );
    let tunnel = match packet.protocol {
        protocol::TCP | protocol::ICMP | protocol::ICMPV6 => false,
        number => tables.tunnel(TunnelKey {
            protocol: number as u16,
            port: packet.destination_port,
        }),
    };
    (tunnel || envelope && case.host & Peer::NODE != 0).then_some(Reason::Tunnel)
}

/// Notes an allowed packet in the flow tables.
#[inline(never)]
fn note<T: Tables>(tables: &T, case: &Case<'_>, flow: &mut Flow, flags: u16) {
    *flow = if case.live {
        flow.advance(case.packet, case.direction, case.epoch, case.now)
    } else {
        Flow::open(case.epoch, case.direction, 0, case.now)
    };
    flow.flags = flags;
    let place = if case.found {
        find(tables, case.key)
    } else {
        None
    };
    match place {
        Some(place) => place.store(flow),
        None => tables.remember(case.key, flow),
    }
}

/// A flow, whichever table has it.
#[inline(always)]
fn find<T: Tables>(tables: &T, key: &FlowKey) -> Option<T::Flow> {
    if let Some(place) = tables.flow(key) {
        return Some(place);
    }
    match tables.opening(key) {
        Some(place) => Some(place),
        // Another CPU may have taken it over from there in between.
        None => tables.flow(key),
    }
}
