//! The shape of the lab: the node, the router outside it, and how pods and hosts hang on them.
//!
//! ```text
//!   pod   pod   pod              host   host   pod of another node
//!    |     |     |                 |      |      |
//!   veth  veth  veth             (routed, a /32 and a /128 each)
//!    |     |     |                 |      |      |
//!  [ cni0 bridge, or  ]          [     router      ]
//!  [ routes to each   ]--uplink--[                 ]
//!          node
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    announce,
    error::LabError,
    netlink::Hop,
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

/// What the node is called, in `spec.nodeName` and to the agent.
pub const NODE_NAME: &str = "node";

/// The node's number among the subnets of pods.
pub(super) const NODE_NUMBER: u8 = 1;

/// The node's addresses on its uplink.
pub(super) const NODE_ADDRESSES: [IpAddr; 2] = uplink(2);
const ROUTER_ADDRESSES: [IpAddr; 2] = uplink(1);
/// What the outside router is for everybody behind it.
const OUTSIDE_ROUTER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(100, 64, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x100, 0x64, 0, 0, 0, 0, 1)),
];

/// Indexes of the devices that the lab makes on the node and the router outside begin here.
const FIRST_DEVICE: u32 = 100;

const fn uplink(host: u8) -> [IpAddr; 2] {
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
fn with_subnet(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(address) => IpNet::V4(Ipv4Net::new_assert(address, 24)),
        IpAddr::V6(address) => IpNet::V6(Ipv6Net::new_assert(address, 64)),
    }
}

/// The node and the router outside.
pub(super) struct Backbone {
    pub shape: Shape,
    pub node: Station,
    pub outside: Station,
    /// The bridge's interface index, in the bridge shapes.
    bridge: Option<u32>,
    /// The index of the newest device: no two of one lab have the same index, or the same name.
    devices: u32,
}

/// On which side of the uplink a party hangs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    Node,
    Outside,
}

/// A party's connection, to be taken down again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cable {
    side: Side,
    device: u32,
}

impl Cable {
    /// The index of the device on the far side.
    pub const fn device(self) -> u32 {
        self.device
    }
}

impl Backbone {
    pub fn build(prefix: &str, shape: Shape) -> Result<Self, LabError> {
        let node = Station::create(format!("{prefix}node"))?;
        let outside = Station::create(format!("{prefix}outside"))?;
        node.forward()?;
        outside.forward()?;
        let uplink = FIRST_DEVICE;
        let port = node.connect(("uplink0", uplink), &outside, "node0")?;
        let defaults = ROUTER_ADDRESSES.map(|router| (everything(router), Hop::Via(router)));
        node.address(
            uplink,
            NODE_ADDRESSES.map(with_subnet).into(),
            defaults.into(),
        )?;
        let to_pods = pod_subnets(NODE_NUMBER).into_iter().zip(NODE_ADDRESSES);
        outside.address(
            port,
            ROUTER_ADDRESSES.map(with_subnet).into(),
            to_pods.map(|(net, node)| (net, Hop::Via(node))).collect(),
        )?;
        let bridge = match shape {
            Shape::Bridge { br_netfilter } => Some(build_bridge(&node, br_netfilter)?),
            Shape::Routed => None,
        };
        Ok(Self {
            shape,
            node,
            outside,
            bridge,
            devices: FIRST_DEVICE,
        })
    }

    /// Connects a station. `label` becomes part of the name of the device on the far side.
    pub fn connect(
        &mut self,
        side: Side,
        station: &Station,
        label: &str,
        addresses: &[IpAddr],
    ) -> Result<Cable, LabError> {
        self.devices += 1;
        let device = self.devices;
        let kind = match side {
            Side::Node => "veth",
            Side::Outside => "out",
        };
        // The kernel takes 15 bytes; names of pods and hosts are ASCII.
        let name: String = format!("{kind}{}-{label}", device - FIRST_DEVICE)
            .chars()
            .take(15)
            .collect();
        let name = name.trim_end_matches(['-', '.']);
        let name = (name, device);
        match (side, self.bridge) {
            (Side::Outside, _) => {
                self.outside
                    .connect_routed(name, station, addresses, OUTSIDE_ROUTER)?;
            }
            (Side::Node, None) => {
                let routers = pod_addresses(NODE_NUMBER, 1);
                self.node
                    .connect_routed(name, station, addresses, routers)?;
            }
            (Side::Node, Some(bridge)) => self.connect_bridged(name, station, addresses, bridge)?,
        }
        Ok(Cable { side, device })
    }

    fn connect_bridged(
        &self,
        device: (&str, u32),
        station: &Station,
        addresses: &[IpAddr],
        bridge: u32,
    ) -> Result<(), LabError> {
        let port = device.1;
        let eth0 = self.node.connect(device, station, "eth0")?;
        self.node
            .configure(move |netlink| async move { netlink.enslave(port, bridge).await })?;
        let routers = pod_addresses(NODE_NUMBER, 1);
        station.address(
            eth0,
            addresses.iter().copied().map(with_subnet).collect(),
            routers
                .into_iter()
                .filter(|router| addresses.iter().any(|a| a.is_ipv4() == router.is_ipv4()))
                .map(|router| (everything(router), Hop::Via(router)))
                .collect(),
        )?;
        announce::announce(station, eth0, addresses)
    }

    /// Takes a connection down, now: a namespace alone is cleaned up by the kernel in its own time.
    pub fn disconnect(&self, cable: Cable) -> Result<(), LabError> {
        let station = match cable.side {
            Side::Node => &self.node,
            Side::Outside => &self.outside,
        };
        station.configure(move |netlink| async move { netlink.remove(cable.device).await })
    }
}

fn build_bridge(node: &Station, br_netfilter: bool) -> Result<u32, LabError> {
    for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        // They belong to the network namespace since kernel 5.3. Without the module there is nothing to turn off.
        let set = node.worker.sysctl(
            &format!("bridge/{name}"),
            if br_netfilter { "1" } else { "0" },
        );
        match set {
            Err(LabError::Io { .. }) if !br_netfilter => {}
            Err(LabError::Io { .. }) => return Err(LabError::NoBridgeNetfilter),
            set => set?,
        }
    }
    let routers = pod_addresses(NODE_NUMBER, 1).map(with_subnet);
    node.configure(move |netlink| async move {
        // A bridge without a fixed MAC takes a new one with each port; the bridge plugin fixes it as well.
        let bridge = netlink
            .bridge("cni0", [0x0a, 0x58, 10, 244, NODE_NUMBER, 1])
            .await?;
        for router in routers {
            netlink.address(bridge, router).await?;
        }
        Ok(bridge)
    })
}
