//! A thousand random policy flips under traffic: what every version allows loses nothing, what every version forbids leaks
//! nothing. New flows are opened all the time, because a flow that is known would not find a third verdict.
//!
//! The seed is printed; `NETPOL_FLIPS_SEED` plays it again.

mod book;
mod cover;
mod watch;

use std::{
    env,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::ensure;
use netpol_tests::{
    agent::{Agent, Hook},
    lab::{Counts, Lab, Load, Shape, Traffic},
    manifests::World,
    table::{Destination, Family, Party, Port},
};
use serde_json::{Value, json};

use book::{Book, Next};
use cover::{Dice, policy};
use watch::{CLOSED, Watch};

const FLIPS: u32 = 1000;
const PATIENCE: Duration = Duration::from_secs(5);
const SEED: &str = "NETPOL_FLIPS_SEED";

/// The traffic of one lab is enough for the machine.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn world() -> World {
    let mut world = String::new();
    for name in ["a", "b", "c"] {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": name}}});
        world += &format!("---\n{namespace}\n");
    }
    let port = |name: &str, protocol: &str, number: u16| json!({"name": name, "protocol": protocol, "containerPort": number});
    let ports = json!([
        port("http", "TCP", 80),
        port("dns", "UDP", 53),
        port("closed", "TCP", CLOSED),
        port("closed-udp", "UDP", CLOSED)
    ]);
    for (namespace, name, labels) in [
        ("a", "server", json!({"app": "server"})),
        ("a", "public", json!({"app": "public"})),
        ("a", "lounge", json!({"app": "lounge"})),
        ("a", "friend", json!({"app": "friend"})),
        // Allowed wherever `friend` is, and asks for what nobody may have.
        ("a", "prober", json!({"app": "friend"})),
        ("a", "foe", json!({"app": "foe", "foe": "yes"})),
        ("a", "extra", json!({"app": "extra"})),
        ("b", "foe", json!({"app": "foe", "foe": "yes"})),
        ("b", "extra", json!({"app": "extra"})),
        ("c", "friend", json!({"app": "friend"})),
    ] {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name, "labels": labels},
            "spec": {"containers": [{"name": "c", "ports": ports}]}});
        world += &format!("---\n{pod}\n");
    }
    for (name, last) in [("friend", 7), ("foe", 9)] {
        let host = json!({"apiVersion": "lab.netpol-agent/v1", "kind": "Host", "metadata": {"name": name},
            "spec": {"addresses": [format!("10.0.5.{last}"), format!("fd00:5::{last}")],
                "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}});
        world += &format!("---\n{host}\n");
    }
    World::parse(&world)
}

fn party(name: &str) -> Party {
    match name.split_once('/') {
        Some(("host", name)) => Party::host(name),
        Some((namespace, name)) => Party::pod(namespace, name),
        None => Party::pod("a", name),
    }
}

/// Traffic with its name.
type Named = (String, Traffic);

fn start(lab: &Lab, from: &str, to: &str, port: u16, loads: &[Load]) -> anyhow::Result<Vec<Named>> {
    let mut started = Vec::new();
    for load in loads {
        let (port, pause) = match (load, port) {
            (Load::UdpFlow, CLOSED) => (Port::Udp(CLOSED), 5),
            (Load::UdpFlow, _) => (Port::Udp(53), 3),
            (Load::UdpFresh, CLOSED) => (Port::Udp(CLOSED), 10),
            (Load::UdpFresh, _) => (Port::Udp(53), 6),
            (Load::TcpStream, port) => (Port::Tcp(port), 3),
            (Load::TcpConnections, port) => (Port::Tcp(port), 15),
        };
        let to = Destination::new(party(to), port);
        for family in Family::ALL {
            let pause = Duration::from_millis(pause);
            let traffic = Traffic::start(lab, &party(from), &to, family, *load, pause)?;
            started.push((format!("{from} -> {to} by {family}, {load:?}"), traffic));
        }
    }
    Ok(started)
}

/// What every version allows: long-lived flows, and new ones all the time.
fn allowed(lab: &Lab) -> anyhow::Result<Vec<Named>> {
    use Load::{TcpConnections, TcpStream, UdpFlow, UdpFresh};
    let mut all = Vec::new();
    for (from, to, loads) in [
        (
            "friend",
            "server",
            &[UdpFlow, UdpFresh, TcpStream, TcpConnections][..],
        ),
        ("c/friend", "server", &[UdpFresh, TcpConnections]),
        ("host/friend", "server", &[UdpFresh, TcpConnections]),
        ("friend", "public", &[UdpFresh, TcpConnections]),
        ("friend", "lounge", &[UdpFlow, UdpFresh, TcpConnections]),
        (
            "server",
            "friend",
            &[UdpFlow, UdpFresh, TcpStream, TcpConnections],
        ),
        ("server", "c/friend", &[UdpFresh, TcpConnections]),
        ("server", "host/friend", &[UdpFresh]),
    ] {
        all.extend(start(lab, from, to, 80, loads)?);
    }
    for (name, traffic) in &all {
        ensure!(traffic.wait_sent(3, PATIENCE), "no traffic {name}");
    }
    Ok(all)
}

/// What every version forbids.
fn forbidden(lab: &Lab) -> anyhow::Result<Vec<Named>> {
    use Load::{TcpConnections, UdpFlow, UdpFresh};
    let mut all = Vec::new();
    for (from, to) in [
        ("foe", "server"),
        ("b/foe", "server"),
        ("host/foe", "server"),
        ("server", "foe"),
        ("server", "b/foe"),
    ] {
        all.extend(start(
            lab,
            from,
            to,
            80,
            &[UdpFlow, UdpFresh, TcpConnections],
        )?);
    }
    for to in ["server", "public"] {
        all.extend(start(
            lab,
            "prober",
            to,
            CLOSED,
            &[UdpFlow, UdpFresh, TcpConnections],
        )?);
    }
    Ok(all)
}

/// A watch at everybody whom forbidden packets might reach.
fn watches(lab: &Lab) -> anyhow::Result<Vec<(&'static str, Watch)>> {
    let foes = ["foe", "b/foe", "host/foe"].map(party);
    let server = [party("server")];
    let mut watches = Vec::new();
    for (pod, from) in [
        ("server", &foes[..]),
        ("public", &[]),
        ("foe", &server),
        ("b/foe", &server),
    ] {
        watches.push((pod, Watch::start(lab, &party(pod), from)?));
    }
    Ok(watches)
}

/// Stops traffic that was allowed throughout; says what was lost.
fn losses(all: Vec<Named>) -> (Counts, Vec<String>) {
    let mut sum = Counts::default();
    let mut lost = Vec::new();
    let stopped: Vec<(String, Counts)> = thread::scope(|scope| {
        let stopping: Vec<_> = all
            .into_iter()
            .map(|(name, traffic)| scope.spawn(move || (name, traffic.stop())))
            .collect();
        let stopping = stopping.into_iter();
        stopping.filter_map(|counts| counts.join().ok()).collect()
    });
    for (name, counts) in stopped {
        sum.sent += counts.sent;
        sum.arrived += counts.arrived;
        sum.answered += counts.answered;
        sum.retransmitted += counts.retransmitted;
        if counts.lost() > 0 || counts.retransmitted > 0 {
            lost.push(format!("lost: {name}: {counts:?}"));
        }
    }
    (sum, lost)
}

/// Says what leaked of traffic that was forbidden throughout.
fn leaks(all: &[Named], watches: &[(&str, Watch)]) -> (u64, Vec<String>) {
    let mut sent = 0;
    let mut leaked = Vec::new();
    for (name, traffic) in all {
        let counts = traffic.counts();
        sent += counts.sent;
        if counts.arrived > 0 || counts.answered > 0 {
            leaked.push(format!("leaked: {name}: {counts:?}"));
        }
    }
    for (pod, watch) in watches {
        let leaks = watch.leaks();
        if leaks.tcp > 0 || leaks.udp > 0 {
            leaked.push(format!("leaked, as seen at {pod}: {leaks:?}"));
        }
    }
    (sent, leaked)
}

/// A lab with everything open, an agent, and the first policies enforced.
fn prepare(shape: Shape, hook: Hook) -> anyhow::Result<(Lab, Book, Agent)> {
    let lab = Lab::new(shape, world())?;
    // Also makes everybody known to everybody's neighbour tables.
    let open = lab.table()?;
    ensure!(
        open.all_open(),
        "without an agent, {}",
        open.opened().differences(&open)
    );
    let book = Book::open(&lab)?;
    let mut agent = Agent::start(&lab, hook)?;
    agent.wait()?;
    Ok((lab, book, agent))
}

/// Nothing may have been refused: a policy that is not in force tests nothing.
fn content(status: &Value) -> anyhow::Result<()> {
    let problems = &status["source"]["problems"];
    ensure!(
        problems.as_array().is_some_and(Vec::is_empty),
        "the agent does not like the test's own policies: {problems:#}"
    );
    Ok(())
}

fn flip_under_traffic(shape: Shape, hook: Hook) -> anyhow::Result<()> {
    let _alone = alone();
    let clock = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |now| now.as_secs())
    };
    let seed = env::var(SEED)
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(clock);
    println!("{shape}, hook {hook}: {SEED}={seed}");
    let mut dice = Dice::new(seed);
    let (lab, mut book, mut agent) = prepare(shape, hook)?;
    let watches = watches(&lab)?;
    let good = allowed(&lab)?;
    let bad = forbidden(&lab)?;
    let before = agent.status()?["epoch"].as_u64().unwrap_or_default();

    let started = Instant::now();
    let (mut waits, mut bursts) = (0, 0);
    let mut left = 0;
    for _ in 0..FLIPS {
        if left == 0 {
            left = dice.pick(&[1, 1, 1, 1, 2, 2, 5, 20]);
            bursts += 1;
            if dice.once_in(6) {
                agent.wait()?;
                waits += 1;
            } else {
                thread::sleep(Duration::from_millis(dice.below(25) as u64));
            }
        }
        left -= 1;
        if book.flip(&mut dice)? == Next::Wait {
            agent.wait()?;
            waits += 1;
        }
    }
    agent.wait()?;
    let took = started.elapsed();

    let status = agent.status()?;
    let epochs = status["epoch"].as_u64().unwrap_or_default() - before;
    let (sent, mut wrong) = leaks(&bad, &watches);
    let (counts, lost) = losses(good);
    wrong.extend(lost);
    println!(
        "{FLIPS} flips in {bursts} bursts, {waits} of them awaited, gave {epochs} epochs in {:.1} s; allowed {counts:?}, \
         forbidden {sent} sent",
        took.as_secs_f64()
    );
    ensure!(
        wrong.is_empty(),
        "{shape}, hook {hook}, {SEED}={seed}:\n{}\n\nstatus:\n{}",
        wrong.join("\n"),
        agent.status_text()?
    );
    content(&status)?;
    for (pod, watch) in &watches {
        ensure!(watch.seen() > 0, "the watch at {pod} saw nothing at all");
    }
    ensure!(
        epochs > u64::from(FLIPS) / 10,
        "only {epochs} changes reached the kernel: the flips were not flips"
    );
    agent.stop()?;
    Ok(())
}

#[test]
fn flips_on_a_bridge_with_tcx() -> anyhow::Result<()> {
    flip_under_traffic(Shape::Bridge { br_netfilter: true }, Hook::Tcx)
}

#[test]
fn flips_routed_with_clsact() -> anyhow::Result<()> {
    flip_under_traffic(Shape::Routed, Hook::Clsact)
}

/// The same traffic, the same counting, and one flip that does forbid and one that does allow.
#[test]
fn one_wrong_flip_is_counted() -> anyhow::Result<()> {
    let _alone = alone();
    let (lab, mut book, mut agent) = prepare(Shape::Routed, Hook::Auto)?;
    let watches = watches(&lab)?;
    let good = allowed(&lab)?;
    book.only(
        "server",
        policy("server-0", "server", Some(Vec::new()), Some(Vec::new())),
    )?;
    agent.wait()?;
    // Several times as long as the slowest load rests between two packets: each has to meet the closed door.
    thread::sleep(Duration::from_millis(200));
    let anybody = || Some(vec![json!({})]);
    book.only("server", policy("server-0", "server", anybody(), anybody()))?;
    agent.wait()?;
    let (_, lost) = losses(good);
    let of_server = |line: &&String| line.contains("server");
    let lines = lost.iter().filter(of_server).count();
    // Eight loads to the server and seven from it, each by both families.
    ensure!(
        lines == 30,
        "the server was shut for a moment; {lines} of 30 saw it:\n{}",
        lost.join("\n")
    );
    ensure!(
        lost.len() == lines,
        "others lost something too:\n{}",
        lost.join("\n")
    );

    let bad = forbidden(&lab)?;
    for (name, traffic) in &bad {
        ensure!(traffic.wait_sent(3, PATIENCE), "no traffic {name}");
    }
    thread::sleep(Duration::from_millis(100));
    let (_, leaked) = leaks(&bad, &watches);
    // Each load by both families, but those to `public`, and the watches at the server and at both of its foes.
    let lines = bad.len() - 6 + 3;
    ensure!(
        leaked.len() == lines,
        "the server was open; {} of {lines} saw it:\n{}",
        leaked.len(),
        leaked.join("\n")
    );
    for (pod, watch) in watches.iter().filter(|(pod, _)| *pod != "public") {
        let leaks = watch.leaks();
        ensure!(
            leaks.tcp > 0 && leaks.udp > 0,
            "{pod} was reached, but {leaks:?}"
        );
    }
    agent.stop()?;
    Ok(())
}
