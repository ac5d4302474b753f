//! The shape of the lab: its nodes, the router outside them, and how pods and hosts hang on them.
//!
//! ```text
//!   pod   pod   pod              host   host   pod of a node that the lab does not build
//!    |     |     |                 |      |      |
//!   veth  veth  veth             (routed, a /32 and a /128 each)
//!    |     |     |                 |      |      |
//!  [ cni0 bridge, or  ]          [     router      ]
//!  [ routes to each   ]--uplink--[                 ]
//!          node                  [ underlay bridge ]--uplink-- more nodes, with a Backend
//! ```

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    error::LabError,
    flannel,
    netlink::Hop,
    node::Node,
    station::{Station, everything},
};

/// How pods hang on the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// As Flannel with the bridge plugin: a bridge `cni0` with the router address, ports in hairpin mode.
    Bridge {
        /// Whether bridged packets pass the IP hooks too (`net.bridge.bridge-nf-call-iptables` and `-ip6tables`).
        br_netfilter: bool,
    },
    /// As the `ptp` plugin: no bridge, a /32 and a /128 for each veth.
    Routed,
}

impl Shape {
    /// Every shape.
    pub const ALL: [Self; 3] = [
        Self::Bridge { br_netfilter: true },
        Self::Bridge {
            br_netfilter: false,
        },
        Self::Routed,
    ];
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bridge {
                br_netfilter: false,
            } => "bridge",
            Self::Bridge { br_netfilter: true } => "bridge-nf",
            Self::Routed => "routed",
        })
    }
}

impl std::str::FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|shape| shape.to_string() == text)
            .ok_or_else(|| format!("`{text}` is no shape: choose bridge, bridge-nf or routed"))
    }
}

/// How packets of pods get from node to node: Flannel's backends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// In VXLAN, by devices `flannel.1` and `flannel-v6.1`.
    Vxlan,
    /// As they are, routed by the other node's address.
    HostGw,
}

impl Backend {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Vxlan, Self::HostGw];
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
        })
    }
}

/// The name of the node that every lab has, in `spec.nodeName` and to the agent; pods that name no node are on it.
pub const NODE_NAME: &str = "node";

/// Its number among the subnets of pods.
pub(super) const NODE_NUMBER: u8 = 1;

pub(super) const ROUTER_ADDRESSES: [IpAddr; 2] = uplink(1);
/// What the outside router is for everybody behind it.
const OUTSIDE_ROUTER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(100, 64, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x100, 0x64, 0, 0, 0, 0, 1)),
];

/// Indexes of the devices that the lab makes on the nodes and the router outside begin here.
pub(super) const FIRST_DEVICE: u32 = 100;

/// A node's addresses on its uplink; `host` 1 is the router.
pub(super) const fn uplink(host: u8) -> [IpAddr; 2] {
    [
        IpAddr::V4(Ipv4Addr::new(172, 18, 0, host)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, host as u16)),
    ]
}

/// The addresses of a pod: `10.244.NODE.INDEX` and `fd00:10:244:NODE::INDEX`.
pub(super) const fn pod_addresses(node: u8, index: u16) -> [IpAddr; 2] {
    [
        IpAddr::V4(Ipv4Addr::new(10, 244, node, index as u8)),
        IpAddr::V6(Ipv6Addr::new(
            0xfd00,
            0x10,
            0x244,
            node as u16,
            0,
            0,
            0,
            index,
        )),
    ]
}

/// The subnets that a node's pods have their addresses of.
pub(super) fn pod_subnets(node: u8) -> [IpNet; 2] {
    pod_addresses(node, 0).map(|address| with_subnet(address).trunc())
}

/// An address of a /24 or a /64.
pub(super) fn with_subnet(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(address) => IpNet::V4(Ipv4Net::new_assert(address, 24)),
        IpAddr::V6(address) => IpNet::V6(Ipv6Net::new_assert(address, 64)),
    }
}

/// The nodes and the router outside.
pub(super) struct Backbone {
    pub shape: Shape,
    /// `None`: there is one node, and pods of others hang on the router outside.
    pub backend: Option<Backend>,
    /// By name; [`NODE_NAME`] is always there.
    pub nodes: BTreeMap<String, Node>,
    pub outside: Station,
    /// What the names of all namespaces of this lab begin with.
    prefix: String,
    /// With a backend, the router's bridge that all uplinks are ports of.
    underlay: Option<u32>,
    /// The index of the newest device: no two pods or hosts of one lab have devices of the same index, or the same name.
    devices: u32,
}

/// A party's connection, to be taken down again.
#[derive(Clone, Debug)]
pub(super) struct Cable {
    /// The node that it ends on; `None` for the router outside.
    node: Option<String>,
    device: u32,
}

impl Cable {
    /// The index of the device on the far side.
    pub const fn device(&self) -> u32 {
        self.device
    }
}

impl Backbone {
    pub fn build(prefix: &str, shape: Shape, backend: Option<Backend>) -> Result<Self, LabError> {
        let outside = Station::create(format!("{prefix}outside"))?;
        outside.forward()?;
        let underlay = backend.map(|_| build_underlay(&outside)).transpose()?;
        let mut backbone = Self {
            shape,
            backend,
            nodes: BTreeMap::new(),
            outside,
            prefix: prefix.to_owned(),
            underlay,
            devices: FIRST_DEVICE,
        };
        backbone.add_node(NODE_NAME, NODE_NUMBER)?;
        Ok(backbone)
    }

    /// The node that every lab has.
    pub fn first(&self) -> &Node {
        &self.nodes[NODE_NAME]
    }

    /// Builds a node and makes it and the others known to each other. Nodes stay until the lab goes.
    pub fn add_node(&mut self, name: &str, number: u8) -> Result<(), LabError> {
        let station = Station::create(match name {
            NODE_NAME => format!("{}node", self.prefix),
            name => format!("{}n-{name}", self.prefix),
        })?;
        let port = station.connect(
            ("uplink0", FIRST_DEVICE),
            &self.outside,
            &format!("node{}", number - 1),
        )?;
        let defaults = ROUTER_ADDRESSES.map(|router| (everything(router), Hop::Via(router)));
        let addresses = uplink(number + 1);
        station.address(
            FIRST_DEVICE,
            addresses.map(with_subnet).into(),
            defaults.into(),
        )?;
        let to_pods = pod_subnets(number).into_iter().zip(addresses);
        let to_pods = to_pods.map(|(net, node)| (net, Hop::Via(node))).collect();
        match self.underlay {
            Some(bridge) => {
                self.outside
                    .configure(move |netlink| async move { netlink.attach(port, bridge).await })?;
                self.outside.address(bridge, Vec::new(), to_pods)?;
            }
            None => {
                self.outside
                    .address(port, ROUTER_ADDRESSES.map(with_subnet).into(), to_pods)?;
            }
        }
        let mut node = Node::build(name, number, station, self.shape)?;
        if let Some(backend) = self.backend {
            flannel::start(&mut node, backend)?;
            for other in self.nodes.values() {
                flannel::introduce(&node, other)?;
                flannel::introduce(other, &node)?;
            }
        }
        self.nodes.insert(name.to_owned(), node);
        Ok(())
    }

    /// Connects a station to a node, or to the router outside. `label` becomes part of the name of the device on the far
    /// side.
    pub fn connect(
        &mut self,
        node: Option<&str>,
        station: &Station,
        label: &str,
        addresses: &[IpAddr],
    ) -> Result<Cable, LabError> {
        let node = node.and_then(|name| self.nodes.get(name));
        self.devices += 1;
        let device = self.devices;
        let kind = if node.is_some() { "veth" } else { "out" };
        // The kernel takes 15 bytes; names of pods and hosts are ASCII.
        let name: String = format!("{kind}{}-{label}", device - FIRST_DEVICE)
            .chars()
            .take(15)
            .collect();
        let name = (name.trim_end_matches(['-', '.']), device);
        match node {
            Some(node) => node.connect(name, station, addresses)?,
            None => {
                self.outside
                    .connect_routed(name, station, addresses, OUTSIDE_ROUTER)?;
            }
        }
        let node = node.map(|node| node.name().to_owned());
        Ok(Cable { node, device })
    }

    /// Takes a connection down, now: a namespace alone is cleaned up by the kernel in its own time.
    pub fn disconnect(&self, cable: &Cable) -> Result<(), LabError> {
        let node = cable.node.as_ref().and_then(|name| self.nodes.get(name));
        let station = node.map_or(&self.outside, Node::station);
        let device = cable.device;
        station.configure(move |netlink| async move { netlink.remove(device).await })
    }
}

/// A switch that all uplinks hang on, so that the nodes are neighbours, as host-gw needs them.
fn build_underlay(outside: &Station) -> Result<u32, LabError> {
    for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        // A switch does not look into IP. Without br_netfilter there is nothing to turn off.
        match outside.worker.sysctl(&format!("bridge/{name}"), "0") {
            Err(LabError::Io { .. }) => {}
            set => set?,
        }
    }
    let bridge = outside.configure(|netlink| async move {
        netlink.bridge("underlay0", [0x02, 0, 172, 18, 0, 1]).await
    })?;
    outside.address(bridge, ROUTER_ADDRESSES.map(with_subnet).into(), Vec::new())?;
    Ok(bridge)
}
