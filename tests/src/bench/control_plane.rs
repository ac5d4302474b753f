//! What following a cluster costs the agent: a real API server, synthetic clusters, and the kernel's tables watched from outside.

mod cluster;
mod events;
mod gauge;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};

pub use self::cluster::Kind;
use self::{
    cluster::Cluster,
    events::{Latency, Stage},
    gauge::{Process, Tables},
};
use crate::{
    agent::{Agent, Hook},
    control_plane::ControlPlane,
    lab::{Lab, NODE_NAME, Shape},
    manifests::World,
    table::Party,
};

/// Which clusters, and how much to measure.
#[derive(Args)]
pub struct Options {
    /// One cluster instead of the table: how many pods
    #[arg(long)]
    pods: Option<usize>,
    /// Policies of that cluster
    #[arg(long, default_value_t = 100)]
    policies: usize,
    /// Pods of that cluster that are on this node
    #[arg(long, default_value_t = 110)]
    local: usize,
    /// What is odd about that cluster
    #[arg(long, value_enum, default_value_t = Kind::Realistic)]
    kind: Kind,
    /// Changes that are timed, of each kind
    #[arg(long, default_value_t = 200)]
    events: usize,
    /// Pod events a second that go on in the background in the last part
    #[arg(long, default_value_t = 100)]
    churn: u32,
}

/// Without options. The small ones first: they are read most.
const PUBLISHED: [(Kind, usize, usize, usize); 8] = [
    (Kind::Realistic, 1_000, 100, 110),
    (Kind::Realistic, 10_000, 1_000, 110),
    (Kind::Realistic, 10_000, 1_000, 250),
    (Kind::Realistic, 50_000, 30_000, 110),
    (Kind::OwnLabels, 10_000, 10_000, 110),
    (Kind::SelectsAll, 10_000, 1_000, 110),
    (Kind::Namespaces, 10_000, 10_000, 110),
    (Kind::NotIn, 10_000, 1_000, 110),
];

/// One line of the result.
struct Row {
    cluster: Cluster,
    first: Duration,
    first_busy: Duration,
    memory: [u64; 2],
    kernel: u64,
    quiet: [Latency; 2],
    busy: [Latency; 2],
    /// Processor time of the agent for one event that concerns nothing here.
    foreign: Duration,
    /// And for one that does.
    event: [Duration; 2],
    /// Share of a processor during the churn.
    churn: f64,
}

/// Runs the benchmark and prints its tables.
///
/// # Errors
///
/// If the control plane or the lab cannot be started, or the agent does not enforce.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let clusters: Vec<Cluster> = match options.pods {
        Some(pods) => vec![Cluster {
            kind: options.kind,
            pods,
            local: options.local.min(pods),
            policies: options.policies,
        }],
        None => PUBLISHED
            .into_iter()
            .map(|(kind, pods, policies, local)| Cluster {
                kind,
                pods,
                local,
                policies,
            })
            .collect(),
    };
    let mut rows = Vec::new();
    for cluster in clusters {
        eprintln!(
            "{}: {} pods ({} local), {} policies, {} namespaces ...",
            cluster.kind,
            cluster.pods,
            cluster.local,
            cluster.policies,
            cluster.namespaces()
        );
        rows.push(measure(cluster, options)?);
        print(&rows);
    }
    Ok(())
}

fn measure(cluster: Cluster, options: &Options) -> anyhow::Result<Row> {
    let manifests: Vec<String> = (0..cluster.local)
        .map(|number| Ok(serde_json::to_string(&cluster.local_pod(number))?))
        .collect::<anyhow::Result<_>>()?;
    let lab = Lab::new(Shape::Routed, World::parse(&manifests.join("\n---\n")))?;
    let mut server = ControlPlane::start(&lab)?;
    server.seed(cluster.namespace_objects())?;
    server.apply(&lab)?;
    server.seed((cluster.local..cluster.pods).map(|number| cluster.remote_pod(number)))?;
    server.seed((0..cluster.policies).map(|number| cluster.policy(number)))?;

    let began = Instant::now();
    let mut agent = Agent::start_with_api(&lab, &server.kubeconfig(), NODE_NAME, Hook::Auto, &[])?;
    agent.wait_for(Duration::from_secs(300))?;
    let first = began.elapsed();
    let process = Process::new(agent.pid().context("it runs")?);
    let first_busy = process.busy()?;
    // What was freed after the lists may go back to the kernel late.
    std::thread::sleep(Duration::from_secs(2));
    let memory = process.memory()?;
    let kernel = Tables::of(&lab).memory()?;

    let (namespace, name) = cluster.pod_name(0);
    let party = Party::pod(&namespace, &name);
    let stage = Stage::new(
        &server,
        &cluster,
        &process,
        Tables::of(&lab),
        lab.device(&party)?,
    )?;
    let foreign = stage.foreign(options.events)?;
    let (policies, policy_cost) = stage.policies(options.events)?;
    let (pods, pod_cost) = stage.pods(options.events)?;
    let (busy, churn) = stage.amid_churn(options.events, options.churn)?;
    agent.stop()?;
    Ok(Row {
        cluster,
        first,
        first_busy,
        memory,
        kernel,
        quiet: [policies, pods],
        busy,
        foreign,
        event: [policy_cost, pod_cost],
        churn,
    })
}

fn print(rows: &[Row]) {
    let mebibytes = |bytes: u64| format!("{:.1}", bytes as f64 / 1_048_576.0);
    let millis = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1e3);
    let mut size = table(&[
        "cluster",
        "pods",
        "local",
        "policies",
        "first s",
        "first CPU s",
        "RSS MiB",
        "highest",
        "kernel MiB",
    ]);
    let mut time = table(&[
        "cluster",
        "pods",
        "policies",
        "policy p50",
        "p99",
        "pod p50",
        "p99",
        "policy amid churn p50",
        "p99",
        "pod p50",
        "p99",
    ]);
    let mut cost = table(&[
        "cluster",
        "pods",
        "policies",
        "foreign pod event",
        "pod event",
        "policy event",
        "churn",
    ]);
    for row in rows {
        let cluster = &row.cluster;
        size.add_row([
            cluster.kind.to_string(),
            cluster.pods.to_string(),
            cluster.local.to_string(),
            cluster.policies.to_string(),
            format!("{:.2}", row.first.as_secs_f64()),
            format!("{:.2}", row.first_busy.as_secs_f64()),
            mebibytes(row.memory[0]),
            mebibytes(row.memory[1]),
            mebibytes(row.kernel),
        ]);
        let head = [
            cluster.kind.to_string(),
            cluster.pods.to_string(),
            cluster.policies.to_string(),
        ];
        let times = row.quiet.iter().chain(&row.busy);
        time.add_row(
            head.iter()
                .cloned()
                .chain(times.flat_map(|latency| [millis(latency.p50), millis(latency.p99)])),
        );
        let micros = |time: Duration| format!("{:.0} us", time.as_secs_f64() * 1e6);
        cost.add_row(head.into_iter().chain([
            micros(row.foreign),
            micros(row.event[1]),
            micros(row.event[0]),
            format!("{:.1} %", row.churn * 100.0),
        ]));
    }
    println!("What it takes to follow a cluster:\n{size}\n");
    println!("From the server's answer to a write until the kernel judges by it, in ms:\n{time}\n");
    println!(
        "Processor time of the agent, for one event, and its share of a processor during the churn:\n{cost}\n"
    );
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(head);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
