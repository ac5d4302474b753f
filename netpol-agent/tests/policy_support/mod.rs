//! Small worlds, and how to ask the tables and the reference about them.

use std::{collections::BTreeMap, net::IpAddr};

use netpol_agent::{
    dataplane::memory::{MemoryTables, SliceFrame},
    packet_builder::{Payload, frame},
    policy::{
        Change, Edit, Index, ObjectChange, PodIsolation,
        object::{ObjectKey, Protocol},
        reference::{Family, Party, Snapshot},
    },
};
use netpol_common::{Address, Direction, Endpoint, Tables};

/// The node whose pods are enforced.
pub const HERE: &str = "here";

/// One question: may a local pod and a remote address talk in this direction, on this port?
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Question {
    pub pod: ObjectKey,
    pub direction: Direction,
    pub remote: IpAddr,
    /// `None` is an ICMP echo.
    pub protocol: Option<Protocol>,
    pub port: u16,
}

/// What the reference says.
pub fn expected(world: &Snapshot, q: &Question) -> bool {
    let family = if q.remote.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    };
    let (own, remote) = (Party::Pod(q.pod.clone()), Party::Address(q.remote));
    match q.direction {
        Direction::Ingress => {
            world
                .allows(&remote, &own, q.protocol, q.port, family)
                .ingress
        }
        Direction::Egress => {
            world
                .allows(&own, &remote, q.protocol, q.port, family)
                .egress
        }
    }
}

/// The tables as the dataplane has written them, and what it was told about local pods.
#[derive(Clone, Default)]
pub struct Plane {
    pub tables: MemoryTables,
    pub isolation: BTreeMap<ObjectKey, PodIsolation>,
}

impl Plane {
    pub fn write(&mut self, edits: &[Edit]) {
        self.tables.write_all(edits);
    }

    pub fn flip(&mut self, flip: &PodIsolation) {
        self.isolation.insert(flip.pod.clone(), flip.clone());
    }

    pub fn write_change(&mut self, change: &Change) {
        self.write(&change.add);
        for flip in &change.flip {
            self.flip(flip);
        }
        for gone in &change.gone {
            self.isolation.remove(gone);
        }
    }

    /// What the judge of the kernel says to the first packet of a connection.
    pub fn judge(&mut self, own: IpAddr, q: &Question) -> bool {
        const INTERFACE: u32 = 7;
        let isolation = &self.isolation[&q.pod];
        let address = |v4| {
            if own.is_ipv4() == v4 {
                own.into()
            } else {
                Address::NONE
            }
        };
        let endpoint = Endpoint {
            slot: 0,
            flags: 0,
            ingress: isolation.ingress,
            egress: isolation.egress,
            ipv4: address(true),
            ipv6: address(false),
            ..Endpoint::default()
        };
        self.tables.set_endpoint(INTERFACE, Some(endpoint));
        self.tables.clear_flows();
        let (source, destination) = match q.direction {
            Direction::Ingress => (q.remote, own),
            Direction::Egress => (own, q.remote),
        };
        let payload = match q.protocol {
            Some(Protocol::Tcp) => Payload::syn(40_000, q.port),
            Some(Protocol::Udp) => Payload::Udp {
                source: 40_000,
                destination: q.port,
            },
            Some(Protocol::Sctp) => Payload::Sctp {
                source: 40_000,
                destination: q.port,
            },
            None => Payload::Echo {
                identifier: 1,
                reply: false,
            },
        };
        let bytes = frame(source, destination, payload).expect("one family");
        let node = self
            .tables
            .host(&q.remote.into())
            .is_some_and(|peer| peer.is_node());
        let frame = SliceFrame {
            bytes: &bytes,
            interface: INTERFACE,
            came_in_by: if node { 0 } else { 3 },
            ..SliceFrame::default()
        };
        self.tables.judge(&frame, q.direction).passes()
    }
}

/// An index with these objects, and the tables that it wrote.
pub fn compile(changes: impl IntoIterator<Item = ObjectChange>) -> (Index, Plane) {
    let mut index = Index::new(HERE);
    let mut plane = Plane::default();
    plane.write_change(&index.apply(changes));
    (index, plane)
}

/// Settles as often as it takes, and writes what comes of it.
pub fn settle(index: &mut Index, plane: &mut Plane) {
    for _ in 0..5 {
        if index.settled() {
            return;
        }
        plane.write(&index.settle(index.generation()));
    }
    assert!(index.settled(), "does not come to rest");
}
