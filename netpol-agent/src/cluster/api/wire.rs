//! What the API server sends: lists, events of a watch, errors. Every item of a list is read by itself, so that one that is
//! strange does not take the others with it.

use std::{fmt, marker::PhantomData, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

/// `metadata` of a list.
#[derive(Default, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMetadata {
    pub resource_version: Option<String>,
    #[serde(rename = "continue")]
    pub next: Option<String>,
}

/// Reads a list, item by item.
pub(super) fn list<'de, T: Deserialize<'de>>(
    text: &'de [u8],
    each: impl FnMut(T),
) -> serde_json::Result<ListMetadata> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let metadata = List(each, PhantomData).deserialize(&mut json)?;
    json.end()?;
    Ok(metadata)
}

struct List<T, F>(F, PhantomData<T>);

impl<'de, T: Deserialize<'de>, F: FnMut(T)> DeserializeSeed<'de> for List<T, F> {
    type Value = ListMetadata;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<ListMetadata, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de, T: Deserialize<'de>, F: FnMut(T)> Visitor<'de> for List<T, F> {
    type Value = ListMetadata;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<ListMetadata, A::Error> {
        let mut metadata = ListMetadata::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "metadata" => metadata = map.next_value()?,
                "items" => map.next_value_seed(Items(&mut self.0, PhantomData))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(metadata)
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
            let metadata =
                list(text.as_bytes(), |item: Value| items.push(item.to_string())).expect("a list");
            assert_eq!(items, [r#"{"a":1}"#, r#""odd""#, r#"{"a":2}"#]);
            assert_eq!(metadata.resource_version.as_deref(), Some("7"));
            assert_eq!(metadata.next.as_deref(), Some("c"));
        }
        list(br#"{"metadata":{},"items":null}"#, |_: Value| {
            panic!("no items")
        })
        .expect("an empty list");
        list(br#"{"metadata":{},"items":[{}"#, drop::<Value>).expect_err("cut off");
    }
}
