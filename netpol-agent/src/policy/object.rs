//! Kubernetes objects, trimmed and checked: what the index keeps of each.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

/// Namespace and name. Cluster-scoped objects have an empty namespace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectKey {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
}

impl ObjectKey {
    /// The key of `namespace/name`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// `metadata.labels`
pub type Labels = BTreeMap<String, String>;

/// A namespace: its name and labels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// `metadata.name`
    pub name: String,
    /// Labels, with `kubernetes.io/metadata.name` as the API server adds it.
    pub labels: Labels,
}

/// A transport protocol of a policy or a container port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
    /// IP protocol 132.
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// A port that a container declares.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ContainerPort {
    /// `name`, if it has one.
    pub name: Option<String>,
    /// `protocol`, TCP when absent.
    pub protocol: Protocol,
    /// `containerPort`
    pub port: u16,
}

/// What matters of a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.uid`, empty in manifests that have none.
    pub uid: String,
    /// `metadata.creationTimestamp` in seconds of the Unix epoch, 0 when absent.
    pub created: i64,
    /// `metadata.deletionTimestamp` is set. Such a pod counts until it is gone.
    pub terminating: bool,
    /// `metadata.labels`
    pub labels: Labels,
    /// `spec.nodeName`, empty while the pod is not scheduled.
    pub node: String,
    /// `spec.hostNetwork`: the pod is the node, never selected and never a peer.
    pub host_network: bool,
    /// `status.phase` is Succeeded or Failed: the pod has given its addresses back.
    pub finished: bool,
    /// `status.podIPs` (or `status.podIP`), at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Ports of the containers and of the restartable init containers.
    pub ports: Vec<ContainerPort>,
}

/// What matters of a Service: somebody else answers at its addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `spec.clusterIPs` (or `spec.clusterIP`) unless headless, `spec.externalIPs`, `spec.loadBalancerIP` and
    /// `status.loadBalancer.ingress[].ip`.
    pub addresses: BTreeSet<IpAddr>,
}

/// A label selector (meta/v1 LabelSelector): all requirements must hold. An empty one matches everything.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Selector {
    /// `matchLabels` as [`Requirement::In`] with one value, then `matchExpressions`; sorted, without duplicates.
    pub requirements: Vec<Requirement>,
}

/// One requirement of a selector. Values are sorted.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Requirement {
    /// The key is there and its value is one of these.
    In(String, Vec<String>),
    /// The key is absent, or its value is none of these.
    NotIn(String, Vec<String>),
    /// The key is there.
    Exists(String),
    /// The key is absent.
    DoesNotExist(String),
}

/// A network policy, checked and with the defaults of the API server applied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `spec.podSelector`
    pub selector: Selector,
    /// The ingress rules; `None` when `policyTypes` has no Ingress (the pod is not isolated by this policy).
    pub ingress: Option<Vec<Rule>>,
    /// The egress rules; `None` when `policyTypes` has no Egress.
    pub egress: Option<Vec<Rule>>,
}

/// One ingress or egress rule: any of the peers on any of the ports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// `from` or `to`; `None` (absent or empty) is every peer, addresses outside the cluster included.
    pub peers: Option<Vec<PolicyPeer>>,
    /// `ports`; `None` (absent or empty) is every port of every protocol, ICMP included.
    pub ports: Option<Vec<PolicyPort>>,
}

/// One item of `from` or `to`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PolicyPeer {
    /// `podSelector` without `namespaceSelector`: pods of the policy's own namespace.
    Pods(Selector),
    /// `namespaceSelector`, with `podSelector` (empty when absent): pods that match in namespaces that match.
    Namespaces(Selector, Selector),
    /// `ipBlock`: addresses of `cidr` that are in none of `except`. Host bits are masked off.
    Block {
        /// `cidr`
        cidr: IpNet,
        /// `except`
        except: Vec<IpNet>,
    },
}

/// One item of `ports`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PolicyPort {
    /// `protocol`, TCP when absent.
    pub protocol: Protocol,
    /// `port` and `endPort`.
    pub port: PortMatch,
}

/// Which ports of a protocol.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PortMatch {
    /// No `port`: all of them.
    All,
    /// `port` to `endPort`, both included (`endPort` is `port` when absent).
    Range(u16, u16),
    /// A name, resolved on the destination pod.
    Named(String),
}
