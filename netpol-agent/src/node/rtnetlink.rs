//! The few rtnetlink messages that the discovery needs: dumps of links and addresses, namespace numbers, and what changes.
//!
//! A socket that hears all namespaces tells by a control message, which no netlink crate hands on, where a message comes from.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        ControlMessageOwned, MsgFlags, NetlinkAddr, SockProtocol, recvmsg, setsockopt, sockopt,
    },
};

use super::identity::Mac;
use crate::netlink::{self, attribute, attributes, find, messages, text, word};

/// The number by which one network namespace knows another.
pub(super) type NamespaceId = i32;

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub up: bool,
    pub loopback: bool,
    /// Its packets have no Ethernet header.
    pub bare: bool,
    pub mac: Option<Mac>,
    /// `IFLA_INFO_KIND`, empty for hardware.
    pub kind: String,
    /// `IFLA_INFO_DATA`
    pub data: Vec<u8>,
    /// The interface at the other end, or below, lies in another namespace.
    pub elsewhere: bool,
    /// The interface at the other end and its namespace, when that is another one.
    pub peer: Option<(NamespaceId, u32)>,
}

impl Link {
    /// Whether its other end lies in another namespace: what comes in by it is what somebody there sends. Tunnels and VLANs,
    /// too, may have a part in another namespace, but they have no other end.
    pub fn leads_elsewhere(&self) -> bool {
        self.elsewhere && matches!(self.kind.as_str(), "veth" | "netkit")
    }
}

/// What a socket that hears all namespaces was told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Event {
    /// A link changed in this namespace; `None` is the socket's own.
    Link(Option<NamespaceId>),
    /// An address changed.
    Address(Option<NamespaceId>),
    /// A namespace got or lost its number.
    Namespace,
    /// The kernel dropped messages: everything may have changed.
    Lost,
}

/// `struct ifinfomsg`
const LINK_HEADER: usize = 16;
/// `struct ifaddrmsg`
const ADDRESS_HEADER: usize = 8;

const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const IFLA_TARGET_NETNSID: u16 = 46;
const IFA_TARGET_NETNSID: u16 = 10;
const RTM_NEWNSID: u16 = 88;
const RTM_DELNSID: u16 = 89;
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_NSID: u32 = 28;

/// A route netlink socket. It belongs to the namespace in which its thread was when it was opened.
pub(super) struct Socket(netlink::Socket);

impl Socket {
    /// A socket for questions.
    pub fn open() -> io::Result<Self> {
        let socket = Self::bound(0)?;
        // Without it the kernel does not look at what a dump of addresses is asked for, and answers for its own namespace.
        socket.switch_on(libc::NETLINK_GET_STRICT_CHK)?;
        Ok(socket)
    }

    /// A socket that hears of links and addresses of this namespace and of every namespace that has a number here.
    pub fn listen() -> io::Result<Self> {
        let groups = [
            RTNLGRP_LINK,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_NSID,
        ];
        let socket = Self::bound(groups.iter().fold(0, |all, group| all | 1 << (group - 1)))?;
        socket.switch_on(libc::NETLINK_LISTEN_ALL_NSID)?;
        // Bursts: a node's worth of pods may start at once.
        if setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &(4 << 20)).is_err() {
            setsockopt(&socket.as_fd(), sockopt::RcvBuf, &(4 << 20))?;
        }
        Ok(socket)
    }

    fn switch_on(&self, option: libc::c_int) -> io::Result<()> {
        let on: libc::c_int = 1;
        // SAFETY: the descriptor is open, and the option's value is an int that outlives the call.
        let result = unsafe {
            libc::setsockopt(
                self.as_fd().as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        Errno::result(result)?;
        Ok(())
    }

    fn bound(groups: u32) -> io::Result<Self> {
        netlink::Socket::open(SockProtocol::NetlinkRoute, groups).map(Self)
    }

    /// All interfaces of a namespace, by the number that the socket's own one has for it, or of the socket's own one.
    pub fn links(&mut self, namespace: Option<NamespaceId>) -> io::Result<Vec<Link>> {
        let mut body = vec![0; LINK_HEADER];
        if let Some(id) = namespace {
            attribute(&mut body, IFLA_TARGET_NETNSID, &id.to_ne_bytes());
        }
        attribute(
            &mut body,
            IFLA_EXT_MASK,
            &RTEXT_FILTER_SKIP_STATS.to_ne_bytes(),
        );
        let mut links = Vec::new();
        self.0.ask(
            libc::RTM_GETLINK,
            libc::NLM_F_DUMP,
            &body,
            |kind, message| {
                if kind == libc::RTM_NEWLINK {
                    links.extend(link(message));
                }
            },
        )?;
        Ok(links)
    }

    /// All addresses of a namespace, as [`Socket::links`], each with the index of its interface.
    pub fn addresses(&mut self, namespace: Option<NamespaceId>) -> io::Result<Vec<(IpAddr, u32)>> {
        let mut body = vec![0; ADDRESS_HEADER];
        if let Some(id) = namespace {
            attribute(&mut body, IFA_TARGET_NETNSID, &id.to_ne_bytes());
        }
        let mut addresses = Vec::new();
        self.0.ask(
            libc::RTM_GETADDR,
            libc::NLM_F_DUMP,
            &body,
            |kind, message| {
                if kind == libc::RTM_NEWADDR {
                    addresses.extend(address(message));
                }
            },
        )?;
        Ok(addresses)
    }

    /// What happened since the last call; never waits.
    pub fn events(&mut self) -> io::Result<Vec<Event>> {
        let mut events = Vec::new();
        loop {
            match self.receive() {
                Ok(more) => events.extend(more),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => events.push(Event::Lost),
                Err(e) => return Err(e.into()),
            }
        }
        events.sort_unstable();
        events.dedup();
        Ok(events)
    }

    fn receive(&mut self) -> Result<Vec<Event>, Errno> {
        let fd = self.0.as_fd().as_raw_fd();
        let mut control = cmsg_space!(libc::c_int);
        let mut parts = [io::IoSliceMut::new(&mut self.0.buffer)];
        let received =
            recvmsg::<NetlinkAddr>(fd, &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
        let from = received.cmsgs()?.find_map(|c| match c {
            ControlMessageOwned::Unknown(c)
                if c.cmsg_header.cmsg_level == libc::SOL_NETLINK
                    && c.cmsg_header.cmsg_type == libc::NETLINK_LISTEN_ALL_NSID =>
            {
                c.data_bytes.get(..4).and_then(word).map(u32::cast_signed)
            }
            _ => None,
        });
        let length = received.bytes;
        Ok(messages(&self.0.buffer[..length])
            .filter_map(|(kind, ..)| match kind {
                libc::RTM_NEWLINK | libc::RTM_DELLINK => Some(Event::Link(from)),
                libc::RTM_NEWADDR | libc::RTM_DELADDR => Some(Event::Address(from)),
                RTM_NEWNSID | RTM_DELNSID => Some(Event::Namespace),
                _ => None,
            })
            .collect())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn link(message: &[u8]) -> Option<Link> {
    let index = word(message.get(4..8)?)?;
    let flags = word(message.get(8..12)?)?.cast_signed();
    let mut link = Link {
        index,
        up: flags & libc::IFF_UP != 0,
        loopback: flags & libc::IFF_LOOPBACK != 0,
        bare: message.get(2..4)? != libc::ARPHRD_ETHER.to_ne_bytes(),
        ..Link::default()
    };
    let (mut peer, mut namespace) = (None, None);
    for (kind, value) in attributes(message, LINK_HEADER) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_ADDRESS => link.mac = value.try_into().ok(),
            libc::IFLA_LINK => peer = word(value),
            libc::IFLA_LINK_NETNSID => namespace = word(value).map(u32::cast_signed),
            libc::IFLA_LINKINFO => {
                for (kind, value) in attributes(value, 0) {
                    match kind {
                        libc::IFLA_INFO_KIND => link.kind = text(value),
                        libc::IFLA_INFO_DATA => link.data = value.to_owned(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link.elsewhere = namespace.is_some();
    link.peer = namespace.filter(|&id| id >= 0).zip(peer);
    Some(link)
}

fn address(message: &[u8]) -> Option<(IpAddr, u32)> {
    let index = word(message.get(4..8)?)?;
    let find = |wanted| find(message, ADDRESS_HEADER, wanted);
    // IFA_LOCAL is the interface's own address; on a point-to-point interface IFA_ADDRESS is the other end's.
    let value = find(libc::IFA_LOCAL).or_else(|| find(libc::IFA_ADDRESS))?;
    let address = match value.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into(),
        _ => return None,
    };
    Some((address, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_there_and_has_no_peer() {
        let mut socket = Socket::open().expect("netlink needs no privilege");
        let links = socket.links(None).expect("a dump");
        let loopback = links.iter().find(|link| link.name == "lo").expect("lo");
        assert_eq!((loopback.index, &loopback.peer), (1, &None));
        assert!(loopback.loopback && !loopback.leads_elsewhere());
    }

    #[test]
    fn a_cut_off_message_is_ignored() {
        assert_eq!(link(&[0; 3]), None);
        assert_eq!(address(&[0; 8]), None);
    }
}
