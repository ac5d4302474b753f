//! What honest pods send through real sockets: datagrams of 64 KiB, and packets as large as the kernel makes them. And a
//! mark that a pod sets itself.

use std::{io, net::SocketAddr, time::Duration};

use anyhow::{Context as _, ensure};
use netpol_common::Reason;
use netpol_tests::{
    lab::{Capture, Worker},
    table::{Family, Party},
};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

use crate::{
    stage::{Fate, Stage},
    wire::tag,
};

const PATIENCE: Duration = Duration::from_secs(10);
/// The largest datagram that both families can carry.
const LARGE: usize = 65_507;

/// Sends one datagram and says whether it arrived whole.
fn datagram(stage: &Stage, from: &Party, to: &Party, family: Family) -> anyhow::Result<()> {
    let address = |party| stage.lab.address(party, family);
    let (here, there) = (address(from)?, address(to)?);
    let goal = SocketAddr::new(there, 53);
    let receiver = &stage.lab.station(to)?.worker;
    let socket = receiver.run(move || async move { UdpSocket::bind(goal).await })?;
    let arrival = receiver.begin(move || async move {
        let mut buffer = vec![0; 1 << 16];
        let got = timeout(PATIENCE, socket.recv(&mut buffer)).await;
        let length = got.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        buffer.truncate(length);
        io::Result::Ok(buffer)
    });
    let message: Vec<u8> = (0..LARGE).map(|nth| (nth % 251) as u8).collect();
    let expected = message.clone();
    let sender = &stage.lab.station(from)?.worker;
    sender.run(move || async move {
        let socket = UdpSocket::bind(SocketAddr::new(here, 0)).await?;
        socket.send_to(&message, goal).await
    })?;
    let what = || format!("{LARGE} bytes of UDP from {from} to {to} by {family}");
    let arrived = arrival.wait().with_context(what)?;
    ensure!(arrived == expected, "{}: something else arrived", what());
    Ok(())
}

/// Asks the node for a datagram from a pod, which isolated pods may do, and says whether it arrived whole: an answer in fragments,
/// of a process of the node.
fn answer(stage: &Stage, from: &str, family: Family) -> anyhow::Result<()> {
    let address = |party| stage.lab.address(party, family);
    let (here, node) = (address(stage.party(from))?, address(&Party::Node)?);
    let server = &stage.lab.node().worker;
    let goal = SocketAddr::new(node, 5300);
    let socket = server.run(move || async move { UdpSocket::bind(goal).await })?;
    let served = server.begin(move || async move {
        let mut request = [0; 8];
        let (_, asker) = timeout(PATIENCE, socket.recv_from(&mut request))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        socket.send_to(&[7; LARGE], asker).await
    });
    let asker = &stage.lab.station(stage.party(from))?.worker;
    let got = asker.run(move || async move {
        let socket = UdpSocket::bind(SocketAddr::new(here, 0)).await?;
        socket.send_to(&[1; 8], goal).await?;
        let mut buffer = vec![0; 1 << 16];
        let got = timeout(PATIENCE, socket.recv(&mut buffer)).await;
        got.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    });
    let what = || format!("{LARGE} bytes from the node to {from} by {family}");
    served.wait().with_context(what)?;
    let length = got.with_context(what)?;
    ensure!(length == LARGE, "{}: {length} bytes", what());
    Ok(())
}

/// Sends a stream and counts the bytes that arrive.
pub fn stream(
    sender: &Worker,
    receiver: &Worker,
    goal: SocketAddr,
    length: usize,
) -> io::Result<usize> {
    let listener = receiver.run(move || async move { TcpListener::bind(goal).await })?;
    let counted = receiver.begin(move || async move {
        let read = async {
            let (mut stream, _) = listener.accept().await?;
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await
        };
        let read = timeout(PATIENCE, read).await;
        read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    });
    let sent = sender.run(move || async move {
        let write = async {
            let mut stream = TcpStream::connect(goal).await?;
            stream.write_all(&vec![7; length]).await?;
            stream.shutdown().await
        };
        let written = timeout(PATIENCE, write).await;
        written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    });
    let counted = counted.wait();
    sent.and(counted)
}

/// A TCP stream, of which some packets are larger than any frame.
fn segments(stage: &Stage, from: &str, to: &str, family: Family) -> anyhow::Result<()> {
    let (near, far) = (
        stage.lab.station(stage.party(from))?,
        stage.lab.station(stage.party(to))?,
    );
    let capture = Capture::start(far, "eth0")?;
    let goal = SocketAddr::new(stage.lab.address(stage.party(to), family)?, 80);
    let what = || format!("a stream from {from} to {to} by {family}");
    let arrived = stream(&near.worker, &far.worker, goal, 1 << 20).with_context(what)?;
    ensure!(arrived == 1 << 20, "{}: {arrived} bytes", what());
    let large = capture.count(|seen| !seen.outgoing && seen.frame.len() > 9000)?;
    ensure!(large > 0, "{}: no large packet", what());
    Ok(())
}

/// A socket's mark does not leave its pod, and says nothing to anybody.
fn marks(stage: &Stage, family: Family) -> anyhow::Result<()> {
    let marked = |from: &str, to: &str, port: u16, mark: u32| -> anyhow::Result<Vec<u8>> {
        let goal = SocketAddr::new(stage.lab.address(stage.party(to), family)?, port);
        let bytes = tag();
        stage
            .lab
            .station(stage.party(from))?
            .worker
            .run(move || async move {
                let socket = Socket::new(Domain::for_address(goal), Type::DGRAM, None)?;
                socket.set_mark(mark)?;
                socket.send_to(&bytes, &goal.into())
            })?;
        Ok(bytes.into())
    };
    // The mark of each slot, with every ticket and request; of no slot; and everything at once.
    let slots = (1..=8_u32).map(|slot| slot << 16);
    let requests = (1..=8_u32).map(|slot| (slot | 1 << 10) << 16);
    let others = [0x4000, 0x8000, 0x2000, 0xffff_0000, u32::MAX];
    for mark in slots.chain(requests).chain(others) {
        let what = format!("mark {mark:#x} by {family}");
        stage.observe(&what, Fate::Arrives("goal"), "ports", || {
            marked("ports", "goal", 53, mark)
        });
        let denied = Fate::Sent(Reason::Denied);
        stage.observe(&what, denied, "ports", || marked("ports", "goal", 54, mark));
        stage.observe(&what, denied, "mute", || marked("mute", "goal", 53, mark));
        let denied = Fate::Received("ports", Reason::Denied);
        stage.observe(&what, denied, "stranger", || {
            marked("stranger", "ports", 53, mark)
        });
    }
    Ok(())
}

pub fn play(stage: &Stage) -> anyhow::Result<()> {
    for family in Family::ALL {
        for (from, to) in [("ports", "goal"), ("goal", "ports"), ("stranger", "mute")] {
            datagram(stage, stage.party(from), stage.party(to), family)?;
            segments(stage, from, to, family)?;
        }
        // The node's own, in fragments too.
        for pod in ["ports", "all", "mute"] {
            datagram(stage, &Party::Node, stage.party(pod), family)?;
            answer(stage, pod, family)?;
        }
        marks(stage, family)?;
    }
    Ok(())
}
