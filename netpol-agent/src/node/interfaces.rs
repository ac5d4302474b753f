//! Which interface of the node belongs to which pod. Pure: works on what was read.
//!
//! An interface of the agent's namespace names its peer by an index and the number of the peer's namespace. The pair is
//! unique on the machine, so that an interface found by a pod's address inside a namespace belongs to this node exactly
//! when an interface of the agent's namespace names it. The same address in a namespace of another node leads nowhere.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use netpol_common::TunnelKey;

use super::{
    Device, DeviceKind, Identity, Interface, Missing, Wanted,
    namespaces::Inside,
    rtnetlink::{Link, NamespaceId},
    tunnels,
};
use crate::policy::object::ObjectKey;

/// Where a pod's interface was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Found {
    pub wanted: Wanted,
    pub interface: Interface,
    /// The pod's end: namespace and index.
    pub inner: (NamespaceId, u32),
    /// As it was read last.
    pub identity: Identity,
}

/// Which pods were found where.
#[derive(Default)]
pub(super) struct Mapping {
    /// Pods that have an interface.
    pub found: BTreeMap<ObjectKey, Found>,
    /// Pods that had one which has gone, by name and uid.
    lost: BTreeSet<(ObjectKey, String)>,
}

impl Mapping {
    /// Whether the interface of a pod has gone.
    fn has_lost(&self, pod: &Wanted) -> bool {
        self.lost.contains(&(pod.key.clone(), pod.uid.clone()))
    }

    /// Whether a pod has ended but for its object: whoever has its address now is somebody else.
    fn has_ended(&self, pod: &Wanted) -> bool {
        pod.leaving && self.has_lost(pod)
    }
}

/// What is known of the machine.
#[derive(Default)]
pub(super) struct Knowledge {
    /// The interfaces of the agent's namespace whose peer lies in another one, by that peer.
    pub hosts: HashMap<(NamespaceId, u32), Interface>,
    /// The devices of the agent's namespace, but for the loopback one.
    pub devices: BTreeMap<u32, Device>,
    /// The envelopes that they open.
    pub tunnels: BTreeSet<TunnelKey>,
    /// What namespaces hold, as far as it was read and is still true.
    pub inside: BTreeMap<NamespaceId, Inside>,
}

impl Knowledge {
    /// Takes in all links of the agent's namespace, and forgets namespaces that none leads to.
    pub fn set_links(&mut self, links: &[Link]) {
        self.devices = links
            .iter()
            .filter(|link| !link.loopback)
            .map(|link| {
                let kind = if link.leads_elsewhere() {
                    DeviceKind::Pod
                } else if link.bare {
                    DeviceKind::Bare
                } else {
                    DeviceKind::Host
                };
                let name = link.name.clone();
                (link.index, Device { name, kind })
            })
            .collect();
        self.tunnels = tunnels::of(links);
        self.hosts = links
            .iter()
            .filter(|link| link.leads_elsewhere())
            .filter_map(|link| {
                let interface = Interface {
                    index: link.index,
                    name: link.name.clone(),
                };
                Some((link.peer?, interface))
            })
            .collect();
        let hosts = &self.hosts;
        self.inside
            .retain(|id, _| hosts.keys().any(|(namespace, _)| namespace == id));
    }

    /// Namespaces that interfaces of this node lead to and whose content is not known.
    pub fn unread(&self) -> impl Iterator<Item = NamespaceId> + '_ {
        self.hosts
            .keys()
            .map(|&(id, _)| id)
            .filter(|id| !self.inside.contains_key(id))
    }

    /// The interface of each address that lies behind an interface of this node.
    fn by_address(&self) -> HashMap<IpAddr, Vec<(NamespaceId, u32)>> {
        let mut map: HashMap<_, Vec<_>> = HashMap::new();
        for (&namespace, inside) in &self.inside {
            for &(address, index) in &inside.addresses {
                if self.hosts.contains_key(&(namespace, index)) {
                    map.entry(address).or_default().push((namespace, index));
                }
            }
        }
        map
    }

    /// Brings the mapping up to date. A pod keeps its interface as long as that is there, whatever the pod does to its own
    /// addresses: removing one must not free it from its policies.
    pub fn resolve(&self, wanted: &[Wanted], mapping: &mut Mapping) {
        let Mapping { found, lost } = mapping;
        lost.retain(|(key, uid)| wanted.iter().any(|pod| pod.key == *key && pod.uid == *uid));
        found.retain(|key, found| {
            let there = self.hosts.get(&found.inner) == Some(&found.interface);
            let wanted = wanted.iter().any(|pod| pod.is(&found.wanted));
            if wanted && !there {
                lost.insert((key.clone(), found.wanted.uid.clone()));
            }
            wanted && there
        });
        for found in found.values_mut() {
            let (namespace, index) = found.inner;
            if let Some(inside) = self.inside.get(&namespace) {
                found.identity = Identity::of(inside, index);
            }
        }
        if wanted
            .iter()
            .all(|pod| mapping.found.contains_key(&pod.key))
        {
            return;
        }
        let by_address = self.by_address();
        for pod in wanted {
            if mapping.found.contains_key(&pod.key) || mapping.has_ended(pod) {
                continue;
            }
            let mut candidates: BTreeMap<(NamespaceId, u32), usize> = BTreeMap::new();
            for inner in pod
                .addresses
                .iter()
                .filter_map(|a| by_address.get(a))
                .flatten()
            {
                *candidates.entry(*inner).or_default() += 1;
            }
            // Most of its addresses; then the newest interface: an old pod with the same address may be on its way out.
            let best = candidates
                .into_iter()
                .filter_map(|(inner, matches)| {
                    let interface = self.hosts.get(&inner)?;
                    Some(((matches, interface.index), inner, interface))
                })
                .max_by_key(|&(rank, ..)| rank);
            if let Some((_, inner, interface)) = best {
                let identity = self
                    .inside
                    .get(&inner.0)
                    .map(|inside| Identity::of(inside, inner.1));
                let found = Found {
                    wanted: pod.clone(),
                    interface: interface.clone(),
                    inner,
                    identity: identity.unwrap_or_default(),
                };
                mapping.lost.remove(&(pod.key.clone(), pod.uid.clone()));
                mapping.found.insert(pod.key.clone(), found);
            }
        }
    }

    /// Interfaces of nobody that have the address of a pod that has ended, with that pod.
    pub fn disputed(&self, wanted: &[Wanted], mapping: &Mapping) -> BTreeMap<u32, ObjectKey> {
        let ended: Vec<_> = wanted.iter().filter(|pod| mapping.has_ended(pod)).collect();
        if ended.is_empty() {
            return BTreeMap::new();
        }
        let by_address = self.by_address();
        let taken: BTreeSet<_> = mapping.found.values().map(|found| found.inner).collect();
        let mut disputed = BTreeMap::new();
        for pod in ended {
            let inner = pod
                .addresses
                .iter()
                .filter_map(|a| by_address.get(a))
                .flatten();
            for interface in inner
                .filter(|inner| !taken.contains(inner))
                .filter_map(|inner| self.hosts.get(inner))
            {
                disputed.insert(interface.index, pod.key.clone());
            }
        }
        disputed
    }

    /// Whether what a pod's interface answers to has to be read: it changed, or could not be read.
    pub fn stale(&self, found: &Found) -> bool {
        !self.inside.contains_key(&found.inner.0)
    }

    /// Why a pod has no interface.
    pub fn why_missing(&self, pod: &Wanted, mapping: &Mapping) -> Missing {
        if pod.addresses.is_empty() {
            Missing::NoAddress
        } else if mapping.has_lost(pod) {
            Missing::Lost
        } else if self.unread().next().is_some() {
            Missing::NotFoundYet
        } else {
            Missing::NotFound
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, peer: Option<(NamespaceId, u32)>) -> Link {
        Link {
            index,
            name: format!("veth{index}"),
            kind: "veth".into(),
            elsewhere: peer.is_some(),
            peer,
            ..Link::default()
        }
    }

    fn inside(text: &str, index: u32) -> Inside {
        Inside {
            addresses: vec![(address(text), index)],
            ..Inside::default()
        }
    }

    fn pod(name: &str, address: &str) -> Wanted {
        Wanted {
            key: ObjectKey::new("n", name),
            uid: String::new(),
            addresses: vec![address.parse().expect("an address")],
            leaving: false,
        }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_address_in_a_namespace_whose_peer_is_elsewhere_does_not_count() {
        let mut known = Knowledge::default();
        // Namespace 0 is a pod of this node. Namespace 1 is connected to this node by another interface (2), but its
        // interface 7 with the pod's address leads to another node.
        known.set_links(&[
            link(1, None),
            link(10, Some((0, 2))),
            link(11, Some((1, 2))),
        ]);
        known.inside.insert(1, inside("10.0.0.1", 7));
        let (wanted, mut mapped) = ([pod("a", "10.0.0.1")], Mapping::default());
        known.resolve(&wanted, &mut mapped);
        assert!(mapped.found.is_empty());
        known.inside.insert(0, inside("10.0.0.1", 2));
        known.resolve(&wanted, &mut mapped);
        assert_eq!(mapped.found[&wanted[0].key].interface.index, 10);
    }

    #[test]
    fn a_mapping_survives_the_address_but_not_the_interface() {
        let mut known = Knowledge::default();
        known.set_links(&[link(10, Some((0, 2)))]);
        known.inside.insert(0, inside("10.0.0.1", 2));
        let (wanted, mut mapped) = ([pod("a", "10.0.0.1")], Mapping::default());
        known.resolve(&wanted, &mut mapped);
        known.inside.insert(0, Inside::default());
        known.resolve(&wanted, &mut mapped);
        assert_eq!(mapped.found.len(), 1);
        known.set_links(&[]);
        known.resolve(&wanted, &mut mapped);
        assert!(mapped.found.is_empty());
        assert!(known.inside.is_empty());
    }

    /// Its address may be somebody else's by then, long before its object goes.
    #[test]
    fn a_leaving_pod_that_has_lost_its_interface_gets_no_other_and_who_has_its_address_is_told() {
        let mut known = Knowledge::default();
        known.set_links(&[link(10, Some((0, 2)))]);
        known.inside.insert(0, inside("10.0.0.1", 2));
        let mut mapped = Mapping::default();
        let stays = pod("a", "10.0.0.1");
        let leaves = Wanted {
            leaving: true,
            ..stays.clone()
        };
        known.resolve(std::slice::from_ref(&stays), &mut mapped);
        // Deletion begins: it runs on for a while, whatever it does to its address.
        known.inside.insert(0, Inside::default());
        known.resolve(std::slice::from_ref(&leaves), &mut mapped);
        assert_eq!(mapped.found[&leaves.key].interface.index, 10);
        known.set_links(&[]);
        known.resolve(std::slice::from_ref(&leaves), &mut mapped);
        known.set_links(&[link(11, Some((1, 2))), link(12, Some((2, 2)))]);
        known.inside.insert(1, inside("10.0.0.1", 2));
        known.inside.insert(2, inside("10.0.0.2", 2));
        let wanted = [leaves.clone(), pod("b", "10.0.0.2")];
        known.resolve(&wanted, &mut mapped);
        assert!(!mapped.found.contains_key(&leaves.key));
        assert_eq!(
            known.disputed(&wanted, &mapped),
            BTreeMap::from([(11, leaves.key.clone())])
        );
        // The one that now has it is known.
        let wanted = [pod("c", "10.0.0.1")];
        known.resolve(&wanted, &mut mapped);
        assert_eq!(mapped.found[&wanted[0].key].interface.index, 11);
        assert_eq!(known.disputed(&wanted, &mapped), BTreeMap::new());
        // One that is not being deleted gets a new interface with its address: its sandbox was made anew.
        known.set_links(&[link(13, Some((3, 2)))]);
        known.inside.insert(3, inside("10.0.0.1", 2));
        known.resolve(&wanted, &mut mapped);
        assert_eq!(mapped.found[&wanted[0].key].interface.index, 13);
    }

    #[test]
    fn a_pod_that_comes_back_under_its_name_is_looked_for_again() {
        let mut known = Knowledge::default();
        known.set_links(&[link(10, Some((0, 2))), link(11, Some((1, 2)))]);
        known.inside.insert(0, inside("10.0.0.1", 2));
        known.inside.insert(1, inside("10.0.0.2", 2));
        let mut mapped = Mapping::default();
        known.resolve(&[pod("a", "10.0.0.1")], &mut mapped);
        known.resolve(&[pod("a", "10.0.0.2")], &mut mapped);
        assert_eq!(mapped.found[&ObjectKey::new("n", "a")].interface.index, 11);
    }

    #[test]
    fn only_a_veth_whose_other_end_is_elsewhere_is_a_pods() {
        let mut known = Knowledge::default();
        let of_kind = |index, kind: &str| Link {
            kind: kind.into(),
            ..link(index, Some((0, 2)))
        };
        let mut unnumbered = link(13, None);
        unnumbered.elsewhere = true;
        let lo = Link {
            loopback: true,
            ..link(1, None)
        };
        known.set_links(&[
            lo,
            link(10, Some((0, 2))),
            link(11, None),
            of_kind(12, "vlan"),
            unnumbered,
            Link {
                bare: true,
                ..of_kind(14, "wireguard")
            },
        ]);
        let kinds: Vec<_> = known.devices.iter().map(|(i, d)| (*i, d.kind)).collect();
        assert_eq!(
            kinds,
            [
                (10, DeviceKind::Pod),
                (11, DeviceKind::Host),
                (12, DeviceKind::Host),
                (13, DeviceKind::Pod),
                (14, DeviceKind::Bare),
            ]
        );
    }

    #[test]
    fn an_identity_outlives_a_look_that_fails_and_follows_the_next_one() {
        let mut known = Knowledge::default();
        known.set_links(&[link(10, Some((0, 2)))]);
        let with = |mac| Inside {
            macs: [(2, mac)].into(),
            ..inside("10.0.0.1", 2)
        };
        known.inside.insert(0, with([2, 0, 0, 0, 0, 1]));
        let (wanted, mut mapped) = ([pod("a", "10.0.0.1")], Mapping::default());
        let mac = |known: &Knowledge, mapped: &mut Mapping| {
            known.resolve(&wanted, mapped);
            let found = &mapped.found[&ObjectKey::new("n", "a")];
            (found.identity.mac.map(|mac| mac[5]), known.stale(found))
        };
        assert_eq!(mac(&known, &mut mapped), (Some(1), false));
        known.inside.remove(&0);
        assert_eq!(mac(&known, &mut mapped), (Some(1), true));
        known.inside.insert(0, with([2, 0, 0, 0, 0, 7]));
        assert_eq!(mac(&known, &mut mapped), (Some(7), false));
    }
}
