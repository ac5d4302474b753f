//! The decision procedure on tables in memory: whose flow a packet is, how long it may rest, and what is never a flow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netpol_agent::{
    dataplane::memory::{MemoryTables, SliceFrame},
    packet_builder::{Payload, frame},
    policy::Edit,
};
use netpol_common::{
    ALL_PORTS, Address, Deferral, Direction, Endpoint, Isolation, MarkField, NO_CLASS, Peer,
    Reason, RuleKey, tcp,
};

const INTERFACE: u32 = 7;
const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2));
const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 254));
/// Allows everybody everything.
const GENEROUS: Isolation = Isolation::by(2);
/// Allows nobody anything.
const STRICT: Isolation = Isolation::by(3);

/// A pod, its tables and a clock in seconds.
struct World(MemoryTables);

impl World {
    fn new(ingress: Isolation, egress: Isolation) -> Self {
        let mut tables = MemoryTables::new();
        tables.write_all(&[
            Edit::Rule {
                key: RuleKey {
                    ruleset: 2,
                    class: NO_CLASS,
                },
                ports: Some(ALL_PORTS),
            },
            Edit::Host {
                address: NODE.into(),
                peer: Some(Peer {
                    class: NO_CLASS,
                    flags: Peer::NODE,
                    pad: 0,
                }),
            },
        ]);
        let mut world = Self(tables);
        world.isolate(ingress, egress);
        world
    }

    /// A change of the pod's policies.
    fn isolate(&mut self, ingress: Isolation, egress: Isolation) {
        let ipv6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into();
        let endpoint = Endpoint {
            slot: 0,
            flags: 0,
            ingress,
            egress,
            ipv4: POD.into(),
            ipv6,
            ..Endpoint::default()
        };
        self.0.set_endpoint(INTERFACE, Some(endpoint));
        self.0.raise_epoch();
    }

    /// Sets the clock. A tick is 2^30 ns.
    fn at(&self, seconds: u64) -> &Self {
        self.0.set_now(((seconds * 1_000_000_000) >> 30) as u32);
        self
    }

    fn raw(&self, bytes: &[u8], direction: Direction, came_in_by: u32) -> Reason {
        let frame = SliceFrame {
            bytes,
            interface: INTERFACE,
            came_in_by,
            ..SliceFrame::default()
        };
        self.0.judge(&frame, direction)
    }

    fn sends(&self, to: IpAddr, payload: Payload) -> Reason {
        let bytes = frame(POD, to, payload).expect("one family");
        self.raw(&bytes, Direction::Egress, INTERFACE)
    }

    fn receives(&self, from: IpAddr, payload: Payload) -> Reason {
        let bytes = frame(from, POD, payload).expect("one family");
        self.raw(&bytes, Direction::Ingress, 3)
    }
}

/// The pod's port is 80, the peer's 4000.
const fn out(flags: u8) -> Payload {
    Payload::Tcp {
        source: 80,
        destination: 4000,
        flags,
    }
}
const fn into(flags: u8) -> Payload {
    Payload::Tcp {
        source: 4000,
        destination: 80,
        flags,
    }
}
const DATAGRAM_OUT: Payload = Payload::Udp {
    source: 53,
    destination: 4000,
};
const DATAGRAM_IN: Payload = Payload::Udp {
    source: 4000,
    destination: 53,
};

#[test]
fn replies_pass_though_the_pod_may_send_nothing_by_itself() {
    let world = World::new(GENEROUS, STRICT);
    assert_eq!(world.sends(PEER, out(tcp::SYN)), Reason::Denied);
    assert_eq!(world.receives(PEER, into(tcp::SYN)), Reason::Rule);
    assert_eq!(world.sends(PEER, out(tcp::SYN | tcp::ACK)), Reason::Flow);
    assert_eq!(world.receives(PEER, into(tcp::ACK)), Reason::Flow);
    assert_eq!(world.sends(PEER, out(tcp::ACK)), Reason::Flow);
    // The same pod, another peer's port: no flow, no permission.
    let elsewhere = Payload::Tcp {
        source: 80,
        destination: 4001,
        flags: tcp::ACK,
    };
    assert_eq!(world.sends(PEER, elsewhere), Reason::NoFlow);
}

#[test]
fn a_syn_against_the_direction_of_a_flow_is_judged_by_itself() {
    let world = World::new(GENEROUS, STRICT);
    assert_eq!(world.receives(PEER, into(tcp::SYN)), Reason::Rule);
    assert_eq!(world.sends(PEER, out(tcp::SYN)), Reason::Denied);
    // And leaves the flow as it was.
    assert_eq!(world.sends(PEER, out(tcp::SYN | tcp::ACK)), Reason::Flow);
}

#[test]
fn tcp_rests_two_hours_when_established_and_a_minute_when_not() {
    let world = World::new(GENEROUS, STRICT);
    world.at(100).receives(PEER, into(tcp::SYN));
    assert_eq!(
        world.at(165).sends(PEER, out(tcp::SYN | tcp::ACK)),
        Reason::NoFlow
    );
    world.at(200).receives(PEER, into(tcp::SYN));
    assert_eq!(
        world.at(255).sends(PEER, out(tcp::SYN | tcp::ACK)),
        Reason::Flow
    );
    assert_eq!(
        world.at(255 + 7190).sends(PEER, out(tcp::ACK)),
        Reason::Flow
    );
    // Its rest begins again with each packet.
    assert_eq!(
        world.at(255 + 2 * 7190).sends(PEER, out(tcp::ACK)),
        Reason::Flow
    );
    assert_eq!(
        world.at(255 + 2 * 7190 + 7210).sends(PEER, out(tcp::ACK)),
        Reason::NoFlow
    );
}

#[test]
fn a_half_closed_connection_goes_on_and_a_closed_one_ends_soon() {
    let world = World::new(GENEROUS, STRICT);
    world.at(100).receives(PEER, into(tcp::SYN));
    world.sends(PEER, out(tcp::SYN | tcp::ACK));
    assert_eq!(
        world.receives(PEER, into(tcp::FIN | tcp::ACK)),
        Reason::Flow
    );
    // The client has no more to say, the server has, for an hour.
    assert_eq!(world.at(3700).sends(PEER, out(tcp::ACK)), Reason::Flow);
    assert_eq!(world.sends(PEER, out(tcp::FIN | tcp::ACK)), Reason::Flow);
    assert_eq!(world.at(3705).receives(PEER, into(tcp::ACK)), Reason::Flow);
    assert_eq!(world.at(3720).sends(PEER, out(tcp::ACK)), Reason::NoFlow);

    world.at(5000).receives(PEER, into(tcp::SYN));
    world.sends(PEER, out(tcp::SYN | tcp::ACK));
    assert_eq!(world.receives(PEER, into(tcp::RST)), Reason::Flow);
    assert_eq!(world.at(5015).sends(PEER, out(tcp::ACK)), Reason::NoFlow);
}

#[test]
fn the_next_connection_on_the_same_ports_is_not_taken_for_the_one_that_ended() {
    for end in [tcp::RST, tcp::FIN | tcp::ACK] {
        let world = World::new(GENEROUS, STRICT);
        world.at(100).receives(PEER, into(tcp::SYN));
        world.sends(PEER, out(tcp::SYN | tcp::ACK));
        world.receives(PEER, into(end));
        world.sends(PEER, out(end));

        assert_eq!(world.at(105).receives(PEER, into(tcp::SYN)), Reason::Flow);
        assert_eq!(world.sends(PEER, out(tcp::SYN | tcp::ACK)), Reason::Flow);
        // The pod speaks first after a rest: it is still answering.
        assert_eq!(world.at(3600).sends(PEER, out(tcp::ACK)), Reason::Flow);
    }
}

#[test]
fn udp_rests_thirty_seconds_one_way_and_three_minutes_two_way() {
    let world = World::new(STRICT, GENEROUS);
    world.at(100).sends(PEER, DATAGRAM_OUT);
    assert_eq!(world.at(129).receives(PEER, DATAGRAM_IN), Reason::Flow);
    assert_eq!(
        world.at(129 + 179).receives(PEER, DATAGRAM_IN),
        Reason::Flow
    );
    assert_eq!(
        world.at(129 + 179 + 184).receives(PEER, DATAGRAM_IN),
        Reason::Denied
    );
    world.at(1000).sends(PEER, DATAGRAM_OUT);
    assert_eq!(world.at(1034).receives(PEER, DATAGRAM_IN), Reason::Denied);
}

#[test]
fn the_first_policy_knows_who_opened_what_was_open_before() {
    let mut world = World::new(Isolation::OPEN, Isolation::OPEN);
    assert_eq!(world.sends(PEER, DATAGRAM_OUT), Reason::Open);
    assert_eq!(world.receives(PEER, into(tcp::SYN)), Reason::Open);
    // Nobody may come in from now on: what the pod asks for itself goes on, what came in ends, both ways.
    world.isolate(STRICT, Isolation::OPEN);
    assert_eq!(world.receives(PEER, DATAGRAM_IN), Reason::Open);
    assert_eq!(world.receives(PEER, into(tcp::ACK)), Reason::Revoked);
    assert_eq!(world.sends(PEER, out(tcp::ACK)), Reason::Revoked);
    // Egress is open: the pod may open a connection of its own on the same ports.
    assert_eq!(world.sends(PEER, out(tcp::SYN)), Reason::Open);
}

#[test]
fn the_node_is_who_sends_from_the_node_not_who_carries_its_address() {
    let world = World::new(STRICT, STRICT);
    let probe = frame(NODE, POD, into(tcp::SYN)).expect("one family");
    assert_eq!(world.raw(&probe, Direction::Ingress, 0), Reason::Node);
    assert_eq!(world.sends(NODE, out(tcp::SYN | tcp::ACK)), Reason::Flow);
    // What the pod itself opens goes to the node, or to whom it translates its address: judged where it leaves, if it does.
    let opens = Payload::syn(5000, 81);
    assert_eq!(world.sends(NODE, opens), Reason::Deferred);
    // A connection that was translated to the node's address came in by a device.
    assert_eq!(world.raw(&probe, Direction::Ingress, 3), Reason::Denied);
    // And nobody else becomes the node by coming from no device.
    let other = frame(PEER, POD, into(tcp::SYN)).expect("one family");
    assert_eq!(world.raw(&other, Direction::Ingress, 0), Reason::Denied);
}

#[test]
fn a_live_connection_of_the_node_outlives_the_first_policy() {
    let mut world = World::new(Isolation::OPEN, Isolation::OPEN);
    let from_node = |flags| frame(NODE, POD, into(flags)).expect("one family");
    assert_eq!(
        world.raw(&from_node(tcp::SYN), Direction::Ingress, 0),
        Reason::Open
    );
    assert_eq!(world.sends(NODE, out(tcp::SYN | tcp::ACK)), Reason::Flow);
    world.isolate(STRICT, STRICT);
    assert_eq!(world.sends(NODE, out(tcp::ACK)), Reason::Node);
    assert_eq!(
        world.raw(&from_node(tcp::ACK), Direction::Ingress, 0),
        Reason::Node
    );
}

#[test]
fn a_pod_reaches_itself() {
    let world = World::new(STRICT, STRICT);
    assert_eq!(world.receives(POD, into(tcp::SYN)), Reason::Itself);
    assert_eq!(world.receives(PEER, into(tcp::SYN)), Reason::Denied);
}

#[test]
fn the_family_that_a_pod_lacks_is_not_itself() {
    let mut world = World::new(STRICT, STRICT);
    for address in [PEER, Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).into()] {
        let one_family = |a: IpAddr| {
            (a.is_ipv4() == address.is_ipv4())
                .then_some(a)
                .map_or(Address::NONE, Address::from)
        };
        let endpoint = Endpoint {
            ingress: STRICT,
            egress: STRICT,
            ipv4: one_family(POD),
            ipv6: one_family(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into()),
            ..Endpoint::default()
        };
        world.0.set_endpoint(INTERFACE, Some(endpoint));
        // Bridged, so that no router has refused the source.
        let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into();
        let nobody = frame(Ipv6Addr::UNSPECIFIED.into(), link_local, DATAGRAM_IN);
        let nobody = nobody.expect("one family");
        assert_eq!(world.raw(&nobody, Direction::Ingress, 3), Reason::Denied);
    }
}

#[test]
fn an_echo_is_answered_and_an_answer_alone_is_not_let_out() {
    let ask = Payload::Echo {
        identifier: 9,
        reply: false,
    };
    let answer = Payload::Echo {
        identifier: 9,
        reply: true,
    };
    let world = World::new(GENEROUS, STRICT);
    assert_eq!(world.sends(PEER, answer), Reason::NoFlow);
    assert_eq!(world.receives(PEER, ask), Reason::Rule);
    assert_eq!(world.sends(PEER, answer), Reason::Flow);
    // The pod's own question with the same identifier is another one.
    assert_eq!(world.sends(PEER, ask), Reason::Denied);
}

#[test]
fn what_cannot_be_judged_fails_closed_when_isolated_and_passes_when_open() {
    let vlan = {
        let mut bytes = frame(POD, PEER, out(tcp::SYN)).expect("one family");
        bytes[12..14].copy_from_slice(&[0x81, 0x00]);
        bytes
    };
    let later_fragment = {
        let mut bytes = frame(POD, PEER, DATAGRAM_OUT).expect("one family");
        bytes[21] = 100;
        bytes
    };
    let cut = frame(POD, PEER, out(tcp::SYN)).expect("one family")[..40].to_vec();
    // A fragment without ports needs a rule without ports.
    for (isolation, reason) in [
        (STRICT, Reason::Fragment),
        (GENEROUS, Reason::Rule),
        (Isolation::OPEN, Reason::Open),
    ] {
        let world = World::new(STRICT, isolation);
        let verdict = world.raw(&later_fragment, Direction::Egress, INTERFACE);
        assert_eq!(verdict, reason);
    }
    let rows = [(vlan, Reason::EtherType), (cut, Reason::Malformed)];
    for (bytes, reason) in rows {
        let isolated = World::new(Isolation::OPEN, GENEROUS);
        assert_eq!(isolated.raw(&bytes, Direction::Egress, INTERFACE), reason);
        let open = World::new(STRICT, Isolation::OPEN);
        assert_eq!(
            open.raw(&bytes, Direction::Egress, INTERFACE),
            Reason::Untracked
        );
    }
}

#[test]
fn no_pod_advertises_routes_and_arp_always_passes() {
    let mut advertisement = frame(
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into(),
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(),
        Payload::Echo {
            identifier: 0,
            reply: false,
        },
    )
    .expect("one family");
    advertisement[54] = 134;
    advertisement[21] = 255;
    let mut arp = vec![0; 42];
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    for isolation in [Isolation::OPEN, STRICT] {
        let world = World::new(isolation, isolation);
        assert_eq!(
            world.raw(&advertisement, Direction::Egress, INTERFACE),
            Reason::Router
        );
        assert_eq!(
            world.raw(&advertisement, Direction::Ingress, 0),
            Reason::Neighbour
        );
        assert_eq!(
            world.raw(&arp, Direction::Egress, INTERFACE),
            Reason::Neighbour
        );
        assert_eq!(world.raw(&arp, Direction::Ingress, 3), Reason::Neighbour);
    }
}

#[test]
fn nobody_speaks_to_all_neighbours_in_the_name_of_one() {
    let mut world = World::new(GENEROUS, GENEROUS);
    let endpoint = Endpoint {
        flags: Endpoint::GUARD,
        ingress: GENEROUS,
        egress: GENEROUS,
        ipv4: POD.into(),
        ..Endpoint::default()
    };
    world.0.set_endpoint(INTERFACE, Some(endpoint));
    let sent = |from: IpAddr, to: IpAddr, group: bool, direction| {
        let mut bytes = frame(from, to, DATAGRAM_OUT).expect("one family");
        if group {
            bytes[..6].fill(0xff);
        }
        world.raw(&bytes, direction, 3)
    };
    let subnet = IpAddr::from([10, 0, 0, 255]);
    assert_eq!(sent(POD, PEER, false, Direction::Egress), Reason::Rule);
    assert_eq!(sent(POD, PEER, true, Direction::Egress), Reason::Spoofed);
    assert_eq!(sent(POD, POD, false, Direction::Egress), Reason::Spoofed);
    assert_eq!(sent(POD, subnet, true, Direction::Egress), Reason::Rule);
    let other = IpAddr::from([10, 0, 0, 77]);
    assert!(sent(PEER, POD, true, Direction::Ingress).passes());
    assert_eq!(sent(PEER, other, true, Direction::Ingress), Reason::Astray);
    assert!(sent(PEER, subnet, true, Direction::Ingress).passes());
}

#[test]
fn a_translated_connection_does_not_outlive_its_translation() {
    let world = World::new(Isolation::OPEN, STRICT);
    let asks = frame(NODE, POD, DATAGRAM_IN).expect("one family");
    assert_eq!(
        world.at(1000).raw(&asks, Direction::Ingress, 3),
        Reason::Open
    );
    assert_eq!(world.at(1020).sends(NODE, DATAGRAM_OUT), Reason::Flow);
    // Connection tracking has forgotten it: what leaves now goes to somebody else.
    assert_eq!(world.at(1140).sends(NODE, DATAGRAM_OUT), Reason::Deferred);
}

#[test]
fn a_packet_counts_once_under_its_reason() {
    let world = World::new(STRICT, GENEROUS);
    world.sends(PEER, DATAGRAM_OUT);
    world.receives(PEER, DATAGRAM_IN);
    world.receives(PEER, into(tcp::SYN));
    let count = |direction, reason| world.0.counted(0, direction, reason).packets;
    assert_eq!(count(Direction::Egress, Reason::Rule), 1);
    assert_eq!(count(Direction::Ingress, Reason::Flow), 1);
    assert_eq!(count(Direction::Ingress, Reason::Denied), 1);
    assert_eq!(count(Direction::Ingress, Reason::Rule), 0);
}

/// A mark on what the node itself sends is somebody else's, with a socket or without one (WireGuard's packets have none); on a fragment
/// without a socket it is that of the pod whose datagram the node has cut anew.
#[test]
fn the_node_s_own_marks_are_left_alone() {
    let world = World::new(Isolation::OPEN, STRICT);
    let field = MarkField::DEFAULT;
    let mark = field.write(
        0,
        Deferral {
            slot: 0,
            urgent: true,
            ticket: 0,
        },
    );
    let whole = frame(NODE, PEER, Payload::syn(1, 2)).expect("one family");
    let mut first = frame(POD, PEER, DATAGRAM_OUT).expect("one family");
    // More fragments follow.
    first[20] = 0x20;
    for (bytes, of_a_socket, came_in_by, expected) in [
        (&whole, true, 0, (Reason::Unknown, mark)),
        (&whole, false, 0, (Reason::Unknown, mark)),
        (&first, true, 0, (Reason::Unknown, mark)),
        (&first, false, 0, (Reason::Denied, 0)),
        (&first, false, INTERFACE, (Reason::Denied, 0)),
    ] {
        let frame = SliceFrame {
            bytes,
            interface: 99,
            came_in_by,
            of_a_socket,
            mark: std::cell::Cell::new(mark),
            ..SliceFrame::default()
        };
        let reason = world.0.host_egress(&frame);
        let reason = if reason.passes() {
            Reason::Unknown
        } else {
            reason
        };
        assert_eq!((reason, frame.mark.get()), expected, "{frame:?}");
    }
}
