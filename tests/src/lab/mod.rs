//! One node as a network namespace, its pods as more of them, and hosts outside: built from manifests, probed over real
//! sockets, taken down on drop.
//!
//! Everything carries a name that begins with [`PREFIX`]; what a killed run leaves, the next lab sweeps ([`sweep`]).

mod announce;
mod connection;
mod dialogue;
mod error;
mod frame;
mod half_open;
mod knock;
mod netlink;
mod netns;
mod probe;
mod run_dir;
mod sctp;
mod serve;
mod station;
mod topology;
mod traffic;
mod worker;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use futures::future::join_all;
use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::Uid,
};
use tokio::task::AbortHandle;

pub use connection::{Connection, Side};
pub use dialogue::Dialogue;
pub use error::LabError;
pub use frame::FrameSocket;
pub use netlink::{Hop, Netlink};
pub use netns::{NETNS_DIR, NetNs, enter};
pub use run_dir::{LABS_DIR, PREFIX, RunDir, sweep};
pub use sctp::{Chunk as SctpChunk, Packet as SctpPacket};
pub use serve::Inbox;
pub use station::Station;
pub use topology::{NODE_NAME, Shape};
pub use traffic::{Counts, Load, Traffic};
pub use worker::{Pending, Worker};
pub use world::Restart;

use crate::{
    manifests::World,
    table::{Destination, Family, Outcome, Party, Port, Table},
};
use probe::{Probe, Report};
use topology::{Backbone, Cable, NODE_ADDRESSES};

/// A lab. Fields are dropped in this order: parties, node and router, and last the directory under `/run`.
pub struct Lab {
    parties: BTreeMap<Party, Seat>,
    backbone: Backbone,
    run_dir: RunDir,
    world: World,
    addresses: world::Addresses,
    written: BTreeMap<String, String>,
}

/// A party in its place.
struct Seat {
    place: Place,
    addresses: Vec<IpAddr>,
    ports: Vec<Port>,
    servers: Vec<AbortHandle>,
    inbox: Arc<Inbox>,
}

enum Place {
    /// In a namespace of its own.
    Own {
        station: Station,
        cable: Cable,
        /// The node it is on; `None` for a host.
        node: Option<String>,
    },
    /// In the node's namespace.
    Node,
}

impl Lab {
    /// Builds a lab of this shape for a world, and writes its manifests. Needs root.
    pub fn new(shape: Shape, world: World) -> Result<Self, LabError> {
        if !Uid::effective().is_root() {
            return Err(LabError::NotRoot);
        }
        allow_many_sockets();
        let run_dir = RunDir::create()?;
        let backbone = Backbone::build(&format!("{PREFIX}{}-", run_dir.id()), shape)?;
        let mut lab = Self {
            parties: BTreeMap::new(),
            backbone,
            run_dir,
            world,
            addresses: world::Addresses::default(),
            written: BTreeMap::new(),
        };
        lab.sync()?;
        Ok(lab)
    }

    /// Its shape.
    pub const fn shape(&self) -> Shape {
        self.backbone.shape
    }

    /// Its directory under `/run`.
    pub const fn run_dir(&self) -> &RunDir {
        &self.run_dir
    }

    /// Where the agent finds the manifests.
    pub fn manifests(&self) -> PathBuf {
        self.run_dir.manifests()
    }

    /// Every address of the node itself: on its uplink, and as the pods' router.
    pub fn node_addresses(&self) -> BTreeSet<IpAddr> {
        let routers = topology::pod_addresses(topology::NODE_NUMBER, 1);
        NODE_ADDRESSES.into_iter().chain(routers).collect()
    }

    /// The node.
    pub const fn node(&self) -> &Station {
        &self.backbone.node
    }

    /// The router outside.
    pub const fn outside(&self) -> &Station {
        &self.backbone.outside
    }

    /// The namespace that a party lives in.
    pub fn station(&self, party: &Party) -> Result<&Station, LabError> {
        match (party, self.parties.get(party)) {
            (Party::Node, _) => Ok(&self.backbone.node),
            (_, Some(Seat { place, .. })) => Ok(match place {
                Place::Own { station, .. } => station,
                Place::Node => &self.backbone.node,
            }),
            (_, None) => Err(LabError::NoSuchParty(party.clone())),
        }
    }

    /// The addresses of a party, at most one of each family.
    pub fn addresses(&self, party: &Party) -> Result<&[IpAddr], LabError> {
        match (party, self.parties.get(party)) {
            (Party::Node, _) => Ok(&NODE_ADDRESSES),
            (_, Some(seat)) => Ok(&seat.addresses),
            (_, None) => Err(LabError::NoSuchParty(party.clone())),
        }
    }

    /// A party's address of one family.
    pub fn address(&self, party: &Party, family: Family) -> Result<IpAddr, LabError> {
        self.addresses(party)?
            .iter()
            .copied()
            .find(|address| Family::of(*address) == family)
            .ok_or_else(|| LabError::NoAddress(party.clone(), family))
    }

    /// The index of the device on the far side of a party's `eth0`: for a pod, the host side of its veth.
    pub fn device(&self, party: &Party) -> Result<u32, LabError> {
        match self.parties.get(party).map(|seat| &seat.place) {
            Some(Place::Own { cable, .. }) => Ok(cable.device()),
            _ => Err(LabError::NoSuchParty(party.clone())),
        }
    }

    /// What arrived at a pod or host.
    pub fn inbox(&self, party: &Party) -> Result<&Arc<Inbox>, LabError> {
        self.parties
            .get(party)
            .map(|seat| &seat.inbox)
            .ok_or_else(|| LabError::NoSuchParty(party.clone()))
    }

    /// Every pod and host.
    pub fn parties(&self) -> BTreeSet<Party> {
        self.parties.keys().cloned().collect()
    }

    /// Every port that a pod or host declares.
    pub fn destinations(&self) -> BTreeSet<Destination> {
        self.parties
            .iter()
            .flat_map(|(party, seat)| {
                seat.ports
                    .iter()
                    .map(|port| Destination::new(party.clone(), *port))
            })
            .collect()
    }

    /// The complete table: every pod, host and the node at every declared port, by both families, all at once.
    pub fn table(&self) -> Result<Table, LabError> {
        self.table_of(&self.destinations())
    }

    /// As [`Self::table`], but at these destinations.
    pub fn table_of(&self, destinations: &BTreeSet<Destination>) -> Result<Table, LabError> {
        let mut sources = self.parties();
        sources.insert(Party::Node);
        self.probe(&sources, destinations)
    }

    /// Probes these sources (but none at itself) at these destinations, by both families, all at once.
    pub fn probe(
        &self,
        sources: &BTreeSet<Party>,
        destinations: &BTreeSet<Destination>,
    ) -> Result<Table, LabError> {
        let mut running = Vec::new();
        for source in sources {
            let mut goals = Vec::new();
            for destination in destinations.iter().filter(|goal| goal.party != *source) {
                for family in Family::ALL {
                    let (from, to) = (
                        self.address(source, family),
                        self.address(&destination.party, family),
                    );
                    if let (Ok(_), Ok(address)) = (from, to) {
                        let probe = Probe::new(address, destination.port);
                        goals.push((destination.clone(), family, probe));
                    }
                }
            }
            let probes: Vec<Probe> = goals.iter().map(|(_, _, probe)| *probe).collect();
            let outcomes = self
                .station(source)?
                .worker
                .begin(move || join_all(probes.into_iter().map(Probe::run)));
            running.push((source, goals, outcomes));
        }
        let mut reports = Vec::new();
        for (source, goals, outcomes) in running {
            for ((destination, family, probe), report) in goals.into_iter().zip(outcomes.wait()) {
                reports.push((source, destination, family, probe, report));
            }
        }
        // Only now have all probes that will arrive arrived.
        let denied = reports
            .iter()
            .filter(|(.., report)| report.outcome == Outcome::Denied)
            .map(|(_, destination, ..)| &destination.party);
        let arrivals = self.arrivals(&denied.collect());
        let mut table = Table::new();
        for (source, destination, family, probe, report) in &reports {
            let arrived = arrivals
                .get(&destination.party)
                .is_some_and(|arrivals| arrivals.include(probe, report));
            let outcome = match report.outcome {
                Outcome::Denied if arrived => Outcome::Half,
                outcome => outcome,
            };
            table.set(source, destination, *family, outcome);
        }
        Ok(table)
    }

    /// One probe.
    pub fn try_once(
        &self,
        source: &Party,
        destination: &Destination,
        family: Family,
    ) -> Result<Outcome, LabError> {
        self.address(&destination.party, family)?;
        let sources = BTreeSet::from([source.clone()]);
        let destinations = BTreeSet::from([destination.clone()]);
        let table = self.probe(&sources, &destinations)?;
        table
            .get(source, destination, family)
            .ok_or_else(|| LabError::NoAddress(source.clone(), family))
    }

    /// What these parties saw of probes.
    fn arrivals<'a>(&self, parties: &BTreeSet<&'a Party>) -> BTreeMap<&'a Party, Arrivals> {
        let asked: Vec<_> = parties
            .iter()
            .filter_map(|party| {
                let half_open = half_open::clients(&self.station(party).ok()?.worker);
                Some((*party, self.inbox(party).ok().cloned(), half_open))
            })
            .collect();
        asked
            .into_iter()
            .map(|(party, inbox, half_open)| {
                let half_open = half_open.wait();
                (party, Arrivals { inbox, half_open })
            })
            .collect()
    }
}

/// What a party saw of probes.
struct Arrivals {
    inbox: Option<Arc<Inbox>>,
    half_open: HashSet<SocketAddr>,
}

impl Arrivals {
    fn include(&self, probe: &Probe, report: &Report) -> bool {
        let in_inbox = match (&self.inbox, probe.trace()) {
            (Some(inbox), Some(trace)) => inbox.has(trace),
            _ => false,
        };
        in_inbox
            || report
                .from
                .is_some_and(|from| self.half_open.contains(&from))
    }
}

/// A table of a dozen pods wants more sockets than a shell's usual thousand.
fn allow_many_sockets() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // With fewer, large tables fail with a clear error of their own.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
