//! A lab's world as objects of the API, and single objects.

use serde_json::{Value, json};

use super::{Answer, ControlPlane};
use crate::{
    lab::Lab,
    manifests::{API_KINDS, DocumentId},
};

/// The namespaces that the API server makes itself and lets nobody delete.
const ALWAYS: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

impl ControlPlane {
    /// Writes what is different in a lab's world since the last time: namespaces, Services, EndpointSlices, network
    /// policies, and pods with their node, addresses and phase, as scheduler and kubelet would. What has gone from the
    /// world is deleted, pods without grace.
    ///
    /// What cannot be changed in an object (a pod's ports, its node) is refused by the server: delete the pod first.
    pub fn apply(&mut self, lab: &Lab) -> anyhow::Result<()> {
        let mut wanted = Vec::new();
        for kind in API_KINDS {
            for value in lab.documents(kind) {
                if let Some(id) = DocumentId::of(&value) {
                    wanted.push((id, as_the_server_takes_it(value)));
                }
            }
        }
        let gone: Vec<DocumentId> = self
            .applied
            .keys()
            .filter(|id| !wanted.iter().any(|(wanted, _)| wanted == *id))
            .cloned()
            .collect();
        for kind in API_KINDS.iter().rev() {
            for id in gone.iter().filter(|id| id.kind == *kind) {
                if !(id.kind == "Namespace" && ALWAYS.contains(&id.name.as_str())) {
                    self.delete(id)?;
                }
                self.applied.remove(id);
            }
        }
        for (id, value) in wanted {
            if self.applied.get(&id) != Some(&value) {
                self.client.put(&self.worker, &value)?;
                self.applied.insert(id, value);
            }
        }
        Ok(())
    }

    /// Creates or changes one object, and its status if it has one. Returns it as it is stored.
    pub fn put(&self, object: &Value) -> anyhow::Result<Value> {
        let object = as_the_server_takes_it(object.clone());
        self.client.put(&self.worker, &object)
    }

    /// As [`ControlPlane::put`], of many objects at once, in no order.
    pub fn put_all(&self, objects: Vec<Value>) -> anyhow::Result<()> {
        let objects = objects.into_iter().map(as_the_server_takes_it);
        self.client.put_all(&self.worker, objects.collect())
    }

    /// As [`ControlPlane::put`], of YAML documents.
    pub fn put_yaml(&self, text: &str) -> anyhow::Result<()> {
        for object in crate::manifests::World::parse(text).all() {
            self.put(object)?;
        }
        Ok(())
    }

    /// Creates one object, or hears why not.
    pub fn create(&self, object: &Value) -> anyhow::Result<Answer> {
        self.client.create(&self.worker, object)
    }

    /// One object as it is stored.
    pub fn get(&self, id: &DocumentId) -> anyhow::Result<Option<Value>> {
        self.client.get(&self.worker, id)
    }

    /// Deletes one object at once.
    pub fn delete(&mut self, id: &DocumentId) -> anyhow::Result<()> {
        self.applied.remove(id);
        self.remove(id)
    }

    /// Deletes one object at once that [`ControlPlane::apply`] has not written.
    pub fn remove(&self, id: &DocumentId) -> anyhow::Result<()> {
        self.client.delete(&self.worker, id, Some(0))
    }

    /// Marks a pod as terminating: it stays until somebody deletes it, as it does until its kubelet has ended it.
    pub fn terminate(&self, pod: &DocumentId) -> anyhow::Result<()> {
        self.client.delete(&self.worker, pod, None)
    }
}

/// Fills in what every object of the API needs and a lab does not, and takes out what only the server may say.
fn as_the_server_takes_it(mut value: Value) -> Value {
    for container in ["containers", "initContainers"] {
        let containers = value
            .get_mut("spec")
            .and_then(|spec| spec.get_mut(container));
        for container in containers
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if container["image"].is_null() {
                container["image"] = json!("none");
            }
        }
    }
    if let Some(metadata) = value["metadata"].as_object_mut() {
        for field in [
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "managedFields",
        ] {
            metadata.remove(field);
        }
    }
    if value["kind"] == "Namespace"
        && let Some(object) = value.as_object_mut()
    {
        // It is the server's, too.
        object.remove("status");
    }
    value
}
