//! Where packets go: messages of routers, destinations that are nobody's on a wire, groups, and the pod's own node.

use std::net::IpAddr;

use netpol_common::Reason;
use netpol_tests::table::Family;

use super::identity::BOTH;
use crate::{
    stage::{Fate, Stage},
    wire::{BROADCAST, Path},
};

pub fn play(stage: &Stage) {
    routers(stage);
    destinations(stage);
    groups(stage);
    own_node(stage);
}

fn routers(stage: &Stage) {
    for (from, to) in BOTH {
        for hop_limit in [255, 64, 1] {
            let path = stage.path(from, to, Family::V6);
            for (kind, length) in [(134, 12), (137, 36)] {
                let frame = path.icmp(kind, 0, &vec![0; length], hop_limit);
                let what = format!("ICMPv6 {kind} with hop limit {hop_limit}");
                stage.check(&what, from, &frame, Fate::Sent(Reason::Router));
            }
        }
        let path = stage.path(from, to, Family::V4);
        let mut redirect = vec![10, 244, 1, 9];
        redirect.extend(path.back().quote(17, &[0; 8]));
        let redirect = path.icmp(5, 1, &redirect, 64);
        stage.check("ICMP redirect", from, &redirect, Fate::Sent(Reason::Router));
        let advertisement = path.icmp(9, 0, &[1, 2, 0, 30, 10, 244, 1, 9, 0, 0, 0, 0], 64);
        let router = Fate::Sent(Reason::Router);
        stage.check("ICMP router advertisement", from, &advertisement, router);
    }
    // From the router itself, and from somebody behind it who cannot be one.
    let path = stage.path("goal", "ports", Family::V6);
    for (hop_limit, reason) in [(255, Reason::Neighbour), (64, Reason::Denied)] {
        for (kind, length) in [(134, 12), (137, 36)] {
            let frame = path.icmp(kind, 0, &vec![0; length], hop_limit);
            let what = format!("ICMPv6 {kind} with hop limit {hop_limit}");
            stage.inject(&what, "ports", &frame, Fate::Received("ports", reason));
        }
    }
    let path = stage.path("goal", "ports", Family::V4);
    for (kind, body) in [(5, vec![0; 32]), (9, vec![0; 12])] {
        let what = format!("ICMP {kind} of nothing that is known");
        let denied = Fate::Received("ports", Reason::Denied);
        stage.inject(&what, "ports", &path.icmp(kind, 0, &body, 64), denied);
    }
}

fn destinations(stage: &Stage) {
    for (from, _) in BOTH {
        for address in ["127.0.0.1", "127.1.2.3", "127.255.255.255", "::1"] {
            let frame = stage
                .path_to(from, address.parse().expect("an address"))
                .udp(53);
            let what = format!("to {address}");
            stage.check(&what, from, &frame, Fate::Sent(Reason::Spoofed));
        }
    }
    // To the pod's MAC, but to the address of another one.
    for pod in ["ports", "stranger"] {
        for family in Family::ALL {
            let path = Path {
                to: stage.path("goal", "all", family).to,
                ..stage.path("goal", pod, family)
            };
            let what = format!("for another pod by {family}");
            let astray = Fate::Received(pod, Reason::Astray);
            stage.inject(&what, pod, &path.udp(53), astray);
            if stage.bridged() {
                stage.check(&what, "goal", &path.udp(53), astray);
            }
        }
    }
}

/// Hardware address of a group (RFC 1112 section 6.4, RFC 2464 section 7).
fn group_mac(group: IpAddr) -> [u8; 6] {
    match group {
        IpAddr::V4(group) if group.is_multicast() => {
            let [_, b, c, d] = group.octets();
            [1, 0, 0x5e, b & 0x7f, c, d]
        }
        IpAddr::V4(_) => BROADCAST,
        IpAddr::V6(group) => {
            let o = group.octets();
            [0x33, 0x33, o[12], o[13], o[14], o[15]]
        }
    }
}

fn groups(stage: &Stage) {
    for group in [
        "255.255.255.255",
        "10.244.1.255",
        "224.0.0.1",
        "224.0.0.251",
        "ff02::1",
        "ff02::fb",
    ] {
        let to: IpAddr = group.parse().expect("an address");
        let path = |from| Path {
            to_mac: group_mac(to),
            ..stage.path_to(from, to)
        };
        let what = format!("to {group}");
        for from in ["ports", "all", "mute"] {
            let denied = Fate::Sent(Reason::Denied);
            stage.check(&what, from, &path(from).udp(53), denied);
        }
        if !stage.bridged() {
            stage.check(
                &what,
                "goal",
                &path("goal").udp(53),
                Fate::Sent(Reason::Open),
            );
            continue;
        }
        stage.check(
            &what,
            "goal",
            &path("goal").udp(54),
            Fate::Arrives("stranger"),
        );
        let denied = Fate::Received("ports", Reason::Denied);
        stage.check(&what, "goal", &path("goal").udp(54), denied);
        stage.check(&what, "stranger", &path("stranger").udp(53), denied);
        stage.check(&what, "goal", &path("goal").udp(53), Fate::Arrives("ports"));
    }
}

/// A pod may speak to its own node. What the node translates to somebody else is judged where it leaves.
fn own_node(stage: &Stage) {
    for address in [
        "10.244.1.1",
        "172.18.0.2",
        "fd00:10:244:1::1",
        "fd00:172:18::2",
    ] {
        for from in ["ports", "all", "mute"] {
            let frame = stage
                .path_to(from, address.parse().expect("an address"))
                .udp(9);
            let what = format!("to the node at {address}");
            stage.check(&what, from, &frame, Fate::Sent(Reason::Deferred));
        }
    }
}
