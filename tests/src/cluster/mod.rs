//! The scenarios on a real cluster: real pods, spread over its nodes, that probe each other by `exec`.
//!
//! - [`names`]: what a scenario's objects are called on a cluster that may be in use
//! - [`pods`]: a scenario's pods as a kubelet shall run them
//! - [`probes`]: which cells of a table a cluster can show, and which it cannot
//! - [`mod@script`]: all probes of one pod as one script
//! - [`client`]: the API server
//! - [`stage`]: one scenario on the cluster
//! - [`play`]: its story, table by table
//! - [`report`]: what came of it, for people
//! - [`life`]: agents that are replaced and pods that come and go, under traffic
//!
//! Everything but [`client`], [`stage`] and [`play`] is pure, and tested without a cluster.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, stream};

pub mod client;
pub mod life;
pub mod names;
pub mod play;
pub mod pods;
pub mod probes;
pub mod report;
pub mod script;
pub mod stage;

use client::Cluster;
use report::Report;

use crate::scenario::Scenario;

/// How long an agent may take from its deployment to its first complete enforcement.
const ROLL_OUT_PATIENCE: Duration = Duration::from_secs(300);
/// How long namespaces may take to go.
const STRIKE_PATIENCE: Duration = Duration::from_secs(300);

/// What a run of the suite is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Part {
    /// Every scenario, table against table
    Scenarios,
    /// Agents that are replaced, pods that come and go, kubelets and the network of nodes, under traffic
    Life,
}

/// What a run of the suite is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is played.
    pub parts: Vec<Part>,
    /// What the names of our namespaces begin with.
    pub prefix: String,
    /// The image of all pods, in place of the one that the scenarios name.
    pub probe_image: Option<String>,
    /// The agent's DaemonSet, namespace and name; `None` when there must be none, and everything open.
    pub agent: Option<(String, String)>,
    /// How long one connection attempt may take.
    pub timeout: Duration,
    /// How long a change of policies may take until it is seen everywhere.
    pub patience: Duration,
    /// How many scenarios are played side by side.
    pub at_once: usize,
    /// Leave the pods and policies of the last step.
    pub keep: bool,
}

/// Plays scenarios and shows each as soon as it and those before it have ended. Says whether all was as expected.
pub async fn run(cluster: &Cluster, options: &Options, scenarios: &[Scenario]) -> Result<bool> {
    let nodes = cluster.nodes().await?;
    ensure!(
        !nodes.is_empty(),
        "no node of {} is ready and takes pods",
        cluster.url
    );
    report::introduce(cluster, options, &nodes);
    let left = cluster.ours(&options.prefix).await?;
    if !left.is_empty() {
        println!(
            "an earlier run has left {} namespaces: waiting until they are gone",
            left.len()
        );
        cluster.delete_namespaces(left).await?;
        cluster.wait_gone(&options.prefix, STRIKE_PATIENCE).await?;
    }
    if let Some((namespace, name)) = &options.agent {
        let pods = cluster
            .wait_rolled_out(namespace, name, ROLL_OUT_PATIENCE)
            .await?;
        println!("DaemonSet {namespace}/{name}: {pods} pods are ready");
    }
    let played = tokio::select! {
        played = play_parts(cluster, options, scenarios, &nodes) => played,
        signal = tokio::signal::ctrl_c() => {
            signal.context("wait for a signal")?;
            Err(anyhow::anyhow!("interrupted"))
        }
    };
    if !options.keep {
        let ours = cluster.ours(&options.prefix).await?;
        cluster.delete_namespaces(ours).await?;
        cluster
            .wait_gone(&options.prefix, STRIKE_PATIENCE)
            .await
            .context("everything has been played; the namespaces were deleted")?;
    }
    played
}

async fn play_parts(
    cluster: &Cluster,
    options: &Options,
    scenarios: &[Scenario],
    nodes: &[String],
) -> Result<bool> {
    let mut good = true;
    if options.parts.contains(&Part::Scenarios) {
        let reports = play_all(cluster, options, scenarios, nodes).await?;
        report::conclude(&reports);
        good &= reports.iter().all(Report::is_good);
    }
    if options.parts.contains(&Part::Life) {
        good &= life::run(cluster, options, nodes, &image(scenarios)?).await?;
    }
    Ok(good)
}

/// The image that the scenarios name.
fn image(scenarios: &[Scenario]) -> Result<String> {
    let mut pods = scenarios
        .iter()
        .flat_map(|scenario| scenario.world.values("Pod", |_| None));
    let image = pods.find_map(|pod| pods::image(&pod).map(str::to_owned));
    image.context("no scenario has a pod")
}

async fn play_all(
    cluster: &Cluster,
    options: &Options,
    scenarios: &[Scenario],
    nodes: &[String],
) -> Result<Vec<Report>> {
    let mut plays = stream::iter(scenarios.iter().enumerate())
        .map(|(nth, scenario)| play::play(cluster, options, scenario, nodes, nth))
        .buffered(options.at_once.max(1));
    let mut reports = Vec::new();
    while let Some(report) = plays.next().await {
        println!("{report}");
        reports.push(report);
    }
    Ok(reports)
}
