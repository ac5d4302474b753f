//! Which endpoints there should be, and which there are. Pure: the enforcer writes the difference.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netpol_common::{Address, Endpoint, Isolation, size};

use crate::{
    node::{Interface, Report, Wanted},
    policy::object::ObjectKey,
};

/// A local pod as the index knows it.
pub(super) struct Local {
    pub wanted: Wanted,
    pub ingress: Isolation,
    pub egress: Isolation,
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
    /// Found pinned at the start, and not confirmed by the discovery since.
    pub inherited: BTreeSet<u32>,
    /// Interfaces on which this process has put both programs.
    pub attached: BTreeSet<u32>,
    /// Why the endpoint of an interface could not be written or its programs not be attached.
    pub errors: BTreeMap<u32, String>,
}

impl Endpoints {
    /// Says what there should be, given the pods and what the node looks like.
    pub fn aim(&mut self, locals: &[Local], report: &Report, trace: &BTreeSet<ObjectKey>) {
        let mut targets = BTreeMap::new();
        for local in locals {
            let Some(interface) = self.interface(local, report) else {
                continue;
            };
            if matches!(report.pods.get(&local.wanted.key), Some((_, Ok(i))) if *i == interface) {
                // From now on the discovery keeps it.
                self.inherited.remove(&interface.index);
            }
            let mut endpoint = Endpoint {
                flags: if trace.contains(&local.wanted.key) {
                    Endpoint::TRACE
                } else {
                    0
                },
                ingress: local.ingress,
                egress: local.egress,
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
    }

    /// The interface of a pod.
    fn interface(&self, local: &Local, report: &Report) -> Option<Interface> {
        let answer = report
            .pods
            .get(&local.wanted.key)
            .filter(|(w, _)| *w == local.wanted);
        if let Some((_, Ok(interface))) = answer {
            return Some(interface.clone());
        }
        let here = |index: u32| {
            report.interfaces.get(&index).map(|name| Interface {
                index,
                name: name.clone(),
            })
        };
        if answer.is_none() {
            // The discovery has not looked yet: what the pod has, it keeps so long.
            let same = |t: &Target| t.pod == local.wanted.key && t.uid == local.wanted.uid;
            let (&index, _) = self.targets.iter().find(|(_, target)| same(target))?;
            return here(index);
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
            .find_map(|(&index, _)| here(index))
    }

    /// The interfaces whose endpoint has to be written, with the endpoint.
    pub fn to_write(&self) -> Vec<(u32, Endpoint)> {
        let mut used: BTreeSet<u32> = self.actual.values().map(|e| e.slot).collect();
        let mut free = 0;
        let mut write = Vec::new();
        for (&interface, target) in &self.targets {
            let slot = match self.actual.get(&interface) {
                Some(actual) => actual.slot,
                None => {
                    while used.contains(&free) {
                        free += 1;
                    }
                    used.insert(free);
                    free
                }
            };
            let endpoint = Endpoint {
                slot,
                ..target.endpoint
            };
            if self.actual.get(&interface) != Some(&endpoint) {
                write.push((interface, endpoint));
            }
        }
        write
    }

    /// Whether there is a place for the statistics of this slot.
    pub fn fits(slot: u32) -> bool {
        slot < size::SLOTS
    }

    /// An interface whose endpoint has to go.
    pub fn to_remove(&self) -> Option<u32> {
        let unwanted = |i: &u32| !self.targets.contains_key(i) && !self.errors.contains_key(i);
        self.actual.keys().copied().find(unwanted)
    }

    /// An interface on which the programs have to be put, and its name.
    pub fn to_attach(&self) -> Option<(u32, String)> {
        self.targets
            .iter()
            .find(|(interface, _)| {
                !self.attached.contains(interface)
                    && self.actual.contains_key(interface)
                    && !self.errors.contains_key(interface)
            })
            .map(|(&interface, target)| (interface, target.name.clone()))
    }

    /// The endpoint of a pod, as far as it is in the kernel.
    pub fn of(&self, pod: &ObjectKey) -> Option<(u32, &Target)> {
        self.targets
            .iter()
            .find(|(_, target)| target.pod == *pod)
            .map(|(&i, target)| (i, target))
    }
}
