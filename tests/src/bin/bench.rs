//! `netpol-bench`: what the agent costs. Started by `cargo xtask bench`.

use clap::{Parser, Subcommand};
use netpol_tests::bench;

/// Measures the agent. Figures are ratios within one run; the nanoseconds beside them depend on the machine.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Runs the classifiers on single packets (`BPF_PROG_TEST_RUN`), without a network.
    Datapath(bench::datapath::Options),
    /// Follows synthetic clusters through a real API server: time to the first enforcement, memory, time and processor time for
    /// a change.
    ControlPlane(bench::control_plane::Options),
    /// Sends traffic between two pods of a lab, without programs, with empty ones and with the agent's, and floods an agent
    /// with drops.
    Throughput(bench::throughput::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().what {
        What::Datapath(options) => bench::datapath::run(&options),
        What::ControlPlane(options) => bench::control_plane::run(&options),
        What::Throughput(options) => bench::throughput::run(&options),
    }
}
