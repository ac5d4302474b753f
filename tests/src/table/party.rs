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
    /// A Service by one of its addresses, only ever a goal. Written `service/namespace/name`, or with another [`Via`].
    Service(ObjectKey, Via),
}

/// By which of its addresses a Service is reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Via {
    /// `clusterIP`, written `service/`.
    ClusterIp,
    /// The node port at the node's own address, written `nodeport/`. Its destination names the Service's port all the same.
    NodePort,
    /// One of `externalIPs`, written `external/`.
    ExternalIp,
    /// An address of the load balancer, written `loadbalancer/`.
    LoadBalancer,
}

impl Via {
    /// Every way.
    pub const ALL: [Self; 4] = [
        Self::ClusterIp,
        Self::NodePort,
        Self::ExternalIp,
        Self::LoadBalancer,
    ];
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIp => "service",
            Self::NodePort => "nodeport",
            Self::ExternalIp => "external",
            Self::LoadBalancer => "loadbalancer",
        })
    }
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

    /// The Service `namespace/name` by its cluster address.
    pub fn service(namespace: &str, name: &str) -> Self {
        Self::service_via(namespace, name, Via::ClusterIp)
    }

    /// The Service `namespace/name` by another of its addresses.
    pub fn service_via(namespace: &str, name: &str, via: Via) -> Self {
        Self::Service(ObjectKey::new(namespace, name), via)
    }

    /// Whether it is a Service, and so never the source of anything.
    pub const fn is_service(&self) -> bool {
        matches!(self, Self::Service(..))
    }

    /// Whether a party has any way to this one: an address that only nodes know is for nobody outside.
    pub const fn is_there_for(&self, source: &Self) -> bool {
        !matches!(
            (self, source),
            (Self::Service(_, Via::ClusterIp), Self::Host(_))
        )
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => write!(f, "{key}"),
            Self::Host(name) => write!(f, "host/{name}"),
            Self::Node => f.write_str("node"),
            Self::Machine(name) => write!(f, "node/{name}"),
            Self::Service(key, via) => write!(f, "{via}/{key}"),
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
            Some((way, key)) if key.contains('/') => {
                let via = Via::ALL.into_iter().find(|via| via.to_string() == way);
                match (via, key.split_once('/')) {
                    (Some(via), Some((namespace, name)))
                        if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
                    {
                        Ok(Self::service_via(namespace, name, via))
                    }
                    _ => Err(format!(
                        "`{text}` is no Service: write service/NAMESPACE/NAME, or nodeport/, external/ or loadbalancer/"
                    )),
                }
            }
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

    /// Another port of the same protocol.
    pub const fn with_number(self, number: u16) -> Self {
        match self {
            Self::Tcp(_) => Self::Tcp(number),
            Self::Udp(_) => Self::Udp(number),
            Self::Sctp(_) => Self::Sctp(number),
            Self::Icmp => Self::Icmp,
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
