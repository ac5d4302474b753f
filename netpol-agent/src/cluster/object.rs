//! One object: from a tree of values to its trimmed form, or why not. The same for every source.

mod rest;

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Kind;
use crate::policy::{
    ObjectChange,
    convert::{self, slim},
    object::{self, ObjectKey},
};

/// Kind and key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct ObjectId {
    pub kind: Kind,
    pub key: ObjectKey,
}

impl ObjectId {
    /// What to tell when the object is gone.
    pub fn gone(&self) -> ObjectChange {
        let key = self.key.clone();
        match self.kind {
            Kind::Namespace => ObjectChange::NamespaceGone(key.name),
            Kind::Pod => ObjectChange::PodGone(key),
            Kind::NetworkPolicy => ObjectChange::PolicyGone(key),
            Kind::Service => ObjectChange::ServiceGone(key),
        }
    }
}

/// A trimmed object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Object {
    Namespace(object::Namespace),
    Pod(object::Pod),
    Policy(object::Policy),
    Service(object::Service),
}

impl From<Object> for ObjectChange {
    fn from(object: Object) -> Self {
        match object {
            Object::Namespace(namespace) => Self::Namespace(namespace),
            Object::Pod(pod) => Self::Pod(pod),
            Object::Policy(policy) => Self::Policy(policy),
            Object::Service(service) => Self::Service(service),
        }
    }
}

/// Why one object cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Refusal {
    pub kind: Box<str>,
    pub object: ObjectKey,
    pub field: String,
    pub reason: String,
    /// What is left of it without what cannot be read, if that allows no more than the whole would.
    pub rest: Option<Arc<Object>>,
}

/// What to think of fields that are not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unknown {
    /// Somebody wrote them by hand: they may be mistakes.
    Judge,
    /// They have passed an API server, which may be newer than the agent.
    Ignore,
}

/// Trims an object of this kind and key.
pub(super) fn trim(
    kind: Kind,
    key: &ObjectKey,
    value: Value,
    unknown: Unknown,
) -> Result<Object, Refusal> {
    if kind != Kind::NetworkPolicy {
        return whole(kind, key, value, unknown);
    }
    whole(kind, key, value.clone(), unknown).map_err(|refusal| Refusal {
        rest: rest::of(key, value, unknown, &refusal.field).map(Arc::new),
        ..refusal
    })
}

fn whole(kind: Kind, key: &ObjectKey, value: Value, unknown: Unknown) -> Result<Object, Refusal> {
    let value = Typed {
        kind,
        key,
        value,
        unknown,
    };
    match kind {
        Kind::Namespace => {
            value.read(|n: slim::Namespace| convert::namespace(&n).map(Object::Namespace))
        }
        Kind::Pod => value.read(|p: slim::Pod| convert::pod(&p).map(Object::Pod)),
        Kind::NetworkPolicy => {
            value.read(|p: slim::NetworkPolicy| convert::policy(&p).map(Object::Policy))
        }
        Kind::Service => value.read(|s: slim::Service| convert::service(&s).map(Object::Service)),
    }
}

struct Typed<'a> {
    kind: Kind,
    key: &'a ObjectKey,
    value: Value,
    unknown: Unknown,
}

impl Typed<'_> {
    fn read<T: DeserializeOwned>(
        self,
        convert: impl FnOnce(T) -> Result<Object, convert::Refusal>,
    ) -> Result<Object, Refusal> {
        let Self { kind, key, .. } = self;
        let refuse = |field: String, reason: String| Refusal {
            kind: kind.to_string().into(),
            object: key.clone(),
            field,
            reason,
            rest: None,
        };
        let mut mistake: Option<String> = None;
        let mut track = serde_path_to_error::Track::new();
        let value = serde_path_to_error::Deserializer::new(self.value, &mut track);
        let typed: Result<T, _> = match self.unknown {
            Unknown::Ignore => T::deserialize(value),
            Unknown::Judge => serde_ignored::deserialize(value, |path| {
                if mistake.is_none() {
                    mistake = Some(field_path(&path.to_string())).filter(|f| is_mistake(kind, f));
                }
            }),
        };
        let typed = typed.map_err(|e| refuse(track.path().to_string(), e.to_string()))?;
        if let Some(field) = mistake {
            return Err(refuse(
                field,
                "there is no such field: correct its name or its place".into(),
            ));
        }
        convert(typed).map_err(|refusal| refuse(refusal.field, refusal.reason))
    }
}

/// Whether a field that is not read is refused, as the API server does it (`kubectl --validate=strict`, its default).
///
/// A misspelt `podSelector`, or `spec` itself, would select every pod; misspelt `labels` of a pod would free it of its
/// policies, and a misspelt `namespace` makes it somebody else's. What lies deeper may be of another version of
/// Kubernetes: pods have many fields that are nothing to us, and policies once had a `status`.
fn is_mistake(kind: Kind, field: &str) -> bool {
    match field.split_once(['.', '[']) {
        Some(("spec", _)) => kind == Kind::NetworkPolicy,
        Some(("metadata", child)) => !child.contains(['.', '[']) && !METADATA.contains(&child),
        Some(_) => false,
        None => !["apiVersion", "kind", "spec", "status"].contains(&field),
    }
}

/// The fields of `metadata` (meta/v1 ObjectMeta) that are nothing to us.
const METADATA: [&str; 9] = [
    "annotations",
    "deletionGracePeriodSeconds",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
];

/// `spec.?.ingress.?.0.form` as `spec.ingress[0].form`.
fn field_path(path: &str) -> String {
    let mut written = String::new();
    for part in path.split('.').filter(|part| *part != "?") {
        if part.parse::<usize>().is_ok() {
            written.push_str(&format!("[{part}]"));
        } else {
            if !written.is_empty() {
                written.push('.');
            }
            written.push_str(part);
        }
    }
    written
}
