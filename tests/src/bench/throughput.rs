//! What a network carries with the programs on its devices: two pods of a lab, real sockets.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};

use super::{
    flood,
    load::{Load, Servers, on_processor},
    median,
    variants::{Hooks, Variant},
};
use crate::{
    lab::{Lab, Shape, enter},
    manifests::World,
    table::{Family, Party},
};

/// How much to measure.
#[derive(Args)]
pub struct Options {
    /// Rounds; each round runs every kind of traffic with every variant of programs, and the median over the rounds counts.
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// Milliseconds of traffic in a round, of each kind and with each variant.
    #[arg(long, default_value_t = 100)]
    slice: u64,
    /// How pods hang on the node: bridge (as Flannel), bridge-nf (with br_netfilter) or routed (as ptp)
    #[arg(long, default_value = "bridge-nf")]
    shape: Shape,
    /// Policies; half of them select one of the two pods.
    #[arg(long, default_value_t = 1_000)]
    policies: u32,
}

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {namespace: bench, name: client}
spec: {containers: [{name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: bench, name: server}
spec: {containers: [{name: c}]}
";

/// What was measured with one variant of programs.
#[derive(Default)]
struct Times {
    /// Of one operation in nanoseconds, by round.
    each: Vec<f64>,
}

/// Runs the benchmark and prints its tables.
///
/// # Errors
///
/// If the lab cannot be built, a program is refused, or traffic does not get through.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let lab = Lab::new(options.shape, World::parse(PODS))?;
    let [client, server] = ["client", "server"].map(|name| Party::pod("bench", name));
    let target = lab.address(&server, Family::V4)?;
    eprintln!(
        "{} policies, pods on a {} ...",
        options.policies, options.shape
    );
    let mut hooks = Hooks::new(&lab, [&client, &server], options.policies)?;
    let _servers = Servers::start(lab.station(&server)?.namespace.open()?, target)?;

    let mut times: Vec<[Times; 3]> = Load::ALL.iter().map(|_| Default::default()).collect();
    let slice = Duration::from_millis(options.slice);
    // The first round warms up.
    for round in 0..=options.rounds {
        for turn in 0..Variant::ALL.len() {
            // Each variant follows each other one equally often.
            let place = (turn * (1 + round % 2) + round) % Variant::ALL.len();
            let variant = Variant::ALL[place];
            hooks.set(variant)?;
            for (load, times) in Load::ALL.into_iter().zip(&mut times) {
                let time = traffic(&lab, &client, target, load, slice)
                    .with_context(|| format!("{load} with {variant}"))?;
                if round > 0 {
                    times[place].each.push(time);
                }
            }
        }
    }
    let mut runs = vec![];
    hooks.set(Variant::Agent)?;
    for load in Load::ALL {
        let before = hooks.runs()?;
        let mut operations = 0.0;
        let each = {
            let each = traffic(&lab, &client, target, load, slice * 3)?;
            operations += (slice * 3).as_nanos() as f64 / each;
            each
        };
        let after = hooks.runs()?;
        runs.push((
            (after.0 - before.0) as f64 / operations,
            (after.1 - before.1).as_nanos() as f64 / operations,
            each,
        ));
    }
    print(&mut times, &runs);
    drop(hooks);
    drop(lab);
    flood::run(options.shape)
}

/// Nanoseconds of one operation of a load.
fn traffic(
    lab: &Lab,
    client: &Party,
    server: IpAddr,
    load: Load,
    slice: Duration,
) -> anyhow::Result<f64> {
    let namespace = lab.station(client)?.namespace.open()?;
    let worker = thread::spawn(move || {
        enter(&namespace)?;
        on_processor(0);
        load.run(SocketAddr::new(server, load.port()), slice)
    });
    let (operations, time) = worker
        .join()
        .map_err(|_| anyhow::anyhow!("the client panicked"))??;
    ensure!(operations > 0, "nothing got through");
    Ok(time.as_nanos() as f64 / operations as f64)
}

fn print(times: &mut [[Times; 3]], runs: &[(f64, f64, f64)]) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "time of one operation",
        "no programs",
        "empty programs",
        "the agent's",
        "agent / empty\nmedian (quartiles)",
        "target",
    ]);
    for (load, variants) in Load::ALL.into_iter().zip(times.iter_mut()) {
        let [_, empty, agent] = &*variants;
        let pairs = agent.each.iter().zip(&empty.each);
        let mut ratios: Vec<f64> = pairs.map(|(agent, empty)| agent / empty).collect();
        let ratio = median(&mut ratios);
        let quartile = |n: usize| ratios.get(ratios.len() * n / 4).copied().unwrap_or(ratio);
        let missed = if ratio > 1.01 { " !" } else { "" };
        let spread = format!(
            "{ratio:.3}{missed} ({:.3} to {:.3})",
            quartile(1),
            quartile(3)
        );
        let mut line = vec![load.to_string()];
        line.extend(
            variants
                .iter_mut()
                .map(|times| format!("{:.0} ns", median(&mut times.each))),
        );
        line.extend([spread, "≤ 1.010".to_owned()]);
        table.add_row(line);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    println!(
        "\nWhere the time goes: the agent's programs as the kernel counts them (which itself costs)"
    );
    for (load, (count, time, each)) in Load::ALL.into_iter().zip(runs) {
        println!(
            "  {:40} {count:7.2} runs, {time:6.0} ns of {each:7.0} ns: {:4.1} %",
            load.to_string(),
            time / each * 100.0
        );
    }
}
