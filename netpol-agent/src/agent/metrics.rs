//! What `/metrics` serves, in the text format of OpenMetrics 1.0. docs/metrics.md has the same list, and a test compares them.
//!
//! No label has values that the cluster decides: the number of series is the same on every node, whatever runs there.

mod process;
#[cfg(test)]
mod tests;

use std::{fmt, time::SystemTime};

use netpol_common::{Direction, Reason, lost};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::{MetricType, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::health::Vitals;
use crate::dataplane::{TableFill, Tallies};
pub(super) use process::Process;

/// The media type of [`text`].
pub(super) const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the kernel has counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted {
    /// Packets of all endpoints that are and were.
    pub packets: Tallies,
    /// Drops without a record, by [`lost`].
    pub lost: [u64; lost::COUNT as usize],
    /// How full tables are.
    pub tables: Vec<TableFill>,
}

/// Everything that is served, at one moment.
#[derive(Clone, Debug)]
pub(super) struct Exposition {
    pub vitals: Vitals,
    pub counted: Counted,
    pub process: Process,
    pub durations: Histogram,
}

/// The text of an exposition.
pub(super) fn text(exposition: Exposition) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_with_unit(
        "netpol_agent_enforcement_duration",
        "From the arrival of a change of objects to the moment when all that follows from it is in the kernel",
        Unit::Seconds,
        exposition.durations.clone(),
    );
    registry.register_collector(Box::new(exposition));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// Label names with their values.
type Labels<'a> = Vec<(&'a str, &'a str)>;

/// Writes metrics one after the other.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn metric(
        &mut self,
        (name, unit): (&str, Option<Unit>),
        help: &str,
        kind: MetricType,
        mut samples: impl FnMut(&mut MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        samples(&mut self.0.encode_descriptor(name, help, unit.as_ref(), kind)?)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.metric((name, None), help, MetricType::Counter, |metric| {
            metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
        })
    }

    fn counters<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        let mut values = Some(values);
        self.metric((name, None), help, MetricType::Counter, |metric| {
            for (labels, value) in values.take().into_iter().flatten() {
                metric
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
            }
            Ok(())
        })
    }

    fn gauge(&mut self, name: &str, help: &str, value: usize) -> fmt::Result {
        self.metric((name, None), help, MetricType::Gauge, |metric| {
            metric.encode_gauge(&(value as i64))
        })
    }

    fn seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let unit = Some(Unit::Seconds);
        self.metric((name, unit), help, MetricType::Gauge, |metric| {
            metric.encode_gauge(&value)
        })
    }

    fn gauges<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'l>, usize)>,
    ) -> fmt::Result {
        let mut values = Some(values);
        self.metric((name, None), help, MetricType::Gauge, |metric| {
            for (labels, value) in values.take().into_iter().flatten() {
                metric
                    .encode_family(&labels)?
                    .encode_gauge(&(value as i64))?;
            }
            Ok(())
        })
    }
}

impl Collector for Exposition {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        page.metric(
            ("netpol_agent_build", None),
            "The version of the agent.",
            MetricType::Info,
            |metric| metric.encode_info(&vec![("version", env!("CARGO_PKG_VERSION"))]),
        )?;
        self.packets(&mut page)?;
        self.drops(&mut page)?;
        self.state(&mut page)?;
        self.enforcement(&mut page)?;
        self.process.encode(&mut page)
    }
}

impl Exposition {
    fn packets(&self, page: &mut Page<'_>) -> fmt::Result {
        let tallies = |of: fn(&netpol_common::Tally) -> u64| {
            let both = ["ingress", "egress"].into_iter().zip(Direction::BOTH);
            both.flat_map(move |(name, direction)| {
                Reason::ALL.map(|reason| {
                    let verdict = if reason.passes() { "pass" } else { "drop" };
                    let labels = vec![
                        ("direction", name),
                        ("verdict", verdict),
                        ("reason", reason.name()),
                    ];
                    let tally = &self.counted.packets[direction as usize][reason as usize];
                    (labels, of(tally))
                })
            })
        };
        page.counters(
            "netpol_agent_packets",
            "Packets of pods that were judged, by direction as the pod sees it, verdict and reason.",
            tallies(|tally| tally.packets),
        )?;
        page.counters(
            "netpol_agent_bytes",
            "Bytes of these packets, Ethernet header included.",
            tallies(|tally| tally.bytes),
        )
    }

    fn drops(&self, page: &mut Page<'_>) -> fmt::Result {
        let (vitals, lost) = (&self.vitals, &self.counted.lost);
        page.counters(
            "netpol_agent_drop_records_lost",
            "Drops that are counted and were not told one by one, by cause.",
            [
                ("over_budget", lost[lost::BUDGET as usize]),
                ("buffer_full", lost[lost::FULL as usize]),
                ("unread", vitals.unread),
            ]
            .map(|(cause, value)| (vec![("cause", cause)], value)),
        )?;
        page.counter(
            "netpol_agent_flows_repaired",
            "Flows that the tables had lost and connection tracking still knew.",
            vitals.repaired,
        )?;
        page.counter(
            "netpol_agent_flow_repairs_skipped",
            "Drops that may have been answers, whose flow was not looked for because there were too many.",
            vitals.unasked,
        )
    }

    fn state(&self, page: &mut Page<'_>) -> fmt::Result {
        let vitals = &self.vitals;
        page.gauge(
            "netpol_agent_ready",
            "1 once everything that was there at the start is enforced.",
            usize::from(vitals.unready.is_empty()),
        )?;
        page.gauge(
            "netpol_agent_source_complete",
            "1 once the initial lists of objects are complete.",
            usize::from(vitals.complete),
        )?;
        page.gauge(
            "netpol_agent_source_connected",
            "1 while the source of objects can be reached.",
            usize::from(vitals.away_since.is_none()),
        )?;
        page.seconds(
            "netpol_agent_source_away_since_timestamp",
            "Since when it cannot be reached; 0 while it can.",
            vitals.away_since.map_or(0.0, since_epoch),
        )?;
        page.gauges(
            "netpol_agent_source_problems",
            "Files and objects that cannot be used as they are, by type.",
            ["unreadable", "refused", "duplicate"]
                .into_iter()
                .zip(vitals.problems)
                .map(|(class, value)| (vec![("type", class)], value)),
        )?;
        page.gauge(
            "netpol_agent_policies",
            "NetworkPolicies of the cluster.",
            vitals.policies,
        )?;
        page.gauge(
            "netpol_agent_pods",
            "Pods of this node that have a network of their own.",
            vitals.pods,
        )?;
        page.gauge(
            "netpol_agent_pods_without_interface",
            "Those of them whose interface is not found (yet).",
            vitals.missing,
        )?;
        page.gauge(
            "netpol_agent_endpoints",
            "Pods of this node whose rules are in the kernel.",
            vitals.endpoints,
        )?;
        page.gauge(
            "netpol_agent_endpoints_failed",
            "Pods of this node whose rules could not be brought into the kernel.",
            vitals.failed,
        )?;
        page.gauges(
            "netpol_agent_endpoints_isolated",
            "Pods whose rules are in the kernel that a policy selects, by direction.",
            ["ingress", "egress"]
                .into_iter()
                .zip(vitals.isolated)
                .map(|(direction, value)| (vec![("direction", direction)], value)),
        )?;
        page.gauges(
            "netpol_agent_devices",
            "Network devices of the node that carry the programs: the host side of pods' interfaces, and others.",
            ["pod", "other"]
                .into_iter()
                .zip(vitals.devices)
                .map(|(kind, value)| (vec![("kind", kind)], value)),
        )?;
        page.gauge(
            "netpol_agent_devices_missing",
            "Network devices of the node that lack their programs.",
            vitals.bare_devices,
        )?;
        let table = |t: fn(&TableFill) -> usize| {
            let rows = self.counted.tables.iter();
            rows.map(move |fill| (vec![("table", fill.name)], t(fill)))
        };
        page.gauges(
            "netpol_agent_table_entries",
            "Elements that a table of the kernel holds.",
            table(|fill| fill.entries),
        )?;
        page.gauges(
            "netpol_agent_table_capacity",
            "Elements that it can hold.",
            table(|fill| fill.capacity),
        )
    }

    fn enforcement(&self, page: &mut Page<'_>) -> fmt::Result {
        let vitals = &self.vitals;
        page.counter(
            "netpol_agent_epoch_changes",
            "How often this process made the kernel judge all live connections again.",
            vitals.epochs.into(),
        )?;
        page.counter(
            "netpol_agent_enforcement_failures",
            "Writes to the kernel that failed and are tried again.",
            vitals.failures,
        )?;
        page.gauge(
            "netpol_agent_pending_edits",
            "Edits of tables that are not in the kernel.",
            vitals.pending,
        )?;
        page.seconds(
            "netpol_agent_enforcement_delay",
            "For how long the oldest change has been waiting that is not in the kernel completely; 0 if none is.",
            vitals.waiting.as_secs_f64(),
        )?;
        page.seconds(
            "netpol_agent_last_enforcement_timestamp",
            "When the last change of objects was in the kernel completely; 0 before the first.",
            vitals.enforced_at.map_or(0.0, since_epoch),
        )
    }
}

fn since_epoch(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64())
}
