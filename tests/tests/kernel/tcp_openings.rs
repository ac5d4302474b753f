//! How TCP connections begin, on real sockets, where both ends choose their ports: by both ends at once, and again on the ports of
//! one that has ended.

use std::{
    fs, io,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use netpol_tests::{
    agent::{Agent, Hook},
    lab::{Lab, Shape, Worker},
    manifests::{DocumentId, World},
    story::{CLOSED, FRIENDS, THREE_PODS},
    table::{Family, Party},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(10);
/// How long something forbidden may take to arrive: SYNs are sent again after one second.
const SILENCE: Duration = Duration::from_millis(1500);

/// `a/web` neither sends nor receives.
const SHUT: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: a, name: web}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress]}
";

/// Nobody opens anything to `a/friend`.
const DEAF_FRIEND: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: a, name: friend}
spec: {podSelector: {matchLabels: {role: friend}}, policyTypes: [Ingress]}
";

fn everywhere(
    story: impl Fn(&mut Lab, &mut Agent, Family) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for (shape, hook) in [
        (Shape::Bridge { br_netfilter: true }, Hook::Auto),
        (Shape::Routed, Hook::Clsact),
    ] {
        for family in Family::ALL {
            let mut lab = Lab::new(shape, World::parse(THREE_PODS))?;
            let mut agent = Agent::start(&lab, hook)?;
            agent.wait()?;
            story(&mut lab, &mut agent, family)
                .with_context(|| format!("{shape}, {hook}, {family}"))?;
            agent.stop()?;
        }
    }
    Ok(())
}

fn enforce(lab: &mut Lab, agent: &mut Agent, policy: &str) -> anyhow::Result<()> {
    lab.apply(policy)?;
    agent.wait()?;
    Ok(())
}

fn socket(at: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match at {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    Ok(socket)
}

/// Connects from one address and port to another.
async fn connect(from: SocketAddr, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let connected = timeout(patience, socket(from)?.connect(to)).await;
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Whether a socket of this thread's namespace has sent a SYN from a port (`TCP_SYN_SENT` in include/net/tcp_states.h).
fn is_connecting(port: u16) -> bool {
    let local = format!(":{port:04X}");
    ["tcp", "tcp6"]
        .into_iter()
        .filter_map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")).ok())
        .any(|table| {
            table.lines().any(|line| {
                let mut words = line.split_whitespace().skip(1);
                words.next().is_some_and(|own| own.ends_with(&local)) && words.nth(1) == Some("02")
            })
        })
}

/// Both ends connect to each other; the second one while the SYN of the first is on its way or was dropped. Whether both
/// succeed, and a byte goes across.
fn at_once(
    (first, here): (&Worker, SocketAddr),
    (second, there): (&Worker, SocketAddr),
    patience: Duration,
) -> bool {
    let talk = |mut stream: TcpStream, speaks: bool| async move {
        let mut byte = [7];
        if speaks {
            stream.write_all(&byte).await?;
        }
        stream.read_exact(&mut byte).await?;
        if !speaks {
            stream.write_all(&byte).await?;
        }
        io::Result::Ok(())
    };
    let one = first.begin(move || async move {
        let stream = connect(here, there, patience).await?;
        talk(stream, true).await
    });
    // Its SYN may not find nobody.
    let end = Instant::now() + PATIENCE;
    while !first.run(move || async move { is_connecting(here.port()) }) && Instant::now() < end {
        thread::sleep(Duration::from_millis(2));
    }
    let two = second.begin(move || async move {
        let stream = connect(there, here, patience).await?;
        talk(stream, false).await
    });
    let (one, two) = (one.wait(), two.wait());
    one.is_ok() && two.is_ok()
}

/// A pod whose ingress is isolated opens a connection to somebody who is opening one to it: their SYN is dropped, its own is
/// not, and the two ends become one connection.
#[test]
fn two_ends_that_open_at_once_meet_if_one_of_them_may() -> anyhow::Result<()> {
    everywhere(|lab, agent, family| {
        let (other, web) = (Party::pod("a", "other"), Party::pod("a", "web"));
        let meet = |lab: &Lab, port: u16, patience: Duration| -> anyhow::Result<bool> {
            let here = SocketAddr::new(lab.address(&other, family)?, port);
            let there = SocketAddr::new(lab.address(&web, family)?, port);
            let first = &lab.station(&other)?.worker;
            let second = &lab.station(&web)?.worker;
            Ok(at_once((first, here), (second, there), patience))
        };
        enforce(lab, agent, CLOSED)?;
        ensure!(meet(lab, 7100, PATIENCE)?, "web may open");
        enforce(lab, agent, SHUT)?;
        ensure!(!meet(lab, 7101, SILENCE)?, "neither may open");
        enforce(lab, agent, CLOSED)?;
        ensure!(meet(lab, 7102, PATIENCE)?, "web may open again");
        Ok(())
    })
}

/// A connection whose server is the first to close it, so that the server's kernel keeps its ports (TIME_WAIT). Whether it was
/// made and a byte came across.
fn visit(
    lab: &Lab,
    (from, to): (&Party, &Party),
    ports: (u16, u16),
    patience: Duration,
    family: Family,
) -> anyhow::Result<bool> {
    let here = SocketAddr::new(lab.address(from, family)?, ports.0);
    let there = SocketAddr::new(lab.address(to, family)?, ports.1);
    let (near, far) = (&lab.station(from)?.worker, &lab.station(to)?.worker);
    let listener = far.run(move || async move { socket(there)?.listen(8) });
    let listener: TcpListener = listener.context("listen")?;
    let served = far.begin(move || async move {
        let served = timeout(patience, async {
            let (mut stream, _) = listener.accept().await?;
            stream.write_all(&[7]).await?;
            // The first FIN, and then that of the other end.
            stream.shutdown().await?;
            stream.read(&mut [0]).await
        });
        served.await.is_ok_and(|read| matches!(read, Ok(0)))
    });
    let got = near.run(move || async move {
        let mut stream = connect(here, there, patience).await?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await?;
        io::Result::Ok(all)
    });
    Ok(served.wait() && matches!(got.as_deref(), Ok([7])))
}

#[test]
fn the_ports_of_a_connection_that_has_ended_carry_the_next_one_if_it_is_allowed()
-> anyhow::Result<()> {
    everywhere(|lab, agent, family| {
        let (friend, web) = (Party::pod("a", "friend"), Party::pod("a", "web"));
        let (out, back) = ((&friend, &web), (&web, &friend));
        enforce(lab, agent, FRIENDS)?;
        enforce(lab, agent, DEAF_FRIEND)?;
        for nth in 0..3 {
            ensure!(
                visit(lab, out, (7200, 7201), PATIENCE, family)?,
                "visit {nth} on the same ports"
            );
        }
        // Who has closed first keeps the ports for a minute; asked to, the kernel gives them to a connection of its own after a second.
        for pod in [&friend, &web] {
            lab.station(pod)?.worker.sysctl("ipv4/tcp_tw_reuse", "1")?;
        }
        let rest = || thread::sleep(Duration::from_millis(1200));
        rest();
        // The other way on the same ports: what the friend has opened allows nothing that is opened to it.
        ensure!(
            !visit(lab, back, (7201, 7200), SILENCE, family)?,
            "the server opens"
        );
        ensure!(
            visit(lab, out, (7200, 7201), PATIENCE, family)?,
            "after that"
        );
        lab.delete(&DocumentId::policy("a", "friend"))?;
        agent.wait()?;
        rest();
        ensure!(
            visit(lab, back, (7201, 7200), PATIENCE, family)?,
            "the server opens where it may"
        );
        enforce(lab, agent, CLOSED)?;
        rest();
        ensure!(
            !visit(lab, out, (7200, 7201), SILENCE, family)?,
            "after the permission has gone"
        );
        enforce(lab, agent, FRIENDS)?;
        rest();
        ensure!(
            visit(lab, out, (7200, 7201), PATIENCE, family)?,
            "when it is back"
        );
        Ok(())
    })
}
