//! The other end of the agent's socket.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use crate::agent::{Request, Response};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Nobody listens.
    #[error("no agent at {socket}: is `netpol-agent run` running, and with this --run-dir?")]
    NoAgent { socket: String },
    /// We may not.
    #[error("cannot open {socket}: {source}; run this as root")]
    Forbidden { socket: String, source: io::Error },
    /// It went away.
    #[error("the agent at {socket} gave no answer: {source}")]
    NoAnswer { socket: String, source: io::Error },
    /// It is another version.
    #[error("the agent at {socket} gave an answer that this version does not understand: {reason}")]
    Answer { socket: String, reason: String },
}

impl Error {
    /// Whether an agent that starts may answer later.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::NoAgent { .. } | Self::NoAnswer { .. })
    }
}

/// Asks the agent of a run directory.
pub(super) fn ask(run_dir: &Path, request: &Request, limit: Duration) -> Result<Response, Error> {
    let path = crate::agent::socket(run_dir);
    let socket = || path.display().to_string();
    let stream = UnixStream::connect(&path).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => Error::Forbidden {
            socket: socket(),
            source,
        },
        _ => Error::NoAgent { socket: socket() },
    })?;
    let line = exchange(stream, request, limit).map_err(|source| Error::NoAnswer {
        socket: socket(),
        source,
    })?;
    let answer = |reason| Error::Answer {
        socket: socket(),
        reason,
    };
    match serde_json::from_str(&line).map_err(|e| answer(e.to_string()))? {
        Response::Error { message } => Err(answer(message)),
        response => Ok(response),
    }
}

fn exchange(mut stream: UnixStream, request: &Request, limit: Duration) -> io::Result<String> {
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    stream.write_all(&text)?;
    let mut line = String::new();
    if BufReader::new(stream).read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}
