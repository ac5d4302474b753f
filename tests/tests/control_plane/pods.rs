//! What happens to pods in a cluster: they are created before they have an address, end, terminate, change their labels.

use anyhow::{Context as _, ensure};
use netpol_tests::{
    agent::Hook,
    lab::Restart,
    manifests::DocumentId,
    story::{self, FRIENDS, FRIENDS_ONLY},
};
use serde_json::{Value, json};

use crate::cluster::Cluster;

const FRIEND: (&str, &str) = ("a", "friend");
const NO_FRIEND: &str = "a/web TCP/80\n  denied: a/friend a/other\n";

fn friend_id() -> DocumentId {
    DocumentId::pod(FRIEND.0, FRIEND.1)
}

/// The object of a pod as the lab would have the kubelet write it.
fn object(cluster: &Cluster, id: &DocumentId) -> anyhow::Result<Value> {
    let pods = cluster.lab.documents("Pod");
    let mut pods = pods.into_iter();
    let pod = pods.find(|pod| {
        pod["metadata"]["namespace"] == *id.namespace && pod["metadata"]["name"] == *id.name
    });
    pod.with_context(|| format!("the lab has no {id}"))
}

#[test]
fn a_pod_counts_from_its_address_to_its_end() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    cluster.put(FRIENDS)?;
    let mut agent = cluster.agent(Hook::Auto)?;
    agent.wait()?;
    cluster.expect("at first", FRIENDS_ONLY)?;
    let friend = object(&cluster, &friend_id())?;

    // Anew, on its node, and without an address as yet.
    cluster.control_plane.delete(&friend_id())?;
    agent.wait()?;
    cluster.expect("after the pod was deleted", NO_FRIEND)?;
    let mut pending = friend.clone();
    pending["status"] = json!({"phase": "Pending"});
    cluster.control_plane.put(&pending)?;
    agent.wait()?;
    let status = agent.status()?;
    let pod = story::pod(&status, FRIEND.0, FRIEND.1)?;
    ensure!(pod["addresses"] == json!([]), "{pod:#}");
    cluster.expect("while it has no address", NO_FRIEND)?;

    cluster.control_plane.put(&friend)?;
    agent.wait()?;
    cluster.expect("with its address", FRIENDS_ONLY)?;

    // It terminates, and is there until it is gone.
    cluster.control_plane.terminate(&friend_id())?;
    agent.wait()?;
    let stored = cluster.control_plane.get(&friend_id())?;
    let stored = stored.context("a terminating pod is there")?;
    ensure!(
        !stored["metadata"]["deletionTimestamp"].is_null(),
        "{stored:#}"
    );
    cluster.expect("while it terminates", FRIENDS_ONLY)?;
    cluster.control_plane.delete(&friend_id())?;
    agent.wait()?;
    cluster.expect("when it is gone", NO_FRIEND)?;

    // It has done its work: its object stays, with its addresses, which are no longer its own.
    cluster.control_plane.put(&friend)?;
    agent.wait()?;
    cluster.expect("once more", FRIENDS_ONLY)?;
    for phase in ["Succeeded", "Failed"] {
        let mut ended = friend.clone();
        ended["status"]["phase"] = json!(phase);
        cluster.control_plane.put(&ended)?;
        agent.wait()?;
        cluster.expect(phase, NO_FRIEND)?;
    }
    agent.stop()?;
    Ok(())
}

#[test]
fn labels_of_pods_and_namespaces_are_followed() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    cluster.put(
        "
{apiVersion: v1, kind: Namespace, metadata: {name: b}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: b, name: guest}
spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: a, name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}, {namespaceSelector: {matchLabels: {team: b}}}]}]
",
    )?;
    let mut agent = cluster.agent(Hook::Auto)?;
    agent.wait()?;
    let table =
        |open: &str, denied: &str| format!("a/web TCP/80\n  open: {open}\n  denied: {denied}\n");
    cluster.expect("at first", &table("a/friend", "a/other b/guest"))?;
    let change = |cluster: &mut Cluster, id: DocumentId, label: (&str, Option<&str>)| {
        cluster.change(|world| world.label(&id, &[label]))
    };
    change(
        &mut cluster,
        DocumentId::namespace("b"),
        ("team", Some("b")),
    )?;
    agent.wait()?;
    cluster.expect(
        "a label of a namespace",
        &table("a/friend b/guest", "a/other"),
    )?;
    change(
        &mut cluster,
        DocumentId::pod("a", "other"),
        ("role", Some("friend")),
    )?;
    change(&mut cluster, friend_id(), ("role", None))?;
    agent.wait()?;
    cluster.expect("labels of pods", &table("a/other b/guest", "a/friend"))?;
    change(&mut cluster, DocumentId::namespace("b"), ("team", None))?;
    change(
        &mut cluster,
        DocumentId::pod("a", "web"),
        ("app", Some("api")),
    )?;
    agent.wait()?;
    cluster.expect(
        "a pod that is selected no more",
        "a/web TCP/80\n  open: a/friend a/other b/guest\n",
    )?;
    agent.stop()?;
    Ok(())
}

/// The same name, and another pod: another UID, another address.
#[test]
fn a_pod_that_is_created_again_is_another_one() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    cluster.put(FRIENDS)?;
    let mut agent = cluster.agent(Hook::Auto)?;
    agent.wait()?;
    for (namespace, name) in [FRIEND, ("a", "web")] {
        let id = DocumentId::pod(namespace, name);
        let before = agent.status()?;
        let before = story::pod(&before, namespace, name)?.clone();
        cluster.control_plane.delete(&id)?;
        cluster
            .lab
            .restart_pod(namespace, name, Restart::NewAddress)?;
        cluster.control_plane.apply(&cluster.lab)?;
        agent.wait()?;
        let after = agent.status()?;
        let after = story::pod(&after, namespace, name)?;
        for field in ["uid", "addresses", "interface"] {
            ensure!(
                after[field] != before[field],
                "{field}: {before:#} {after:#}"
            );
        }
        let stored = cluster.control_plane.get(&id)?.context("it is there")?;
        ensure!(after["uid"] == stored["metadata"]["uid"], "{after:#}");
        cluster.expect(&format!("with a new {id}"), FRIENDS_ONLY)?;
    }
    agent.stop()?;
    Ok(())
}
