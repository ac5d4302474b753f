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
    /// Notes a step of the way of a packet, for a developer.
    #[inline(always)]
    fn trace(&self, _endpoint: &Endpoint, _step: Step<'_>) {}
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
    let Some(endpoint) = tables.endpoint(frame.interface()) else {
        return Reason::Unknown;
    };
    let reason = reason(frame, tables, direction, endpoint, epoch);
    tables.count(endpoint.slot, direction, reason, frame.len());
    tables.trace(endpoint, Step::Verdict(direction, reason));
    reason
}

#[inline(always)]
fn reason<F: Frame, T: Tables>(
    frame: &F,
    tables: &T,
    direction: Direction,
    endpoint: &Endpoint,
    epoch: u32,
) -> Reason {
    let mut packet = Packet::EMPTY;
    match parse(frame, &mut packet) {
        Parsed::Packet => {}
        Parsed::Neighbour => return Reason::Neighbour,
        Parsed::Router if matches!(direction, Direction::Ingress) => return Reason::Neighbour,
        // Also from a pod that no policy selects: it would speak for the node.
        Parsed::Router => return Reason::Router,
        Parsed::Opaque(reason) => {
            // Fails closed when isolated. A pod that no policy selects is never restricted.
            return if endpoint.isolation(direction).ruleset().is_some() {
                reason
            } else {
                Reason::Untracked
            };
        }
    }
    tables.trace(endpoint, Step::Parsed(direction, &packet));

    let now = tables.now();
    let key = packet.flow_key(frame.interface(), direction);
    let known = tables.flow(&key);
    let mut origin = direction;
    let mut revoked = false;
    if let Some(place) = &known {
        let flow = place.load();
        tables.trace(endpoint, Step::Known(flow.origin(), flow.epoch, epoch));
        // A SYN against the direction of the flow opens another connection on the same ports.
        let other = packet.opens() && flow.origin != direction as u8;
        if !flow.expired(packet.protocol, now) && !other {
            if flow.epoch == epoch {
                let next = flow.advance(&packet, direction, epoch, now);
                // Written back at most once a tick, and when the phase changes.
                if next != flow {
                    place.store(next);
                }
                return Reason::Flow;
            }
            origin = flow.origin();
            revoked = true;
        }
    }

    let remote = packet.remote(direction);
    let reason = match endpoint.isolation(origin).ruleset() {
        None => Reason::Open,
        Some(ruleset) => {
            let peer = peer(tables, &remote);
            // The pod's own node, both ways. A connection that kube-proxy has translated to a node address came in by
            // a device: it is not the node.
            if peer.is_node() && (matches!(direction, Direction::Egress) || frame.came_in_by() == 0)
            {
                return Reason::Node;
            }
            if remote == endpoint.ipv4 || remote == endpoint.ipv6 {
                return Reason::Itself;
            }
            // The port of the side to which the flow was opened.
            let port = if matches!(origin, Direction::Ingress) {
                key.local_port
            } else {
                key.remote_port
            };
            let set = rule(tables, ruleset, peer.class);
            tables.trace(endpoint, Step::Judged(origin, peer.class, set));
            if set == ALL_PORTS || (set != NO_PORTS && tables.port(set, packet.protocol, port)) {
                Reason::Rule
            } else if revoked {
                // The entry stays: it tells that the other side did not open this conversation either.
                return Reason::Revoked;
            } else if packet.strays() {
                return Reason::NoFlow;
            } else {
                return Reason::Denied;
            }
        }
    };
    match &known {
        Some(place) if revoked => {
            place.store(place.load().advance(&packet, direction, epoch, now));
        }
        _ => tables.remember(&key, Flow::open(epoch, direction, now)),
    }
    reason
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
