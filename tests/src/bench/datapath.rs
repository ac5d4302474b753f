//! What one packet costs in each program, by `BPF_PROG_TEST_RUN`: many repeats, programs interleaved, medians.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use aya::maps::{Map, MapData, RingBuf};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use netpol_agent::{
    object,
    policy::{Index, edit::Edit},
};
use netpol_common::{Endpoint, FlowKey, Isolation, Peer, map, protocol, size};
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

use super::{
    cases::{self, BARE_LOOKUP, Before, Case},
    frames::CLIENT_PORT,
    median, world,
};
use crate::{
    kernel::{Bench, DROP, LOOPBACK, Programs},
    lab::Netlink,
};

/// How much to measure.
#[derive(Args)]
pub struct Options {
    /// Rounds; each round runs every program on every packet once, and the median over the rounds counts.
    #[arg(long, default_value_t = 31)]
    rounds: usize,
    /// How often a program runs on a packet in a round.
    #[arg(long, default_value_t = 50_000)]
    repeat: u32,
    /// Only the smallest cluster.
    #[arg(long)]
    smallest: bool,
}

/// Clusters: policies and peers.
const CLUSTERS: [(u32, u32); 6] = [
    (1, 10),
    (100, 10),
    (10_000, 10),
    (1, 100_000),
    (100, 100_000),
    (10_000, 100_000),
];

/// Runs the benchmark and prints its tables.
///
/// # Errors
///
/// If the programs cannot be loaded, or one of them gives another verdict than the one that is to be measured.
pub fn run(options: &Options) -> anyhow::Result<()> {
    stay_here()?;
    let clusters = if options.smallest {
        &CLUSTERS[..1]
    } else {
        &CLUSTERS[..]
    };
    let mut results = vec![];
    let mut last = None;
    for &(policies, peers) in clusters {
        eprintln!("{policies} policies, {peers} peers ...");
        let mut rig = Rig::new(policies, peers)?;
        results.push(rig.measure(options)?);
        last = Some(rig);
    }
    let Some(mut rig) = last else {
        return Ok(());
    };
    print(&rig.cases, clusters, &results);
    println!("\nVerifier: instructions processed, bytes of the translated program");
    for name in [map::POD_INGRESS, map::POD_EGRESS, map::HOST_EGRESS] {
        let info = rig.agent.program(name)?.info()?;
        println!(
            "  {name:12} {:6} {:6}",
            info.verified_instruction_count().unwrap_or(0),
            info.size_translated().unwrap_or(0),
        );
    }
    Ok(())
}

/// Keeps this thread on its processor: some tables are per processor.
fn stay_here() -> anyhow::Result<()> {
    let mut here = CpuSet::new();
    here.set(sched_getcpu()?)?;
    sched_setaffinity(Pid::from_raw(0), &here)?;
    Ok(())
}

/// A compiled cluster in the kernel's tables, and the programs on them.
struct Rig {
    bench: Bench,
    agent: Programs,
    yardstick: Programs,
    events: RingBuf<MapData>,
    server: Endpoint,
    /// Another device than the loopback device, with a pod behind it.
    device: u32,
    cases: Vec<Case>,
}

impl Rig {
    fn new(policies: u32, peers: u32) -> anyhow::Result<Self> {
        let mut bench = Bench::new("bench")?;
        let device = device()?;
        let index = world::cluster(policies, peers);
        bench.dataplane.write(&index.tables())?;
        bench.dataplane.write(&[
            flagged(world::NODE_ADDRESS, Peer::NODE),
            flagged(world::SERVICE, Peer::SERVICE),
        ])?;
        let server = server(&index)?;
        bench.dataplane.set_endpoint(LOOPBACK, &server)?;
        bench.dataplane.set_endpoint(
            device,
            &Endpoint {
                slot: cases::NEIGHBOUR_SLOT,
                ingress: Isolation::OPEN,
                egress: Isolation::OPEN,
                ipv4: world::FRIEND.into(),
                ..server
            },
        )?;
        let agent = bench.load(object::NETPOL)?;
        let yardstick = bench.load(object::YARDSTICK)?;
        let events = Map::from_map_data(MapData::from_pin(bench.pin(map::EVENTS))?)?.try_into()?;
        Ok(Self {
            bench,
            agent,
            yardstick,
            events,
            server,
            device,
            cases: cases::cases(device),
        })
    }

    /// Median nanoseconds of each case.
    fn measure(&mut self, options: &Options) -> anyhow::Result<Vec<f64>> {
        let cases = std::mem::take(&mut self.cases);
        let mut times: Vec<Vec<f64>> = vec![vec![]; cases.len()];
        // The first round warms up.
        for round in 0..=options.rounds {
            for (case, times) in cases.iter().zip(&mut times) {
                let time = self
                    .run(case, options.repeat)
                    .with_context(|| case.name.clone())?;
                if round > 0 {
                    times.push(time);
                }
            }
        }
        self.cases = cases;
        Ok(times.iter_mut().map(|times| median(times)).collect())
    }

    fn run(&mut self, case: &Case, mut repeat: u32) -> anyhow::Result<f64> {
        if case.before != Before::Any {
            self.bench.forget_flows()?;
        }
        let isolated = self.server;
        let open = Endpoint {
            ingress: Isolation::OPEN,
            egress: Isolation::OPEN,
            ..isolated
        };
        self.bench.dataplane.set_endpoint(LOOPBACK, &isolated)?;
        for (program, packet, context) in cases::openings(self.device) {
            let (verdict, _) = self.agent.execute_in(program, &packet, context, 1)?;
            ensure!(
                verdict != DROP,
                "{program} drops what opens a flow: {context:?}, {packet:02x?}"
            );
        }
        if !case.isolated {
            self.bench.dataplane.set_endpoint(LOOPBACK, &open)?;
        }
        let mut context = case.context;
        match case.before {
            Before::Any => {}
            Before::Empty(few) => repeat = repeat.min(few),
            Before::Full => {
                let fill = size::OPENING * 2;
                self.yardstick
                    .execute_in(case.program, &case.packet, context, fill)?;
            }
            Before::Answered(few) => {
                repeat = repeat.min(few);
                context.control[1] = self.answer(repeat)?;
            }
        }
        while self.events.next().is_some() {}
        let object = if case.yardstick {
            &mut self.yardstick
        } else {
            &mut self.agent
        };
        let (verdict, time) = object.execute_in(case.program, &case.packet, context, repeat)?;
        ensure!(
            (verdict != DROP) == case.passes,
            "the verdict is not the one to be measured"
        );
        Ok(time)
    }

    /// Opens as many flows from the server's friend, each answered. Returns the number of the first one.
    fn answer(&self, flows: u32) -> anyhow::Result<u32> {
        /// Above every protocol number, with a flag or without.
        const FIRST: u32 = 1 << 16;
        let mut key = FlowKey {
            remote: world::FRIEND.into(),
            interface: LOOPBACK,
            local_port: cases::PORT,
            remote_port: CLIENT_PORT,
            protocol: u32::from(protocol::TCP),
        };
        let answered = self.bench.flows(map::FLOWS)?.get(&key, 0)?;
        let mut opening = self.bench.flows(map::OPENING)?;
        for number in FIRST..FIRST + flows {
            key.protocol = number;
            opening.insert(key, answered, 0)?;
        }
        Ok(FIRST)
    }
}

/// A device of this network namespace.
fn device() -> anyhow::Result<u32> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let index =
        runtime.block_on(async { Netlink::open()?.bridge("bench0", [2, 0, 0, 0, 0, 9]).await })?;
    Ok(index)
}

fn flagged(address: std::net::Ipv4Addr, flags: u32) -> Edit {
    Edit::Host {
        address: address.into(),
        peer: Some(Peer {
            flags,
            ..Peer::default()
        }),
    }
}

/// The endpoint of the server.
fn server(index: &Index) -> anyhow::Result<Endpoint> {
    let server = index
        .local_pods()
        .find(|pod| pod.key.name == world::SERVER.1)
        .context("the compiled cluster has no server pod")?;
    Ok(Endpoint {
        slot: cases::SERVER_SLOT,
        flags: Endpoint::GUARD,
        ingress: server.ingress,
        egress: server.egress,
        ipv4: world::SERVER.0.into(),
        ipv6: world::six(world::SERVER.0).into(),
        mac: world::MAC,
        ..Endpoint::default()
    })
}

fn print(cases: &[Case], clusters: &[(u32, u32)], results: &[Vec<f64>]) {
    let rows: BTreeMap<&str, usize> = cases
        .iter()
        .enumerate()
        .map(|(row, case)| (case.name.as_str(), row))
        .collect();
    let ratio = |medians: &[f64], row: usize| medians[row] / medians[rows[cases[row].base]];
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    let mut header = vec!["ratio within the same run".to_owned(), "target".to_owned()];
    header.extend(
        clusters
            .iter()
            .map(|(policies, peers)| format!("{policies} policies\n{peers} peers")),
    );
    table.set_header(header);
    for (row, case) in cases.iter().enumerate() {
        let name = match case.base {
            BARE_LOOKUP => case.name.clone(),
            base => format!("{}\n  (of {base})", case.name),
        };
        let target = case.target;
        let target = target.map_or(String::new(), |target| format!("≤ {target:.1}"));
        let mut line = vec![name, target];
        for medians in results {
            let ratio = ratio(medians, row);
            let missed = case.target.is_some_and(|target| ratio > target);
            let missed = if missed { " !" } else { "" };
            line.push(format!("{ratio:.2}{missed} ({:.0} ns)", medians[row]));
        }
        table.add_row(line);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    let [first, others @ ..] = results else {
        return;
    };
    if others.is_empty() {
        return;
    }
    println!("\nGrowth against the smallest cluster (target: at most 10 %)");
    let targets = cases.iter().enumerate().filter(|(_, c)| c.target.is_some());
    for (row, case) in targets {
        let growth: Vec<String> = others
            .iter()
            .map(|medians| (ratio(medians, row) / ratio(first, row) - 1.0) * 100.0)
            .map(|growth| format!("{growth:+5.1} %"))
            .collect();
        println!("  {:40} {}", case.name, growth.join("  "));
    }
}
