//! Packets in packets: what a node would take out of its envelope would come past every rule.

use std::net::IpAddr;

use netpol_common::Reason;
use netpol_tests::table::Family;

use crate::{
    stage::{Fate, Stage},
    wire::{DESTINATION, FRAGMENT, MORE, Path, UDP, V4, chain, fragment_header, fresh, tag, udp},
};

const IPIP: u8 = 4;
const IPV6: u8 = 41;
const GRE: u8 = 47;
/// What Flannel's devices listen at.
const VXLAN: u16 = 8472;

/// A packet that an isolated pod would welcome, and its sender must not send.
fn inner(stage: &Stage, number: u8) -> Vec<u8> {
    let forged = |family| Path {
        from: stage.path("goal", "ports", family).from,
        ..stage.path("stranger", "ports", family)
    };
    let datagram = udp(fresh(), 53, &tag());
    match number {
        IPIP => forged(Family::V4).packet4(&V4::default(), UDP, &datagram),
        IPV6 => forged(Family::V6).packet6(UDP, 64, &datagram),
        _ => {
            let mut bytes = vec![0, 0, 0x08, 0];
            bytes.extend(forged(Family::V4).packet4(&V4::default(), UDP, &datagram));
            bytes
        }
    }
}

/// To the node itself, and from pod to pod.
pub fn play(stage: &Stage) {
    for number in [IPIP, IPV6, GRE] {
        for address in [
            "10.244.1.1",
            "172.18.0.2",
            "fd00:10:244:1::1",
            "fd00:172:18::2",
        ] {
            let to: IpAddr = address.parse().expect("an address");
            for from in ["ports", "mute", "stranger"] {
                let frame = stage.path_to(from, to).ip(number, &inner(stage, number));
                let what = format!("protocol {number} to the node at {address}");
                stage.check(&what, from, &frame, Fate::Sent(Reason::Tunnel));
            }
        }
        for family in Family::ALL {
            let what = format!("protocol {number} by {family}");
            let send = |from, to, fate| {
                let frame = stage
                    .path(from, to, family)
                    .ip(number, &inner(stage, number));
                stage.check(&what, from, &frame, fate);
            };
            send("ports", "goal", Fate::Sent(Reason::Denied));
            send("all", "stranger", Fate::Sent(Reason::Denied));
            send("stranger", "ports", Fate::Received("ports", Reason::Denied));
            send("all", "goal", Fate::Arrives("goal"));
            send("stranger", "goal", Fate::Arrives("goal"));
        }
    }
}

/// A frame in VXLAN with VNI 1, as the device of a node of this family takes it out and routes it on.
fn in_vxlan(stage: &Stage, family: Family) -> anyhow::Result<Vec<u8>> {
    let (device, number, ether_type) = match family {
        Family::V4 => ("flannel.1", IPIP, 0x0800),
        Family::V6 => ("flannel-v6.1", IPV6, 0x86dd),
    };
    let mac = stage.lab.node().configure(move |netlink| async move {
        let index = netlink.index(device).await?;
        netlink.mac(index).await
    })?;
    let path = Path {
        to_mac: mac,
        ..stage.path("stranger", "ports", family)
    };
    let frame = path.frame(ether_type, &inner(stage, number));
    Ok([vec![8, 0, 0, 0, 0, 0, 1, 0], frame].concat())
}

/// On a node with VXLAN devices: nobody but nodes speaks to them, on this node or on another.
pub fn vxlan(stage: &Stage) -> anyhow::Result<()> {
    for address in [
        "172.18.0.2",
        "172.18.0.3",
        "10.244.1.1",
        "fd00:172:18::2",
        "fd00:172:18::3",
    ] {
        let to: IpAddr = address.parse()?;
        let datagram = udp(fresh(), VXLAN, &in_vxlan(stage, Family::of(to))?);
        for from in ["ports", "mute", "stranger"] {
            let path = stage.path_to(from, to);
            let what = format!("VXLAN to {address}");
            let frame = path.ip(UDP, &datagram);
            stage.check(&what, from, &frame, Fate::Sent(Reason::Tunnel));
            // Behind more than is followed, and in pieces.
            let (frame, reason, first) = match to {
                IpAddr::V4(_) => {
                    let header = V4 {
                        options: [0xd2, 2].repeat(20),
                        ..V4::default()
                    };
                    let first = V4 {
                        fragment: MORE,
                        id: fresh(),
                        ..V4::default()
                    };
                    let frame = path.v4(&header, UDP, &datagram);
                    let first = path.v4(&first, UDP, &datagram[..24]);
                    (frame, Reason::Malformed, first)
                }
                IpAddr::V6(_) => {
                    let (next, bytes) = chain(&[DESTINATION; 9], UDP, &datagram);
                    let mut first = fragment_header(UDP, 0, true, fresh().into());
                    first.extend(&datagram[..24]);
                    let frame = path.v6(next, 64, &bytes);
                    (frame, Reason::Extensions, path.v6(FRAGMENT, 64, &first))
                }
            };
            let what = format!("VXLAN behind options to {address}");
            stage.check(&what, from, &frame, Fate::Sent(reason));
            let what = format!("a piece of VXLAN to {address}");
            stage.check(&what, from, &first, Fate::Sent(Reason::Tunnel));
        }
        // The port beside it is a port like any other.
        let frame = stage.path_to("stranger", to).udp(VXLAN + 1);
        let what = format!("UDP to {address}");
        stage.check(&what, "stranger", &frame, Fate::Sent(Reason::Open));
    }
    // Behind a Service of somebody who may make Services: of the other node, and of this one, which takes it out itself.
    for (address, reason) in [
        ("10.96.0.14", Reason::Tunnel),
        ("fd00:10:96::14", Reason::Tunnel),
        ("10.96.0.15", Reason::Spoofed),
        ("fd00:10:96::15", Reason::Spoofed),
    ] {
        let to: IpAddr = address.parse()?;
        let datagram = |port| -> anyhow::Result<_> {
            Ok(udp(fresh(), port, &in_vxlan(stage, Family::of(to))?))
        };
        for from in ["mute", "stranger"] {
            let frame = stage.path_to(from, to).summed(datagram(53)?);
            let what = format!("VXLAN to the Service {address}");
            stage.check(&what, from, &frame, Fate::Sent(reason));
        }
        let frame = stage.path_to("stranger", to).summed(datagram(54)?);
        let what = format!("UDP to the Service {address}");
        stage.check(&what, "stranger", &frame, Fate::Sent(Reason::Open));
    }
    Ok(())
}
