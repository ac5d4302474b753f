//! What is inside the network namespaces that interfaces of this node lead to.
//!
//! The kernel tells it over netlink to whoever has `CAP_NET_ADMIN` over them, by the number that the agent's own namespace has
//! for each: none has to be found by a name or a process, or entered.

use std::{collections::BTreeMap, io, net::IpAddr};

use super::{
    identity::Mac,
    rtnetlink::{NamespaceId, Socket},
};

/// What is inside a namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Inside {
    /// The addresses, each with the index of its interface.
    pub addresses: Vec<(IpAddr, u32)>,
    /// The hardware addresses by interface.
    pub macs: BTreeMap<u32, Mac>,
}

impl Inside {
    /// Reads it. Fails if the namespace has gone.
    pub fn read(socket: &mut Socket, namespace: NamespaceId) -> io::Result<Self> {
        let links = socket.links(Some(namespace))?.into_iter();
        Ok(Self {
            macs: links
                .filter_map(|link| Some((link.index, link.mac?)))
                .collect(),
            addresses: socket.addresses(Some(namespace))?,
        })
    }
}
