//! Every question about the pods of this node, and the answers at every moment of a history.

use std::{collections::BTreeSet, net::IpAddr};

use netpol_agent::{
    dataplane::memory::MemoryTables,
    policy::{Generation, object::Protocol, reference::Snapshot},
};
use netpol_common::{
    ALL_PORTS, Address, Direction, Isolation, NO_CLASS, NO_PORTS, RuleKey, Tables,
};
use proptest::prelude::*;

use super::{
    policy_support::{HERE, Plane, Question},
    worlds::{NODE, OUTSIDE, SERVICES, ip},
};

/// Ports on both sides of every boundary that the worlds of the property tests use.
pub const PROBES: [(Option<Protocol>, u16); 11] = [
    (Some(Protocol::Tcp), 53),
    (Some(Protocol::Tcp), 79),
    (Some(Protocol::Tcp), 80),
    (Some(Protocol::Tcp), 90),
    (Some(Protocol::Tcp), 91),
    (Some(Protocol::Tcp), 8080),
    (Some(Protocol::Tcp), 8081),
    (Some(Protocol::Udp), 53),
    (Some(Protocol::Udp), 80),
    (Some(Protocol::Sctp), 80),
    (None, 0),
];

/// Every question about the pods of this node.
pub fn questions(world: &Snapshot, remotes: &[IpAddr]) -> Vec<Question> {
    let mut questions = Vec::new();
    let local = world
        .pods
        .values()
        .filter(|pod| pod.node == HERE && !pod.host_network && !pod.finished);
    for pod in local {
        for &remote in remotes {
            for direction in Direction::BOTH {
                for (protocol, port) in PROBES {
                    questions.push(Question {
                        pod: pod.key.clone(),
                        direction,
                        remote,
                        protocol,
                        port,
                    });
                }
            }
        }
    }
    questions
}

/// Everybody a pod could talk to in any of these worlds.
pub fn remotes(worlds: &[&Snapshot]) -> Vec<IpAddr> {
    let pods = worlds
        .iter()
        .flat_map(|w| w.pods.values())
        .flat_map(|pod| pod.addresses.clone());
    let fixed = OUTSIDE.into_iter().chain(NODE).chain(SERVICES).map(ip);
    let all: BTreeSet<_> = pods.chain(fixed).collect();
    all.into_iter().collect()
}

/// Whether a question is one a pod asks about itself: the judge answers that without the tables.
pub fn about_itself(world: &Snapshot, q: &Question) -> bool {
    world.owner(q.remote).is_some_and(|pod| pod.key == q.pod)
}

/// What an isolation and the tables say, in the order in which the judge looks things up. The three tables may be of
/// different moments: a packet takes its time.
pub fn decide_across(
    isolation: Isolation,
    peers: &MemoryTables,
    rules: &MemoryTables,
    ports: &MemoryTables,
    q: &Question,
) -> bool {
    let Some(ruleset) = isolation.ruleset() else {
        return true;
    };
    let address = Address::from(q.remote);
    let peer = peers
        .host(&address)
        .or_else(|| peers.net(&address))
        .unwrap_or_default();
    if peer.is_node() {
        return true;
    }
    let row = |class| rules.rule(&RuleKey { ruleset, class });
    let own = if peer.class == NO_CLASS {
        None
    } else {
        row(peer.class)
    };
    let set = own.or_else(|| row(NO_CLASS)).unwrap_or(NO_PORTS);
    let protocol = q.protocol.map_or(1, Protocol::number);
    set == ALL_PORTS || (set != NO_PORTS && ports.port(set, protocol, q.port))
}

/// The isolation of the question's pod; a pod that the dataplane does not know is open.
pub fn isolation(plane: &Plane, q: &Question) -> Isolation {
    match (plane.isolation.get(&q.pod), q.direction) {
        (None, _) => Isolation::OPEN,
        (Some(pod), Direction::Ingress) => pod.ingress,
        (Some(pod), Direction::Egress) => pod.egress,
    }
}

/// What the tables say, without building a packet.
pub fn decide(plane: &Plane, q: &Question) -> bool {
    decide_across(
        isolation(plane, q),
        &plane.tables,
        &plane.tables,
        &plane.tables,
        q,
    )
}

/// The tables at every moment of a history, one element written at a time.
pub struct Timeline {
    pub moments: Vec<Plane>,
    /// Where each generation was complete: a packet that started later saw nothing older.
    pub complete: Vec<(Generation, usize)>,
}

impl Timeline {
    pub fn last(&self) -> &Plane {
        &self.moments[self.moments.len() - 1]
    }

    pub fn step(&mut self, write: impl FnOnce(&mut Plane)) {
        let mut next = self.last().clone();
        write(&mut next);
        self.moments.push(next);
    }

    /// The answer to a packet that reads the endpoint, the peer, the row and the ports at these moments.
    pub fn under_way(&self, moments: [usize; 4], q: &Question) -> bool {
        let [endpoint, peer, row, ports] = moments.map(|at| &self.moments[at]);
        decide_across(
            isolation(endpoint, q),
            &peer.tables,
            &row.tables,
            &ports.tables,
            q,
        )
    }

    /// The first moment at which `generation` was complete.
    pub fn since(&self, generation: Generation) -> usize {
        self.complete
            .iter()
            .find(|(g, _)| *g >= generation)
            .map_or(0, |(_, at)| *at)
    }
}

/// Four moments from `start` to `end`, in order.
pub fn in_order(picks: &[prop::sample::Index; 4], start: usize, end: usize) -> [usize; 4] {
    let mut moments = picks.map(|pick| start + pick.index(end - start + 1));
    moments.sort_unstable();
    moments
}
