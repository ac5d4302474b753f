//! The judge in its two homes: the same packets against the same tables, in this kernel and on the host. Verdict and reason
//! must agree, packet after packet, flows included.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netpol_agent::{
    dataplane::memory::{MemoryTables, SliceFrame},
    object,
    packet_builder::{Payload, frame},
    policy::edit::Edit,
};
use netpol_common::{
    ALL_PORTS, Address, Direction, Endpoint, Isolation, NO_CLASS, Peer, PortKey, Reason, RuleKey,
    map, protocol, tcp,
};
use netpol_tests::kernel::{Bench, DROP, LOOPBACK, PASS, Programs};
use proptest::{prelude::*, strategy::ValueTree as _};

const POD: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const RULESET: u64 = 900;
const OTHER_RULESET: u64 = 901;
const SOME_PORTS: u64 = 70;
const EVERYBODY: u64 = 71;

/// Class 5: a friend, class 6: named but not allowed, class 7: a block, allowed everything.
fn peers() -> [IpAddr; 10] {
    let six = |last| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, last));
    [
        Ipv4Addr::new(10, 2, 0, 5).into(),
        Ipv4Addr::new(10, 2, 0, 6).into(),
        Ipv4Addr::new(192, 0, 2, 7).into(),
        Ipv4Addr::new(198, 51, 100, 1).into(),
        Ipv4Addr::new(10, 1, 0, 254).into(),
        IpAddr::V4(POD),
        six(5),
        six(6),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).into(),
        six(0xfe),
    ]
}

fn edits() -> Vec<Edit> {
    let host = |ip: IpAddr, class, flags| Edit::Host {
        address: ip.into(),
        peer: Some(Peer {
            class,
            flags,
            pad: 0,
        }),
    };
    let net = |ip: IpAddr, bits, class| Edit::Net {
        address: ip.into(),
        bits,
        peer: Some(Peer::of(class)),
    };
    let port = |set, protocol, port, bits| Edit::Port {
        key: PortKey::new(set, protocol, port),
        bits,
        present: true,
    };
    let rule = |ruleset, class, ports| Edit::Rule {
        key: RuleKey { ruleset, class },
        ports: Some(ports),
    };
    let p = peers();
    vec![
        // 80 and 8192..8447 of TCP, all of UDP; 53 of UDP for everybody.
        port(SOME_PORTS, protocol::TCP, 80, 96),
        port(SOME_PORTS, protocol::TCP, 8192, 88),
        port(SOME_PORTS, protocol::UDP, 0, 80),
        port(EVERYBODY, protocol::UDP, 53, 96),
        port(EVERYBODY, protocol::SCTP, 9, 96),
        rule(RULESET, 5, SOME_PORTS),
        rule(RULESET, 7, ALL_PORTS),
        rule(OTHER_RULESET, 5, ALL_PORTS),
        rule(OTHER_RULESET, NO_CLASS, EVERYBODY),
        host(p[0], 5, 0),
        host(p[1], 6, 0),
        host(p[4], NO_CLASS, Peer::NODE),
        host(p[6], 5, 0),
        host(p[7], 6, 0),
        host(p[9], NO_CLASS, Peer::NODE),
        net(Ipv4Addr::UNSPECIFIED.into(), 96, NO_CLASS),
        net(Ipv4Addr::new(192, 0, 2, 0).into(), 120, 7),
        net(Ipv6Addr::UNSPECIFIED.into(), 0, 5),
        net(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0).into(), 32, 7),
    ]
}

/// Both homes, with the same tables.
struct Homes {
    bench: Bench,
    programs: Programs,
    memory: MemoryTables,
    /// Statistics of the kernel as last read, per direction.
    counted: [[u64; Reason::COUNT]; 2],
}

impl Homes {
    fn new() -> Self {
        let mut bench = Bench::new("judge").expect("a dataplane");
        let programs = bench.load(object::NETPOL).expect("the programs load");
        bench
            .dataplane
            .write(&edits())
            .expect("the tables can be written");
        let mut memory = MemoryTables::new();
        memory.write_all(&edits());
        // The clocks differ; nothing expires while the test runs.
        Self {
            bench,
            programs,
            memory,
            counted: Default::default(),
        }
    }

    fn endpoint(&mut self, ingress: Isolation, egress: Isolation) {
        let endpoint = Endpoint {
            slot: 3,
            flags: 0,
            ingress,
            egress,
            ipv4: POD.into(),
            ipv6: POD6.into(),
            ..Endpoint::default()
        };
        self.bench
            .dataplane
            .set_endpoint(LOOPBACK, &endpoint)
            .expect("an endpoint");
        self.memory.set_endpoint(LOOPBACK, Some(endpoint));
        self.bench.dataplane.raise_epoch().expect("the epoch");
        self.memory.raise_epoch();
    }

    /// Judges a packet in both homes and returns the reason, on which they agree.
    fn judge(
        &mut self,
        bytes: &[u8],
        direction: Direction,
        came_in_by: u32,
    ) -> Result<Reason, String> {
        let on_host = self.memory.judge(
            &SliceFrame {
                bytes,
                interface: LOOPBACK,
                came_in_by,
                ..SliceFrame::default()
            },
            direction,
        );
        let program = match direction {
            Direction::Ingress => map::POD_INGRESS,
            Direction::Egress => map::POD_EGRESS,
        };
        let (verdict, _) = self
            .programs
            .execute(program, bytes, came_in_by, 1)
            .map_err(|e| format!("{e:#}"))?;
        let now = self
            .bench
            .counted(3, direction)
            .map_err(|e| format!("{e:#}"))?;
        let before = std::mem::replace(&mut self.counted[direction as usize], now);
        let in_kernel: Vec<Reason> = Reason::ALL
            .into_iter()
            .filter(|&r| now[r as usize] != before[r as usize])
            .collect();
        if in_kernel != [on_host] {
            return Err(format!(
                "{direction}: the kernel says {in_kernel:?}, the host {on_host:?}"
            ));
        }
        let expected = if on_host.passes() { PASS } else { DROP };
        if verdict != expected {
            return Err(format!(
                "{direction}: reason {on_host}, but the program returned {verdict}"
            ));
        }
        Ok(on_host)
    }
}

/// `BPF_PROG_TEST_RUN` takes no frame without a byte behind the Ethernet header, and none whose EtherType says IP without
/// the whole IP header (net/bpf/test_run.c `bpf_prog_test_run_skb`).
const SHORTEST: usize = 54;

#[derive(Clone, Debug)]
struct Shot {
    peer: usize,
    payload: Payload,
    direction: Direction,
    from_node: bool,
    /// What follows the headers, inside the length that the IP header states: more headers, perhaps.
    tail: Vec<u8>,
    /// Bytes to overwrite, and where to cut.
    damage: Vec<(usize, u8)>,
    cut: Option<usize>,
}

fn shots() -> impl Strategy<Value = Shot> {
    let ports = || prop::sample::select(vec![53u16, 79, 80, 81, 443, 8191, 8192, 8447, 8448, 9]);
    let near = || prop::sample::select(vec![80u16, 4000]);
    let flags = prop::sample::select(vec![
        tcp::SYN,
        tcp::SYN | tcp::ACK,
        tcp::ACK,
        tcp::FIN | tcp::ACK,
        tcp::RST,
        0,
        0xff,
    ]);
    let payload = prop_oneof![
        4 => (near(), ports(), flags).prop_map(|(source, destination, flags)| Payload::Tcp {
            source,
            destination,
            flags
        }),
        2 => (near(), ports()).prop_map(|(source, destination)| Payload::Udp { source, destination }),
        1 => (near(), ports()).prop_map(|(source, destination)| Payload::Sctp { source, destination }),
        1 => (0u16..2, any::<bool>()).prop_map(|(identifier, reply)| Payload::Echo { identifier, reply }),
        1 => prop::sample::select(vec![2u8, 4, 33, 41, 47, 50, 136, 255, 0, 43, 44, 51, 60, 135]).prop_map(Payload::Other),
    ];
    let damage = prop_oneof![
        3 => Just(vec![]),
        1 => prop::collection::vec((12usize..80, any::<u8>()), 1..4),
    ];
    (
        0..peers().len(),
        payload,
        any::<bool>(),
        any::<bool>(),
        prop::collection::vec(
            prop::sample::select(vec![0u8, 0, 0, 1, 2, 6, 17, 43, 44, 60]),
            0..48,
        ),
        damage,
        prop::option::weighted(0.1, SHORTEST..80),
    )
        .prop_map(
            |(peer, payload, ingress, from_node, tail, damage, cut)| Shot {
                peer,
                payload,
                direction: if ingress {
                    Direction::Ingress
                } else {
                    Direction::Egress
                },
                from_node,
                tail,
                damage,
                cut,
            },
        )
}

impl Shot {
    /// The frame, and its mirror image in the other direction: replies share the flow.
    fn frame(&self, mirrored: bool) -> Option<(Vec<u8>, Direction)> {
        let peer = peers()[self.peer];
        let pod: IpAddr = if peer.is_ipv4() {
            POD.into()
        } else {
            POD6.into()
        };
        let (payload, direction) = if mirrored {
            (mirror(self.payload), self.direction.reverse())
        } else {
            (self.payload, self.direction)
        };
        let (from, to) = match direction {
            Direction::Ingress => (peer, pod),
            Direction::Egress => (pod, peer),
        };
        let mut bytes = frame(from, to, payload)?;
        bytes.extend(&self.tail);
        let (at, headers) = if peer.is_ipv4() { (16, 14) } else { (18, 54) };
        let length = (bytes.len() - headers) as u16;
        bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
        for &(at, value) in &self.damage {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if let Some(length) = self.cut {
            bytes.truncate(length);
        }
        Some((bytes, direction))
    }
}

fn mirror(payload: Payload) -> Payload {
    match payload {
        Payload::Tcp {
            source,
            destination,
            flags,
        } => Payload::Tcp {
            source: destination,
            destination: source,
            flags: if flags == tcp::SYN {
                tcp::SYN | tcp::ACK
            } else {
                flags
            },
        },
        Payload::Udp {
            source,
            destination,
        } => Payload::Udp {
            source: destination,
            destination: source,
        },
        Payload::Sctp {
            source,
            destination,
        } => Payload::Sctp {
            source: destination,
            destination: source,
        },
        Payload::Echo { identifier, reply } => Payload::Echo {
            identifier,
            reply: !reply,
        },
        other => other,
    }
}

#[test]
fn kernel_and_host_agree_on_every_packet() {
    let mut homes = Homes::new();
    let isolations = [
        Isolation::OPEN,
        Isolation::by(RULESET),
        Isolation::by(OTHER_RULESET),
    ];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let mut seen = [0u64; Reason::COUNT];
    let strategy = (
        0..3usize,
        0..3usize,
        prop::collection::vec((shots(), any::<bool>()), 1..40),
    );
    let generator = move |runner: &mut proptest::test_runner::TestRunner| {
        strategy.new_tree(runner).expect("a case").current()
    };
    // No shrinking: the kernel keeps its flows between runs.
    for _ in 0..400 {
        let (ingress, egress, shots) = generator(&mut runner);
        homes.endpoint(isolations[ingress], isolations[egress]);
        for (shot, reply) in shots {
            for mirrored in if reply {
                &[false, true][..]
            } else {
                &[false][..]
            } {
                let Some((bytes, direction)) = shot.frame(*mirrored) else {
                    continue;
                };
                let came_in_by = if shot.from_node { 0 } else { LOOPBACK };
                match homes.judge(&bytes, direction, came_in_by) {
                    Ok(reason) => seen[reason as usize] += 1,
                    Err(difference) => panic!("{difference}\n{shot:?}\nframe {bytes:02x?}"),
                }
            }
        }
    }
    // A comparison of nothing would agree as well: every reason that such packets can have was met.
    for reason in Reason::ALL {
        let unmet = matches!(
            reason,
            Reason::Unknown
                | Reason::Neighbour
                | Reason::Router
                | Reason::Related
                | Reason::Deferred
                | Reason::Spoofed
                | Reason::Astray
                | Reason::Tunnel
        );
        assert!(
            unmet || seen[reason as usize] > 0,
            "no packet was judged {reason}: {seen:?}"
        );
    }
}

#[test]
fn an_interface_without_endpoint_is_left_alone() {
    let mut homes = Homes::new();
    let bytes = frame(peers()[0], POD.into(), Payload::syn(4000, 80)).expect("a frame");
    let (verdict, _) = homes
        .programs
        .execute(map::POD_INGRESS, &bytes, LOOPBACK, 1)
        .expect("a run");
    assert_eq!(verdict, PASS);
    // With an endpoint that allows nothing the same packet is dropped.
    homes.endpoint(Isolation::by(12345), Isolation::OPEN);
    assert_eq!(
        homes.judge(&bytes, Direction::Ingress, LOOPBACK),
        Ok(Reason::Denied)
    );
}

#[test]
fn an_older_epoch_is_judged_again_in_both_directions() {
    let mut homes = Homes::new();
    homes.endpoint(Isolation::by(RULESET), Isolation::OPEN);
    let from_friend = |flags| {
        frame(
            peers()[0],
            POD.into(),
            Payload::Tcp {
                source: 4000,
                destination: 80,
                flags,
            },
        )
        .expect("a frame")
    };
    let reply = frame(
        POD.into(),
        peers()[0],
        Payload::Tcp {
            source: 80,
            destination: 4000,
            flags: tcp::SYN | tcp::ACK,
        },
    )
    .expect("a frame");
    let data = from_friend(tcp::ACK);
    assert_eq!(
        homes.judge(&from_friend(tcp::SYN), Direction::Ingress, LOOPBACK),
        Ok(Reason::Rule)
    );
    assert_eq!(
        homes.judge(&reply, Direction::Egress, LOOPBACK),
        Ok(Reason::Flow)
    );
    assert_eq!(
        homes.judge(&data, Direction::Ingress, LOOPBACK),
        Ok(Reason::Flow)
    );

    // The same tables under a new epoch: judged again, and allowed again.
    homes.endpoint(Isolation::by(RULESET), Isolation::OPEN);
    assert_eq!(
        homes.judge(&reply, Direction::Egress, LOOPBACK),
        Ok(Reason::Rule)
    );
    assert_eq!(
        homes.judge(&data, Direction::Ingress, LOOPBACK),
        Ok(Reason::Flow)
    );

    // The permission goes: the pod's own egress is open, but it did not open this connection.
    homes.endpoint(Isolation::by(12345), Isolation::OPEN);
    assert_eq!(
        homes.judge(&reply, Direction::Egress, LOOPBACK),
        Ok(Reason::Revoked)
    );
    assert_eq!(
        homes.judge(&data, Direction::Ingress, LOOPBACK),
        Ok(Reason::Revoked)
    );

    // A connection that the pod opens to the same ports is another one.
    let opens = frame(
        POD.into(),
        peers()[0],
        Payload::Tcp {
            source: 80,
            destination: 4000,
            flags: tcp::SYN,
        },
    )
    .expect("a frame");
    assert_eq!(
        homes.judge(&opens, Direction::Egress, LOOPBACK),
        Ok(Reason::Open)
    );

    // And it comes back.
    homes.endpoint(Isolation::by(RULESET), Isolation::OPEN);
    assert_eq!(
        homes.judge(&from_friend(tcp::SYN), Direction::Ingress, LOOPBACK),
        Ok(Reason::Rule)
    );
}

#[test]
fn addresses_of_both_families_are_told_apart() {
    // ::/0 is of a class that may use port 80; it must not answer for IPv4.
    let mut homes = Homes::new();
    homes.endpoint(Isolation::by(RULESET), Isolation::OPEN);
    let v4 = frame(
        Ipv4Addr::new(203, 0, 113, 1).into(),
        POD.into(),
        Payload::syn(4000, 80),
    );
    let v6 = frame(
        Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 1).into(),
        POD6.into(),
        Payload::syn(4000, 80),
    );
    let mut judge = |bytes: Option<Vec<u8>>| {
        homes.judge(&bytes.expect("a frame"), Direction::Ingress, LOOPBACK)
    };
    assert_eq!(judge(v4), Ok(Reason::Denied));
    assert_eq!(judge(v6), Ok(Reason::Rule));
    // The mapped form of an allowed IPv4 address, on the wire.
    let mapped = Address::from(Ipv4Addr::new(192, 0, 2, 7)).0;
    let mut bytes = frame(
        Ipv6Addr::LOCALHOST.into(),
        POD6.into(),
        Payload::syn(4000, 80),
    )
    .expect("a frame");
    bytes[22..38].copy_from_slice(&mapped);
    assert_eq!(judge(Some(bytes)), Ok(Reason::Malformed));
}
