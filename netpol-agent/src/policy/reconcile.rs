//! How the index works off what a batch of changes has touched.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use netpol_common::{Address, Direction, Isolation};

use super::{
    catalog::Ruleset,
    edit::{Generation, PodIsolation},
    grant::{Granted, Grants},
    index::{Announced, Index, ObjectChange},
    object::{ObjectKey, Policy, Rule},
    ports::PortNames,
    selection::PolicyRecord,
    slab::Handle,
    store::Ref,
    term::{Match, Term},
    world::{PodChange, PodRecord, Profile},
};

impl Index {
    pub(super) fn take_in(&mut self, change: ObjectChange) {
        match change {
            ObjectChange::Namespace(namespace) => {
                self.dirty
                    .profiles
                    .extend(self.world.set_namespace(&namespace));
            }
            ObjectChange::NamespaceGone(name) => {
                self.dirty.profiles.extend(self.world.namespace_gone(&name));
                self.tidy_space(&name);
            }
            ObjectChange::Pod(pod) => {
                let change = self.world.set_pod(&pod);
                self.pod_changed(&pod.key, change);
            }
            ObjectChange::PodGone(key) => {
                let change = self.world.pod_gone(&key);
                self.pod_changed(&key, change);
            }
            ObjectChange::Policy(policy) => self.selection.set_policy(policy, &mut self.world),
            ObjectChange::PolicyGone(key) => self.selection.policy_gone(&key, &mut self.world),
            ObjectChange::Service(service) => {
                let addresses = service.addresses.into_iter().map(Into::into).collect();
                self.set_service(service.key, addresses);
            }
            ObjectChange::ServiceGone(key) => self.set_service(key, BTreeSet::new()),
            ObjectChange::NodeAddresses(addresses) => {
                let addresses: BTreeSet<Address> = addresses.into_iter().map(Into::into).collect();
                for address in self.node_addresses.symmetric_difference(&addresses) {
                    self.peers.set_node(*address, addresses.contains(address));
                }
                self.node_addresses = addresses;
            }
        }
    }

    fn set_service(&mut self, key: ObjectKey, addresses: BTreeSet<Address>) {
        let old = if addresses.is_empty() {
            self.services.remove(&key)
        } else {
            self.services.insert(key, addresses.clone())
        };
        let old = old.unwrap_or_default();
        for address in old.symmetric_difference(&addresses) {
            self.peers
                .set_service(*address, addresses.contains(address));
        }
    }

    fn pod_changed(&mut self, key: &ObjectKey, change: Option<PodChange>) {
        let Some(change) = change else {
            return;
        };
        // First what is gone: its handle may have been given out again.
        if let Some(profile) = change.old_profile {
            self.dirty.profiles.remove(&profile);
        }
        self.dirty.profiles.extend(change.new_profile);
        let exists = self.world.find_pod(key) == Some(change.pod);
        for address in change.addresses {
            let claims = exists && self.world.pods[change.pod].addresses.contains(&address);
            self.peers.claim(address, change.pod, claims);
        }
        if change.left {
            self.dirty.orphans.extend(self.selection.leave(change.pod));
            self.dirty.announce.remove(&change.pod);
            if self.announced.remove(&change.pod).is_some() {
                self.dirty.gone.insert(key.clone());
            }
        }
        if change.reselect {
            self.selection.select(change.pod, &self.world);
        }
        if exists && self.world.pods[change.pod].local {
            self.dirty.announce.insert(change.pod);
        }
        if !exists {
            self.tidy_space(&key.namespace);
        }
    }

    fn tidy_space(&mut self, name: &str) {
        if let Some(space) = self.world.find_space(name) {
            self.world
                .tidy_space(space, self.selection.has_policies(space));
        }
    }

    /// Gives every touched local pod the rulesets that its policies make, and lets go of those that it had.
    pub(super) fn compose_rulesets(&mut self, now: Generation) {
        let mut fresh = Vec::new();
        // Pods of one deployment have the same policies and port names.
        type Recipe = (Direction, Vec<Handle<PolicyRecord>>, Arc<PortNames>);
        let mut composed: HashMap<Recipe, Ref<Ruleset>> = HashMap::new();
        for pod in std::mem::take(&mut self.selection.dirty) {
            let policies: Vec<_> = self.selection.locals[&pod]
                .policies
                .iter()
                .copied()
                .collect();
            let ports = self.world.profiles[self.world.pods[pod].profile]
                .key
                .ports
                .clone();
            for direction in Direction::BOTH {
                let isolating: Vec<_> = policies
                    .iter()
                    .copied()
                    .filter(|p| rules(&self.selection.policies[*p].policy, direction).is_some())
                    .collect();
                let ruleset = (!isolating.is_empty()).then(|| {
                    let recipe = (direction, isolating, ports.clone());
                    if let Some(&ruleset) = composed.get(&recipe) {
                        self.catalog.acquire(ruleset, &mut fresh);
                        return ruleset;
                    }
                    let grants: Vec<Arc<Grants>> =
                        recipe.1.iter().map(|p| self.selection.grants(*p)).collect();
                    let granted = Granted::union(
                        grants
                            .iter()
                            .filter_map(|g| g.direction(direction))
                            .flatten(),
                        &ports,
                    );
                    let ruleset = self.catalog.acquire_ruleset(granted, &mut fresh);
                    composed.insert(recipe, ruleset);
                    ruleset
                });
                if let Some(local) = self.selection.locals.get_mut(&pod) {
                    let old = std::mem::replace(&mut local.rulesets[direction as usize], ruleset);
                    self.dirty.orphans.extend(old);
                }
            }
            self.dirty.announce.insert(pod);
        }
        for ruleset in std::mem::take(&mut self.dirty.orphans) {
            self.catalog.release_ruleset(ruleset, now);
        }
        for term in fresh {
            self.match_term(term);
        }
    }

    /// Finds the peers that match a term that has come into use.
    fn match_term(&mut self, term: Ref<Term>) {
        let content = self.catalog.term(term).clone();
        match &*content {
            Term::Block(block) => self.peers.set_block(term, block, true),
            Term::Pods {
                scope, selector, ..
            } => {
                self.terms.insert(term, scope, selector);
                for (profile, number) in self.world.matching(&content) {
                    let matches = &mut self.world.profiles[profile].matches;
                    let at = matches.partition_point(|(t, _)| *t < term);
                    if matches.get(at).is_none_or(|(t, _)| *t != term) {
                        matches.insert(at, (term, number));
                    }
                    self.touch_pods(profile);
                }
            }
        }
    }

    /// Takes a term off the peers that match it.
    pub(super) fn unmatch_term(&mut self, term: Ref<Term>) {
        let content = self.catalog.term(term).clone();
        match &*content {
            Term::Block(block) => self.peers.set_block(term, block, false),
            Term::Pods {
                scope, selector, ..
            } => {
                self.terms.remove(term, scope, selector);
                for (profile, _) in self.world.matching(&content) {
                    self.world.profiles[profile]
                        .matches
                        .retain(|(t, _)| *t != term);
                    self.touch_pods(profile);
                }
            }
        }
    }

    /// Finds the terms of every profile that is new or whose namespace has other labels.
    pub(super) fn match_profiles(&mut self) {
        for profile in std::mem::take(&mut self.dirty.profiles) {
            let key = &self.world.profiles[profile].key;
            let space = &self.world.spaces[key.namespace];
            let mut matches: Vec<Match> = self
                .terms
                .candidates(&space.name, &space.labels, &key.labels)
                .into_iter()
                .filter_map(|term| {
                    Some((term, self.world.matches(profile, self.catalog.term(term))?))
                })
                .collect();
            matches.sort_unstable();
            if self.world.profiles[profile].matches != matches {
                self.world.profiles[profile].matches = matches;
                self.touch_pods(profile);
            }
        }
    }

    /// Notes that the pods of a profile match other terms.
    fn touch_pods(&mut self, profile: Handle<Profile>) {
        for pod in &self.world.profiles[profile].pods {
            for address in &self.world.pods[*pod].addresses {
                self.peers.touch(*address);
            }
        }
    }

    /// What the dataplane has to be told about local pods.
    pub(super) fn announce(&mut self) -> (Vec<PodIsolation>, Vec<ObjectKey>) {
        let mut flip = Vec::new();
        for pod in std::mem::take(&mut self.dirty.announce) {
            // Address owners need not be local.
            if !self.selection.locals.contains_key(&pod) {
                continue;
            }
            let current = Announced {
                uid: self.world.pods[pod].uid.clone(),
                addresses: self.addresses(pod),
                terminating: self.world.pods[pod].terminating,
                isolation: self.isolation(pod),
            };
            if self.announced.get(&pod) != Some(&current) {
                flip.push(current.isolation.clone());
                self.announced.insert(pod, current);
            }
        }
        flip.sort_unstable_by(|a, b| a.pod.cmp(&b.pod));
        let gone = std::mem::take(&mut self.dirty.gone)
            .into_iter()
            .filter(|key| {
                self.world
                    .find_pod(key)
                    .is_none_or(|pod| !self.selection.locals.contains_key(&pod))
            })
            .collect();
        (flip, gone)
    }

    pub(super) fn isolation(&self, pod: Handle<PodRecord>) -> PodIsolation {
        let local = &self.selection.locals[&pod];
        let by = |direction| match local.ruleset(direction) {
            Some(ruleset) => Isolation::by(self.catalog.ruleset_id(ruleset)),
            None => Isolation::OPEN,
        };
        PodIsolation {
            pod: self.world.pod_key(pod),
            ingress: by(Direction::Ingress),
            egress: by(Direction::Egress),
        }
    }

    /// The addresses that a pod has, and does not only claim.
    pub(super) fn addresses(&self, pod: Handle<PodRecord>) -> Vec<Address> {
        let claimed = self.world.pods[pod].addresses.iter().copied();
        claimed
            .filter(|address| self.peers.owner(address) == Some(pod))
            .collect()
    }
}

/// The rules of a policy in a direction, if it isolates there.
pub(super) fn rules(policy: &Policy, direction: Direction) -> Option<&[Rule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}
