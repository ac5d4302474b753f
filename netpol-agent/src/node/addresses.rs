//! The node's own addresses.

use std::{collections::BTreeSet, io, net::IpAddr};

use super::rtnetlink::Socket;

/// The addresses of all interfaces of the agent's namespace, loopback and link-local ones included.
pub(super) fn read(socket: &mut Socket) -> io::Result<BTreeSet<IpAddr>> {
    Ok(socket
        .addresses(None)?
        .into_iter()
        .map(|(address, _)| address)
        .collect())
}
