//! Things behind small handles.

use std::{fmt, hash, marker::PhantomData};

/// Names a `T` in its [`Slab`], in four bytes.
pub(super) struct Handle<T>(u32, PhantomData<fn() -> T>);

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Handle<T> {}
impl<T> PartialEq for Handle<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<T> Eq for Handle<T> {}
impl<T> PartialOrd for Handle<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Handle<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}
impl<T> hash::Hash for Handle<T> {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}
impl<T> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// A vector with holes that are filled again.
///
/// A handle is only ever used between the insertion and the removal of its value: whoever removes a value first removes
/// every mention of its handle. A stale handle is a bug of this crate, so access through one panics.
pub(super) struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    pub(super) fn insert(&mut self, value: T) -> Handle<T> {
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = Some(value);
                at
            }
            None => {
                self.slots.push(Some(value));
                (self.slots.len() - 1) as u32
            }
        };
        Handle(at, PhantomData)
    }

    pub(super) fn remove(&mut self, handle: Handle<T>) -> T {
        let value = self.slots[handle.0 as usize].take();
        self.free.push(handle.0);
        value.expect("a handle is not used after its value was removed")
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Handle<T>, &T)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(at, slot)| Some((Handle(at as u32, PhantomData), slot.as_ref()?)))
    }
}

impl<T> std::ops::Index<Handle<T>> for Slab<T> {
    type Output = T;
    fn index(&self, handle: Handle<T>) -> &T {
        self.slots[handle.0 as usize]
            .as_ref()
            .expect("a handle is not used after its value was removed")
    }
}

impl<T> std::ops::IndexMut<Handle<T>> for Slab<T> {
    fn index_mut(&mut self, handle: Handle<T>) -> &mut T {
        self.slots[handle.0 as usize]
            .as_mut()
            .expect("a handle is not used after its value was removed")
    }
}
