//! What kube-proxy sees of the world: for each port of each Service and each family, addresses and backends.

use std::net::IpAddr;

use netpol_agent::policy::object::{ObjectKey, Protocol};

use crate::{
    manifests::{Endpoint, ServiceManifest, ServicePort, World},
    table::{Family, Party, Port, Via},
};

/// One port of a Service in one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::lab) struct Entry {
    pub service: ObjectKey,
    /// The port's name.
    pub name: String,
    pub family: Family,
    pub port: Port,
    pub cluster: IpAddr,
    pub external: Vec<IpAddr>,
    pub balancer: Vec<IpAddr>,
    pub node_port: Option<u16>,
    /// Seconds for which a client keeps its backend.
    pub affinity: Option<u32>,
    pub external_local: bool,
    pub internal_local: bool,
    pub backends: Vec<Backend>,
}

/// Where a packet to a Service may go.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(in crate::lab) struct Backend {
    pub address: IpAddr,
    pub port: Port,
    pub node: Option<String>,
}

/// Where a party is: its addresses and its node.
pub(super) type Whereabouts = (Vec<IpAddr>, Option<String>);

impl Entry {
    pub fn protocol(&self) -> &'static str {
        match self.port.transport() {
            Some((Protocol::Udp, _)) => "udp",
            Some((Protocol::Sctp, _)) => "sctp",
            _ => "tcp",
        }
    }

    /// The Service's port number.
    pub fn number(&self) -> u16 {
        number(self.port)
    }

    /// As kube-proxy calls it in comments.
    pub fn title(&self) -> String {
        if self.name.is_empty() {
            self.service.to_string()
        } else {
            format!("{}:{}", self.service, self.name)
        }
    }

    /// The addresses that stand for backends anywhere.
    pub fn outer_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.external.iter().chain(&self.balancer).copied()
    }

    /// Whether anybody outside the cluster has a way to it.
    pub fn is_outside(&self) -> bool {
        self.node_port.is_some() || self.outer_addresses().next().is_some()
    }

    pub fn on_node(&self, node: &str) -> Vec<&Backend> {
        let here = |backend: &&Backend| backend.node.as_deref() == Some(node);
        self.backends.iter().filter(here).collect()
    }

    /// Where to knock; `None` when it has no such address.
    pub fn goal(&self, via: Via, node: IpAddr) -> Option<(IpAddr, Port)> {
        match via {
            Via::ClusterIp => Some((self.cluster, self.port)),
            Via::NodePort => Some((node, self.port.with_number(self.node_port?))),
            Via::ExternalIp => Some((*self.external.first()?, self.port)),
            Via::LoadBalancer => Some((*self.balancer.first()?, self.port)),
        }
    }
}

impl Backend {
    pub fn number(&self) -> u16 {
        number(self.port)
    }

    /// `10.0.0.1:80` or `[fd00::1]:80`
    pub fn target(&self) -> std::net::SocketAddr {
        (self.address, self.number()).into()
    }
}

fn number(port: Port) -> u16 {
    port.transport().map_or(0, |(_, number)| number)
}

/// Every port of every Service that has a virtual address.
pub(super) fn entries(
    world: &World,
    whereabouts: &impl Fn(&Party) -> Option<Whereabouts>,
) -> Vec<Entry> {
    let mut entries = Vec::new();
    for service in world.services().iter().filter(|s| !s.headless) {
        for family in &service.families {
            let of_family = |addresses: &[IpAddr]| -> Vec<IpAddr> {
                let ours = addresses.iter().filter(|a| Family::of(**a) == *family);
                ours.copied().collect()
            };
            let Some(cluster) = of_family(&service.cluster_addresses).first().copied() else {
                continue;
            };
            for port in &service.ports {
                entries.push(Entry {
                    service: service.key.clone(),
                    name: port.name.clone(),
                    family: *family,
                    port: port.port,
                    cluster,
                    external: of_family(&service.external_addresses),
                    balancer: of_family(&service.balancer_addresses),
                    node_port: port.node_port,
                    affinity: service.affinity,
                    external_local: service.external_local,
                    internal_local: service.internal_local,
                    backends: backends(world, service, port, *family, whereabouts),
                });
            }
        }
    }
    entries
}

/// Who serves a port of a Service in one family.
pub(super) fn backends(
    world: &World,
    service: &ServiceManifest,
    port: &ServicePort,
    family: Family,
    whereabouts: &impl Fn(&Party) -> Option<Whereabouts>,
) -> Vec<Backend> {
    let endpoints = world.endpoints(service, port).into_iter();
    endpoints
        .filter_map(|endpoint| match endpoint {
            Endpoint::Pod { key, port } => {
                let (addresses, node) = whereabouts(&Party::Pod(key))?;
                let address = addresses.into_iter().find(|a| Family::of(*a) == family)?;
                Some(Backend {
                    address,
                    port,
                    node,
                })
            }
            Endpoint::Address {
                address,
                port,
                node,
            } => (Family::of(address) == family).then_some(Backend {
                address,
                port,
                node,
            }),
        })
        .collect()
}
