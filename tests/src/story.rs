//! What tests of the agent's contract share: a directory of manifests in the test's own hands, and a table that must hold
//! at a moment of the story.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::{
    agent::Agent,
    lab::Lab,
    table::{Party, Table},
};

/// Manifests that the lab does not write. They go with the lab.
pub struct Files {
    directory: PathBuf,
}

impl Files {
    /// An empty directory beside the lab's own.
    pub fn new(lab: &Lab) -> anyhow::Result<Self> {
        let directory = lab.run_dir().path().join("files");
        fs::create_dir(&directory)?;
        Ok(Self { directory })
    }

    /// The lab's own directory, for more files in it.
    pub fn of(lab: &Lab) -> Self {
        Self {
            directory: lab.manifests(),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Writes a file in place, as an editor or a shell does.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        fs::write(self.directory.join(name), text).with_context(|| format!("write {name}"))
    }

    /// Writes another file and renames it over this one, as careful programs do.
    pub fn replace(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let temporary = self.directory.join(format!("{name}.new"));
        fs::write(&temporary, text)?;
        fs::rename(temporary, self.directory.join(name)).with_context(|| format!("replace {name}"))
    }

    /// Deletes a file.
    pub fn delete(&self, name: &str) -> anyhow::Result<()> {
        fs::remove_file(self.directory.join(name)).with_context(|| format!("delete {name}"))
    }
}

/// Probes the destinations that a table names and says where it is wrong, with what the agent has to say about it.
pub fn expect(lab: &Lab, moment: &str, expected: &str) -> anyhow::Result<()> {
    let expected = Table::parse(expected, &BTreeSet::new())
        .with_context(|| format!("the table expected {moment}"))?;
    let destinations: BTreeSet<_> = expected.destinations().cloned().collect();
    let mut sources: BTreeSet<Party> = expected.sources().into_iter().cloned().collect();
    sources.insert(Party::Node);
    let found = lab.probe(&sources, &destinations)?;
    let wrong = expected.differences(&found);
    if !wrong.is_empty() {
        bail!("{moment}: {wrong}\n{}", log_end(lab));
    }
    Ok(())
}

/// The end of the log of the lab's agent.
pub fn log_end(lab: &Lab) -> String {
    let log = fs::read_to_string(lab.run_dir().agent_log()).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    format!(
        "the agent's log ends with:\n{}",
        lines[lines.len().saturating_sub(30)..].join("\n")
    )
}

/// Asks for the status until it is as wanted: `wanted` says what is still wrong with it.
pub fn status_until(
    agent: &Agent,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> anyhow::Result<Value> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let status = agent.status()?;
        if wanted(&status) {
            return Ok(status);
        }
        if Instant::now() > end {
            bail!("{what}: not so after 10 s; the status is\n{status:#}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// What the status says of a local pod.
pub fn pod<'a>(status: &'a Value, namespace: &str, name: &str) -> anyhow::Result<&'a Value> {
    named(&status["pods"], namespace, name)
        .with_context(|| format!("the status has no pod {namespace}/{name}:\n{status:#}"))
}

/// What the status says of a policy.
pub fn policy<'a>(status: &'a Value, namespace: &str, name: &str) -> anyhow::Result<&'a Value> {
    named(&status["policies"], namespace, name)
        .with_context(|| format!("the status has no policy {namespace}/{name}:\n{status:#}"))
}

fn named<'a>(list: &'a Value, namespace: &str, name: &str) -> Option<&'a Value> {
    list.as_array()?
        .iter()
        .find(|item| item["namespace"] == namespace && item["name"] == name)
}

/// Pods that talk, for stories that need no more: `a/web`, whom `a/friend` (labelled `role: friend`) and `a/other` want to
/// reach.
pub const THREE_PODS: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {team: a}}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: web, labels: {app: web}}
spec: {containers: [{name: c, image: web, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: friend, labels: {role: friend}}
spec: {containers: [{name: c, image: web, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: other}
spec: {containers: [{name: c, image: web, ports: [{containerPort: 80}]}]}
";

/// Nobody reaches `a/web`.
pub const CLOSED: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: a, name: web}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
";

/// Only `a/friend` reaches `a/web`.
pub const FRIENDS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: a, name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]
";

/// `a/web` is open.
pub const ALL_OPEN: &str = "
a/web TCP/80
  open: a/friend a/other
";
/// What [`CLOSED`] makes of it.
pub const ALL_DENIED: &str = "
a/web TCP/80
  denied: a/friend a/other
";
/// What [`FRIENDS`] makes of it.
pub const FRIENDS_ONLY: &str = "
a/web TCP/80
  open: a/friend
  denied: a/other
";
