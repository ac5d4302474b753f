//! From the text of a manifest file to trimmed objects.

use serde_json::Value;

use super::{
    Kind,
    json::Unique,
    object::{self, Object, ObjectId, Refusal, Unknown},
};
use crate::policy::object::ObjectKey;

/// One object of a file, good or not. `id` is missing when the object does not even tell what it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Definition {
    pub id: Option<ObjectId>,
    pub outcome: Result<Object, Refusal>,
}

/// Why a whole file cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Unusable {
    pub line: Option<u64>,
    pub reason: String,
}

/// The notation of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Notation {
    Yaml,
    Json,
}

/// Reads every object of a file that the agent has a use for.
pub(super) fn read(notation: Notation, text: &str) -> Result<Vec<Definition>, Unusable> {
    let documents = match notation {
        Notation::Yaml => yaml(text)?,
        Notation::Json => json(text)?,
    };
    let mut definitions = Vec::new();
    for (i, document) in documents.into_iter().enumerate() {
        flatten(document, &format!("document {}", i + 1), &mut definitions);
    }
    Ok(definitions)
}

fn yaml(text: &str) -> Result<Vec<Value>, Unusable> {
    // No budget: the directory belongs to the administrator, and a dump of all pods of a large cluster is large. Only
    // `true` and `false` are booleans: `on` or `yes` as the value of a label stays the string that its writer meant.
    let options = serde_saphyr::options! {
        budget: None,
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options::<Value>(text, options).map_err(|e| {
        let line = e.location().map(|at| at.line()).filter(|&line| line > 0);
        let text = e.without_snippet().to_string();
        // The first line says what is wrong; the place is told apart.
        let reason = text.lines().next().unwrap_or_default();
        Unusable {
            line,
            reason: format!("not valid YAML: {reason}"),
        }
    })
}

fn json(text: &str) -> Result<Vec<Value>, Unusable> {
    serde_json::Deserializer::from_str(text)
        .into_iter::<Unique>()
        .map(|value| value.map(|Unique(value)| value))
        .collect::<Result<_, _>>()
        .map_err(|e| Unusable {
            line: u64::try_from(e.line()).ok(),
            reason: format!("not valid JSON: {e}"),
        })
}

/// Takes lists apart: `kind: List`, and lists of one kind such as `NetworkPolicyList`, whose items need no kind.
fn flatten(mut value: Value, place: &str, definitions: &mut Vec<Definition>) {
    if value.is_null() {
        return;
    }
    let text = |field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
    let kind = text("kind").filter(|kind| !kind.is_empty());
    let (Some(kind), version) = (kind, text("apiVersion")) else {
        definitions.push(stray(
            place,
            "kind",
            "not a Kubernetes object: it has no kind",
        ));
        return;
    };
    let single = kind.strip_suffix("List");
    let Some((single, items)) = single.zip(value.get_mut("items").map(Value::take)) else {
        definitions.extend(object(
            &kind,
            version.as_deref().unwrap_or_default(),
            value,
            place,
        ));
        return;
    };
    let Value::Array(items) = items else {
        if !items.is_null() {
            definitions.push(stray(place, "items", "not a list"));
        }
        return;
    };
    for (i, mut item) in items.into_iter().enumerate() {
        if let Some(fields) = item.as_object_mut().filter(|_| !single.is_empty()) {
            fields.entry("kind").or_insert_with(|| single.into());
            if let Some(version) = &version {
                fields
                    .entry("apiVersion")
                    .or_insert_with(|| version.as_str().into());
            }
        }
        flatten(item, &format!("{place}, items[{i}]"), definitions);
    }
}

fn stray(place: &str, field: &str, reason: &str) -> Definition {
    Definition {
        id: None,
        outcome: Err(Refusal {
            kind: "object".into(),
            object: ObjectKey::new("", place),
            field: field.into(),
            reason: reason.into(),
            rest: None,
        }),
    }
}

/// One object; `None` when it is of a kind that the agent has no use for.
fn object(kind: &str, version: &str, mut value: Value, place: &str) -> Option<Definition> {
    let (group, known) = match kind {
        "Namespace" => ("v1", Kind::Namespace),
        "Pod" => ("v1", Kind::Pod),
        "Service" => ("v1", Kind::Service),
        "NetworkPolicy" => ("networking.k8s.io/v1", Kind::NetworkPolicy),
        _ => return foreign(kind, version, place),
    };
    if version != group {
        // Other projects have kinds of the same name. An old or forgotten version of ours is a mistake.
        let ours = [
            "",
            "v1",
            "networking.k8s.io/v1",
            "networking.k8s.io/v1beta1",
            "extensions/v1beta1",
        ];
        let ours = ours.contains(&version) || version.starts_with("networking.k8s.io/");
        return ours.then(|| {
            let mut definition = stray(
                place,
                "apiVersion",
                &format!("{version:?} is not supported, use {group:?}"),
            );
            if let Err(refusal) = &mut definition.outcome {
                refusal.kind = kind.into();
                refusal.object = key(known, &mut value).unwrap_or_else(|| refusal.object.clone());
            }
            definition
        });
    }
    // Taken for absent, it would put the object into another namespace than its writer meant.
    let namespace = value.pointer("/metadata/namespace");
    if namespace.is_some_and(|n| !n.is_null() && !n.is_string()) {
        let reason = "the namespace is not a string: put it in quotes";
        let mut definition = stray(place, "metadata.namespace", reason);
        if let Err(refusal) = &mut definition.outcome {
            refusal.kind = kind.into();
        }
        return Some(definition);
    }
    let Some(key) = key(known, &mut value) else {
        let mut definition = stray(place, "metadata.name", "the object has no name");
        if let Err(refusal) = &mut definition.outcome {
            refusal.kind = kind.into();
        }
        return Some(definition);
    };
    let outcome = object::trim(known, &key, value, Unknown::Judge);
    Some(Definition {
        id: Some(ObjectId { kind: known, key }),
        outcome,
    })
}

/// An object of a kind that is not ours: nothing, unless it was meant to be.
fn foreign(kind: &str, version: &str, place: &str) -> Option<Definition> {
    let (meant, _) = [
        ("Namespace", "v1"),
        ("Pod", "v1"),
        ("Service", "v1"),
        ("NetworkPolicy", "networking.k8s.io/v1"),
    ]
    .into_iter()
    .find(|(known, group)| *group == version && known.eq_ignore_ascii_case(kind))?;
    let mut definition = stray(
        place,
        "kind",
        &format!("there is no such kind, use {meant:?}"),
    );
    if let Err(refusal) = &mut definition.outcome {
        refusal.kind = kind.into();
    }
    Some(definition)
}

/// The key of an object. A manifest without a namespace means `default`, as `kubectl apply` takes it.
fn key(kind: Kind, value: &mut Value) -> Option<ObjectKey> {
    let metadata = value.get_mut("metadata")?.as_object_mut()?;
    let name = metadata
        .get("name")?
        .as_str()
        .filter(|n| !n.is_empty())?
        .to_owned();
    if kind == Kind::Namespace {
        return Some(ObjectKey::new("", name));
    }
    let named = metadata
        .get("namespace")
        .and_then(Value::as_str)
        .filter(|n| !n.is_empty());
    let namespace = named.unwrap_or("default").to_owned();
    if named.is_none() {
        metadata.insert("namespace".into(), namespace.as_str().into());
    }
    Some(ObjectKey::new(namespace, name))
}

#[cfg(test)]
mod tests;
