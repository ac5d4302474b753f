//! `netpol-cluster-test`: the scenarios on a real cluster. `cargo xtask cluster-test` builds and calls it.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use netpol_tests::{
    cluster::{self, Options, Part, client::Cluster},
    scenario::Scenario,
};

/// NetworkPolicy on a real cluster: every scenario as real pods, probed by exec, table against table.
///
/// Makes namespaces of its own and deletes those again; nothing else on the cluster is touched.
#[derive(Parser)]
#[command(name = "netpol-cluster-test", version)]
struct Arguments {
    /// The context of the kubeconfig
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The kubeconfig; else that of kubectl
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// What is played; may be given several times. `life` replaces the agents
    #[arg(long, value_enum, value_name = "PART", default_values_t = [Part::Scenarios])]
    part: Vec<Part>,
    /// Only these scenarios: S07 or S07-default-denies; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// There is no agent: policies are applied, and everything must stay open
    #[arg(long, conflicts_with = "agent")]
    without_agent: bool,
    /// The agent's DaemonSet; its roll-out is waited for
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "kube-system/netpol-agent", value_parser = namespaced)]
    agent: (String, String),
    /// The image of all pods: one with /agnhost and a shell. Else the one that the scenarios name
    #[arg(long, value_name = "IMAGE")]
    probe_image: Option<String>,
    /// What the names of our namespaces begin with
    #[arg(long, value_name = "NAME", default_value = "netpol-test")]
    prefix: String,
    /// How long one connection attempt may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    timeout: u64,
    /// How long a change of policies may take until it is seen everywhere, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    patience: u64,
    /// How many scenarios are played side by side
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    at_once: usize,
    /// Leave the pods and policies of each scenario's last step; the next run removes them
    #[arg(long)]
    keep: bool,
}

fn namespaced(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("write NAMESPACE/NAME".to_owned()),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("netpol-cluster-test: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<bool> {
    let scenarios = if arguments.only.is_empty() {
        Scenario::all()?
    } else {
        let named = arguments.only.iter();
        named
            .map(|name| Scenario::find(name))
            .collect::<Result<_, _>>()?
    };
    ensure!(arguments.timeout > 0, "--timeout 0 would deny everything");
    let cluster = Cluster::connect(
        arguments.kubeconfig.as_deref(),
        arguments.context.as_deref(),
    )
    .await?;
    let (namespace, name) = &arguments.agent;
    if arguments.without_agent {
        ensure!(
            !arguments.part.contains(&Part::Life),
            "--part life is about agents: it cannot be played --without-agent"
        );
        ensure!(
            !cluster.has_daemon_set(namespace, name).await?,
            "--without-agent, but DaemonSet {namespace}/{name} is there"
        );
    }
    let options = Options {
        parts: arguments.part,
        prefix: arguments.prefix,
        probe_image: arguments.probe_image,
        agent: (!arguments.without_agent).then_some(arguments.agent),
        timeout: Duration::from_secs(arguments.timeout),
        patience: Duration::from_secs(arguments.patience),
        at_once: arguments.at_once,
        keep: arguments.keep,
    };
    cluster::run(&cluster, &options, &scenarios)
        .await
        .context("the suite could not be played")
}
