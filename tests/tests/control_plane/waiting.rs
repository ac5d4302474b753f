//! `wait` is a promise here too: what the API server had accepted before is enforced when it ends with 0; and if it does not,
//! it says what is missing.

use std::{thread, time::Duration};

use anyhow::ensure;
use netpol_tests::{
    agent::{Console, Hook},
    story::{self, ALL_DENIED, ALL_OPEN, CLOSED, FRIENDS, log_end},
    table::{Family, Port},
};
use serde_json::json;

use crate::cluster::{Cluster, PATIENCE, friend, missing, web};

const AT_ONCE: Duration = Duration::from_millis(60);

#[test]
fn what_the_server_accepted_before_a_wait_is_enforced_after_it() -> anyhow::Result<()> {
    let cluster = Cluster::of_three_pods()?;
    let lab = &cluster.lab;
    let console = Console::new(lab)?;
    let mut agent = cluster.agent(Hook::Auto)?;
    agent.wait()?;
    let dns = web(Port::Udp(53));
    for round in 0..40 {
        let (text, allowed) = if round % 2 == 0 {
            (CLOSED, false)
        } else {
            (FRIENDS, true)
        };
        cluster.control_plane.put_yaml(text)?;
        let said = console.wait("10s")?;
        ensure!(
            said.code == Some(0),
            "round {round}: {said}\n{}",
            log_end(lab)
        );
        let family = Family::ALL[round / 2 % 2];
        let patience = if allowed { PATIENCE } else { AT_ONCE };
        let arrived = lab.knock(&friend(), &dns, family, patience)?;
        ensure!(
            arrived == allowed,
            "round {round}: `wait` ended with 0 after a policy that {}, and the next datagram ({family}) {}\n{}",
            if allowed { "allows" } else { "forbids" },
            if arrived { "arrived" } else { "did not arrive" },
            log_end(lab)
        );
    }
    agent.stop()?;
    Ok(())
}

#[test]
fn a_wait_that_begins_before_the_agent_succeeds_when_it_comes() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    cluster.put(CLOSED)?;
    let console = Console::new(&cluster.lab)?;
    missing(&console.wait("300ms")?, &["no agent at"])?;
    let waiting = console.begin_wait("30s")?;
    thread::sleep(Duration::from_millis(300));
    let mut agent = cluster.agent(Hook::Auto)?;
    let said = waiting.end()?;
    ensure!(said.code == Some(0), "{said}\n{}", log_end(&cluster.lab));
    cluster.expect("as soon as `wait` ended", ALL_DENIED)?;
    agent.stop()?;
    Ok(())
}

/// A pod of this node without a sandbox as yet has no interface that anything could be enforced on: nobody waits for it, and
/// the status tells it.
#[test]
fn a_pod_without_an_interface_is_told_and_not_waited_for() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    cluster.put(CLOSED)?;
    let console = Console::new(&cluster.lab)?;
    let mut agent = cluster.agent(Hook::Auto)?;
    agent.wait()?;
    cluster.control_plane.put(&json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "a", "name": "ghost"},
        "spec": {"nodeName": "node", "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIP": "10.244.1.99", "podIPs": [{"ip": "10.244.1.99"}]},
    }))?;
    let said = console.wait("10s")?;
    ensure!(said.code == Some(0), "{said}");
    let status = agent.status()?;
    let ghost = story::pod(&status, "a", "ghost")?;
    ensure!(
        ghost["enforced"] == false && ghost["missing"].is_string(),
        "{ghost:#}"
    );
    let web = story::pod(&status, "a", "web")?;
    ensure!(
        web["enforced"] == true && web["missing"].is_null(),
        "{web:#}"
    );
    cluster.expect("for everybody else", ALL_DENIED)?;
    agent.stop()?;
    Ok(())
}

/// Of an agent that stands still `wait` learns nothing, and so it does not succeed.
#[test]
fn a_wait_does_not_succeed_before_the_agent_has_read_what_was_written() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    let console = Console::new(&cluster.lab)?;
    let mut agent = cluster.agent(Hook::Auto)?;
    agent.wait()?;
    agent.freeze();
    cluster.put(CLOSED)?;
    let said = console.wait("1s")?;
    ensure!(said.code == Some(1), "nothing is enforced yet: {said}");
    cluster.expect("with an agent that stands still", ALL_OPEN)?;
    agent.thaw();
    let said = console.wait("20s")?;
    ensure!(said.code == Some(0), "{said}");
    cluster.expect("when it goes on", ALL_DENIED)?;
    agent.stop()?;
    Ok(())
}

/// A policy that the server accepts and the agent cannot compile: an IPv4 block in IPv6 form, which nobody can mean.
#[test]
fn a_policy_that_only_the_agent_refuses_is_named() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    cluster.put(CLOSED)?;
    let console = Console::new(&cluster.lab)?;
    let mut agent = cluster.agent(Hook::Auto)?;
    agent.wait()?;
    cluster.control_plane.put_yaml(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: a, name: web}, spec: {podSelector: \
         {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}]}]}}",
    )?;
    missing(
        &console.wait("1s")?,
        &["a/web", "ipBlock.cidr", "::ffff:10.0.0.0/104"],
    )?;
    let status = agent.status()?;
    let problem = &status["source"]["problems"][0];
    ensure!(
        problem["object"] == "a/web" && problem["kept"] == true,
        "the last good version stays: {status:#}"
    );
    cluster.expect("with the last good version", ALL_DENIED)?;
    cluster.control_plane.put_yaml(FRIENDS)?;
    agent.wait()?;
    let status = agent.status()?;
    ensure!(status["source"]["problems"] == json!([]), "{status:#}");
    agent.stop()?;
    Ok(())
}
