//! `netpol-lab`: the product on a table, without a cluster. `cargo xtask run` builds and calls it.

/// Prints a line, and fails when nobody reads any more: then the lab is taken down, where `println!` would panic.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout(), $($words)*)?
    }};
}

mod events;
mod machine;
mod session;
mod source;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use netpol_tests::{
    agent::Hook,
    lab::{self, Shape},
};

/// NetworkPolicy on real packets: a node and its pods as network namespaces, the real agent in the middle.
#[derive(Parser)]
#[command(name = "netpol-lab", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build a lab, show who reaches whom without and with the agent, then follow every edit of the manifests
    Run {
        /// A scenario of tests/scenarios (S01, S11-and-or), or a directory of manifests
        #[arg(value_name = "SCENARIO|DIR", default_value = "S01")]
        what: PathBuf,
        /// End after the tables; succeed only if the last one is the expected one
        #[arg(long)]
        once: bool,
        /// How pods hang on the node: bridge (as Flannel), bridge-nf (with br_netfilter) or routed (as ptp)
        #[arg(long, default_value = "bridge-nf")]
        shape: Shape,
        /// Which hook the agent uses: auto, tcx or clsact
        #[arg(long, default_value = "auto")]
        hook: Hook,
    },
    /// Remove what killed labs left
    Sweep,
}

fn main() -> ExitCode {
    run(Arguments::parse()).unwrap_or_else(|error| {
        eprintln!("netpol-lab: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(Arguments { verb }: Arguments) -> Result<ExitCode> {
    // Before any thread starts, so that all of them leave signals to the one that waits for them.
    let events = events::Events::new()?;
    machine::check()?;
    match verb {
        Verb::Run {
            what,
            once,
            shape,
            hook,
        } => {
            let source = source::Source::find(&what)?;
            session::run(&source, events, once, shape, hook)
        }
        Verb::Sweep => {
            for id in lab::sweep()? {
                say!("removed what lab {id} left");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}
