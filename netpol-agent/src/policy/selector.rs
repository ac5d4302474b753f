//! Label selectors, and an index that finds the selectors that labels could match without trying all of them.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use super::{
    labels::LabelSet,
    object::{Requirement, Selector},
};

/// Whether all requirements hold.
pub(super) fn matches(selector: &Selector, labels: &LabelSet) -> bool {
    selector
        .requirements
        .iter()
        .all(|requirement| match requirement {
            Requirement::In(key, values) => labels
                .get(key)
                .is_some_and(|has| values.iter().any(|v| v == has)),
            // An object without the key has none of the values.
            Requirement::NotIn(key, values) => labels
                .get(key)
                .is_none_or(|has| values.iter().all(|v| v != has)),
            Requirement::Exists(key) => labels.get(key).is_some(),
            Requirement::DoesNotExist(key) => labels.get(key).is_none(),
        })
}

/// The namespaces in which a selector looks.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Scope {
    /// The namespace of this name.
    Named(String),
    /// Namespaces whose labels match.
    Matching(Selector),
}

/// A label `key=value` as a number. A collision only costs a candidate that is tried in vain.
pub(super) fn pair(key: &str, value: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, value).hash(&mut hasher);
    hasher.finish()
}

/// The labels without which nothing matches: every `key in [value]`.
pub(super) fn required(selector: &Selector) -> impl Iterator<Item = (&str, &str)> {
    selector
        .requirements
        .iter()
        .filter_map(|requirement| match requirement {
            Requirement::In(key, values) if values.len() == 1 => {
                Some((key.as_str(), values[0].as_str()))
            }
            _ => None,
        })
}

/// Where a selector is filed: the namespace it asks for and a label it asks for, as far as it does.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Anchor {
    scope: Option<u64>,
    label: Option<u64>,
}

impl Anchor {
    fn of(scope: &Scope, selector: &Selector) -> Self {
        Self {
            scope: match scope {
                Scope::Named(name) => Some(named(name)),
                Scope::Matching(selector) => required(selector).next().map(|(k, v)| pair(k, v)),
            },
            label: required(selector).next().map(|(k, v)| pair(k, v)),
        }
    }
}

/// A namespace's name in the space of [`pair`]; label keys are never empty.
fn named(name: &str) -> u64 {
    pair("", name)
}

/// Selectors filed under what they ask for. A pod finds its candidates by its own namespace and labels.
pub(super) struct SelectorIndex<T> {
    filed: HashMap<Anchor, Vec<T>>,
}

impl<T> Default for SelectorIndex<T> {
    fn default() -> Self {
        Self {
            filed: HashMap::new(),
        }
    }
}

impl<T: Copy + Eq> SelectorIndex<T> {
    pub(super) fn insert(&mut self, item: T, scope: &Scope, selector: &Selector) {
        self.filed
            .entry(Anchor::of(scope, selector))
            .or_default()
            .push(item);
    }

    pub(super) fn remove(&mut self, item: T, scope: &Scope, selector: &Selector) {
        let anchor = Anchor::of(scope, selector);
        if let Some(items) = self.filed.get_mut(&anchor) {
            items.retain(|i| *i != item);
            if items.is_empty() {
                self.filed.remove(&anchor);
            }
        }
    }

    /// Everything that may match a pod with these labels in this namespace, each once. The caller still has to ask.
    pub(super) fn candidates(
        &self,
        namespace: &str,
        namespace_labels: &LabelSet,
        labels: &LabelSet,
    ) -> Vec<T> {
        let scopes = [None, Some(named(namespace))]
            .into_iter()
            .chain(namespace_labels.iter().map(|(k, v)| Some(pair(k, v))));
        let pairs: Vec<_> = std::iter::once(None)
            .chain(labels.iter().map(|(k, v)| Some(pair(k, v))))
            .collect();
        let mut found = Vec::new();
        for scope in scopes {
            for &label in &pairs {
                if let Some(items) = self.filed.get(&Anchor { scope, label }) {
                    found.extend_from_slice(items);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> LabelSet {
        LabelSet::new(
            &pairs
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect(),
        )
    }

    fn selector(requirement: Requirement) -> Selector {
        Selector {
            requirements: vec![requirement],
        }
    }

    #[test]
    fn not_in_matches_an_object_that_lacks_the_key() {
        let not_in = selector(Requirement::NotIn("env".into(), vec!["prod".into()]));
        assert!(matches(&not_in, &labels(&[])));
        assert!(matches(&not_in, &labels(&[("env", "dev")])));
        assert!(!matches(&not_in, &labels(&[("env", "prod")])));
    }

    #[test]
    fn does_not_exist_matches_an_object_that_lacks_the_key() {
        let absent = selector(Requirement::DoesNotExist("env".into()));
        assert!(matches(&absent, &labels(&[])));
        assert!(!matches(&absent, &labels(&[("env", "")])));
    }

    #[test]
    fn in_and_exists_need_the_key() {
        let within = selector(Requirement::In(
            "env".into(),
            vec!["dev".into(), "prod".into()],
        ));
        assert!(!matches(&within, &labels(&[])));
        assert!(matches(&within, &labels(&[("env", "prod")])));
        let exists = selector(Requirement::Exists("env".into()));
        assert!(!matches(&exists, &labels(&[])));
        assert!(matches(&exists, &labels(&[("env", "")])));
    }

    #[test]
    fn all_requirements_must_hold() {
        let both = Selector {
            requirements: vec![
                Requirement::In("app".into(), vec!["web".into()]),
                Requirement::Exists("env".into()),
            ],
        };
        assert!(!matches(&both, &labels(&[("app", "web")])));
        assert!(!matches(&both, &labels(&[("env", "dev")])));
        assert!(matches(&both, &labels(&[("app", "web"), ("env", "dev")])));
    }

    #[test]
    fn a_pod_meets_only_selectors_that_its_own_labels_lead_to() {
        let mut index = SelectorIndex::default();
        let app = |v: &str| selector(Requirement::In("app".into(), vec![v.into()]));
        let everywhere = Scope::Matching(Selector::default());
        index.insert(1, &everywhere, &app("web"));
        index.insert(2, &everywhere, &app("db"));
        index.insert(3, &Scope::Named("prod".into()), &Selector::default());
        index.insert(4, &Scope::Named("dev".into()), &Selector::default());
        let mut found = index.candidates("prod", &labels(&[]), &labels(&[("app", "web")]));
        found.sort();
        assert_eq!(found, [1, 3]);
    }
}
