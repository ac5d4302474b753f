//! Labels in one allocation.

use std::sync::Arc;

use super::object::Labels;

/// Sorted labels, packed as `key NUL value NUL ...` (neither can contain a NUL): tens of thousands of pods carry them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct LabelSet(Arc<str>);

impl LabelSet {
    pub(super) fn new(labels: &Labels) -> Self {
        let mut packed = String::new();
        for (key, value) in labels {
            packed.extend([key.as_str(), "\0", value.as_str(), "\0"]);
        }
        Self(packed.into())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let (key, after) = rest.split_once('\0')?;
            let (value, after) = after.split_once('\0')?;
            rest = after;
            Some((key, value))
        })
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }
}
