//! Who, and where to: parties, ports, destinations, families.

use std::{fmt, str::FromStr};

use netpol_agent::policy::object::{ObjectKey, Protocol};

/// Somebody who can open a connection, or be its goal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Party {
    /// A pod, written `namespace/name`.
    Pod(ObjectKey),
    /// A host outside the cluster, written `host/name`.
    Host(String),
    /// The node itself, as the kubelet is: of several, the one that the other end is on. Written `node`; reached and
    /// reaching always, so only shown when it is not.
    Node,
    /// One of several nodes by its name, written `node/name`: for pods of the other nodes an address like any other.
    Machine(String),
}

impl Party {
    /// The pod `namespace/name`.
    pub fn pod(namespace: &str, name: &str) -> Self {
        Self::Pod(ObjectKey::new(namespace, name))
    }

    /// The node `name`, of several.
    pub fn machine(name: &str) -> Self {
        Self::Machine(name.to_owned())
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
            Self::Machine(name) => write!(f, "node/{name}"),
        }
    }
}

impl FromStr for Party {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            None if text == "node" => Ok(Self::Node),
            Some(("host", name)) if !name.is_empty() => Ok(Self::host(name)),
            Some(("node", name)) if !name.is_empty() => Ok(Self::machine(name)),
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self::pod(namespace, name))
            }
            _ => Err(format!(
                "`{text}` is no party: write NAMESPACE/POD, host/NAME, node or node/NAME"
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
