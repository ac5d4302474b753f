//! What the files define, and which version of each object is in force. Pure: no I/O.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    sync::Arc,
};

use super::{
    Problem,
    document::{Definition, Unusable},
    object::{Object, ObjectId, Refusal},
};
use crate::policy::ObjectChange;

/// The content of all files.
#[derive(Default)]
pub(super) struct Catalog {
    files: BTreeMap<String, File>,
    /// For each object the files that define it, in the order of their names.
    definitions: HashMap<ObjectId, BTreeMap<String, Version>>,
    /// What was given out last. Outlives a definition that is refused.
    in_force: HashMap<ObjectId, Arc<Object>>,
    /// Those of them that are in force without what cannot be read of them: never was there a version that could be used as it is.
    in_part: BTreeSet<ObjectId>,
}

/// One file as it was read last.
#[derive(Default)]
struct File {
    /// Of the text that was read last, good or not; `None` when it could not be read at all.
    hash: Option<u64>,
    /// The objects of its last good text.
    ids: BTreeSet<ObjectId>,
    /// Objects that do not tell what they are.
    strays: Vec<Refusal>,
    unusable: Option<Unusable>,
}

/// One file's definition of an object: its last one in that file.
#[derive(Clone, PartialEq)]
struct Version {
    outcome: Result<Arc<Object>, Refusal>,
    /// The same file defines the object more than once.
    repeated: bool,
}

/// The hash by which a text is recognised.
pub(super) fn hash(text: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

impl Catalog {
    /// Whether this is the text that the file had when it was read last.
    pub fn knows(&self, file: &str, hash: u64) -> bool {
        self.files
            .get(file)
            .is_some_and(|known| known.hash == Some(hash))
    }

    /// The files that were there when they were read last.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// How many objects are in force.
    pub fn in_force(&self) -> usize {
        self.in_force.len()
    }

    /// A file has a new content. Returns the objects that may have changed.
    pub fn put(
        &mut self,
        file: &str,
        hash: u64,
        definitions: Vec<Definition>,
    ) -> BTreeSet<ObjectId> {
        let mut touched = self.forget(file);
        let mut entry = File {
            hash: Some(hash),
            ..File::default()
        };
        for definition in definitions {
            let Some(id) = definition.id else {
                entry.strays.extend(definition.outcome.err());
                continue;
            };
            let repeated = !entry.ids.insert(id.clone());
            touched.insert(id.clone());
            self.definitions.entry(id).or_default().insert(
                file.to_owned(),
                Version {
                    outcome: definition.outcome.map(Arc::new),
                    repeated,
                },
            );
        }
        self.files.insert(file.to_owned(), entry);
        touched
    }

    /// A file cannot be used now. What it defined stays.
    pub fn spoil(&mut self, file: &str, hash: Option<u64>, unusable: Unusable) -> bool {
        let entry = self.files.entry(file.to_owned()).or_default();
        let new = entry.unusable.as_ref() != Some(&unusable);
        entry.hash = hash;
        entry.unusable = Some(unusable);
        new
    }

    /// A file is gone. Returns the objects that may have changed.
    pub fn remove(&mut self, file: &str) -> BTreeSet<ObjectId> {
        let touched = self.forget(file);
        self.files.remove(file);
        touched
    }

    fn forget(&mut self, file: &str) -> BTreeSet<ObjectId> {
        let ids = self
            .files
            .get_mut(file)
            .map(|f| std::mem::take(&mut f.ids))
            .unwrap_or_default();
        for id in &ids {
            if let Some(versions) = self.definitions.get_mut(id) {
                versions.remove(file);
                if versions.is_empty() {
                    self.definitions.remove(id);
                }
            }
        }
        ids
    }

    /// Brings what is in force up to date for these objects, and returns what really changed: namespaces first, then
    /// pods, then policies, then Services.
    pub fn changes(&mut self, touched: &BTreeSet<ObjectId>) -> Vec<ObjectChange> {
        let mut changes = Vec::new();
        for id in touched {
            let Some(versions) = self.definitions.get(id) else {
                self.in_part.remove(id);
                if self.in_force.remove(id).is_some() {
                    changes.push(id.gone());
                }
                continue;
            };
            let last = versions
                .values()
                .next_back()
                .expect("a defined object has a version");
            let good = |version: &Version| version.outcome.as_ref().ok().cloned();
            let (object, in_part) = match &last.outcome {
                Ok(object) => (Arc::clone(object), false),
                // The last good version stays; at the start there is none but that of another file.
                Err(_) if self.in_force.contains_key(id) && !self.in_part.contains(id) => continue,
                Err(refusal) => match versions.values().rev().find_map(good) {
                    Some(object) => (object, false),
                    // Better a part of it than nothing.
                    None => match &refusal.rest {
                        Some(rest) => (Arc::clone(rest), true),
                        None => continue,
                    },
                },
            };
            if in_part {
                self.in_part.insert(id.clone());
            } else {
                self.in_part.remove(id);
            }
            if self.in_force.get(id) != Some(&object) {
                changes.push(Object::clone(&object).into());
                self.in_force.insert(id.clone(), object);
            }
        }
        changes
    }

    /// Everything that cannot be used as it is written.
    pub fn problems(&self, directory: &Path) -> Vec<Problem> {
        let mut problems = Vec::new();
        let refused =
            |file: &str, refusal: &Refusal, in_force: bool, in_part: bool| Problem::Refused {
                path: Some(directory.join(file)),
                kind: refusal.kind.to_string(),
                object: refusal.object.clone(),
                field: refusal.field.clone(),
                reason: refusal.reason.clone(),
                kept: in_force && !in_part,
                in_part,
            };
        for (name, file) in &self.files {
            problems.extend(
                file.strays
                    .iter()
                    .map(|refusal| refused(name, refusal, false, false)),
            );
            if let Some(unusable) = &file.unusable {
                problems.push(Problem::Unreadable {
                    path: directory.join(name),
                    line: unusable.line,
                    reason: unusable.reason.clone(),
                    kept: file
                        .ids
                        .iter()
                        .filter(|id| self.in_force.contains_key(*id))
                        .count(),
                });
            }
        }
        for (id, versions) in &self.definitions {
            let (last, winner) = versions
                .last_key_value()
                .expect("a defined object has a version");
            if let Err(refusal) = &winner.outcome {
                let in_force = self.in_force.contains_key(id);
                problems.push(refused(last, refusal, in_force, self.in_part.contains(id)));
            }
            let mut shadowed: Vec<_> = versions
                .keys()
                .filter(|file| *file != last)
                .map(|file| directory.join(file))
                .collect();
            shadowed.extend(winner.repeated.then(|| directory.join(last)));
            if !shadowed.is_empty() {
                problems.push(Problem::Duplicate {
                    kind: id.kind,
                    object: id.key.clone(),
                    path: directory.join(last),
                    shadowed,
                });
            }
        }
        problems.sort();
        problems
    }

    /// Names the content of all files: the same files give the same name.
    pub fn revision(&self) -> String {
        let mut hasher = DefaultHasher::new();
        for (name, file) in &self.files {
            (name, file.hash).hash(&mut hasher);
        }
        format!("{:016x}", hasher.finish())
    }
}
