//! Nodes as network namespaces, their pods as more of them, and hosts outside: built from manifests, probed over real
//! sockets, taken down on drop.
//!
//! [`Lab::new`] builds one node. [`Lab::with_nodes`] builds every node that a pod names, joined as Flannel joins them.
//!
//! Everything carries a name that begins with [`PREFIX`]; what a killed run leaves, the next lab sweeps ([`sweep`]).

mod announce;
mod caller;
mod capture;
mod connection;
mod dialogue;
mod dns;
mod error;
mod flannel;
mod frame;
mod half_open;
mod knock;
mod netlink;
mod netns;
mod node;
mod probe;
mod process;
mod proxy;
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

pub use caller::{Caller, Heard};
pub use capture::{Capture, Captured};
pub use connection::{Connection, Side};
pub use dialogue::Dialogue;
pub use dns::Lookup;
pub use error::LabError;
pub use frame::FrameSocket;
pub use netlink::{Hop, Netlink, Vxlan};
pub use netns::{NETNS_DIR, NetNs, enter};
pub use node::Node;
pub use process::command_in;
pub use proxy::ProxyMode;
pub use run_dir::{LABS_DIR, NodeDir, PREFIX, RunDir, sweep};
pub use sctp::{Chunk as SctpChunk, Packet as SctpPacket};
pub use serve::Inbox;
pub use station::Station;
pub use topology::{Backend, NODE_NAME, Shape};
pub use traffic::{Counts, Load, Traffic};
pub use worker::{Pending, Worker};
pub use world::Restart;

use crate::{
    manifests::World,
    table::{Destination, Family, Outcome, Party, Port, Table},
};
use probe::{Probe, Report};
use topology::{Backbone, Cable};

/// A lab. Fields are dropped in this order: parties, nodes and router, and last the directory under `/run`.
pub struct Lab {
    parties: BTreeMap<Party, Seat>,
    backbone: Backbone,
    run_dir: RunDir,
    world: World,
    addresses: world::Addresses,
    written: BTreeMap<String, String>,
    services: proxy::Services,
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
    /// In the namespace of this node.
    Node(String),
}

impl Place {
    /// The node that this is on, whether or not the lab builds it.
    fn node(&self) -> Option<&str> {
        match self {
            Self::Own { node, .. } => node.as_deref(),
            Self::Node(node) => Some(node),
        }
    }
}

impl Lab {
    /// Builds a lab with one node of this shape for a world, and writes its manifests. Pods of other nodes hang on the
    /// router outside, and nothing masquerades. Needs root.
    pub fn new(shape: Shape, world: World) -> Result<Self, LabError> {
        Self::with_proxy(shape, world, ProxyMode::default())
    }

    /// As [`Self::new`], with kube-proxy in this mode.
    pub fn with_proxy(shape: Shape, world: World, mode: ProxyMode) -> Result<Self, LabError> {
        Self::build(shape, None, world, mode)
    }

    /// Builds a lab with every node that a pod names in `spec.nodeName`, now or later, each of this shape, and joined by a
    /// backend of Flannel, which also masquerades what pods send out of the cluster. Needs root and `nft`.
    pub fn with_nodes(shape: Shape, backend: Backend, world: World) -> Result<Self, LabError> {
        Self::build(shape, Some(backend), world, ProxyMode::default())
    }

    /// As [`Self::with_nodes`], with kube-proxy in this mode on each of them.
    pub fn with_nodes_and_proxy(
        shape: Shape,
        backend: Backend,
        world: World,
        mode: ProxyMode,
    ) -> Result<Self, LabError> {
        Self::build(shape, Some(backend), world, mode)
    }

    fn build(
        shape: Shape,
        backend: Option<Backend>,
        world: World,
        mode: ProxyMode,
    ) -> Result<Self, LabError> {
        if !Uid::effective().is_root() {
            return Err(LabError::NotRoot);
        }
        allow_many_sockets();
        let run_dir = RunDir::create()?;
        let prefix = format!("{PREFIX}{}-", run_dir.id());
        let backbone = Backbone::build(&prefix, shape, backend)?;
        let mut lab = Self {
            parties: BTreeMap::new(),
            backbone,
            run_dir,
            world,
            addresses: world::Addresses::default(),
            written: BTreeMap::new(),
            services: proxy::Services::new(mode),
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

    /// How its nodes are joined; `None` when there is one.
    pub const fn backend(&self) -> Option<Backend> {
        self.backbone.backend
    }

    /// Every node, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.backbone.nodes.values()
    }

    /// A node by its name.
    pub fn node_named(&self, name: &str) -> Result<&Node, LabError> {
        let node = self.backbone.nodes.get(name);
        node.ok_or_else(|| LabError::NoSuchParty(Party::Machine(name.to_owned())))
    }

    /// The node that a pod is on; `None` for a host, and for a pod of a node that the lab does not build.
    pub fn home(&self, party: &Party) -> Option<&Node> {
        let name = match party {
            Party::Node => NODE_NAME,
            Party::Machine(name) => name,
            party => self.parties.get(party)?.place.node()?,
        };
        self.backbone.nodes.get(name)
    }

    /// The node that every lab has, and that pods without `spec.nodeName` are on.
    pub fn node(&self) -> &Station {
        self.backbone.first().station()
    }

    /// The router outside.
    pub const fn outside(&self) -> &Station {
        &self.backbone.outside
    }

    /// The addresses of the router outside that every node reaches it by.
    pub const fn router_addresses(&self) -> [IpAddr; 2] {
        topology::ROUTER_ADDRESSES
    }

    /// The namespace that a party lives in.
    pub fn station(&self, party: &Party) -> Result<&Station, LabError> {
        if let Some(Seat {
            place: Place::Own { station, .. },
            ..
        }) = self.parties.get(party)
        {
            return Ok(station);
        }
        let node = self.home(party).map(Node::station);
        node.ok_or_else(|| LabError::NoSuchParty(party.clone()))
    }

    /// The addresses of a party, at most one of each family.
    pub fn addresses(&self, party: &Party) -> Result<&[IpAddr], LabError> {
        let addresses = match self.parties.get(party) {
            Some(seat) => Some(seat.addresses.as_slice()),
            None => self.home(party).map(|node| node.addresses.as_slice()),
        };
        addresses.ok_or_else(|| LabError::NoSuchParty(party.clone()))
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

    /// Everybody who can open a connection: every pod and host, the node that each of them is on, and with several nodes
    /// also each node by its name.
    pub fn sources(&self) -> BTreeSet<Party> {
        let mut sources = self.parties();
        sources.insert(Party::Node);
        if self.backend().is_some() {
            let names = self.nodes().map(|node| node.name().to_owned());
            sources.extend(names.map(Party::Machine));
        }
        sources
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

    /// The complete table: all [`Self::sources`] at every declared port, by both families, all at once.
    pub fn table(&self) -> Result<Table, LabError> {
        self.table_of(&self.destinations())
    }

    /// As [`Self::table`], but at these destinations.
    pub fn table_of(&self, destinations: &BTreeSet<Destination>) -> Result<Table, LabError> {
        self.probe(&self.sources(), destinations)
    }

    /// Probes these sources (but none at itself) at these destinations, by both families, all at once. [`Party::Node`]
    /// stands for the node that the other end is on.
    pub fn probe(
        &self,
        sources: &BTreeSet<Party>,
        destinations: &BTreeSet<Destination>,
    ) -> Result<Table, LabError> {
        let mut starts: BTreeMap<Party, Vec<Goal<'_>>> = BTreeMap::new();
        for source in sources {
            let goals = destinations.iter();
            for destination in goals.filter(|goal| self.may_try(source, &goal.party)) {
                let from = self.beside(source, &destination.party);
                let to = self.beside(&destination.party, source);
                let to = Destination::new(to, destination.port);
                for family in Family::ALL {
                    if let (Ok(_), Ok((address, port))) =
                        (self.address(&from, family), self.goal(&to, family))
                    {
                        let probe = Probe::new(address, port);
                        starts.entry(from.clone()).or_default().push(Goal {
                            source,
                            destination,
                            family,
                            probe,
                        });
                    }
                }
            }
        }
        let mut running = Vec::new();
        for (from, goals) in starts {
            let probes: Vec<Probe> = goals.iter().map(|goal| goal.probe).collect();
            let outcomes = self
                .station(&from)?
                .worker
                .begin(move || join_all(probes.into_iter().map(Probe::run)));
            running.push((goals, outcomes));
        }
        let mut reports = Vec::new();
        for (goals, outcomes) in running {
            reports.extend(goals.into_iter().zip(outcomes.wait()));
        }
        // Only now have all probes that will arrive arrived.
        let denied = reports
            .iter()
            .filter(|(_, report)| report.outcome == Outcome::Denied)
            .flat_map(|(goal, _)| self.receivers(goal.destination, goal.family))
            .map(|receiver| receiver.party);
        let arrivals = self.arrivals(&denied.collect());
        let mut table = Table::new();
        for (goal, report) in &reports {
            let masks = self.masks(goal);
            let arrived = self
                .receivers(goal.destination, goal.family)
                .iter()
                .filter_map(|receiver| arrivals.get(&receiver.party))
                .any(|arrivals| arrivals.include(&goal.probe, report, &masks));
            let outcome = match report.outcome {
                Outcome::Denied if arrived => Outcome::Half,
                outcome => outcome,
            };
            table.set(goal.source, goal.destination, goal.family, outcome);
        }
        Ok(table)
    }

    /// A party itself, but [`Party::Node`] as the node that another one is on.
    fn beside(&self, party: &Party, other: &Party) -> Party {
        match (party, self.home(other)) {
            (Party::Node, Some(node)) => Party::Machine(node.name().to_owned()),
            _ => party.clone(),
        }
    }

    /// The addresses that the goal may see a probe come from in place of the pod's own.
    fn masks(&self, goal: &Goal<'_>) -> BTreeSet<IpAddr> {
        if goal.destination.party.is_service() {
            return self.nodes().flat_map(Node::all_addresses).collect();
        }
        match (self.backend(), goal.source, self.home(goal.source)) {
            (Some(_), Party::Pod(_), Some(node)) => node.all_addresses(),
            _ => BTreeSet::new(),
        }
    }

    /// One probe.
    pub fn try_once(
        &self,
        source: &Party,
        destination: &Destination,
        family: Family,
    ) -> Result<Outcome, LabError> {
        self.goal(destination, family)?;
        let sources = BTreeSet::from([source.clone()]);
        let destinations = BTreeSet::from([destination.clone()]);
        let table = self.probe(&sources, &destinations)?;
        table
            .get(source, destination, family)
            .ok_or_else(|| LabError::NoAddress(source.clone(), family))
    }

    /// What these parties saw of probes.
    fn arrivals(&self, parties: &BTreeSet<Party>) -> BTreeMap<Party, Arrivals> {
        let asked: Vec<_> = parties
            .iter()
            .filter_map(|party| {
                let half_open = half_open::clients(&self.station(party).ok()?.worker);
                Some((party.clone(), self.inbox(party).ok().cloned(), half_open))
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

/// A probe of a table.
struct Goal<'a> {
    source: &'a Party,
    destination: &'a Destination,
    family: Family,
    probe: Probe,
}

/// What a party saw of probes.
struct Arrivals {
    inbox: Option<Arc<Inbox>>,
    half_open: HashSet<SocketAddr>,
}

impl Arrivals {
    /// Whether a probe arrived, from where it was sent or from one of `masks`.
    fn include(&self, probe: &Probe, report: &Report, masks: &BTreeSet<IpAddr>) -> bool {
        let in_inbox = match (&self.inbox, probe.trace()) {
            (Some(inbox), Some(trace)) => inbox.has(trace),
            _ => false,
        };
        in_inbox
            || report.from.is_some_and(|from| {
                let mut clients = self.half_open.iter();
                clients.any(|client| *client == from || masks.contains(&client.ip()))
            })
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
