//! The agent's socket: one JSON object in a line, one JSON object in a line back.

use std::{io, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
};

use super::status::Status;

/// The name of the socket in the run directory.
pub const SOCKET: &str = "agent.sock";
/// How many requests are served at once; more wait.
const CONNECTIONS: usize = 32;
/// The longest request.
const REQUEST: u64 = 4096;
/// How long a client may take to say what it wants.
const HURRY: Duration = Duration::from_secs(5);

/// What a client asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(
    tag = "request",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Request {
    /// Tell the state.
    Status,
    /// Answer when everything that is in the source now is enforced, or when the time is up.
    Wait {
        /// How long.
        timeout_millis: u64,
    },
}

/// What the agent answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(
    tag = "response",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Response {
    /// The state.
    Status {
        /// The state.
        status: Box<Status>,
    },
    /// To [`Request::Wait`].
    Wait {
        /// Whether everything is enforced.
        done: bool,
        /// What is not, in plain words.
        missing: Vec<String>,
    },
    /// The request makes no sense.
    Error {
        /// Why.
        message: String,
    },
}

/// A request and where its answer goes.
pub(super) type Asked = (Request, oneshot::Sender<Response>);

/// Opens the socket and serves it in the background. The caller holds the lock of the run directory.
pub(super) fn serve(path: &Path) -> io::Result<mpsc::Receiver<Asked>> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let (ask, asked) = mpsc::channel(CONNECTIONS);
    tokio::spawn(accept(listener, ask));
    Ok(asked)
}

async fn accept(listener: UnixListener, ask: mpsc::Sender<Asked>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let ask = ask.clone();
                tokio::spawn(async move {
                    if let Err(e) = answer(stream, ask).await {
                        tracing::debug!(error = %e, "a client of the socket went away");
                    }
                    drop(place);
                });
            }
            Err(e) => {
                tracing::warn!(error = %e, "cannot accept a client on the socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, ask: mpsc::Sender<Asked>) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read.take(REQUEST));
    let mut line = String::new();
    tokio::time::timeout(HURRY, read.read_line(&mut line)).await??;
    let response = match serde_json::from_str(&line) {
        Err(e) => Response::Error {
            message: format!("not a request: {e}"),
        },
        Ok(request) => {
            let (reply, answer) = oneshot::channel();
            if ask.send((request, reply)).await.is_err() {
                return Ok(());
            }
            let gone = async {
                // A client that hangs up ends its wait.
                let mut rest = [0];
                while !matches!(read.read(&mut rest).await, Ok(0) | Err(_)) {}
            };
            tokio::select! {
                Ok(response) = answer => response,
                () = gone => return Ok(()),
                else => return Ok(()),
            }
        }
    };
    let mut text = serde_json::to_vec(&response)?;
    text.push(b'\n');
    tokio::time::timeout(HURRY, write.write_all(&text)).await?
}
