//! IPv6 headers: extension headers in every order, and what cannot be followed.

use netpol_common::Reason;
use netpol_tests::table::Family;

use super::{judged, unreadable};
use crate::{
    stage::{Fate, Stage},
    wire::{
        AUTHENTICATION, DESTINATION, FRAGMENT, HIP, HOP_BY_HOP, IPV6, MOBILITY, Path, ROUTING,
        SHIM6, UDP, chain, fragment_header, fresh, tag, udp,
    },
};

const KINDS: [u8; 8] = [
    HOP_BY_HOP,
    DESTINATION,
    ROUTING,
    FRAGMENT,
    AUTHENTICATION,
    MOBILITY,
    HIP,
    SHIM6,
];

fn datagram(path: &Path, kinds: &[u8], port: u16) -> Vec<u8> {
    let (first, bytes) = chain(kinds, UDP, &udp(fresh(), port, &tag()));
    path.v6(first, 64, &bytes)
}

/// Every order of up to `length` different headers.
fn orders(kinds: &[u8], length: usize) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = vec![Vec::new()];
    let mut last = 0;
    for _ in 0..length {
        let longest = all[last..].to_vec();
        last = all.len();
        for order in longest {
            for kind in kinds.iter().filter(|kind| !order.contains(kind)) {
                all.push([order.clone(), vec![*kind]].concat());
            }
        }
    }
    all
}

pub fn play(stage: &Stage) {
    let few = orders(&KINDS, 3);
    let five = orders(&KINDS[..5], 5);
    for order in few
        .iter()
        .chain(five.iter().filter(|order| order.len() > 3))
    {
        let what = format!("extension headers {order:?}");
        let path = stage.path("ports", "goal", Family::V6);
        let frame = datagram(&path, order, 53);
        stage.check(&what, "ports", &frame, Fate::Arrives("goal"));
        let frame = datagram(&path, order, 54);
        stage.check(&what, "ports", &frame, Fate::Sent(Reason::Denied));
        let frame = datagram(&stage.path("goal", "ports", Family::V6), order, 54);
        let denied = Fate::Received("ports", Reason::Denied);
        stage.inject(&what, "ports", &frame, denied);
    }
    for kind in KINDS.into_iter().filter(|kind| *kind != FRAGMENT) {
        for count in [1, 8] {
            let what = format!("{count} headers {kind}");
            judged(stage, &what, Family::V6, |path, port| {
                datagram(path, &vec![kind; count], port)
            });
        }
        for count in [9, 10, 40] {
            let what = format!("{count} headers {kind}");
            unreadable(stage, &what, Family::V6, Reason::Extensions, |path| {
                datagram(path, &vec![kind; count], 53)
            });
        }
    }
    routes(stage);
    lengths(stage);
    stage.check(
        "no next header",
        "ports",
        &stage.path("ports", "goal", Family::V6).v6(59, 64, &tag()),
        Fate::Sent(Reason::Denied),
    );
    stage.check(
        "no next header",
        "all",
        &stage.path("all", "goal", Family::V6).v6(59, 64, &tag()),
        Fate::Arrives("goal"),
    );
}

/// The destination in the header is not where the packet ends, or there are two datagrams in one.
fn routes(stage: &Stage) {
    let extensions = |what: &str, bytes: &dyn Fn() -> (u8, Vec<u8>)| {
        unreadable(stage, what, Family::V6, Reason::Extensions, |path| {
            let (first, bytes) = bytes();
            path.v6(first, 64, &bytes)
        });
    };
    for kind in [0, 2, 3, 4, 253] {
        extensions(
            &format!("routing header of type {kind} with a segment left"),
            &|| {
                let mut bytes = vec![UDP, 2, kind, 1, 0, 0, 0, 0];
                bytes.extend([0xfd, 0, 0, 0x10, 2, 0x44, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3]);
                bytes.extend(udp(fresh(), 53, &tag()));
                (ROUTING, bytes)
            },
        );
    }
    extensions("a fragment in a fragment", &|| {
        let mut bytes = fragment_header(FRAGMENT, 0, true, 1);
        bytes.extend(fragment_header(UDP, 0, true, 2));
        bytes.extend(udp(fresh(), 53, &tag()));
        (FRAGMENT, bytes)
    });
}

fn lengths(stage: &Stage) {
    let malformed = |what: &str, make: &dyn Fn(&Path) -> Vec<u8>| {
        unreadable(stage, what, Family::V6, Reason::Malformed, make);
    };
    for kind in [HOP_BY_HOP, DESTINATION, ROUTING, AUTHENTICATION, MOBILITY] {
        malformed(
            &format!("header {kind} that says that it is long"),
            &|path| {
                let mut bytes = vec![UDP, 200, 0, 0, 0, 0, 0, 0];
                bytes.extend(udp(fresh(), 53, &tag()));
                path.v6(kind, 64, &bytes)
            },
        );
    }
    for version in (0..16).filter(|version| *version != 6) {
        malformed(&format!("version {version} in an IPv6 frame"), &|path| {
            let mut packet = path.packet6(UDP, 64, &udp(fresh(), 53, &tag()));
            packet[0] = version << 4;
            path.frame(IPV6, &packet)
        });
    }
    for payload in [1_u16, 7, 17, 1400, 65535] {
        malformed(&format!("payload length {payload}"), &|path| {
            let mut packet = path.packet6(UDP, 64, &udp(fresh(), 53, &tag()));
            packet[4..6].copy_from_slice(&payload.to_be_bytes());
            path.frame(IPV6, &packet)
        });
    }
    // The header of an upper layer in the second fragment, behind an option that the first one ends with.
    malformed("first fragment without a transport header", &|path| {
        let mut bytes = fragment_header(DESTINATION, 0, true, 9);
        bytes.extend([UDP, 0, 1, 4, 0, 0, 0, 0]);
        path.v6(FRAGMENT, 64, &bytes)
    });
    malformed("first fragment that ends in an extension header", &|path| {
        let mut bytes = fragment_header(DESTINATION, 0, true, 9);
        bytes.extend([UDP, 3, 1, 4, 0, 0, 0, 0]);
        path.v6(FRAGMENT, 64, &bytes)
    });
    // A jumbogram (RFC 2675): the packet ends where the frame ends, and its ports are read all the same.
    let path = stage.path("ports", "goal", Family::V6);
    for (port, fate) in [(54, Reason::Denied), (53, Reason::Rule)] {
        let mut bytes = vec![UDP, 0, 0xc2, 4, 0, 1, 0, 0];
        bytes.extend(udp(fresh(), port, &tag()));
        let mut packet = path.packet6(HOP_BY_HOP, 64, &bytes);
        packet[4..6].copy_from_slice(&[0, 0]);
        let frame = path.frame(IPV6, &packet);
        let what = format!("jumbogram to port {port}");
        stage.check(&what, "ports", &frame, Fate::Sent(fate));
    }
}
