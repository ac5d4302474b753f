//! What `status` tells. The JSON form is stable: fields are added, never renamed.

use std::{
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use netpol_common::{Direction, Isolation, Reason};
use serde::{Deserialize, Serialize};

use super::{
    enforcer::{Enforcer, GONE},
    kernel::Kernel,
};
use crate::{
    cluster::{Away, Problem},
    node::{DeviceKind, Place},
    policy::object::ObjectKey,
};

/// The state of an agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The version of the agent.
    pub version: String,
    /// The node whose pods it enforces.
    pub node: String,
    /// Whether the initial lists are complete and in the kernel. Until then whatever an earlier agent left is in force.
    pub enforcing: bool,
    /// Where objects come from.
    pub source: SourceStatus,
    /// `tcx` or `clsact`.
    pub hook: String,
    /// The devices of the node that carry programs.
    pub devices: DevicesStatus,
    /// The number of the last change.
    pub epoch: u32,
    /// Local pods.
    pub pods: Vec<PodStatus>,
    /// All policies.
    pub policies: Vec<PolicyStatus>,
    /// How full the tables of the kernel are.
    pub tables: Vec<TableStatus>,
    /// Drops that are told nowhere one by one, and flows that were lost.
    pub drops: DropStatus,
    /// What is not written yet.
    pub pending: PendingStatus,
    /// What keeps the discovery of interfaces from working, if anything.
    pub trouble: Option<String>,
}

/// The devices of the node's network namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DevicesStatus {
    /// How many are pods' (veths that lead to another namespace) and carry the programs of a pod, known or not.
    pub pods: usize,
    /// How many others carry the program that judges what leaves the node.
    pub others: usize,
    /// Those that do not carry their programs, and why. Empty until the agent starts to enforce.
    pub missing: Vec<String>,
}

/// Where objects come from.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// In words.
    pub description: String,
    /// Names the content that is read.
    pub revision: String,
    /// Whether the initial list is complete.
    pub complete: bool,
    /// Files and objects that cannot be used as they are.
    pub problems: Vec<ProblemStatus>,
    /// Set while the source cannot be reached. What it said before stays in force.
    #[serde(default)]
    pub away: Option<AwayStatus>,
}

/// A source that cannot be reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AwayStatus {
    /// Since when, in seconds of the Unix epoch.
    pub since: u64,
    /// Why.
    pub reason: String,
}

impl From<&Away> for AwayStatus {
    fn from(away: &Away) -> Self {
        Self {
            since: seconds(away.since),
            reason: away.reason.clone(),
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A file or an object that cannot be used as it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProblemStatus {
    /// `unreadable` (a file), `refused` (an object) or `duplicate` (an object defined more than once; only a warning).
    #[serde(rename = "type")]
    pub class: String,
    /// The file; empty when the object comes from none.
    pub path: String,
    /// The line, when it is known.
    pub line: Option<u64>,
    /// The kind of the object.
    pub kind: Option<String>,
    /// The object, as `namespace/name`.
    pub object: Option<String>,
    /// The path of the field.
    pub field: Option<String>,
    /// Why.
    pub reason: String,
    /// Whether a last good version stays in force.
    pub kept: bool,
    /// Whether there is none, and the object is in force without what cannot be used of it.
    #[serde(default)]
    pub in_part: bool,
    /// All of it in one sentence.
    pub message: String,
}

/// A local pod.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// `metadata.uid`
    pub uid: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The host side of its interface.
    pub interface: Option<InterfaceStatus>,
    /// Why it has no interface.
    pub missing: Option<String>,
    /// Whether its policies are enforced: its endpoint is written and both programs are attached.
    pub enforced: bool,
    /// Why it is not.
    pub error: Option<String>,
    /// What it may receive.
    pub ingress: IsolationStatus,
    /// What it may send.
    pub egress: IsolationStatus,
    /// Packets by direction and reason; only what was counted.
    pub packets: Vec<PacketStatus>,
}

/// A network interface.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStatus {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// The isolation of a pod in one direction.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IsolationStatus {
    /// Whether a policy selects the pod for this direction.
    pub isolated: bool,
    /// The ruleset; the same number is the same rules, on every node and in every run.
    pub ruleset: Option<String>,
    /// Names of the policies, of the pod's namespace, that select it for this direction.
    pub policies: Vec<String>,
}

/// What was counted for a pod.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PacketStatus {
    /// `ingress` or `egress`.
    pub direction: String,
    /// Why packets passed or were dropped.
    pub reason: String,
    /// Whether they were dropped.
    pub dropped: bool,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A policy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// Names of the pods of this node, of its namespace, that it selects.
    pub pods: Vec<String>,
}

/// A table of the kernel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableStatus {
    /// Its name.
    pub name: String,
    /// How many elements it holds.
    pub entries: usize,
    /// How many it can hold.
    pub capacity: usize,
}

/// Drops that are told nowhere one by one, and flows that were lost. Every drop is counted in [`PodStatus::packets`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropStatus {
    /// Without a record: the pod had caused too many in that second.
    pub over_budget: u64,
    /// Without a record: the buffer was full.
    pub buffer_full: u64,
    /// With a record that the agent had no time for.
    pub unread: u64,
    /// Flows that the tables had lost and connection tracking still knew.
    pub repaired: u64,
    /// Drops that may have been answers, whose flow was not looked for because there were too many.
    pub unasked: u64,
}

/// What is not written yet.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingStatus {
    /// Edits of tables that wait.
    pub edits: usize,
    /// Why they could not be written, or what else failed.
    pub error: Option<String>,
    /// Since when, in seconds of the Unix epoch.
    pub since: Option<u64>,
}

impl From<&Problem> for ProblemStatus {
    fn from(problem: &Problem) -> Self {
        let message = problem.to_string();
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        match problem {
            Problem::Unreadable {
                path,
                line,
                reason,
                kept,
            } => Self {
                class: "unreadable".into(),
                path: path.display().to_string(),
                line: *line,
                kind: None,
                object: None,
                field: None,
                reason: reason.clone(),
                kept: *kept > 0,
                in_part: false,
                message,
            },
            Problem::Refused {
                path,
                kind,
                object,
                field,
                reason,
                kept,
                in_part,
            } => Self {
                class: "refused".into(),
                path: path
                    .as_ref()
                    .map_or_else(String::new, |path| path.display().to_string()),
                line: None,
                kind: Some(kind.clone()),
                object: Some(object.to_string()),
                field: some(field),
                reason: reason.clone(),
                kept: *kept,
                in_part: *in_part,
                message,
            },
            Problem::Duplicate {
                kind, object, path, ..
            } => Self {
                class: "duplicate".into(),
                path: path.display().to_string(),
                line: None,
                kind: Some(kind.to_string()),
                object: Some(object.to_string()),
                field: None,
                reason: "defined more than once".into(),
                kept: true,
                in_part: false,
                message,
            },
        }
    }
}

/// Puts the status together.
pub(super) fn of<K: Kernel>(
    enforcer: &Enforcer<K>,
    node: &str,
    source: SourceStatus,
    drops: DropStatus,
) -> Status {
    let report = enforcer.report();
    let mut pods: Vec<_> = enforcer
        .index
        .local_pods()
        .map(|pod| {
            let (interface, missing) = match report.pods.get(&pod.key) {
                _ if enforcer.endpoints.of(&pod.key).is_some() => {
                    let found = enforcer.endpoints.of(&pod.key);
                    (found.map(|(index, t)| (index, t.name.clone())), None)
                }
                Some((_, Ok(Place { interface, .. }))) => {
                    (Some((interface.index, interface.name.clone())), None)
                }
                Some((_, Err(why))) => (None, Some(why.to_string())),
                None => (None, Some("not looked for yet".to_owned())),
            };
            let index = interface.as_ref().map(|(index, _)| *index);
            let error = index.and_then(|i| enforcer.endpoints.errors.get(&i).cloned());
            let error = error.or_else(|| enforcer.hooks.errors.get(&index?).cloned());
            let enforced = error.is_none()
                && index.is_some_and(|i| {
                    enforcer.hooks.guard_pod(i) && enforcer.endpoints.actual.contains_key(&i)
                });
            PodStatus {
                namespace: pod.key.namespace.clone(),
                name: pod.key.name.clone(),
                uid: pod.uid.to_owned(),
                packets: index.map_or_else(Vec::new, |index| packets(enforcer, index)),
                addresses: pod.addresses,
                interface: interface.map(|(index, name)| InterfaceStatus { index, name }),
                missing,
                enforced,
                error,
                ingress: isolation(pod.ingress, &pod.ingress_policies),
                egress: isolation(pod.egress, &pod.egress_policies),
            }
        })
        .collect();
    pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let mut policies: Vec<_> = enforcer
        .index
        .policies()
        .map(|policy| PolicyStatus {
            namespace: policy.key.namespace.clone(),
            name: policy.key.name.clone(),
            pods: policy
                .pods
                .into_iter()
                .map(|ObjectKey { name, .. }| name)
                .collect(),
        })
        .collect();
    policies.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let tables = enforcer.kernel.fill().unwrap_or_else(|e| {
        tracing::warn!(error = %e, "cannot read how full the tables are");
        Vec::new()
    });
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        node: node.to_owned(),
        enforcing: enforcer.programmed(),
        source,
        hook: enforcer.kernel.hook(),
        devices: DevicesStatus {
            pods: enforcer.hooks.count(DeviceKind::Pod),
            others: enforcer.hooks.count(DeviceKind::Host) + enforcer.hooks.count(DeviceKind::Bare),
            // Before it starts to enforce, the agent puts no programs anywhere.
            missing: if enforcer.programmed() {
                enforcer.hooks.behind()
            } else {
                Vec::new()
            },
        },
        epoch: enforcer.kernel.epoch(),
        pods,
        policies,
        tables: tables
            .into_iter()
            .map(|table| TableStatus {
                name: table.name.to_owned(),
                entries: table.entries,
                capacity: table.capacity,
            })
            .collect(),
        drops,
        pending: PendingStatus {
            edits: enforcer.pending(),
            error: enforcer.failure.as_ref().map(|f| f.error.clone()),
            since: enforcer.failure.as_ref().map(|f| seconds(f.since)),
        },
        trouble: if enforcer.programmed() && !enforcer.kernel.pinned() {
            Some(GONE.to_owned())
        } else {
            report.trouble.clone()
        },
    }
}

fn isolation(isolation: Isolation, policies: &[&str]) -> IsolationStatus {
    IsolationStatus {
        isolated: isolation.ruleset().is_some(),
        ruleset: isolation.ruleset().map(|ruleset| format!("{ruleset:016x}")),
        policies: policies.iter().map(|&name| name.to_owned()).collect(),
    }
}

fn packets<K: Kernel>(enforcer: &Enforcer<K>, interface: u32) -> Vec<PacketStatus> {
    let Some(endpoint) = enforcer.endpoints.actual.get(&interface) else {
        return Vec::new();
    };
    let tallies = match enforcer.kernel.statistics(endpoint.slot) {
        Ok(tallies) => tallies,
        Err(e) => {
            tracing::warn!(interface, error = %e, "cannot read what was counted");
            return Vec::new();
        }
    };
    let all = Direction::BOTH
        .into_iter()
        .flat_map(|d| Reason::ALL.map(|reason| (d, reason)));
    all.filter_map(|(direction, reason)| {
        let tally = tallies[direction as usize][reason as usize];
        (tally.packets > 0).then(|| PacketStatus {
            direction: direction.to_string(),
            reason: reason.name().to_owned(),
            dropped: !reason.passes(),
            packets: tally.packets,
            bytes: tally.bytes,
        })
    })
    .collect()
}
