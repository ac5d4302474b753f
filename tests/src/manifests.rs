//! The world as manifests: files of Kubernetes objects, of which the lab understands Pods, Services, EndpointSlices
//! and its own `Host` documents, and passes everything else through as it was written.

mod file;
mod pod;
mod service;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

pub use file::is_manifest;
pub use pod::{HostManifest, Placement, PodManifest};
pub use service::{Endpoint, ServiceManifest, ServicePlacement, ServicePort, Target};

use file::documents;

use crate::{
    lab::LabError,
    table::{Destination, Party},
};

/// What of a world the API knows, in the order in which it can be created. Hosts are outside the cluster.
pub const API_KINDS: [&str; 5] = [
    "Namespace",
    "Service",
    "EndpointSlice",
    "Pod",
    "NetworkPolicy",
];

/// Which document: its kind, namespace (empty for cluster-scoped kinds) and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DocumentId {
    /// `kind`
    pub kind: String,
    /// `metadata.namespace`, `default` where a namespaced document has none.
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
}

impl DocumentId {
    /// The namespaced document of this kind and name.
    pub fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// The pod of this name.
    pub fn pod(namespace: &str, name: &str) -> Self {
        Self::new("Pod", namespace, name)
    }

    /// The namespace of this name.
    pub fn namespace(name: &str) -> Self {
        Self::new("Namespace", "", name)
    }

    /// The network policy of this name.
    pub fn policy(namespace: &str, name: &str) -> Self {
        Self::new("NetworkPolicy", namespace, name)
    }

    /// The id of a document; `None` for one without kind or name.
    pub fn of(value: &Value) -> Option<Self> {
        let kind = value["kind"].as_str()?;
        let name = value["metadata"]["name"].as_str()?;
        let namespace = match kind {
            "Namespace" | "Node" | "Host" | "ClusterRole" | "ClusterRoleBinding" => "",
            _ => value["metadata"]["namespace"].as_str().unwrap_or("default"),
        };
        Some(Self::new(kind, namespace, name))
    }
}

impl fmt::Display for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// Manifests, in the order they were read.
#[derive(Clone, Debug, Default)]
pub struct World {
    documents: Vec<Document>,
}

#[derive(Clone, Debug)]
struct Document {
    /// The name of the file it is in.
    file: String,
    /// As it was written; `None` once it was edited.
    text: Option<String>,
    body: Body,
}

#[derive(Clone, Debug)]
enum Body {
    Object(Value),
    /// Comments only.
    Blank,
    /// Not understood, and passed on as it is: what to make of it is for the agent to say.
    Broken(String),
}

impl World {
    /// A world with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads every `*.yaml`, `*.yml` and `*.json` of a directory, in the order of their names.
    pub fn read(directory: &Path) -> Result<Self, LabError> {
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            move |error| LabError::Read { path, error }
        };
        let mut paths: Vec<PathBuf> = fs::read_dir(directory)
            .map_err(unreadable(directory))?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| is_manifest(path))
            .collect();
        paths.sort();
        let mut world = Self::new();
        for path in paths {
            let text = fs::read_to_string(&path).map_err(unreadable(&path))?;
            let file = path.file_name().map(|name| name.to_string_lossy());
            world
                .documents
                .extend(documents(&file.unwrap_or_default(), &text));
        }
        Ok(world)
    }

    /// A world from a text of YAML documents, as one file.
    pub fn parse(text: &str) -> Self {
        Self {
            documents: documents("world.yaml", text),
        }
    }

    /// Applies every document of a text as `kubectl apply` would: replaces the one of the same kind and name, or adds it.
    pub fn apply(&mut self, text: &str) {
        self.overlay(Self::parse(text));
    }

    /// Applies every document of another world. Added documents stay in files of their name.
    pub fn overlay(&mut self, other: Self) {
        for document in other.documents {
            let id = match &document.body {
                Body::Object(value) => DocumentId::of(value),
                _ => None,
            };
            match id.and_then(|id| self.find_mut(&id)) {
                Some(old) => {
                    old.text = document.text;
                    old.body = document.body;
                }
                None => self.documents.push(document),
            }
        }
    }

    /// Replaces all network policies by those of another world; its other documents are applied too.
    pub fn overlay_policies(&mut self, other: Self) {
        self.separate_lists();
        self.documents.retain(|document| {
            !matches!(&document.body, Body::Object(value) if value["kind"] == "NetworkPolicy")
        });
        self.overlay(other);
    }

    /// A document as JSON.
    pub fn get(&self, id: &DocumentId) -> Option<&Value> {
        self.objects()
            .map(|(_, value)| value)
            .find(|value| DocumentId::of(value).as_ref() == Some(id))
    }

    /// Changes a document.
    pub fn edit(
        &mut self,
        id: &DocumentId,
        change: impl FnOnce(&mut Value),
    ) -> Result<(), LabError> {
        match self.find_mut(id) {
            Some(Document {
                text,
                body: Body::Object(value),
                ..
            }) => {
                change(value);
                *text = None;
                Ok(())
            }
            _ => Err(LabError::NoSuchDocument(id.clone())),
        }
    }

    /// Sets labels (`Some`) and removes labels (`None`) of a document.
    pub fn label(
        &mut self,
        id: &DocumentId,
        labels: &[(&str, Option<&str>)],
    ) -> Result<(), LabError> {
        self.edit(id, |value| {
            let current = &mut value["metadata"]["labels"];
            if !current.is_object() {
                *current = json!({});
            }
            for (key, label) in labels {
                match (label, current.as_object_mut()) {
                    (Some(label), _) => current[*key] = json!(label),
                    (None, Some(current)) => {
                        current.remove(*key);
                    }
                    (None, None) => {}
                }
            }
        })
    }

    /// Deletes a document.
    pub fn remove(&mut self, id: &DocumentId) -> Result<(), LabError> {
        if self.find_mut(id).is_none() {
            return Err(LabError::NoSuchDocument(id.clone()));
        }
        self.documents.retain(|document| {
            !matches!(&document.body, Body::Object(value) if DocumentId::of(value).as_ref() == Some(id))
        });
        Ok(())
    }

    /// Every object, in order; items of lists too.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Value> {
        self.objects().map(|(_, value)| value)
    }

    /// Every document of a kind.
    pub fn ids(&self, kind: &str) -> Vec<DocumentId> {
        self.objects()
            .filter_map(|(_, value)| DocumentId::of(value))
            .filter(|id| id.kind == kind)
            .collect()
    }

    /// Every kind that there is a document of.
    pub fn kinds(&self) -> BTreeSet<String> {
        let kinds = self.objects();
        let kinds = kinds.filter_map(|(_, value)| value["kind"].as_str());
        kinds.map(str::to_owned).collect()
    }

    /// The pods that the lab understands, in order.
    pub fn pods(&self) -> Vec<PodManifest> {
        self.objects()
            .filter_map(|(_, value)| PodManifest::read(value).transpose()?.ok())
            .collect()
    }

    /// The outside hosts that the lab understands, in order.
    pub fn hosts(&self) -> Vec<HostManifest> {
        self.objects()
            .filter_map(|(_, value)| HostManifest::read(value).transpose()?.ok())
            .collect()
    }

    /// Every pod that runs and every host.
    pub fn parties(&self) -> BTreeSet<Party> {
        let pods = self.pods().into_iter().filter(|pod| !pod.finished);
        let hosts = self.hosts().into_iter().map(|host| Party::Host(host.name));
        pods.map(|pod| Party::Pod(pod.key)).chain(hosts).collect()
    }

    /// Every port that a running pod or a host declares.
    pub fn destinations(&self) -> BTreeSet<Destination> {
        let pods = self.pods().into_iter().filter(|pod| !pod.finished);
        let pods = pods.map(|pod| (Party::Pod(pod.key), pod.ports));
        let hosts = self.hosts().into_iter();
        let hosts = hosts.map(|host| (Party::Host(host.name), host.ports));
        pods.chain(hosts)
            .flat_map(|(party, ports)| {
                ports
                    .into_iter()
                    .map(move |port| Destination::new(party.clone(), port))
            })
            .collect()
    }

    /// What the lab cannot read, or cannot place: file and reason of each.
    pub fn problems(&self) -> Vec<LabError> {
        let problem = |file: &str, reason: &str| LabError::Manifest {
            file: file.to_owned(),
            reason: reason.to_owned(),
        };
        let broken = self
            .documents
            .iter()
            .filter_map(|document| match &document.body {
                Body::Broken(reason) => Some(problem(&document.file, reason)),
                _ => None,
            });
        let odd = self.objects().filter_map(|(file, value)| {
            let reason = PodManifest::read(value)
                .err()
                .or_else(|| HostManifest::read(value).err())
                .or_else(|| ServiceManifest::read(value).err())?;
            Some(problem(file, &reason))
        });
        broken.chain(odd).collect()
    }

    /// The documents of a kind, pods as `place` places them.
    pub fn values(
        &self,
        kind: &str,
        place: impl Fn(&PodManifest) -> Option<Placement>,
    ) -> Vec<Value> {
        self.objects()
            .map(|(_, value)| value)
            .filter(|value| value["kind"] == kind)
            .cloned()
            .map(|mut value| {
                pod::place_all(&mut value, &place);
                value
            })
            .collect()
    }

    /// The files as the agent shall see them: as they were written, but every pod with the node, the phase and the
    /// addresses that `place` gives it.
    pub fn materialise(
        &self,
        place: impl Fn(&PodManifest) -> Option<Placement>,
    ) -> BTreeMap<String, String> {
        let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for document in &self.documents {
            let Document { file, text, body } = document;
            let text = match (body, text) {
                (Body::Object(value), text) => {
                    let mut value = value.clone();
                    if pod::place_all(&mut value, &place) || text.is_none() {
                        format!("{value:#}\n")
                    } else {
                        text.clone().unwrap_or_default()
                    }
                }
                (Body::Blank | Body::Broken(_), text) => text.clone().unwrap_or_default(),
            };
            files.entry(file.clone()).or_default().push(text);
        }
        files
            .into_iter()
            .map(|(file, texts)| {
                let text = if file.ends_with(".json") && texts.len() > 1 {
                    let items: Vec<Value> = texts
                        .iter()
                        .filter_map(|text| serde_json::from_str(text).ok())
                        .collect();
                    format!(
                        "{:#}\n",
                        json!({"apiVersion": "v1", "kind": "List", "items": items})
                    )
                } else {
                    texts.join("---\n")
                };
                (file, text)
            })
            .collect()
    }

    /// Every object with its file; items of lists too.
    fn objects(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.documents.iter().flat_map(|document| {
            let values: Vec<&Value> = match &document.body {
                Body::Object(value) => match items(value) {
                    Some(items) => items.iter().collect(),
                    None => vec![value],
                },
                _ => Vec::new(),
            };
            values
                .into_iter()
                .map(|value| (document.file.as_str(), value))
        })
    }

    /// The document of this id, out of its list if it is in one.
    fn find_mut(&mut self, id: &DocumentId) -> Option<&mut Document> {
        self.get(id)?;
        let is_it = |document: &Document| matches!(&document.body, Body::Object(value) if DocumentId::of(value).as_ref() == Some(id));
        if !self.documents.iter().any(is_it) {
            self.separate_lists();
        }
        self.documents.iter_mut().find(|document| is_it(document))
    }

    fn separate_lists(&mut self) {
        self.documents = std::mem::take(&mut self.documents)
            .into_iter()
            .flat_map(|document| match &document.body {
                Body::Object(value) if items(value).is_some() => items(value)
                    .into_iter()
                    .flatten()
                    .map(|item| Document {
                        file: document.file.clone(),
                        text: None,
                        body: Body::Object(item.clone()),
                    })
                    .collect(),
                _ => vec![document],
            })
            .collect();
    }
}

fn items(value: &Value) -> Option<&Vec<Value>> {
    (value["kind"] == "List").then(|| value["items"].as_array())?
}

#[cfg(test)]
mod tests;
