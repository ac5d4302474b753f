//! A node reboots and a node gets another name: same pods, other addresses; other pods, same place.

use anyhow::{Context as _, ensure};
use netpol_tests::{
    agent::{Agent, Hook, hooks},
    lab::Restart,
    manifests::DocumentId,
    story::{self, CLOSED, FRIENDS, FRIENDS_ONLY},
    table::Party,
};

use crate::cluster::Cluster;

const PODS: [&str; 3] = ["web", "friend", "other"];

/// The pins have gone with the kernel, the pods' objects have not: same names, same UIDs, and soon other addresses.
#[test]
fn a_node_that_was_rebooted_has_the_same_pods_with_other_addresses() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    cluster.put(FRIENDS)?;
    let mut agent = cluster.agent(Hook::Auto)?;
    agent.wait()?;
    let before = agent.status()?;
    agent.kill()?;
    Agent::cleanup(&cluster.lab)?;
    for name in PODS {
        cluster.lab.restart_pod("a", name, Restart::NewAddress)?;
    }

    // The agent is up before the kubelet has told the new addresses.
    let mut agent = cluster.agent(Hook::Auto)?;
    agent.wait()?;
    let between = agent.status()?;
    for name in PODS {
        let pod = story::pod(&between, "a", name)?;
        ensure!(
            pod["enforced"] == false && pod["missing"].is_string(),
            "{pod:#}"
        );
    }
    cluster.control_plane.apply(&cluster.lab)?;
    agent.wait()?;
    let after = agent.status()?;
    for name in PODS {
        let (before, after) = (
            story::pod(&before, "a", name)?,
            story::pod(&after, "a", name)?,
        );
        ensure!(before["uid"] == after["uid"], "{before:#} {after:#}");
        ensure!(
            before["addresses"] != after["addresses"],
            "{before:#} {after:#}"
        );
    }
    cluster.expect("after the reboot", FRIENDS_ONLY)?;

    // Who has one of the old addresses now is nobody's friend.
    let old = story::pod(&before, "a", "friend")?["addresses"][0].clone();
    let old: std::net::Ipv4Addr = old.as_str().context("an address")?.parse()?;
    cluster.put(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{namespace: a, name: heir, annotations: {{lab.netpol-agent/address-index: \
         '{}'}}}}, spec: {{containers: [{{name: c, ports: [{{containerPort: 80}}]}}]}}}}",
        old.octets()[3]
    ))?;
    agent.wait()?;
    cluster.expect(
        "with an heir",
        "a/web TCP/80\n  open: a/friend\n  denied: a/other a/heir\n",
    )?;
    agent.stop()?;
    Ok(())
}

/// The node comes back under another name: its old pods are deleted, its new ones name it.
#[test]
fn a_node_with_another_name_enforces_its_pods_and_nothing_of_the_old_name() -> anyhow::Result<()> {
    for hook in [Hook::Tcx, Hook::Clsact] {
        let mut cluster = Cluster::of_three_pods()?;
        cluster.put(CLOSED)?;
        let mut agent = cluster.agent(hook)?;
        agent.wait()?;
        let device = cluster.lab.device(&Party::pod("a", "web"))?;
        agent.stop()?;

        // As long as all pods are on the old name, none is this node's, and all are open.
        let mut agent = cluster.agent_as("renamed", hook)?;
        agent.wait()?;
        let status = agent.status()?;
        ensure!(status["node"] == "renamed", "{status:#}");
        ensure!(
            status["pods"].as_array().is_some_and(Vec::is_empty),
            "{status:#}"
        );
        cluster.expect(
            &format!("{hook}, with no pod of that name"),
            story::ALL_OPEN,
        )?;

        for name in PODS {
            cluster.control_plane.delete(&DocumentId::pod("a", name))?;
            cluster.lab.restart_pod("a", name, Restart::NewAddress)?;
        }
        cluster.control_plane.put_yaml(FRIENDS)?;
        for mut pod in cluster.lab.documents("Pod") {
            pod["spec"]["nodeName"] = "renamed".into();
            cluster.control_plane.put(&pod)?;
        }
        agent.wait()?;
        cluster.expect(&format!("{hook}, with pods of the new name"), FRIENDS_ONLY)?;
        let status = agent.status()?;
        ensure!(
            status["pods"].as_array().map(Vec::len) == Some(3),
            "{status:#}"
        );
        let pinned = hooks::pinned_devices(&cluster.lab);
        ensure!(
            !pinned.contains(&device),
            "a pin of a device that has gone: {pinned:?}"
        );
        agent.stop()?;
    }
    Ok(())
}
