//! The kernel's connection tracking, asked over netlink: who opened a conversation, and to whom it was translated.
//!
//! Only read. A kernel without it, or a node on which nothing turns it on, knows no connection.

mod message;

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use netpol_common::Address;
use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
        setsockopt, socket, sockopt,
    },
    time::{TimeVal, TimeValLike as _},
};

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

/// How long a dump may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// A netlink socket. It belongs to the namespace in which its thread was when it was opened.
pub struct Conntrack {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Conntrack {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// If this kernel has no netfilter over netlink.
    pub fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // The kernel answers at once or not at all.
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(1))?;
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; 64 << 10],
        })
    }

    /// The connection of which this is a packet, in either direction; `None` if there is none.
    ///
    /// # Errors
    ///
    /// If this kernel has no connection tracking, or does not answer.
    pub fn find(&mut self, tuple: &Tuple) -> io::Result<Option<Connection>> {
        let mut found = None;
        match self.ask(&message::query(tuple), |c| found = Some(c)) {
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
        self.ask(&message::dump(), each)
    }

    fn ask(
        &mut self,
        question: &message::Question,
        mut each: impl FnMut(Connection),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = question.encode(self.sequence);
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let end = Instant::now() + PATIENCE;
        loop {
            let length = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            for message in message::messages(&self.buffer[..length]) {
                if message.sequence != self.sequence {
                    continue;
                }
                match message.content {
                    message::Content::Done => return Ok(()),
                    message::Content::Error(0) => return Ok(()),
                    message::Content::Error(code) => {
                        return Err(io::Error::from_raw_os_error(-code));
                    }
                    message::Content::Connection(connection) => each(connection),
                    message::Content::Other => {}
                }
                if !question.dump {
                    return Ok(());
                }
            }
            if Instant::now() > end {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}
