//! One probe: knock at an address and say what became of it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::{
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout, timeout_at},
};

use super::{sctp, serve};
use crate::table::{Failure, Outcome, Port};

/// How long a TCP connection may take. The kernel repeats a SYN after one second, so one lost packet does not matter.
pub(super) const TCP_PATIENCE: Duration = Duration::from_millis(1300);
/// How long an answer to a datagram may take.
const DATAGRAM_PATIENCE: Duration = Duration::from_millis(1000);
/// When an unanswered datagram is sent again.
const DATAGRAM_RETRY: Duration = Duration::from_millis(300);

/// What to knock at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: Port,
    /// What the server will recognise it by; its lower half alone for SCTP.
    pub nonce: u64,
}

/// A number that no other probe of this process has, not even its lower half, and that other processes hardly have.
pub(super) fn nonce() -> u64 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let process = u64::from(std::process::id());
    let time = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| u64::from(time.subsec_nanos()));
    ((process ^ time) << 32) | u64::from(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// What became of a probe.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report {
    /// What the prober saw.
    pub outcome: Outcome,
    /// Where a TCP probe came from, for a look at what its goal saw.
    pub from: Option<SocketAddr>,
}

impl Probe {
    /// A new probe.
    pub fn new(address: IpAddr, port: Port) -> Self {
        Self {
            address,
            port,
            nonce: nonce(),
        }
    }

    /// What the server's inbox holds if this probe arrived; `None` where a server does not see it.
    pub fn trace(&self) -> Option<u64> {
        match self.port {
            Port::Udp(_) => Some(self.nonce),
            Port::Sctp(_) => Some(u64::from(self.tag())),
            Port::Tcp(_) | Port::Icmp => None,
        }
    }

    /// Knocks. Must be called inside the namespace that the probe starts from.
    pub async fn run(self) -> Report {
        let mut from = None;
        let outcome = match self.port {
            Port::Tcp(port) => self.tcp(port, &mut from).await,
            Port::Udp(port) => self.udp(port).await,
            Port::Sctp(port) => self.sctp(port).await,
            Port::Icmp => self.echo().await,
        };
        Report {
            outcome: outcome.unwrap_or_else(|error| classify(&error)),
            from,
        }
    }

    async fn tcp(self, port: u16, from: &mut Option<SocketAddr>) -> io::Result<Outcome> {
        let goal = SocketAddr::new(self.address, port);
        let socket = Socket::new(Domain::for_address(goal), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        let begun = socket.connect(&goal.into());
        *from = socket.local_addr()?.as_socket();
        match begun.map_err(|error| (error.raw_os_error(), error)) {
            Ok(()) => return Ok(Outcome::Open),
            Err((Some(libc::EINPROGRESS), _)) => {}
            Err((_, error)) => return Err(error),
        }
        let stream = TcpStream::from_std(socket.into())?;
        match timeout(TCP_PATIENCE, stream.writable()).await {
            Ok(ready) => {
                ready?;
                match stream.take_error()? {
                    Some(error) => Err(error),
                    None => Ok(Outcome::Open),
                }
            }
            Err(_) => Ok(Outcome::Denied),
        }
    }

    async fn udp(self, port: u16) -> io::Result<Outcome> {
        let any: IpAddr = match self.address {
            IpAddr::V4(_) => [0; 4].into(),
            IpAddr::V6(_) => [0_u16; 8].into(),
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
        socket.connect(SocketAddr::new(self.address, port)).await?;
        let request = serve::message(serve::PING_MAGIC, self.nonce);
        exchange(&socket, &request, |answer| {
            (answer == request).then_some(Outcome::Open)
        })
        .await
    }

    async fn sctp(self, port: u16) -> io::Result<Outcome> {
        let v4 = self.address.is_ipv4();
        let socket = serve::raw_socket(self.address, sctp::PROTOCOL)?;
        socket.connect(&SockAddr::from(SocketAddr::new(self.address, 0)))?;
        let socket = serve::as_udp(socket)?;
        let tag = self.tag();
        // A raw socket has no port of its own: any will do, and the tag tells probes apart.
        let init = sctp::Packet {
            from: 0x8000 | (tag & 0x7fff) as u16,
            to: port,
            tag: 0,
            chunk: sctp::Chunk::Init(tag),
        };
        exchange(&socket, &init.encode(), |answer| {
            let answer = sctp::Packet::decode(serve::raw_payload(answer, v4)?)?;
            if (answer.from, answer.to, answer.tag) != (init.to, init.from, tag) {
                return None;
            }
            match answer.chunk {
                sctp::Chunk::InitAck(_) => Some(Outcome::Open),
                sctp::Chunk::Abort => Some(Outcome::Refused),
                _ => None,
            }
        })
        .await
    }

    async fn echo(self) -> io::Result<Outcome> {
        let (domain, protocol, request_type, reply_type) = match self.address {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
        };
        // A "ping socket": the kernel fills in identifier and checksum, and hands back only our own replies.
        let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::from(SocketAddr::new(self.address, 0)))?;
        let socket = serve::as_udp(socket)?;
        let nonce = self.nonce.to_be_bytes();
        let mut request = vec![request_type, 0, 0, 0, 0, 0, 0, 1];
        request.extend(nonce);
        exchange(&socket, &request, |answer| {
            (answer.first() == Some(&reply_type) && answer.get(8..) == Some(&nonce))
                .then_some(Outcome::Open)
        })
        .await
    }

    /// Never 0, which an INIT must not carry.
    fn tag(self) -> u32 {
        (self.nonce as u32).max(1)
    }
}

/// Sends, and sends again, until an answer is recognised or the time is up.
async fn exchange(
    socket: &UdpSocket,
    request: &[u8],
    recognise: impl Fn(&[u8]) -> Option<Outcome>,
) -> io::Result<Outcome> {
    let end = Instant::now() + DATAGRAM_PATIENCE;
    let mut buffer = [0; 2048];
    loop {
        socket.send(request).await?;
        let retry = end.min(Instant::now() + DATAGRAM_RETRY);
        while let Ok(received) = timeout_at(retry, socket.recv(&mut buffer)).await {
            if let Some(outcome) = recognise(&buffer[..received?]) {
                return Ok(outcome);
            }
        }
        if Instant::now() >= end {
            return Ok(Outcome::Denied);
        }
    }
}

fn classify(error: &io::Error) -> Outcome {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Outcome::Refused,
        Some(libc::ETIMEDOUT) => Outcome::Denied,
        Some(libc::EHOSTUNREACH) => Outcome::Error(Failure::HostUnreachable),
        Some(libc::ENETUNREACH) => Outcome::Error(Failure::NetUnreachable),
        Some(libc::EPERM) => Outcome::Error(Failure::NotPermitted),
        Some(libc::EACCES) => Outcome::Error(Failure::Prohibited),
        number => Outcome::Error(Failure::Errno(number.unwrap_or(libc::EIO))),
    }
}
