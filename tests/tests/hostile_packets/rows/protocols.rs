//! Transport: TCP with every combination of flags, ports that are 0, and every protocol number.

use netpol_common::Reason;
use netpol_tests::table::Family;

use crate::{
    stage::{Fate, Stage},
    wire::{
        ACK, AUTHENTICATION, DESTINATION, FRAGMENT, HIP, HOP_BY_HOP, ICMP, ICMPV6, MOBILITY,
        ROUTING, SCTP, SHIM6, SYN, TCP, UDP, fresh, tag, tcp, udp,
    },
};

pub fn play(stage: &Stage) {
    for family in Family::ALL {
        flags(stage, family);
        port_zero(stage, family);
        numbers(stage, family);
    }
}

/// As the first packet of all.
fn flags(stage: &Stage, family: Family) {
    for flags in 0..=255 {
        let what = format!("TCP flags {flags:#04x} by {family}");
        let segment = |port| tcp(fresh(), port, flags, &tag());
        let reason = if flags & (SYN | ACK) == SYN {
            Reason::Denied
        } else {
            Reason::NoFlow
        };
        for (from, to, port) in [
            ("ports", "goal", 81),
            ("ports", "stranger", 80),
            ("mute", "goal", 80),
        ] {
            let frame = stage.path(from, to, family).ip(TCP, &segment(port));
            stage.check(&what, from, &frame, Fate::Sent(reason));
        }
        for (from, port) in [("goal", 81), ("stranger", 80)] {
            let frame = stage.path(from, "ports", family).ip(TCP, &segment(port));
            let dropped = Fate::Received("ports", reason);
            stage.check(&what, from, &frame, dropped);
        }
        for (from, to) in [("ports", "goal"), ("goal", "ports"), ("stranger", "mute")] {
            let frame = stage.path(from, to, family).ip(TCP, &segment(80));
            stage.check(&what, from, &frame, Fate::Arrives(to));
        }
    }
}

fn port_zero(stage: &Stage, family: Family) {
    for (protocol, reason) in [(UDP, Reason::Denied), (TCP, Reason::Denied)] {
        let header = |source, destination| match protocol {
            UDP => udp(source, destination, &tag()),
            _ => tcp(source, destination, SYN, &tag()),
        };
        let what = format!("port 0 of protocol {protocol} by {family}");
        let send = |from, to, header: &[u8], fate| {
            let frame = stage.path(from, to, family).ip(protocol, header);
            stage.check(&what, from, &frame, fate);
        };
        for source in [0, fresh()] {
            send("ports", "goal", &header(source, 0), Fate::Sent(reason));
            let dropped = Fate::Received("ports", reason);
            send("goal", "ports", &header(source, 0), dropped);
            send("all", "goal", &header(source, 0), Fate::Arrives("goal"));
        }
        let port = if protocol == UDP { 53 } else { 80 };
        send("ports", "goal", &header(0, port), Fate::Arrives("goal"));
    }
}

/// Everything that IP can carry, IGMP, DCCP, UDP-Lite, ESP and AH among it: rules with ports say nothing about it.
fn numbers(stage: &Stage, family: Family) {
    let read_further: &[u8] = match family {
        Family::V4 => &[],
        // These are not what the packet carries.
        Family::V6 => &[
            HOP_BY_HOP,
            ROUTING,
            FRAGMENT,
            AUTHENTICATION,
            DESTINATION,
            MOBILITY,
            HIP,
            SHIM6,
        ],
    };
    let body = |number| match number {
        // To the very port that is allowed by TCP and UDP.
        TCP => tcp(fresh(), 81, SYN, &tag()),
        UDP => udp(fresh(), 54, &tag()),
        // An echo, which nobody takes for an answer.
        ICMP if family == Family::V4 => [vec![8, 0, 0, 0, 0, 1, 0, 1], tag().into()].concat(),
        ICMPV6 => [vec![128, 0, 0, 0, 0, 1, 0, 1], tag().into()].concat(),
        SCTP => crate::wire::sctp(fresh(), 80, &tag()),
        _ => udp(fresh(), 53, &[[0; 24].as_slice(), &tag()].concat()),
    };
    for number in (0..=255).filter(|number| !read_further.contains(number)) {
        let what = format!("protocol {number} by {family}");
        let send = |from, to, fate| {
            let frame = stage.path(from, to, family).ip(number, &body(number));
            stage.check(&what, from, &frame, fate);
        };
        send("ports", "goal", Fate::Sent(Reason::Denied));
        send("all", "stranger", Fate::Sent(Reason::Denied));
        send("mute", "goal", Fate::Sent(Reason::Denied));
        send("goal", "ports", Fate::Received("ports", Reason::Denied));
        send("all", "goal", Fate::Arrives("goal"));
        send("stranger", "goal", Fate::Arrives("goal"));
    }
}
