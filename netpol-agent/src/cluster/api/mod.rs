//! A live API server.
//!
//! A thread of its own lists and watches each kind ([`reflector`]), trims what comes, and hands differences to the agent
//! through one bounded channel: an agent that is busy slows the connections down instead of collecting what they bring.

mod access;
mod check;
mod held;
mod reflector;
mod request;
mod timing;
mod wire;

use std::{
    sync::{Arc, mpsc as blocking},
    thread,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

pub use self::{
    access::{Access, AccessError},
    timing::Timing,
};
use self::{
    reflector::{Reflector, Report},
    request::Connection,
};
use super::{Away, Kind, Problem, Source, Update};

/// The kinds that are read. No EndpointSlices: a packet to a Service is judged where its real destination is known.
const KINDS: [Kind; 4] = [
    Kind::Namespace,
    Kind::Pod,
    Kind::NetworkPolicy,
    Kind::Service,
];

/// Reports that wait for the agent.
const REPORTS: usize = 16;

/// A source of objects: an API server, listed and watched.
pub struct Api {
    url: String,
    tickets: watch::Sender<u64>,
    reports: mpsc::Receiver<Report>,
    parts: [Part; KINDS.len()],
    problems: Arc<[Problem]>,
}

/// What is known of one kind.
#[derive(Default)]
struct Part {
    version: u64,
    complete: bool,
    covers: u64,
    unanswered: Option<Arc<str>>,
    away: Option<Arc<Away>>,
    problems: Arc<[Problem]>,
}

impl Api {
    /// Starts to read an API server, which need not be there.
    ///
    /// # Errors
    ///
    /// If it is not known where it is, or the credentials cannot be read.
    pub fn open(access: Access, timing: Timing) -> Result<Self, AccessError> {
        let (told, start) = blocking::sync_channel(1);
        let (tickets, asked) = watch::channel(0);
        let (send, reports) = mpsc::channel(REPORTS);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(AccessError::Thread)?;
        thread::Builder::new()
            .name("api".into())
            .spawn(move || {
                runtime.block_on(async move {
                    match reflectors(&access, timing, &asked, &send).await {
                        Ok((url, reflectors)) => {
                            let _ = told.send(Ok(url));
                            follow(reflectors, send).await;
                        }
                        Err(e) => drop(told.send(Err(e))),
                    }
                });
                // Nobody waits for a name that is being looked up.
                runtime.shutdown_background();
            })
            .map_err(AccessError::Thread)?;
        let gone = |_| AccessError::Thread(std::io::Error::other("it has ended"));
        Ok(Self {
            url: start.recv().map_err(gone)??,
            tickets,
            reports,
            parts: Default::default(),
            problems: Arc::default(),
        })
    }

    fn merge(&mut self, report: Report) -> Update {
        let part = &mut self.parts[report.kind as usize];
        // None while everything is listed again.
        if report.version > 0 {
            part.version = report.version;
        }
        part.complete = report.complete;
        part.covers = report.covers;
        part.unanswered = report.unanswered;
        part.away = report.away;
        if let Some(problems) = report.problems {
            part.problems = problems;
            let all = self.parts.iter().flat_map(|part| part.problems.iter());
            self.problems = all.cloned().collect();
        }
        let parts = &self.parts;
        // The first that was lost.
        let away = parts.iter().filter_map(|part| part.away.as_ref());
        Update {
            changes: report.changes,
            revision: parts
                .iter()
                .map(|part| part.version)
                .max()
                .unwrap_or(0)
                .to_string(),
            problems: Arc::clone(&self.problems),
            complete: parts.iter().all(|part| part.complete),
            covers: parts.iter().map(|part| part.covers).min().unwrap_or(0),
            unanswered: parts.iter().find_map(|part| part.unanswered.clone()),
            away: away.min_by_key(|away| away.since).cloned(),
        }
    }
}

impl Source for Api {
    fn describe(&self) -> String {
        format!("the API server at {}", self.url)
    }

    fn reread(&self, ticket: u64) {
        self.tickets.send_if_modified(|last| {
            let newer = ticket > *last;
            *last = ticket.max(*last);
            newer
        });
    }

    async fn next(&mut self) -> Option<Update> {
        let report = self.reports.recv().await?;
        Some(self.merge(report))
    }
}

async fn reflectors(
    access: &Access,
    timing: Timing,
    tickets: &watch::Receiver<u64>,
    reports: &mpsc::Sender<Report>,
) -> Result<(String, Vec<Reflector>), AccessError> {
    let (_, url) = access.client(&timing).await?;
    let mut reflectors = Vec::new();
    for kind in KINDS {
        let connection = Connection::open(access.clone(), kind, timing).await?;
        reflectors.push(Reflector::new(
            connection,
            timing,
            tickets.clone(),
            reports.clone(),
        ));
    }
    Ok((url, reflectors))
}

/// Runs until nobody listens, or one of them has ended.
async fn follow(reflectors: Vec<Reflector>, reports: mpsc::Sender<Report>) {
    let mut tasks: JoinSet<()> = reflectors.into_iter().map(Reflector::run).collect();
    tokio::select! {
        () = reports.closed() => {}
        ended = tasks.join_next() => {
            if let Some(Err(e)) = ended {
                tracing::error!(error = %e, "a thread that reads the API server has failed");
            }
        }
    }
}
