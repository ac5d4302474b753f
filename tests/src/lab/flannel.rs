//! What flanneld does on a node: the devices and routes of its backends, and its rules.
//!
//! Follows flannel-io/flannel: `pkg/backend/vxlan`, `pkg/backend/hostgw` and `pkg/trafficmngr/nftables`.

use std::{fmt::Write, net::IpAddr};

use ipnet::IpNet;

use super::{
    error::LabError,
    netlink::{Hop, Vxlan},
    node::Node,
    topology::{Backend, FIRST_DEVICE},
};

/// The networks that all pods have their addresses of (`Network` and `IPv6Network` of `net-conf.json`).
const CLUSTER: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];

/// VXLAN takes 50 bytes of what the uplink carries. Flannel counts the same for IPv6, where it takes 70.
const MTU: u32 = 1500 - 50;

/// A node's VXLAN devices: for IPv4 `flannel.1`, for IPv6 `flannel-v6.1`.
#[derive(Clone, Copy, Debug)]
pub struct Overlay {
    devices: [u32; 2],
    macs: [[u8; 6]; 2],
}

impl Overlay {
    /// The MTU that the bridge plugin gives to pods, as Flannel tells it (`FLANNEL_MTU`).
    pub const fn pod_mtu(&self) -> u32 {
        MTU
    }
}

/// Starts Flannel on a node that knows no other yet.
pub(super) fn start(node: &mut Node, backend: Backend) -> Result<(), LabError> {
    if backend == Backend::Vxlan {
        node.overlay = Some(build_overlay(node)?);
    }
    node.station()
        .run_program("nft", &["-f", "-"], &rules(node.pod_subnets()))
        .map(|_| ())
}

/// Tells a node where the pods of another one are.
pub(super) fn introduce(node: &Node, other: &Node) -> Result<(), LabError> {
    let subnets = other.pod_subnets();
    let (Some(overlay), Some(theirs)) = (node.overlay, other.overlay) else {
        let routes = subnets.into_iter().zip(other.addresses());
        let routes = routes.map(|(subnet, at)| (subnet, Hop::Via(at))).collect();
        return node.station().address(FIRST_DEVICE, Vec::new(), routes);
    };
    let (gateways, at) = (other.overlay_addresses(), other.addresses());
    node.station().configure(move |netlink| async move {
        for (family, device) in overlay.devices.into_iter().enumerate() {
            let (gateway, mac) = (gateways[family], theirs.macs[family]);
            netlink.neighbour(device, gateway, mac).await?;
            netlink.vxlan_peer(device, mac, at[family]).await?;
            netlink
                .route(subnets[family], Hop::OnLink(gateway), device)
                .await?;
        }
        Ok(())
    })
}

fn build_overlay(node: &Node) -> Result<Overlay, LabError> {
    let number = node.number();
    let macs = [4, 6].map(|family| [0x02, 0xf1, 0, 0, family, number]);
    let (locals, addresses) = (node.addresses(), node.overlay_addresses());
    let devices = node.station().configure(move |netlink| async move {
        let mut devices = [0; 2];
        for (family, name) in ["flannel.1", "flannel-v6.1"].into_iter().enumerate() {
            let vxlan = Vxlan {
                vni: 1,
                port: 8472,
                mtu: MTU,
                mac: macs[family],
                below: FIRST_DEVICE,
                local: locals[family],
            };
            devices[family] = netlink.vxlan(name, vxlan).await?;
            // A host address, so that nobody broadcasts. It is the source of what the node itself sends to pods abroad.
            let address = IpNet::from(addresses[family]);
            netlink.address(devices[family], address).await?;
        }
        Ok(devices)
    })?;
    Ok(Overlay { devices, macs })
}

/// A ruleset for `nft`: what is forwarded for pods is accepted; what pods send out of the cluster leaves as the node.
fn rules(pods: [IpNet; 2]) -> String {
    let mut text = String::new();
    for (cluster, pods) in CLUSTER.into_iter().zip(pods) {
        let (family, table, multicast) = match pods.addr() {
            IpAddr::V4(_) => ("ip", "flannel-ipv4", "224.0.0.0/4"),
            IpAddr::V6(_) => ("ip6", "flannel-ipv6", "ff00::/8"),
        };
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "table {family} {table} {{
                chain forward {{
                    type filter hook forward priority filter
                    {family} saddr {cluster} accept
                    {family} daddr {cluster} accept
                }}
                chain postrtg {{
                    type nat hook postrouting priority srcnat
                    meta mark 0x4000 return
                    {family} saddr {pods} {family} daddr {cluster} return
                    {family} saddr {cluster} {family} daddr {pods} return
                    {family} saddr != {pods} {family} daddr {cluster} return
                    {family} saddr {cluster} {family} daddr != {multicast} masquerade fully-random
                    {family} saddr != {cluster} {family} daddr {cluster} masquerade fully-random
                }}
            }}
            "
        );
    }
    text
}
