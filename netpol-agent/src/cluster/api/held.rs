//! What the agent holds of one kind: who the objects are and in which version, so that a list tells only differences, and
//! events that come twice or late tell nothing. Pure: no I/O.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::Hasher as _,
    sync::Arc,
};

use serde_json::Value;
use siphasher::sip128::{Hasher128 as _, SipHasher13};

use super::wire;
use crate::{
    cluster::{
        Kind, Problem,
        object::{self, Object, ObjectId, Refusal, Unknown},
    },
    policy::{ObjectChange, object::ObjectKey},
};

/// Objects that went lately: an event of one of them that comes late is recognised.
const REMEMBERED: usize = 256;

/// `metadata.uid`, shortened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Uid(u128);

impl Uid {
    fn new(uid: &str) -> Self {
        let mut hasher = SipHasher13::new();
        hasher.write(uid.as_bytes());
        Self(hasher.finish128().as_u128())
    }
}

/// Which object, and which version of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ident {
    /// `namespace/name`, or the name alone.
    pub name: Box<str>,
    pub uid: Uid,
    pub version: u64,
}

impl Ident {
    pub fn new(kind: Kind, namespace: &str, name: &str, uid: &str, version: &str) -> Self {
        Self {
            name: match kind {
                Kind::Namespace => name.into(),
                _ => format!("{namespace}/{name}").into(),
            },
            uid: Uid::new(uid),
            version: wire::version(version),
        }
    }

    /// `None` for what has no name, and so is no object.
    fn of(kind: Kind, object: &Value) -> Option<Self> {
        let text = |field| object.pointer(field).and_then(Value::as_str);
        let name = text("/metadata/name").filter(|name| !name.is_empty())?;
        let namespace = match kind {
            Kind::Namespace => "",
            _ => text("/metadata/namespace")?,
        };
        let uid = text("/metadata/uid").unwrap_or_default();
        let version = wire::resource_version(object);
        Some(Self::new(kind, namespace, name, uid, version))
    }

    fn key(&self) -> ObjectKey {
        key(&self.name)
    }
}

fn key(name: &str) -> ObjectKey {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    ObjectKey::new(namespace, name)
}

/// One object.
struct Entry {
    uid: Uid,
    /// The version that came last, in force or refused.
    version: u64,
    /// The list that named it last.
    round: u32,
    /// What of it was given out.
    in_force: Part,
}

/// What of an object is in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Nothing,
    /// What could be read of the last version that came; never was there one that could be used as it is.
    Rest,
    /// The last version that could be used.
    All,
}

/// All objects of a kind.
pub(super) struct Held {
    kind: Kind,
    objects: HashMap<Box<str>, Entry>,
    /// The uids of objects that went, and a version at which they were known to be gone, oldest first.
    buried: VecDeque<(Uid, u64)>,
    /// Objects whose newest version cannot be used.
    refused: BTreeMap<Box<str>, Refusal>,
    /// Something without a name came since the last list began.
    nameless: bool,
    problems_changed: bool,
    /// The number of the list that is being read, or was read last.
    round: u32,
}

impl Held {
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            objects: HashMap::new(),
            buried: VecDeque::new(),
            refused: BTreeMap::new(),
            nameless: false,
            problems_changed: false,
            round: 0,
        }
    }

    /// A list begins.
    pub fn begin(&mut self) {
        self.round += 1;
        self.problems_changed |= std::mem::take(&mut self.nameless);
    }

    /// An object of a list. What a list says is so, even if it is older than what is held: the server may have been restored
    /// from a backup.
    pub fn listed(&mut self, object: Value, changes: &mut Vec<ObjectChange>) {
        let Some(ident) = self.identify(&object) else {
            return;
        };
        if let Some(entry) = self.objects.get_mut(&ident.name)
            && entry.uid == ident.uid
        {
            entry.round = self.round;
            if entry.version == ident.version && ident.version != 0 {
                return;
            }
        }
        self.take(ident, object, changes);
    }

    /// The list of this version is complete: what it has not named is gone.
    pub fn end(&mut self, version: u64, changes: &mut Vec<ObjectChange>) {
        // Unless it could be the one without a name.
        if self.nameless {
            return;
        }
        let round = self.round;
        let gone: Vec<Box<str>> = self
            .objects
            .iter()
            .filter(|(_, entry)| entry.round != round)
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.forget(&name, version, changes);
        }
        // Whatever the first list took is given back.
        self.objects.shrink_to_fit();
    }

    /// An object was added or modified.
    pub fn changed(&mut self, object: Value, changes: &mut Vec<ObjectChange>) {
        let Some(ident) = self.identify(&object) else {
            return;
        };
        let known = self.objects.get(&ident.name);
        // Twice, or late: it was changed, replaced or removed since.
        let stale = match known {
            Some(entry) => ident.version != 0 && ident.version <= entry.version,
            None => self.is_buried(&ident),
        };
        if !stale {
            self.take(ident, object, changes);
        }
    }

    /// An object was deleted.
    pub fn deleted(&mut self, object: &Value, changes: &mut Vec<ObjectChange>) {
        let Some(ident) = self.identify(object) else {
            return;
        };
        match self.objects.get(&ident.name) {
            // No object comes back under its uid: however late this is, it is true.
            Some(entry) if entry.uid == ident.uid => {
                self.forget(&ident.name, ident.version, changes);
            }
            // Of an earlier one of that name, or before its addition.
            _ => self.bury(ident.uid, ident.version),
        }
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// What cannot be used, if that is not what it was when it was asked for last.
    pub fn problems(&mut self) -> Option<Arc<[Problem]>> {
        if !std::mem::take(&mut self.problems_changed) {
            return None;
        }
        let mut problems: Vec<_> = self
            .refused
            .iter()
            .map(|(name, refusal)| Problem::Refused {
                path: None,
                kind: refusal.kind.to_string(),
                object: refusal.object.clone(),
                field: refusal.field.clone(),
                reason: refusal.reason.clone(),
                kept: self.in_force(name) == Part::All,
                in_part: self.in_force(name) == Part::Rest,
            })
            .collect();
        if self.nameless {
            problems.push(Problem::Refused {
                path: None,
                kind: self.kind.to_string(),
                object: ObjectKey::new("", "without a name"),
                field: "metadata.name".into(),
                reason: "is missing in what the server sent".into(),
                kept: true,
                in_part: false,
            });
        }
        Some(problems.into())
    }

    fn in_force(&self, name: &str) -> Part {
        let entry = self.objects.get(name);
        entry.map_or(Part::Nothing, |entry| entry.in_force)
    }

    fn identify(&mut self, object: &Value) -> Option<Ident> {
        let ident = Ident::of(self.kind, object);
        if ident.is_none() && !self.nameless {
            self.nameless = true;
            self.problems_changed = true;
        }
        ident
    }

    /// Takes a version of an object that is not known yet.
    fn take(&mut self, ident: Ident, object: Value, changes: &mut Vec<ObjectChange>) {
        // Another object of the same name: the old one is gone, and the new one owes it nothing.
        if self
            .objects
            .get(&ident.name)
            .is_some_and(|entry| entry.uid != ident.uid)
        {
            self.forget(&ident.name, ident.version, changes);
        }
        let outcome = object::trim(self.kind, &ident.key(), object, Unknown::Ignore);
        let entry = self.objects.entry(ident.name.clone()).or_insert(Entry {
            uid: ident.uid,
            version: 0,
            round: self.round,
            in_force: Part::Nothing,
        });
        entry.version = ident.version;
        entry.round = self.round;
        match outcome {
            Ok(object) => {
                entry.in_force = Part::All;
                changes.push(object.into());
                self.problems_changed |= self.refused.remove(&ident.name).is_some();
            }
            Err(mut refusal) => {
                // Better a part of it than nothing; but nothing of what is enforced is lost for it.
                if let Some(rest) = refusal.rest.take()
                    && entry.in_force != Part::All
                {
                    entry.in_force = Part::Rest;
                    changes.push(Object::clone(&rest).into());
                }
                let old = self.refused.insert(ident.name, refusal.clone());
                self.problems_changed |= old.as_ref() != Some(&refusal);
            }
        }
    }

    /// The object is gone, at this version or before.
    fn forget(&mut self, name: &str, version: u64, changes: &mut Vec<ObjectChange>) {
        let Some(entry) = self.objects.remove(name) else {
            return;
        };
        self.bury(entry.uid, version.max(entry.version));
        self.problems_changed |= self.refused.remove(name).is_some();
        if entry.in_force != Part::Nothing {
            let id = ObjectId {
                kind: self.kind,
                key: key(name),
            };
            changes.push(id.gone());
        }
    }

    fn bury(&mut self, uid: Uid, version: u64) {
        if self.buried.len() == REMEMBERED {
            self.buried.pop_front();
        }
        self.buried.push_back((uid, version));
    }

    /// Whether this version of an object is from before its end. A later one is not: a server that was restored from a backup
    /// may have the object again, under the same uid.
    fn is_buried(&self, ident: &Ident) -> bool {
        let mut graves = self.buried.iter();
        graves.any(|(uid, version)| *uid == ident.uid && ident.version <= *version)
    }

    /// What is not yet as this list shows it.
    pub fn behind(&self, seen: &Seen) -> Vec<Goal> {
        let mut goals: Vec<Goal> = seen
            .objects
            .iter()
            .map(|ident| Goal::At(ident.clone()))
            .filter(|goal| !self.meets(goal))
            .collect();
        let names: HashSet<&str> = seen.objects.iter().map(|ident| &*ident.name).collect();
        let gone = self
            .objects
            .iter()
            .filter(|(name, entry)| entry.version <= seen.version && !names.contains(&***name))
            .map(|(name, entry)| Goal::Gone(name.clone(), entry.uid));
        goals.extend(gone);
        goals
    }

    /// Whether an object is as new as a list has shown it.
    pub fn meets(&self, goal: &Goal) -> bool {
        match goal {
            Goal::At(ident) => match self.objects.get(&ident.name) {
                Some(entry) if entry.uid == ident.uid => entry.version >= ident.version,
                // It was replaced since.
                Some(entry) => entry.version > ident.version,
                None => self.is_buried(ident),
            },
            Goal::Gone(name, uid) => self.objects.get(name).is_none_or(|entry| entry.uid != *uid),
        }
    }
}

/// The objects of a kind as a list has shown them.
#[derive(Default, Debug)]
pub(super) struct Seen {
    pub version: u64,
    pub objects: Vec<Ident>,
}

/// What is awaited of one object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Goal {
    /// This version, or a later one.
    At(Ident),
    /// The object of this name and uid is gone.
    Gone(Box<str>, Uid),
}

#[cfg(test)]
mod tests;
