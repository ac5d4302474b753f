//! ICMP of every type, with quotes of what never was.

use netpol_common::Reason;
use netpol_tests::table::Family;

use crate::{
    stage::{Fate, Stage},
    wire::{Path, UDP, fresh, tag, udp},
};

pub fn play(stage: &Stage) {
    for family in Family::ALL {
        types(stage, family);
        quotes(stage, family);
    }
}

/// The types that quote a packet.
const fn is_error(family: Family, kind: u8) -> bool {
    match family {
        Family::V4 => matches!(kind, 3 | 4 | 5 | 11 | 12),
        Family::V6 => matches!(kind, 1..=4),
    }
}

/// An error of this type that quotes a UDP datagram on its way `from` somebody.
fn error(path: &Path, kind: u8, quoted: &Path, ports: (u16, u16)) -> Vec<u8> {
    // An MTU, for those that tell one.
    let mut body = vec![0, 0, 5, 0];
    body.extend(quoted.quote(UDP, &udp(ports.0, ports.1, &tag())));
    path.icmp(kind, 0, &body, 64)
}

/// Every type, quoting a packet that was never sent to the pod that complains about it.
fn types(stage: &Stage, family: Family) {
    for kind in 0..=255 {
        let what = format!("ICMP {kind} by {family}");
        let out = stage.path("ports", "goal", family);
        let lone = match (family, kind) {
            // Rows of their own.
            (Family::V4, 5 | 9) | (Family::V6, 134 | 137) => continue,
            (Family::V4, 0) | (Family::V6, 129) => Reason::NoFlow,
            _ => Reason::Denied,
        };
        let frame = error(&out, kind, &out.back(), (fresh(), fresh()));
        stage.check(&what, "ports", &frame, Fate::Sent(lone));
        let frame = error(
            &stage.path("mute", "goal", family),
            kind,
            &stage.path("goal", "mute", family),
            (fresh(), fresh()),
        );
        stage.check(&what, "mute", &frame, Fate::Sent(lone));
        let back = stage.path("stranger", "ports", family);
        let frame = error(&back, kind, &back.back(), (fresh(), fresh()));
        let dropped = Fate::Received("ports", lone);
        stage.check(&what, "stranger", &frame, dropped);
        let all = stage.path("all", "goal", family);
        let frame = error(&all, kind, &all.back(), (fresh(), fresh()));
        stage.check(&what, "all", &frame, Fate::Arrives("goal"));
        if is_error(family, kind) {
            // About a packet that somebody else sent to somebody else.
            for (from, to) in [
                ("ports", "goal"),
                ("stranger", "ports"),
                ("stranger", "goal"),
            ] {
                let path = stage.path(from, to, family);
                let quoted = Path {
                    to: stage.path("goal", "all", family).to,
                    ..path.back()
                };
                let frame = error(&path, kind, &quoted, (fresh(), 53));
                let what = format!("{what}, about a packet to another pod");
                stage.check(&what, from, &frame, Fate::Sent(Reason::Spoofed));
            }
        }
    }
}

/// The very same errors, about a packet of a flow: that of an allowed one passes, all others do not.
fn quotes(stage: &Stage, family: Family) {
    let kinds: &[u8] = match family {
        Family::V4 => &[3, 4, 11, 12],
        Family::V6 => &[1, 2, 3, 4],
    };
    let out = stage.path("ports", "goal", family);
    for kind in kinds {
        let what = |about: &str| format!("ICMP {kind} by {family} {about}");
        let port = fresh();
        let opens = out.ip(UDP, &udp(port, 53, &tag()));
        stage.check("a flow", "ports", &opens, Fate::Arrives("goal"));
        // Of the pod that was spoken to, and of a router that nobody has asked.
        let about = error(
            &stage.path("goal", "ports", family),
            *kind,
            &out,
            (port, 53),
        );
        let related = Fate::Received("ports", Reason::Related);
        stage.check(&what("about an allowed flow"), "goal", &about, related);
        let router = Path {
            from: stage.path_to("ports", router(family)).to,
            ..out.back()
        };
        let about = error(&router, *kind, &out, (port, 53));
        stage.inject(&what("by a router"), "ports", &about, related);
        // A router may well tell; another pod may not.
        let other = stage.path("stranger", "ports", family);
        let about = error(&other, *kind, &out, (port, 53));
        let spoofed = Fate::Sent(Reason::Spoofed);
        stage.check(&what("by a stranger"), "stranger", &about, spoofed);

        let denied = Fate::Received("ports", Reason::Denied);
        for (wrong, quoted, ports) in [
            ("of another port", out, (port % 10_000 + 1000, 53)),
            ("to another port", out, (port, 54)),
            (
                "from somebody else",
                stage.path("all", "goal", family),
                (port, 53),
            ),
            ("the other way", out.back(), (53, port)),
        ] {
            let frame = error(&router, *kind, &quoted, ports);
            stage.inject(&what(wrong), "ports", &frame, denied);
        }
        // Cut off within the quoted ports, and a quote of an error.
        let mut short = error(&router, *kind, &out, (port, 53));
        short.truncate(short.len() - 14);
        let length = short.len() - 14;
        match family {
            Family::V4 => {
                let payload = short.split_off(34);
                short = router.ip(1, &payload);
            }
            Family::V6 => short[18..20].copy_from_slice(&((length - 40) as u16).to_be_bytes()),
        }
        stage.inject(&what("with a short quote"), "ports", &short, denied);
        let number = if family == Family::V4 { 1 } else { 58 };
        let mut body = vec![0; 4];
        body.extend(out.quote(number, &[[*kind, 0, 0, 0, 0, 0, 0, 0], tag()].concat()));
        let frame = router.icmp(*kind, 0, &body, 64);
        stage.inject(&what("about an error"), "ports", &frame, denied);
    }
}

/// An address that nothing is known about.
fn router(family: Family) -> std::net::IpAddr {
    match family {
        Family::V4 => [192, 0, 2, 1].into(),
        Family::V6 => [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(),
    }
}
