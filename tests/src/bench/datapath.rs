//! What one packet costs in each program, by `BPF_PROG_TEST_RUN`: many repeats, programs interleaved, medians.

use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::{Context as _, ensure};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use netpol_agent::{
    object,
    packet_builder::{Payload, frame},
};
use netpol_common::{Endpoint, Isolation, map, tcp};

use super::world;
use crate::kernel::{Bench, DROP, LOOPBACK};

/// How much to measure.
#[derive(Args)]
pub struct Options {
    /// Rounds; each round runs every program on every packet once, and the median over the rounds counts.
    #[arg(long, default_value_t = 31)]
    rounds: usize,
    /// How often a program runs on a packet in a round.
    #[arg(long, default_value_t = 50_000)]
    repeat: u32,
}

/// So many flows fit in an empty table beside those of other cases.
const NEW_FLOWS: u32 = 8_192;
/// Clusters: policies and peers.
const CLUSTERS: [(u32, u32); 6] = [
    (1, 10),
    (100, 10),
    (10_000, 10),
    (1, 100_000),
    (100, 100_000),
    (10_000, 100_000),
];
/// The one that all others are compared with.
const SMALLEST: (u32, u32) = CLUSTERS[0];

/// One measured thing.
struct Case {
    name: &'static str,
    yardstick: bool,
    program: &'static str,
    packet: Vec<u8>,
    isolated: bool,
    passes: bool,
    target: Option<f64>,
    /// At most this many repeats, in a flow table that is empty before.
    few: Option<u32>,
}

fn cases() -> Vec<Case> {
    let tcp = segment;
    let case = |name, program, packet, isolated, passes, target| Case {
        name,
        yardstick: false,
        program,
        packet,
        isolated,
        passes,
        target,
        few: None,
    };
    let yardstick = |name, program| Case {
        name,
        yardstick: true,
        program,
        packet: tcp(world::FRIEND, 80, tcp::ACK),
        isolated: true,
        passes: true,
        target: None,
        few: None,
    };
    let new = |name, few, target| Case {
        yardstick: true,
        few,
        ..case(
            name,
            "pod_ingress_new",
            tcp(world::FRIEND, 80, tcp::SYN),
            true,
            true,
            target,
        )
    };
    vec![
        yardstick("empty program", "empty"),
        yardstick("bare lookup", "bare_lookup"),
        Case {
            few: Some(NEW_FLOWS),
            ..yardstick("bare insertion into the flow table", "bare_insert")
        },
        case(
            "established",
            map::POD_INGRESS,
            tcp(world::FRIEND, 80, tcp::ACK),
            true,
            true,
            Some(1.5),
        ),
        new("new allowed flow", Some(NEW_FLOWS), Some(3.0)),
        new("new flow, table full (evicts)", None, None),
        case(
            "denied, wrong port",
            map::POD_INGRESS,
            tcp(world::FRIEND, 81, tcp::SYN),
            true,
            false,
            Some(3.0),
        ),
        case(
            "denied, other pod",
            map::POD_INGRESS,
            tcp(world::FOREIGNER, 80, tcp::SYN),
            true,
            false,
            Some(3.0),
        ),
        case(
            "denied, stranger",
            map::POD_INGRESS,
            tcp(Ipv4Addr::new(192, 0, 2, 7), 80, tcp::SYN),
            true,
            false,
            Some(3.0),
        ),
        case(
            "pod that no policy selects",
            map::POD_INGRESS,
            tcp(world::FRIEND, 80, tcp::ACK),
            false,
            true,
            Some(1.5),
        ),
    ]
}

/// A TCP segment to the server.
fn segment(from: Ipv4Addr, port: u16, flags: u8) -> Vec<u8> {
    let payload = Payload::Tcp {
        source: 40_000,
        destination: port,
        flags,
    };
    frame(from.into(), world::SERVER.0.into(), payload).expect("both are IPv4")
}

/// Runs the benchmark and prints its tables.
///
/// # Errors
///
/// If the programs cannot be loaded, or one of them gives another verdict than the one that is to be measured.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let cases = cases();
    let mut results = BTreeMap::new();
    let mut costs = vec![];
    for (policies, peers) in CLUSTERS {
        eprintln!("{policies} policies, {peers} peers ...");
        let (medians, verifier) = cluster(options, &cases, policies, peers)?;
        results.insert((policies, peers), medians);
        costs = verifier;
    }
    print(&cases, &results);
    println!("\nVerifier: instructions processed, bytes of the translated program");
    for (name, instructions, bytes) in costs {
        println!("  {name:12} {instructions:6} {bytes:6}");
    }
    Ok(())
}

/// Median nanoseconds of each case, and the verifier's figures.
type Measured = (Vec<f64>, Vec<(&'static str, u32, u32)>);

fn cluster(
    options: &Options,
    cases: &[Case],
    policies: u32,
    peers: u32,
) -> anyhow::Result<Measured> {
    let mut bench = Bench::new("bench")?;
    let index = world::cluster(policies, peers);
    bench.dataplane.write(&index.tables())?;
    let server = index
        .local_pods()
        .find(|pod| pod.key.name == world::SERVER.1)
        .context("the compiled cluster has no server pod")?;
    let mut isolated = Endpoint {
        slot: 0,
        ingress: server.ingress,
        egress: server.egress,
        ipv4: world::SERVER.0.into(),
        ..Endpoint::default()
    };
    let open = Endpoint {
        ingress: Isolation::OPEN,
        ..isolated
    };
    isolated.flags = 0;

    let mut agent = bench.load(object::NETPOL)?;
    let mut yardstick = bench.load(object::YARDSTICK)?;
    let mut verifier = vec![];
    for name in [map::POD_INGRESS, map::POD_EGRESS] {
        let info = agent.program(name)?.info()?;
        verifier.push((
            name,
            info.verified_instruction_count().unwrap_or(0),
            info.size_translated().unwrap_or(0),
        ));
    }

    let mut times: Vec<Vec<f64>> = vec![vec![]; cases.len()];
    for round in 0..options.rounds {
        for (case, times) in cases.iter().zip(&mut times) {
            bench
                .dataplane
                .set_endpoint(LOOPBACK, if case.isolated { &isolated } else { &open })?;
            // The flow that "established" and "bare lookup" find: opened by an allowed SYN of the same ports.
            let syn = segment(world::FRIEND, 80, tcp::SYN);
            agent.execute(map::POD_INGRESS, &syn, LOOPBACK, 1)?;
            let object = if case.yardstick {
                &mut yardstick
            } else {
                &mut agent
            };
            let mut repeat = options.repeat;
            if let Some(few) = case.few {
                repeat = repeat.min(few);
                bench.forget_flows()?;
            }
            let (verdict, time) = object.execute(case.program, &case.packet, LOOPBACK, repeat)?;
            ensure!(
                (verdict != DROP) == case.passes,
                "{}: the verdict is not the one to be measured",
                case.name
            );
            if round > 0 {
                times.push(time);
            }
        }
    }
    Ok((times.iter_mut().map(|t| median(t)).collect(), verifier))
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

fn print(cases: &[Case], results: &BTreeMap<(u32, u32), Vec<f64>>) {
    let bare = |medians: &[f64]| medians[1];
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    let mut header = vec![
        "ratio to the bare lookup of the same run".to_owned(),
        "target".to_owned(),
    ];
    header.extend(
        CLUSTERS
            .iter()
            .map(|(policies, peers)| format!("{policies} policies\n{peers} peers")),
    );
    table.set_header(header);
    for (n, case) in cases.iter().enumerate() {
        let mut row = vec![
            case.name.to_owned(),
            case.target
                .map_or(String::new(), |target| format!("≤ {target:.1}")),
        ];
        for cluster in CLUSTERS {
            let medians = &results[&cluster];
            let ratio = medians[n] / bare(medians);
            let missed = case.target.is_some_and(|target| ratio > target);
            row.push(format!(
                "{ratio:.2}{} ({:.0} ns)",
                if missed { " !" } else { "" },
                medians[n]
            ));
        }
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    println!(
        "\nGrowth against {} policy and {} peers (target: at most 10 %)",
        SMALLEST.0, SMALLEST.1
    );
    for (n, case) in cases
        .iter()
        .enumerate()
        .filter(|(_, case)| case.target.is_some())
    {
        let ratio = |cluster| results[&cluster][n] / bare(&results[&cluster]);
        let growth: Vec<String> = CLUSTERS[1..]
            .iter()
            .map(|&cluster| {
                format!(
                    "{:+5.1} %",
                    (ratio(cluster) / ratio(SMALLEST) - 1.0) * 100.0
                )
            })
            .collect();
        println!("  {:28} {}", case.name, growth.join("  "));
    }
}
