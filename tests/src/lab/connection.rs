//! A TCP connection that a test keeps, with both ends in its hands.

use std::{
    collections::HashSet,
    io,
    net::SocketAddr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::{AbortHandle, spawn_local},
    time::timeout,
};

use super::{Lab, error::LabError, probe, serve, worker::Worker};
use crate::table::{Destination, Family, Party, Port};

/// One end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Who opened it.
    Client,
    /// Who accepted it.
    Server,
}

/// A live TCP connection between two parties. Closed on drop.
pub struct Connection {
    client: End,
    server: End,
    accepted_by: Party,
    seen_as: SocketAddr,
}

impl Connection {
    /// Opens a connection from a party to a TCP port that another one declares.
    pub fn open(
        lab: &Lab,
        from: &Party,
        to: &Destination,
        family: Family,
    ) -> Result<Self, LabError> {
        let failed = |reason: String| LabError::NotConnected {
            from: from.to_string(),
            to: to.to_string(),
            reason,
        };
        let (address, Port::Tcp(port)) = lab.goal(to, family)? else {
            return Err(failed("only TCP connections can be held".to_owned()));
        };
        let goal = SocketAddr::new(address, port);
        let id = probe::nonce();
        let near = &lab.station(from)?.worker;
        let stream = near.run(move || async move {
            let connected = timeout(probe::TCP_PATIENCE, async {
                let mut stream = TcpStream::connect(goal).await?;
                stream.set_nodelay(true)?;
                let greeting = serve::message(serve::HOLD_MAGIC, id);
                stream.write_all(&greeting).await?;
                Ok::<_, io::Error>(stream)
            });
            connected
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        });
        let near_stream = stream.map_err(|error| failed(error.to_string()))?;
        let receivers = lab.receivers(to, family);
        let end = Instant::now() + probe::TCP_PATIENCE;
        let (receiver, far_stream) = loop {
            let held = receivers.iter().find_map(|receiver| {
                let stream = lab.inbox(&receiver.party).ok()?.take_held(id)?;
                Some((receiver, stream))
            });
            match held {
                Some(held) => break held,
                None if Instant::now() > end => {
                    let reason = "it opened, but its first bytes did not arrive";
                    return Err(failed(reason.to_owned()));
                }
                None => thread::sleep(Duration::from_millis(1)),
            }
        };
        let seen_as = far_stream
            .peer_addr()
            .map_err(|error| failed(error.to_string()))?;
        let far = &lab.station(&receiver.party)?.worker;
        Ok(Self {
            client: End::start(near, near_stream),
            server: End::start(far, far_stream),
            accepted_by: receiver.party.clone(),
            seen_as,
        })
    }

    /// Who accepted it: of a Service, the backend.
    pub const fn accepted_by(&self) -> &Party {
        &self.accepted_by
    }

    /// The client's address as its server sees it.
    pub const fn seen_as(&self) -> SocketAddr {
        self.seen_as
    }

    /// Sends a message from one side and says whether it arrived at the other in time. One that did not is still in the
    /// kernel's hands, which will repeat it.
    pub fn send(&self, from: Side, patience: Duration) -> bool {
        let (sender, receiver) = match from {
            Side::Client => (&self.client, &self.server),
            Side::Server => (&self.server, &self.client),
        };
        let nonce = probe::nonce();
        // An end that broke has no writer any more, and nothing arrives.
        let _ = sender.outgoing.send(nonce);
        receiver.incoming.wait_for(nonce, patience)
    }

    /// Sends a message each way, the client first; says whether both arrived.
    pub fn ping_pong(&self, patience: Duration) -> bool {
        self.send(Side::Client, patience) && self.send(Side::Server, patience)
    }

    /// Why one end is closed; `None` while it is open.
    pub fn closed(&self, side: Side) -> Option<String> {
        let end = match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        };
        end.incoming.lock().closed.clone()
    }
}

struct End {
    outgoing: mpsc::UnboundedSender<u64>,
    incoming: Arc<Incoming>,
    tasks: [AbortHandle; 2],
}

impl End {
    fn start(worker: &Worker, stream: TcpStream) -> Self {
        let (outgoing, mut queue) = mpsc::unbounded_channel::<u64>();
        let incoming = Arc::new(Incoming::default());
        let inbox = Arc::clone(&incoming);
        let tasks = worker.run(move || async move {
            let (mut reader, mut writer) = stream.into_split();
            let read = spawn_local(async move {
                loop {
                    match reader.read_u64().await {
                        Ok(nonce) => inbox.note(|received| {
                            received.nonces.insert(nonce);
                        }),
                        Err(error) => {
                            inbox.note(|received| received.closed = Some(error.to_string()));
                            return;
                        }
                    }
                }
            });
            let write = spawn_local(async move {
                while let Some(nonce) = queue.recv().await {
                    if writer.write_u64(nonce).await.is_err() {
                        return;
                    }
                }
            });
            [read.abort_handle(), write.abort_handle()]
        });
        Self {
            outgoing,
            incoming,
            tasks,
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[derive(Default)]
struct Incoming {
    received: Mutex<Received>,
    changed: Condvar,
}

#[derive(Default)]
struct Received {
    nonces: HashSet<u64>,
    closed: Option<String>,
}

impl Incoming {
    fn lock(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, change: impl FnOnce(&mut Received)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn wait_for(&self, nonce: u64, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut received = self.lock();
        loop {
            if received.nonces.contains(&nonce) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || received.closed.is_some() {
                return false;
            }
            received = self
                .changed
                .wait_timeout(received, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(received, _)| received);
        }
    }
}
