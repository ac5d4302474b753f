//! The API server goes, stands still, forgets, and comes back. What is enforced holds, and on its return only differences are
//! written.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use netpol_tests::{
    agent::{Agent, Console, Hook, http},
    lab::{Connection, Load, Side, Traffic},
    manifests::DocumentId,
    story::{ALL_DENIED, CLOSED, FRIENDS, FRIENDS_ONLY},
    table::{Family, Port},
};
use serde_json::Value;

use crate::cluster::{
    Cluster, PATIENCE, SILENCE, friend, is_away, missing, other, status_until, web,
};

const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10741);

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn epoch(status: &Value) -> Option<u64> {
    status["epoch"].as_u64()
}

fn back(status: &Value) -> bool {
    !is_away(status)
}

#[test]
fn what_is_enforced_holds_while_the_server_is_away() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    cluster.put(FRIENDS)?;
    let mut agent = cluster.agent_with(&["--metrics-address", &METRICS.to_string()])?;
    agent.wait()?;
    let lab = &cluster.lab;
    let metric = |name: &str| -> anyhow::Result<f64> {
        let samples = http::scrape(lab.node(), METRICS)?;
        let value = samples.get(&format!("netpol_agent_source_{name}"));
        value
            .copied()
            .with_context(|| format!("there is no {name}: {samples:#?}"))
    };
    ensure!(metric("connected")? == 1.0 && metric("away_since_timestamp_seconds")? == 0.0);
    let connection = Connection::open(lab, &friend(), &web(Port::Tcp(80)), Family::V4)?;
    let pause = Duration::from_millis(10);
    let http = web(Port::Tcp(80));
    let allowed = Traffic::start(lab, &friend(), &http, Family::V6, Load::TcpStream, pause)?;
    let dns = web(Port::Udp(53));
    let forbidden = Traffic::start(lab, &other(), &dns, Family::V4, Load::UdpFlow, pause)?;
    ensure!(allowed.wait_sent(10, PATIENCE) && forbidden.wait_sent(10, PATIENCE));
    let before = agent.status()?;
    ensure!(back(&before), "{before:#}");

    let stopped = now();
    cluster.control_plane.stop_server()?;
    let status = status_until(&agent, "the server is missed", is_away)?;
    let since = status["source"]["away"]["since"].as_u64();
    ensure!(
        since.is_some_and(|since| (stopped..=now()).contains(&since)),
        "away since then, and that is {stopped} to {}: {status:#}",
        now()
    );
    ensure!(status["enforcing"] == true, "{status:#}");
    let told = metric("away_since_timestamp_seconds")?;
    ensure!(
        since.is_some_and(|since| (told - since as f64).abs() <= 1.0),
        "the metric says {told}, and the status {since:?}"
    );
    ensure!(metric("connected")? == 0.0);
    let text = agent.status_text()?;
    ensure!(
        text.contains("away") || text.contains("cannot be reached"),
        "{text}"
    );
    ensure!(agent.log().contains("172.18.0.1:6443"), "{}", agent.log());
    cluster.expect("without a server", FRIENDS_ONLY)?;
    ensure!(
        connection.ping_pong(PATIENCE),
        "an allowed connection ended"
    );

    // Longer than the longest pause between two attempts.
    std::thread::sleep(Duration::from_secs(6));
    let later = agent.status()?;
    ensure!(
        later["source"]["away"]["since"] == status["source"]["away"]["since"],
        "attempts that fail change nothing about since when: {later:#}"
    );
    cluster.expect("some attempts later", FRIENDS_ONLY)?;

    cluster.control_plane.start_server()?;
    agent.wait()?;
    let after = status_until(&agent, "the server is back", back)?;
    ensure!(
        epoch(&after) == epoch(&before),
        "nothing has changed, so nothing is written: {after:#}"
    );
    ensure!(metric("connected")? == 1.0 && metric("away_since_timestamp_seconds")? == 0.0);
    cluster.expect("with the server again", FRIENDS_ONLY)?;
    ensure!(
        connection.ping_pong(PATIENCE),
        "an allowed connection ended"
    );
    let counts = forbidden.stop();
    ensure!(counts.arrived == 0, "forbidden traffic leaked: {counts:?}");
    let counts = allowed.stop();
    ensure!(
        counts.lost() == 0 && counts.retransmitted == 0,
        "allowed traffic was lost: {counts:?}"
    );

    // And it is listened to.
    cluster.put(CLOSED)?;
    agent.wait()?;
    cluster.expect("after a change on the server that came back", ALL_DENIED)?;
    agent.stop()?;
    Ok(())
}

/// Does this while the agent sees nothing: it stands still, and its connections have been closed before anything happens. What
/// has come by an open connection it would read when it goes on.
fn absent(
    cluster: &mut Cluster,
    agent: &Agent,
    happens: impl FnOnce(&mut Cluster) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    agent.freeze();
    cluster.control_plane.kill_server()?;
    cluster.control_plane.start_server()?;
    let happened = happens(cluster);
    agent.thaw();
    happened
}

/// One change costs as much after an absence as it does in the middle of a watch: what was known is not written again.
#[test]
fn on_the_return_only_differences_are_written() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    cluster.put(FRIENDS)?;
    let mut agent = cluster.agent(Hook::Auto)?;
    agent.wait()?;
    let epoch =
        |agent: &Agent| -> anyhow::Result<u64> { Ok(epoch(&agent.status()?).unwrap_or_default()) };
    let first = epoch(&agent)?;
    cluster.put(CLOSED)?;
    agent.wait()?;
    let usual = epoch(&agent)? - first;
    ensure!(usual > 0, "a change raises the epoch");
    cluster.put(FRIENDS)?;
    agent.wait()?;

    let before = epoch(&agent)?;
    absent(&mut cluster, &agent, |cluster| cluster.put(CLOSED))?;
    agent.wait()?;
    cluster.expect("after a change that was not seen", ALL_DENIED)?;
    let after = epoch(&agent)? - before;
    ensure!(
        after == usual,
        "the same change raised the epoch by {usual}, and by {after} now"
    );
    agent.stop()?;
    Ok(())
}

/// The versions since which the agent wants to hear what has changed are forgotten, in etcd and in the server's memory.
#[test]
fn a_server_that_has_forgotten_the_past_is_read_anew() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    cluster.put(FRIENDS)?;
    let mut agent = cluster.agent(Hook::Auto)?;
    agent.wait()?;
    let revision = cluster.control_plane.revision()?;

    absent(&mut cluster, &agent, |cluster| {
        cluster.delete(&DocumentId::pod("a", "other"))?;
        cluster.put(CLOSED)?;
        cluster.control_plane.kill_server()?;
        cluster.control_plane.compact()?;
        cluster.control_plane.start_server()?;
        let watched = cluster.control_plane.watch_policies(&revision)?;
        ensure!(
            watched.contains("410"),
            "the server does not know any more what came after {revision}: {watched}"
        );
        Ok(())
    })?;
    agent.wait()?;
    let status = status_until(&agent, "the server is back", back)?;
    let pods = status["pods"].as_array().map(Vec::len);
    ensure!(
        pods == Some(2),
        "a pod went unseen, and is forgotten: {status:#}"
    );
    cluster.expect(
        "after everything was listed again",
        "a/web TCP/80\n  denied: a/friend\n",
    )?;
    cluster.put(FRIENDS)?;
    agent.wait()?;
    cluster.expect("and the watch goes on", "a/web TCP/80\n  open: a/friend\n")?;
    agent.stop()?;
    Ok(())
}

#[test]
fn an_agent_that_starts_without_its_server_keeps_what_is_enforced() -> anyhow::Result<()> {
    for hook in [Hook::Tcx, Hook::Clsact] {
        let mut cluster = Cluster::of_three_pods()?;
        cluster.put(FRIENDS)?;
        let mut agent = cluster.agent(hook)?;
        agent.wait()?;
        let connection =
            Connection::open(&cluster.lab, &friend(), &web(Port::Tcp(80)), Family::V6)?;
        agent.kill()?;
        cluster.put(CLOSED)?;
        cluster.control_plane.kill_server()?;

        let mut agent = cluster.agent(hook)?;
        let status = status_until(&agent, "there is no server", is_away)?;
        ensure!(status["enforcing"] == false, "{status:#}");
        let said = Console::new(&cluster.lab)?.wait("2s")?;
        missing(&said, &["API server", "172.18.0.1"])?;
        cluster.expect(
            &format!("{hook}, with no server at the start"),
            FRIENDS_ONLY,
        )?;
        ensure!(
            connection.ping_pong(PATIENCE),
            "{hook}: an allowed connection ended"
        );

        cluster.control_plane.start_server()?;
        agent.wait()?;
        cluster.expect(&format!("{hook}, with the server"), ALL_DENIED)?;
        for side in [Side::Client, Side::Server] {
            ensure!(
                !connection.send(side, SILENCE),
                "{hook}: a connection without a permission goes on, sent by the {side:?}"
            );
        }
        agent.stop()?;
    }
    Ok(())
}

/// Connections are open, and nothing comes: only somebody who asks can tell.
#[test]
fn a_server_that_stands_still_is_noticed_and_waited_for() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    cluster.put(FRIENDS)?;
    let mut agent = cluster.agent(Hook::Auto)?;
    agent.wait()?;
    let before = agent.status()?;
    let console = Console::new(&cluster.lab)?;

    let stopped = now();
    cluster.control_plane.freeze_server()?;
    missing(&console.wait("2s")?, &["API server"])?;
    cluster.expect("with a server that stands still", FRIENDS_ONLY)?;
    let _asks = console.begin_wait("30s")?;
    let status = status_until(&agent, "the server gives no answer", is_away)?;
    let since = status["source"]["away"]["since"].as_u64();
    ensure!(since.is_some_and(|since| since >= stopped), "{status:#}");
    cluster.expect("when that is noticed", FRIENDS_ONLY)?;

    cluster.control_plane.thaw_server()?;
    agent.wait_for(Duration::from_secs(60))?;
    let after = status_until(&agent, "the server is back", back)?;
    ensure!(
        epoch(&after) == epoch(&before),
        "nothing is written: {after:#}"
    );
    cluster.put(CLOSED)?;
    agent.wait()?;
    cluster.expect("after a change on the server that goes on", ALL_DENIED)?;
    agent.stop()?;
    Ok(())
}
