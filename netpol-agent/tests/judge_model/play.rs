//! The node of the stories: two pods, the hooks in their order, and a conntrack that translates Services between them.

use std::{cell::Cell, collections::BTreeMap, net::IpAddr};

use netpol_agent::{
    dataplane::memory::{MemoryTables, SliceFrame},
    packet_builder::{Payload, frame},
    policy::Edit,
};
use netpol_common::{
    ALL_PORTS, Direction, Endpoint, FlowKey, Isolation, MarkField, NO_PORTS, Peer, PortKey,
    RuleKey, chunk, protocol, tcp,
};

use super::model::{Act, Model, Policy, Ports, Tuple, Who};

/// A device that is no pod's.
const UPLINK: u32 = 3;
/// Bits of the mark that are somebody else's.
const FOREIGN_MARK: u32 = 0xe000;
/// The source port that masquerade chooses is the pod's own and this.
const MASQUERADE: u16 = 10_000;

pub const ADDRESSES: [(Who, [u8; 4]); 6] = [
    (Who::A, [10, 1, 0, 1]),
    (Who::B, [10, 1, 0, 2]),
    (Who::X, [192, 0, 2, 1]),
    (Who::Y, [192, 0, 2, 2]),
    (Who::Service, [10, 96, 0, 1]),
    (Who::Node, [10, 1, 0, 254]),
];

pub fn address(who: Who) -> IpAddr {
    let (_, octets) = ADDRESSES[who as usize];
    octets.into()
}

fn interface(pod: Who) -> u32 {
    7 + pod as u32
}

/// One of four identities in one datagram's worth of wire: who sends what to whom, as it stands in the headers.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    pub source: (Who, u16),
    pub destination: (Who, u16),
    pub protocol: u8,
    pub act: Act,
    /// Whether an echo is the answer.
    pub reply: bool,
}

impl Wire {
    /// What the pod of a conversation, or its remote end, puts on the wire.
    pub fn of(tuple: &Tuple, direction: Direction, act: Act) -> Self {
        let mut pod = (tuple.pod, tuple.pod_port);
        let mut remote = (tuple.remote, tuple.port);
        let pod_asks = tuple.port == 0;
        if tuple.protocol == protocol::ICMP {
            remote.1 = tuple.pod_port;
            pod.1 = tuple.pod_port;
        }
        let (source, destination) = match direction {
            Direction::Egress => (pod, remote),
            Direction::Ingress => (remote, pod),
        };
        Self {
            source,
            destination,
            protocol: tuple.protocol,
            act,
            reply: pod_asks != (direction == Direction::Egress),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let (source, destination) = (self.source.1, self.destination.1);
        let payload = match self.protocol {
            protocol::TCP => Payload::Tcp {
                source,
                destination,
                flags: match self.act {
                    Act::Open => tcp::SYN,
                    Act::Go => tcp::ACK,
                    Act::Finish => tcp::FIN | tcp::ACK,
                    Act::Abort => tcp::RST,
                },
            },
            protocol::UDP => Payload::Udp {
                source,
                destination,
            },
            protocol::SCTP => Payload::Sctp {
                source,
                destination,
            },
            _ => Payload::Echo {
                identifier: source,
                reply: self.reply,
            },
        };
        let (from, to) = (address(self.source.0), address(self.destination.0));
        let mut bytes = frame(from, to, payload).expect("one family");
        if self.protocol == protocol::SCTP {
            bytes[46] = match self.act {
                Act::Open => chunk::INIT,
                Act::Abort => chunk::ABORT,
                Act::Go | Act::Finish => 0,
            };
        }
        bytes
    }

    /// The conversation of this packet, seen from a pod.
    pub fn seen_by(&self, pod: Who, direction: Direction) -> Tuple {
        let (own, other) = match direction {
            Direction::Egress => (self.source, self.destination),
            Direction::Ingress => (self.destination, self.source),
        };
        let pod_asks = (direction == Direction::Egress) != self.reply;
        Tuple {
            pod,
            protocol: self.protocol,
            remote: other.0,
            pod_port: own.1,
            port: if self.protocol == protocol::ICMP {
                u16::from(!pod_asks)
            } else {
                other.1
            },
        }
    }

    /// `SCTP` and `TCP` alone know an opening; elsewhere it is a packet like any other.
    pub fn act_of(&self) -> Act {
        match (self.protocol, self.act) {
            (protocol::TCP, act) => act,
            (protocol::SCTP, Act::Finish) => Act::Go,
            (protocol::SCTP, act) => act,
            _ => Act::Go,
        }
    }
}

/// Who answers a conversation with a virtual address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    pub backend: (Who, u16),
    pub masqueraded: bool,
    /// Whether the way to a pod of this node goes by the bridge's hook too.
    pub by_bridge: bool,
}

/// Both sides: the judge with its tables, and the model.
pub struct World {
    pub tables: MemoryTables,
    pub model: Model,
    pub conntrack: BTreeMap<Tuple, Translation>,
    endpoints: BTreeMap<Who, Endpoint>,
}

/// What the judge did with a packet, and what the model says; an error if they differ.
type Outcome = Result<bool, String>;

fn compare(what: &str, judge: bool, model: Option<bool>) -> Outcome {
    let word = |passes| if passes { "passes" } else { "is dropped" };
    match model {
        Some(expected) if expected != judge => Err(format!(
            "{what} {}, but should be what {}",
            word(judge),
            word(expected)
        )),
        _ => Ok(judge),
    }
}

impl World {
    pub fn new() -> Self {
        let mut tables = MemoryTables::new();
        let hosts = ADDRESSES.map(|(who, octets)| Edit::Host {
            address: IpAddr::from(octets).into(),
            peer: Some(Peer {
                // The virtual ones are in no rule.
                class: if who.is_virtual() { 0 } else { 10 + who as u64 },
                flags: match who {
                    Who::Service => Peer::SERVICE,
                    Who::Node => Peer::NODE,
                    _ => 0,
                },
                pad: 0,
            }),
        });
        tables.write_all(&hosts);
        let mut world = Self {
            tables,
            model: Model::default(),
            conntrack: BTreeMap::new(),
            endpoints: BTreeMap::new(),
        };
        world.tables.set_now(world.model.now);
        for (slot, pod) in [Who::A, Who::B].into_iter().enumerate() {
            let endpoint = Endpoint {
                slot: slot as u32,
                flags: Endpoint::GUARD,
                ipv4: address(pod).into(),
                ..Endpoint::default()
            };
            world.endpoints.insert(pod, endpoint);
            world.tables.set_endpoint(interface(pod), Some(endpoint));
        }
        world
    }

    pub fn wait(&mut self, ticks: u32) {
        self.model.now += ticks;
        self.tables.set_now(self.model.now);
    }

    pub fn set_policy(&mut self, pod: Who, direction: Direction, policy: &Policy) {
        let ruleset = 100 + pod as u64 * 2 + direction as u64;
        for (who, _) in ADDRESSES {
            if who.is_virtual() {
                continue;
            }
            let allowed = policy.as_ref().and_then(|rules| rules.get(&who)).copied();
            let set = allowed.map_or(NO_PORTS, |ports| self.port_set(ports));
            self.tables.write(&Edit::Rule {
                key: RuleKey {
                    ruleset,
                    class: 10 + who as u64,
                },
                ports: Some(set),
            });
        }
        let isolation = if policy.is_some() {
            Isolation::by(ruleset)
        } else {
            Isolation::OPEN
        };
        let endpoint = self.endpoints.get_mut(&pod).expect("a pod");
        match direction {
            Direction::Ingress => endpoint.ingress = isolation,
            Direction::Egress => endpoint.egress = isolation,
        }
        let endpoint = *endpoint;
        self.tables.set_endpoint(interface(pod), Some(endpoint));
        self.tables.raise_epoch();
        self.model.set_policy(pod, direction, policy.clone());
    }

    fn port_set(&mut self, ports: Ports) -> u64 {
        let mut hold = |set, protocol, port, bits| {
            self.tables.write(&Edit::Port {
                key: PortKey::new(set, protocol, port),
                bits,
                present: true,
            });
        };
        match ports {
            Ports::All => ALL_PORTS,
            Ports::Tcp => {
                hold(7, protocol::TCP, 0, PortKey::PROTOCOL_BITS);
                7
            }
            Ports::On(port) => {
                let set = 1000 + u64::from(port);
                for number in [protocol::TCP, protocol::UDP, protocol::SCTP] {
                    hold(set, number, port, PortKey::FULL_BITS);
                }
                set
            }
        }
    }

    pub fn evict(&mut self, tuple: &Tuple) {
        let key = FlowKey {
            remote: address(tuple.remote).into(),
            interface: interface(tuple.pod),
            local_port: tuple.pod_port,
            remote_port: tuple.port,
            protocol: u32::from(tuple.protocol),
        };
        self.tables.evict_flows(|k| *k == key);
        self.model.forget(tuple);
    }

    /// Forgets only what hooks between the pods have noted.
    pub fn evict_translated(&self) {
        self.tables
            .evict_flows(|k| k.protocol & FlowKey::TRANSLATED != 0);
    }

    /// The hook of a pod. The mark is what it carries before and after.
    pub fn pod_hook(
        &self,
        pod: Who,
        direction: Direction,
        bytes: &[u8],
        (came_in_by, mark): (u32, &Cell<u32>),
    ) -> Result<bool, String> {
        let frame = SliceFrame {
            bytes,
            interface: interface(pod),
            came_in_by,
            mark: mark.clone(),
            ..SliceFrame::default()
        };
        let passes = self.tables.judge(&frame, direction).passes();
        mark.set(frame.mark.get());
        if direction == Direction::Ingress {
            clean(mark)?;
        }
        Ok(passes)
    }

    /// The hook of a device that is no pod's, past which only what returns to its sender keeps its mark.
    fn host_hook(&self, bytes: &[u8], came_in_by: u32, mark: &Cell<u32>) -> Result<bool, String> {
        let passes = self.by_host(bytes, came_in_by, mark)?;
        clean(mark)?;
        Ok(passes)
    }

    fn by_host(&self, bytes: &[u8], came_in_by: u32, mark: &Cell<u32>) -> Result<bool, String> {
        let frame = SliceFrame {
            bytes,
            interface: UPLINK,
            came_in_by,
            mark: mark.clone(),
            ..SliceFrame::default()
        };
        let passes = self.tables.host_egress(&frame).passes();
        mark.set(frame.mark.get());
        Ok(passes)
    }

    /// A pod says something: through its own hook, and those on the way to who really hears it.
    pub fn pod_says(&mut self, tuple: &Tuple, act: Act, chosen: Translation) -> Outcome {
        let wire = Wire::of(tuple, Direction::Egress, act);
        let act = wire.act_of();
        let mark = Cell::new(FOREIGN_MARK);
        let own = self.pod_hook(
            tuple.pod,
            Direction::Egress,
            &wire.bytes(),
            (interface(tuple.pod), &mark),
        )?;
        if !tuple.remote.is_virtual() {
            let expected = self.model.sends(tuple, act, (tuple.remote, tuple.port));
            if mark.get() != FOREIGN_MARK {
                return Err("a packet to a plain address is marked".into());
            }
            if !compare("what the pod sends", own, Some(expected))? {
                return Ok(false);
            }
            return self.arrives(&wire, interface(tuple.pod), &mark);
        }
        // An answer to somebody who came in by a virtual address goes back the way it came, past no other hook.
        let answers = !self.conntrack.contains_key(tuple) && tuple.pod_port < 1024;
        if answers {
            let expected = self.model.sends(tuple, act, (Who::Node, tuple.port));
            return compare("an answer to a virtual address", own, Some(expected));
        }
        let way = *self.conntrack.entry(*tuple).or_insert(chosen);
        let translated = Wire {
            source: if way.masqueraded || way.backend.0 == tuple.pod {
                (Who::Node, tuple.pod_port + MASQUERADE)
            } else {
                wire.source
            },
            destination: way.backend,
            ..wire
        };
        let looked_at = self.model.looks_at(tuple, act);
        let expected = self.model.sends(tuple, act, way.backend);
        if !own {
            return compare("what the pod sends to a Service", own, Some(expected));
        }
        let bytes = translated.bytes();
        let from = interface(tuple.pod);
        match way.backend.0 {
            Who::Node => compare("what the pod sends to its node", true, Some(expected)),
            back if back == tuple.pod => {
                if way.by_bridge && !self.by_host(&bytes, from, &mark)? {
                    return Err("the bridge stops what comes back to its sender".into());
                }
                let passes = self.pod_hook(back, Direction::Ingress, &bytes, (from, &mark))?;
                compare(
                    "what comes back to its sender",
                    passes,
                    looked_at.then_some(true),
                )
            }
            other if other.is_pod() && !way.by_bridge => {
                let judged = mark.get() != FOREIGN_MARK;
                if !expected {
                    if !judged {
                        return Err("what is forbidden goes on without a mark".into());
                    }
                    let passes = self.pod_hook(other, Direction::Ingress, &bytes, (from, &mark))?;
                    return compare("what is forbidden to the sender", passes, Some(false));
                }
                self.arrives(&translated, from, &mark)
            }
            other => {
                let passes = self.host_hook(&bytes, from, &mark)?;
                let passed = compare("what leaves translated", passes, Some(expected))?;
                if passed && other.is_pod() {
                    return self.arrives(&translated, from, &mark);
                }
                Ok(passed)
            }
        }
    }

    /// At the hook of who hears it, if that is a pod of this node.
    fn arrives(&mut self, wire: &Wire, came_in_by: u32, mark: &Cell<u32>) -> Outcome {
        let pod = wire.destination.0;
        if !pod.is_pod() {
            return Ok(true);
        }
        let heard = wire.seen_by(pod, Direction::Ingress);
        let passes = self.pod_hook(pod, Direction::Ingress, &wire.bytes(), (came_in_by, mark))?;
        let expected = self.model.hears(&heard, wire.act_of(), came_in_by == 0);
        compare("what the pod hears", passes, expected)
    }

    /// Somebody says something to a pod: a plain peer, or who stands behind a virtual address.
    pub fn pod_hears(&mut self, tuple: &Tuple, act: Act) -> Outcome {
        let mark = Cell::new(FOREIGN_MARK);
        // Behind a virtual address stands somebody who answers.
        let act = match act {
            Act::Open if tuple.remote.is_virtual() && tuple.pod_port >= 1024 => Act::Go,
            act => act,
        };
        let wire = Wire::of(tuple, Direction::Ingress, act);
        if tuple.remote.is_pod() {
            // Another pod of this node sends it.
            let theirs = wire.seen_by(tuple.remote, Direction::Egress);
            let unused = Translation {
                backend: (tuple.pod, 0),
                masqueraded: false,
                by_bridge: false,
            };
            return self.pod_says(&theirs, act, unused);
        }
        let came_in_by = match self.conntrack.get(tuple) {
            Some(way) if way.backend.0 == Who::Node => 0,
            Some(way) if way.backend.0 == tuple.pod => return Ok(true),
            Some(way) if way.backend.0.is_pod() => {
                // The backend answers at its own hook first.
                let way = *way;
                let seen = if way.masqueraded {
                    (Who::Node, tuple.pod_port + MASQUERADE)
                } else {
                    (tuple.pod, tuple.pod_port)
                };
                let theirs = Tuple {
                    pod: way.backend.0,
                    protocol: tuple.protocol,
                    remote: seen.0,
                    pod_port: way.backend.1,
                    port: seen.1,
                };
                let answer = Wire::of(&theirs, Direction::Egress, act);
                let from = interface(theirs.pod);
                let passes = self.pod_hook(
                    theirs.pod,
                    Direction::Egress,
                    &answer.bytes(),
                    (from, &mark),
                )?;
                let expected = self.model.sends(&theirs, answer.act_of(), seen);
                if seen.0 == Who::Node {
                    // Unless it answers, it is judged on its way.
                    if !passes {
                        return compare("what a backend answers", passes, Some(expected));
                    }
                    if mark.get() != FOREIGN_MARK {
                        return Ok(true);
                    }
                } else if !compare("what a backend answers", passes, Some(expected))? {
                    return Ok(false);
                }
                from
            }
            Some(_) => UPLINK,
            // Nobody speaks for a port of the node before a pod has asked it.
            None if tuple.remote == Who::Node && tuple.pod_port >= 1024 => return Ok(true),
            // The node itself, or an answer of which conntrack knows nothing.
            None if tuple.remote == Who::Node => 0,
            None => UPLINK,
        };
        self.arrives(&wire, came_in_by, &mark)
    }
}

/// No mark of ours is left, and nobody else's is touched.
fn clean(mark: &Cell<u32>) -> Result<(), String> {
    match mark.get() {
        FOREIGN_MARK => Ok(()),
        other if MarkField::DEFAULT.clear(other) == FOREIGN_MARK => {
            Err(format!("the mark {other:#x} is left on the packet"))
        }
        other => Err(format!("the mark has become {other:#x}")),
    }
}
