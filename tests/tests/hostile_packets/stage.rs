//! The stage: a lab with an agent, somebody who sends frames from each pod, and somebody who looks at what arrives.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use aya::maps::{HashMap, Map, MapData, PerCpuArray};
use netpol_common::{Direction, Endpoint, Reason, Tally, map};
use netpol_tests::{
    agent::{Agent, Hook},
    lab::{Backend, Capture, FrameSocket, Lab, NODE_NAME, Shape},
    manifests::World,
    story,
    table::{Family, Party},
};

use crate::{
    wire::{Path, same},
    world::{ABROAD, PODS, world},
};

/// What is allowed takes microseconds; only what goes wrong takes this long.
const PATIENCE: Duration = Duration::from_secs(3);

/// What becomes of a frame.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    /// It is counted where it is sent, under this reason. If that is one to drop it, nobody ever sees it.
    Sent(Reason),
    /// It is counted where it is sent, under a reason that lets it pass there, and nobody ever sees it.
    Lost(Reason),
    /// It is counted where this pod should receive it, under this reason. It arrives if that lets it pass.
    Received(&'static str, Reason),
    /// It arrives at this pod.
    Arrives(&'static str),
    /// It leaves the node.
    Leaves,
}

/// Packets of one pod by direction and reason.
type Counts = [[u64; Reason::COUNT]; 2];

struct Actor {
    party: Party,
    addresses: [IpAddr; 2],
    link_local: Ipv6Addr,
    mac: [u8; 6],
    /// Of the device that a router on the node has for this pod.
    router_mac: [u8; 6],
    socket: FrameSocket,
    /// On the node's end of its cable.
    cable: FrameSocket,
    capture: Capture,
    slot: u32,
}

/// Everything that a table of rows needs.
pub struct Stage {
    pub lab: Lab,
    pub agent: Agent,
    pub shape: Shape,
    actors: BTreeMap<&'static str, Actor>,
    /// What leaves the node.
    uplink: Capture,
    statistics: PerCpuArray<MapData, Tally>,
    wrong: RefCell<Vec<String>>,
    rows: RefCell<usize>,
}

impl Stage {
    /// Builds it.
    pub fn new(shape: Shape, hook: Hook) -> anyhow::Result<Self> {
        let lab = Lab::new(shape, World::parse(&world()))?;
        Self::in_lab(lab, hook)
    }

    /// Builds it on a node with VXLAN devices, as Flannel makes them, beside another one, and with Services.
    pub fn with_tunnels(shape: Shape, hook: Hook) -> anyhow::Result<Self> {
        let world = World::parse(&(world() + ABROAD));
        Self::in_lab(Lab::with_nodes(shape, Backend::Vxlan, world)?, hook)
    }

    fn in_lab(lab: Lab, hook: Hook) -> anyhow::Result<Self> {
        let mut agent = Agent::start(&lab, hook)?;
        agent.wait()?;
        let pins = lab.run_dir().node(NODE_NAME).bpf;
        let pin = |name: &str| -> anyhow::Result<Map> {
            let path = pins.join(format!("v{}", map::SCHEMA)).join(name);
            Ok(Map::from_map_data(MapData::from_pin(&path)?)?)
        };
        let statistics = pin(map::STATS)?.try_into()?;
        let endpoints: HashMap<_, u32, Endpoint> = pin(map::ENDPOINTS)?.try_into()?;
        let mut actors = BTreeMap::new();
        for name in PODS {
            let party = Party::pod("a", name);
            let station = lab.station(&party)?;
            let mac = station.configure(|netlink| async move {
                let eth0 = netlink.index("eth0").await?;
                netlink.mac(eth0).await
            })?;
            let device = lab.device(&party)?;
            let router = match lab.shape() {
                Shape::Routed => device,
                Shape::Bridge { .. } => lab
                    .node()
                    .configure(|netlink| async move { netlink.index("cni0").await })?,
            };
            let router_mac = lab
                .node()
                .configure(move |netlink| async move { netlink.mac(router).await })?;
            let addresses = [
                lab.address(&party, Family::V4)?,
                lab.address(&party, Family::V6)?,
            ];
            let cable = lab
                .node()
                .configure(move |netlink| async move { netlink.name(device).await })?;
            let endpoint = endpoints.get(&device, 0)?;
            ensure!(endpoint.guarded(), "{party} is not guarded");
            let actor = Actor {
                addresses,
                link_local: link_local(mac),
                mac,
                router_mac,
                socket: FrameSocket::open(&lab, &party, "eth0")?,
                cable: FrameSocket::open(&lab, &Party::Node, &cable)?,
                capture: Capture::start(station, "eth0")?,
                slot: endpoint.slot,
                party,
            };
            actors.insert(name, actor);
        }
        Ok(Self {
            shape: lab.shape(),
            uplink: Capture::start(lab.node(), "uplink0")?,
            lab,
            agent,
            actors,
            statistics,
            wrong: RefCell::default(),
            rows: RefCell::default(),
        })
    }

    /// Whether pods are neighbours on a link of their own.
    pub const fn bridged(&self) -> bool {
        matches!(self.shape, Shape::Bridge { .. })
    }

    /// The way from a pod to another.
    pub fn path(&self, from: &str, to: &str, family: Family) -> Path {
        let (a, b) = (&self.actors[from], &self.actors[to]);
        let nth = usize::from(family == Family::V6);
        Path {
            to_mac: if self.bridged() { b.mac } else { a.router_mac },
            from_mac: a.mac,
            from: a.addresses[nth],
            to: b.addresses[nth],
        }
    }

    /// The way from a pod to an address that its router knows.
    pub fn path_to(&self, from: &str, to: IpAddr) -> Path {
        let a = &self.actors[from];
        Path {
            to_mac: a.router_mac,
            from_mac: a.mac,
            from: a.addresses[usize::from(to.is_ipv6())],
            to,
        }
    }

    /// A pod's link-local address.
    pub fn link_local(&self, pod: &str) -> Ipv6Addr {
        self.actors[pod].link_local
    }

    /// A pod's hardware address.
    pub fn mac(&self, pod: &str) -> [u8; 6] {
        self.actors[pod].mac
    }

    /// A pod as a party.
    pub fn party(&self, pod: &str) -> &Party {
        &self.actors[pod].party
    }

    /// Sends a frame from a pod, and notes it if it does not meet its fate.
    pub fn check(&self, what: &str, from: &str, frame: &[u8], fate: Fate) {
        self.observe(what, fate, from, || {
            self.actors[from].socket.send(frame)?;
            Ok(frame.to_vec())
        });
    }

    /// Sends a frame from a pod.
    pub fn send(&self, from: &str, frame: &[u8]) -> std::io::Result<()> {
        self.actors[from].socket.send(frame)
    }

    /// As [`Stage::check`], with a frame that comes to a pod from the node's end of its cable, as if from somewhere else.
    pub fn inject(&self, what: &str, to: &str, frame: &[u8], fate: Fate) {
        let what = format!("{what}, by its cable");
        self.observe(&what, fate, to, || {
            match self.actors[to].cable.send(frame) {
                // What the programs drop here is said to whom has sent it.
                Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => Err(error.into()),
                _ => Ok(frame.to_vec()),
            }
        });
    }

    /// As [`Stage::check`]; `send` returns what it has sent, or the tag at its end.
    pub fn observe(
        &self,
        what: &str,
        fate: Fate,
        from: &str,
        send: impl FnOnce() -> anyhow::Result<Vec<u8>>,
    ) {
        *self.rows.borrow_mut() += 1;
        if let Err(error) = self.meet(from, fate, send) {
            let row = format!("{what}, {from}: {error:#}");
            self.wrong.borrow_mut().push(row);
        }
    }

    fn meet(
        &self,
        from: &str,
        fate: Fate,
        send: impl FnOnce() -> anyhow::Result<Vec<u8>>,
    ) -> anyhow::Result<()> {
        self.look()?;
        let (place, direction) = match fate {
            Fate::Sent(_) | Fate::Lost(_) | Fate::Leaves => (from, Direction::Egress),
            Fate::Received(pod, _) | Fate::Arrives(pod) => (pod, Direction::Ingress),
        };
        let before = self.counts(place)?;
        let sent_before = self.counts(from)?;
        let frame = &send()?;
        // Whatever became of the frame before it has become of it when this one arrives.
        let last = self.path("ports", "goal", Family::V4).udp(53);
        if matches!(fate, Fate::Lost(_)) {
            self.actors["ports"].socket.send(&last)?;
        }
        let end = Instant::now() + PATIENCE;
        let mut arrived = Vec::new();
        let mut over = !matches!(fate, Fate::Lost(_));
        loop {
            let after = self.counts(place)?;
            let counted = match fate {
                Fate::Sent(reason) | Fate::Lost(reason) | Fate::Received(_, reason) => {
                    let at = |counts: &Counts| counts[direction as usize][reason as usize];
                    at(&after) > at(&before)
                }
                Fate::Arrives(_) | Fate::Leaves => true,
            };
            for (place, seen) in self.look()? {
                over |= same(&last, &seen);
                if same(frame, &seen) {
                    arrived.push(place);
                }
            }
            let there = match fate {
                Fate::Sent(_) | Fate::Lost(_) => over,
                Fate::Received(pod, reason) => !reason.passes() || arrived.contains(&pod),
                Fate::Arrives(pod) => arrived.contains(&pod),
                Fate::Leaves => arrived.contains(&"uplink"),
            };
            if counted && there {
                break;
            }
            ensure!(
                Instant::now() < end,
                "expected {fate:?}; counted there {}; where it was sent {}; seen by {arrived:?}",
                change(&before, &after),
                change(&sent_before, &self.counts(from)?)
            );
            thread::yield_now();
        }
        let nobody = match fate {
            Fate::Sent(reason) => !reason.passes(),
            Fate::Lost(_) => true,
            _ => false,
        };
        // An error may come back to the sender, and quote it.
        arrived.retain(|place| *place != from);
        ensure!(
            !nobody || arrived.is_empty(),
            "{fate:?}, but seen by {arrived:?}"
        );
        if let Fate::Received(pod, reason) = fate
            && !reason.passes()
        {
            ensure!(!arrived.contains(&pod), "{fate:?}, but it saw it");
        }
        Ok(())
    }

    /// What has arrived, and where, since this was last asked: at a pod, or at whatever is behind the uplink.
    fn look(&self) -> anyhow::Result<Vec<(&'static str, Vec<u8>)>> {
        let mut all = Vec::new();
        for (name, actor) in &self.actors {
            for seen in actor
                .capture
                .take()?
                .into_iter()
                .filter(|seen| !seen.outgoing)
            {
                all.push((*name, seen.frame));
            }
        }
        for seen in self.uplink.take()?.into_iter().filter(|seen| seen.outgoing) {
            all.push(("uplink", seen.frame));
        }
        Ok(all)
    }

    /// What was counted for a pod.
    pub fn counts(&self, pod: &str) -> anyhow::Result<Counts> {
        let mut counts = [[0; Reason::COUNT]; 2];
        for direction in Direction::BOTH {
            for reason in Reason::ALL {
                let index = Tally::index(self.actors[pod].slot, direction, reason);
                let cpus = self.statistics.get(&index, 0)?;
                counts[direction as usize][reason as usize] =
                    cpus.iter().map(|tally| tally.packets).sum();
            }
        }
        Ok(counts)
    }

    /// How many packets of a pod were counted under a reason.
    pub fn count(&self, pod: &str, direction: Direction, reason: Reason) -> anyhow::Result<u64> {
        Ok(self.counts(pod)?[direction as usize][reason as usize])
    }

    /// Ends the play: fails if a row went wrong, or if `status` tells of other drops than were counted.
    pub fn end(mut self) -> anyhow::Result<()> {
        let rows = self.rows.take();
        let wrong = self.wrong.take();
        ensure!(
            wrong.is_empty(),
            "{}: {} of {rows} rows went wrong:\n{}",
            self.shape,
            wrong.len(),
            wrong.join("\n")
        );
        let counts = self.counts("ports")?;
        let status = self.agent.status()?;
        let told = &story::pod(&status, "a", "ports")?["packets"];
        for (direction, counts) in Direction::BOTH.into_iter().zip(counts) {
            for (reason, count) in Reason::ALL.into_iter().zip(counts) {
                let line = told.as_array().into_iter().flatten().find(|line| {
                    line["direction"] == direction.to_string() && line["reason"] == reason.name()
                });
                let told = line.and_then(|line| line["packets"].as_u64());
                // What passes may have gone on meanwhile.
                ensure!(
                    reason.passes() || told.unwrap_or_default() == count,
                    "{direction} {reason}: {count} in the kernel, {told:?} in the status"
                );
            }
        }
        self.agent.stop()?;
        Ok(())
    }
}

/// What was counted between two looks.
fn change(before: &Counts, after: &Counts) -> String {
    let mut text = Vec::new();
    for direction in Direction::BOTH {
        for reason in Reason::ALL {
            let at = |counts: &Counts| counts[direction as usize][reason as usize];
            if at(after) > at(before) {
                text.push(format!("{direction} {reason}"));
            }
        }
    }
    format!("[{}]", text.join(", "))
}

/// The link-local address that the kernel makes of a hardware address (RFC 4291 appendix A).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let bytes = [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ];
    Ipv6Addr::from(bytes)
}
