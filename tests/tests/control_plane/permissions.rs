//! The agent has the rights of its own service account, and those that `deploy/` grants are enough and all needed.

use std::{collections::BTreeSet, time::Duration};

use anyhow::ensure;
use netpol_tests::{
    agent::{Agent, Console, Hook},
    control_plane::AGENT_ACCOUNT,
    deploy,
    manifests::DocumentId,
    story::{ALL_DENIED, ALL_OPEN, CLOSED, FRIENDS, FRIENDS_ONLY},
};
use serde_json::Value;

use crate::cluster::{Cluster, is_away, missing, status_until};

const RESOURCES: [&str; 4] = ["namespaces", "pods", "services", "networkpolicies"];

/// The rights of `deploy/`.
fn grant(cluster: &Cluster) -> anyhow::Result<()> {
    for object in cluster.control_plane.deployed()? {
        cluster.control_plane.put(&object)?;
    }
    Ok(())
}

/// The rights of `deploy/` but for these verbs.
fn revoke(cluster: &Cluster, resource: &str, verbs: &[&str]) -> anyhow::Result<()> {
    for mut object in cluster.control_plane.deployed()? {
        if object["kind"] == "ClusterRole" {
            for verb in verbs {
                let taken = take(&mut object, resource, verb);
                ensure!(taken, "deploy/ does not grant {verb} on {resource}");
            }
        }
        cluster.control_plane.put(&object)?;
    }
    Ok(())
}

/// Takes one verb on one resource out of a cluster role; says whether it was there.
fn take(role: &mut Value, resource: &str, verb: &str) -> bool {
    let mut taken = false;
    let rules = role["rules"].as_array_mut();
    for rule in rules.map(std::mem::take).unwrap_or_default() {
        let names = rule["resources"].as_array().cloned().unwrap_or_default();
        for name in names {
            let mut own = rule.clone();
            own["resources"] = Value::Array(vec![name.clone()]);
            if name == resource
                && let Some(verbs) = own["verbs"].as_array_mut()
            {
                let before = verbs.len();
                verbs.retain(|other| other != verb);
                taken |= verbs.len() < before;
            }
            // The server takes no rule without a verb.
            let empty = own["verbs"].as_array().is_some_and(Vec::is_empty);
            if let Some(rules) = role["rules"].as_array_mut()
                && !empty
            {
                rules.push(own);
            }
        }
    }
    taken
}

/// Without one of the kinds nothing is programmed, whatever the others say; and what is missing is named.
#[test]
fn without_a_watch_nothing_is_programmed_and_what_is_missing_is_named() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    cluster.put(CLOSED)?;
    let console = Console::new(&cluster.lab)?;
    for resource in RESOURCES {
        let case = format!("without watch on {resource}");
        revoke(&cluster, resource, &["watch"])?;
        let mut agent = cluster.agent(Hook::Auto)?;
        let status = status_until(&agent, &case, is_away)?;
        ensure!(status["enforcing"] == false, "{case}: {status:#}");
        let reason = &status["source"]["away"]["reason"];
        let reason = reason.as_str().unwrap_or_default();
        for word in [resource, "watch", AGENT_ACCOUNT[1], "ClusterRole"] {
            ensure!(
                reason.contains(word),
                "{case}, it must say `{word}`: {reason}"
            );
            ensure!(agent.log().contains(word), "{case}: {}", agent.log());
        }
        missing(&console.wait("300ms")?, &[resource, "ClusterRole"])?;
        cluster.expect(&case, ALL_OPEN)?;

        grant(&cluster)?;
        agent.wait()?;
        cluster.expect(&format!("{case}, and then with it"), ALL_DENIED)?;
        agent.stop()?;
        Agent::cleanup(&cluster.lab)?;
    }
    Ok(())
}

/// Whether everything is known that the server has is asked by a list: without that right `wait` promises nothing.
#[test]
fn without_a_list_nobody_is_told_that_everything_is_enforced() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    cluster.put(CLOSED)?;
    let console = Console::new(&cluster.lab)?;
    for resource in RESOURCES {
        revoke(&cluster, resource, &["list"])?;
        let mut agent = cluster.agent(Hook::Auto)?;
        let said = console.wait("3s")?;
        missing(&said, &[resource, "list", AGENT_ACCOUNT[1], "ClusterRole"])?;
        grant(&cluster)?;
        agent.wait()?;
        cluster.expect(&format!("with list on {resource}"), ALL_DENIED)?;
        agent.stop()?;
    }
    Ok(())
}

/// What is watched already is taken away: what is enforced holds, and the return of the right is noticed.
#[test]
fn a_verb_that_is_taken_away_later_changes_nothing_that_is_enforced() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    cluster.put(FRIENDS)?;
    let mut agent = cluster.agent(Hook::Auto)?;
    agent.wait()?;
    revoke(&cluster, "pods", &["list", "watch"])?;
    // A server that comes back asks for the right again.
    cluster.control_plane.kill_server()?;
    cluster.control_plane.start_server()?;
    let status = status_until(&agent, "the right is missed", |status| {
        let reason = status["source"]["away"]["reason"].as_str();
        reason.is_some_and(|reason| reason.contains("403"))
    })?;
    ensure!(status["enforcing"] == true, "{status:#}");
    cluster.expect("without a right", FRIENDS_ONLY)?;
    cluster.put(CLOSED)?;
    grant(&cluster)?;
    agent.wait()?;
    cluster.expect("with it again", ALL_DENIED)?;
    agent.stop()?;
    Ok(())
}

/// The agent's account is made anew: whoever has the old one's token is nobody. A new token is read from the file.
#[test]
fn a_token_that_is_worth_nothing_any_more_is_read_again() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    cluster.put(FRIENDS)?;
    let mut agent = cluster.agent(Hook::Auto)?;
    agent.wait()?;
    let [namespace, name] = AGENT_ACCOUNT;
    let account = DocumentId::new("ServiceAccount", namespace, name);
    cluster.control_plane.delete(&account)?;
    grant(&cluster)?;
    // What is being watched goes on until its connection ends.
    cluster.control_plane.kill_server()?;
    cluster.control_plane.start_server()?;
    let status = status_until(&agent, "the token is refused", |status| {
        let reason = status["source"]["away"]["reason"].as_str();
        reason.is_some_and(|reason| reason.contains("401"))
    })?;
    ensure!(status["enforcing"] == true, "{status:#}");
    cluster.expect("with a token that is refused", FRIENDS_ONLY)?;
    cluster.put(CLOSED)?;
    cluster.control_plane.log_in()?;
    agent.wait_for(Duration::from_secs(60))?;
    cluster.expect("with a new token", ALL_DENIED)?;
    agent.stop()?;
    Ok(())
}

/// Real admission and validation, where a field that does not exist is an error.
#[test]
fn the_server_takes_what_is_in_deploy() -> anyhow::Result<()> {
    let cluster = Cluster::of_three_pods()?;
    let mut kinds = Vec::new();
    for file in ["base/rbac.yaml", "base/daemonset.yaml"] {
        for object in deploy::documents(&deploy::folder().join(file))? {
            let stored = cluster.control_plane.put(&object)?;
            kinds.push(stored["kind"].as_str().unwrap_or_default().to_owned());
        }
    }
    ensure!(
        kinds
            == [
                "ServiceAccount",
                "ClusterRole",
                "ClusterRoleBinding",
                "DaemonSet"
            ],
        "{kinds:?}"
    );
    let mut wrong = deploy::documents(&deploy::folder().join("base/daemonset.yaml"))?.remove(0);
    wrong["spec"]["template"]["spec"]["hostNetwrok"] = true.into();
    ensure!(
        cluster.control_plane.put(&wrong).is_err(),
        "a field that does not exist"
    );
    Ok(())
}

/// The agent reads, and may change nothing.
#[test]
fn deploy_grants_no_verb_that_writes() -> anyhow::Result<()> {
    let cluster = Cluster::of_three_pods()?;
    let objects = cluster.control_plane.deployed()?;
    let rules = objects.iter().flat_map(|object| object["rules"].as_array());
    let verbs = rules.flatten().flat_map(|rule| rule["verbs"].as_array());
    let verbs: BTreeSet<&str> = verbs.flatten().filter_map(Value::as_str).collect();
    ensure!(verbs == BTreeSet::from(["list", "watch"]), "{verbs:?}");
    Ok(())
}
