//! Servers: what a pod or host answers on, and what it remembers of who came.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::{AbortHandle, spawn_local},
};

use super::{dns::Names, sctp};
use crate::table::Port;

/// What a UDP probe, or a request on a TCP connection, begins with; its nonce follows.
pub(super) const PING_MAGIC: [u8; 8] = *b"npl-ping";
/// What a client sends first on a TCP connection that is to be kept for a test; its id follows.
pub(super) const HOLD_MAGIC: [u8; 8] = *b"npl-hold";

/// What has come in at a party.
#[derive(Debug, Default)]
pub struct Inbox {
    nonces: Mutex<HashSet<u64>>,
    held: Mutex<HashMap<u64, TcpStream>>,
}

impl Inbox {
    /// Whether a probe with this nonce arrived.
    pub fn has(&self, nonce: u64) -> bool {
        locked(&self.nonces).contains(&nonce)
    }

    /// How many of these nonces arrived.
    pub fn count(&self, nonces: impl IntoIterator<Item = u64>) -> u64 {
        let seen = locked(&self.nonces);
        nonces
            .into_iter()
            .filter(|nonce| seen.contains(nonce))
            .count() as u64
    }

    /// Takes the server's end of a connection that a test holds.
    pub(super) fn take_held(&self, id: u64) -> Option<TcpStream> {
        locked(&self.held).remove(&id)
    }

    fn note(&self, nonce: u64) {
        locked(&self.nonces).insert(nonce);
    }
}

/// A panic elsewhere does not make a set of numbers wrong.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the servers of a party, on its addresses. Must be called inside its namespace. SCTP is always answered (ABORT
/// where nothing listens), as a kernel with SCTP would.
pub(super) fn start(
    addresses: &[IpAddr],
    ports: &[Port],
    inbox: &Arc<Inbox>,
    names: &Arc<Names>,
) -> io::Result<Vec<AbortHandle>> {
    let sctp: BTreeSet<u16> = ports
        .iter()
        .filter_map(|port| match port {
            Port::Sctp(port) => Some(*port),
            _ => None,
        })
        .collect();
    let mut tasks = Vec::new();
    for address in addresses {
        for port in ports {
            match *port {
                Port::Tcp(port) => {
                    let listener = tcp_listener(SocketAddr::new(*address, port))?;
                    let (inbox, names) = (Arc::clone(inbox), Arc::clone(names));
                    tasks.push(spawn_local(serve_tcp(listener, inbox, names)).abort_handle());
                }
                Port::Udp(port) => {
                    let socket = udp_socket(SocketAddr::new(*address, port))?;
                    let (inbox, names) = (Arc::clone(inbox), Arc::clone(names));
                    tasks.push(spawn_local(serve_udp(socket, inbox, names)).abort_handle());
                }
                Port::Sctp(_) | Port::Icmp => {}
            }
        }
        let socket = raw_socket(*address, sctp::PROTOCOL)?;
        socket.bind(&SockAddr::from(SocketAddr::new(*address, 0)))?;
        let socket = as_udp(socket)?;
        let server = serve_sctp(socket, address.is_ipv4(), sctp.clone(), Arc::clone(inbox));
        tasks.push(spawn_local(server).abort_handle());
    }
    Ok(tasks)
}

fn tcp_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

/// Not alone on its port: a test may hold conversations of its own there.
fn udp_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    large_buffer(&socket)?;
    as_udp(socket)
}

/// Room for what arrives while the thread of a socket waits for its turn: no datagram may be lost by the lab itself. Goes
/// beyond `net.core.rmem_max`, which needs root.
pub(super) fn large_buffer(socket: &impl AsRawFd) -> io::Result<()> {
    let bytes: libc::c_int = 16 << 20;
    // SAFETY: the pointer is to a live integer of the size that is given, which the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A raw socket of a protocol, in the family of an address.
pub(super) fn raw_socket(address: IpAddr, protocol: i32) -> io::Result<Socket> {
    let domain = Domain::for_address(SocketAddr::new(address, 0));
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Any datagram-like socket under tokio: it only sends and receives.
pub(super) fn as_udp(socket: Socket) -> io::Result<UdpSocket> {
    UdpSocket::from_std(std::net::UdpSocket::from(OwnedFd::from(socket)))
}

/// What a raw socket received, without the IPv4 header that the kernel leaves in front.
pub(super) fn raw_payload(received: &[u8], v4: bool) -> Option<&[u8]> {
    if !v4 {
        return Some(received);
    }
    let header = usize::from(received.first()? & 0xf) * 4;
    received.get(header..)
}

async fn serve_tcp(listener: TcpListener, inbox: Arc<Inbox>, names: Arc<Names>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                spawn_local(serve_stream(stream, Arc::clone(&inbox), Arc::clone(&names)));
            }
            // The client is gone already, or file descriptors are short for a moment.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// Echoes message by message, unless the client asks for the connection to be held.
async fn serve_stream(mut stream: TcpStream, inbox: Arc<Inbox>, names: Arc<Names>) {
    let mut message = [0; 16];
    while stream.read_exact(&mut message[..2]).await.is_ok() {
        // No question is as long as the lab's magic numbers would say.
        if !PING_MAGIC.starts_with(&message[..2]) {
            let length = u16::from_be_bytes([message[0], message[1]]);
            if answer_by_tcp(&mut stream, &names, length).await.is_err() {
                return;
            }
            continue;
        }
        if stream.read_exact(&mut message[2..]).await.is_err() {
            return;
        }
        let (magic, number) = halves(&message);
        if magic == HOLD_MAGIC {
            locked(&inbox.held).insert(number, stream);
            return;
        }
        if magic == PING_MAGIC {
            inbox.note(number);
        }
        if stream.write_all(&message).await.is_err() {
            return;
        }
    }
}

/// RFC 1035, 4.2.2: two bytes of length before each message.
async fn answer_by_tcp(stream: &mut TcpStream, names: &Names, length: u16) -> io::Result<()> {
    let mut question = vec![0; usize::from(length)];
    stream.read_exact(&mut question).await?;
    let here = stream.local_addr()?.ip().to_canonical();
    let answer = names.is_server(here).then(|| names.answer(&question));
    let answer = answer.flatten().ok_or(io::ErrorKind::InvalidData)?;
    stream.write_u16(answer.len() as u16).await?;
    stream.write_all(&answer).await
}

async fn serve_udp(socket: UdpSocket, inbox: Arc<Inbox>, names: Arc<Names>) {
    let is_here = |names: &Names| {
        socket
            .local_addr()
            .is_ok_and(|here| names.is_server(here.ip()))
    };
    let mut buffer = [0; 2048];
    loop {
        // An error belongs to an earlier answer that could not be delivered.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let mut is_ping = false;
        if let Some(first) = buffer[..length].first_chunk::<16>() {
            let (magic, nonce) = halves(first);
            is_ping = magic == PING_MAGIC;
            if is_ping {
                inbox.note(nonce);
            }
        }
        if !is_ping
            && is_here(&names)
            && let Some(answer) = names.answer(&buffer[..length])
        {
            let _ = socket.send_to(&answer, client).await;
            continue;
        }
        let _ = socket.send_to(&buffer[..length], client).await;
    }
}

async fn serve_sctp(socket: UdpSocket, v4: bool, ports: BTreeSet<u16>, inbox: Arc<Inbox>) {
    let mut buffer = [0; 2048];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let packet = raw_payload(&buffer[..length], v4).and_then(sctp::Packet::decode);
        let Some(packet) = packet else {
            continue;
        };
        let listening = ports.contains(&packet.to);
        if let Some(answer) = packet.answer(listening) {
            if let sctp::Chunk::Init(tag) = packet.chunk {
                inbox.note(u64::from(tag));
            }
            // A raw IPv6 socket takes the "port" for a protocol: it must be 0.
            let client = SocketAddr::new(client.ip(), 0);
            let _ = socket.send_to(&answer.encode(), client).await;
        }
    }
}

/// A message's magic and number.
fn halves(bytes: &[u8; 16]) -> ([u8; 8], u64) {
    let [a @ .., _, _, _, _, _, _, _, _] = *bytes;
    let [_, _, _, _, _, _, _, _, b @ ..] = *bytes;
    (a, u64::from_be_bytes(b))
}

/// A message of this magic and number.
pub(super) fn message(magic: [u8; 8], nonce: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&magic);
    bytes[8..].copy_from_slice(&nonce.to_be_bytes());
    bytes
}
