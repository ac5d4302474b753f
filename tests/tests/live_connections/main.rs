//! A live connection ends on its next packet, in both directions, when its permission goes; and no other connection does.
//!
//! Each [`Story`] is a world, a change that takes permissions away, and a table of conversations: those that end, and those
//! that both states allow. Every conversation is held twice, so that after the change each side is once the first to
//! speak, by TCP and by UDP and by both families. A permission goes at the moment when `wait` returns.

mod stories;

use std::{fmt, fs, thread, time::Duration};

use anyhow::{Context, ensure};
use netpol_tests::{
    agent::{Agent, Hook},
    lab::{Connection, Dialogue, Lab, LabError, Load, Shape, Side, Traffic},
    manifests::World,
    table::{Destination, Family, Party, Port},
};
use stories::{Change, Story, TCP, stories, world};

/// Long enough for anything that is allowed, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);
/// Long enough for TCP to send a lost segment again.
const SILENCE: Duration = Duration::from_millis(400);
/// A conversation, and who is the first to speak after the change.
struct Talk {
    name: String,
    first: Side,
    wire: Wire,
}

enum Wire {
    Tcp(Connection),
    Udp(Dialogue),
}

impl Talk {
    fn open(
        lab: &Lab,
        link: &(Party, Destination),
        family: Family,
        first: Side,
    ) -> Result<Self, LabError> {
        let (from, to) = link;
        let wire = match to.port {
            Port::Udp(_) => Wire::Udp(Dialogue::open(lab, from, to, family)?),
            _ => Wire::Tcp(Connection::open(lab, from, to, family)?),
        };
        Ok(Self {
            name: format!("{from} -> {to} by {family}"),
            first,
            wire,
        })
    }

    fn send(&self, from: Side, patience: Duration) -> bool {
        match &self.wire {
            Wire::Tcp(connection) => connection.send(from, patience),
            Wire::Udp(dialogue) => dialogue.send(from, patience),
        }
    }
}

impl fmt::Display for Talk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {:?} speaks first", self.name, self.first)
    }
}

/// Each link by both families, once for each side that may speak first.
fn open_all(lab: &Lab, links: &[(Party, Destination)]) -> Vec<Result<Talk, String>> {
    thread::scope(|scope| {
        let mut opening = Vec::new();
        for link in links {
            for family in Family::ALL {
                for first in [Side::Client, Side::Server] {
                    opening.push(scope.spawn(move || {
                        let (from, to) = link;
                        Talk::open(lab, link, family, first)
                            .map_err(|error| format!("{from} -> {to} by {family}: {error}"))
                    }));
                }
            }
        }
        opening
            .into_iter()
            .map(|talk| {
                talk.join()
                    .unwrap_or_else(|_| Err("a thread panicked".to_owned()))
            })
            .collect()
    })
}

/// Who speaks when.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// The client, as who opens a conversation does.
    Opening,
    /// Each talk's own first speaker.
    Own,
}

/// Everybody speaks, all at once. Returns what did not arrive (or did) although it is `wanted` (or not).
fn speak(talks: &[Talk], order: Order, wanted: bool, patience: Duration) -> Vec<String> {
    let one = |talk: &Talk| {
        let sides = match (order, talk.first) {
            (Order::Own, Side::Server) => [Side::Server, Side::Client],
            _ => [Side::Client, Side::Server],
        };
        let wrong = sides
            .into_iter()
            .filter(|side| talk.send(*side, patience) != wanted);
        let what = if wanted { "did not arrive" } else { "arrived" };
        wrong
            .map(|side| format!("{talk}: what the {side:?} sent {what}"))
            .collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        let speaking: Vec<_> = talks
            .iter()
            .map(|talk| scope.spawn(move || one(talk)))
            .collect();
        speaking
            .into_iter()
            .flat_map(|wrong| {
                wrong
                    .join()
                    .unwrap_or_else(|_| vec!["a thread panicked".to_owned()])
            })
            .collect()
    })
}

fn opened(talks: Vec<Result<Talk, String>>) -> anyhow::Result<Vec<Talk>> {
    let (talks, failed): (Vec<_>, Vec<_>) = talks.into_iter().partition(Result::is_ok);
    let failed: Vec<String> = failed.into_iter().filter_map(Result::err).collect();
    ensure!(failed.is_empty(), "not opened: {}", failed.join("\n"));
    Ok(talks.into_iter().filter_map(Result::ok).collect())
}

/// Counted traffic on each link, by both families.
fn traffic(lab: &Lab, links: &[(Party, Destination)]) -> anyhow::Result<Vec<(String, Traffic)>> {
    let mut running = Vec::new();
    for (from, to) in links {
        let load = match to.port {
            Port::Udp(_) => Load::UdpFlow,
            _ => Load::TcpStream,
        };
        for family in Family::ALL {
            let pause = Duration::from_millis(5);
            let traffic = Traffic::start(lab, from, to, family, load, pause)?;
            running.push((format!("{from} -> {to} by {family}"), traffic));
        }
    }
    for (name, traffic) in &running {
        ensure!(traffic.wait_sent(5, PATIENCE), "no traffic {name}");
    }
    Ok(running)
}

/// Makes the change; returns the files to write so as to undo it where the lab cannot.
fn make(lab: &mut Lab, change: &Change) -> anyhow::Result<Vec<(std::path::PathBuf, String)>> {
    match change {
        Change::Policies(policies) => {
            lab.replace_world(World::parse(&(world() + policies)))?;
            Ok(Vec::new())
        }
        Change::Unlabel(id, label) => {
            lab.label(id, &[(label, None)])?;
            Ok(Vec::new())
        }
        Change::Vanish(id) => {
            // The lab would take the pod's namespace away as well.
            let directory = lab.manifests();
            let mut seen = World::read(&directory)?;
            let old = seen.materialise(|_| None);
            seen.remove(id)?;
            for (file, text) in seen.materialise(|_| None) {
                fs::write(directory.join(file), text)?;
            }
            let old = old.into_iter();
            Ok(old
                .map(|(file, text)| (directory.join(file), text))
                .collect())
        }
    }
}

fn play(lab: &mut Lab, agent: &mut Agent, story: &Story) -> anyhow::Result<()> {
    let before = world() + &story.policies;
    lab.replace_world(World::parse(&before))?;
    agent.wait()?;
    let ends = opened(open_all(lab, &story.ends)).context("before the change")?;
    let lives = opened(open_all(lab, &story.lives)).context("before the change")?;
    let running = traffic(lab, &story.lives)?;
    let mut wrong = speak(&ends, Order::Opening, true, PATIENCE);
    wrong.extend(speak(&lives, Order::Opening, true, PATIENCE));
    ensure!(wrong.is_empty(), "before the change:\n{}", wrong.join("\n"));

    let undo = make(lab, &story.change)?;
    agent.wait()?;
    // Nobody opens anew what has ended either.
    let mut tcp = story.ends.clone();
    tcp.retain(|(_, to)| to.port == TCP);
    let (mut wrong, anew) = thread::scope(|scope| {
        let lab: &Lab = lab;
        let opening = scope.spawn(|| open_all(lab, &tcp));
        let mut wrong = speak(&ends, Order::Own, false, SILENCE);
        wrong.extend(speak(&lives, Order::Own, true, PATIENCE));
        (wrong, opening.join().unwrap_or_default())
    });
    for talk in anew.into_iter().flatten() {
        wrong.push(format!("{talk}: it could be opened anew"));
    }
    for (name, traffic) in running {
        let counts = traffic.stop();
        if counts.lost() > 0 || counts.retransmitted > 0 {
            wrong.push(format!("{name}, allowed before and after: {counts:?}"));
        }
    }
    ensure!(wrong.is_empty(), "after the change:\n{}", wrong.join("\n"));

    // The permission is given back.
    for (path, text) in undo {
        fs::write(path, text)?;
    }
    lab.replace_world(World::parse(&before))?;
    agent.wait()?;
    let again = opened(open_all(lab, &story.ends)).context("the permission was given back")?;
    let mut wrong = speak(&again, Order::Opening, true, PATIENCE);
    wrong.extend(speak(&lives, Order::Own, true, PATIENCE));
    ensure!(
        wrong.is_empty(),
        "the permission was given back:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

fn play_all(shape: Shape, hook: Hook) -> anyhow::Result<()> {
    let mut lab = Lab::new(shape, World::parse(&world()))?;
    let open = lab.table()?;
    ensure!(
        open.all_open(),
        "{shape}, without an agent, {}",
        open.opened().differences(&open)
    );
    let mut agent = Agent::start(&lab, hook)?;
    let mut failed = Vec::new();
    for story in stories() {
        if let Err(error) = play(&mut lab, &mut agent, &story) {
            failed.push(format!("{}: {error:#}", story.name));
        }
    }
    ensure!(
        failed.is_empty(),
        "{shape}, hook {hook}: {} stories went wrong\n\n{}\n\nstatus:\n{}",
        failed.len(),
        failed.join("\n\n"),
        agent.status_text().unwrap_or_default()
    );
    agent.stop()?;
    Ok(())
}

#[test]
fn on_a_bridge_with_tcx() -> anyhow::Result<()> {
    play_all(Shape::Bridge { br_netfilter: true }, Hook::Tcx)
}

#[test]
fn on_a_bridge_with_clsact() -> anyhow::Result<()> {
    play_all(Shape::Bridge { br_netfilter: true }, Hook::Clsact)
}

#[test]
fn routed_with_tcx() -> anyhow::Result<()> {
    play_all(Shape::Routed, Hook::Tcx)
}

#[test]
fn routed_with_clsact() -> anyhow::Result<()> {
    play_all(Shape::Routed, Hook::Clsact)
}
