//! Steady traffic between two parties, counted, for tests that change policies under it.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    task::{AbortHandle, spawn_local},
    time::{MissedTickBehavior, interval, timeout},
};

use super::{Inbox, Lab, error::LabError, probe, serve};
use crate::table::{Destination, Family, Party, Port};

/// How long the last answers may take once no more requests are sent, and how long a new connection may take.
const PATIENCE: Duration = Duration::from_millis(1300);

/// What kind of traffic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    /// UDP requests from one port: one flow.
    UdpFlow,
    /// Each UDP request from a new port: a new flow each.
    UdpFresh,
    /// Requests on one TCP connection, one after the other. What the network lost shows as retransmission.
    TcpStream,
    /// A new TCP connection for each request.
    TcpConnections,
}

/// What became of the requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Requests sent.
    pub sent: u64,
    /// Requests that the server saw.
    pub arrived: u64,
    /// Requests whose answer came back.
    pub answered: u64,
    /// Segments that the client's kernel sent again, a SYN included.
    pub retransmitted: u64,
}

impl Counts {
    /// Requests without an answer.
    pub const fn lost(&self) -> u64 {
        self.sent - self.answered
    }
}

/// Traffic that flows until [`Traffic::stop`] or drop.
pub struct Traffic {
    progress: Arc<Progress>,
    /// Of everybody where they may arrive.
    inboxes: Vec<Arc<Inbox>>,
    task: AbortHandle,
}

#[derive(Default)]
struct Progress {
    nonces: Mutex<Vec<u64>>,
    answered: AtomicU64,
    retransmitted: AtomicU64,
    stopping: std::sync::atomic::AtomicBool,
    started: std::sync::atomic::AtomicBool,
}

impl Progress {
    fn request(&self) -> [u8; 16] {
        let nonce = probe::nonce();
        if let Ok(mut nonces) = self.nonces.lock() {
            nonces.push(nonce);
        }
        serve::message(serve::PING_MAGIC, nonce)
    }

    fn answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }
}

impl Traffic {
    /// Starts traffic from a party to a port that another declares, one request every `pause`.
    pub fn start(
        lab: &Lab,
        from: &Party,
        to: &Destination,
        family: Family,
        load: Load,
        pause: Duration,
    ) -> Result<Self, LabError> {
        let (address, port) = lab.goal(to, family)?;
        let port = match (load, port) {
            (Load::UdpFlow | Load::UdpFresh, Port::Udp(port)) => port,
            (Load::TcpStream | Load::TcpConnections, Port::Tcp(port)) => port,
            _ => {
                return Err(LabError::NotConnected {
                    from: from.to_string(),
                    to: to.to_string(),
                    reason: "the load is of another protocol than the port".to_owned(),
                });
            }
        };
        let goal = SocketAddr::new(address, port);
        let progress = Arc::new(Progress::default());
        let shared = Arc::clone(&progress);
        let task = lab.station(from)?.worker.spawn(move || async move {
            // What goes wrong shows as requests without an answer.
            let _ = match load {
                Load::UdpFlow => udp_flow(goal, pause, &shared).await,
                Load::TcpStream => tcp_stream(goal, pause, &shared).await,
                Load::UdpFresh | Load::TcpConnections => {
                    each_anew(goal, pause, load, &shared).await
                }
            };
        });
        Ok(Self {
            progress,
            inboxes: lab
                .receivers(to, family)
                .iter()
                .map(|receiver| lab.inbox(&receiver.party).cloned())
                .collect::<Result<_, _>>()?,
            task,
        })
    }

    /// What has become of the requests so far; the newest are still under way.
    pub fn counts(&self) -> Counts {
        let nonces = self
            .progress
            .nonces
            .lock()
            .map(|nonces| nonces.clone())
            .unwrap_or_default();
        Counts {
            sent: nonces.len() as u64,
            arrived: self
                .inboxes
                .iter()
                .map(|inbox| inbox.count(nonces.iter().copied()))
                .sum(),
            answered: self.progress.answered.load(Ordering::Relaxed),
            retransmitted: self.progress.retransmitted.load(Ordering::Relaxed),
        }
    }

    /// Waits until at least this many requests were sent, for a test that wants traffic to flow before it begins.
    pub fn wait_sent(&self, requests: u64, patience: Duration) -> bool {
        let end = std::time::Instant::now() + patience;
        while std::time::Instant::now() < end {
            if self.counts().sent >= requests {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    }

    /// Sends no more, waits for the answers that are still under way, and counts.
    pub fn stop(self) -> Counts {
        self.progress.stopping.store(true, Ordering::Relaxed);
        let end = std::time::Instant::now() + PATIENCE;
        while std::time::Instant::now() < end {
            let counts = self.counts();
            if self.progress.started.load(Ordering::Relaxed) && counts.lost() == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.counts()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Ticks until the traffic is stopped.
async fn tick(clock: &mut tokio::time::Interval, progress: &Progress) -> bool {
    clock.tick().await;
    let go_on = !progress.stopping.load(Ordering::Relaxed);
    if go_on {
        progress.started.store(true, Ordering::Relaxed);
    }
    go_on
}

fn clock(pause: Duration) -> tokio::time::Interval {
    let mut clock = interval(pause);
    clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
    clock
}

async fn udp_socket(goal: SocketAddr) -> io::Result<UdpSocket> {
    let any: std::net::IpAddr = match goal {
        SocketAddr::V4(_) => [0; 4].into(),
        SocketAddr::V6(_) => [0_u16; 8].into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    serve::large_buffer(&socket)?;
    socket.connect(goal).await?;
    Ok(socket)
}

async fn udp_flow(goal: SocketAddr, pause: Duration, progress: &Arc<Progress>) -> io::Result<()> {
    let socket = Arc::new(udp_socket(goal).await?);
    let answers = Arc::clone(&socket);
    let counted = Arc::clone(progress);
    spawn_local(async move {
        let mut buffer = [0; 64];
        // An error is an ICMP message about an earlier request: that one stays unanswered.
        while Arc::strong_count(&answers) > 1 {
            if let Ok(Ok(16)) = timeout(PATIENCE, answers.recv(&mut buffer)).await {
                counted.answered();
            }
        }
    });
    let mut clock = clock(pause);
    while tick(&mut clock, progress).await {
        let request = progress.request();
        let _ = socket.send(&request).await;
    }
    tokio::time::sleep(PATIENCE).await;
    Ok(())
}

async fn tcp_stream(goal: SocketAddr, pause: Duration, progress: &Arc<Progress>) -> io::Result<()> {
    let mut stream = TcpStream::connect(goal).await?;
    stream.set_nodelay(true)?;
    let mut clock = clock(pause);
    while tick(&mut clock, progress).await {
        let request = progress.request();
        stream.write_all(&request).await?;
        let mut answer = [0; 16];
        let answered = stream.read_exact(&mut answer).await;
        let retransmitted = retransmissions(&stream)?;
        progress
            .retransmitted
            .store(retransmitted, Ordering::Relaxed);
        answered?;
        progress.answered();
    }
    Ok(())
}

async fn each_anew(
    goal: SocketAddr,
    pause: Duration,
    load: Load,
    progress: &Arc<Progress>,
) -> io::Result<()> {
    let mut clock = clock(pause);
    while tick(&mut clock, progress).await {
        let request = progress.request();
        let progress = Arc::clone(progress);
        spawn_local(async move {
            let answer = timeout(PATIENCE, one(goal, load, request, &progress)).await;
            if matches!(answer, Ok(Ok(()))) {
                progress.answered();
            }
        });
    }
    Ok(())
}

async fn one(
    goal: SocketAddr,
    load: Load,
    request: [u8; 16],
    progress: &Progress,
) -> io::Result<()> {
    let mut answer = [0; 16];
    if load == Load::UdpFresh {
        let socket = udp_socket(goal).await?;
        socket.send(&request).await?;
        socket.recv(&mut answer).await?;
    } else {
        let mut stream = TcpStream::connect(goal).await?;
        stream.write_all(&request).await?;
        let answered = stream.read_exact(&mut answer).await;
        // A lost SYN is repeated within the patience: it must not pass for one that was not lost.
        let retransmitted = retransmissions(&stream)?;
        progress
            .retransmitted
            .fetch_add(retransmitted, Ordering::Relaxed);
        answered?;
    }
    Ok(())
}

/// How often the kernel has sent a segment of this connection again.
fn retransmissions(stream: &TcpStream) -> io::Result<u64> {
    // SAFETY: `tcp_info` is plain numbers; all zero is a valid value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the pointers are to a live `tcp_info` and to its size, which the kernel writes no further than.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(u64::from(info.tcpi_total_retrans))
    } else {
        Err(io::Error::last_os_error())
    }
}
