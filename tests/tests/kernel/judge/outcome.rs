//! What one packet leaves behind, in either home, and how two of that differ.

use std::{
    collections::BTreeMap,
    fmt::{Debug, Write as _},
};

use netpol_common::{Budget, Direction, Event, Flow, FlowKey, Fragment, FragmentKey, lost};

use super::counts::Counts;

/// A key as a reader wants it.
fn flow_key(key: &FlowKey) -> String {
    format!(
        "interface {}, port {}, remote {} port {}, protocol {:#x}",
        key.interface, key.local_port, key.remote, key.remote_port, key.protocol
    )
}

fn flow(flow: &Flow) -> String {
    let Flow {
        epoch,
        origin,
        phase,
        flags,
        seen,
        ..
    } = flow;
    format!(
        "allowed {epoch} changes ago, origin {origin}, phase {phase}, flags {flags:#x}, seen {seen} ticks ago, backend {} port {}",
        flow.backend, flow.backend_port
    )
}

/// What one packet leaves behind. Epochs and times are told as "so many changes ago" and "so many ticks ago": the two homes
/// need not count from the same beginning.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    pub passes: bool,
    pub mark: u32,
    /// The packet, if it was changed.
    pub changed: Option<Vec<u8>>,
    /// The device of the hook, by which the packet came in, and two words that belong to others.
    pub context: [u32; 4],
    /// What this packet was counted as.
    pub counted: Counts,
    pub events: Vec<Event>,
    /// Drops without a record, by [`lost`].
    pub lost: [u64; lost::COUNT as usize],
    pub budgets: BTreeMap<(u32, Direction), Budget>,
    pub flows: BTreeMap<FlowKey, Flow>,
    pub opening: BTreeMap<FlowKey, Flow>,
    pub fragments: BTreeMap<FragmentKey, Fragment>,
    pub tickets: BTreeMap<u32, FlowKey>,
}

impl Outcome {
    /// What differs; `None` if nothing does.
    pub fn difference(&self, host: &Self) -> Option<String> {
        if self == host {
            return None;
        }
        let mut told = String::new();
        one(&mut told, "passes", &self.passes, &host.passes);
        one(&mut told, "mark", &Hex(self.mark), &Hex(host.mark));
        one(&mut told, "packet changed", &self.changed, &host.changed);
        one(&mut told, "context", &self.context, &host.context);
        table(&mut told, "counted", &self.counted, &host.counted);
        one(&mut told, "events", &self.events, &host.events);
        one(&mut told, "lost", &self.lost, &host.lost);
        table(&mut told, "BUDGETS", &self.budgets, &host.budgets);
        for (what, kernel, host) in [
            ("FLOWS", &self.flows, &host.flows),
            ("OPENING", &self.opening, &host.opening),
        ] {
            table(&mut told, what, &readable(kernel), &readable(host));
        }
        table(&mut told, "FRAGMENTS", &self.fragments, &host.fragments);
        let keys = |tickets: &BTreeMap<u32, FlowKey>| {
            let keys = tickets.iter();
            keys.map(|(number, key)| (*number, flow_key(key))).collect()
        };
        let (kernel, host): (BTreeMap<u32, String>, _) = (keys(&self.tickets), keys(&host.tickets));
        table(&mut told, "TICKETS", &kernel, &host);
        Some(told)
    }
}

fn readable(flows: &BTreeMap<FlowKey, Flow>) -> BTreeMap<String, String> {
    let flows = flows.iter();
    flows
        .map(|(key, value)| (flow_key(key), flow(value)))
        .collect()
}

#[derive(PartialEq)]
struct Hex(u32);

impl Debug for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

fn one<T: PartialEq + Debug>(told: &mut String, what: &str, kernel: &T, host: &T) {
    if kernel != host {
        let _ = writeln!(told, "{what}\n  kernel {kernel:?}\n  host   {host:?}");
    }
}

fn table<K: Ord + Debug, V: PartialEq + Debug>(
    told: &mut String,
    what: &str,
    kernel: &BTreeMap<K, V>,
    host: &BTreeMap<K, V>,
) {
    if kernel == host {
        return;
    }
    let _ = writeln!(told, "{what}");
    for (home, own, other) in [("kernel", kernel, host), ("host  ", host, kernel)] {
        for (key, value) in own
            .iter()
            .filter(|(key, value)| other.get(key) != Some(value))
        {
            let _ = writeln!(told, "  {home} {key:?}: {value:?}");
        }
    }
}
