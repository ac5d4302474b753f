//! The rows. Each table sends what no honest pod would send from isolated and from open pods, and its honest twin.

pub mod envelopes;
pub mod extensions;
pub mod fragments;
pub mod icmp;
pub mod identity;
pub mod options;
pub mod path_mtu;
pub mod places;
pub mod protocols;
pub mod service_fragments;
pub mod services;
pub mod sockets;
pub mod truncated;
pub mod tunnels;

use netpol_common::Reason;
use netpol_tests::table::Family;

use crate::{
    stage::{Fate, Stage},
    wire::Path,
};

/// A packet that can be read: its port is judged, whatever else is in it. `make` puts a datagram to a port into it.
fn judged(stage: &Stage, what: &str, family: Family, make: impl Fn(&Path, u16) -> Vec<u8>) {
    let path = stage.path("ports", "goal", family);
    stage.check(what, "ports", &make(&path, 53), Fate::Arrives("goal"));
    let denied = Fate::Sent(Reason::Denied);
    stage.check(what, "ports", &make(&path, 54), denied);
    let path = stage.path("goal", "ports", family);
    stage.inject(what, "ports", &make(&path, 53), Fate::Arrives("ports"));
    let denied = Fate::Received("ports", Reason::Denied);
    stage.inject(what, "ports", &make(&path, 54), denied);
}

/// A packet that cannot be read to its end. No pod may send it: what it is, and whose address it claims, cannot be told. From
/// elsewhere it reaches open pods only.
fn unreadable(
    stage: &Stage,
    what: &str,
    family: Family,
    reason: Reason,
    make: impl Fn(&Path) -> Vec<u8>,
) {
    for (from, to) in [("ports", "goal"), ("goal", "stranger")] {
        let frame = make(&stage.path(from, to, family));
        stage.check(what, from, &frame, Fate::Sent(reason));
    }
    let frame = make(&stage.path("goal", "ports", family));
    let dropped = Fate::Received("ports", reason);
    stage.inject(what, "ports", &frame, dropped);
    let frame = make(&stage.path("goal", "stranger", family));
    let passed = Fate::Received("stranger", Reason::Untracked);
    stage.inject(what, "stranger", &frame, passed);
}
