//! The index: owns the objects, and says what each change of them does to the tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netpol_common::{Address, Direction, Isolation};

use super::{
    catalog::{Catalog, Ruleset},
    edit::{Change, Edit, Generation, PodIsolation},
    object::{Namespace, ObjectKey, Pod, Policy, Service},
    order::{sort, sort_removals},
    peers::Peers,
    reconcile::rules,
    selection::Selection,
    selector::SelectorIndex,
    slab::Handle,
    store::Ref,
    term::Term,
    world::{PodRecord, Profile, World},
};

/// One object came, changed or went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ObjectChange {
    /// A namespace as it is now.
    Namespace(Namespace),
    /// The namespace of this name is gone.
    NamespaceGone(String),
    /// A pod as it is now.
    Pod(Pod),
    /// This pod is gone.
    PodGone(ObjectKey),
    /// A policy as it is now.
    Policy(Policy),
    /// This policy is gone.
    PolicyGone(ObjectKey),
    /// A Service as it is now.
    Service(Service),
    /// This Service is gone.
    ServiceGone(ObjectKey),
    /// The addresses of this node, all of them.
    NodeAddresses(BTreeSet<IpAddr>),
}

/// A pod of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalPod<'a> {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.uid`
    pub uid: &'a str,
    /// The addresses that the pod has; not those that another pod has taken over while this one was still on record.
    pub addresses: Vec<IpAddr>,
    /// It is being deleted.
    pub terminating: bool,
    /// What it may receive.
    pub ingress: Isolation,
    /// What it may send.
    pub egress: Isolation,
    /// Names of the policies, of its namespace, that isolate what it may receive.
    pub ingress_policies: Vec<&'a str>,
    /// Names of the policies, of its namespace, that isolate what it may send.
    pub egress_policies: Vec<&'a str>,
}

/// A policy and what it selects here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyStatus<'a> {
    /// Namespace and name.
    pub key: &'a ObjectKey,
    /// The pods of this node that it selects.
    pub pods: Vec<ObjectKey>,
}

/// What the dataplane was last told about a local pod.
#[derive(PartialEq, Eq)]
pub(super) struct Announced {
    pub(super) uid: Box<str>,
    pub(super) addresses: Vec<Address>,
    pub(super) terminating: bool,
    pub(super) isolation: PodIsolation,
}

/// Owns trimmed objects; each change of them returns the edits that it causes.
///
/// Compiling from nothing is applying all objects to an empty index: any order of changes that ends in the same objects
/// ends in the same tables, once it has [settled](Index::settled).
pub struct Index {
    pub(super) world: World,
    pub(super) selection: Selection,
    pub(super) catalog: Catalog,
    pub(super) peers: Peers,
    /// Pod terms, filed for the pods that may match them.
    pub(super) terms: SelectorIndex<Ref<Term>>,
    pub(super) node_addresses: BTreeSet<Address>,
    /// The addresses of each Service, as far as it has some.
    pub(super) services: BTreeMap<ObjectKey, BTreeSet<Address>>,
    pub(super) announced: BTreeMap<Handle<PodRecord>, Announced>,
    pub(super) generation: Generation,
    pub(super) dirty: Dirty,
}

/// What a batch of changes has touched and not yet been worked off.
#[derive(Default)]
pub(super) struct Dirty {
    /// Profiles whose terms have to be found again.
    pub(super) profiles: BTreeSet<Handle<Profile>>,
    /// Local pods that the dataplane may have to be told about.
    pub(super) announce: BTreeSet<Handle<PodRecord>>,
    /// Local pods that went, as far as the dataplane knew them.
    pub(super) gone: BTreeSet<ObjectKey>,
    /// Rulesets that nobody holds any more, to be let go when the new ones are in place.
    pub(super) orphans: Vec<Ref<Ruleset>>,
}

impl Index {
    /// An index without objects, for the pods of this node.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            world: World::new(node_name.into()),
            selection: Selection::default(),
            catalog: Catalog::default(),
            peers: Peers::new(),
            terms: SelectorIndex::default(),
            node_addresses: BTreeSet::new(),
            services: BTreeMap::new(),
            announced: BTreeMap::new(),
            generation: Generation::default(),
            dirty: Dirty::default(),
        }
    }

    /// The generation of the last [`Index::apply`] or [`Index::settle`] that changed something.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether nothing is waiting to be taken away.
    pub fn settled(&self) -> bool {
        self.catalog.is_settled()
    }

    /// Takes in changes of objects, in their order, and says what they do to the tables together.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = ObjectChange>) -> Change {
        let now = Generation(self.generation.0 + 1);
        for change in changes {
            self.take_in(change);
        }
        self.compose_rulesets(now);
        self.match_profiles();
        let mut peers = self.peers.refresh(
            &self.world,
            &mut self.catalog,
            now,
            &mut self.dirty.announce,
        );

        let mut add = std::mem::take(&mut self.catalog.port_edits);
        add.append(&mut self.catalog.rule_edits);
        add.append(&mut peers);
        sort(&mut add);
        let (flip, gone) = self.announce();
        let change = Change { add, flip, gone };
        if !change.is_empty() {
            self.generation = now;
        }
        change
    }

    /// Takes away what nobody needs any more and nobody has needed since `safe`, the generation of a change that has been
    /// written whole, long enough ago that no packet is on its way through an older state.
    ///
    /// Some of it takes more than one round; repeated until [`Index::settled`].
    pub fn settle(&mut self, safe: Generation) -> Vec<Edit> {
        let now = Generation(self.generation.0 + 1);
        let mut removals = Vec::new();
        self.catalog.remove_rulesets(safe, now, &mut removals);
        let stale = self.catalog.unmatch_terms(safe);
        for term in &stale {
            self.unmatch_term(*term);
        }
        let mut peers = self.peers.refresh(
            &self.world,
            &mut self.catalog,
            now,
            &mut self.dirty.announce,
        );
        for term in stale {
            self.catalog.forget_term(term);
        }
        self.catalog.remove_classes(safe, now, &mut removals);
        self.catalog.remove_port_sets(now, &mut removals);

        let mut edits = std::mem::take(&mut self.catalog.port_edits);
        edits.append(&mut self.catalog.rule_edits);
        edits.append(&mut peers);
        sort(&mut edits);
        sort_removals(&mut removals);
        edits.append(&mut removals);
        if !edits.is_empty() {
            self.generation = now;
        }
        edits
    }

    /// The whole content of all tables, in a canonical order.
    pub fn tables(&self) -> Vec<Edit> {
        let mut tables = self.catalog.tables();
        tables.extend(self.peers.tables());
        sort(&mut tables);
        tables
    }

    /// The pods of this node by namespace and name, those without an address yet included.
    pub fn local_pods(&self) -> impl Iterator<Item = LocalPod<'_>> {
        let mut locals: Vec<_> = self.selection.locals.iter().collect();
        locals.sort_by_cached_key(|(pod, _)| self.world.pod_key(**pod));
        locals.into_iter().map(|(&pod, local)| {
            let isolation = self.isolation(pod);
            let names = |direction| {
                let mut names: Vec<_> = local
                    .policies
                    .iter()
                    .map(|policy| &self.selection.policies[*policy].policy)
                    .filter(|policy| rules(policy, direction).is_some())
                    .map(|policy| policy.key.name.as_str())
                    .collect();
                names.sort_unstable();
                names
            };
            LocalPod {
                key: isolation.pod,
                uid: &self.world.pods[pod].uid,
                addresses: self
                    .addresses(pod)
                    .into_iter()
                    .map(Address::to_ip)
                    .collect(),
                terminating: self.world.pods[pod].terminating,
                ingress: isolation.ingress,
                egress: isolation.egress,
                ingress_policies: names(Direction::Ingress),
                egress_policies: names(Direction::Egress),
            }
        })
    }

    /// The pod that has an address.
    pub fn pod_at(&self, address: &Address) -> Option<ObjectKey> {
        self.peers.owner(address).map(|pod| self.world.pod_key(pod))
    }

    /// How many policies there are.
    pub fn policy_count(&self) -> usize {
        self.selection.policies.iter().count()
    }

    /// All policies by namespace and name.
    pub fn policies(&self) -> impl Iterator<Item = PolicyStatus<'_>> {
        let mut policies: Vec<_> = self
            .selection
            .policies
            .iter()
            .map(|(_, record)| record)
            .collect();
        policies.sort_unstable_by(|a, b| a.policy.key.cmp(&b.policy.key));
        policies.into_iter().map(|record| {
            let mut pods: Vec<_> = record
                .selected
                .iter()
                .map(|pod| self.world.pod_key(*pod))
                .collect();
            pods.sort_unstable();
            PolicyStatus {
                key: &record.policy.key,
                pods,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_may_move_between_threads() {
        fn is_send<T: Send>() {}
        is_send::<Index>();
    }
}
