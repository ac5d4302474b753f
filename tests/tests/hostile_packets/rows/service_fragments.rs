//! Datagrams in fragments to Services. Connection tracking puts them together, translates them, and the node cuts them up anew
//! where they leave: a fragment that it makes may say nothing of the device by which its datagram came in.

use std::net::IpAddr;

use netpol_common::Reason;

use crate::{
    stage::{Fate, Stage},
    wire::{DESTINATION, FRAGMENT, MORE, Path, UDP, V4, fragment_header, fresh, tag, udp},
};

/// Headers of the first fragment alone. With more of them than the others have, the node cannot use the frames again in which
/// the fragments came, but makes new ones (`ip6_fragment`, `ip_do_fragment`: the slow path).
const EXTRA: [usize; 3] = [0, 8, 40];

/// Where Services of UDP port 53 are found: by the address of the Service, and by a port of the node.
struct Place {
    addresses: [&'static str; 2],
    port: u16,
    /// Whether the node puts its own address for the sender's.
    masquerades: bool,
}

const fn service(addresses: [&'static str; 2]) -> Place {
    Place {
        addresses,
        port: 53,
        masquerades: false,
    }
}

const fn node_port(port: u16) -> Place {
    Place {
        addresses: ["172.18.0.2", "fd00:172:18::2"],
        port,
        masquerades: true,
    }
}

/// Of `goal`, which receives everything.
const LIVE: [Place; 2] = [service(["10.96.0.9", "fd00:10:96::9"]), node_port(30009)];
/// Of `ports`, which receives from `goal` only.
const FENCED: [Place; 2] = [service(["10.96.0.12", "fd00:10:96::12"]), node_port(30012)];
/// Of a pod of another node.
const FAR: Place = service(["10.96.0.13", "fd00:10:96::13"]);

pub fn play(stage: &Stage) -> anyhow::Result<()> {
    for extra in EXTRA {
        for place in LIVE {
            let denied = Fate::Sent(Reason::Denied);
            row(
                stage,
                "the Service of goal",
                "mute",
                (&place, extra),
                denied,
            )?;
            for from in ["ports", "all", "stranger"] {
                let arrives = Fate::Arrives("goal");
                row(stage, "the Service of goal", from, (&place, extra), arrives)?;
            }
        }
        for place in FENCED {
            let denied = Fate::Received("ports", Reason::Denied);
            let what = "the Service of ports";
            row(stage, what, "stranger", (&place, extra), denied)?;
            // Nobody tells by a node's address who has sent it.
            let fate = if place.masquerades {
                denied
            } else {
                Fate::Arrives("ports")
            };
            row(stage, what, "goal", (&place, extra), fate)?;
        }
        let denied = Fate::Sent(Reason::Denied);
        for from in ["ports", "all", "mute"] {
            row(
                stage,
                "the Service of a pod elsewhere",
                from,
                (&FAR, extra),
                denied,
            )?;
        }
        row(
            stage,
            "the Service of a pod elsewhere",
            "stranger",
            (&FAR, extra),
            Fate::Leaves,
        )?;
    }
    Ok(())
}

/// A datagram in two fragments, the first one with so many bytes of headers more.
fn row(
    stage: &Stage,
    what: &str,
    from: &str,
    (place, extra): (&Place, usize),
    fate: Fate,
) -> anyhow::Result<()> {
    for address in place.addresses {
        let to: IpAddr = address.parse()?;
        let path = stage.path_to(from, to);
        let what = format!("{what} at {to} port {}, {extra} bytes more", place.port);
        stage.observe(&what, fate, from, || {
            let [first, second] = fragments(&path, place.port, extra);
            stage.send(from, &first)?;
            stage.send(from, &second)?;
            Ok(second)
        });
    }
    Ok(())
}

/// Both end with the same tag.
fn fragments(path: &Path, port: u16, extra: usize) -> [Vec<u8>; 2] {
    const FIRST: usize = 1200;
    let mut body = vec![0; 2000];
    let tag = tag();
    for end in [FIRST - 8, 2000] {
        body[end - 8..end].copy_from_slice(&tag);
    }
    let datagram = udp(fresh(), port, &body);
    let (first, second) = datagram.split_at(FIRST);
    let id = fresh();
    if path.from.is_ipv4() {
        let header = |options, fragment| V4 {
            options,
            fragment,
            id,
            ..V4::default()
        };
        // That many options that do nothing.
        let begin = header(vec![1; extra], MORE);
        let end = header(Vec::new(), FIRST as u16 / 8);
        return [path.v4(&begin, UDP, first), path.v4(&end, UDP, second)];
    }
    let mut begin = Vec::new();
    if extra > 0 {
        // One option of padding.
        begin.extend([FRAGMENT, (extra / 8 - 1) as u8, 1, (extra - 4) as u8]);
        begin.resize(extra, 0);
    }
    begin.extend(fragment_header(UDP, 0, true, id.into()));
    begin.extend(first);
    let mut end = fragment_header(UDP, FIRST as u16, false, id.into());
    end.extend(second);
    let next = if extra > 0 { DESTINATION } else { FRAGMENT };
    [path.v6(next, 64, &begin), path.v6(FRAGMENT, 64, &end)]
}
