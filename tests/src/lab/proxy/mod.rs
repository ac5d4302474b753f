//! Services: their addresses, and a kube-proxy on every node.
//!
//! The rules are those of kube-proxy, in its iptables mode and in its nftables mode, fed to the same programs. What is not
//! here: health checks, load balancer source ranges, topology hints, and the minimal updates by which kube-proxy spares
//! large clusters; every change writes all rules anew, in one transaction of each table.

mod allocate;
mod apply;
mod goal;
mod iptables;
mod model;
mod nftables;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    str::FromStr,
    sync::Arc,
};

use super::{Lab, dns::Names, error::LabError, netlink::Hop, topology::Shape};
use crate::table::{Family, Party};
use allocate::Allocator;
use apply::NodeProxy;
use model::{Entry, Whereabouts};

/// Which of its modes kube-proxy is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ProxyMode {
    /// iptables, its default.
    #[default]
    Iptables,
    /// nftables
    Nftables,
}

impl ProxyMode {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Iptables, Self::Nftables];
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}

impl FromStr for ProxyMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.to_string() == text)
            .ok_or_else(|| format!("`{text}` is no proxy mode: choose iptables or nftables"))
    }
}

/// The Services of a lab.
#[derive(Default)]
pub(super) struct Services {
    mode: ProxyMode,
    allocator: Allocator,
    entries: Vec<Entry>,
    nodes: BTreeMap<String, NodeProxy>,
    /// What the DNS servers answer from.
    pub names: Arc<Names>,
    /// The addresses that the router outside sends to the node, as a load balancer or the neighbouring network would.
    routed: BTreeSet<IpAddr>,
}

impl Services {
    pub fn new(mode: ProxyMode) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }
}

impl Lab {
    /// Whether pods reach Services in this shape. Without br_netfilter a bridge hands the answer of one local pod straight
    /// to another, past the connection table: it carries the backend's address, and the client does not know it.
    pub fn has_services(&self) -> bool {
        self.shape()
            != Shape::Bridge {
                br_netfilter: false,
            }
    }

    /// Brings addresses, rules and names to what the world says now.
    pub(super) fn sync_services(&mut self) -> Result<(), LabError> {
        let all = self.world.services();
        let allocator = &mut self.services.allocator;
        self.world
            .place_services(|service| allocator.place(service, &all))?;
        let entries = model::entries(&self.world, &|party| self.whereabouts(party));
        self.services.names.learn(&self.world, &|party| {
            self.whereabouts(party).map(|(addresses, _)| addresses)
        });
        self.route_outer_addresses(&entries)?;
        let mut nodes = std::mem::take(&mut self.services.nodes);
        for node in self.nodes() {
            let proxy = nodes.entry(node.name().to_owned()).or_default();
            proxy.sync(self.services.mode, node, &entries)?;
        }
        self.services.nodes = nodes;
        self.services.entries = entries;
        Ok(())
    }

    /// The rules that the node's kernel holds now, as `nft` shows them.
    pub fn proxy_rules(&self) -> Result<String, LabError> {
        apply::show(self.node())
    }

    fn whereabouts(&self, party: &Party) -> Option<Whereabouts> {
        let seat = self.parties.get(party)?;
        let node = seat.place.node().map(str::to_owned);
        Some((seat.addresses.clone(), node))
    }

    fn route_outer_addresses(&mut self, entries: &[Entry]) -> Result<(), LabError> {
        let missing: BTreeSet<IpAddr> = entries
            .iter()
            .flat_map(Entry::outer_addresses)
            .filter(|address| !self.services.routed.contains(address))
            .collect();
        // With several nodes their uplinks are ports of one bridge.
        let device = match self.backend() {
            Some(_) => "underlay0",
            None => "node0",
        };
        let nodes = self.backbone.first().addresses();
        for address in missing {
            let like = |node: &IpAddr| node.is_ipv4() == address.is_ipv4();
            if let Some(node) = nodes.into_iter().find(like) {
                self.backbone.outside.configure(move |netlink| async move {
                    let device = netlink.index(device).await?;
                    netlink.route(address.into(), Hop::Via(node), device).await
                })?;
            }
            self.services.routed.insert(address);
        }
        Ok(())
    }
}

/// `--cluster-cidr`: what comes from elsewhere and goes to a cluster address is masqueraded.
const fn cluster_net(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.244.0.0/16",
        Family::V6 => "fd00:10:244::/48",
    }
}

/// `--service-cluster-ip-range`
const fn service_net(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.96.0.0/16",
        Family::V6 => "fd00:10:96::/112",
    }
}
