//! Which profiles match a term.

use std::collections::BTreeSet;

use super::{
    selector::{self, Scope},
    slab::Handle,
    term::Term,
    world::{Profile, World},
};

impl World {
    /// The match of a profile with a pod term, if it is one.
    pub(super) fn matches(&self, profile: Handle<Profile>, term: &Term) -> Option<u16> {
        let Term::Pods {
            scope,
            selector,
            name,
        } = term
        else {
            return None;
        };
        let key = &self.profiles[profile].key;
        let space = &self.spaces[key.namespace];
        let here = match scope {
            Scope::Named(name) => *name == *space.name,
            Scope::Matching(selector) => selector::matches(selector, &space.labels),
        };
        if !here || !selector::matches(selector, &key.labels) {
            return None;
        }
        match name {
            None => Some(0),
            Some(name) => key.ports.get(name).copied(),
        }
    }

    /// The profiles that match a pod term, with the numbers they give to its port name.
    pub(super) fn matching(&self, term: &Term) -> Vec<(Handle<Profile>, u16)> {
        let Term::Pods {
            scope, selector, ..
        } = term
        else {
            return Vec::new();
        };
        // The shortest of the lists that hold every profile with a label that the selector requires.
        static EMPTY: BTreeSet<Handle<Profile>> = BTreeSet::new();
        let listed = selector::required(selector)
            .map(|(k, v)| self.by_label.get(&selector::pair(k, v)).unwrap_or(&EMPTY))
            .min_by_key(|profiles| profiles.len());
        let mut candidates: Vec<&BTreeSet<Handle<Profile>>> = Vec::new();
        match scope {
            Scope::Named(name) => {
                let here = self
                    .find_space(name)
                    .map_or(&EMPTY, |space| &self.spaces[space].profiles);
                candidates.push(match listed {
                    Some(listed) if listed.len() < here.len() => listed,
                    _ => here,
                });
            }
            Scope::Matching(selector) => match listed {
                Some(listed) => candidates.push(listed),
                None => candidates.extend(
                    self.spaces
                        .iter()
                        .filter(|(_, space)| selector::matches(selector, &space.labels))
                        .map(|(_, space)| &space.profiles),
                ),
            },
        }
        candidates
            .into_iter()
            .flatten()
            .filter_map(|profile| Some((*profile, self.matches(*profile, term)?)))
            .collect()
    }
}
