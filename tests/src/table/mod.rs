//! The truth table: who reaches whom, on what port, by which address family.
//!
//! A table is probed ([`crate::lab::Lab::probe`]), read from a scenario's `expected.txt`, compared, and shown.

mod diff;
mod matrix;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use netpol_agent::policy::object::{ObjectKey, Protocol};

pub use diff::{Difference, Differences};
pub use matrix::MatrixStyle;
pub use text::ParseError;

/// Somebody who can open a connection, or be its goal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Party {
    /// A pod, written `namespace/name`.
    Pod(ObjectKey),
    /// A host outside the cluster, written `host/name`.
    Host(String),
    /// The node itself, as the kubelet is. Written `node`; reached and reaching always, so only shown when it is not.
    Node,
}

impl Party {
    /// The pod `namespace/name`.
    pub fn pod(namespace: &str, name: &str) -> Self {
        Self::Pod(ObjectKey::new(namespace, name))
    }

    /// The outside host `name`.
    pub fn host(name: &str) -> Self {
        Self::Host(name.to_owned())
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => write!(f, "{key}"),
            Self::Host(name) => write!(f, "host/{name}"),
            Self::Node => f.write_str("node"),
        }
    }
}

impl FromStr for Party {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            None if text == "node" => Ok(Self::Node),
            Some(("host", name)) if !name.is_empty() => Ok(Self::host(name)),
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self::pod(namespace, name))
            }
            _ => Err(format!(
                "`{text}` is no party: write NAMESPACE/POD, host/NAME or node"
            )),
        }
    }
}

/// What is probed at a destination.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Port {
    /// `TCP/port`
    Tcp(u16),
    /// `UDP/port`
    Udp(u16),
    /// `SCTP/port`
    Sctp(u16),
    /// `ICMP`: echo, of the family's own ICMP.
    Icmp,
}

impl Port {
    /// The port of a protocol.
    pub const fn new(protocol: Protocol, port: u16) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp(port),
            Protocol::Udp => Self::Udp(port),
            Protocol::Sctp => Self::Sctp(port),
        }
    }

    /// Protocol and port number; `None` for ICMP.
    pub const fn transport(self) -> Option<(Protocol, u16)> {
        match self {
            Self::Tcp(port) => Some((Protocol::Tcp, port)),
            Self::Udp(port) => Some((Protocol::Udp, port)),
            Self::Sctp(port) => Some((Protocol::Sctp, port)),
            Self::Icmp => None,
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.transport() {
            Some((protocol, port)) => write!(f, "{protocol}/{port}"),
            None => f.write_str("ICMP"),
        }
    }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "ICMP" {
            return Ok(Self::Icmp);
        }
        let port = match text.split_once('/') {
            Some(("TCP", port)) => port.parse().map(Self::Tcp),
            Some(("UDP", port)) => port.parse().map(Self::Udp),
            Some(("SCTP", port)) => port.parse().map(Self::Sctp),
            _ => {
                return Err(format!(
                    "`{text}` is no port: write TCP/80, UDP/53, SCTP/9 or ICMP"
                ));
            }
        };
        port.map_err(|_| format!("`{text}` has no port number from 0 to 65535"))
    }
}

/// One column of the table: a party and a port of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Destination {
    /// Whose port it is.
    pub party: Party,
    /// The port.
    pub port: Port,
}

impl Destination {
    /// A port of a party.
    pub const fn new(party: Party, port: Port) -> Self {
        Self { party, port }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.party, self.port)
    }
}

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(address: std::net::IpAddr) -> Self {
        match address {
            std::net::IpAddr::V4(_) => Self::V4,
            std::net::IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// What became of one probe.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Outcome {
    /// Connected, or answered.
    Open,
    /// Refused at once by the other side's kernel: it was reached, and nothing listens there.
    Refused,
    /// Silence until the time was up, and nothing arrived.
    Denied,
    /// The probe arrived, and its answer did not come back. ICMP echo cannot tell: it is then `Denied`.
    Half,
    /// The sender's kernel reported this error.
    Error(Failure),
}

impl Outcome {
    /// Whether the destination was reached. A refusal is an answer.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Open | Self::Refused)
    }

    /// The same truth: equal, or both reached.
    pub fn agrees_with(self, other: Self) -> bool {
        self == other || (self.is_open() && other.is_open())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open | Self::Refused => f.write_str("open"),
            Self::Denied => f.write_str("denied"),
            Self::Half => f.write_str("half"),
            Self::Error(failure) => write!(f, "error {failure}"),
        }
    }
}

impl FromStr for Outcome {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "open" => Ok(Self::Open),
            "denied" => Ok(Self::Denied),
            "half" => Ok(Self::Half),
            _ => match text.strip_prefix("error ") {
                Some(failure) => failure.parse().map(Self::Error),
                None => Err(format!(
                    "`{text}` is no outcome: write open, denied, half or error KIND"
                )),
            },
        }
    }
}

/// An error other than refusal and silence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Failure {
    /// EHOSTUNREACH: a router said so, or nobody answers to the address.
    HostUnreachable,
    /// ENETUNREACH: no route.
    NetUnreachable,
    /// EPERM: the sender's own kernel dropped it.
    NotPermitted,
    /// EACCES: somebody prohibited it and said so.
    Prohibited,
    /// Any other error number.
    Errno(i32),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostUnreachable => f.write_str("host-unreachable"),
            Self::NetUnreachable => f.write_str("net-unreachable"),
            Self::NotPermitted => f.write_str("not-permitted"),
            Self::Prohibited => f.write_str("prohibited"),
            Self::Errno(number) => write!(f, "errno-{number}"),
        }
    }
}

impl FromStr for Failure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "host-unreachable" => Ok(Self::HostUnreachable),
            "net-unreachable" => Ok(Self::NetUnreachable),
            "not-permitted" => Ok(Self::NotPermitted),
            "prohibited" => Ok(Self::Prohibited),
            _ => text
                .strip_prefix("errno-")
                .and_then(|number| number.parse().ok())
                .map(Self::Errno)
                .ok_or_else(|| format!("`{text}` is no kind of error")),
        }
    }
}

/// One source at one destination. A family that either of them has no address of stays `None`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cell {
    /// By IPv4.
    pub v4: Option<Outcome>,
    /// By IPv6.
    pub v6: Option<Outcome>,
}

impl Cell {
    /// The same by both families.
    pub const fn both(outcome: Outcome) -> Self {
        Self {
            v4: Some(outcome),
            v6: Some(outcome),
        }
    }

    /// The outcome by one family.
    pub const fn get(self, family: Family) -> Option<Outcome> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// The outcome by one family, to be set.
    pub const fn get_mut(&mut self, family: Family) -> &mut Option<Outcome> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// The one outcome, when the families agree or only one was probed.
    pub fn uniform(self) -> Option<Outcome> {
        match (self.v4, self.v6) {
            (Some(v4), Some(v6)) => v4.agrees_with(v6).then_some(v4),
            (v4, v6) => v4.or(v6),
        }
    }
}

/// The truth table. Two tables are equal when no cell that both families can tell apart differs.
#[derive(Clone, Debug, Default)]
pub struct Table {
    cells: BTreeMap<Destination, BTreeMap<Party, Cell>>,
}

impl Table {
    /// A table with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every source (but not itself) at every destination, with one outcome.
    pub fn uniform<'a>(
        sources: impl IntoIterator<Item = &'a Party> + Clone,
        destinations: impl IntoIterator<Item = &'a Destination>,
        outcome: Outcome,
    ) -> Self {
        let mut table = Self::new();
        for destination in destinations {
            for source in sources.clone() {
                for family in Family::ALL {
                    if *source != destination.party {
                        table.set(source, destination, family, outcome);
                    }
                }
            }
        }
        table
    }

    /// Notes an outcome.
    pub fn set(
        &mut self,
        source: &Party,
        destination: &Destination,
        family: Family,
        outcome: Outcome,
    ) {
        let row = self.cells.entry(destination.clone()).or_default();
        *row.entry(source.clone()).or_default().get_mut(family) = Some(outcome);
    }

    /// The cell of a source at a destination. The node is open where the table does not say otherwise.
    pub fn cell(&self, source: &Party, destination: &Destination) -> Option<Cell> {
        let row = self.cells.get(destination)?;
        match row.get(source) {
            None if *source == Party::Node => Some(Cell::both(Outcome::Open)),
            cell => cell.copied(),
        }
    }

    /// The outcome by one family.
    pub fn get(
        &self,
        source: &Party,
        destination: &Destination,
        family: Family,
    ) -> Option<Outcome> {
        self.cell(source, destination)?.get(family)
    }

    /// The destinations, in order.
    pub fn destinations(&self) -> impl Iterator<Item = &Destination> {
        self.cells.keys()
    }

    /// Everybody who is a source somewhere, in order.
    pub fn sources(&self) -> BTreeSet<&Party> {
        self.cells.values().flat_map(BTreeMap::keys).collect()
    }

    /// Every cell: source, destination, outcomes.
    pub fn iter(&self) -> impl Iterator<Item = (&Party, &Destination, Cell)> {
        self.cells.iter().flat_map(|(destination, row)| {
            row.iter()
                .map(move |(source, cell)| (source, destination, *cell))
        })
    }

    /// How many cells there are.
    pub fn len(&self) -> usize {
        self.cells.values().map(BTreeMap::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// Whether every cell is open by every family.
    pub fn all_open(&self) -> bool {
        self.iter().all(|(_, _, cell)| {
            Family::ALL
                .iter()
                .filter_map(|family| cell.get(*family))
                .all(Outcome::is_open)
        })
    }

    /// The same cells, all open: what a cluster without enforcement must show.
    pub fn opened(&self) -> Self {
        let mut table = self.clone();
        for cell in table.cells.values_mut().flat_map(BTreeMap::values_mut) {
            cell.v4 = cell.v4.map(|_| Outcome::Open);
            cell.v6 = cell.v6.map(|_| Outcome::Open);
        }
        table
    }
}

impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        self.differences(other).is_empty()
    }
}
