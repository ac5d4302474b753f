//! Traffic for the throughput benchmark: blocking sockets, one client and one server thread for each kind.

use std::{
    fmt,
    fs::File,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use socket2::SockRef;

use crate::lab::enter;

/// A kind of traffic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    /// As much as goes through one connection.
    Stream,
    /// Question and answer, on one connection.
    Request,
    /// A connection for each question.
    Connect,
    /// Small packets in one direction.
    Datagram,
}

/// What a stream counts as one operation.
const BLOCK: usize = 1 << 16;
/// A question, an answer, a datagram.
const SMALL: usize = 64;
/// How long nothing may come before somebody looks whether it is over.
const PATIENCE: Duration = Duration::from_millis(300);
/// The port of the first kind of traffic.
const FIRST_PORT: u16 = 7_000;

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stream => "TCP stream, 64 KiB",
            Self::Request => "TCP request and answer, 64 bytes",
            Self::Connect => "TCP connect, request, answer, close",
            Self::Datagram => "UDP datagram sent, 64 bytes",
        })
    }
}

impl Load {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Stream, Self::Request, Self::Connect, Self::Datagram];

    /// Where its server listens.
    pub const fn port(self) -> u16 {
        FIRST_PORT + self as u16
    }

    /// Sends as much as possible for so long. Returns how many operations that were, and how long it took.
    ///
    /// # Errors
    ///
    /// If a connection fails.
    pub fn run(self, server: SocketAddr, slice: Duration) -> io::Result<(u64, Duration)> {
        let mut operation: Box<dyn FnMut() -> io::Result<()>> = match self {
            Self::Stream => {
                let mut stream = connect(server)?;
                let block = vec![0; BLOCK];
                Box::new(move || stream.write_all(&block))
            }
            Self::Request => {
                let mut stream = connect(server)?;
                Box::new(move || ask(&mut stream))
            }
            Self::Connect => Box::new(move || {
                let mut stream = connect(server)?;
                ask(&mut stream)?;
                // No TIME_WAIT: one second of this would use up the ports.
                SockRef::from(&stream).set_linger(Some(Duration::ZERO))
            }),
            Self::Datagram => {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.connect(server)?;
                Box::new(move || socket.send(&[0; SMALL]).map(|_| ()))
            }
        };
        // The first ones open the flow and warm up.
        let mut operations = 0;
        let mut begin = Instant::now();
        let warm = begin + slice / 8;
        let mut warming = true;
        loop {
            operation()?;
            operations += 1;
            let now = Instant::now();
            if warming && now > warm {
                (warming, operations, begin) = (false, 0, now);
            } else if !warming && now > begin + slice {
                return Ok((operations, now - begin));
            }
        }
    }
}

fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, Duration::from_secs(2))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream) -> io::Result<()> {
    let mut bytes = [0; SMALL];
    stream.write_all(&bytes)?;
    stream.read_exact(&mut bytes)
}

/// Keeps this thread on one of the first two processors, where there are two: client and server apart, and always in the
/// same way.
pub fn on_processor(which: usize) {
    let mut only = CpuSet::new();
    let alone = thread::available_parallelism().is_ok_and(|processors| processors.get() < 2);
    if !alone && only.set(which).is_ok() {
        // Elsewhere it is measured as well.
        let _ = sched_setaffinity(Pid::from_raw(0), &only);
    }
}

/// The servers of every kind of traffic. They end on drop.
pub struct Servers {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    /// Starts them at an address of a namespace.
    ///
    /// # Errors
    ///
    /// If a port is taken.
    pub fn start(namespace: File, address: IpAddr) -> io::Result<Self> {
        let namespace = Arc::new(namespace);
        let over = Arc::new(AtomicBool::new(false));
        let mut threads = vec![];
        for load in Load::ALL {
            let namespace = Arc::clone(&namespace);
            let over = Arc::clone(&over);
            let at = SocketAddr::new(address, load.port());
            let (ready, entered) = std::sync::mpsc::channel();
            threads.push(thread::spawn(move || {
                on_processor(1);
                let bound = enter(&*namespace).and_then(|()| bind(load, at));
                let socket = match bound {
                    Ok(socket) => socket,
                    Err(error) => {
                        // The other end waits for this and for nothing else.
                        let _ = ready.send(Err(error));
                        return;
                    }
                };
                let _ = ready.send(Ok(()));
                while !over.load(Ordering::Relaxed) {
                    // A client that has gone is nothing special; the next one finds a server.
                    let _ = socket.serve(&over);
                }
            }));
            entered
                .recv()
                .unwrap_or_else(|_| Err(io::Error::other("a server ended")))?;
        }
        Ok(Self { over, threads })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

enum Bound {
    Listener(TcpListener, Load),
    Socket(UdpSocket),
}

fn bind(load: Load, at: SocketAddr) -> io::Result<Bound> {
    if load == Load::Datagram {
        let socket = UdpSocket::bind(at)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        return Ok(Bound::Socket(socket));
    }
    let listener = TcpListener::bind(at)?;
    SockRef::from(&listener).set_read_timeout(Some(PATIENCE))?;
    Ok(Bound::Listener(listener, load))
}

impl Bound {
    /// Serves one client, or as much as comes within [`PATIENCE`].
    fn serve(&self, over: &AtomicBool) -> io::Result<()> {
        let mut block = vec![0; BLOCK * 2];
        match self {
            Self::Socket(socket) => loop {
                socket.recv(&mut block)?;
                if over.load(Ordering::Relaxed) {
                    return Ok(());
                }
            },
            Self::Listener(listener, load) => {
                let (mut stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                loop {
                    let read = match stream.read(&mut block) {
                        Ok(0) => return Ok(()),
                        Ok(read) => read,
                        Err(error)
                            if error.kind() == ErrorKind::WouldBlock
                                && !over.load(Ordering::Relaxed) =>
                        {
                            continue;
                        }
                        Err(error) => return Err(error),
                    };
                    if *load != Load::Stream {
                        stream.write_all(&block[..read])?;
                    }
                }
            }
        }
    }
}
