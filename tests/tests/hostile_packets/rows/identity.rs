//! Who is who: addresses that are somebody else's, and messages that speak for somebody else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netpol_common::Reason;
use netpol_tests::table::Family;

use crate::{
    stage::{Fate, Stage},
    wire::{ARP, BROADCAST, Path},
};

/// One isolated pod and one that no policy selects: who is who is the same for both.
pub const BOTH: [(&str, &str); 2] = [("ports", "goal"), ("goal", "stranger")];

pub fn play(stage: &Stage) {
    sources(stage);
    arp(stage);
    neighbours(stage);
}

fn sources(stage: &Stage) {
    for (from, to) in BOTH {
        for family in Family::ALL {
            let path = stage.path(from, to, family);
            let mut others = vec![
                stage.path("stranger", to, family).from,
                stage.path("all", to, family).from,
                path.to,
            ];
            match family {
                Family::V4 => others.extend(
                    [
                        "0.0.0.0",
                        "127.0.0.1",
                        "10.244.1.1",
                        "172.18.0.2",
                        "10.0.5.7",
                        "255.255.255.255",
                        "224.0.0.1",
                    ]
                    .map(|text| text.parse::<IpAddr>().expect("an address")),
                ),
                Family::V6 => {
                    others.extend(
                        [
                            "::",
                            "::1",
                            "fd00:10:244:1::1",
                            "fd00:172:18::2",
                            "fd00:5::7",
                            "ff02::1",
                            "fe80::1",
                        ]
                        .map(|text| text.parse::<IpAddr>().expect("an address")),
                    );
                    others.push(stage.link_local(to).into());
                }
            }
            for source in others {
                let frame = Path {
                    from: source,
                    ..path
                }
                .udp(53);
                let what = format!("source {source}");
                stage.check(&what, from, &frame, Fate::Sent(Reason::Spoofed));
            }
            for mac in [stage.mac(to), path.to_mac, BROADCAST, [0; 6]] {
                let frame = Path {
                    from_mac: mac,
                    ..path
                }
                .udp(53);
                let what = format!("source MAC {mac:02x?} by {family}");
                stage.check(&what, from, &frame, Fate::Sent(Reason::Spoofed));
            }
            // A bridge would give it to all, in the name of one whom their rules may allow.
            for mac in [BROADCAST, [0x33, 0x33, 0, 0, 0, 1], [1, 0, 0x5e, 0, 0, 1]] {
                let frame = Path {
                    to_mac: mac,
                    ..path
                }
                .udp(53);
                let what = format!("to {to} behind {mac:02x?} by {family}");
                stage.check(&what, from, &frame, Fate::Sent(Reason::Spoofed));
            }
            stage.check("its own source", from, &path.udp(53), Fate::Arrives(to));
        }
        if stage.bridged() {
            let path = Path {
                from: stage.link_local(from).into(),
                to: stage.link_local(to).into(),
                ..stage.path(from, to, Family::V6)
            };
            let reason = if from == "ports" {
                // Its rules speak of addresses of the cluster.
                Reason::Denied
            } else {
                Reason::Open
            };
            stage.check(
                "its link-local source",
                from,
                &path.udp(53),
                Fate::Sent(reason),
            );
        }
    }
}

/// An ARP message.
struct Arp {
    operation: u8,
    sender_mac: [u8; 6],
    sender: IpAddr,
    target: IpAddr,
}

impl Arp {
    fn bytes(&self) -> Vec<u8> {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets(),
            IpAddr::V6(_) => [0; 4],
        };
        let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, self.operation];
        bytes.extend(self.sender_mac);
        bytes.extend(octets(self.sender));
        bytes.extend([0; 6]);
        bytes.extend(octets(self.target));
        bytes
    }
}

/// An honest ARP request of a pod.
pub fn arp_request(stage: &Stage, pod: &str) -> Vec<u8> {
    let path = stage.path(
        pod,
        if pod == "goal" { "stranger" } else { "goal" },
        Family::V4,
    );
    let arp = Arp {
        operation: 1,
        sender_mac: path.from_mac,
        sender: path.from,
        target: path.to,
    };
    path.frame(ARP, &arp.bytes())
}

fn arp(stage: &Stage) {
    for (from, to) in BOTH {
        let path = stage.path(from, to, Family::V4);
        let wide = Path {
            to_mac: BROADCAST,
            ..path
        };
        let router: IpAddr = Ipv4Addr::new(10, 244, 1, 1).into();
        for operation in [1, 2] {
            for (what, sender_mac, sender) in [
                ("the router's address", path.from_mac, router),
                (
                    "another pod's address",
                    path.from_mac,
                    stage.path("all", to, Family::V4).from,
                ),
                ("the receiver's address", path.from_mac, path.to),
                ("its own address at another's MAC", stage.mac(to), path.from),
                ("a broadcast MAC", BROADCAST, path.from),
            ] {
                let arp = Arp {
                    operation,
                    sender_mac,
                    sender,
                    target: path.to,
                };
                let what = format!("ARP {operation} that claims {what}");
                for path in [path, wide] {
                    let frame = path.frame(ARP, &arp.bytes());
                    stage.check(&what, from, &frame, Fate::Sent(Reason::Spoofed));
                }
            }
        }
        for (at, what) in [(0, "hardware"), (2, "protocol"), (4, "length")] {
            let mut frame = arp_request(stage, from);
            frame[14 + at] = 7;
            let what = format!("ARP with an odd {what}");
            stage.check(&what, from, &frame, Fate::Sent(Reason::Spoofed));
        }
        let mut frame = arp_request(stage, from);
        frame.truncate(34);
        frame[6] ^= 2;
        stage.check(
            "ARP from another MAC",
            from,
            &frame,
            Fate::Sent(Reason::Spoofed),
        );
        let honest = if stage.bridged() {
            Fate::Arrives(to)
        } else {
            Fate::Sent(Reason::Neighbour)
        };
        stage.check("honest ARP", from, &arp_request(stage, from), honest);
        let probe = Arp {
            operation: 1,
            sender_mac: path.from_mac,
            sender: Ipv4Addr::UNSPECIFIED.into(),
            target: path.from,
        };
        stage.check("ARP probe", from, &wide.frame(ARP, &probe.bytes()), honest);
    }
}

/// The body of a solicitation (135) or an advertisement (136), with a hardware address in an option.
fn body(target: IpAddr, option: u8, mac: [u8; 6]) -> Vec<u8> {
    let IpAddr::V6(target) = target else {
        panic!("{target} is no IPv6 address");
    };
    let mut body = vec![0x20, 0, 0, 0];
    body.extend(target.octets());
    body.extend([option, 1]);
    body.extend(mac);
    body
}

fn neighbours(stage: &Stage) {
    for (from, to) in BOTH {
        let path = stage.path(from, to, Family::V6);
        let (mac, other) = (path.from_mac, stage.mac("all"));
        let router: IpAddr = "fd00:10:244:1::1".parse().expect("an address");
        let local = Path {
            from: stage.link_local(from).into(),
            ..path
        };
        let claimed = Path {
            from: stage.path("all", to, Family::V6).from,
            ..path
        };
        let nobody = Path {
            from: Ipv6Addr::UNSPECIFIED.into(),
            ..path
        };
        let spoofed = Fate::Sent(Reason::Spoofed);
        for (what, frame) in [
            (
                "advertisement of the router",
                path.icmp(136, 0, &body(router, 2, mac), 255),
            ),
            (
                "advertisement of another pod",
                path.icmp(136, 0, &body(claimed.from, 2, mac), 255),
            ),
            (
                "advertisement of another MAC",
                path.icmp(136, 0, &body(path.from, 2, other), 255),
            ),
            (
                "advertisement from another pod",
                claimed.icmp(136, 0, &body(path.from, 2, mac), 255),
            ),
            (
                "solicitation from another MAC",
                path.icmp(135, 0, &body(path.to, 1, other), 255),
            ),
            (
                "solicitation from another pod",
                claimed.icmp(135, 0, &body(path.to, 1, mac), 255),
            ),
            ("router solicitation from another MAC", {
                let mut body = vec![0, 0, 0, 0, 1, 1];
                body.extend(other);
                path.icmp(133, 0, &body, 255)
            }),
            ("solicitation with an option of no length", {
                let mut body = body(path.to, 1, mac);
                body.extend([14, 0, 0, 0, 0, 0, 0, 0]);
                path.icmp(135, 0, &body, 255)
            }),
            ("solicitation with too many options", {
                let mut body = body(path.to, 1, mac);
                body.extend([14, 1, 0, 0, 0, 0, 0, 0].repeat(9));
                path.icmp(135, 0, &body, 255)
            }),
            ("listener report from another pod", {
                let from = stage.link_local("all").into();
                Path { from, ..path }.icmp(131, 0, &[0; 20], 1)
            }),
        ] {
            stage.check(what, from, &frame, spoofed);
        }
        for (what, frame) in [
            (
                "honest solicitation",
                path.icmp(135, 0, &body(path.to, 1, mac), 255),
            ),
            (
                "honest advertisement",
                path.icmp(136, 0, &body(path.from, 2, mac), 255),
            ),
            ("search for a duplicate", {
                let mut body = body(path.from, 14, [1, 2, 3, 4, 5, 6]);
                body[0] = 0;
                nobody.icmp(135, 0, &body, 255)
            }),
            ("honest listener report", local.icmp(131, 0, &[0; 20], 1)),
            (
                "honest listener report of version 2",
                nobody.icmp(143, 0, &[0; 20], 1),
            ),
        ] {
            let fate = Fate::Sent(Reason::Neighbour);
            stage.check(what, from, &frame, fate);
        }
        // What a router passes on is a packet like any other.
        for (what, frame) in [
            (
                "solicitation with hop limit 64",
                path.icmp(135, 0, &body(path.to, 1, mac), 64),
            ),
            (
                "listener report with hop limit 2",
                path.icmp(131, 0, &[[0; 12], [7; 12]].concat(), 2),
            ),
        ] {
            let fate = if from == "ports" {
                Fate::Sent(Reason::Denied)
            } else {
                Fate::Arrives(to)
            };
            stage.check(what, from, &frame, fate);
        }
    }
    // And may have passed on: it comes with a hop limit of 1 if it was sent with the right one.
    let path = stage.path("stranger", "ports", Family::V6);
    let local = Path {
        from: stage.link_local("stranger").into(),
        ..path
    };
    for kind in [130, 131, 132, 143] {
        let what = format!("ICMPv6 {kind} with hop limit 1");
        let frame = path.icmp(kind, 0, &[0; 20], 1);
        stage.inject(
            &what,
            "ports",
            &frame,
            Fate::Received("ports", Reason::Denied),
        );
        let what = format!("{what} of this link");
        let frame = local.icmp(kind, 0, &[0; 20], 1);
        stage.inject(
            &what,
            "ports",
            &frame,
            Fate::Received("ports", Reason::Neighbour),
        );
        if !stage.bridged() {
            let frame = path.icmp(kind, 0, &[[0; 12], [8; 12]].concat(), 2);
            let what = format!("ICMPv6 {kind} that had hop limit 2");
            let denied = Fate::Received("ports", Reason::Denied);
            stage.check(&what, "stranger", &frame, denied);
        }
    }
}
