//! What the API server fills in is what the agent fills in when it reads a manifest: an object means the same by either way.

use std::fmt::Debug;

use anyhow::{Context as _, bail, ensure};
use netpol_agent::policy::convert::{self, Refusal};
use netpol_tests::control_plane::Answer;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// The object as the server has stored it.
fn stored(cluster: &Cluster, object: &Value) -> anyhow::Result<Value> {
    match cluster.control_plane.create(object)? {
        Answer::Stored(stored) => Ok(stored),
        Answer::Refused { message, .. } => bail!("the server refuses this object: {message}"),
    }
}

/// What the agent makes of the manifest, and of what the server has stored; both must be the same.
fn read_alike<T: DeserializeOwned, K: PartialEq + Debug>(
    manifest: &Value,
    stored: &Value,
    convert: impl Fn(&T) -> Result<K, Refusal>,
) -> anyhow::Result<K> {
    let read = |object: &Value| -> anyhow::Result<K> {
        Ok(convert(&serde_json::from_value(object.clone())?)?)
    };
    let from_server = read(stored).context("as the server has stored it")?;
    let from_file = read(manifest).context("as the manifest says")?;
    ensure!(
        from_server == from_file,
        "the server made of\n{manifest:#}\nthis:\n{stored:#}\nwhich means\n{from_server:?}\nand not\n{from_file:?}"
    );
    Ok(from_server)
}

fn policy(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "default", "name": name},
        "spec": spec,
    })
}

/// `policyTypes` by what is there, from the documentation of the API.
#[test]
fn policy_types_that_are_left_out() -> anyhow::Result<()> {
    let cluster = Cluster::of_three_pods()?;
    let peer = json!([{"from": [{"podSelector": {}}]}]);
    let to = json!([{"to": [{"podSelector": {}}]}]);
    for (nth, (spec, types)) in [
        (json!({"podSelector": {}}), json!(["Ingress"])),
        (
            json!({"podSelector": {}, "ingress": []}),
            json!(["Ingress"]),
        ),
        (
            json!({"podSelector": {}, "ingress": peer}),
            json!(["Ingress"]),
        ),
        (json!({"podSelector": {}, "egress": []}), json!(["Ingress"])),
        (
            json!({"podSelector": {}, "egress": [{}]}),
            json!(["Ingress", "Egress"]),
        ),
        (
            json!({"podSelector": {}, "egress": to}),
            json!(["Ingress", "Egress"]),
        ),
        (
            json!({"podSelector": {}, "ingress": peer, "egress": to}),
            json!(["Ingress", "Egress"]),
        ),
        (
            json!({"podSelector": {}, "policyTypes": []}),
            json!(["Ingress"]),
        ),
        (
            json!({"podSelector": {}, "policyTypes": [], "egress": to}),
            json!(["Ingress", "Egress"]),
        ),
        // What is said is kept, also where rules of the other direction follow.
        (
            json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": peer}),
            json!(["Egress"]),
        ),
        (
            json!({"podSelector": {}, "policyTypes": ["Ingress"], "egress": to}),
            json!(["Ingress"]),
        ),
        (
            json!({"podSelector": {}, "policyTypes": ["Egress", "Ingress"]}),
            json!(["Egress", "Ingress"]),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let manifest = policy(&format!("types-{nth}"), &spec);
        let stored = stored(&cluster, &manifest)?;
        ensure!(
            stored["spec"]["policyTypes"] == types,
            "{spec}: the server says {}",
            stored["spec"]["policyTypes"]
        );
        let read = read_alike(&manifest, &stored, convert::policy)?;
        for (name, has) in [
            ("Ingress", read.ingress.is_some()),
            ("Egress", read.egress.is_some()),
        ] {
            let wanted = types
                .as_array()
                .is_some_and(|all| all.contains(&json!(name)));
            ensure!(has == wanted, "{spec}: {name} is {has}");
        }
    }
    Ok(())
}

#[test]
fn ports_selectors_and_blocks_mean_the_same_from_the_server() -> anyhow::Result<()> {
    let cluster = Cluster::of_three_pods()?;
    let ports = |ports: Value| json!({"podSelector": {}, "ingress": [{"ports": ports}]});
    let peers = |peers: Value| json!({"podSelector": {}, "egress": [{"to": peers}]});
    for (nth, spec) in [
        ports(json!([])),
        ports(json!([{}])),
        ports(json!([{"port": 80}])),
        ports(json!([{"port": "http"}])),
        ports(json!([{"protocol": "UDP"}])),
        ports(json!([{"protocol": "SCTP", "port": 5000, "endPort": 5010}])),
        ports(json!([{"port": 80, "endPort": 80}, {"port": 1, "endPort": 65535, "protocol": "UDP"}])),
        // A number in quotation marks is a name to the API, and a name needs a letter: see `rejections.rs`.
        peers(json!([])),
        peers(json!([{"podSelector": {}}])),
        peers(json!([{"namespaceSelector": {}}])),
        peers(json!([{"podSelector": {"matchLabels": {"a": ""}}, "namespaceSelector": {"matchLabels": {"b/c": "D_e.f"}}}])),
        peers(json!([{"podSelector": {"matchExpressions": [
            {"key": "a", "operator": "In", "values": ["x", "y", "x"]},
            {"key": "b", "operator": "NotIn", "values": [""]},
            {"key": "c", "operator": "Exists"},
            {"key": "d", "operator": "DoesNotExist", "values": []},
        ]}}])),
        peers(json!([{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.2.3.4/32"]}}])),
        peers(json!([{"ipBlock": {"cidr": "fd00::/8", "except": ["fd00:1::/32"]}}, {"ipBlock": {"cidr": "::/0"}}])),
        json!({"ingress": [{}]}),
        json!({"podSelector": {"matchLabels": null}, "ingress": null, "egress": null}),
    ]
    .into_iter()
    .enumerate()
    {
        let manifest = policy(&format!("meaning-{nth}"), &spec);
        let stored = stored(&cluster, &manifest).with_context(|| spec.to_string())?;
        read_alike(&manifest, &stored, convert::policy)?;
        for port in stored["spec"]["ingress"][0]["ports"].as_array().into_iter().flatten() {
            ensure!(port["protocol"].is_string(), "a protocol is filled in: {stored:#}");
        }
    }
    Ok(())
}

#[test]
fn namespaces_pods_and_services_mean_the_same_from_the_server() -> anyhow::Result<()> {
    let cluster = Cluster::of_three_pods()?;
    // The name is a label of each namespace, whatever its manifest says.
    for manifest in [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "plain"}}),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "labelled", "labels": {"a": "b"}}}),
        json!({"apiVersion": "v1", "kind": "Namespace",
               "metadata": {"name": "lying", "labels": {"kubernetes.io/metadata.name": "plain"}}}),
    ] {
        let stored = stored(&cluster, &manifest)?;
        let name = &manifest["metadata"]["name"];
        ensure!(
            stored["metadata"]["labels"]["kubernetes.io/metadata.name"] == *name,
            "{stored:#}"
        );
        read_alike(&manifest, &stored, convert::namespace)?;
    }

    for (name, spec) in [
        (
            "one",
            json!({"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}),
        ),
        (
            "ports",
            json!({
                "nodeName": "node",
                "containers": [
                    {"name": "c", "image": "i", "ports": [{"containerPort": 53, "protocol": "UDP", "name": "dns"}]},
                    {"name": "d", "image": "i"},
                ],
                "initContainers": [
                    {"name": "e", "image": "i", "restartPolicy": "Always", "ports": [{"containerPort": 81}]},
                    {"name": "f", "image": "i", "ports": [{"containerPort": 82}]},
                ],
            }),
        ),
        (
            "host",
            json!({"hostNetwork": true, "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}),
        ),
    ] {
        let manifest = json!({"apiVersion": "v1", "kind": "Pod",
                              "metadata": {"namespace": "default", "name": name, "labels": {"a": "b"}}, "spec": spec});
        let stored = stored(&cluster, &manifest)?;
        // Who the server says it is, and since when, no manifest says.
        read_alike(&manifest, &stored, |pod| {
            let mut pod = convert::pod(pod)?;
            pod.uid = String::new();
            pod.created = 0;
            Ok(pod)
        })?;
    }

    for (name, spec) in [
        (
            "headless",
            json!({"clusterIP": "None", "ports": [{"port": 80}]}),
        ),
        (
            "both",
            json!({"clusterIP": "10.96.9.9", "clusterIPs": ["10.96.9.9", "fd00:10:96::9"],
                   "ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}]}),
        ),
        (
            "external",
            json!({"clusterIP": "10.96.9.10", "externalIPs": ["198.51.100.1"], "ports": [{"port": 80}]}),
        ),
        (
            "name",
            json!({"type": "ExternalName", "externalName": "example.org"}),
        ),
    ] {
        let manifest = json!({"apiVersion": "v1", "kind": "Service",
                              "metadata": {"namespace": "default", "name": name}, "spec": spec});
        let stored = stored(&cluster, &manifest)?;
        read_alike(&manifest, &stored, convert::service)?;
    }
    Ok(())
}
