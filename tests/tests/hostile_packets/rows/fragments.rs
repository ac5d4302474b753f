//! Fragments of both families: in order, reordered, overlapping, tiny, with the first one missing.

use netpol_common::Reason;
use netpol_tests::table::Family;

use super::unreadable;
use crate::{
    stage::{Fate, Stage},
    wire::{
        DESTINATION, FRAGMENT, MORE, Path, SYN, TCP, UDP, V4, fragment_header, fresh, tag, tcp, udp,
    },
};

/// A datagram that is sent in pieces.
struct Datagram {
    path: Path,
    id: u16,
    protocol: u8,
}

impl Datagram {
    fn new(path: Path, protocol: u8) -> Self {
        Self {
            path,
            id: fresh(),
            protocol,
        }
    }

    /// The piece that begins at `offset`.
    fn piece(&self, offset: u16, more: bool, bytes: &[u8]) -> Vec<u8> {
        if self.path.from.is_ipv4() {
            let header = V4 {
                id: self.id,
                fragment: (offset / 8) | if more { MORE } else { 0 },
                ..V4::default()
            };
            return self.path.v4(&header, self.protocol, bytes);
        }
        let id = u32::from(self.id);
        let mut payload = fragment_header(self.protocol, offset, more, id);
        payload.extend(bytes);
        self.path.v6(FRAGMENT, 64, &payload)
    }

    /// The first 24 bytes of a UDP datagram of 56.
    fn first(&self, port: u16) -> Vec<u8> {
        let mut bytes = udp(fresh(), port, &[0; 48]);
        bytes.truncate(16);
        bytes.extend(tag());
        self.piece(0, true, &bytes)
    }

    /// 16 bytes from `offset` on.
    fn later(&self, offset: u16, more: bool) -> Vec<u8> {
        self.piece(offset, more, &[[7; 8], tag()].concat())
    }
}

pub fn play(stage: &Stage) {
    for family in Family::ALL {
        pieces(stage, family);
        overlaps(stage, family);
        tiny(stage, family);
    }
}

/// Where a datagram is judged: where a pod sends it, or where a pod receives it.
#[derive(Clone, Copy)]
enum Side {
    Sends,
    Receives,
}

impl Side {
    fn datagram(self, stage: &Stage, family: Family, protocol: u8) -> Datagram {
        let path = match self {
            Self::Sends => stage.path("ports", "goal", family),
            Self::Receives => stage.path("goal", "ports", family),
        };
        Datagram::new(path, protocol)
    }

    fn passes(self, stage: &Stage, what: &str, frame: &[u8]) {
        match self {
            Self::Sends => stage.check(what, "ports", frame, Fate::Arrives("goal")),
            Self::Receives => stage.inject(what, "ports", frame, Fate::Arrives("ports")),
        }
    }

    fn drops(self, stage: &Stage, what: &str, frame: &[u8], reason: Reason) {
        match self {
            Self::Sends => stage.check(what, "ports", frame, Fate::Sent(reason)),
            Self::Receives => {
                let dropped = Fate::Received("ports", reason);
                stage.inject(what, "ports", frame, dropped);
            }
        }
    }
}

fn pieces(stage: &Stage, family: Family) {
    for side in [Side::Sends, Side::Receives] {
        let named = |what: &str| format!("{family}: {what}");
        let d = side.datagram(stage, family, UDP);
        side.passes(stage, &named("first, in order"), &d.first(53));
        side.passes(stage, &named("second, in order"), &d.later(24, true));
        side.passes(stage, &named("third, in order"), &d.later(40, false));

        let d = side.datagram(stage, family, UDP);
        let early = named("third, before the first");
        side.drops(stage, &early, &d.later(40, false), Reason::Fragment);
        side.passes(stage, &named("first, after the third"), &d.first(53));
        side.passes(stage, &named("second, after the first"), &d.later(24, true));
        side.passes(stage, &named("third, again"), &d.later(40, false));

        let d = side.datagram(stage, family, UDP);
        let denied = named("first, to a forbidden port");
        side.drops(stage, &denied, &d.first(54), Reason::Denied);
        let rest = named("second, of a forbidden one");
        side.drops(stage, &rest, &d.later(24, false), Reason::Fragment);

        // The later pieces of another datagram, whatever they say that they are.
        let d = side.datagram(stage, family, UDP);
        side.passes(stage, &named("first, of one"), &d.first(53));
        let other = Datagram {
            id: fresh(),
            path: d.path,
            protocol: UDP,
        };
        let missing = named("first missing");
        side.drops(stage, &missing, &other.later(24, false), Reason::Fragment);
    }
    // Who allows every port needs none.
    let missing = format!("{family}: first missing");
    let d = Datagram::new(stage.path("all", "goal", family), UDP);
    stage.check(&missing, "all", &d.later(24, false), Fate::Arrives("goal"));
    let d = Datagram::new(stage.path("all", "stranger", family), UDP);
    let dropped = Fate::Sent(Reason::Fragment);
    stage.check(&missing, "all", &d.later(24, false), dropped);
    let d = Datagram::new(stage.path("stranger", "goal", family), UDP);
    stage.check(
        &missing,
        "stranger",
        &d.later(24, false),
        Fate::Arrives("goal"),
    );
}

fn overlaps(stage: &Stage, family: Family) {
    for side in [Side::Sends, Side::Receives] {
        let named = |what: &str| format!("{family}: {what}");
        let d = side.datagram(stage, family, TCP);
        let mut segment = tcp(fresh(), 80, SYN, &[0; 4]);
        segment.extend(tag());
        side.passes(stage, &named("first of TCP"), &d.piece(0, true, &segment));
        for offset in [8, 16] {
            let what = named("over the TCP header");
            side.drops(stage, &what, &d.later(offset, false), Reason::Fragment);
        }
        // The receiver discards a datagram with such pieces (RFC 5722, and Linux for IPv4 too); no header is in doubt.
        side.passes(stage, &named("over data"), &d.later(24, false));
        let second = named("another first one, to a forbidden port");
        let mut segment = tcp(fresh(), 81, SYN, &[0; 4]);
        segment.extend(tag());
        let frame = d.piece(0, true, &segment);
        side.drops(stage, &second, &frame, Reason::Denied);
    }
    if family == Family::V6 {
        // An option in front of the transport header is in the fragmentable part as well.
        let d = Side::Sends.datagram(stage, family, DESTINATION);
        let mut bytes = vec![UDP, 0, 1, 4, 0, 0, 0, 0];
        bytes.extend(udp(fresh(), 53, &tag()));
        let first = d.piece(0, true, &bytes);
        Side::Sends.passes(stage, "first with an option", &first);
        let over = d.later(8, false);
        Side::Sends.drops(stage, "over the UDP header", &over, Reason::Fragment);
        Side::Sends.passes(stage, "behind the UDP header", &d.later(24, false));
    }
}

fn tiny(stage: &Stage, family: Family) {
    for length in (0..20).step_by(4) {
        let what = format!("first fragment with {length} bytes of TCP by {family}");
        let segment = tcp(fresh(), 80, SYN, &[]);
        unreadable(stage, &what, family, Reason::Malformed, |path| {
            Datagram::new(*path, TCP).piece(0, true, &segment[..length])
        });
    }
}
