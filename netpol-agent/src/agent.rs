//! The agent: one loop that joins objects, interfaces, the compiler and the kernel.
//!
//! A change goes: source or node -> index -> tables (add) -> endpoints (flip) -> epoch; then, in the background, a grace
//! period, and what nobody refers to any more is taken away. A change never waits for the background work of another.

mod control;
mod drops;
mod endpoints;
mod enforcer;
mod health;
mod hooks;
mod http;
mod kernel;
mod metrics;
mod newcomers;
mod repair;
mod status;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    future::{Future, pending},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use netpol_common::Event;
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use self::{
    control::Asked,
    drops::Drops,
    endpoints::Orders,
    enforcer::{Enforcer, Grace},
    health::{Progress, Question},
};
pub use self::{
    control::{Request, Response, SOCKET},
    status::{
        AwayStatus, DevicesStatus, DropStatus, InterfaceStatus, IsolationStatus, PacketStatus,
        PendingStatus, PodStatus, PolicyStatus, ProblemStatus, SourceStatus, Status, TableStatus,
    },
};
use crate::{
    cluster::{Away, Problem, Source, Update},
    dataplane::{self, Dataplane},
    node::Discovery,
    policy::object::ObjectKey,
};

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node whose pods are local: `spec.nodeName`.
    pub node: String,
    /// The directory of the socket; its lock is held by the caller.
    pub run_dir: PathBuf,
    /// Pods whose packets are logged.
    pub trace: BTreeSet<ObjectKey>,
    /// Pods may send under addresses that are not theirs, and receive what is for others.
    pub allow_spoofing: bool,
    /// Where metrics and health are served, if anywhere.
    pub metrics: Option<SocketAddr>,
}

/// An error that ends the agent. What is pinned stays in force.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket.
    #[error("cannot open the socket {}: {source}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The thread that serves metrics and health.
    #[error("cannot start to serve metrics: {0}")]
    Metrics(io::Error),
    /// Netlink.
    #[error("cannot listen to changes of network interfaces over netlink: {0}")]
    Discovery(io::Error),
    /// The log of traced packets.
    #[error(transparent)]
    Dataplane(#[from] dataplane::Error),
}

/// Runs until `stop`. Enforcement stays pinned afterwards.
///
/// # Errors
///
/// If the socket or netlink cannot be opened at the start. Later errors are reported and worked around.
pub async fn run<S: Source>(
    options: &Options,
    source: S,
    mut dataplane: Dataplane,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let socket = options.run_dir.join(SOCKET);
    let asked = control::serve(&socket).map_err(|source| Error::Socket {
        path: socket.clone(),
        source,
    })?;
    if !options.trace.is_empty() {
        tokio::spawn(follow(dataplane.tracer()?));
    }
    let drops = Drops::start(&mut dataplane);
    let progress = Progress::new(dataplane.epoch());
    let questions = match options.metrics {
        Some(address) => Some(serve_metrics(address, &dataplane, &progress)?),
        None => None,
    };
    let orders = Orders {
        trace: options.trace.clone(),
        guard: !options.allow_spoofing,
    };
    let mut agent = Agent {
        node: options.node.clone(),
        discovery: Discovery::start().map_err(Error::Discovery)?,
        enforcer: Enforcer::new(dataplane, &options.node, orders),
        origin: Origin {
            description: source.describe(),
            ..Origin::default()
        },
        source: Some(source),
        wanted: 0,
        grace: None,
        waiters: Vec::new(),
        tickets: 0,
        drops,
        progress,
    };
    agent.run(asked, questions, stop).await;
    let _ = std::fs::remove_file(&socket);
    Ok(())
}

/// Serves metrics and health; what is asked of the loop comes out of the channel.
fn serve_metrics(
    address: SocketAddr,
    dataplane: &Dataplane,
    progress: &Progress,
) -> Result<mpsc::Receiver<Question>, Error> {
    let (ask, questions) = mpsc::channel(1);
    let sources = http::Sources {
        ask,
        readings: dataplane.readings()?,
        durations: progress.durations.clone(),
    };
    http::serve(address, sources).map_err(Error::Metrics)?;
    Ok(questions)
}

/// Hands on what programs log of traced packets.
async fn follow(mut tracer: dataplane::Tracer) {
    use std::os::fd::AsFd as _;
    let ready = tracer.as_fd().try_clone_to_owned().and_then(|fd| {
        // SAFETY: the descriptor is a clone that the AsyncFd owns: it stays open and the same until it is deregistered.
        unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
    });
    let ready = match ready {
        Ok(ready) => ready,
        Err(e) => {
            tracing::error!(error = %e, "cannot follow the log of traced packets");
            return;
        }
    };
    while let Ok(mut guard) = ready.readable().await {
        tracer.flush();
        guard.clear_ready();
    }
}

/// What is known of the source.
#[derive(Default)]
struct Origin {
    description: String,
    revision: String,
    problems: Arc<[Problem]>,
    complete: bool,
    covers: u64,
    unanswered: Option<Arc<str>>,
    away: Option<Arc<Away>>,
}

impl Origin {
    /// Takes in the state of the source. Tells what is new about it.
    fn take(&mut self, update: &Update) {
        if !Arc::ptr_eq(&self.problems, &update.problems) {
            let (old, new): (BTreeSet<_>, BTreeSet<_>) = (
                self.problems.iter().collect(),
                update.problems.iter().collect(),
            );
            for problem in new.difference(&old) {
                tracing::warn!("{problem}");
            }
            for problem in old.difference(&new) {
                tracing::info!("no longer: {problem}");
            }
            self.problems = Arc::clone(&update.problems);
        }
        match (&self.away, &update.away) {
            (None, Some(away)) => tracing::warn!(
                source = self.description,
                reason = away.reason,
                "the source cannot be reached; what is enforced stays in force, this is tried again"
            ),
            (Some(away), None) => tracing::info!(
                source = self.description,
                seconds = away.since.elapsed().unwrap_or_default().as_secs(),
                "the source is reached again"
            ),
            (Some(_), Some(away)) => tracing::debug!(reason = away.reason, "still away"),
            (None, None) => {}
        }
        self.away.clone_from(&update.away);
        self.revision.clone_from(&update.revision);
        self.complete = update.complete;
        self.covers = update.covers;
        self.unanswered.clone_from(&update.unanswered);
    }

    /// Why not everything is read that was there when the ticket was given out, if that is so.
    fn behind(&self, ticket: u64) -> Option<String> {
        (self.covers < ticket).then(|| match (&self.away, &self.unanswered) {
            (Some(away), _) => format!(
                "{}: cannot be reached since {} s: {}",
                self.description,
                away.since.elapsed().unwrap_or_default().as_secs(),
                away.reason
            ),
            (None, Some(why)) => format!(
                "{}: does not say whether everything is read: {why}; it is asked again",
                self.description
            ),
            (None, None) => format!("{}: not read to the end yet", self.description),
        })
    }
}

/// A client that waits until everything is enforced.
struct Waiter {
    ticket: u64,
    end: Instant,
    reply: oneshot::Sender<Response>,
}

struct Agent<S> {
    node: String,
    /// `None` after it has ended.
    source: Option<S>,
    origin: Origin,
    discovery: Discovery,
    enforcer: Enforcer<Dataplane>,
    /// The number of the report that answers for the local pods of now.
    wanted: u64,
    grace: Option<(Grace, JoinHandle<()>)>,
    waiters: Vec<Waiter>,
    tickets: u64,
    drops: Drops,
    progress: Progress,
}

/// What ended a turn's wait.
enum Turn {
    Update(Option<Update>),
    Report,
    Asked(Asked),
    Question(Question),
    Drops(Vec<Event>),
    Grace,
    Time,
}

impl<S: Source> Agent<S> {
    async fn run(
        &mut self,
        mut asked: mpsc::Receiver<Asked>,
        mut questions: Option<mpsc::Receiver<Question>>,
        stop: impl Future<Output = ()>,
    ) {
        let mut stop = std::pin::pin!(stop);
        let mut busy = false;
        loop {
            let timer = self.timer(busy);
            let turn = tokio::select! {
                biased;
                // Updates late, because they may never stop coming: every turn takes what has come of them anyway.
                () = &mut stop => return,
                Ok(()) = self.discovery.reports.changed() => Turn::Report,
                () = over(&mut self.grace) => Turn::Grace,
                Some(asked) = asked.recv() => Turn::Asked(asked),
                question = health::next(&mut questions) => Turn::Question(question),
                batch = self.drops.next() => Turn::Drops(batch),
                update = next(&mut self.source) => Turn::Update(update),
                () = timer => Turn::Time,
            };
            match turn {
                Turn::Update(update) => self.take(update),
                Turn::Report => self.look(),
                Turn::Grace => {
                    if let Some((grace, _)) = self.grace.take() {
                        self.enforcer.settle(grace);
                    }
                }
                Turn::Asked((request, reply)) => self.answer(request, reply),
                Turn::Question(reply) => {
                    let _ = reply.send(self.vitals());
                }
                Turn::Drops(batch) => self.drops.take(&batch, &self.enforcer),
                Turn::Time => {
                    let due = |f: &enforcer::Failure| f.retry <= Instant::now();
                    if self.enforcer.failure.as_ref().is_some_and(due) {
                        self.enforcer.retry();
                    }
                }
            }
            // A burst is one change.
            while let Some(Some(update)) =
                self.source.as_mut().and_then(|s| s.next().now_or_never())
            {
                self.take(Some(update));
            }
            self.open_gate();
            busy = self.enforcer.work();
            self.note_progress();
            self.serve_waiters();
            self.drops.tell(&self.enforcer);
            if self.grace.is_none()
                && let Some(grace) = self.enforcer.wants_grace()
            {
                self.grace = Some((grace, tokio::task::spawn_blocking(dataplane::grace)));
            }
        }
    }

    /// When to go on though nothing happens: at once when there is work, or when something is due.
    fn timer(&self, busy: bool) -> Pin<Box<dyn Future<Output = ()>>> {
        if busy {
            return Box::pin(tokio::task::yield_now());
        }
        let due = self.enforcer.deadline();
        let end = self.waiters.iter().map(|w| w.end).min();
        let told = self.drops.due();
        match due.into_iter().chain(end).chain(told).min() {
            Some(due) => Box::pin(tokio::time::sleep_until(due.into())),
            None => Box::pin(pending()),
        }
    }

    fn take(&mut self, update: Option<Update>) {
        let Some(update) = update else {
            tracing::error!(
                source = self.origin.description,
                "the source has ended; what is enforced stays in force; restart the agent"
            );
            self.source = None;
            return;
        };
        tracing::debug!(
            revision = update.revision,
            changes = update.changes.len(),
            "objects changed"
        );
        self.origin.take(&update);
        if self.enforcer.apply(update.changes) || self.wanted == 0 {
            self.wanted = self.discovery.want(self.enforcer.wanted());
            self.enforcer.expect(self.wanted);
        }
        if !self.enforcer.written() {
            self.progress.changed();
        }
    }

    fn look(&mut self) {
        let report = Arc::clone(&self.discovery.reports.borrow_and_update());
        self.enforcer.see(report);
    }

    /// Nothing is programmed on the ground of a part of the objects, or before the node's interfaces were looked at.
    fn open_gate(&mut self) {
        let known = self.origin.complete && self.enforcer.answered();
        let waits = self
            .enforcer
            .failure
            .as_ref()
            .is_some_and(|f| f.retry > Instant::now());
        if known && !waits && !self.enforcer.programmed() && self.enforcer.start().is_ok() {
            tracing::info!(
                node = self.node,
                source = self.origin.description,
                revision = self.origin.revision,
                pods = self.enforcer.wanted().len(),
                "every object is known, enforcement follows it from now on"
            );
        }
    }

    fn answer(&mut self, request: Request, reply: oneshot::Sender<Response>) {
        match request {
            Request::Status => {
                let source = SourceStatus {
                    description: self.origin.description.clone(),
                    revision: self.origin.revision.clone(),
                    complete: self.origin.complete,
                    problems: self
                        .origin
                        .problems
                        .iter()
                        .map(ProblemStatus::from)
                        .collect(),
                    away: self.origin.away.as_deref().map(AwayStatus::from),
                };
                let drops = self.drops.status(&self.enforcer);
                let status = status::of(&self.enforcer, &self.node, source, drops);
                let status = Box::new(status);
                let _ = reply.send(Response::Status { status });
            }
            Request::Wait { timeout_millis } => {
                self.tickets += 1;
                if let Some(source) = &self.source {
                    source.reread(self.tickets);
                }
                self.discovery.rescan(self.tickets);
                // A year, for those who ask for more than a clock can hold.
                let limit = Duration::from_millis(timeout_millis.min(31_536_000_000));
                self.waiters.push(Waiter {
                    ticket: self.tickets,
                    end: Instant::now() + limit,
                    reply,
                });
            }
        }
    }

    /// Answers those whose time is up or who have nothing to wait for any more.
    fn serve_waiters(&mut self) {
        if self.waiters.is_empty() {
            return;
        }
        let now = Instant::now();
        for waiter in std::mem::take(&mut self.waiters) {
            let missing = self.missing(waiter.ticket);
            if missing.is_empty() || waiter.end <= now {
                let done = missing.is_empty();
                let _ = waiter.reply.send(Response::Wait { done, missing });
            } else if !waiter.reply.is_closed() {
                self.waiters.push(waiter);
            }
        }
    }

    /// What is not in force of that which was there when the ticket was given out.
    fn missing(&self, ticket: u64) -> Vec<String> {
        let mut missing = Vec::new();
        let report = self.enforcer.report();
        if self.source.is_none() {
            missing.push(format!(
                "{}: the source has ended, restart the agent",
                self.origin.description
            ));
        }
        missing.extend(self.source.as_ref().and(self.origin.behind(ticket)));
        missing.extend(
            self.origin
                .problems
                .iter()
                .filter(|p| p.withholds())
                .map(ToString::to_string),
        );
        if let Some(trouble) = &report.trouble {
            missing.push(trouble.clone());
        } else if report.covers < ticket || !self.enforcer.answered() {
            missing.push("interfaces of pods are still being looked for".to_owned());
        }
        missing.extend(self.enforcer.behind());
        missing
    }
}

/// The next update, or never.
async fn next<S: Source>(source: &mut Option<S>) -> Option<Update> {
    match source {
        Some(source) => source.next().await,
        None => pending().await,
    }
}

/// Returns when the grace period is over, or never.
async fn over(grace: &mut Option<(Grace, JoinHandle<()>)>) {
    match grace {
        Some((_, handle)) => {
            // It cannot fail, but a panic in it must not end enforcement: then nothing is taken away this time.
            if let Err(e) = handle.await {
                tracing::error!(error = %e, "a grace period could not be waited for");
                *grace = None;
            }
        }
        None => pending().await,
    }
}

/// The path of the socket in a run directory.
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join(SOCKET)
}
