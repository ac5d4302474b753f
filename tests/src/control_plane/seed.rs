//! Many objects at once, past the API server: written into its store as it would have written them.

use anyhow::{Context as _, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::ControlPlane;

/// As many as etcd takes in one transaction (its `--max-txn-ops`).
const AT_ONCE: usize = 128;

impl ControlPlane {
    /// Writes objects whole, with their status, into the store. Nothing is defaulted or checked: they must be as the server
    /// stores them. For clusters that are too large to be written one by one.
    pub fn seed(&self, objects: impl Iterator<Item = Value>) -> anyhow::Result<()> {
        let mut puts = Vec::with_capacity(AT_ONCE);
        for (number, mut object) in objects.enumerate() {
            let key = key(&object)?;
            let metadata = &mut object["metadata"];
            metadata["uid"] = json!(uid(&key, number));
            metadata["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
            puts.push(json!({"requestPut": {
                "key": BASE64_STANDARD.encode(&key),
                "value": BASE64_STANDARD.encode(serde_json::to_vec(&object)?),
            }}));
            if puts.len() == AT_ONCE {
                self.client
                    .transact(&self.worker, &std::mem::take(&mut puts))?;
            }
        }
        if puts.is_empty() {
            return Ok(());
        }
        self.client.transact(&self.worker, &puts)
    }
}

/// Where the API server stores an object (its default `--etcd-prefix`).
fn key(object: &Value) -> anyhow::Result<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (name, namespace) = (
        text(&object["metadata"]["name"]),
        text(&object["metadata"]["namespace"]),
    );
    Ok(
        match object["kind"].as_str().context("an object without kind")? {
            "Namespace" => format!("/registry/namespaces/{name}"),
            "Pod" => format!("/registry/pods/{namespace}/{name}"),
            "NetworkPolicy" => format!("/registry/networkpolicies/{namespace}/{name}"),
            other => bail!("it is not known where a {other} is stored"),
        },
    )
}

/// A version 4 UUID in form, the same for the same key.
fn uid(key: &str, number: usize) -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let hash = hasher.finish();
    format!(
        "{:08x}-{:04x}-4{:03x}-8000-{number:012x}",
        hash as u32,
        (hash >> 32) as u16,
        (hash >> 48) & 0xfff
    )
}
