//! What the loop tells of itself to metrics and probes: numbers only, taken without a call that could wait.

use std::time::{Duration, Instant, SystemTime};

use netpol_common::Direction;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{mpsc, oneshot};

use super::{Agent, enforcer::GONE};
use crate::{
    cluster::{Problem, Source},
    node::DeviceKind,
};

/// Asks the loop for its [`Vitals`].
pub(super) type Question = oneshot::Sender<Vitals>;

/// The upper ends of the buckets of enforcement durations, in seconds.
const BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// The state of the loop at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Vitals {
    /// What only a restart cures.
    pub hopeless: Vec<String>,
    /// What is not enforced of that which was there at the start; empty for ever once all of it was.
    pub unready: Vec<String>,
    /// Whether the initial list of objects is complete.
    pub complete: bool,
    /// Since when the source cannot be reached, if it cannot.
    pub away_since: Option<SystemTime>,
    /// Problems of the source: unreadable, refused, duplicate.
    pub problems: [usize; 3],
    /// Policies of the cluster.
    pub policies: usize,
    /// Pods of this node that have a network namespace of their own.
    pub pods: usize,
    /// Those of them whose interface is not found.
    pub missing: usize,
    /// Pods whose rules are in the kernel.
    pub endpoints: usize,
    /// Pods whose rules could not be written.
    pub failed: usize,
    /// Pods whose rules are in the kernel and that are isolated, by [`Direction`].
    pub isolated: [usize; 2],
    /// Devices that carry their programs: pods' and others.
    pub devices: [usize; 2],
    /// Devices that do not.
    pub bare_devices: usize,
    /// Edits of tables that are not written.
    pub pending: usize,
    /// How long the oldest change has been waiting that is not in the kernel completely.
    pub waiting: Duration,
    /// When all that was known was in the kernel after a change, last.
    pub enforced_at: Option<SystemTime>,
    /// How often the epoch was raised.
    pub epochs: u32,
    /// Writes that failed and were put off.
    pub failures: u64,
    /// Records of drops that the loop had no time for.
    pub unread: u64,
    /// Flows that were lost and written again.
    pub repaired: u64,
    /// Drops that may have been answers, of which nobody was asked.
    pub unasked: u64,
}

/// What the loop notes of its own progress.
pub(super) struct Progress {
    /// From the arrival of a change to the moment when all that follows from it is in the kernel.
    pub durations: Histogram,
    waiting_since: Option<Instant>,
    enforced_at: Option<SystemTime>,
    first_epoch: u32,
    ready: bool,
}

impl Progress {
    pub fn new(epoch: u32) -> Self {
        Self {
            durations: Histogram::new(BUCKETS),
            waiting_since: None,
            enforced_at: None,
            first_epoch: epoch,
            ready: false,
        }
    }

    /// A change has come, and is not in the kernel. What comes before the agent is ready is a part of its start.
    pub fn changed(&mut self) {
        if self.ready {
            self.waiting_since.get_or_insert_with(Instant::now);
        }
    }

    /// All that has come is in the kernel.
    pub fn written(&mut self) {
        if let Some(since) = self.waiting_since.take() {
            self.durations.observe(since.elapsed().as_secs_f64());
            self.enforced_at = Some(SystemTime::now());
        }
    }
}

impl<S: Source> Agent<S> {
    /// Notes how far it is, after every turn.
    pub(super) fn note_progress(&mut self) {
        if self.enforcer.written() {
            self.progress.written();
        }
        if !self.progress.ready && self.unready().is_empty() {
            self.progress.ready = true;
            tracing::info!("everything that was there at the start is enforced");
        }
    }

    fn unready(&self) -> Vec<String> {
        let source = &self.origin.description;
        let mut unready = Vec::new();
        if !self.origin.complete {
            unready.push(match &self.origin.away {
                Some(away) => format!("{source} cannot be reached: {}", away.reason),
                None => format!("{source}: not all objects are known yet"),
            });
        }
        if let Some(trouble) = &self.enforcer.report().trouble {
            unready.push(trouble.clone());
        } else if !self.enforcer.answered() {
            unready.push("interfaces of pods are still being looked for".to_owned());
        }
        unready.extend(self.enforcer.behind());
        unready
    }

    fn hopeless(&self) -> Vec<String> {
        let mut hopeless = Vec::new();
        if self.source.is_none() {
            hopeless.push(format!("{}: the source has ended", self.origin.description));
        }
        if self.discovery.reports.has_changed().is_err() {
            hopeless.push("the discovery of interfaces has ended".to_owned());
        }
        if self.enforcer.programmed() && !self.enforcer.kernel.pinned() {
            hopeless.push(GONE.to_owned());
        }
        hopeless
    }

    /// The state of now.
    pub(super) fn vitals(&self) -> Vitals {
        let enforcer = &self.enforcer;
        let mut problems = [0; 3];
        for problem in self.origin.problems.iter() {
            problems[match problem {
                Problem::Unreadable { .. } => 0,
                Problem::Refused { .. } => 1,
                Problem::Duplicate { .. } => 2,
            }] += 1;
        }
        let endpoints = enforcer.endpoints.actual.values();
        let isolated = Direction::BOTH.map(|direction| {
            let isolation = |e: &netpol_common::Endpoint| match direction {
                Direction::Ingress => e.ingress,
                Direction::Egress => e.egress,
            };
            let isolated = endpoints
                .clone()
                .filter(|e| isolation(e).ruleset().is_some());
            isolated.count()
        });
        let pods = &enforcer.report().pods;
        let (unread, repaired, unasked) = self.drops.counted();
        Vitals {
            hopeless: self.hopeless(),
            unready: if self.progress.ready {
                Vec::new()
            } else {
                self.unready()
            },
            complete: self.origin.complete,
            away_since: self.origin.away.as_ref().map(|away| away.since),
            problems,
            policies: enforcer.index.policy_count(),
            pods: pods.len(),
            missing: pods.values().filter(|(_, found)| found.is_err()).count(),
            endpoints: enforcer.endpoints.actual.len(),
            failed: enforcer.endpoints.errors.len(),
            isolated,
            devices: [
                enforcer.hooks.count(DeviceKind::Pod),
                enforcer.hooks.count(DeviceKind::Host) + enforcer.hooks.count(DeviceKind::Bare),
            ],
            bare_devices: enforcer.hooks.missing().count(),
            pending: enforcer.pending(),
            waiting: self
                .progress
                .waiting_since
                .map_or(Duration::ZERO, |since| since.elapsed()),
            enforced_at: self.progress.enforced_at,
            epochs: enforcer
                .kernel
                .epoch()
                .wrapping_sub(self.progress.first_epoch),
            failures: enforcer.failures,
            unread,
            repaired,
            unasked,
        }
    }
}

/// The next question, or never.
pub(super) async fn next(questions: &mut Option<mpsc::Receiver<Question>>) -> Question {
    if let Some(receiver) = questions {
        if let Some(question) = receiver.recv().await {
            return question;
        }
        *questions = None;
    }
    std::future::pending().await
}
