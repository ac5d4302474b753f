//! `netpol-bench`: what the datapath costs. Started by `cargo xtask bench`.

use clap::{Parser, Subcommand};
use netpol_tests::bench;

/// Measures the datapath. Figures are ratios within one run; the nanoseconds beside them depend on the machine.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Runs the classifiers on single packets (`BPF_PROG_TEST_RUN`), without a network.
    Datapath(bench::datapath::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().what {
        What::Datapath(options) => bench::datapath::run(&options),
    }
}
