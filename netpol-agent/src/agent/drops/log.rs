//! One line for each kind of drop, now and then, with names.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant, SystemTime},
};

use netpol_common::{Address, Direction, Event, Reason, protocol, tcp};

use super::super::{enforcer::Enforcer, kernel::Kernel};
use crate::dataplane;

/// How often the same is told again.
const INTERVAL: Duration = Duration::from_secs(10);
/// How many different things are told of one pod in this time, and remembered of all.
const LINES: (u32, usize) = (32, 4096);

/// What makes two drops the same for a reader of the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Same {
    interface: u32,
    direction: u8,
    peer: Address,
    service: Address,
    port: u16,
    protocol: u8,
    reason: u8,
}

/// What came since it was told last.
struct Pending {
    latest: Event,
    packets: u64,
}

/// What was told, and what has to be told.
#[derive(Default)]
pub(super) struct Log {
    told: BTreeMap<Same, Pending>,
    lines: BTreeMap<u32, u32>,
    /// By interface: packets of which no line told.
    rest: BTreeMap<u32, u64>,
    due: Option<Instant>,
}

impl Log {
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Tells a drop, or counts it for later.
    pub fn take<K: Kernel>(&mut self, event: &Event, enforcer: &Enforcer<K>) {
        self.due.get_or_insert_with(|| Instant::now() + INTERVAL);
        let same = Same::of(event);
        if let Some(pending) = self.told.get_mut(&same) {
            pending.packets += 1;
            pending.latest = *event;
            return;
        }
        let lines = self.lines.entry(event.interface).or_default();
        if *lines >= LINES.0 || self.told.len() >= LINES.1 {
            *self.rest.entry(event.interface).or_default() += 1;
            return;
        }
        *lines += 1;
        let pending = Pending {
            latest: *event,
            packets: 0,
        };
        self.told.insert(same, pending);
        line(event, 1, enforcer);
    }

    /// Tells what was counted, and begins anew.
    pub fn tell<K: Kernel>(&mut self, enforcer: &Enforcer<K>) {
        self.due = None;
        self.lines.clear();
        self.told.retain(|same, pending| {
            let packets = std::mem::take(&mut pending.packets);
            if packets > 0 {
                line(&pending.latest, packets, enforcer);
                *self.lines.entry(same.interface).or_default() += 1;
            }
            packets > 0
        });
        for (interface, packets) in std::mem::take(&mut self.rest) {
            let pod = pod(interface, enforcer);
            tracing::info!(pod, packets, "more packets of other kinds were dropped");
        }
        if !self.told.is_empty() {
            self.due = Some(Instant::now() + INTERVAL);
        }
    }
}

impl Same {
    fn of(event: &Event) -> Self {
        Self {
            interface: event.interface,
            direction: event.direction,
            peer: peer(event),
            service: event.service,
            port: event.destination_port,
            protocol: event.protocol,
            reason: event.reason,
        }
    }
}

fn peer(event: &Event) -> Address {
    if event.direction == Direction::Egress as u8 {
        event.destination
    } else {
        event.source
    }
}

fn pod<K: Kernel>(interface: u32, enforcer: &Enforcer<K>) -> String {
    let endpoints = &enforcer.endpoints;
    if let Some(before) = endpoints.disputed.get(&interface) {
        return format!(
            "a pod that is not known yet (interface {interface}), with the address of {before}, which is being deleted"
        );
    }
    if endpoints.holds(interface) {
        return format!("a pod that is not known yet (interface {interface})");
    }
    match endpoints.targets.get(&interface) {
        Some(target) => target.pod.to_string(),
        None => format!("a pod that is gone (interface {interface})"),
    }
}

/// Who has an address: a pod, the node, or the address itself.
fn name<K: Kernel>(address: &Address, enforcer: &Enforcer<K>) -> String {
    if let Some(pod) = enforcer.index.pod_at(address) {
        return pod.to_string();
    }
    let ip = address.to_ip();
    if enforcer.report().addresses.contains(&ip) {
        return format!("node {ip}");
    }
    ip.to_string()
}

fn device<K: Kernel>(index: u32, enforcer: &Enforcer<K>) -> String {
    if let Some(target) = enforcer.endpoints.targets.get(&index) {
        return target.name.clone();
    }
    nix::net::if_::if_indextoname(index)
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| index.to_string())
}

fn line<K: Kernel>(event: &Event, packets: u64, enforcer: &Enforcer<K>) {
    let sends = event.direction == Direction::Egress as u8;
    let direction = if sends {
        Direction::Egress
    } else {
        Direction::Ingress
    };
    let known = event.source != Address::NONE || event.destination != Address::NONE;
    let number = |n: u16| known.then_some(n);
    let service = (event.service != Address::NONE).then(|| {
        format!(
            "via Service {}",
            endpoint(&event.service, event.service_port)
        )
    });
    tracing::info!(
        pod = pod(event.interface, enforcer),
        %direction,
        peer = known.then(|| name(&peer(event), enforcer)),
        reason = Reason::ALL
            .get(usize::from(event.reason))
            .map_or("unknown", |reason| reason.name()),
        protocol = known.then(|| protocol_name(event.protocol)),
        source = known.then(|| event.source.to_string()),
        source_port = number(event.source_port),
        destination = known.then(|| event.destination.to_string()),
        destination_port = number(event.destination_port),
        service,
        tcp_flags = (event.protocol == protocol::TCP).then(|| flags(event.tcp_flags)),
        ether_type = (!known).then(|| format!("{:#06x}", event.ether_type)),
        length = event.length,
        device = device(event.device, enforcer),
        time = unix_time(event.time),
        packets,
        "dropped"
    );
}

fn endpoint(address: &Address, port: u16) -> String {
    std::net::SocketAddr::new(address.to_ip(), port).to_string()
}

fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "TCP".into(),
        protocol::UDP => "UDP".into(),
        protocol::SCTP => "SCTP".into(),
        protocol::ICMP => "ICMP".into(),
        protocol::ICMPV6 => "ICMPv6".into(),
        number => number.to_string(),
    }
}

fn flags(flags: u8) -> String {
    let mut text = String::new();
    let names = [
        (tcp::SYN, "SYN"),
        (tcp::FIN, "FIN"),
        (tcp::RST, "RST"),
        (0x08, "PSH"),
        (tcp::ACK, "ACK"),
        (0x20, "URG"),
    ];
    for (flag, name) in names {
        if flags & flag != 0 {
            let comma = if text.is_empty() { "" } else { "," };
            let _ = write!(text, "{comma}{name}");
        }
    }
    text
}

/// Seconds since 1970, of a time on the kernel's monotonic clock.
fn unix_time(monotonic: u64) -> String {
    let age = dataplane::monotonic().saturating_sub(monotonic);
    let time = SystemTime::now()
        .checked_sub(Duration::from_nanos(age))
        .and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok())
        .unwrap_or_default();
    format!("{}.{:06}", time.as_secs(), time.subsec_micros())
}
