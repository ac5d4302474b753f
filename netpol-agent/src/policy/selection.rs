//! Which policies select which pods of this node.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use netpol_common::Direction;

use super::{
    catalog::Ruleset,
    grant::Grants,
    object::{ObjectKey, Policy},
    selector::{self, Scope, SelectorIndex},
    slab::{Handle, Slab},
    store::Ref,
    world::{PodRecord, Space, World},
};

/// A policy.
pub(super) struct PolicyRecord {
    pub(super) policy: Policy,
    space: Handle<Space>,
    /// The local pods that it selects.
    pub(super) selected: BTreeSet<Handle<PodRecord>>,
    /// What it grants; only while it selects a local pod. Most policies of a cluster never do.
    pub(super) grants: Option<Arc<Grants>>,
}

/// A local pod.
#[derive(Default)]
pub(super) struct Local {
    /// The policies that select it.
    pub(super) policies: BTreeSet<Handle<PolicyRecord>>,
    /// What isolates it, by direction.
    pub(super) rulesets: [Option<Ref<Ruleset>>; 2],
}

impl Local {
    pub(super) fn ruleset(&self, direction: Direction) -> Option<Ref<Ruleset>> {
        self.rulesets[direction as usize]
    }
}

/// Policies and local pods.
#[derive(Default)]
pub(super) struct Selection {
    pub(super) policies: Slab<PolicyRecord>,
    by_key: HashMap<ObjectKey, Handle<PolicyRecord>>,
    /// How many policies each namespace has.
    in_space: HashMap<Handle<Space>, usize>,
    index: SelectorIndex<Handle<PolicyRecord>>,
    pub(super) locals: BTreeMap<Handle<PodRecord>, Local>,
    /// Local pods whose rulesets have to be composed again.
    pub(super) dirty: BTreeSet<Handle<PodRecord>>,
}

/// A policy looks at pods of its own namespace.
fn scope(policy: &Policy) -> Scope {
    Scope::Named(policy.key.namespace.clone())
}

impl Selection {
    /// Adds or replaces a policy.
    pub(super) fn set_policy(&mut self, policy: Policy, world: &mut World) {
        let space = world.space(&policy.key.namespace);
        let handle = match self.by_key.get(&policy.key) {
            Some(&handle) => {
                if self.policies[handle].policy == policy {
                    return;
                }
                self.deselect(handle);
                let record = &mut self.policies[handle];
                self.index
                    .remove(handle, &scope(&record.policy), &record.policy.selector);
                record.policy = policy;
                record.grants = None;
                handle
            }
            None => {
                let key = policy.key.clone();
                let handle = self.policies.insert(PolicyRecord {
                    policy,
                    space,
                    selected: BTreeSet::new(),
                    grants: None,
                });
                self.by_key.insert(key, handle);
                *self.in_space.entry(space).or_default() += 1;
                handle
            }
        };
        let record = &mut self.policies[handle];
        self.index
            .insert(handle, &scope(&record.policy), &record.policy.selector);
        for &pod in &world.spaces[space].local {
            let labels = &world.profiles[world.pods[pod].profile].key.labels;
            if selector::matches(&record.policy.selector, labels) {
                record.selected.insert(pod);
                self.locals.entry(pod).or_default().policies.insert(handle);
                self.dirty.insert(pod);
            }
        }
    }

    pub(super) fn policy_gone(&mut self, key: &ObjectKey, world: &mut World) {
        let Some(handle) = self.by_key.remove(key) else {
            return;
        };
        self.deselect(handle);
        let PolicyRecord { policy, space, .. } = self.policies.remove(handle);
        self.index.remove(handle, &scope(&policy), &policy.selector);
        if let Some(count) = self.in_space.get_mut(&space) {
            *count -= 1;
            if *count == 0 {
                self.in_space.remove(&space);
            }
        }
        world.tidy_space(space, self.has_policies(space));
    }

    /// Whether a namespace has policies.
    pub(super) fn has_policies(&self, space: Handle<Space>) -> bool {
        self.in_space.contains_key(&space)
    }

    /// Takes a policy off every pod that it selects.
    fn deselect(&mut self, policy: Handle<PolicyRecord>) {
        for pod in std::mem::take(&mut self.policies[policy].selected) {
            if let Some(local) = self.locals.get_mut(&pod) {
                local.policies.remove(&policy);
                self.dirty.insert(pod);
            }
        }
    }

    /// Finds the policies that select a local pod.
    pub(super) fn select(&mut self, pod: Handle<PodRecord>, world: &World) {
        let key = &world.profiles[world.pods[pod].profile].key;
        let space = &world.spaces[key.namespace];
        let mut policies = BTreeSet::new();
        for candidate in self
            .index
            .candidates(&space.name, &space.labels, &key.labels)
        {
            let record = &mut self.policies[candidate];
            if record.space == key.namespace
                && selector::matches(&record.policy.selector, &key.labels)
            {
                policies.insert(candidate);
                record.selected.insert(pod);
            }
        }
        let local = self.locals.entry(pod).or_default();
        for old in std::mem::replace(&mut local.policies, policies) {
            if !local.policies.contains(&old) {
                let record = &mut self.policies[old];
                record.selected.remove(&pod);
                if record.selected.is_empty() {
                    record.grants = None;
                }
            }
        }
        self.dirty.insert(pod);
    }

    /// A pod is not local any more. Returns the rulesets that it had.
    pub(super) fn leave(&mut self, pod: Handle<PodRecord>) -> Vec<Ref<Ruleset>> {
        self.dirty.remove(&pod);
        let Some(local) = self.locals.remove(&pod) else {
            return Vec::new();
        };
        for policy in local.policies {
            let record = &mut self.policies[policy];
            record.selected.remove(&pod);
            if record.selected.is_empty() {
                record.grants = None;
            }
        }
        local.rulesets.into_iter().flatten().collect()
    }

    /// What a policy grants.
    pub(super) fn grants(&mut self, policy: Handle<PolicyRecord>) -> Arc<Grants> {
        let record = &mut self.policies[policy];
        record
            .grants
            .get_or_insert_with(|| Arc::new(Grants::of(&record.policy)))
            .clone()
    }
}
