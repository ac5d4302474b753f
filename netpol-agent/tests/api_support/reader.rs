//! Follows a server as the agent does, and keeps what it was told.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use netpol_agent::{
    cluster::{Api, Away, Problem, Source as _, Timing, Update},
    policy::{ObjectChange, object::PortMatch},
};
use tokio::time::timeout;

use super::{LIMIT, server::Server, timing};

/// The agent's side.
pub struct Reader {
    pub api: Api,
    /// What is in force: `Pod shop/a` and what tells its versions apart.
    pub objects: BTreeMap<String, String>,
    /// Every change, in short.
    pub changes: Vec<String>,
    pub problems: Arc<[Problem]>,
    pub complete: bool,
    pub covers: u64,
    pub unanswered: Option<Arc<str>>,
    pub away: Option<Arc<Away>>,
    /// How often the source went away.
    pub losses: usize,
    pub revision: String,
}

fn describe(change: &ObjectChange) -> (String, Option<String>) {
    match change {
        ObjectChange::Namespace(n) => (format!("Namespace {}", n.name), Some(String::new())),
        ObjectChange::NamespaceGone(name) => (format!("Namespace {name}"), None),
        ObjectChange::Pod(pod) => {
            let color = pod.labels.get("color").cloned().unwrap_or_default();
            (
                format!("Pod {}", pod.key),
                Some(format!("{color} of {}", pod.uid)),
            )
        }
        ObjectChange::PodGone(key) => (format!("Pod {key}"), None),
        ObjectChange::Policy(policy) => {
            let rules = policy.ingress.iter().flatten();
            let ports = rules.flat_map(|rule| rule.ports.iter().flatten());
            let ports: Vec<String> = ports
                .map(|port| match &port.port {
                    PortMatch::Range(first, _) => first.to_string(),
                    other => format!("{other:?}"),
                })
                .collect();
            (
                format!("NetworkPolicy {}", policy.key),
                Some(ports.join(" ")),
            )
        }
        ObjectChange::PolicyGone(key) => (format!("NetworkPolicy {key}"), None),
        ObjectChange::Service(service) => {
            let addresses: Vec<_> = service.addresses.iter().map(ToString::to_string).collect();
            (
                format!("Service {}", service.key),
                Some(addresses.join(" ")),
            )
        }
        ObjectChange::ServiceGone(key) => (format!("Service {key}"), None),
        ObjectChange::NodeAddresses(_) => panic!("no source knows the node"),
    }
}

impl Reader {
    /// Starts to read.
    pub fn new(server: &Server) -> Self {
        Self::with(server, timing())
    }

    pub fn with(server: &Server, timing: Timing) -> Self {
        let api = Api::open(server.access(), timing).expect("a kubeconfig that can be used");
        Self {
            api,
            objects: BTreeMap::new(),
            changes: Vec::new(),
            problems: Arc::default(),
            complete: false,
            covers: 0,
            unanswered: None,
            away: None,
            losses: 0,
            revision: String::new(),
        }
    }

    /// Starts to read, and reads everything.
    pub async fn synced(server: &Server) -> Self {
        let mut reader = Self::new(server);
        reader.until("everything is listed", |r| r.complete).await;
        reader.changes.clear();
        reader
    }

    fn take(&mut self, update: Update) {
        for change in &update.changes {
            let (name, content) = describe(change);
            match content {
                Some(content) => {
                    self.changes.push(format!("{name}: {content}"));
                    self.objects.insert(name, content);
                }
                None => {
                    self.changes.push(format!("{name} is gone"));
                    self.objects.remove(&name);
                }
            }
        }
        assert!(
            update.complete >= self.complete,
            "what was complete stays so"
        );
        assert!(update.covers >= self.covers, "what was covered stays so");
        self.losses += usize::from(self.away.is_none() && update.away.is_some());
        self.problems = update.problems;
        self.complete = update.complete;
        self.covers = update.covers;
        self.unanswered = update.unanswered;
        self.away = update.away;
        self.revision = update.revision;
    }

    /// Reads until this is so.
    pub async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let reading = async {
            while !is_so(self) {
                let update = self.api.next().await.expect("the source goes on");
                self.take(update);
            }
        };
        if timeout(LIMIT, reading).await.is_err() {
            panic!(
                "not so after {LIMIT:?}: {what}; in force {:?}, away {:?}, problems {:?}",
                self.objects, self.away, self.problems
            );
        }
    }

    /// Reads until an object is as described; `None`: until it is gone.
    pub async fn has(&mut self, name: &str, content: Option<&str>) {
        let what = format!("{name}: {content:?}");
        self.until(&what, |r| {
            r.objects.get(name).map(String::as_str) == content
        })
        .await;
    }

    /// Reads for a while in which this must stay so.
    pub async fn stays(&mut self, time: Duration, is_so: impl Fn(&Self) -> bool) {
        let end = tokio::time::Instant::now() + time;
        while let Ok(update) = tokio::time::timeout_at(end, self.api.next()).await {
            self.take(update.expect("the source goes on"));
            assert!(
                is_so(self),
                "in force {:?}, away {:?}",
                self.objects,
                self.away
            );
        }
    }

    /// Waits until everything that is on the server now has come.
    pub async fn reread(&mut self, ticket: u64) {
        self.api.reread(ticket);
        self.until("what was on the server has come", |r| r.covers >= ticket)
            .await;
    }
}
