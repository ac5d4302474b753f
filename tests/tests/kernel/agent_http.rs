//! Metrics and health, asked for as a kubelet and a Prometheus do, and as those who mean no good.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use netpol_tests::{
    agent::{
        Agent, Console, Hook,
        http::{self, exchange, get},
    },
    kernel,
    lab::{Lab, Shape, Station},
    manifests::{DocumentId, World},
    story::{ALL_OPEN, FRIENDS, FRIENDS_ONLY, Files, THREE_PODS, expect},
    table::{Destination, Family, Party, Port},
};
use tokio::net::TcpStream;

/// Refused: the block has no length.
const BAD: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: a, name: bad}
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0}}]}]}
";

const PORT: u16 = 10741;
const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), PORT);

/// Asks until the answer is this one: the agent serves a little after it has started.
fn until(from: &Station, path: &str, wanted: impl Fn(u16, &str) -> bool) -> anyhow::Result<String> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let last = get(from, LOCAL, path);
        match last {
            Ok((status, body)) if wanted(status, &body) => return Ok(body),
            _ if Instant::now() > end => bail!("{path} is not as wanted after 20 s: {last:?}"),
            _ => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn scrape(lab: &Lab) -> anyhow::Result<BTreeMap<String, f64>> {
    http::scrape(lab.node(), LOCAL)
}

fn value(samples: &BTreeMap<String, f64>, name: &str) -> anyhow::Result<f64> {
    let value = samples.get(name);
    value
        .copied()
        .with_context(|| format!("there is no {name}: {samples:#?}"))
}

fn packets(samples: &BTreeMap<String, f64>, verdict: &str) -> f64 {
    let verdict = format!("verdict=\"{verdict}\"");
    let all = samples.iter();
    all.filter(|(name, _)| {
        name.starts_with("netpol_agent_packets_total{") && name.contains(&verdict)
    })
    .map(|(_, value)| value)
    .sum()
}

fn start(lab: &Lab, address: &str) -> anyhow::Result<Agent> {
    Ok(Agent::start_with(
        lab,
        Hook::Auto,
        &["--metrics-address", address],
    )?)
}

fn stage() -> anyhow::Result<Lab> {
    let lab = Lab::new(Shape::Routed, World::parse(THREE_PODS))?;
    Files::of(&lab).write("web.yaml", FRIENDS)?;
    Ok(lab)
}

#[test]
fn metrics_tell_what_the_agent_does() -> anyhow::Result<()> {
    let mut lab = stage()?;
    let mut agent = start(&lab, "127.0.0.1:10741")?;
    agent.wait()?;
    until(lab.node(), "/readyz", |status, body| {
        (status, body) == (200, "ok\n")
    })?;
    let before = scrape(&lab)?;
    for (name, expected) in [
        ("netpol_agent_ready", 1.0),
        ("netpol_agent_source_complete", 1.0),
        ("netpol_agent_policies", 1.0),
        ("netpol_agent_pods", 3.0),
        ("netpol_agent_pods_without_interface", 0.0),
        ("netpol_agent_endpoints", 3.0),
        (
            "netpol_agent_endpoints_isolated{direction=\"ingress\"}",
            1.0,
        ),
        ("netpol_agent_endpoints_isolated{direction=\"egress\"}", 0.0),
        // The lab's uplink is a veth, too.
        ("netpol_agent_devices{kind=\"pod\"}", 4.0),
        ("netpol_agent_devices_missing", 0.0),
        ("netpol_agent_pending_edits", 0.0),
        ("netpol_agent_table_entries{table=\"ENDPOINTS\"}", 3.0),
        ("netpol_agent_enforcement_failures_total", 0.0),
        ("netpol_agent_enforcement_duration_seconds_count", 0.0),
    ] {
        let found = value(&before, name)?;
        ensure!(found == expected, "{name} is {found}, not {expected}");
    }
    ensure!(value(&before, "process_resident_memory_bytes")? > 1e6);
    ensure!(value(&before, "process_cpu_seconds_total")? > 0.0);

    expect(&lab, "while it is scraped", FRIENDS_ONLY)?;
    let after = scrape(&lab)?;
    for verdict in ["pass", "drop"] {
        ensure!(
            packets(&after, verdict) > packets(&before, verdict),
            "{verdict}: {after:#?}"
        );
    }
    let dropped = |samples: &BTreeMap<String, f64>, direction| {
        let name = "netpol_agent_packets_total{direction=\"DIRECTION\",verdict=\"drop\",reason=\"denied\"}";
        value(samples, &name.replace("DIRECTION", direction))
    };
    ensure!(dropped(&after, "ingress")? > dropped(&before, "ingress")?);
    ensure!(
        dropped(&after, "egress")? == 0.0,
        "nothing was denied on its way out of a pod"
    );

    // A change that changes something is timed; soon it is not waited for.
    let second = FRIENDS.replace("name: web", "name: second");
    Files::of(&lab).write("second.yaml", &second.replace("friend", "enemy"))?;
    agent.wait()?;
    // What the loop has said is good for half a second.
    until(lab.node(), "/metrics", |_, text| {
        text.contains("netpol_agent_policies 2\n")
    })?;
    let changed = scrape(&lab)?;
    ensure!(value(&changed, "netpol_agent_enforcement_duration_seconds_count")? > 0.0);
    ensure!(value(&changed, "netpol_agent_last_enforcement_timestamp_seconds")? > 1.7e9);
    ensure!(value(&changed, "netpol_agent_enforcement_delay_seconds")? == 0.0);
    Files::of(&lab).write("bad.yaml", BAD)?;
    until(lab.node(), "/metrics", |_, text| {
        text.contains("netpol_agent_source_problems{type=\"refused\"} 1\n")
    })?;
    Files::of(&lab).delete("bad.yaml")?;

    // Pods come and go, agents too: a counter never falls.
    lab.delete(&DocumentId::pod("a", "web"))?;
    agent.wait()?;
    until(lab.node(), "/metrics", |_, text| {
        text.contains("netpol_agent_endpoints 2\n")
    })?;
    let without = scrape(&lab)?;
    for verdict in ["pass", "drop"] {
        ensure!(
            packets(&without, verdict) >= packets(&changed, verdict),
            "{verdict}: what a pod's interface has counted stays when it goes"
        );
    }
    agent.kill()?;
    let mut agent = start(&lab, "127.0.0.1:10741")?;
    agent.wait()?;
    until(lab.node(), "/readyz", |status, _| status == 200)?;
    let again = scrape(&lab)?;
    ensure!(
        packets(&again, "drop") >= packets(&without, "drop"),
        "{again:#?}"
    );
    agent.stop()?;
    Ok(())
}

/// Ready is: everything that was there is enforced. What is not, is told.
#[test]
fn an_agent_that_cannot_enforce_is_alive_and_not_ready() -> anyhow::Result<()> {
    let lab = stage()?;
    let mut agent = start(&lab, "127.0.0.1:10741")?;
    agent.wait()?;
    until(lab.node(), "/readyz", |status, _| status == 200)?;
    // A policy that cannot be used is no reason to take the agent for broken.
    Files::of(&lab).write("bad.yaml", BAD)?;
    ensure!(agent.wait().is_err(), "one policy is refused");
    let (status, _) = get(lab.node(), LOCAL, "/readyz")?;
    ensure!(status == 200);
    agent.stop()?;

    let mut agent = start(&lab, "127.0.0.1:10741")?;
    until(lab.node(), "/readyz", |status, _| status == 200)
        .context("nor a reason not to become ready")?;
    agent.stop()?;
    Files::of(&lab).delete("bad.yaml")?;

    let pin = lab
        .run_dir()
        .bpf()
        .join(format!("v{}", netpol_common::map::SCHEMA));
    kernel::freeze(&pin.join(netpol_common::map::EPOCH))?;
    let mut agent = start(&lab, "127.0.0.1:10741")?;
    let told = until(lab.node(), "/readyz", |status, body| {
        status == 503 && body.contains("table EPOCH")
    })?;
    ensure!(told.contains("it is tried again"), "{told}");
    let (status, body) = get(lab.node(), LOCAL, "/healthz")?;
    ensure!((status, body.as_str()) == (200, "ok\n"), "{status}: {body}");
    let samples = scrape(&lab)?;
    ensure!(value(&samples, "netpol_agent_ready")? == 0.0);
    until(lab.node(), "/metrics", |_, text| {
        !text.contains("netpol_agent_enforcement_failures_total 0\n")
    })?;
    expect(&lab, "what was pinned stays in force", FRIENDS_ONLY)?;
    agent.stop()?;
    Ok(())
}

/// Only a restart brings back what was taken away: the kubelet has to see it.
#[test]
fn an_agent_whose_pins_were_taken_away_is_not_healthy() -> anyhow::Result<()> {
    let lab = stage()?;
    let mut agent = start(&lab, "127.0.0.1:10741")?;
    agent.wait()?;
    until(lab.node(), "/healthz", |status, body| {
        (status, body) == (200, "ok\n")
    })?;
    let bpf = lab.run_dir().bpf().display().to_string();
    Console::new(&lab)?.run(&["cleanup", "--force", "--bpf-dir", &bpf])?;
    expect(&lab, "after the cleanup", ALL_OPEN)?;
    let told = until(lab.node(), "/healthz", |status, _| status == 503)?;
    ensure!(told.contains("has been removed"), "{told}");
    agent.stop()?;
    let mut agent = start(&lab, "127.0.0.1:10741")?;
    agent.wait()?;
    until(lab.node(), "/healthz", |status, _| status == 200)?;
    expect(&lab, "after the restart", FRIENDS_ONLY)?;
    agent.stop()?;
    Ok(())
}

/// Whoever holds all places, or says nothing, or too much, disturbs neither the kubelet nor the agent.
#[test]
fn clients_that_mean_no_good_disturb_nobody() -> anyhow::Result<()> {
    let lab = stage()?;
    let mut agent = start(&lab, "0.0.0.0:10741")?;
    agent.wait()?;
    until(lab.node(), "/readyz", |status, _| status == 200)?;
    let node = lab.address(&Party::Node, Family::V4)?;
    let there = SocketAddr::new(node, PORT);
    let pod = lab.station(&Party::pod("a", "other"))?;
    let (status, _) = get(pod, there, "/metrics").context("a pod reaches its own node")?;
    ensure!(status == 200);

    // A hundred at once that say nothing.
    let held = pod.worker.run(move || async move {
        let mut held = Vec::new();
        for _ in 0..100 {
            held.push(TcpStream::connect(there).await?);
        }
        std::io::Result::Ok(held)
    })?;
    for _ in 0..10 {
        let (status, body) = get(lab.node(), there, "/healthz").context("from the node itself")?;
        ensure!(status == 200, "{status}: {body}");
    }
    let refused = get(pod, there, "/metrics");
    ensure!(
        refused.is_err(),
        "all places for others are taken: {refused:?}"
    );
    Files::of(&lab).write("web.yaml", netpol_tests::story::CLOSED)?;
    agent.wait().context("the agent goes on")?;
    // Those who say nothing are hung up on, without a word from them.
    let end = Instant::now() + Duration::from_secs(30);
    while get(pod, there, "/metrics").is_err() {
        ensure!(Instant::now() < end, "silent clients keep their places");
        thread::sleep(Duration::from_millis(200));
    }
    drop(held);

    for (request, expected) in [
        (
            "POST /metrics HTTP/1.1\r\nHost: n\r\nContent-Length: 2\r\n\r\nhi".to_owned(),
            "405",
        ),
        ("GET / HTTP/1.1\r\nHost: n\r\n\r\n".to_owned(), "404"),
        (
            "GET /metrics/../healthz HTTP/1.1\r\nHost: n\r\n\r\n".to_owned(),
            "404",
        ),
        (
            "HEAD /healthz HTTP/1.1\r\nHost: n\r\n\r\n".to_owned(),
            "200",
        ),
        (
            format!("GET /{} HTTP/1.1\r\nHost: n\r\n\r\n", "a".repeat(20_000)),
            "4",
        ),
        ("nonsense\r\n\r\n".to_owned(), "400"),
    ] {
        // What is too long may be hung up on while it is still being sent.
        let answer = exchange(lab.node(), there, request.clone()).unwrap_or_default();
        let line = answer.lines().next().unwrap_or_default();
        let shown: String = request.chars().take(60).collect();
        ensure!(
            line.starts_with(&format!("HTTP/1.1 {expected}"))
                || (expected == "4" && line.is_empty()),
            "{shown}: {line}"
        );
    }
    lab.try_once(
        &Party::pod("a", "friend"),
        &Destination::new(Party::pod("a", "web"), Port::Tcp(80)),
        Family::V4,
    )?;
    expect(&lab, "afterwards", netpol_tests::story::ALL_DENIED)?;
    agent.stop()?;
    Ok(())
}

/// A port that is taken keeps metrics from being served, and nothing else.
#[test]
fn an_address_that_is_taken_is_told_and_tried_again() -> anyhow::Result<()> {
    let lab = stage()?;
    let squatter = lab.node().worker.run(|| async {
        // With SO_REUSEADDR, as the agent's.
        tokio::net::TcpListener::bind(LOCAL).await
    })?;
    let mut agent = start(&lab, "127.0.0.1:10741")?;
    agent.wait()?;
    expect(&lab, "without metrics", FRIENDS_ONLY)?;
    ensure!(
        agent.log().contains("choose another --metrics-address"),
        "{}",
        agent.log()
    );
    lab.node().worker.run(move || async move { drop(squatter) });
    until(lab.node(), "/readyz", |status, _| status == 200)?;
    agent.stop()?;
    Ok(())
}
