//! Flows that the tables have lost, or never had: found again in the kernel's connection tracking, never guessed.
//!
//! A packet without a flow is judged in its own direction. If it is dropped and may be an answer, who opened the
//! conversation is asked here, and only if that was the *other* side the flow is written. It carries no epoch of today: the next
//! packet is judged by the rules, in the direction in which the conversation was opened.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use netpol_common::{
    Address, Direction, Endpoint, Event, Flow, FlowKey, Phase, Reason, Tick, icmp, protocol,
};

use crate::{
    conntrack::{Connection, Conntrack, Tuple},
    dataplane::{self, Dataplane, Flows},
};

/// How many questions a second, of all pods and of one: no pod keeps the answers from the others.
const QUESTIONS: (u32, u32) = (512, 64);

/// How long the list of who has which address may be old.
const OWNERS_AGE: Duration = Duration::from_secs(1);

/// What became of a drop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// It answers nothing.
    Rightful,
    /// Too many were asked about.
    Limited,
    /// Nobody knows of a conversation that the other side has opened.
    Unknown,
    /// The next packet finds its flow.
    Repaired,
}

/// Writes lost flows again.
pub(super) struct Repairer {
    flows: Flows,
    conntrack: Option<Conntrack>,
    window: Instant,
    asked: u32,
    asked_by: BTreeMap<u32, u32>,
    owners: BTreeMap<Address, u32>,
    owners_read: Option<Instant>,
}

/// A dropped packet that may answer somebody, as its pod knows the conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Lost {
    interface: u32,
    direction: Direction,
    /// From the pod to its peer, also where the packet went the other way.
    tuple: Tuple,
}

impl Repairer {
    pub fn new(flows: Flows) -> Self {
        Self {
            flows,
            conntrack: open_conntrack(),
            window: Instant::now(),
            asked: 0,
            asked_by: BTreeMap::new(),
            owners: BTreeMap::new(),
            owners_read: None,
        }
    }

    /// Looks after the flow of a dropped packet.
    pub fn consider(&mut self, event: &Event) -> Outcome {
        if !may_answer(event) {
            return Outcome::Rightful;
        }
        let Some(endpoint) = self.flows.endpoint(event.interface) else {
            return Outcome::Unknown;
        };
        let Some(lost) = lost(event, &endpoint) else {
            return Outcome::Unknown;
        };
        if !self.may_ask(event.interface) {
            return Outcome::Limited;
        }
        let found = match self.tracked(&lost) {
            Some(known) => known,
            None => self.mirrored(&lost),
        };
        let Some((key, flow)) = found else {
            return Outcome::Unknown;
        };
        match self.flows.add(&key, flow) {
            Ok(true) => Outcome::Repaired,
            Ok(false) => Outcome::Unknown,
            Err(e) => {
                tracing::warn!(error = %e, "cannot write a lost flow");
                Outcome::Unknown
            }
        }
    }

    fn may_ask(&mut self, interface: u32) -> bool {
        if self.window.elapsed() >= Duration::from_secs(1) {
            self.window = Instant::now();
            self.asked = 0;
            self.asked_by.clear();
        }
        let own = self.asked_by.entry(interface).or_default();
        if self.asked >= QUESTIONS.0 || *own >= QUESTIONS.1 {
            return false;
        }
        self.asked += 1;
        *own += 1;
        true
    }

    /// `None` if connection tracking knows nothing; else the flow, if the other side has opened it.
    fn tracked(&mut self, lost: &Lost) -> Option<Option<(FlowKey, Flow)>> {
        let conntrack = self.conntrack.as_mut()?;
        let connection = match conntrack.find(&lost.tuple) {
            Ok(connection) => connection?,
            Err(e) => {
                without_conntrack(&e);
                return None;
            }
        };
        let now = dataplane::tick();
        let flows = &self.flows;
        Some(match lost.direction {
            Direction::Egress if connection.reply == lost.tuple => {
                opened_to(&connection, lost.interface, now, |a| flows.is_node(a))
            }
            Direction::Ingress if connection.original == lost.tuple => {
                opened_by(&connection, lost.interface, now)
            }
            // Who sent this packet has opened it, and the rules do not allow that.
            _ => None,
        })
    }

    /// The flow as the pod at the other end knows it, where frames are bridged past connection tracking.
    fn mirrored(&mut self, lost: &Lost) -> Option<(FlowKey, Flow)> {
        if self.owners_read.is_none_or(|at| at.elapsed() > OWNERS_AGE) {
            self.owners = self.flows.owners();
            self.owners_read = Some(Instant::now());
        }
        let there = *self.owners.get(&lost.tuple.destination)?;
        let now = dataplane::tick();
        let key = lost.tuple.key(lost.interface, lost.direction.reverse());
        let known = self.flows.find(&lost.tuple.mirror(there, lost.direction))?;
        // What one of them receives the other one has sent.
        let opened_by_other = known.origin() == lost.direction;
        let good = opened_by_other
            && there != lost.interface
            && !known.deferred()
            && !known.expired(lost.tuple.protocol, now);
        let flow = flow(lost.direction.reverse(), known.phase, now);
        good.then_some((key, flow))
    }
}

/// How conversations are named in the flow tables.
trait Keys {
    /// The key at the endpoint that has the source address, of a flow opened in this direction.
    fn key(&self, interface: u32, origin: Direction) -> FlowKey;
    /// The key at the endpoint that has the destination address, where it was opened in this direction.
    fn mirror(&self, interface: u32, origin: Direction) -> FlowKey;
}

impl Keys for Tuple {
    fn key(&self, interface: u32, origin: Direction) -> FlowKey {
        let remote_port = match self.protocol {
            protocol::ICMP | protocol::ICMPV6 => u16::from(origin == Direction::Ingress),
            _ => self.destination_port,
        };
        FlowKey {
            remote: self.destination,
            interface,
            local_port: self.source_port,
            remote_port,
            protocol: self.protocol.into(),
        }
    }

    fn mirror(&self, interface: u32, origin: Direction) -> FlowKey {
        let mirrored = Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..*self
        };
        mirrored.key(interface, origin)
    }
}

/// Whether a dropped packet may belong to a conversation that the other side has opened. What opens a connection does not.
fn may_answer(event: &Event) -> bool {
    let reason = Reason::ALL.get(usize::from(event.reason));
    match event.protocol {
        protocol::TCP | protocol::SCTP | protocol::ICMP | protocol::ICMPV6 => {
            reason == Some(&Reason::NoFlow)
        }
        protocol::UDP => matches!(reason, Some(Reason::NoFlow | Reason::Denied)),
        _ => false,
    }
}

/// What to ask for. `None` if the pod does not own its end of it.
fn lost(event: &Event, endpoint: &Endpoint) -> Option<Lost> {
    let translated = event.service != Address::NONE;
    let (direction, local, remote, local_port, mut remote_port);
    if event.direction == Direction::Egress as u8 {
        direction = Direction::Egress;
        local_port = event.source_port;
        if translated {
            // The packet as it is now may carry another source address; the sender knows its own.
            local = if event.service.is_v4() {
                endpoint.ipv4
            } else {
                endpoint.ipv6
            };
            (remote, remote_port) = (event.service, event.service_port);
        } else {
            local = event.source;
            (remote, remote_port) = (event.destination, event.destination_port);
        }
    } else {
        direction = Direction::Ingress;
        (local, local_port) = (event.destination, event.destination_port);
        (remote, remote_port) = (event.source, event.source_port);
    }
    // An echo reply: who sends it was asked.
    let icmp_type = match (event.protocol, direction) {
        (protocol::ICMP, Direction::Egress) => icmp::ECHO_REPLY,
        (protocol::ICMP, Direction::Ingress) => icmp::ECHO_REQUEST,
        (protocol::ICMPV6, Direction::Egress) => icmp::V6_ECHO_REPLY,
        (protocol::ICMPV6, Direction::Ingress) => icmp::V6_ECHO_REQUEST,
        _ => 0,
    };
    if icmp_type != 0 || event.protocol == protocol::ICMP {
        remote_port = local_port;
    }
    let tuple = Tuple {
        source: local,
        destination: remote,
        protocol: event.protocol,
        source_port: local_port,
        destination_port: remote_port,
        icmp_type,
    };
    endpoint.owns(&local).then_some(Lost {
        interface: event.interface,
        direction,
        tuple,
    })
}

fn flow(origin: Direction, phase: u8, now: Tick) -> Flow {
    Flow {
        phase,
        ..Flow::open(0, origin, 0, now)
    }
}

fn phase(connection: &Connection) -> u8 {
    let phase = match (connection.ended, connection.answered) {
        (true, _) => Phase::Closing,
        (false, true) => Phase::Established,
        (false, false) => Phase::Opening,
    };
    phase as u8
}

/// Of ICMP only echoes have flows.
fn is_tracked(connection: &Connection) -> bool {
    let asks = connection.original.icmp_type;
    connection.zone == 0
        && match connection.original.protocol {
            protocol::ICMP => asks == icmp::ECHO_REQUEST,
            protocol::ICMPV6 => asks == icmp::V6_ECHO_REQUEST,
            _ => true,
        }
}

/// The flow at the pod that opened a connection.
fn opened_by(connection: &Connection, interface: u32, now: Tick) -> Option<(FlowKey, Flow)> {
    let (original, reply) = (&connection.original, &connection.reply);
    let key = original.key(interface, Direction::Egress);
    let mut flow = flow(Direction::Egress, phase(connection), now);
    // The identifier of an echo is one of both ends: it changes with the sender's address too.
    let ported = original.icmp_type == 0;
    let moved = ported && original.destination_port != reply.source_port;
    if original.destination != reply.source || moved {
        flow.flags = Flow::DEFERRED | Flow::RESOLVED;
        flow.backend = reply.source;
        flow.backend_port = reply.source_port;
    }
    is_tracked(connection).then_some((key, flow))
}

/// The flow at the pod to which a connection was opened: its peer has the address that the pod sees.
fn opened_to(
    connection: &Connection,
    interface: u32,
    now: Tick,
    is_node: impl Fn(&Address) -> bool,
) -> Option<(FlowKey, Flow)> {
    let (original, reply) = (&connection.original, &connection.reply);
    let key = reply.key(interface, Direction::Ingress);
    let mut flow = flow(Direction::Ingress, phase(connection), now);
    if original.source == reply.destination && is_node(&original.source) {
        flow.flags = Flow::LOCAL;
    }
    is_tracked(connection).then_some((key, flow))
}

/// Writes the flows of connections that were there before these endpoints: they live on where the rules allow them, and end
/// where not.
pub(super) fn seed(dataplane: &Dataplane, fresh: &[(u32, Endpoint)]) {
    let Some(mut conntrack) = open_conntrack() else {
        return;
    };
    let mut flows = match dataplane.flows() {
        Ok(flows) => flows,
        Err(e) => {
            tracing::warn!(error = %e, "cannot write the flows of live connections");
            return;
        }
    };
    let owners: BTreeMap<Address, u32> = fresh
        .iter()
        .flat_map(|(interface, endpoint)| addresses(endpoint).map(|a| (a, *interface)))
        .collect();
    let (mut written, mut failed) = (0_u32, None);
    let now = dataplane::tick();
    let read = conntrack.each(|connection| {
        let opener = owners
            .get(&connection.original.source)
            .and_then(|interface| opened_by(&connection, *interface, now));
        let answerer = owners
            .get(&connection.reply.source)
            .and_then(|interface| opened_to(&connection, *interface, now, |a| flows.is_node(a)));
        for (key, flow) in opener.into_iter().chain(answerer) {
            match flows.add(&key, flow) {
                Ok(new) => written += u32::from(new),
                Err(e) => failed = Some(e),
            }
        }
    });
    if let Err(e) = read {
        without_conntrack(&e);
    }
    if let Some(e) = failed {
        tracing::warn!(error = %e, "cannot write the flows of live connections");
    }
    if written > 0 {
        tracing::info!(flows = written, "live connections of pods are known");
    }
}

fn addresses(endpoint: &Endpoint) -> impl Iterator<Item = Address> {
    [endpoint.ipv4, endpoint.ipv6]
        .into_iter()
        .filter(|address| *address != Address::NONE)
}

fn open_conntrack() -> Option<Conntrack> {
    Conntrack::open().map_err(|e| without_conntrack(&e)).ok()
}

/// Says so, once.
fn without_conntrack(error: &std::io::Error) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            %error,
            "the kernel's connection tracking cannot be asked; connections whose flow is lost end unless both ends are \
             pods of this node"
        );
    }
}

#[cfg(test)]
mod tests;
