//! Interned content that outlives its last reference until it is safe to take it away.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    sync::Arc,
};

use super::{
    edit::Generation,
    fingerprint::Fingerprint,
    slab::{Handle, Slab},
};

/// One piece of content: its number in the tables, how often it is referred to, and since when nobody does.
pub(super) struct Interned<K> {
    content: Arc<K>,
    id: u64,
    references: usize,
    /// The generation that let go of the last reference.
    retired: Option<Generation>,
}

/// Names interned content.
pub(super) type Ref<K> = Handle<Interned<K>>;

/// Each content once, under a number derived from it.
pub(super) struct Store<K> {
    slab: Slab<Interned<K>>,
    by_content: HashMap<Arc<K>, Ref<K>>,
    /// Two contents whose numbers collide must not meet in the tables.
    by_id: HashMap<u64, Ref<K>>,
    /// What nobody refers to, by the generation in which that began.
    retired: BTreeSet<(Generation, Ref<K>)>,
}

impl<K> Default for Store<K> {
    fn default() -> Self {
        Self {
            slab: Slab::default(),
            by_content: HashMap::new(),
            by_id: HashMap::new(),
            retired: BTreeSet::new(),
        }
    }
}

impl<K: Hash + Eq> Store<K> {
    pub(super) fn find(&self, content: &K) -> Option<Ref<K>> {
        self.by_content.get(content).copied()
    }

    /// Adds content that [`Store::find`] does not find; nobody refers to it yet.
    ///
    /// `number` gives its number from its content alone. Only if other content has that number already (live or waiting
    /// to be taken away) is it hashed again, until it has one of its own.
    pub(super) fn insert(&mut self, content: Arc<K>, number: u64) -> Ref<K> {
        let mut id = number;
        while self.by_id.contains_key(&id) {
            id = Fingerprint::new("collision").number(id.into()).id();
        }
        let handle = self.slab.insert(Interned {
            content: content.clone(),
            id,
            references: 0,
            retired: None,
        });
        self.by_content.insert(content, handle);
        self.by_id.insert(id, handle);
        handle
    }

    /// Adds a reference. Says whether it is the first one.
    pub(super) fn acquire(&mut self, handle: Ref<K>) -> bool {
        let slot = &mut self.slab[handle];
        slot.references += 1;
        if let Some(since) = slot.retired.take() {
            self.retired.remove(&(since, handle));
        }
        slot.references == 1
    }

    /// Drops a reference in generation `now`. Says whether it was the last one.
    pub(super) fn release(&mut self, handle: Ref<K>, now: Generation) -> bool {
        let slot = &mut self.slab[handle];
        slot.references -= 1;
        if slot.references > 0 {
            return false;
        }
        slot.retired = Some(now);
        self.retired.insert((now, handle));
        true
    }

    /// What nobody has referred to since `safe` or longer, oldest first.
    pub(super) fn retired(&self, safe: Generation) -> Vec<Ref<K>> {
        self.retired
            .iter()
            .take_while(|(since, _)| *since <= safe)
            .map(|(_, handle)| *handle)
            .collect()
    }

    /// Takes content off the list of the retired without removing it.
    pub(super) fn shelve(&mut self, handle: Ref<K>) {
        if let Some(since) = self.slab[handle].retired.take() {
            self.retired.remove(&(since, handle));
        }
    }

    pub(super) fn remove(&mut self, handle: Ref<K>) -> Arc<K> {
        self.shelve(handle);
        let slot = self.slab.remove(handle);
        self.by_content.remove(&slot.content);
        self.by_id.remove(&slot.id);
        slot.content
    }

    pub(super) fn is_referenced(&self, handle: Ref<K>) -> bool {
        self.slab[handle].references > 0
    }

    pub(super) fn content(&self, handle: Ref<K>) -> &Arc<K> {
        &self.slab[handle].content
    }

    pub(super) fn id(&self, handle: Ref<K>) -> u64 {
        self.slab[handle].id
    }

    /// Whether nothing waits to be taken away.
    pub(super) fn is_settled(&self) -> bool {
        self.retired.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Ref<K>, &Arc<K>)> {
        self.slab
            .iter()
            .map(|(handle, slot)| (handle, &slot.content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_with_the_same_number_get_different_ids() {
        let mut store = Store::default();
        let a = store.insert(Arc::new("a"), 7);
        let b = store.insert(Arc::new("b"), 7);
        assert_eq!(store.id(a), 7);
        assert_ne!(store.id(b), 7);
        assert!(store.id(b) > 1);
    }

    #[test]
    fn what_is_needed_again_is_not_retired_any_more() {
        let mut store = Store::default();
        let a = store.insert(Arc::new("a"), 7);
        assert!(store.acquire(a));
        assert!(store.release(a, Generation(3)));
        assert!(store.retired(Generation(2)).is_empty());
        assert_eq!(store.retired(Generation(3)), vec![a]);
        store.acquire(a);
        assert!(store.is_settled());
    }
}
