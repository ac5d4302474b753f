//! What several nodes send each other, frame by frame, and what they leave behind.

use std::{fs, path::Path};

use netpol_tests::{
    agent::{Fleet, Hook},
    lab::{Backend, Capture, Captured, FrameSocket, LABS_DIR, Lab, NETNS_DIR, NODE_NAME, Shape},
    manifests::World,
    table::{Destination, Family, Outcome, Party, Port},
};

use crate::nodes::{BRIDGE_NF, TWO_NODES, web};

/// The addresses and the UDP destination port of an IP packet in an Ethernet frame.
struct Outline {
    from: String,
    to: String,
    udp: Option<u16>,
}

fn outline(captured: &Captured) -> Option<Outline> {
    let packet = captured.frame.get(14..)?;
    let (from, to, protocol, payload) = match captured.frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = usize::from(packet.first()? & 15) * 4;
            let address =
                |at: usize| -> Option<[u8; 4]> { packet.get(at..at + 4)?.try_into().ok() };
            let (from, to) = (address(12)?, address(16)?);
            let v4 = |octets| std::net::Ipv4Addr::from(octets).to_string();
            (v4(from), v4(to), *packet.get(9)?, packet.get(header..)?)
        }
        [0x86, 0xdd] => {
            let address =
                |at: usize| -> Option<[u8; 16]> { packet.get(at..at + 16)?.try_into().ok() };
            let (from, to) = (address(8)?, address(24)?);
            let v6 = |octets| std::net::Ipv6Addr::from(octets).to_string();
            (v6(from), v6(to), *packet.get(6)?, packet.get(40..)?)
        }
        _ => return None,
    };
    let port = payload.get(2..4).and_then(|port| port.try_into().ok());
    let udp = port.map(u16::from_be_bytes).filter(|_| protocol == 17);
    Some(Outline { from, to, udp })
}

fn passed(capture: &Capture, from: &str, to: &str, udp: Option<u16>) -> anyhow::Result<Vec<usize>> {
    let mut sizes = Vec::new();
    for captured in capture.take()?.iter().filter(|captured| captured.outgoing) {
        let outline = outline(captured);
        if outline.is_some_and(|o| o.from == from && o.to == to && (udp.is_none() || o.udp == udp))
        {
            sizes.push(captured.frame.len());
        }
    }
    Ok(sizes)
}

/// Pods keep their addresses on the way to another node, in VXLAN or not; out of the cluster they leave as their node.
#[test]
fn packets_travel_as_flannel_sends_them() -> anyhow::Result<()> {
    for backend in Backend::ALL {
        let lab = Lab::with_nodes(BRIDGE_NF, backend, World::parse(TWO_NODES))?;
        let friend = Party::pod("shop", "friend");
        let outside = Destination::new(Party::host("outside"), Port::Tcp(80));
        let (node, n2) = (lab.node_named(NODE_NAME)?, lab.node_named("n2")?);
        for (nth, family) in Family::ALL.into_iter().enumerate() {
            let moment = format!("{backend} by {family}");
            let pod = lab.address(&friend, family)?.to_string();
            let goal = lab.address(&Party::pod("shop", "web"), family)?.to_string();
            let host = lab.address(&outside.party, family)?.to_string();
            let own = n2.addresses()[nth].to_string();
            let other = node.addresses()[nth].to_string();

            let uplink = Capture::start(n2.station(), "uplink0")?;
            let overlay = match (backend, family) {
                (Backend::Vxlan, Family::V4) => Some("flannel.1"),
                (Backend::Vxlan, Family::V6) => Some("flannel-v6.1"),
                (Backend::HostGw, _) => None,
            };
            let overlay = overlay.map(|device| Capture::start(n2.station(), device));
            let overlay = overlay.transpose()?;
            lab.try_once(&friend, &web(Port::Tcp(80)), family)?;
            match overlay {
                Some(overlay) => {
                    assert!(!passed(&overlay, &pod, &goal, None)?.is_empty(), "{moment}");
                    let outer = passed(&uplink, &own, &other, Some(8472))?;
                    assert!(!outer.is_empty(), "{moment}");
                }
                None => assert!(!passed(&uplink, &pod, &goal, None)?.is_empty(), "{moment}"),
            }

            uplink.take()?;
            lab.try_once(&friend, &outside, family)?;
            let seen = uplink.take()?;
            let count = |from: &str| {
                let outlines = seen.iter().filter_map(outline);
                outlines.filter(|o| o.from == from && o.to == host).count()
            };
            assert_ne!(count(&own), 0, "{moment}");
            assert_eq!(count(&pod), 0, "{moment}");
        }
    }
    Ok(())
}

/// Nobody can tell whose request it was that arrived; that one did must show all the same.
#[test]
fn a_lost_answer_to_a_masked_pod_is_half() -> anyhow::Result<()> {
    let lab = Lab::with_nodes(BRIDGE_NF, Backend::HostGw, World::parse(TWO_NODES))?;
    let friend = Party::pod("shop", "friend");
    for port in [Port::Tcp(80), Port::Udp(53)] {
        let outside = Destination::new(Party::host("outside"), port);
        let outcome = lab.try_once(&friend, &outside, Family::V4)?;
        assert_eq!(outcome, Outcome::Open, "{port}");
    }
    for address in lab.node_named("n2")?.addresses() {
        lab.outside()
            .configure(move |netlink| async move { netlink.blackhole(address.into()).await })?;
    }
    for port in [Port::Tcp(80), Port::Udp(53)] {
        let outside = Destination::new(Party::host("outside"), port);
        for family in Family::ALL {
            let outcome = lab.try_once(&friend, &outside, family)?;
            assert_eq!(outcome, Outcome::Half, "{port} by {family}");
        }
        let near = lab.try_once(&Party::pod("shop", "near"), &outside, Family::V4)?;
        assert_eq!(near, Outcome::Open, "{port}");
    }
    Ok(())
}

#[test]
fn a_node_sends_frames_and_runs_programs() -> anyhow::Result<()> {
    let lab = Lab::with_nodes(BRIDGE_NF, Backend::Vxlan, World::parse(TWO_NODES))?;
    let sender = FrameSocket::open(&lab, &Party::machine("n2"), "uplink0")?;
    let uplink = Capture::start(lab.node(), "uplink0")?;
    let cni0 = Capture::start(lab.node(), "cni0")?;
    // To everybody, from an address that nobody has, of a type that nobody knows.
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
    frame.extend([7; 50]);
    sender.send(&frame)?;
    // What is answered has passed the same cable after it.
    lab.try_once(
        &Party::pod("shop", "friend"),
        &web(Port::Tcp(80)),
        Family::V4,
    )?;
    let same = |captured: &Captured| !captured.outgoing && captured.frame == frame;
    assert_eq!(uplink.count(same)?, 1);
    assert_eq!(cni0.count(same)?, 0);

    for (node, subnet) in [(NODE_NAME, "10.244.1.0/24"), ("n2", "10.244.2.0/24")] {
        let station = lab.node_named(node)?.station();
        let rules = station.run_program("nft", &["list", "table", "ip", "flannel-ipv4"], "")?;
        assert!(rules.contains(subnet), "{node}: {rules}");
    }
    let refused = lab.node().run_program("nft", &["-f", "-"], "nonsense");
    assert!(refused.is_err_and(|error| error.to_string().contains("nonsense")));
    Ok(())
}

#[test]
fn several_nodes_leave_nothing_behind() -> anyhow::Result<()> {
    let lab = Lab::with_nodes(Shape::Routed, Backend::Vxlan, World::parse(TWO_NODES))?;
    let mut fleet = Fleet::start(&lab, Hook::Auto)?;
    fleet.wait()?;
    let id = lab.run_dir().id().to_owned();
    let directory = lab.run_dir().path().to_owned();
    let bpf = lab.run_dir().node("n2").bpf;
    assert_ne!(fs::read_dir(&bpf)?.count(), 0, "its pins are its own");
    fleet.stop()?;
    Fleet::cleanup(&lab)?;
    assert_eq!(fs::read_dir(&bpf)?.count(), 0);
    drop(lab);
    assert!(!directory.exists());
    assert!(Path::new(LABS_DIR).exists());
    for entry in fs::read_dir(NETNS_DIR)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        assert!(!name.contains(&id), "{name}");
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    assert!(!mounts.contains(&format!("{LABS_DIR}/{id}")), "{mounts}");
    Ok(())
}
