//! What policies grant, rule by rule, and their union for one pod.

use std::{collections::HashMap, sync::Arc};

use netpol_common::Direction;

use super::{
    object::{Policy, PolicyPeer, PortMatch, Protocol, Rule, Selector},
    ports::{PortNames, PortSet},
    selector::Scope,
    term::{Block, Term},
};

/// What one rule grants to one of its peers.
pub(super) struct Grant {
    /// The peer; `None` is everybody.
    peer: Option<Arc<Term>>,
    /// The ports that the rule gives by number.
    ports: PortSet,
    /// The ports that it gives by a name of the selected pod (ingress).
    names: Vec<(Protocol, String)>,
}

/// What a policy grants in both directions; `None` where it does not isolate.
pub(super) struct Grants {
    ingress: Option<Vec<Grant>>,
    egress: Option<Vec<Grant>>,
}

impl Grants {
    pub(super) fn of(policy: &Policy) -> Self {
        let namespace = &policy.key.namespace;
        let all = |rules: &Option<Vec<Rule>>, lower: fn(&Rule, &str) -> Vec<Grant>| {
            rules.as_ref().map(|rules| {
                rules
                    .iter()
                    .flat_map(|rule| lower(rule, namespace))
                    .collect()
            })
        };
        Self {
            ingress: all(&policy.ingress, ingress),
            egress: all(&policy.egress, egress),
        }
    }

    pub(super) fn direction(&self, direction: Direction) -> Option<&[Grant]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// Ports by number, and by name.
fn ports(rule: &Rule) -> (PortSet, Vec<(Protocol, String)>) {
    let Some(ports) = &rule.ports else {
        return (PortSet::All, Vec::new());
    };
    let mut numbers = Vec::new();
    let mut names = Vec::new();
    for port in ports {
        match &port.port {
            PortMatch::All => numbers.push(PortSet::protocol(port.protocol)),
            PortMatch::Range(first, last) => {
                numbers.push(PortSet::range(port.protocol, *first, *last));
            }
            PortMatch::Named(name) => names.push((port.protocol, name.clone())),
        }
    }
    (PortSet::union(&numbers), names)
}

/// The peers of a rule; `None` is everybody.
fn peers(rule: &Rule, namespace: &str) -> Vec<Option<Term>> {
    let pods = |scope: Scope, selector: &Selector| {
        Some(Term::Pods {
            scope,
            selector: selector.clone(),
            name: None,
        })
    };
    let Some(peers) = &rule.peers else {
        return vec![None];
    };
    peers
        .iter()
        .map(|peer| match peer {
            PolicyPeer::Pods(selector) => pods(Scope::Named(namespace.to_owned()), selector),
            PolicyPeer::Namespaces(namespaces, selector) => {
                pods(Scope::Matching(namespaces.clone()), selector)
            }
            PolicyPeer::Block { cidr, except } => Some(Term::Block(Block::new(
                (*cidr).into(),
                except.iter().map(|e| (*e).into()),
            ))),
        })
        .collect()
}

/// The destination is the selected pod: a name is one of its own.
fn ingress(rule: &Rule, namespace: &str) -> Vec<Grant> {
    let (ports, names) = ports(rule);
    peers(rule, namespace)
        .into_iter()
        .map(|peer| Grant {
            peer: peer.map(Arc::new),
            ports: ports.clone(),
            names: names.clone(),
        })
        .collect()
}

/// The destination is the peer: a name narrows the peer to the pods that have it, and means the number it has there.
fn egress(rule: &Rule, namespace: &str) -> Vec<Grant> {
    let (ports, names) = ports(rule);
    let mut grants = Vec::new();
    for peer in peers(rule, namespace) {
        for name in &names {
            let (scope, selector) = match &peer {
                Some(Term::Pods {
                    scope, selector, ..
                }) => (scope.clone(), selector.clone()),
                // Every pod of the cluster.
                None => (Scope::Matching(Selector::default()), Selector::default()),
                // Only a pod names its ports.
                Some(Term::Block(_)) => continue,
            };
            grants.push(Grant {
                peer: Some(Arc::new(Term::Pods {
                    scope,
                    selector,
                    name: Some(name.clone()),
                })),
                ports: PortSet::NONE,
                names: Vec::new(),
            });
        }
        if !ports.is_empty() {
            grants.push(Grant {
                peer: peer.map(Arc::new),
                ports: ports.clone(),
                names: Vec::new(),
            });
        }
    }
    grants
}

/// The union of grants for one pod in one direction.
#[derive(Default)]
pub(super) struct Granted {
    /// What each term adds to what everybody has. For a term with a port name that is nothing: its ports depend on the peer.
    pub(super) terms: HashMap<Arc<Term>, PortSet>,
    /// What everybody has.
    pub(super) everybody: PortSet,
}

impl Granted {
    /// The union of `grants` for a pod that gives these names to its ports.
    pub(super) fn union<'a>(
        grants: impl IntoIterator<Item = &'a Grant>,
        names: &PortNames,
    ) -> Self {
        let mut everybody = Vec::new();
        let mut terms: HashMap<Arc<Term>, Vec<PortSet>> = HashMap::new();
        for grant in grants {
            let mut sets = vec![grant.ports.clone()];
            for name in &grant.names {
                // A pod without the name has no such port.
                if let Some(&number) = names.get(name) {
                    sets.push(PortSet::range(name.0, number, number));
                }
            }
            match &grant.peer {
                None => everybody.extend(sets),
                Some(term) => terms.entry(term.clone()).or_default().extend(sets),
            }
        }
        let everybody = PortSet::union(&everybody);
        let terms = terms
            .into_iter()
            .map(|(term, sets)| (term, PortSet::union(&sets)))
            .filter(|(term, ports)| match &**term {
                Term::Pods {
                    name: Some((protocol, _)),
                    ..
                } => !everybody.covers(&PortSet::protocol(*protocol)),
                _ => !everybody.covers(ports),
            })
            .collect();
        Self { terms, everybody }
    }
}
