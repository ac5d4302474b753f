//! What the API server sends: lists, events of a watch, errors. Every item of a list is read by itself, so that one that is
//! strange does not take the others with it.

use std::{fmt, marker::PhantomData, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

use crate::cluster::Kind;

/// Where a list stands: `metadata` of each of its pages.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Page {
    /// The version that the list shows.
    pub version: String,
    /// How to ask for the next page, if there is one.
    pub next: Option<String>,
}

/// Why something is no list of what was asked for. An answer that only looks like success must never be taken for an empty list:
/// then everything would be gone.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoList {
    #[error("the server sent what is no list: {0}")]
    Syntax(#[from] serde_json::Error),
    #[error(
        "the server sent a {0} where a {1} was asked for: is something between the agent and the server?"
    )]
    OtherKind(String, String),
    #[error("the server sent a list without items: is something between the agent and the server?")]
    NoItems,
    #[error(
        "the server sent a list without metadata.resourceVersion: is something between the agent and the server?"
    )]
    NoVersion,
}

/// What a list is beside its items.
#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    metadata: ListMetadata,
    #[serde(default, deserialize_with = "are_items")]
    items: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMetadata {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    next: Option<String>,
}

/// Go writes an empty list as null.
fn are_items<'de, D: Deserializer<'de>>(json: D) -> Result<bool, D::Error> {
    Option::<Vec<IgnoredAny>>::deserialize(json).map(|_| true)
}

/// Reads a page of a list whose kind is one of these, item by item. Of what is no such list no item is read.
pub(super) fn list<'de, T: Deserialize<'de>>(
    text: &'de [u8],
    kinds: &[&str],
    each: impl FnMut(T),
) -> Result<Page, NoList> {
    let envelope: Envelope = serde_json::from_slice(text)?;
    if let Some(kind) = envelope.kind
        && !kinds.contains(&&*kind)
    {
        return Err(NoList::OtherKind(kind, kinds.join(" or ")));
    }
    if !envelope.items {
        return Err(NoList::NoItems);
    }
    let version = envelope.metadata.resource_version.unwrap_or_default();
    if !is_position(&version) {
        return Err(NoList::NoVersion);
    }
    let mut json = serde_json::Deserializer::from_slice(text);
    List(each, PhantomData).deserialize(&mut json)?;
    Ok(Page {
        version,
        next: envelope.metadata.next.filter(|next| !next.is_empty()),
    })
}

/// Whether a watch can begin there. "0" means anywhere.
pub(super) fn is_position(version: &str) -> bool {
    !matches!(version, "" | "0")
}

struct List<T, F>(F, PhantomData<T>);

impl<'de, T: Deserialize<'de>, F: FnMut(T)> DeserializeSeed<'de> for List<T, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de, T: Deserialize<'de>, F: FnMut(T)> Visitor<'de> for List<T, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "items" => map.next_value_seed(Items(&mut self.0, PhantomData))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

struct Items<'a, T, F>(&'a mut F, PhantomData<T>);

impl<'de, T: Deserialize<'de>, F: FnMut(T)> DeserializeSeed<'de> for Items<'_, T, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de, T: Deserialize<'de>, F: FnMut(T)> Visitor<'de> for Items<'_, T, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("items")
    }

    // An empty list of Go.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element()? {
            (self.0)(item);
        }
        Ok(())
    }
}

/// Who an object is, and in which version, of a list of metadata.
#[derive(Debug, Deserialize)]
pub(super) struct Named {
    pub metadata: NamedMetadata,
}

/// See [`Named`].
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NamedMetadata {
    pub name: String,
    #[serde(default)]
    pub namespace: String,
    #[serde(default)]
    pub uid: String,
    #[serde(default)]
    pub resource_version: String,
}

/// One line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Event {
    #[serde(rename = "type")]
    pub what: What,
    pub object: Value,
}

/// What has happened to an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum What {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

/// Whether a bookmark says that all objects that were there at the start of the watch have been sent.
pub(super) fn ends_initial_events(bookmark: &Value) -> bool {
    bookmark
        .pointer("/metadata/annotations/k8s.io~1initial-events-end")
        .and_then(Value::as_str)
        == Some("true")
}

/// Whether what a watch brings is of this kind, as far as it says.
pub(super) fn may_be(object: &Value, kind: Kind) -> bool {
    object
        .get("kind")
        .is_none_or(|told| *told == kind.to_string().as_str())
}

/// `metadata.resourceVersion`, or nothing.
pub(super) fn resource_version(object: &Value) -> &str {
    let version = object.pointer("/metadata/resourceVersion");
    version.and_then(Value::as_str).unwrap_or_default()
}

/// The number of a resource version. Kubernetes defines them as numbers that grow (KEP-5504), and so every server has it; 0
/// where it is none, which is older than nothing.
pub(super) fn version(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

/// An error as the server tells it (meta/v1 Status).
#[derive(Default, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Status {
    pub code: u16,
    pub reason: String,
    pub message: String,
    pub details: StatusDetails,
}

/// `details` of an error.
#[derive(Default, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct StatusDetails {
    pub causes: Vec<StatusCause>,
    pub retry_after_seconds: u64,
}

/// One of `details.causes` of an error.
#[derive(Default, Debug, Deserialize)]
#[serde(default)]
pub(super) struct StatusCause {
    pub reason: String,
}

impl Status {
    /// What is asked for is too old to be known, or newer than anything the server knows (it was restored from a backup).
    pub fn is_expired(&self) -> bool {
        self.code == 410
            || matches!(&*self.reason, "Expired" | "Gone")
            || self
                .details
                .causes
                .iter()
                .any(|cause| cause.reason == "ResourceVersionTooLarge")
    }

    pub fn retry_after(&self) -> Option<Duration> {
        let seconds = self.details.retry_after_seconds;
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_read_one_by_one_wherever_the_metadata_stands() {
        for text in [
            r#"{"kind":"PodList","metadata":{"resourceVersion":"7","continue":"c"},"items":[{"a":1},"odd",{"a":2}]}"#,
            r#"{"items":[{"a":1},"odd",{"a":2}],"metadata":{"resourceVersion":"7","continue":"c"}}"#,
        ] {
            let mut items = Vec::new();
            let page = list(text.as_bytes(), &["PodList"], |item: Value| {
                items.push(item.to_string())
            })
            .expect("a list");
            assert_eq!(items, [r#"{"a":1}"#, r#""odd""#, r#"{"a":2}"#]);
            assert_eq!(page.version, "7");
            assert_eq!(page.next.as_deref(), Some("c"));
        }
        let empty = br#"{"metadata":{"resourceVersion":"7","continue":""},"items":null}"#;
        let page = list(empty, &["PodList"], |_: Value| panic!("no items")).expect("an empty list");
        assert_eq!(page.next, None);
    }

    #[test]
    fn of_what_is_no_list_nothing_is_taken() {
        for (text, why) in [
            (r#"{}"#, "without items"),
            (r#"{"metadata":{"resourceVersion":"7"}}"#, "without items"),
            (
                r#"{"kind":"Status","status":"Success"}"#,
                "a Status where a PodList or PartialObjectMetadataList",
            ),
            (
                r#"{"metadata":{"resourceVersion":"7"},"items":[{}],"kind":"ServiceList"}"#,
                "a ServiceList where",
            ),
            (r#"{"items":[{}]}"#, "without metadata.resourceVersion"),
            (
                r#"{"metadata":{"resourceVersion":""},"items":[{}]}"#,
                "without metadata.resourceVersion",
            ),
            (
                r#"{"metadata":{"resourceVersion":"0"},"items":[{}]}"#,
                "without metadata.resourceVersion",
            ),
            (
                r#"{"metadata":{"resourceVersion":"7"},"items":{}}"#,
                "no list",
            ),
            (
                r#"{"metadata":{"resourceVersion":"7"},"items":[{}"#,
                "no list",
            ),
            (r#"[]"#, "without items"),
            (
                r#"{"metadata":{"resourceVersion":"7"},"items":[{}]} more"#,
                "no list",
            ),
        ] {
            let read = list(
                text.as_bytes(),
                &["PodList", "PartialObjectMetadataList"],
                |_: Value| panic!("an item of {text}"),
            );
            let told = read.expect_err(text).to_string();
            assert!(told.contains(why), "{text}: {told}");
        }
    }
}
