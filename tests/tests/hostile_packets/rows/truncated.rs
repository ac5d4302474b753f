//! Headers that are cut off at every byte.

use netpol_common::Reason;
use netpol_tests::table::Family;

use super::unreadable;
use crate::{
    stage::{Fate, Stage},
    wire::{
        AUTHENTICATION, DESTINATION, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, Path, ROUTING, SCTP, TCP,
        UDP, chain, fresh, sctp, tcp, udp,
    },
};

/// A transport protocol, its header with the port that `ports` may use, and how much of it must be there.
fn transports(family: Family) -> [(&'static str, u8, Vec<u8>); 4] {
    let (number, echo) = match family {
        Family::V4 => (ICMP, 8),
        Family::V6 => (ICMPV6, 128),
    };
    [
        ("UDP", UDP, udp(fresh(), 53, &[])),
        ("TCP", TCP, tcp(fresh(), 80, crate::wire::SYN, &[])),
        ("SCTP", SCTP, sctp(fresh(), 80, &[])),
        ("ICMP", number, vec![echo, 0, 0, 0, 0, 1, 0, 1]),
    ]
}

pub fn play(stage: &Stage) {
    for family in Family::ALL {
        for (name, protocol, header) in transports(family) {
            let whole = stage
                .path("ports", "goal", family)
                .ip(protocol, &header)
                .len();
            for length in 14..whole {
                let what = format!("{name} by {family}, cut off after {length} bytes");
                unreadable(stage, &what, family, Reason::Malformed, |path| {
                    path.ip(protocol, &header)[..length].to_vec()
                });
            }
            // The IP header tells the truth about how little there is.
            for length in 0..header.len() {
                let what = format!("{name} by {family}, {length} bytes of it");
                unreadable(stage, &what, family, Reason::Malformed, |path| {
                    path.ip(protocol, &header[..length])
                });
            }
        }
        for (protocol, header) in [
            (UDP, udp(fresh(), 53, &[])),
            (TCP, tcp(fresh(), 80, crate::wire::SYN, &[])),
        ] {
            let what = format!("protocol {protocol} by {family}, all of its header");
            let frame = stage.path("ports", "goal", family).ip(protocol, &header);
            stage.check(&what, "ports", &frame, Fate::Arrives("goal"));
        }
    }
    extensions(stage);
    arp(stage);
}

fn extensions(stage: &Stage) {
    let kinds = [HOP_BY_HOP, DESTINATION, ROUTING, FRAGMENT, AUTHENTICATION];
    let port = fresh();
    let make = |path: &Path, length: usize| {
        let (first, bytes) = chain(&kinds, UDP, &udp(port, 53, &[]));
        path.v6(first, 64, &bytes[..length])
    };
    let (_, bytes) = chain(&kinds, UDP, &udp(port, 53, &[]));
    for length in 0..bytes.len() {
        let what = format!("extension headers, {length} bytes of them");
        unreadable(stage, &what, Family::V6, Reason::Malformed, |path| {
            make(path, length)
        });
    }
    let frame = make(&stage.path("ports", "goal", Family::V6), bytes.len());
    let what = "extension headers, all of them";
    stage.check(what, "ports", &frame, Fate::Arrives("goal"));
}

fn arp(stage: &Stage) {
    let whole = super::identity::arp_request(stage, "ports");
    // What is cut off behind the addresses of the sender claims nothing that is not the sender's.
    for length in 14..34 {
        let what = format!("ARP, cut off after {length} bytes");
        let dropped = Fate::Sent(Reason::Malformed);
        stage.check(&what, "ports", &whole[..length], dropped);
        let frame = super::identity::arp_request(stage, "goal");
        let ignored = Fate::Sent(Reason::Untracked);
        stage.check(&what, "goal", &frame[..length], ignored);
        let dropped = Fate::Received("ports", Reason::Malformed);
        stage.inject(&what, "ports", &frame[..length], dropped);
    }
}
