//! What NetworkPolicy means, written down naively: one function for each sentence of the specification
//! (<https://kubernetes.io/docs/concepts/services-networking/network-policies/> and the field documentation of
//! networking.k8s.io/v1). Slow, without any state, and sharing nothing with the compiler but its input: property tests
//! compare the two.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netpol_common::Direction;

use super::{
    index::ObjectChange,
    object::{
        Labels, Namespace, ObjectKey, Pod, Policy, PolicyPeer, PolicyPort, PortMatch, Protocol,
        Requirement, Rule, Selector, Service,
    },
};

/// The objects of a cluster at one moment, seen from one node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// The name of this node.
    pub node: String,
    /// The addresses of this node.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Namespaces by name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Pods.
    pub pods: BTreeMap<ObjectKey, Pod>,
    /// Policies.
    pub policies: BTreeMap<ObjectKey, Policy>,
    /// Services.
    pub services: BTreeMap<ObjectKey, Service>,
}

/// One end of a connection.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Party {
    /// A pod.
    Pod(ObjectKey),
    /// Whoever has this address: a pod, the node, or somebody outside the cluster.
    Address(IpAddr),
    /// This node itself.
    Node,
}

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What both ends say to a new connection. An end that is no pod permits everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Whether the sender's policies let it out.
    pub egress: bool,
    /// Whether the receiver's policies let it in.
    pub ingress: bool,
}

impl Verdict {
    /// "For a connection from a source pod to a destination pod to be allowed, both the egress policy on the source pod and
    /// the ingress policy on the destination pod need to allow the connection."
    pub fn allowed(self) -> bool {
        self.egress && self.ingress
    }
}

/// What is known about one end.
struct End<'a> {
    /// The pod, if policies see one.
    pod: Option<&'a Pod>,
    /// Its address in the family of the connection.
    address: Option<IpAddr>,
    /// It is this node.
    node: bool,
}

impl Snapshot {
    /// Takes in a change.
    pub fn apply(&mut self, change: &ObjectChange) {
        match change.clone() {
            ObjectChange::Namespace(namespace) => {
                self.namespaces.insert(namespace.name.clone(), namespace);
            }
            ObjectChange::NamespaceGone(name) => {
                self.namespaces.remove(&name);
            }
            ObjectChange::Pod(pod) => {
                self.pods.insert(pod.key.clone(), pod);
            }
            ObjectChange::PodGone(key) => {
                self.pods.remove(&key);
            }
            ObjectChange::Policy(policy) => {
                self.policies.insert(policy.key.clone(), policy);
            }
            ObjectChange::PolicyGone(key) => {
                self.policies.remove(&key);
            }
            ObjectChange::Service(service) => {
                self.services.insert(service.key.clone(), service);
            }
            ObjectChange::ServiceGone(key) => {
                self.services.remove(&key);
            }
            ObjectChange::NodeAddresses(addresses) => self.node_addresses = addresses,
        }
    }

    /// The changes that lead from nothing to these objects.
    pub fn objects(&self) -> Vec<ObjectChange> {
        let namespaces = self
            .namespaces
            .values()
            .cloned()
            .map(ObjectChange::Namespace);
        let pods = self.pods.values().cloned().map(ObjectChange::Pod);
        let policies = self.policies.values().cloned().map(ObjectChange::Policy);
        let services = self.services.values().cloned().map(ObjectChange::Service);
        std::iter::once(ObjectChange::NodeAddresses(self.node_addresses.clone()))
            .chain(namespaces)
            .chain(pods)
            .chain(policies)
            .chain(services)
            .collect()
    }

    /// Whether `from` may open a connection to `to` on a destination port. Without a protocol it is an ICMP echo.
    pub fn allows(
        &self,
        from: &Party,
        to: &Party,
        protocol: Option<Protocol>,
        port: u16,
        family: Family,
    ) -> Verdict {
        let source = self.end(from, family);
        let destination = self.end(to, family);
        let permits = |own: &End<'_>, peer: &End<'_>, direction| {
            own.pod.is_none_or(|pod| {
                Self::is_itself(pod, peer)
                    || self.is_its_node(pod, peer)
                    || !self.is_isolated(pod, direction)
                    || self
                        .isolating(pod, direction)
                        .flat_map(|policy| {
                            rules(policy, direction)
                                .into_iter()
                                .flatten()
                                .map(move |r| (policy, r))
                        })
                        .any(|(policy, rule)| {
                            self.rule_allows(
                                policy,
                                rule,
                                direction,
                                peer,
                                destination.pod,
                                protocol,
                                port,
                            )
                        })
            })
        };
        Verdict {
            egress: permits(&source, &destination, Direction::Egress),
            ingress: permits(&destination, &source, Direction::Ingress),
        }
    }

    fn end(&self, party: &Party, family: Family) -> End<'_> {
        let of_family = |a: &&IpAddr| a.is_ipv4() == (family == Family::V4);
        match party {
            Party::Node => End {
                pod: None,
                address: self.node_addresses.iter().find(of_family).copied(),
                node: true,
            },
            Party::Address(address) => End {
                pod: self.owner(*address),
                address: Some(*address),
                node: self.node_addresses.contains(address),
            },
            Party::Pod(key) => {
                let pod = self.pods.get(key);
                End {
                    pod: pod.filter(|pod| is_seen(pod)),
                    address: pod.and_then(|pod| pod.addresses.iter().find(of_family).copied()),
                    node: pod.is_some_and(|pod| pod.host_network && pod.node == self.node),
                }
            }
        }
    }

    /// The pod that has an address. While a deleted pod is still on record next to its successor, the one that is not
    /// going away has it, then the younger one.
    pub fn owner(&self, address: IpAddr) -> Option<&Pod> {
        self.pods
            .values()
            .filter(|pod| is_seen(pod) && pod.addresses.contains(&address))
            .max_by_key(|pod| (!pod.terminating, pod.created, &pod.uid, &pod.key))
    }

    /// Whether a Service has an address: who answers there is known only after kube-proxy has translated it.
    pub fn is_service(&self, address: IpAddr) -> bool {
        self.services
            .values()
            .any(|service| service.addresses.contains(&address))
    }

    /// "A Pod cannot block access to itself."
    fn is_itself(pod: &Pod, peer: &End<'_>) -> bool {
        peer.pod.is_some_and(|peer| peer.key == pod.key)
    }

    /// "Traffic to and from the node where a Pod is running is always allowed."
    fn is_its_node(&self, pod: &Pod, peer: &End<'_>) -> bool {
        pod.node == self.node && peer.node
    }

    /// "A pod is isolated if there is any NetworkPolicy that both selects the pod and has the direction in its policyTypes."
    fn is_isolated(&self, pod: &Pod, direction: Direction) -> bool {
        self.isolating(pod, direction).next().is_some()
    }

    fn isolating<'a>(
        &'a self,
        pod: &'a Pod,
        direction: Direction,
    ) -> impl Iterator<Item = &'a Policy> {
        self.policies
            .values()
            .filter(move |policy| selects(policy, pod) && rules(policy, direction).is_some())
    }

    /// "Each rule allows traffic which matches both the from (to) and ports sections."
    #[expect(
        clippy::too_many_arguments,
        reason = "everything a rule can speak about"
    )]
    fn rule_allows(
        &self,
        policy: &Policy,
        rule: &Rule,
        direction: Direction,
        peer: &End<'_>,
        destination: Option<&Pod>,
        protocol: Option<Protocol>,
        port: u16,
    ) -> bool {
        match &rule.peers {
            // "If this field is empty or missing, this rule matches all sources (destinations)."
            None => ports_match(&rule.ports, destination, protocol, port),
            // "Items in this list are combined using a logical OR operation."
            Some(items) => items.iter().any(|item| {
                let named = match (item, direction) {
                    // Only a pod names its ports: what is reached as an address of a block has no name.
                    (PolicyPeer::Block { .. }, Direction::Egress) => None,
                    _ => destination,
                };
                self.peer_matches(policy, item, peer)
                    && ports_match(&rule.ports, named, protocol, port)
            }),
        }
    }

    fn peer_matches(&self, policy: &Policy, item: &PolicyPeer, peer: &End<'_>) -> bool {
        match item {
            // "podSelector: selects the pods matching podSelector in the policy's own namespace."
            PolicyPeer::Pods(selector) => peer.pod.is_some_and(|pod| {
                pod.key.namespace == policy.key.namespace && matches(selector, &pod.labels)
            }),
            // "namespaceSelector and podSelector: the pods matching podSelector in the namespaces selected by
            // namespaceSelector."
            PolicyPeer::Namespaces(namespaces, selector) => peer.pod.is_some_and(|pod| {
                matches(namespaces, &self.namespace_labels(&pod.key.namespace))
                    && matches(selector, &pod.labels)
            }),
            // "except is a slice of CIDRs that should not be included within an IPBlock."
            PolicyPeer::Block { cidr, except } => peer.address.is_some_and(|address| {
                cidr.contains(&address) && !except.iter().any(|e| e.contains(&address))
            }),
        }
    }

    /// A namespace that nobody has described has the label that every namespace has.
    fn namespace_labels(&self, name: &str) -> Labels {
        match self.namespaces.get(name) {
            Some(namespace) => namespace.labels.clone(),
            None => Labels::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())]),
        }
    }
}

/// A pod with hostNetwork is its node, and one that has finished has given its addresses back: policies see neither.
fn is_seen(pod: &Pod) -> bool {
    !pod.host_network && !pod.finished
}

/// "podSelector selects the pods to which this NetworkPolicy object applies", in its own namespace.
fn selects(policy: &Policy, pod: &Pod) -> bool {
    is_seen(pod)
        && policy.key.namespace == pod.key.namespace
        && matches(&policy.selector, &pod.labels)
}

fn rules(policy: &Policy, direction: Direction) -> Option<&Vec<Rule>> {
    match direction {
        Direction::Ingress => policy.ingress.as_ref(),
        Direction::Egress => policy.egress.as_ref(),
    }
}

/// "If this field is empty or missing, this rule matches all ports (traffic not restricted by port)." The ports are those of
/// the destination.
fn ports_match(
    ports: &Option<Vec<PolicyPort>>,
    destination: Option<&Pod>,
    protocol: Option<Protocol>,
    port: u16,
) -> bool {
    let Some(ports) = ports else {
        return true;
    };
    ports.iter().any(|item| {
        // An entry always has a protocol, and none of them is ICMP.
        protocol == Some(item.protocol)
            && match &item.port {
                // "If this field is not provided, this matches all port names and numbers."
                PortMatch::All => true,
                // "endPort: the range of ports from port to endPort, inclusive, should be allowed."
                PortMatch::Range(first, last) => *first <= port && port <= *last,
                // "port can either be a numerical or named port on a pod."
                PortMatch::Named(name) => {
                    destination.and_then(|pod| port_number(pod, name, item.protocol)) == Some(port)
                }
            }
    })
}

/// The number that a pod gives to a port name for a protocol.
fn port_number(pod: &Pod, name: &str, protocol: Protocol) -> Option<u16> {
    pod.ports
        .iter()
        .find(|port| port.protocol == protocol && port.name.as_deref() == Some(name))
        .map(|port| port.port)
}

/// "The requirements are ANDed. An empty label selector matches all objects."
fn matches(selector: &Selector, labels: &Labels) -> bool {
    selector
        .requirements
        .iter()
        .all(|requirement| match requirement {
            Requirement::In(key, values) => {
                labels.contains_key(key) && values.contains(&labels[key])
            }
            Requirement::NotIn(key, values) => {
                !labels.contains_key(key) || !values.contains(&labels[key])
            }
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::DoesNotExist(key) => !labels.contains_key(key),
        })
}
