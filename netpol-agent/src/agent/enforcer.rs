//! Keeps the kernel as the index and the node want it, whatever fails on the way.
//!
//! Edits of tables are a queue: each is meant for the state that those before it left. Endpoints are compared with what
//! there should be, and written only when the queue is empty: an endpoint never refers to a row that is not there.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{
    endpoints::{Endpoints, Local, Orders},
    hooks::Hooks,
    kernel::Kernel,
    newcomers::is_newcomer,
};
use crate::{
    node::{Report, Wanted},
    policy::{Edit, Generation, Index, ObjectChange},
};

/// How long to wait before something that failed is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));

/// What is told when `cleanup` has taken everything away.
pub(super) const GONE: &str =
    "what was pinned has been removed, nothing is enforced: restart the agent";

/// Something could not be written. What was in force stays in force.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub error: String,
    pub since: SystemTime,
    pub retry: Instant,
    delay: Duration,
}

pub(super) struct Enforcer<K> {
    pub kernel: K,
    pub index: Index,
    pub endpoints: Endpoints,
    pub hooks: Hooks,
    pub failure: Option<Failure>,
    /// How often something failed and was put off.
    pub failures: u64,
    orders: Orders,
    report: Arc<Report>,
    /// The number of the report that answers for the local pods of now.
    awaited: u64,
    /// Edits that are not written, oldest first.
    queue: VecDeque<Vec<Edit>>,
    /// Tables and endpoints follow the index. False until the source and the node are known completely.
    programmed: bool,
    /// Every device that was there at the start has its programs, or has failed. Before that no endpoint is written, unless there are
    /// programs that would be displaced by ones that know no endpoint.
    hooked: bool,
    /// What lived before the agent came was asked for.
    seeded: bool,
    /// Programs of agents with another schema were taken away.
    retired: bool,
    /// The node may open other envelopes than the kernel knows.
    tunnels_due: bool,
    /// Targets may differ from what is in the kernel.
    endpoints_due: bool,
    epoch_due: bool,
    /// The tables may hold what the index knows nothing of.
    discard_due: bool,
}

/// What a grace period that began now will have made safe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Grace {
    generation: Generation,
    discard: bool,
}

impl<K: Kernel> Enforcer<K> {
    pub fn new(kernel: K, node: &str, orders: Orders) -> Self {
        Self {
            kernel,
            index: Index::new(node),
            endpoints: Endpoints::default(),
            hooks: Hooks::default(),
            failure: None,
            failures: 0,
            orders,
            report: Arc::default(),
            awaited: 0,
            queue: VecDeque::new(),
            programmed: false,
            hooked: false,
            retired: false,
            seeded: false,
            tunnels_due: false,
            endpoints_due: false,
            epoch_due: false,
            discard_due: false,
        }
    }

    /// Takes in changes of objects. Returns whether local pods may be others than before.
    pub fn apply(&mut self, changes: Vec<ObjectChange>) -> bool {
        let change = self.index.apply(changes);
        if change.is_empty() {
            return false;
        }
        let pods = !change.flip.is_empty() || !change.gone.is_empty();
        // Before the first programming the index only fills: then all of it is written at once.
        if self.programmed {
            if !change.add.is_empty() {
                self.queue.push_back(change.add);
            }
            self.epoch_due = true;
            self.endpoints_due |= pods;
            self.retry_now();
        }
        pods
    }

    /// Takes in what the node looks like.
    pub fn see(&mut self, report: Arc<Report>) {
        if report.addresses != self.report.addresses {
            self.apply(vec![ObjectChange::NodeAddresses(report.addresses.clone())]);
        }
        self.tunnels_due |= self.programmed && report.tunnels != self.report.tunnels;
        self.report = report;
        self.hooks.devices.clone_from(&self.report.devices);
        self.endpoints_due |= self.programmed;
        // A device that failed may have gone, or be another one.
        self.endpoints.errors.clear();
        self.retry_now();
    }

    /// When there is something to do though nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        // While something has failed, only its next try can be of use.
        match &self.failure {
            Some(failure) => Some(failure.retry),
            None => self.endpoints.deadline().filter(|_| self.programmed),
        }
    }

    /// The local pods whose interfaces are wanted.
    pub fn wanted(&self) -> Vec<Wanted> {
        self.locals()
            .into_iter()
            .map(|local| local.wanted)
            .collect()
    }

    /// Says which report will answer for the local pods of now. Until it comes, nothing is taken off an interface: a pod that
    /// came back under another uid may be found on it again.
    pub fn expect(&mut self, answer: u64) {
        self.awaited = answer;
    }

    /// Whether the report answers for the local pods of now.
    pub fn answered(&self) -> bool {
        self.awaited > 0 && self.report.answers >= self.awaited
    }

    fn locals(&self) -> Vec<Local> {
        self.index
            .local_pods()
            .map(|pod| Local {
                wanted: Wanted {
                    key: pod.key,
                    uid: pod.uid.to_owned(),
                    addresses: pod.addresses,
                    leaving: pod.terminating,
                },
                ingress: pod.ingress,
                egress: pod.egress,
            })
            .collect()
    }

    /// Starts to program: the source and the node are known completely. Later calls change nothing.
    pub fn start(&mut self) -> Result<(), String> {
        if self.programmed {
            return Ok(());
        }
        let pinned = self.kernel.adopt_endpoints();
        let pinned = pinned.map_err(|e| self.failed(&e))?;
        self.hooks.inherited = self.kernel.attached().map_err(|e| self.failed(&e))?;
        let displaces = self.kernel.displaces().map_err(|e| self.failed(&e))?;
        let tables = self.index.tables();
        self.kernel.adopt(&tables).map_err(|e| self.failed(&e))?;
        self.endpoints.inherit(pinned, &self.hooks.inherited);
        // Until a device has its new program, the old one judges; from then on the new one must.
        self.hooked = displaces;
        self.programmed = true;
        self.tunnels_due = true;
        self.endpoints_due = true;
        self.epoch_due = true;
        self.discard_due = true;
        Ok(())
    }

    /// Whether anything was programmed yet.
    pub fn programmed(&self) -> bool {
        self.programmed
    }

    /// Does what there is to do: everything that decides about packets at once, then one slow thing (programs are put on a
    /// device or taken off it). Returns whether there is more.
    pub fn work(&mut self) -> bool {
        if !self.programmed
            || self
                .failure
                .as_ref()
                .is_some_and(|f| f.retry > Instant::now())
        {
            return false;
        }
        match self.write_all() {
            Ok(()) => {}
            Err(error) => {
                self.note(error);
                return false;
            }
        }
        let slow =
            self.attach_one() || self.release_one() || (self.answered() && self.remove_one());
        if !self.hooked && self.hooks.to_attach().is_none() {
            self.hooked = true;
            return true;
        }
        if slow {
            // What failed waits until all else is done.
            return true;
        }
        if self.endpoints.errors.is_empty() && self.hooks.errors.is_empty() {
            self.retire_others();
            if let Some(failure) = self.failure.take() {
                tracing::info!(
                    error = failure.error,
                    "what failed before has succeeded now"
                );
            }
        } else {
            let mut errors = self
                .endpoints
                .errors
                .values()
                .chain(self.hooks.errors.values());
            let error = errors.next().cloned().unwrap_or_default();
            self.postpone(error);
        }
        (self.endpoints_due && self.hooked) || self.epoch_due
    }

    fn write_all(&mut self) -> Result<(), String> {
        self.write_queue()?;
        if self.tunnels_due {
            let tunnels = self.kernel.set_tunnels(&self.report.tunnels);
            tunnels.map_err(|e| e.to_string())?;
            self.tunnels_due = false;
            self.epoch_due = true;
        }
        let over = self.endpoints.deadline();
        self.endpoints_due |= over.is_some_and(|deadline| deadline <= Instant::now());
        if self.endpoints_due && self.hooked {
            self.endpoints_due = false;
            self.write_endpoints();
        }
        if self.epoch_due {
            self.kernel.raise_epoch().map_err(|e| e.to_string())?;
            self.epoch_due = false;
        }
        Ok(())
    }

    fn write_queue(&mut self) -> Result<(), String> {
        while let Some(edits) = self.queue.front() {
            let Err(error) = self.kernel.write(edits) else {
                self.queue.pop_front();
                continue;
            };
            // What cannot be written may not be wanted any more (a table was full, and a policy is gone since): then all of
            // what is wanted now may fit.
            if self.queue.len() > 1 && self.kernel.adopt(&self.index.tables()).is_ok() {
                self.queue.clear();
                self.discard_due = true;
                return Ok(());
            }
            return Err(error.to_string());
        }
        Ok(())
    }

    /// Once everything is in place, nobody needs what an agent of another version has left.
    fn retire_others(&mut self) {
        if std::mem::replace(&mut self.retired, true) {
            return;
        }
        match self.kernel.retire_others() {
            Ok(0) => {}
            Ok(pins) => {
                tracing::info!(pins, "took away what an agent of another version has left");
            }
            Err(error) => tracing::error!(
                %error,
                "programs of an agent of another version still judge beside these; remove its pins, or run `netpol-agent cleanup` \
                 and start again"
            ),
        }
    }

    /// Every endpoint is one atomic element. One that fails holds up no other.
    fn write_endpoints(&mut self) {
        let locals = self.locals();
        let answered = self.answered();
        self.endpoints
            .aim(&locals, &self.report, &self.orders, answered);
        let writes = self.endpoints.to_write();
        let mut fresh = writes.clone();
        fresh.retain(|(interface, endpoint)| {
            !is_newcomer(endpoint) && !self.endpoints.actual.contains_key(interface)
        });
        if !fresh.is_empty() && !std::mem::replace(&mut self.seeded, true) {
            // Before anything is judged: what is open already was opened by somebody. Not for pods that come later: they have
            // opened nothing yet, but somebody who had their address may have.
            self.kernel.seed(&fresh);
        }
        for (interface, endpoint) in writes {
            let result = if Endpoints::fits(endpoint.slot) {
                self.kernel
                    .set_endpoint(interface, &endpoint)
                    .map_err(|e| e.to_string())
            } else {
                Err("there are more local pods than endpoints: the pod is open".to_owned())
            };
            match result {
                Ok(()) => {
                    let new = self.endpoints.written(interface, endpoint);
                    self.epoch_due = true;
                    if new {
                        self.tell_enforced(interface);
                    }
                }
                Err(error) => self.endpoint_failed(interface, error),
            }
        }
    }

    fn attach_one(&mut self) -> bool {
        let Some((interface, device)) = self.hooks.to_attach() else {
            return false;
        };
        match self.kernel.attach(interface, &device) {
            Ok(()) => {
                tracing::debug!(device = device.name, index = interface, kind = ?device.kind, "programs are on the device");
                self.hooks.attached.insert(interface, device);
                self.hooks.inherited.remove(&interface);
                // Flows that were noted while only one program was there are judged again.
                self.epoch_due = true;
                if self.endpoints.actual.contains_key(&interface) {
                    self.tell_enforced(interface);
                }
            }
            Err(e) => self.hook_failed(interface, &device.name, e.to_string()),
        }
        true
    }

    /// Takes away the pins of a device that has gone.
    fn release_one(&mut self) -> bool {
        let Some(interface) = self.hooks.to_release() else {
            return false;
        };
        match self.kernel.release(interface) {
            Ok(()) => {
                self.hooks.attached.remove(&interface);
                self.hooks.inherited.remove(&interface);
            }
            Err(e) => self.hook_failed(interface, "which has gone", e.to_string()),
        }
        true
    }

    fn tell_enforced(&self, interface: u32) {
        if self.endpoints.holds(interface) && self.hooks.guard_pod(interface) {
            let device = self.report.devices.get(&interface);
            tracing::info!(
                interface = device.map(|device| device.name.as_str()),
                index = interface,
                "an interface has come while pods of this node have no address yet: held to their rules until it is known whose it is"
            );
        }
        if let Some(before) = self.endpoints.disputed.get(&interface)
            && self.hooks.guard_pod(interface)
        {
            let device = self.report.devices.get(&interface);
            tracing::info!(
                interface = device.map(|device| device.name.as_str()),
                index = interface,
                "an interface has the address of {before}, which is being deleted: closed until it is known whose it is"
            );
        }
        if let Some(target) = self.endpoints.targets.get(&interface)
            && self.hooks.guard_pod(interface)
        {
            tracing::info!(
                pod = target.pod.to_string(),
                interface = target.name,
                index = interface,
                "the pod is enforced"
            );
        }
    }

    fn remove_one(&mut self) -> bool {
        let Some(interface) = self.endpoints.to_remove() else {
            return false;
        };
        match self.kernel.remove_endpoint(interface) {
            Ok(()) => {
                self.endpoints.actual.remove(&interface);
                self.endpoints.inherited.remove(&interface);
                tracing::info!(index = interface, "an interface without a pod is released");
            }
            Err(e) => self.endpoint_failed(interface, e.to_string()),
        }
        true
    }

    /// Whether everything that is known is in tables, endpoints and epoch. A pod whose endpoint could not be written is not
    /// enforced, whatever else is.
    pub fn written(&self) -> bool {
        self.programmed
            && self.queue.is_empty()
            && !self.endpoints_due
            && !self.epoch_due
            && self.endpoints.errors.is_empty()
    }

    /// What a grace period that begins now is good for, if one is needed and everything is written.
    pub fn wants_grace(&self) -> Option<Grace> {
        let needed = self.discard_due || !self.index.settled();
        let waits = self
            .failure
            .as_ref()
            .is_some_and(|f| f.retry > Instant::now());
        if !self.written() || !needed || waits {
            return None;
        }
        // An endpoint that could not be written or removed still refers to what the others have left.
        let current = self.endpoints.to_write().is_empty()
            && self
                .endpoints
                .actual
                .keys()
                .all(|i| self.endpoints.wants(*i));
        current.then(|| Grace {
            generation: self.index.generation(),
            discard: self.discard_due,
        })
    }

    /// Takes away what no packet can refer to any more.
    pub fn settle(&mut self, grace: Grace) {
        let edits = self.index.settle(grace.generation);
        if !edits.is_empty() {
            self.queue.push_back(edits);
        }
        if grace.discard && self.discard_due {
            let tables = self.index.tables();
            match self.kernel.discard_unknown(&tables) {
                Ok(()) => self.discard_due = false,
                Err(e) => self.note(e.to_string()),
            }
        }
    }

    /// What of the present state is not in force, in plain words.
    pub fn behind(&self) -> Vec<String> {
        let mut behind = Vec::new();
        if self.programmed && !self.kernel.pinned() {
            behind.push(GONE.to_owned());
        }
        if let Some(failure) = &self.failure
            && self.endpoints.errors.is_empty()
            && self.hooks.errors.is_empty()
        {
            behind.push(format!("{}; it is tried again", failure.error));
        } else if !self.programmed || !self.queue.is_empty() || self.endpoints_due || self.epoch_due
        {
            behind.push("changes are being written".to_owned());
        }
        if self.programmed {
            behind.extend(self.hooks.behind());
        }
        for (interface, target) in &self.endpoints.targets {
            if let Some(error) = self.endpoints.errors.get(interface) {
                behind.push(format!("pod {} on {}: {error}", target.pod, target.name));
            }
        }
        behind
    }

    /// How many edits are not written.
    pub fn pending(&self) -> usize {
        self.queue.iter().map(Vec::len).sum()
    }

    /// What the node looks like, as it was seen last.
    pub fn report(&self) -> &Report {
        &self.report
    }

    fn retry_now(&mut self) {
        if let Some(failure) = &mut self.failure {
            failure.retry = Instant::now();
        }
        self.endpoints_due |= self.programmed && !self.endpoints.errors.is_empty();
        self.endpoints.errors.clear();
        self.hooks.errors.clear();
    }

    /// Tries again what failed, when its time has come.
    pub fn retry(&mut self) {
        self.retry_now();
    }

    fn failed(&mut self, error: &K::Error) -> String {
        let error = error.to_string();
        self.note(error.clone());
        error
    }

    fn endpoint_failed(&mut self, interface: u32, error: String) {
        let target = self.endpoints.targets.get(&interface);
        tracing::warn!(
            pod = target.map(|t| t.pod.to_string()),
            index = interface,
            error,
            "an interface cannot be brought up to date; its last state stays in force, and this is tried again"
        );
        self.endpoints.errors.insert(interface, error);
    }

    fn hook_failed(&mut self, index: u32, device: &str, error: String) {
        let mut targets = self.endpoints.targets.values();
        if targets.any(|target| target.endpoint.egress.ruleset().is_some()) {
            tracing::error!(
                device,
                index,
                error,
                "a device cannot be brought up to date: what isolated pods send to Services may leave by it unjudged; this \
                 is tried again"
            );
        } else {
            tracing::warn!(
                device,
                index,
                error,
                "a device cannot be brought up to date; this is tried again"
            );
        }
        self.hooks.errors.insert(index, error);
    }

    fn note(&mut self, error: String) {
        let same = self.failure.as_ref().filter(|f| f.error == error);
        if same.is_none() {
            tracing::error!(
                error,
                pending = self.pending(),
                "cannot write to the kernel; what was in force stays in force, and this is tried again"
            );
        }
        self.postpone(error);
    }

    /// Waits, longer every time, before it is tried again.
    fn postpone(&mut self, error: String) {
        self.failures += 1;
        let delay = self
            .failure
            .as_ref()
            .map_or(RETRY.0, |f| (f.delay * 2).min(RETRY.1));
        let since = self
            .failure
            .as_ref()
            .map_or_else(SystemTime::now, |f| f.since);
        self.failure = Some(Failure {
            error,
            since,
            retry: Instant::now() + delay,
            delay,
        });
    }
}
