//! Interfaces that came while a pod was awaited: what they may do until somebody says whose they are.
//!
//! The containers of a pod run before its status has an address: the kubelet writes that after it has seen them run. Kubernetes
//! asks that a pod is isolated from the first instant of its containers. Whose a new interface is cannot be known yet, but it is
//! one of the pods of this node that are awaited, so it gets what they have in common. Where they differ and one of them is
//! isolated, it gets nothing until its pod has an address: that is what the pod would lose, and not what it would gain.
//!
//! Who is an interface's pod is not guarded meanwhile: its addresses are not known.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use netpol_common::{Endpoint, Isolation, RulesetId};

use crate::node::{Device, DeviceKind};

/// Isolated by a ruleset that has no rules: no other is numbered so.
pub(super) const CLOSED: Isolation = Isolation::by(RulesetId::MAX);

/// How long an interface is held back. The kubelet reports an address within seconds; whatever is nobody's after this time
/// belongs to something else than the pod that is awaited, which may wait for an image or a volume for hours.
const HOLD: Duration = Duration::from_secs(60);

/// What the pods that are awaited have in common.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Common {
    pub ingress: Isolation,
    pub egress: Isolation,
}

impl Common {
    /// `None` when no pod is awaited.
    pub fn of(awaited: &[(Isolation, Isolation)]) -> Option<Self> {
        let (&first, rest) = awaited.split_first()?;
        let fold = |one: Isolation, other: Isolation| if one == other { one } else { CLOSED };
        let (ingress, egress) = rest.iter().fold(first, |(ingress, egress), other| {
            (fold(ingress, other.0), fold(egress, other.1))
        });
        Some(Self { ingress, egress })
    }

    fn is_open(self) -> bool {
        self == Self::default()
    }
}

/// The interfaces of pods that nobody has claimed yet.
#[derive(Default)]
pub(super) struct Newcomers {
    /// The interfaces of pods that were there at the last look; `None` before the first one.
    known: Option<BTreeSet<u32>>,
    /// Those that are held, and until when.
    waiting: BTreeMap<u32, Instant>,
    common: Common,
}

impl Newcomers {
    /// Takes over what an agent before this one has held back, and which interfaces it knew.
    pub fn inherit(&mut self, pinned: &BTreeMap<u32, Endpoint>, attached: &BTreeSet<u32>) {
        let held = pinned.iter().filter(|(_, endpoint)| is_newcomer(endpoint));
        let until = Instant::now() + HOLD;
        self.waiting = held.map(|(&index, _)| (index, until)).collect();
        // An agent before this one has looked at the node: what carries no programs of it is new.
        self.known = (!attached.is_empty()).then(|| attached.clone());
    }

    /// Looks at the interfaces of now. One that was there before a pod was awaited is nobody's newcomer: it may have nothing to
    /// do with the cluster.
    pub fn look(
        &mut self,
        devices: &BTreeMap<u32, Device>,
        claimed: impl Fn(u32) -> bool,
        common: Option<Common>,
    ) {
        let pods = devices
            .iter()
            .filter(|(_, device)| device.kind == DeviceKind::Pod);
        let now: BTreeSet<u32> = pods.map(|(&index, _)| index).collect();
        self.common = common.unwrap_or_default();
        if common.is_none() {
            self.waiting.clear();
        } else if let Some(known) = &self.known {
            let until = Instant::now() + HOLD;
            let new = now.difference(known);
            self.waiting.extend(new.map(|&index| (index, until)));
        }
        let over = Instant::now();
        self.waiting
            .retain(|index, until| now.contains(index) && !claimed(*index) && *until > over);
        self.known = Some(now);
    }

    /// When the next one is let go.
    pub fn deadline(&self) -> Option<Instant> {
        let held = (!self.common.is_open()).then_some(&self.waiting);
        held.into_iter().flat_map(BTreeMap::values).min().copied()
    }

    /// Their endpoints, where there is something to keep from them. The slots are not theirs.
    pub fn endpoints(&self) -> impl Iterator<Item = (u32, Endpoint)> + '_ {
        let held = (!self.common.is_open()).then_some(&self.waiting);
        let endpoint = Endpoint {
            ingress: self.common.ingress,
            egress: self.common.egress,
            ..Endpoint::default()
        };
        held.into_iter()
            .flatten()
            .map(move |(&index, _)| (index, endpoint))
    }

    /// Whether an interface is held back.
    pub fn hold(&self, index: u32) -> bool {
        !self.common.is_open() && self.waiting.contains_key(&index)
    }
}

/// The endpoint of an interface that may not do anything yet. The slot is not its own.
pub(super) fn closed() -> Endpoint {
    Endpoint {
        ingress: CLOSED,
        egress: CLOSED,
        ..Endpoint::default()
    }
}

/// Whether an endpoint is that of a newcomer: a pod has an address.
pub(super) fn is_newcomer(endpoint: &Endpoint) -> bool {
    let nobody = Endpoint::default();
    (endpoint.ipv4, endpoint.ipv6) == (nobody.ipv4, nobody.ipv6)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Isolation = Isolation::OPEN;
    const ONE: Isolation = Isolation::by(1);
    const TWO: Isolation = Isolation::by(2);

    #[test]
    fn newcomers_get_what_all_who_are_awaited_have() {
        assert_eq!(Common::of(&[]), None);
        let common = |awaited: &[(Isolation, Isolation)]| {
            let common = Common::of(awaited).expect("somebody is awaited");
            (common.ingress, common.egress)
        };
        assert_eq!(common(&[(OPEN, ONE)]), (OPEN, ONE));
        assert_eq!(common(&[(OPEN, ONE), (OPEN, ONE)]), (OPEN, ONE));
        assert_eq!(common(&[(ONE, OPEN), (TWO, OPEN)]), (CLOSED, OPEN));
        assert_eq!(common(&[(OPEN, ONE), (OPEN, OPEN)]), (OPEN, CLOSED));
        assert_eq!(common(&[(ONE, ONE), (TWO, ONE), (ONE, ONE)]), (CLOSED, ONE));
    }
}
