//! Which endpoints there should be, and which there are. Pure: the enforcer writes the difference.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netpol_common::{Address, Endpoint, Isolation};

use crate::{
    dataplane::FORMER,
    node::{DeviceKind, Identity, Interface, Report, Wanted},
    policy::object::ObjectKey,
};

/// By a ruleset that has no rows, and that no policies can have: identifiers are made of content, and never this small
/// (`policy::fingerprint`).
const CLOSED: Isolation = Isolation::by(1);

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
    /// Found pinned at the start, and not confirmed by the discovery since.
    pub inherited: BTreeSet<u32>,
    /// Why the endpoint of an interface could not be written.
    pub errors: BTreeMap<u32, String>,
    /// The slot after the one that was given away last.
    next_slot: u32,
}

impl Endpoints {
    /// Says what there should be, given the pods and what the node looks like.
    pub fn aim(&mut self, locals: &[Local], report: &Report, orders: &Orders) {
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
        self.targets = targets;
        self.disputed = report.disputed.clone();
        self.disputed
            .retain(|interface, _| !self.targets.contains_key(interface));
    }

    /// Whether there should be an endpoint.
    pub fn wants(&self, interface: u32) -> bool {
        self.targets.contains_key(&interface) || self.disputed.contains_key(&interface)
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
        let closed = Endpoint {
            ingress: CLOSED,
            egress: CLOSED,
            ..Endpoint::default()
        };
        let targets = self.targets.iter().map(|(i, target)| (*i, target.endpoint));
        let disputed = self.disputed.keys().map(|i| (*i, closed));
        for (interface, target) in targets.chain(disputed) {
            let slot = match self.actual.get(&interface) {
                Some(actual) => actual.slot,
                None => free.next().unwrap_or(FORMER),
            };
            let endpoint = Endpoint { slot, ..target };
            if self.actual.get(&interface) != Some(&endpoint) {
                write.push((interface, endpoint));
            }
        }
        write
    }

    /// Notes that an endpoint has been written. Whether it is a new one.
    pub fn written(&mut self, interface: u32, endpoint: Endpoint) -> bool {
        let new = self.actual.insert(interface, endpoint).is_none();
        if new {
            self.next_slot = endpoint.slot + 1;
        }
        new
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
