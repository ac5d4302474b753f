//! A station is one namespace of the lab: the node, the outside router, a pod or a host.

use std::{net::IpAddr, os::fd::AsFd};

use ipnet::IpNet;

use super::{
    error::LabError,
    netlink::{Hop, Netlink},
    netns::NetNs,
    worker::Worker,
};

/// A namespace and the thread inside it. The thread leaves before the name goes.
pub struct Station {
    /// The thread.
    pub worker: Worker,
    /// The namespace.
    pub namespace: NetNs,
}

impl Station {
    /// Makes a namespace with nothing but a loopback device in it.
    pub fn create(name: String) -> Result<Self, LabError> {
        let namespace = NetNs::create(name)?;
        let worker = Worker::start(&namespace)?;
        let station = Self { worker, namespace };
        for (name, value) in [
            // Addresses are usable at once, also the link-local ones.
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/accept_ra", "0"),
            ("ipv6/conf/default/router_solicitations", "0"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            // Everybody may ping, and no answer is ever withheld for its rate.
            ("ipv4/ping_group_range", "0 2147483647"),
            ("ipv4/icmp_ratelimit", "0"),
            ("ipv6/icmp/ratelimit", "0"),
        ] {
            station.worker.sysctl(name, value)?;
        }
        station.configure(|netlink| async move {
            let loopback = netlink.index("lo").await?;
            netlink.up(loopback).await
        })?;
        Ok(station)
    }

    /// Makes it a router.
    pub fn forward(&self) -> Result<(), LabError> {
        self.worker.sysctl("ipv4/ip_forward", "1")?;
        self.worker.sysctl("ipv6/conf/all/forwarding", "1")?;
        self.worker.sysctl("ipv6/conf/default/forwarding", "1")
    }

    /// Runs netlink requests inside.
    pub fn configure<F, R, T>(&self, requests: F) -> Result<T, LabError>
    where
        F: FnOnce(Netlink) -> R + Send + 'static,
        R: Future<Output = Result<T, LabError>> + 'static,
        T: Send + 'static,
    {
        self.worker
            .run(|| async { requests(Netlink::open()?).await })
    }

    /// Connects another station by a veth pair: `device` here, with this index, `peer` over there, both up. Returns the
    /// index of the other end.
    ///
    /// The indexes of the two ends must differ, as they do on a node, where pods' interfaces have small ones and the
    /// node's have large ones: `linkwatch_urgent_event` in net/core/link_watch.c takes a device whose peer has the same
    /// index for no link at all and lets it wait for up to a second.
    pub fn connect(&self, device: (&str, u32), other: &Self, peer: &str) -> Result<u32, LabError> {
        let (name, here) = (device.0.to_owned(), device.1);
        let namespace = other.namespace.open()?;
        let theirs = peer.to_owned();
        self.configure(move |netlink| async move {
            netlink
                .veth((&name, here), &theirs, namespace.as_fd())
                .await
        })?;
        let theirs = peer.to_owned();
        let there = other.configure(move |netlink| async move {
            let index = netlink.index(&theirs).await?;
            netlink.up(index).await.map(|()| index)
        })?;
        self.configure(move |netlink| async move {
            netlink.up(here).await?;
            netlink.running(here).await
        })?;
        other.configure(move |netlink| async move { netlink.running(there).await })?;
        Ok(there)
    }

    /// Adds addresses and routes to a device.
    pub fn address(
        &self,
        device: u32,
        addresses: Vec<IpNet>,
        routes: Vec<(IpNet, Hop)>,
    ) -> Result<(), LabError> {
        self.configure(move |netlink| async move {
            for address in addresses {
                netlink.address(device, address).await?;
            }
            for (to, hop) in routes {
                netlink.route(to, hop, device).await?;
            }
            Ok(())
        })
    }

    /// Connects a station as the `ptp` plugin does: a /32 and a /128 on its `eth0`, a router address and a route for
    /// each on this end. Returns the index of its `eth0`.
    pub fn connect_routed(
        &self,
        device: (&str, u32),
        other: &Self,
        addresses: &[IpAddr],
        routers: [IpAddr; 2],
    ) -> Result<u32, LabError> {
        let here = device.1;
        let there = self.connect(device, other, "eth0")?;
        let mut theirs = Vec::new();
        let mut defaults = Vec::new();
        let mut ours = Vec::new();
        let mut routes = Vec::new();
        for address in addresses {
            let Some(router) = routers.iter().find(|r| r.is_ipv4() == address.is_ipv4()) else {
                continue;
            };
            theirs.push(IpNet::from(*address));
            defaults.push((IpNet::from(*router), Hop::Direct));
            defaults.push((everything(*router), Hop::Via(*router)));
            ours.push(IpNet::from(*router));
            routes.push((IpNet::from(*address), Hop::Direct));
        }
        self.address(here, ours, routes)?;
        other.address(there, theirs, defaults)?;
        Ok(there)
    }
}

/// The default route's prefix in the family of an address.
pub fn everything(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}
