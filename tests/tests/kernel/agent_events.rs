//! Dropped packets are told, with names, and a flood of them takes nothing else down.

use std::{
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use netpol_tests::{
    agent::{Agent, Hook},
    lab::{Lab, Shape},
    manifests::World,
    story::{self, FRIENDS, FRIENDS_ONLY, Files, THREE_PODS, expect, status_until},
    table::{Family, Party},
};

const BRIDGE: Shape = Shape::Bridge { br_netfilter: true };
const FLOOD: u64 = 5_000;

fn drops(agent: &Agent) -> Vec<String> {
    let log = agent.log();
    let lines = log.lines().filter(|line| line.contains("dropped"));
    lines.map(str::to_owned).collect()
}

/// Waits for a line about a drop that has all of these words.
fn told(agent: &Agent, words: &[&str]) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        let lines = drops(agent);
        if lines
            .iter()
            .any(|l| words.iter().all(|word| l.contains(word)))
        {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    bail!("no line tells {words:?}:\n{}", drops(agent).join("\n"))
}

#[test]
fn a_drop_is_told_with_the_names_of_both_pods() -> anyhow::Result<()> {
    let lab = Lab::new(BRIDGE, World::parse(THREE_PODS))?;
    Files::of(&lab).write("web.yaml", FRIENDS)?;
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    agent.wait()?;
    expect(&lab, "with one policy", FRIENDS_ONLY)?;

    for family in Family::ALL {
        let from = lab.address(&Party::pod("a", "other"), family)?;
        let source = format!("source=\"{from}\"");
        let words = [
            "pod=\"a/web\"",
            "direction=ingress",
            "peer=\"a/other\"",
            "reason=\"denied\"",
            "protocol=\"TCP\"",
            "destination_port=80",
            "tcp_flags=\"SYN\"",
            "web",
            &source,
        ];
        told(&agent, &words)?;
    }
    let lines = drops(&agent);
    ensure!(
        !lines.iter().any(|line| line.contains("a/friend")),
        "what passes is never told:\n{}",
        lines.join("\n")
    );
    agent.stop()?;
    Ok(())
}

#[test]
fn a_flood_of_drops_is_counted_and_the_agent_goes_on() -> anyhow::Result<()> {
    let lab = Lab::new(BRIDGE, World::parse(THREE_PODS))?;
    let files = Files::of(&lab);
    files.write("web.yaml", FRIENDS)?;
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    agent.wait()?;
    let web = lab.address(&Party::pod("a", "web"), Family::V4)?;
    let flood = move || async move {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for number in 0..FLOOD {
            // Port by port: each is something new for the log.
            let port = 1024 + (number % 2000) as u16;
            socket.send_to(b"flood", SocketAddr::new(web, port))?;
        }
        std::io::Result::Ok(())
    };
    lab.station(&Party::pod("a", "other"))?.worker.run(flood)?;

    let dropped = |status: &serde_json::Value| -> anyhow::Result<u64> {
        let web = story::pod(status, "a", "web")?;
        let counts = web["packets"].as_array().context("packets")?;
        let dropped = counts.iter().filter(|count| count["dropped"] == true);
        Ok(dropped.filter_map(|count| count["packets"].as_u64()).sum())
    };
    let status = status_until(&agent, "the flood is counted", |status| {
        dropped(status).is_ok_and(|packets| packets >= FLOOD)
            && status["drops"]["overBudget"].as_u64() > Some(0)
    })?;
    let lost = &status["drops"];
    ensure!(
        lost["bufferFull"] == 0 && lost["unread"] == 0,
        "what has a record is read: {status:#}"
    );
    let text = agent.status_text()?;
    ensure!(text.contains("over budget"), "{text}");
    let lines = drops(&agent).len();
    ensure!(lines < 100, "{lines} lines about {FLOOD} packets");

    // Told from time to time, and nothing else suffers.
    told(&agent, &["more packets", "over_budget"])?;
    expect(&lab, "after the flood", FRIENDS_ONLY)?;
    files.delete("web.yaml")?;
    agent.wait()?;
    agent.stop()?;
    Ok(())
}
