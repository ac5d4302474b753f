//! A flow that the tables have lost, or never had, is found again where somebody knows who opened it; and only there.

use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use aya::maps::{HashMap, Map, MapData};
use netpol_common::{Flow, FlowKey, map};
use netpol_tests::{
    agent::{Agent, Hook},
    lab::{Connection, Dialogue, Lab, Shape, Side},
    manifests::World,
    story::{FRIENDS, Files, THREE_PODS, log_end},
    table::{Destination, Family, Party, Port},
};
use socket2::{Domain, Protocol, Socket, Type};

/// Long enough for TCP to send a segment again a few times, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(8);
const SILENCE: Duration = Duration::from_millis(800);

const SHAPES: [Shape; 2] = [Shape::Bridge { br_netfilter: true }, Shape::Routed];

/// Turns connection tracking on, as kube-proxy's rules do.
const TRACKING: &str = "
table inet tracking {
  chain forward {
    type filter hook forward priority 0
    ct state established accept
  }
}
";

/// Everybody is isolated both ways; only `a/friend` may open something, to `a/web`.
const ONLY_FRIEND_TO_WEB: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: a, name: nothing}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: a, name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: a, name: friend}
spec:
  podSelector: {matchLabels: {role: friend}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]
";

/// `a/web` sends nothing, and hears everybody.
const MUTE: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: a, name: mute}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}
";

fn pod(name: &str) -> Party {
    Party::pod("a", name)
}

fn web(port: Port) -> Destination {
    Destination::new(pod("web"), port)
}

fn lab(shape: Shape, tracking: bool) -> anyhow::Result<Lab> {
    let lab = Lab::new(shape, World::parse(THREE_PODS))?;
    if tracking {
        lab.node().run_program("nft", &["-f", "-"], TRACKING)?;
    }
    Ok(lab)
}

/// Takes the flows of a pod, or of all, out of the pinned tables. Returns how many there were.
fn forget(lab: &Lab, of: Option<&Party>) -> anyhow::Result<usize> {
    let only = of.map(|party| lab.device(party)).transpose()?;
    let mut gone = 0;
    for table in [map::FLOWS, map::OPENING] {
        let pin = lab
            .run_dir()
            .bpf()
            .join(format!("v{}", map::SCHEMA))
            .join(table);
        let mut flows: HashMap<_, FlowKey, Flow> =
            Map::from_map_data(MapData::from_pin(pin)?)?.try_into()?;
        let keys: Vec<FlowKey> = flows.keys().filter_map(Result::ok).collect();
        for key in keys {
            if only.is_none_or(|device| device == key.interface) && flows.remove(&key).is_ok() {
                gone += 1;
            }
        }
    }
    Ok(gone)
}

fn repaired(agent: &Agent) -> anyhow::Result<u64> {
    agent.status()?["drops"]["repaired"]
        .as_u64()
        .context("the status counts repairs")
}

/// Connections that rest, each twice; their flows are evicted; each side is once the first to speak.
fn go_on(shape: Shape, tracking: bool, of: Option<&Party>) -> anyhow::Result<()> {
    let lab = lab(shape, tracking)?;
    Files::of(&lab).write("policies.yaml", ONLY_FRIEND_TO_WEB)?;
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    agent.wait()?;
    for family in Family::ALL {
        for first in [Side::Client, Side::Server] {
            let connection = Connection::open(&lab, &pod("friend"), &web(Port::Tcp(80)), family)?;
            ensure!(connection.ping_pong(PATIENCE), "{shape}, {family}: before");
            let before = repaired(&agent)?;
            ensure!(forget(&lab, of)? > 0, "{shape}: there are flows to forget");
            let second = match first {
                Side::Client => Side::Server,
                Side::Server => Side::Client,
            };
            for side in [first, second] {
                ensure!(
                    connection.send(side, PATIENCE),
                    "{shape}, {family}, {first:?} speaks first: what the {side:?} sent did not arrive\n{}",
                    log_end(&lab)
                );
            }
            let after = repaired(&agent)?;
            if first == Side::Server {
                ensure!(after > before, "{shape}, {family}: nothing was repaired");
            }
        }
    }
    agent.stop()?;
    Ok(())
}

#[test]
fn an_evicted_connection_goes_on_when_either_side_speaks() -> anyhow::Result<()> {
    for shape in SHAPES {
        go_on(shape, true, None)?;
    }
    Ok(())
}

#[test]
fn the_other_pod_knows_where_connection_tracking_does_not() -> anyhow::Result<()> {
    let shape = Shape::Bridge {
        br_netfilter: false,
    };
    go_on(shape, false, Some(&pod("web")))
}

#[test]
fn an_evicted_dialogue_goes_on_with_the_next_datagram() -> anyhow::Result<()> {
    for shape in SHAPES {
        let lab = lab(shape, true)?;
        Files::of(&lab).write("policies.yaml", ONLY_FRIEND_TO_WEB)?;
        let mut agent = Agent::start(&lab, Hook::Auto)?;
        agent.wait()?;
        for family in Family::ALL {
            let talk = Dialogue::open(&lab, &pod("friend"), &web(Port::Udp(53)), family)?;
            ensure!(talk.send(Side::Client, PATIENCE) && talk.send(Side::Server, PATIENCE));
            forget(&lab, None)?;
            // At each pod one datagram may be lost; each loss is repaired.
            let arrived = (0..20).any(|_| talk.send(Side::Server, SILENCE));
            ensure!(arrived, "{shape}, {family}\n{}", log_end(&lab));
            ensure!(talk.send(Side::Client, PATIENCE));
        }
        agent.stop()?;
    }
    Ok(())
}

/// A TCP segment with ACK alone and data in it, of a connection that never was.
fn bare_ack(from: u16, to: u16) -> Vec<u8> {
    let mut segment = [from.to_be_bytes(), to.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(b"secret");
    segment
}

fn raw(family: Family) -> io::Result<Socket> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    Socket::new(domain, Type::RAW, Some(Protocol::TCP))
}

/// Whether the segment arrives within the time, sent again and again.
fn carries(lab: &Lab, from: &Party, family: Family, ports: (u16, u16)) -> anyhow::Result<bool> {
    let to = pod("other");
    let goal: IpAddr = lab.address(&to, family)?;
    let listener = lab
        .station(&to)?
        .worker
        .run(move || async move { raw(family) })?;
    listener.set_read_timeout(Some(Duration::from_millis(100)))?;
    let sender = lab
        .station(from)?
        .worker
        .run(move || async move { raw(family) })?;
    let segment = bare_ack(ports.0, ports.1);
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        sender.send_to(&segment, &SocketAddr::new(goal, 0).into())?;
        let mut buffer = [MaybeUninit::uninit(); 2048];
        if let Ok(length) = listener.recv(&mut buffer) {
            // SAFETY: the kernel has written the first `length` bytes.
            let bytes: Vec<u8> = buffer[..length]
                .iter()
                .map(|byte| unsafe { byte.assume_init() })
                .collect();
            if bytes.ends_with(&segment[..4]) || bytes.windows(6).any(|part| part == b"secret") {
                return Ok(true);
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(false)
}

#[test]
fn bare_acks_carry_nothing_out_of_a_pod_that_may_not_send() -> anyhow::Result<()> {
    for shape in SHAPES {
        let lab = lab(shape, true)?;
        Files::of(&lab).write("mute.yaml", MUTE)?;
        let mut agent = Agent::start(&lab, Hook::Auto)?;
        agent.wait()?;
        for family in Family::ALL {
            let ports = (4000, 5000);
            ensure!(
                !carries(&lab, &pod("web"), family, ports)?,
                "{shape}, {family}: a segment got out\n{}",
                log_end(&lab)
            );
            ensure!(
                carries(&lab, &pod("friend"), family, ports)?,
                "{shape}, {family}: who may send may send this"
            );
        }
        ensure!(
            repaired(&agent)? == 0,
            "{shape}: nobody had opened anything"
        );
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn what_the_pod_itself_has_opened_is_not_repaired() -> anyhow::Result<()> {
    for shape in SHAPES {
        let lab = lab(shape, true)?;
        let to = Destination::new(pod("other"), Port::Tcp(80));
        let open = |from: &str, family| Connection::open(&lab, &pod(from), &to, family);
        for family in Family::ALL {
            let (mute, friend) = (open("web", family)?, open("friend", family)?);
            ensure!(mute.ping_pong(PATIENCE) && friend.ping_pong(PATIENCE));
            Files::of(&lab).write("mute.yaml", MUTE)?;
            let mut agent = Agent::start(&lab, Hook::Auto)?;
            agent.wait()?;
            forget(&lab, None)?;
            ensure!(
                !mute.send(Side::Client, SILENCE),
                "{shape}, {family}: connection tracking knows it, and who opened it\n{}",
                log_end(&lab)
            );
            ensure!(friend.send(Side::Client, PATIENCE), "{shape}, {family}");
            ensure!(repaired(&agent)? == 0, "{shape}, {family}");
            agent.stop()?;
            Agent::cleanup(&lab)?;
            Files::of(&lab).delete("mute.yaml")?;
        }
    }
    Ok(())
}

#[test]
fn a_first_start_keeps_live_connections_that_are_allowed_and_ends_the_others() -> anyhow::Result<()>
{
    for shape in SHAPES {
        let lab = lab(shape, true)?;
        let open =
            |from: &str, family| Connection::open(&lab, &pod(from), &web(Port::Tcp(80)), family);
        let mut lives = Vec::new();
        let mut ends = Vec::new();
        for family in Family::ALL {
            for first in [Side::Client, Side::Server] {
                lives.push((family, first, open("friend", family)?));
                ends.push((family, first, open("other", family)?));
            }
        }
        for (family, _, connection) in lives.iter().chain(&ends) {
            ensure!(connection.ping_pong(PATIENCE), "{shape}, {family}: before");
        }
        // `a/web` may send what it likes: who opened these connections decides all the same.
        Files::of(&lab).write("policies.yaml", FRIENDS)?;
        let mut agent = Agent::start(&lab, Hook::Auto)?;
        agent.wait()?;
        for (family, first, connection) in &ends {
            ensure!(
                !connection.send(*first, SILENCE),
                "{shape}, {family}: a forbidden connection lives, {first:?} speaks\n{}",
                log_end(&lab)
            );
        }
        for (family, first, connection) in &lives {
            ensure!(
                connection.send(*first, PATIENCE) && connection.ping_pong(PATIENCE),
                "{shape}, {family}: an allowed connection ended, {first:?} speaks\n{}",
                log_end(&lab)
            );
        }
        agent.stop()?;
    }
    Ok(())
}
