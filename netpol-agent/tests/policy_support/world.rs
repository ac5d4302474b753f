//! A small world from manifests, that is changed and asked.

use std::net::IpAddr;

use netpol_agent::policy::{
    Index, ObjectChange, convert,
    object::{ObjectKey, Protocol},
    reference::Snapshot,
};
use netpol_common::Direction;
use serde_json::{Value, json};

use super::policy_support::{HERE, Plane, Question, expected, settle};

pub const TCP: Option<Protocol> = Some(Protocol::Tcp);

pub fn namespace(name: &str, labels: Value) -> ObjectChange {
    let object = json!({ "metadata": { "name": name, "labels": labels } });
    let object = serde_json::from_value(object).expect("a namespace");
    ObjectChange::Namespace(convert::namespace(&object).expect("a good namespace"))
}

/// A pod of this node.
pub fn pod(namespace: &str, name: &str, ip: &str, labels: Value) -> ObjectChange {
    pod_with(namespace, name, ip, labels, json!({}), json!({}))
}

/// A pod with more in its spec and status.
pub fn pod_with(
    namespace: &str,
    name: &str,
    ip: &str,
    labels: Value,
    spec: Value,
    status: Value,
) -> ObjectChange {
    let mut object = json!({
        "metadata": { "namespace": namespace, "name": name, "labels": labels },
        "spec": { "nodeName": HERE, "containers": [] },
        "status": { "podIPs": [{ "ip": ip }] },
    });
    for (section, more) in [("spec", spec), ("status", status)] {
        for (key, value) in more.as_object().expect("an object") {
            object[section][key] = value.clone();
        }
    }
    let object = serde_json::from_value(object).expect("a pod");
    ObjectChange::Pod(convert::pod(&object).expect("a good pod"))
}

pub fn policy(namespace: &str, name: &str, spec: Value) -> ObjectChange {
    let object = json!({ "metadata": { "namespace": namespace, "name": name }, "spec": spec });
    let object = serde_json::from_value(object).expect("a policy");
    ObjectChange::Policy(convert::policy(&object).expect("a good policy"))
}

/// A world that is changed and asked.
pub struct World {
    pub objects: Snapshot,
    pub index: Index,
    pub plane: Plane,
}

impl World {
    pub fn of(changes: impl IntoIterator<Item = ObjectChange>) -> Self {
        let mut world = Self {
            objects: Snapshot {
                node: HERE.into(),
                ..Snapshot::default()
            },
            index: Index::new(HERE),
            plane: Plane::default(),
        };
        for change in changes {
            world.change(change);
        }
        world
    }

    /// Applies and settles a change.
    pub fn change(&mut self, change: ObjectChange) {
        self.objects.apply(&change);
        self.plane.write_change(&self.index.apply([change]));
        settle(&mut self.index, &mut self.plane);
    }

    pub fn address(&self, pod: &str) -> IpAddr {
        let (namespace, name) = pod.split_once('/').expect("namespace/name");
        self.objects.pods[&ObjectKey::new(namespace, name)].addresses[0]
    }

    /// Whether a pod's own rules let it talk with an address.
    pub fn permits(
        &mut self,
        pod: &str,
        direction: Direction,
        remote: IpAddr,
        protocol: Option<Protocol>,
        port: u16,
    ) -> bool {
        let (namespace, name) = pod.split_once('/').expect("namespace/name");
        let question = Question {
            pod: ObjectKey::new(namespace, name),
            direction,
            remote,
            protocol,
            port,
        };
        let answer = self.plane.judge(self.address(pod), &question);
        assert_eq!(
            answer,
            expected(&self.objects, &question),
            "reference: {question:?}"
        );
        answer
    }

    /// Whether a pod lets another one in.
    pub fn lets_in(
        &mut self,
        pod: &str,
        from: &str,
        protocol: Option<Protocol>,
        port: u16,
    ) -> bool {
        let from = self.address(from);
        self.permits(pod, Direction::Ingress, from, protocol, port)
    }
}

/// A server in `prod`, and clients of every kind.
pub fn clients() -> Vec<ObjectChange> {
    vec![
        namespace("prod", json!({ "env": "prod" })),
        namespace("dev", json!({ "env": "dev" })),
        pod("prod", "server", "10.0.0.1", json!({ "app": "server" })),
        pod("prod", "web", "10.0.0.2", json!({ "app": "web" })),
        pod("prod", "bare", "10.0.0.3", json!({})),
        pod("dev", "web", "10.0.1.2", json!({ "app": "web" })),
        pod("dev", "bare", "10.0.1.3", json!({})),
    ]
}

pub fn server_policy(rules: Value) -> ObjectChange {
    policy(
        "prod",
        "server",
        json!({ "podSelector": { "matchLabels": { "app": "server" } }, "ingress": rules }),
    )
}
