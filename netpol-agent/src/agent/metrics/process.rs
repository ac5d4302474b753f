//! What the process uses: the `process_*` metrics that every Prometheus client library has.

use std::{fmt, fs, time::SystemTime};

use nix::sys::{
    resource::{Resource, Usage, UsageWho, getrlimit, getrusage},
    time::TimeValLike as _,
};
use prometheus_client::{encoding::NoLabelSet, metrics::MetricType, registry::Unit};

use super::{Page, since_epoch};

/// What the process uses. What cannot be read is 0.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::agent) struct Process {
    cpu_seconds: f64,
    resident_bytes: usize,
    virtual_bytes: usize,
    open_fds: usize,
    max_fds: usize,
    start: f64,
}

impl Process {
    /// As it is now.
    pub fn now(start: SystemTime) -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            cpu_seconds: getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| cpu(&usage)),
            resident_bytes: kibibytes(&status, "VmRSS:") << 10,
            virtual_bytes: kibibytes(&status, "VmSize:") << 10,
            // One of them is the directory that is being read.
            open_fds: fs::read_dir("/proc/self/fd").map_or(0, |all| all.count().saturating_sub(1)),
            max_fds: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft as usize),
            start: since_epoch(start),
        }
    }

    pub(super) fn encode(&self, page: &mut Page<'_>) -> fmt::Result {
        page.metric(
            ("process_cpu", Some(Unit::Seconds)),
            "CPU time that the process has used, user and system.",
            MetricType::Counter,
            |metric| metric.encode_counter::<NoLabelSet, _, f64>(&self.cpu_seconds, None),
        )?;
        for (name, help, value) in [
            (
                "process_resident_memory",
                "Memory that is in use.",
                self.resident_bytes,
            ),
            (
                "process_virtual_memory",
                "Addresses that are in use.",
                self.virtual_bytes,
            ),
        ] {
            let unit = Some(Unit::Bytes);
            page.metric((name, unit), help, MetricType::Gauge, |metric| {
                metric.encode_gauge(&(value as i64))
            })?;
        }
        page.gauge("process_open_fds", "Open file descriptors.", self.open_fds)?;
        page.gauge(
            "process_max_fds",
            "How many file descriptors may be open.",
            self.max_fds,
        )?;
        page.seconds(
            "process_start_time",
            "When the process was started, as a time of the Unix epoch.",
            self.start,
        )
    }
}

fn cpu(usage: &Usage) -> f64 {
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    micros as f64 / 1e6
}

/// A line of /proc/self/status, such as `VmRSS:     12345 kB`.
fn kibibytes(status: &str, name: &str) -> usize {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
