//! Which endpoints there should be, and which there are. Pure: the enforcer writes the difference.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use netpol_common::{Address, Endpoint, Isolation};

use super::newcomers::{self, CLOSED, Common, Newcomers, is_newcomer};
use crate::{
    dataplane::FORMER,
    node::{DeviceKind, Identity, Interface, Missing, Report, Wanted},
    policy::object::ObjectKey,
};

/// A local pod as the index knows it.
pub(super) struct Local {
    pub wanted: Wanted,
    pub ingress: Isolation,
    pub egress: Isolation,
}

/// What whoever started the agent wants of all endpoints.
#[derive(Clone, Debug, Default)]
pub(super) struct Orders {
    /// Pods whose packets are logged.
    pub trace: BTreeSet<ObjectKey>,
    /// Pods speak only for themselves.
    pub guard: bool,
}

impl Orders {
    fn flags(&self, pod: &ObjectKey) -> u32 {
        let trace = if self.trace.contains(pod) {
            Endpoint::TRACE
        } else {
            0
        };
        let guard = if self.guard { Endpoint::GUARD } else { 0 };
        trace | guard
    }
}

/// What a pod answers to besides its addresses, as an endpoint has it.
struct Own {
    mac: [u8; 8],
    link_local: Address,
}

impl From<&Identity> for Own {
    fn from(identity: &Identity) -> Self {
        let mut mac = [0; 8];
        mac[..6].copy_from_slice(&identity.mac.unwrap_or_default());
        Self {
            mac,
            link_local: identity
                .link_local
                .map_or(Address::NONE, |six| IpAddr::from(six).into()),
        }
    }
}

/// An endpoint that there should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Target {
    pub pod: ObjectKey,
    pub uid: String,
    pub name: String,
    /// Its slot is assigned when it is written.
    pub endpoint: Endpoint,
}

/// The endpoints of this node, by host interface.
#[derive(Default)]
pub(super) struct Endpoints {
    /// As the kernel has them.
    pub actual: BTreeMap<u32, Endpoint>,
    /// As they should be.
    pub targets: BTreeMap<u32, Target>,
    /// Interfaces of nobody (yet) that have the address of a pod whose interface has gone while its object is still there. Nobody
    /// else can tell them from that pod: they are closed until it is known whose they are.
    pub disputed: BTreeMap<u32, ObjectKey>,
    /// Interfaces whose pod has gone and that have not, with what is left to it.
    orphans: BTreeMap<u32, Endpoint>,
    /// Found pinned at the start, and not confirmed by the discovery since.
    pub inherited: BTreeSet<u32>,
    /// Interfaces that came while a pod was awaited, and are not known to be anybody's yet.
    newcomers: Newcomers,
    /// Why the endpoint of an interface could not be written.
    pub errors: BTreeMap<u32, String>,
    /// The slot after the one that was given away last.
    next_slot: u32,
}

impl Endpoints {
    /// Takes over what is pinned: endpoints, and programs on devices.
    pub fn inherit(
        &mut self,
        pinned: impl IntoIterator<Item = (u32, Endpoint)>,
        attached: &BTreeSet<u32>,
    ) {
        self.actual = pinned.into_iter().collect();
        self.inherited = self.actual.keys().copied().collect();
        self.newcomers.inherit(&self.actual, attached);
    }

    /// Says what there should be, given the pods and what the node looks like. `answered` says that the discovery has looked for
    /// these pods.
    pub fn aim(&mut self, locals: &[Local], report: &Report, orders: &Orders, answered: bool) {
        let mut targets = BTreeMap::new();
        for local in locals {
            let Some((interface, own)) = self.interface(local, report) else {
                continue;
            };
            if matches!(report.pods.get(&local.wanted.key), Some((_, Ok(place))) if place.interface == interface)
            {
                // From now on the discovery keeps it.
                self.inherited.remove(&interface.index);
            }
            let mut endpoint = Endpoint {
                flags: orders.flags(&local.wanted.key),
                ingress: local.ingress,
                egress: local.egress,
                link_local: own.link_local,
                mac: own.mac,
                ..Endpoint::default()
            };
            for &address in &local.wanted.addresses {
                match address {
                    IpAddr::V4(_) => endpoint.ipv4 = address.into(),
                    IpAddr::V6(_) => endpoint.ipv6 = address.into(),
                }
            }
            let target = Target {
                pod: local.wanted.key.clone(),
                uid: local.wanted.uid.clone(),
                name: interface.name,
                endpoint,
            };
            targets.insert(interface.index, target);
        }
        let has_one: BTreeSet<_> = targets.values().map(|target| &target.pod).collect();
        let awaited: Vec<_> = locals
            .iter()
            .filter(|local| !has_one.contains(&local.wanted.key) && is_awaited(local, report))
            .map(|local| (local.ingress, local.egress))
            .collect();
        let claimed = |index| targets.contains_key(&index);
        self.newcomers
            .look(&report.devices, claimed, Common::of(&awaited));
        if answered {
            self.find_orphans(&targets, report);
        }
        self.targets = targets;
        self.disputed = report.disputed.clone();
        self.disputed
            .retain(|interface, _| !self.targets.contains_key(interface));
    }

    /// Interfaces that were an isolated pod's and are nobody's now: its object has gone, and its processes may run on (it was
    /// deleted by force, or its node was away). They end closed where the pod was isolated.
    fn find_orphans(&mut self, targets: &BTreeMap<u32, Target>, report: &Report) {
        let is_there = |index: &u32| {
            let device = report.devices.get(index);
            device.is_some_and(|device| device.kind == DeviceKind::Pod)
        };
        self.orphans
            .retain(|index, _| is_there(index) && !targets.contains_key(index));
        for (index, endpoint) in &self.actual {
            let closed = [endpoint.ingress, endpoint.egress].contains(&CLOSED);
            let was_a_pod = self.targets.contains_key(index) || closed;
            let isolated =
                endpoint.ingress != Isolation::OPEN || endpoint.egress != Isolation::OPEN;
            if was_a_pod
                && isolated
                && !is_newcomer(endpoint)
                && is_there(index)
                && !targets.contains_key(index)
            {
                let close = |isolation| match isolation {
                    Isolation::OPEN => Isolation::OPEN,
                    _ => CLOSED,
                };
                let orphan = Endpoint {
                    ingress: close(endpoint.ingress),
                    egress: close(endpoint.egress),
                    ..*endpoint
                };
                self.orphans.insert(*index, orphan);
            }
        }
    }

    /// When an interface that is held is let go.
    pub fn deadline(&self) -> Option<Instant> {
        self.newcomers.deadline()
    }

    /// Whether an interface is nobody's yet, and held.
    pub fn holds(&self, interface: u32) -> bool {
        !self.targets.contains_key(&interface) && self.newcomers.hold(interface)
    }

    /// Whether an interface shall have an endpoint.
    pub fn wants(&self, interface: u32) -> bool {
        self.targets.contains_key(&interface)
            || self.orphans.contains_key(&interface)
            || self.disputed.contains_key(&interface)
            || self.newcomers.hold(interface)
    }

    /// The interface of a pod, and what the pod's side of it answers to.
    fn interface(&self, local: &Local, report: &Report) -> Option<(Interface, Own)> {
        let answer = report
            .pods
            .get(&local.wanted.key)
            .filter(|(w, _)| *w == local.wanted);
        if let Some((_, Ok(place))) = answer {
            return Some((place.interface.clone(), Own::from(&place.identity)));
        }
        let here = |index: u32, endpoint: &Endpoint| {
            let device = report.devices.get(&index)?;
            let name = device.name.clone();
            let own = Own {
                mac: endpoint.mac,
                link_local: endpoint.link_local,
            };
            (device.kind == DeviceKind::Pod).then_some((Interface { index, name }, own))
        };
        if answer.is_none() {
            // The discovery has not looked yet: what the pod has, it keeps so long.
            let same = |t: &Target| t.pod == local.wanted.key && t.uid == local.wanted.uid;
            let (&index, target) = self.targets.iter().find(|(_, target)| same(target))?;
            return here(index, &target.endpoint);
        }
        // Not found, but an agent before this one did find it, and the interface is still there.
        let owns = |endpoint: &Endpoint| {
            local.wanted.addresses.iter().any(|&a| {
                let address = Address::from(a);
                endpoint.ipv4 == address || endpoint.ipv6 == address
            })
        };
        let inherited = self
            .inherited
            .iter()
            .filter_map(|index| self.actual.get_key_value(index));
        inherited
            .filter(|(_, endpoint)| owns(endpoint))
            .find_map(|(&index, endpoint)| here(index, endpoint))
    }

    /// The interfaces whose endpoint has to be written, with the endpoint.
    pub fn to_write(&self) -> Vec<(u32, Endpoint)> {
        let used: BTreeSet<u32> = self.actual.values().map(|e| e.slot).collect();
        // The one that has been free for longest: what its last pod has sent may still be under way.
        let mut free = (self.next_slot..FORMER)
            .chain(0..self.next_slot)
            .filter(|slot| !used.contains(slot));
        let mut write = Vec::new();
        // Whoever comes later has the say, and a pod that is known before all others.
        let mut all: BTreeMap<u32, Endpoint> = self.newcomers.endpoints().collect();
        all.extend(self.orphans.iter().map(|(&i, orphan)| (i, *orphan)));
        all.extend(self.disputed.keys().map(|&i| (i, newcomers::closed())));
        all.extend(self.targets.iter().map(|(&i, target)| (i, target.endpoint)));
        for (interface, wanted) in all {
            let slot = match self.actual.get(&interface) {
                Some(actual) => actual.slot,
                None => free.next().unwrap_or(FORMER),
            };
            let endpoint = Endpoint { slot, ..wanted };
            if self.actual.get(&interface) != Some(&endpoint) {
                write.push((interface, endpoint));
            }
        }
        write
    }

    /// Notes that an endpoint has been written. Whether the interface was nobody's before.
    pub fn written(&mut self, interface: u32, endpoint: Endpoint) -> bool {
        let before = self.actual.insert(interface, endpoint);
        if before.is_none() {
            self.next_slot = endpoint.slot + 1;
        }
        before.is_none_or(|before| is_newcomer(&before))
    }

    /// Whether there is a place for the statistics of this slot.
    pub fn fits(slot: u32) -> bool {
        slot < FORMER
    }

    /// An interface whose endpoint has to go.
    pub fn to_remove(&self) -> Option<u32> {
        let unwanted = |i: &u32| !self.wants(*i) && !self.errors.contains_key(i);
        self.actual.keys().copied().find(unwanted)
    }

    /// The endpoint of a pod, as far as it is in the kernel.
    pub fn of(&self, pod: &ObjectKey) -> Option<(u32, &Target)> {
        self.targets
            .iter()
            .find(|(_, target)| target.pod == *pod)
            .map(|(&i, target)| (i, target))
    }
}

/// Whether a pod may be behind an interface that nobody can tell yet.
fn is_awaited(local: &Local, report: &Report) -> bool {
    // What ends gets no interface any more.
    if local.wanted.leaving {
        return false;
    }
    match report.pods.get(&local.wanted.key) {
        Some((wanted, found)) if *wanted == local.wanted => {
            matches!(
                found,
                Err(Missing::NoAddress | Missing::NotFoundYet | Missing::Lost)
            )
        }
        // The discovery has not looked for it yet.
        _ => true,
    }
}
