//! `netpol-agent status`

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context as _, bail};
use comfy_table::{Cell, CellAlignment, Table, presets};

use super::{Output, StatusArgs, client};
use crate::agent::{IsolationStatus, PodStatus, Request, Response, Status};

/// How long the agent may take.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let response = client::ask(&args.run_dir.run_dir, &Request::Status, LIMIT)?;
    let Response::Status { status } = response else {
        bail!("the agent gave an answer to another question: {response:?}");
    };
    match args.output {
        Output::Json => {
            let text = serde_json::to_string_pretty(&status).context("cannot write JSON")?;
            println!("{text}");
        }
        Output::Text => print!("{}", text(&status)),
    }
    Ok(())
}

/// The status for people.
fn text(status: &Status) -> String {
    let mut out = String::new();
    head(&mut out, status);
    pods(&mut out, &status.pods);
    policies(&mut out, status);
    packets(&mut out, &status.pods);
    tables(&mut out, status);
    out
}

fn line(out: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "{name:<10} {value}");
}

fn head(out: &mut String, status: &Status) {
    line(out, "node", &status.node);
    line(
        out,
        "source",
        format_args!(
            "{}, revision {}",
            status.source.description, status.source.revision
        ),
    );
    if let Some(away) = &status.source.away {
        line(
            out,
            "away",
            format_args!(
                "the source cannot be reached since {}: {}; what is enforced stays in force",
                ago(away.since),
                away.reason
            ),
        );
    }
    line(
        out,
        "hook",
        format_args!("{}, epoch {}", status.hook, status.epoch),
    );
    line(
        out,
        "devices",
        format_args!(
            "programs on {} of pods and {} others",
            status.devices.pods, status.devices.others
        ),
    );
    for missing in &status.devices.missing {
        line(out, "problem", missing);
    }
    let state = match (status.enforcing, &status.pending.error) {
        (false, None) if !status.source.complete => {
            "not yet: the first list of objects is not complete; what an earlier agent left is in force".to_owned()
        }
        (false, None) => "not yet: the node is being looked at; what an earlier agent left is in force".to_owned(),
        (_, Some(error)) => format!(
            "{} edits are waiting since {}: {error}; what was written before stays in force, this is tried again",
            status.pending.edits,
            status.pending.since.map_or_else(|| "now".to_owned(), ago)
        ),
        (true, None) if status.pending.edits > 0 => format!("{} edits are waiting", status.pending.edits),
        (true, None) => "everything is written".to_owned(),
    };
    line(out, "enforcing", state);
    if let Some(trouble) = &status.trouble {
        line(out, "trouble", trouble);
    }
    let drops = &status.drops;
    line(
        out,
        "drops",
        format_args!(
            "{} not told one by one ({} over budget, {} buffer full, {} unread)",
            drops.over_budget + drops.buffer_full + drops.unread,
            drops.over_budget,
            drops.buffer_full,
            drops.unread
        ),
    );
    line(
        out,
        "flows",
        format_args!(
            "{} lost and repaired, {} not looked for",
            drops.repaired, drops.unasked
        ),
    );
    for problem in &status.source.problems {
        line(
            out,
            if problem.class == "duplicate" {
                "warning"
            } else {
                "problem"
            },
            &problem.message,
        );
    }
}

fn ago(since: u64) -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    format!("{} s", now.as_secs().saturating_sub(since))
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

fn show(out: &mut String, title: &str, mut table: Table) {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let _ = writeln!(out, "\n{title}");
    for line in table.lines() {
        let _ = writeln!(out, "  {}", line.trim_end());
    }
}

fn pods(out: &mut String, pods: &[PodStatus]) {
    if pods.is_empty() {
        let _ = writeln!(out, "\nNo pods of this node");
        return;
    }
    let mut rows = table(&["POD", "ADDRESSES", "INTERFACE", "INGRESS", "EGRESS"]);
    for pod in pods {
        let addresses: Vec<_> = pod.addresses.iter().map(ToString::to_string).collect();
        let mut interface = pod.interface.as_ref().map_or_else(
            || "none".to_owned(),
            |i| format!("{} ({})", i.name, i.index),
        );
        if pod.interface.is_some() && !pod.enforced {
            interface.push_str(", not enforced");
        }
        rows.add_row([
            format!("{}/{}", pod.namespace, pod.name),
            addresses.join(" "),
            interface,
            isolation(&pod.ingress),
            isolation(&pod.egress),
        ]);
    }
    show(out, "Pods of this node", rows);
    for pod in pods {
        for reason in pod.missing.iter().chain(&pod.error) {
            let _ = writeln!(out, "  {}/{}: {reason}", pod.namespace, pod.name);
        }
    }
}

fn isolation(isolation: &IsolationStatus) -> String {
    let Some(ruleset) = &isolation.ruleset else {
        return "open".to_owned();
    };
    let short = ruleset.get(..8).unwrap_or(ruleset);
    format!("{} [{short}]", isolation.policies.join(" "))
}

fn policies(out: &mut String, status: &Status) {
    if status.policies.is_empty() {
        let _ = writeln!(out, "\nNo policies");
        return;
    }
    let mut rows = table(&["POLICY", "SELECTS HERE"]);
    for policy in &status.policies {
        let pods = if policy.pods.is_empty() {
            "no pod".to_owned()
        } else {
            policy.pods.join(" ")
        };
        rows.add_row([format!("{}/{}", policy.namespace, policy.name), pods]);
    }
    show(out, "Policies", rows);
}

fn packets(out: &mut String, pods: &[PodStatus]) {
    let mut rows = table(&["POD", "DIRECTION", "VERDICT", "REASON", "PACKETS", "BYTES"]);
    let right = |n: u64| Cell::new(n).set_alignment(CellAlignment::Right);
    for pod in pods {
        for count in &pod.packets {
            rows.add_row([
                Cell::new(format!("{}/{}", pod.namespace, pod.name)),
                Cell::new(&count.direction),
                Cell::new(if count.dropped { "dropped" } else { "passed" }),
                Cell::new(&count.reason),
                right(count.packets),
                right(count.bytes),
            ]);
        }
    }
    if rows.row_iter().next().is_some() {
        show(out, "Packets", rows);
    }
}

fn tables(out: &mut String, status: &Status) {
    let mut rows = table(&["TABLE", "ENTRIES", "CAPACITY"]);
    for fill in &status.tables {
        let right = |n: usize| Cell::new(n).set_alignment(CellAlignment::Right);
        rows.add_row([
            Cell::new(&fill.name),
            right(fill.entries),
            right(fill.capacity),
        ]);
    }
    show(out, "Tables", rows);
}
