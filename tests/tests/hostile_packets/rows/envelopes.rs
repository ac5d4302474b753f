//! Frames that are neither IP nor ARP, and tags in front of those that are.

use netpol_common::Reason;
use netpol_tests::table::Family;

use crate::{
    stage::{Fate, Stage},
    wire::{IPV4, Path, UDP, V4, fresh, tag, udp},
};

/// What it is, and how it is made.
type Row = (&'static str, fn(&Path) -> Vec<u8>);

/// An allowed IPv4 packet.
fn inner(path: &Path) -> Vec<u8> {
    path.packet4(&V4::default(), UDP, &udp(fresh(), 53, &tag()))
}

fn vlan(tci: u16, next: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [tci.to_be_bytes(), next.to_be_bytes()].concat();
    bytes.extend(payload);
    bytes
}

pub fn play(stage: &Stage) {
    // A node takes a tag of VLAN 0 off and goes on as if there had been none: what the frame really is, nobody has looked at.
    let tagged: [Row; 5] = [
        ("VLAN 5", |path| {
            path.frame(0x8100, &vlan(5, IPV4, &inner(path)))
        }),
        ("VLAN 0", |path| {
            path.frame(0x8100, &vlan(0, IPV4, &inner(path)))
        }),
        ("802.1ad", |path| {
            path.frame(0x88a8, &vlan(0, IPV4, &inner(path)))
        }),
        ("QinQ", |path| {
            path.frame(0x88a8, &vlan(5, 0x8100, &vlan(6, IPV4, &inner(path))))
        }),
        ("priority tags in each other", |path| {
            path.frame(0x8100, &vlan(0, 0x8100, &vlan(0, IPV4, &inner(path))))
        }),
    ];
    for (what, make) in tagged {
        for (from, to) in [("ports", "goal"), ("goal", "stranger")] {
            let frame = make(&stage.path(from, to, Family::V4));
            stage.check(what, from, &frame, Fate::Sent(Reason::EtherType));
        }
        elsewhere(stage, what, make);
    }
    let others: [Row; 11] = [
        ("MPLS", |path| {
            path.frame(0x8847, &[vec![0, 1, 0x11, 64], inner(path)].concat())
        }),
        ("MPLS multicast", |path| {
            path.frame(0x8848, &[vec![0, 1, 0x11, 64], inner(path)].concat())
        }),
        ("PPPoE discovery", |path| {
            path.frame(
                0x8863,
                &[vec![0x11, 9, 0, 0, 0, 20], vec![0; 12], tag().into()].concat(),
            )
        }),
        ("PPPoE session", |path| {
            let head = vec![0x11, 0, 0, 1, 0, 38, 0, 0x21];
            path.frame(0x8864, &[head, inner(path)].concat())
        }),
        ("LLC", |path| {
            path.frame(
                41,
                &[vec![0xaa, 0xaa, 3, 0, 0, 0, 8, 0], inner(path)].concat(),
            )
        }),
        ("LLC of a spanning tree", |path| {
            path.frame(
                38,
                &[vec![0x42, 0x42, 3], vec![0; 27], tag().into()].concat(),
            )
        }),
        ("RARP", |path| {
            path.frame(0x8035, &[vec![0; 28], tag().into()].concat())
        }),
        ("EAPOL", |path| {
            path.frame(0x888e, &[vec![0; 28], tag().into()].concat())
        }),
        ("LLDP", |path| {
            path.frame(0x88cc, &[vec![0; 28], tag().into()].concat())
        }),
        ("bridged Ethernet", |path| {
            path.frame(0x6558, &[path.frame(IPV4, &[]), inner(path)].concat())
        }),
        ("a local experiment", |path| {
            path.frame(0x88b5, &[vec![0; 28], tag().into()].concat())
        }),
    ];
    for (what, make) in others {
        let frame = make(&stage.path("ports", "goal", Family::V4));
        stage.check(what, "ports", &frame, Fate::Sent(Reason::EtherType));
        let frame = make(&stage.path("mute", "goal", Family::V4));
        stage.check(what, "mute", &frame, Fate::Sent(Reason::EtherType));
        let frame = make(&stage.path("goal", "stranger", Family::V4));
        let open = if stage.bridged() {
            Fate::Received("stranger", Reason::Untracked)
        } else {
            // A router has no use for it.
            Fate::Sent(Reason::Untracked)
        };
        stage.check(what, "goal", &frame, open);
        elsewhere(stage, what, make);
    }
}

/// From somebody whom nothing guards.
fn elsewhere(stage: &Stage, what: &str, make: fn(&Path) -> Vec<u8>) {
    let frame = make(&stage.path("goal", "ports", Family::V4));
    let dropped = Fate::Received("ports", Reason::EtherType);
    stage.inject(what, "ports", &frame, dropped);
    let frame = make(&stage.path("goal", "stranger", Family::V4));
    let passed = Fate::Received("stranger", Reason::Untracked);
    stage.inject(what, "stranger", &frame, passed);
}
