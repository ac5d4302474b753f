//! The few netlink requests a lab is built with. A [`Netlink`] is opened inside the namespace it changes.

use std::{
    fs, io,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::{
    address::{AddressHeaderFlags, AddressMessage},
    link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage},
    neighbour::{NeighbourFlags, NeighbourState},
    route::{RouteScope, RouteType},
    tc::TcHandle,
};
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan,
    RouteMessageBuilder, new_connection,
};

use super::error::LabError;

/// Netlink in the namespace of the thread that opened it.
pub struct Netlink {
    handle: Handle,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug)]
pub enum Hop {
    /// Straight out of the device.
    Direct,
    /// To this router on the device.
    Via(IpAddr),
    /// To this router on the device, whether or not an address of the device says that it is there.
    OnLink(IpAddr),
}

/// A VXLAN device as Flannel makes it: it learns nothing, and is told where the others are.
#[derive(Clone, Copy, Debug)]
pub struct Vxlan {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// MTU; the kernel takes off what does not fit the device below.
    pub mtu: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// The device below.
    pub below: u32,
    /// The address of the outer packets.
    pub local: IpAddr,
}

impl Netlink {
    /// Opens a connection. Must be called inside the namespace's [`Worker`](super::worker::Worker).
    pub fn open() -> Result<Self, LabError> {
        let (connection, handle, _) =
            new_connection().map_err(|error| LabError::io("open a netlink socket", error))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The index of an interface.
    pub async fn index(&self, name: &str) -> Result<u32, LabError> {
        let failed = |error| LabError::netlink(format!("find interface {name}"), error);
        let found = self
            .handle
            .link()
            .get()
            .match_name(name.to_owned())
            .execute()
            .try_next()
            .await
            .map_err(failed)?;
        found
            .map(|link| link.header.index)
            .ok_or_else(|| failed(rtnetlink::Error::RequestFailed))
    }

    /// The name of an interface.
    pub async fn name(&self, index: u32) -> Result<String, LabError> {
        let mut links = self.handle.link().get().match_index(index).execute();
        let link = links
            .try_next()
            .await
            .map_err(|error| LabError::netlink(format!("find interface {index}"), error))?;
        link.into_iter()
            .flat_map(|link| link.attributes)
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })
            .ok_or_else(|| {
                let error = io::Error::from(io::ErrorKind::NotFound);
                LabError::io(format!("find the name of interface {index}"), error)
            })
    }

    /// The indexes of all interfaces but the loopback one.
    pub async fn indexes(&self) -> Result<Vec<u32>, LabError> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| LabError::netlink("list interfaces", error))?;
        Ok(links
            .into_iter()
            .filter(|link| !link.header.flags.contains(LinkFlags::Loopback))
            .map(|link| link.header.index)
            .collect())
    }

    /// Moves an interface into another namespace.
    pub async fn give(&self, index: u32, namespace: BorrowedFd<'_>) -> Result<(), LabError> {
        let link = LinkUnspec::new_with_index(index).setns_by_fd(namespace.as_raw_fd());
        self.handle
            .link()
            .change(link.build())
            .execute()
            .await
            .map_err(|error| LabError::netlink("move an interface", error))
    }

    /// Gives an interface another MAC address.
    pub async fn set_mac(&self, index: u32, mac: [u8; 6]) -> Result<(), LabError> {
        let link = LinkUnspec::new_with_index(index).address(mac.to_vec());
        self.handle
            .link()
            .change(link.build())
            .execute()
            .await
            .map_err(|error| LabError::netlink("change a MAC address", error))
    }

    /// The MAC address of an interface.
    pub async fn mac(&self, index: u32) -> Result<[u8; 6], LabError> {
        let mut links = self.handle.link().get().match_index(index).execute();
        let link = links
            .try_next()
            .await
            .map_err(|error| LabError::netlink(format!("find interface {index}"), error))?;
        link.into_iter()
            .flat_map(|link| link.attributes)
            .find_map(|attribute| match attribute {
                LinkAttribute::Address(mac) => mac.try_into().ok(),
                _ => None,
            })
            .ok_or_else(|| {
                let error = io::Error::from(io::ErrorKind::NotFound);
                LabError::io(format!("find the MAC address of interface {index}"), error)
            })
    }

    /// Makes a bridge and returns its index.
    pub async fn bridge(&self, name: &str, mac: [u8; 6]) -> Result<u32, LabError> {
        let link = LinkBridge::new(name).address(mac.to_vec()).up().build();
        self.add(link, &format!("make bridge {name}")).await?;
        self.index(name).await
    }

    /// Makes a veth pair, one end here and the other in `peer_namespace`; both are down: the kernel brings neither up
    /// before it has both. Takes the index of this end, and returns it.
    pub async fn veth(
        &self,
        (name, index): (&str, u32),
        peer: &str,
        peer_namespace: BorrowedFd<'_>,
    ) -> Result<u32, LabError> {
        let mut other: LinkMessage = LinkMessageBuilder::<LinkUnspec>::new().name(peer).build();
        other
            .attributes
            .push(LinkAttribute::NetNsFd(peer_namespace.as_raw_fd()));
        let link = LinkVeth::new(name, peer)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(other)))
            .index(index)
            .build();
        self.add(link, &format!("make veth pair {name} - {peer}"))
            .await?;
        Ok(index)
    }

    /// Makes a VXLAN device, up, and returns its index.
    pub async fn vxlan(&self, name: &str, vxlan: Vxlan) -> Result<u32, LabError> {
        let link = LinkVxlan::new(name, vxlan.vni)
            .dev(vxlan.below)
            .port(vxlan.port)
            .learning(false);
        let link = match vxlan.local {
            IpAddr::V4(local) => link.local(local),
            IpAddr::V6(local) => link.local6(local),
        };
        let link = link.mtu(vxlan.mtu).address(vxlan.mac.to_vec()).up().build();
        self.add(link, &format!("make VXLAN device {name}")).await?;
        self.index(name).await
    }

    /// Says to which address a VXLAN device sends what is for a MAC address.
    pub async fn vxlan_peer(
        &self,
        device: u32,
        mac: [u8; 6],
        address: IpAddr,
    ) -> Result<(), LabError> {
        self.handle
            .neighbours()
            .add_bridge(device, &mac)
            .destination(address)
            .state(NeighbourState::Permanent)
            .flags(NeighbourFlags::Own)
            .replace()
            .execute()
            .await
            .map_err(|error| LabError::netlink(format!("add VXLAN peer {address}"), error))
    }

    /// Puts an interface under a bridge.
    pub async fn attach(&self, port: u32, bridge: u32) -> Result<(), LabError> {
        let master = LinkUnspec::new_with_index(port).controller(bridge).build();
        self.handle
            .link()
            .change(master)
            .execute()
            .await
            .map_err(|error| LabError::netlink("put an interface under the bridge", error))
    }

    /// Puts an interface under a bridge, in hairpin mode: a pod may reach itself through the bridge.
    pub async fn enslave(&self, port: u32, bridge: u32) -> Result<(), LabError> {
        self.attach(port, bridge).await?;
        let hairpin = LinkBridgePort::new(port).hairpin(true).build();
        self.handle
            .link()
            .set_port(hairpin)
            .execute()
            .await
            .map_err(|error| LabError::netlink("set hairpin mode", error))
    }

    /// Sets how large a packet an interface takes.
    pub async fn mtu(&self, index: u32, mtu: u32) -> Result<(), LabError> {
        self.handle
            .link()
            .change(LinkUnspec::new_with_index(index).mtu(mtu).build())
            .execute()
            .await
            .map_err(|error| LabError::netlink("set the MTU of an interface", error))
    }

    /// Brings an interface up.
    pub async fn up(&self, index: u32) -> Result<(), LabError> {
        self.handle
            .link()
            .change(LinkUnspec::new_with_index(index).up().build())
            .execute()
            .await
            .map_err(|error| LabError::netlink("bring an interface up", error))
    }

    /// Waits until an interface carries packets: until then the kernel drops what is sent by it.
    pub async fn running(&self, index: u32) -> Result<(), LabError> {
        let failed = |error| LabError::netlink("wait for an interface", error);
        for _ in 0..1000 {
            let mut links = self.handle.link().get().match_index(index).execute();
            let link = links.try_next().await.map_err(failed)?;
            if link.is_some_and(|link| link.header.flags.contains(LinkFlags::Running)) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let error = io::Error::from(io::ErrorKind::TimedOut);
        Err(LabError::io(format!("bring interface {index} up"), error))
    }

    /// Removes an interface (and, of a veth, its other end).
    pub async fn remove(&self, index: u32) -> Result<(), LabError> {
        self.handle
            .link()
            .del(index)
            .execute()
            .await
            .map_err(|error| LabError::netlink("remove an interface", error))
    }

    /// Gives an interface an address, without duplicate address detection, and waits until neighbours can find it: the
    /// kernel joins the solicited-node group of an IPv6 address later, in `addrconf_dad_work`, and a first solicitation
    /// that comes too early costs its sender a second.
    pub async fn address(&self, index: u32, address: IpNet) -> Result<(), LabError> {
        let what = format!("add address {address}");
        let mut request = self
            .handle
            .address()
            .add(index, address.addr(), address.prefix_len());
        let message: &mut AddressMessage = request.message_mut();
        if address.addr().is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        request
            .execute()
            .await
            .map_err(|error| LabError::netlink(what.clone(), error))?;
        let IpAddr::V6(v6) = address.addr() else {
            return Ok(());
        };
        // RFC 4291, 2.7.1: ff02::1:ff and the last three bytes.
        let group = format!("ff0200000000000000000001ff{:06x}", v6.to_bits() & 0xff_ffff);
        for _ in 0..1000 {
            let groups = fs::read_to_string("/proc/thread-self/net/igmp6")
                .map_err(|error| LabError::io(what.clone(), error))?;
            let joined = groups.lines().any(|line| {
                let mut words = line.split_whitespace();
                words.next() == Some(index.to_string().as_str()) && words.nth(1) == Some(&group)
            });
            if joined {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Err(LabError::io(what, io::Error::from(io::ErrorKind::TimedOut)))
    }

    /// Takes an address away from an interface; of IPv4, the kernel takes the interface's routes too.
    pub async fn remove_address(&self, index: u32, address: IpNet) -> Result<(), LabError> {
        let what = format!("remove address {address}");
        // The kernel deletes exactly the address whose message it gave out.
        let mut addresses = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .set_address_filter(address.addr())
            .execute();
        let found = addresses
            .try_next()
            .await
            .map_err(|error| LabError::netlink(what.clone(), error))?
            .ok_or_else(|| LabError::io(what.clone(), io::Error::from(io::ErrorKind::NotFound)))?;
        self.handle
            .address()
            .del(found)
            .execute()
            .await
            .map_err(|error| LabError::netlink(what, error))
    }

    /// Gives an interface an `ingress` queueing discipline, which takes the place of clsact.
    pub async fn ingress_qdisc(&self, index: u32) -> Result<(), LabError> {
        let device = i32::try_from(index).unwrap_or(i32::MAX);
        let request = self.handle.qdisc().add(device).ingress();
        request
            .execute()
            .await
            .map_err(|error| LabError::netlink(format!("add an ingress qdisc to {index}"), error))
    }

    /// Takes it away again.
    pub async fn remove_ingress_qdisc(&self, index: u32) -> Result<(), LabError> {
        let device = i32::try_from(index).unwrap_or(i32::MAX);
        let mut request = self.handle.qdisc().del(device);
        request.message_mut().header.parent = TcHandle::INGRESS;
        request.execute().await.map_err(|error| {
            LabError::netlink(format!("remove the ingress qdisc of {index}"), error)
        })
    }

    /// How many clsact filters an interface has at ingress and at egress.
    pub async fn filters(&self, index: u32) -> Result<[usize; 2], LabError> {
        let failed = |error| LabError::netlink(format!("list the filters of {index}"), error);
        let device = i32::try_from(index).unwrap_or(i32::MAX);
        let mut counts = [0; 2];
        for (egress, count) in [false, true].into_iter().zip(&mut counts) {
            let request = self.handle.traffic_filter(device).get();
            let request = if egress {
                request.egress()
            } else {
                request.ingress()
            };
            let mut filters = std::pin::pin!(request.execute());
            while let Some(filter) = filters.try_next().await.map_err(failed)? {
                // Each priority has a message of its own, whose handle is 0.
                *count += usize::from(filter.header.handle != TcHandle::default());
            }
        }
        Ok(counts)
    }

    /// Adds a route.
    pub async fn route(&self, to: IpNet, hop: Hop, device: u32) -> Result<(), LabError> {
        self.route_of_type(to, hop, Some(device), RouteType::Unicast)
            .await
    }

    /// Adds a route that swallows everything, for tests that need a deliberate hole.
    pub async fn blackhole(&self, to: IpNet) -> Result<(), LabError> {
        self.route_of_type(to, Hop::Direct, None, RouteType::BlackHole)
            .await
    }

    /// Says for good where a neighbour is, for tests that send its packets astray.
    pub async fn neighbour(
        &self,
        device: u32,
        address: IpAddr,
        mac: [u8; 6],
    ) -> Result<(), LabError> {
        self.handle
            .neighbours()
            .add(device, address)
            .link_layer_address(&mac)
            .state(NeighbourState::Permanent)
            .replace()
            .execute()
            .await
            .map_err(|error| LabError::netlink(format!("add neighbour {address}"), error))
    }

    async fn route_of_type(
        &self,
        to: IpNet,
        hop: Hop,
        device: Option<u32>,
        kind: RouteType,
    ) -> Result<(), LabError> {
        let what = format!("add a route to {to}");
        let invalid = || LabError::io(what.clone(), io::Error::from(io::ErrorKind::InvalidInput));
        let mut route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.network(), to.prefix_len())
            .map_err(|_| invalid())?
            .kind(kind);
        if let Some(device) = device {
            route = route.output_interface(device);
        }
        route = match hop {
            Hop::Via(router) => route.gateway(router).map_err(|_| invalid())?,
            Hop::OnLink(router) => route.gateway(router).map_err(|_| invalid())?.onlink(),
            Hop::Direct if to.addr().is_ipv4() && device.is_some() => route.scope(RouteScope::Link),
            Hop::Direct => route,
        };
        self.handle
            .route()
            .add(route.build())
            .execute()
            .await
            .map_err(|error| LabError::netlink(what.clone(), error))
    }

    async fn add(&self, link: LinkMessage, what: &str) -> Result<(), LabError> {
        self.handle
            .link()
            .add(link)
            .execute()
            .await
            .map_err(|error| LabError::netlink(what, error))
    }
}
