//! The kernel's connection tracking, asked over netlink: who opened a conversation, and to whom it was translated.
//!
//! Only read. A kernel without it, or a node on which nothing turns it on, knows no connection.

mod message;

use std::io;

use netpol_common::Address;
use nix::sys::socket::SockProtocol;

use crate::netlink;

/// The header of a packet, as connection tracking names it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tuple {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// IP protocol number: TCP, UDP, SCTP, ICMP or ICMPv6.
    pub protocol: u8,
    /// Source port in host byte order, or the identifier of an ICMP echo.
    pub source_port: u16,
    /// Destination port in host byte order, or the identifier of an ICMP echo.
    pub destination_port: u16,
    /// Of ICMP: the type.
    pub icmp_type: u8,
}

/// A connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connection {
    /// The packets of who opened it, as they were sent.
    pub original: Tuple,
    /// The answers, as they are sent: where these differ, the connection is translated.
    pub reply: Tuple,
    /// Of TCP: whether it has ended.
    pub ended: bool,
    /// Whether there was an answer.
    pub answered: bool,
    /// The zone; 0 unless rules of the node make others.
    pub zone: u16,
}

/// A netlink socket. It belongs to the namespace in which its thread was when it was opened.
pub struct Conntrack(netlink::Socket);

impl Conntrack {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// If this kernel has no netfilter over netlink.
    pub fn open() -> io::Result<Self> {
        netlink::Socket::open(SockProtocol::NetlinkNetFilter, 0).map(Self)
    }

    /// The connection of which this is a packet, in either direction; `None` if there is none.
    ///
    /// # Errors
    ///
    /// If this kernel has no connection tracking, or does not answer.
    pub fn find(&mut self, tuple: &Tuple) -> io::Result<Option<Connection>> {
        let mut found = None;
        match self.ask(0, &message::query(tuple), |c| found = Some(c)) {
            Ok(()) => Ok(found),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Every connection of both families, as far as time allows.
    ///
    /// # Errors
    ///
    /// As [`Conntrack::find`]; what was read before stays handed out.
    pub fn each(&mut self, each: impl FnMut(Connection)) -> io::Result<()> {
        self.ask(libc::NLM_F_DUMP, &message::all(), each)
    }

    fn ask(
        &mut self,
        flags: libc::c_int,
        question: &[u8],
        mut each: impl FnMut(Connection),
    ) -> io::Result<()> {
        self.0.ask(message::GET, flags, question, |kind, body| {
            if kind == message::NEW
                && let Some(connection) = message::connection(body)
            {
                each(connection);
            }
        })
    }
}
