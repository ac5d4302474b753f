//! A node: a namespace with an uplink, a subnet of pods, and either a bridge `cni0` or a route for each pod.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::{
    announce,
    error::LabError,
    flannel::Overlay,
    netlink::Hop,
    station::{Station, everything},
    topology::{Shape, pod_addresses, pod_subnets, uplink, with_subnet},
};

/// A node of a lab.
pub struct Node {
    name: String,
    number: u8,
    /// On its uplink.
    pub(super) addresses: [IpAddr; 2],
    station: Station,
    /// The index of `cni0`, in the bridge shapes.
    bridge: Option<u32>,
    /// Its VXLAN devices, with that backend.
    pub(super) overlay: Option<Overlay>,
}

impl Node {
    /// Makes a node of a station that has its uplink already.
    pub(super) fn build(
        name: &str,
        number: u8,
        station: Station,
        shape: Shape,
    ) -> Result<Self, LabError> {
        station.forward()?;
        let bridge = match shape {
            Shape::Bridge { br_netfilter } => Some(build_bridge(&station, number, br_netfilter)?),
            Shape::Routed => None,
        };
        Ok(Self {
            name: name.to_owned(),
            number,
            addresses: uplink(number + 1),
            station,
            bridge,
            overlay: None,
        })
    }

    /// Its name: `spec.nodeName` of its pods.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub const fn station(&self) -> &Station {
        &self.station
    }

    /// Its number: `N` in `10.244.N.0/24`.
    pub const fn number(&self) -> u8 {
        self.number
    }

    /// Its own addresses, on the uplink: `status.hostIPs` of its pods.
    pub const fn addresses(&self) -> [IpAddr; 2] {
        self.addresses
    }

    /// The subnets of its pods.
    pub fn pod_subnets(&self) -> [IpNet; 2] {
        pod_subnets(self.number)
    }

    /// Every address that it has: on the uplink, as its pods' router, and on its VXLAN devices.
    pub fn all_addresses(&self) -> BTreeSet<IpAddr> {
        let routers = pod_addresses(self.number, 1);
        let overlay = self.overlay.iter().flat_map(|_| self.overlay_addresses());
        let own = self.addresses().into_iter().chain(routers);
        own.chain(overlay).collect()
    }

    /// What pods of other nodes see it as: by VXLAN its addresses on those devices, else those on its uplink.
    pub const fn addresses_abroad(&self) -> [IpAddr; 2] {
        if self.overlay.is_some() {
            self.overlay_addresses()
        } else {
            self.addresses()
        }
    }

    /// The addresses of its VXLAN devices: the first of the subnets of its pods.
    pub(super) const fn overlay_addresses(&self) -> [IpAddr; 2] {
        pod_addresses(self.number, 0)
    }

    /// Connects a pod. `device` is its name and index here.
    pub(super) fn connect(
        &self,
        device: (&str, u32),
        pod: &Station,
        addresses: &[IpAddr],
    ) -> Result<(), LabError> {
        let routers = pod_addresses(self.number, 1);
        let here = device.1;
        let there = match self.bridge {
            None => self
                .station
                .connect_routed(device, pod, addresses, routers)?,
            Some(bridge) => {
                let eth0 = self.station.connect(device, pod, "eth0")?;
                self.station
                    .configure(move |netlink| async move { netlink.enslave(here, bridge).await })?;
                let defaults = routers
                    .into_iter()
                    .filter(|router| addresses.iter().any(|a| a.is_ipv4() == router.is_ipv4()));
                pod.address(
                    eth0,
                    addresses.iter().copied().map(with_subnet).collect(),
                    defaults
                        .map(|router| (everything(router), Hop::Via(router)))
                        .collect(),
                )?;
                announce::announce(pod, eth0, addresses)?;
                eth0
            }
        };
        if let Some(overlay) = &self.overlay {
            let mtu = overlay.pod_mtu();
            for (station, index) in [(&self.station, here), (pod, there)] {
                station.configure(move |netlink| async move { netlink.mtu(index, mtu).await })?;
            }
        }
        Ok(())
    }
}

fn build_bridge(node: &Station, number: u8, br_netfilter: bool) -> Result<u32, LabError> {
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
    let routers = pod_addresses(number, 1).map(with_subnet);
    node.configure(move |netlink| async move {
        // A bridge without a fixed MAC takes a new one with each port; the bridge plugin fixes it as well.
        let bridge = netlink
            .bridge("cni0", [0x0a, 0x58, 10, 244, number, 1])
            .await?;
        for router in routers {
            netlink.address(bridge, router).await?;
        }
        Ok(bridge)
    })
}
