//! Nothing is programmed before everything is known.

use std::time::Duration;

use anyhow::ensure;
use netpol_tests::{
    agent::Hook,
    lab::{Load, Shape, Traffic},
    manifests::World,
    story::{ALL_DENIED, ALL_OPEN, CLOSED, THREE_PODS},
    table::{Family, Party, Port},
};
use serde_json::json;

use crate::cluster::{Cluster, PATIENCE, is_away, status_until, web};

#[test]
fn a_server_that_is_not_there_at_first_is_waited_for() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    cluster.put(CLOSED)?;
    cluster.control_plane.stop_server()?;
    let mut agent = cluster.agent(Hook::Auto)?;
    let status = status_until(&agent, "there is no server", is_away)?;
    ensure!(
        status["enforcing"] == false && status["source"]["complete"] == false,
        "{status:#}"
    );
    cluster.expect("without a server", ALL_OPEN)?;
    cluster.control_plane.start_server()?;
    agent.wait()?;
    let status = agent.status()?;
    ensure!(status["enforcing"] == true, "{status:#}");
    cluster.expect("when it is there", ALL_DENIED)?;
    agent.stop()?;
    Ok(())
}

/// More than fit into one part of a list.
const STRANGERS: usize = 1100;

/// The pod that a policy selects comes early in the list, the one that it allows comes last: an agent that programmed what it
/// knows of a part would close what the rest allows. Live traffic shows it.
fn a_long_list_is_used_when_it_is_complete(flags: &[&str]) -> anyhow::Result<()> {
    let mut cluster = Cluster::with_flags(Shape::Routed, World::parse(THREE_PODS), flags)?;
    let strangers = (0..STRANGERS).map(|nth| {
        let address = format!("10.244.{}.{}", 100 + nth / 250, 1 + nth % 250);
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": "a", "name": format!("x{nth:04}")},
            "spec": {"nodeName": "elsewhere", "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
        })
    });
    cluster.control_plane.put_all(strangers.collect())?;
    cluster.put(
        "
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: zoe, labels: {role: last}}
spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: a, name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {role: last}}}]}]
",
    )?;
    let zoe = Party::pod("a", "zoe");
    let pause = Duration::from_millis(2);
    let http = web(Port::Tcp(80));
    let traffic = Traffic::start(
        &cluster.lab,
        &zoe,
        &http,
        Family::V4,
        Load::TcpStream,
        pause,
    )?;
    ensure!(traffic.wait_sent(10, PATIENCE));
    let mut agent = cluster.agent(Hook::Auto)?;
    agent.wait()?;
    cluster.expect(
        "with many pods",
        "a/web TCP/80\n  open: a/zoe\n  denied: a/friend a/other\n",
    )?;
    let counts = traffic.stop();
    ensure!(
        counts.lost() == 0 && counts.retransmitted == 0,
        "what is allowed was closed for a moment: {counts:?}"
    );
    agent.stop()?;
    Ok(())
}

#[test]
fn a_long_list_in_a_stream() -> anyhow::Result<()> {
    a_long_list_is_used_when_it_is_complete(&[])
}

/// Servers before 1.34 have no streams of lists, and others can be told not to.
#[test]
fn a_long_list_in_pages() -> anyhow::Result<()> {
    a_long_list_is_used_when_it_is_complete(&["--feature-gates=WatchList=false"])
}
