//! Addresses and node ports for Services whose manifests bring none. Nothing is given twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netpol_agent::policy::object::ObjectKey;

use crate::{
    manifests::{ServiceManifest, ServicePlacement},
    table::{Family, Port},
};

/// The first index for a Service; 10 is kube-dns by custom.
const FIRST: u16 = 11;
const DNS: u16 = 10;
/// The first of `--service-node-port-range`.
const FIRST_NODE_PORT: u16 = 30_000;

/// What was given to whom; a Service that goes and comes back has its old addresses.
#[derive(Debug, Default)]
pub(super) struct Allocator {
    indexes: BTreeMap<ObjectKey, u16>,
    node_ports: BTreeMap<(ObjectKey, Port), u16>,
}

impl Allocator {
    /// What this Service shall have; `others` are all Services, whose own addresses and ports are not given away.
    pub fn place(
        &mut self,
        service: &ServiceManifest,
        others: &[ServiceManifest],
    ) -> ServicePlacement {
        if service.headless {
            return ServicePlacement {
                node_ports: vec![None; service.ports.len()],
                ..ServicePlacement::default()
            };
        }
        let index = self.index(&service.key, others);
        let given = |own: &[IpAddr], address: fn(Family, u16) -> IpAddr| {
            let mut all = own.to_vec();
            for family in &service.families {
                if !own.iter().any(|own| Family::of(*own) == *family) {
                    all.push(address(*family, index));
                }
            }
            all
        };
        ServicePlacement {
            cluster_addresses: given(&service.cluster_addresses, cluster_address),
            balancer_addresses: if service.balanced {
                given(&service.balancer_addresses, balancer_address)
            } else {
                service.balancer_addresses.clone()
            },
            node_ports: service
                .ports
                .iter()
                .map(|port| match (service.node_ports, port.node_port) {
                    (true, None) => Some(self.node_port(&service.key, port.port, others)),
                    (_, own) => own,
                })
                .collect(),
        }
    }

    fn index(&mut self, key: &ObjectKey, others: &[ServiceManifest]) -> u16 {
        if let Some(index) = self.indexes.get(key) {
            return *index;
        }
        let taken: BTreeSet<IpAddr> = others
            .iter()
            .flat_map(|other| {
                other
                    .cluster_addresses
                    .iter()
                    .chain(&other.balancer_addresses)
            })
            .copied()
            .collect();
        let is_free = |index: &u16| {
            Family::ALL.iter().all(|family| {
                !taken.contains(&cluster_address(*family, *index))
                    && !taken.contains(&balancer_address(*family, *index))
            }) && !self.indexes.values().any(|other| other == index)
        };
        let is_dns = *key == ObjectKey::new("kube-system", "kube-dns");
        let index = is_dns
            .then_some(DNS)
            .into_iter()
            .chain(FIRST..)
            .find(is_free)
            .unwrap_or(FIRST);
        self.indexes.insert(key.clone(), index);
        index
    }

    fn node_port(&mut self, key: &ObjectKey, port: Port, others: &[ServiceManifest]) -> u16 {
        let slot = (key.clone(), port);
        if let Some(given) = self.node_ports.get(&slot) {
            return *given;
        }
        let taken: BTreeSet<u16> = others
            .iter()
            .flat_map(|other| &other.ports)
            .filter_map(|port| port.node_port)
            .chain(self.node_ports.values().copied())
            .collect();
        let free = (FIRST_NODE_PORT..).find(|port| !taken.contains(port));
        let free = free.unwrap_or(FIRST_NODE_PORT);
        self.node_ports.insert(slot, free);
        free
    }
}

/// Out of 10.96.0.0/16 and fd00:10:96::/112.
fn cluster_address(family: Family, index: u16) -> IpAddr {
    let [high, low] = index.to_be_bytes();
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, high, low).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, index).into(),
    }
}

/// Out of 10.98.0.0/16 and fd00:10:98::/112, which the router outside knows the way to.
fn balancer_address(family: Family, index: u16) -> IpAddr {
    let [high, low] = index.to_be_bytes();
    match family {
        Family::V4 => Ipv4Addr::new(10, 98, high, low).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x98, 0, 0, 0, 0, index).into(),
    }
}
