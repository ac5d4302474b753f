//! The decision procedure.

use crate::{
    ALL_PORTS, Address, ClassId, Direction, Endpoint, Flow, FlowKey, FlowRef, Frame, NO_CLASS,
    NO_PORTS, Packet, Peer, PortSetId, Reason, RuleKey, RulesetId, Tick,
    packet::{Parsed, parse},
};

/// How to look things up. The kernel's maps implement this, and tables in memory.
pub trait Tables {
    /// A place in the flow table.
    type Flow: FlowRef;

    /// The number of the last change of any table.
    fn epoch(&self) -> u32;
    /// The coarse clock.
    fn now(&self) -> Tick;
    /// The endpoint behind a host interface.
    fn endpoint(&self, interface: u32) -> Option<&Endpoint>;
    /// The flow table.
    fn flow(&self, key: &FlowKey) -> Option<Self::Flow>;
    /// Adds a flow, or replaces it.
    fn remember(&self, key: &FlowKey, flow: Flow);
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
    /// Notes a step of the way of a packet at an interface, for a developer.
    #[inline(always)]
    fn trace(&self, _interface: u32, _step: Step<'_>) {}
}

/// A step of the way of a packet.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// It was parsed.
    Parsed(Direction, &'a Packet),
    /// Its flow is known: opened in this direction, allowed under this epoch; the second epoch is today's.
    Known(Direction, u32, u32),
    /// Its flow is judged in this direction; the peer is of this class, the rules give it this port set.
    Judged(Direction, ClassId, PortSetId),
    /// The verdict.
    Verdict(Direction, Reason),
}

/// Judges one packet on its way to (`Ingress`) or from (`Egress`) the pod behind the frame's interface.
#[inline(always)]
pub fn judge<F: Frame, T: Tables>(frame: &F, tables: &T, direction: Direction) -> Reason {
    // Read before anything else: whatever changes while this packet is judged has a higher number, so that a flow noted
    // here on the ground of older tables will be judged again.
    let epoch = tables.epoch();
    let interface = frame.interface();
    let packet = match parse(frame) {
        Parsed::Packet(packet) => packet,
        other => {
            let Some(endpoint) = tables.endpoint(interface) else {
                return Reason::Unknown;
            };
            let reason = untracked(other, direction, endpoint);
            tables.count(endpoint.slot, direction, reason, frame.len());
            tables.trace(interface, Step::Verdict(direction, reason));
            return reason;
        }
    };
    tables.trace(interface, Step::Parsed(direction, &packet));

    let now = tables.now();
    let key = packet.flow_key(interface, direction);
    let place = tables.flow(&key);
    // Whether the entry is this packet's flow: neither expired nor another connection on the same ports.
    let mut live = false;
    let mut origin = direction;
    if let Some(place) = &place {
        let known = place.load();
        tables.trace(interface, Step::Known(known.origin(), known.epoch, epoch));
        // A SYN against the direction of the flow opens another connection.
        let other = packet.opens() && known.origin != direction as u8;
        if !other && !known.expired(packet.protocol, now) {
            // The fast path needs no endpoint: only an endpoint's flow has an entry, which knows the endpoint's slot.
            if known.epoch == epoch {
                let next = known.advance(&packet, direction, epoch, now);
                // Written back at most once a tick, and when the phase changes.
                if next != known {
                    place.store(next);
                }
                tables.count(known.slot.into(), direction, Reason::Flow, frame.len());
                tables.trace(interface, Step::Verdict(direction, Reason::Flow));
                return Reason::Flow;
            }
            live = true;
            origin = known.origin();
        }
    }

    let Some(endpoint) = tables.endpoint(interface) else {
        return Reason::Unknown;
    };
    let reason = match allowed(frame, tables, direction, endpoint, &packet, &key, origin) {
        Ok(reason) => {
            if matches!(reason, Reason::Open | Reason::Rule) {
                match &place {
                    Some(place) if live => {
                        place.store(place.load().advance(&packet, direction, epoch, now));
                    }
                    _ => tables.remember(
                        &key,
                        Flow::open(epoch, direction, endpoint.slot as u16, now),
                    ),
                }
            }
            reason
        }
        // The entry of a revoked flow stays: it tells that the other side did not open this conversation either.
        Err(NotAllowed) if live => Reason::Revoked,
        Err(NotAllowed) if packet.strays() => Reason::NoFlow,
        Err(NotAllowed) => Reason::Denied,
    };
    tables.count(endpoint.slot, direction, reason, frame.len());
    tables.trace(interface, Step::Verdict(direction, reason));
    reason
}

/// The verdict on what is not a packet of some flow.
#[inline(always)]
fn untracked(parsed: Parsed, direction: Direction, endpoint: &Endpoint) -> Reason {
    match parsed {
        Parsed::Packet(_) | Parsed::Neighbour => Reason::Neighbour,
        Parsed::Router if matches!(direction, Direction::Ingress) => Reason::Neighbour,
        // Also from a pod that no policy selects: it would speak for the node.
        Parsed::Router => Reason::Router,
        // Fails closed when isolated. A pod that no policy selects is never restricted.
        Parsed::Opaque(reason) if endpoint.isolation(direction).ruleset().is_some() => reason,
        Parsed::Opaque(_) => Reason::Untracked,
    }
}

/// No rule allows it.
struct NotAllowed;

/// Why a flow that is new, or that was allowed under older tables, is allowed in the direction in which it was opened
/// (`origin`).
#[inline(always)]
fn allowed<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    direction: Direction,
    endpoint: &Endpoint,
    packet: &Packet,
    key: &FlowKey,
    origin: Direction,
) -> Result<Reason, NotAllowed> {
    let Some(ruleset) = endpoint.isolation(origin).ruleset() else {
        return Ok(Reason::Open);
    };
    let remote = &key.remote;
    let peer = peer(tables, remote);
    // The pod's own node, both ways. A connection that kube-proxy has translated to a node address came in by a device: it
    // is not the node.
    if peer.is_node() && (matches!(direction, Direction::Egress) || frame.came_in_by() == 0) {
        return Ok(Reason::Node);
    }
    // A pod of one family lacks the other address, and `::` on the wire is nobody.
    if *remote != Address::NONE && (*remote == endpoint.ipv4 || *remote == endpoint.ipv6) {
        return Ok(Reason::Itself);
    }
    // The port of the side to which the flow was opened.
    let port = match origin {
        Direction::Ingress => key.local_port,
        Direction::Egress => key.remote_port,
    };
    let set = rule(tables, ruleset, peer.class);
    tables.trace(frame.interface(), Step::Judged(origin, peer.class, set));
    if set == ALL_PORTS || (set != NO_PORTS && tables.port(set, packet.protocol, port)) {
        Ok(Reason::Rule)
    } else {
        Err(NotAllowed)
    }
}

/// What is known about an address: as a single one first, because the trie is three times slower.
#[inline(always)]
fn peer<T: Tables>(tables: &T, address: &Address) -> Peer {
    if let Some(peer) = tables.host(address) {
        return peer;
    }
    tables.net(address).unwrap_or_default()
}

/// What a class may use: its own row, or else what everybody may.
#[inline(always)]
fn rule<T: Tables>(tables: &T, ruleset: RulesetId, class: ClassId) -> PortSetId {
    if class != NO_CLASS
        && let Some(set) = tables.rule(&RuleKey { ruleset, class })
    {
        return set;
    }
    tables
        .rule(&RuleKey {
            ruleset,
            class: NO_CLASS,
        })
        .unwrap_or(NO_PORTS)
}
