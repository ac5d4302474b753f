//! A scenario's pods as the kubelet shall run them: its own containers, on a chosen node, with a probe image.

use std::collections::BTreeMap;

use netpol_agent::policy::object::ObjectKey;
use serde_json::{Value, json};

/// A pod in a node's own network: what the node itself reaches.
pub const NODE_CONTAINER: &str = "probe";

/// Spreads pods over nodes, each scenario beginning with another node, so that pairs on one node and pairs on two both
/// occur for allowed and for forbidden connections.
pub fn spread(
    pods: impl IntoIterator<Item = ObjectKey>,
    nodes: &[String],
    start: usize,
) -> BTreeMap<ObjectKey, String> {
    pods.into_iter()
        .zip(nodes.iter().cycle().skip(start % nodes.len().max(1)))
        .map(|(pod, node)| (pod, node.clone()))
        .collect()
}

/// Completes a pod that [`super::names::Names::rename`] has renamed.
pub fn complete(mut pod: Value, node: &str, image: Option<&str>) -> Value {
    let spec = &mut pod["spec"];
    // Not the scheduler's choice: the table says which pairs are on one node.
    spec["nodeName"] = json!(node);
    spec["terminationGracePeriodSeconds"] = json!(0);
    spec["automountServiceAccountToken"] = json!(false);
    spec["enableServiceLinks"] = json!(false);
    for container in spec["containers"].as_array_mut().into_iter().flatten() {
        container["imagePullPolicy"] = json!("IfNotPresent");
        if let Some(image) = image {
            container["image"] = json!(image);
        }
    }
    pod
}

/// The image that a pod's first container runs.
pub fn image(pod: &Value) -> Option<&str> {
    pod["spec"]["containers"][0]["image"].as_str()
}

/// The name of a pod's first container.
pub fn first_container(pod: &Value) -> Option<&str> {
    pod["spec"]["containers"][0]["name"].as_str()
}

/// A pod in the network of a node: it probes as the kubelet does.
pub fn on_the_node(namespace: &str, name: &str, node: &str, image: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "hostNetwork": true,
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "containers": [{
                "name": NODE_CONTAINER,
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "args": ["pause"],
            }],
        },
    })
}

/// Whether a pod is ready; if it never can be without help, why.
pub fn readiness(pod: &Value) -> Readiness {
    let conditions = pod["status"]["conditions"].as_array();
    let ready = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    if ready && pod["status"]["podIP"].is_string() {
        return Readiness::Ready;
    }
    let phase = pod["status"]["phase"].as_str().unwrap_or("without status");
    let statuses = pod["status"]["containerStatuses"].as_array();
    let mut reasons: Vec<String> = statuses
        .into_iter()
        .flatten()
        .filter_map(|status| {
            let waiting = &status["state"]["waiting"];
            let reason = waiting["reason"].as_str()?;
            let message = waiting["message"].as_str().unwrap_or_default();
            Some(format!("{reason} {message}").trim_end().to_owned())
        })
        .collect();
    reasons.sort();
    reasons.dedup();
    let detail = std::iter::once(phase.to_owned())
        .chain(reasons)
        .collect::<Vec<_>>()
        .join(", ");
    match phase {
        "Failed" | "Succeeded" => Readiness::Never(detail),
        _ => Readiness::NotYet(detail),
    }
}

/// How far a pod is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Readiness {
    /// Its containers run and it has an address.
    Ready,
    /// Not yet; this is what its status says.
    NotYet(String),
    /// It has ended.
    Never(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_spread_in_turn() {
        let keys: Vec<ObjectKey> = ["a", "b", "c"]
            .iter()
            .map(|name| ObjectKey::new("ns", *name))
            .collect();
        let nodes = ["one".to_owned(), "two".to_owned()];
        let spread = spread(keys.clone(), &nodes, 3);
        assert_eq!(
            keys.iter().map(|key| &spread[key][..]).collect::<Vec<_>>(),
            ["two", "one", "two"]
        );
    }

    #[test]
    fn a_pod_keeps_what_the_scenario_says_of_it() {
        let pod = json!({
            "kind": "Pod",
            "metadata": {"namespace": "npt-s01-prod", "name": "web", "labels": {"app": "web"}},
            "spec": {"containers": [
                {"name": "tcp-80", "image": "theirs", "args": ["serve-hostname"], "ports": [{"containerPort": 80}]},
                {"name": "udp-53", "image": "theirs", "ports": [{"containerPort": 53, "protocol": "UDP"}]}]},
        });
        let done = complete(pod.clone(), "worker", Some("ours:1"));
        assert_eq!(done["metadata"], pod["metadata"]);
        assert_eq!(done["spec"]["nodeName"], "worker");
        let containers = done["spec"]["containers"].as_array().unwrap();
        assert_eq!(containers.len(), 2);
        assert_eq!(
            containers[0],
            json!({"name": "tcp-80", "image": "ours:1", "imagePullPolicy": "IfNotPresent",
                "args": ["serve-hostname"], "ports": [{"containerPort": 80}]})
        );
        assert_eq!(first_container(&done), Some("tcp-80"));
        assert_eq!(image(&complete(pod, "worker", None)), Some("theirs"));
    }

    #[test]
    fn readiness_tells_what_a_pod_waits_for() {
        let mut pod = json!({"status": {"phase": "Pending", "containerStatuses": [
            {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]}});
        assert_eq!(
            readiness(&pod),
            Readiness::NotYet("Pending, ImagePullBackOff no such image".to_owned())
        );
        pod["status"]["phase"] = json!("Failed");
        assert!(matches!(readiness(&pod), Readiness::Never(_)));
        let ready = json!({"status": {"phase": "Running", "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True"}]}});
        assert_eq!(readiness(&ready), Readiness::Ready);
    }
}
