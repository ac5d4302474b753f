//! Changes through the API, one after the other and amid others, and when the kernel has them.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{
    cluster::{Cluster, remote_address},
    gauge::{Place, Process, Tables},
};
use crate::{control_plane::ControlPlane, manifests::DocumentId};

/// What half of the changes are faster than, and all but one in a hundred.
#[derive(Clone, Copy, Default)]
pub struct Latency {
    /// The median.
    pub p50: Duration,
    /// The 99th percentile.
    pub p99: Duration,
}

impl Latency {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |share: f64| {
            let place = (times.len() as f64 * share).ceil() as usize;
            times
                .get(place.saturating_sub(1))
                .copied()
                .unwrap_or_default()
        };
        Self {
            p50: at(0.5),
            p99: at(0.99),
        }
    }
}

/// The namespace of what is changed while others are timed, and of what concerns nobody here.
const ELSEWHERE: &str = "elsewhere";
/// Where the pod that is timed lives.
const PEERS: &str = "measured-peers";

/// The pod that is timed.
const TIMED: usize = 0;
/// Pods that change meanwhile: these, from 1 on.
const CHURNING: usize = 50;
/// The pod that concerns nobody. Another address than the timed one's: of two pods with one address the younger has it, and they
/// may be made within one second.
const FOREIGN: usize = CHURNING + 1;

/// A cluster that is followed, ready for changes.
pub struct Stage<'a> {
    server: &'a ControlPlane,
    process: &'a Process,
    tables: Tables,
    /// The pod whose policy is changed: its namespace, its name, and its interface.
    pod: (String, String),
    interface: u32,
    /// Numbers that no pod of the cluster has.
    unused: usize,
}

impl<'a> Stage<'a> {
    /// Adds what is changed later, and a policy that lets a pod in that the cluster does not have yet.
    pub fn new(
        server: &'a ControlPlane,
        cluster: &Cluster,
        process: &'a Process,
        tables: Tables,
        interface: u32,
    ) -> anyhow::Result<Self> {
        for name in [ELSEWHERE, PEERS] {
            let metadata = json!({"name": name, "labels": {"purpose": name}});
            server.put(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}))?;
        }
        let stage = Self {
            server,
            process,
            tables,
            pod: cluster.pod_name(0),
            interface,
            unused: cluster.pods + 1_000,
        };
        let watch = stage.tables.watch(Place::Endpoint(interface))?;
        server.put(&stage.policy(
            "measured-peers",
            &json!({"namespaceSelector": {"matchLabels": {"purpose": PEERS}}}),
        ))?;
        watch.changed()?;
        Ok(stage)
    }

    /// A policy of the pod that lets this peer in.
    fn policy(&self, name: &str, peer: &Value) -> Value {
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"namespace": self.pod.0, "name": name},
            "spec": {
                "podSelector": {},
                "ingress": [{"from": [peer]}],
                "policyTypes": ["Ingress"],
            },
        })
    }

    fn pod(&self, namespace: &str, number: usize, version: usize) -> Value {
        let address = remote_address(self.unused + number);
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": namespace, "name": format!("pod-{number}"), "labels": {"version": format!("v{version}")}},
            "spec": {"nodeName": "node-9999", "containers": [{"name": "main", "image": "none"}]},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
        })
    }

    /// Processor time for an event of a pod that no rule of a local pod names.
    pub fn foreign(&self, events: usize) -> anyhow::Result<Duration> {
        self.server.put(&self.pod(ELSEWHERE, FOREIGN, 0))?;
        self.cost(events, |version| {
            self.server
                .put(&self.pod(ELSEWHERE, FOREIGN, version + 1))
                .map(drop)
        })
    }

    /// Processor time of the agent for each of these changes.
    fn cost(
        &self,
        events: usize,
        change: impl Fn(usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<Duration> {
        let before = self.process.busy()?;
        for event in 0..events {
            change(event)?;
        }
        // The last one is under way.
        thread::sleep(Duration::from_millis(100));
        let busy = self.process.busy()? - before;
        Ok(busy / u32::try_from(events.max(1))?)
    }

    /// A policy that comes and goes.
    pub fn policies(&self, events: usize) -> anyhow::Result<(Latency, Duration)> {
        self.timed(events, |event| self.toggle_policy(event))
    }

    /// A peer that comes and goes.
    pub fn pods(&self, events: usize) -> anyhow::Result<(Latency, Duration)> {
        self.timed(events, |event| self.toggle_pod(event))
    }

    fn timed(
        &self,
        events: usize,
        change: impl Fn(usize) -> anyhow::Result<Duration>,
    ) -> anyhow::Result<(Latency, Duration)> {
        let before = self.process.busy()?;
        let times = (0..events)
            .map(change)
            .collect::<anyhow::Result<Vec<_>>>()?;
        let busy = self.process.busy()? - before;
        Ok((Latency::of(times), busy / u32::try_from(events.max(1))?))
    }

    fn toggle_policy(&self, event: usize) -> anyhow::Result<Duration> {
        let name = "measured";
        let watch = self.tables.watch(Place::Endpoint(self.interface))?;
        if event.is_multiple_of(2) {
            let block = format!("198.51.100.{}/32", event % 250);
            self.server
                .put(&self.policy(name, &json!({"ipBlock": {"cidr": block}})))?;
        } else {
            let id = DocumentId::new("NetworkPolicy", &self.pod.0, name);
            self.server.remove(&id)?;
        }
        let answered = Instant::now();
        Ok(watch.changed()?.saturating_duration_since(answered))
    }

    fn toggle_pod(&self, event: usize) -> anyhow::Result<Duration> {
        let address: IpAddr = remote_address(self.unused + TIMED)
            .parse()
            .context("an address")?;
        let watch = self.tables.watch(Place::Peer(address.into()))?;
        if event.is_multiple_of(2) {
            self.server.put(&self.pod(PEERS, TIMED, event))?;
        } else {
            self.server
                .remove(&DocumentId::new("Pod", PEERS, &format!("pod-{TIMED}")))?;
        }
        let answered = Instant::now();
        Ok(watch.changed()?.saturating_duration_since(answered))
    }

    /// The same while pods elsewhere and peers change all the time; and the agent's share of a processor.
    pub fn amid_churn(&self, events: usize, rate: u32) -> anyhow::Result<([Latency; 2], f64)> {
        let over = AtomicBool::new(false);
        let pause = Duration::from_secs(1) / rate.max(1);
        thread::scope(|scope| {
            let churn = scope.spawn(|| -> anyhow::Result<()> {
                let mut next = Instant::now();
                for version in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let namespace = if usize::is_multiple_of(version, 2) {
                        PEERS
                    } else {
                        ELSEWHERE
                    };
                    self.server
                        .put(&self.pod(namespace, 1 + version % CHURNING, version))?;
                    next += pause;
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
                Ok(())
            });
            let (began, before) = (Instant::now(), self.process.busy()?);
            let measured = self
                .policies(events)
                .and_then(|(policies, _)| Ok([policies, self.pods(events)?.0]));
            let share =
                (self.process.busy()? - before).as_secs_f64() / began.elapsed().as_secs_f64();
            over.store(true, Ordering::Relaxed);
            churn
                .join()
                .map_err(|_| anyhow::anyhow!("the churn has panicked"))??;
            Ok((measured?, share))
        })
    }
}
