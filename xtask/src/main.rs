//! Everything that a contributor runs: `cargo xtask --help` is the map.

mod cluster_test;
mod conformance;
mod control_plane;
mod go;
mod image;
mod kind;
mod machine;
mod setup;
mod shell;
mod tools;

use std::{env, ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use control_plane::Programs;
use shell::{become_program, cargo, run, say};

/// Everything that a contributor runs.
///
/// Each command installs what it needs first. Start with `cargo xtask run`.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// See the agent enforce a policy: a node of network namespaces, probed before and after (root)
    ///
    /// Builds a lab from manifests, shows who reaches whom while the policy is not enforced, starts the agent, and shows it
    /// again. Then it stays: edit a manifest and the table is probed again.
    Run {
        /// A scenario of tests/scenarios, or a directory of manifests; and options of the lab, such as --once. Say
        /// `cargo xtask run -- --help` for all of them
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<OsString>,
    },
    /// Run every test: first those that need nothing, then the agent on real packets (root)
    Test {
        /// Only tests whose name contains this, for example s01
        #[arg(long, value_name = "NAME")]
        only: Option<OsString>,
        /// Leave out the tests against a real kube-apiserver, for which it is built from Go modules (some minutes, once)
        ///
        /// The variable NETPOL_CONTROL_PLANE_BIN names a folder with a ready kube-apiserver and etcd instead.
        #[arg(long)]
        without_control_plane: bool,
        /// For the test programs, for example `-- --nocapture`
        #[arg(last = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
    /// A cluster of containers with Flannel: make it, test the agent on it, delete it (kind, kubectl, and an engine for kind)
    Kind {
        #[command(subcommand)]
        verb: kind::Kind,
    },
    /// The scenarios as real pods, on any cluster: `cargo xtask cluster-test --context NAME`
    ClusterTest {
        /// Options of the suite; say `cargo xtask cluster-test -- --help` for all of them
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<OsString>,
    },
    /// What others test of NetworkPolicy, on a cluster with the agent: Kubernetes' end-to-end tests and cyclonus (go)
    Conformance(conformance::Conformance),
    /// What continuous integration runs: format, lints, tests (root)
    Ci {
        /// As of `test`
        #[arg(long)]
        without_control_plane: bool,
    },
    /// Measure (root)
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Build the agent with its eBPF programs, and print where it is
    Build {
        /// For use, not for debugging
        #[arg(long)]
        release: bool,
    },
    /// Build the container image, without a container engine, and print where the archive is
    ///
    /// One static program and nothing else, as OCI image layout and `docker save` archive in one file. The same source gives
    /// the same image.
    Image(image::Options),
    /// Install what building needs (rust-src, bpf-linker); the other commands do this by themselves
    Setup,
    /// Build the kube-apiserver and the etcd of the tests, and print the folder that they are in
    ControlPlane,
}

#[derive(Subcommand)]
enum Bench {
    /// What one packet costs in the classifiers, as a ratio to a bare map lookup
    Datapath {
        /// Options of the benchmark
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<OsString>,
    },
    /// What following a cluster costs: synthetic clusters of up to 50,000 pods on a real API server
    ControlPlane {
        /// Options of the benchmark
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<OsString>,
    },
    /// What the network between two pods carries, as a ratio to one with empty programs; and what a flood of drops costs
    /// the agent
    Throughput {
        /// Options of the benchmark
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match perform(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(verb: Verb) -> Result<()> {
    match verb {
        Verb::Run { args } => lab(&args),
        Verb::Test {
            only,
            without_control_plane,
            args,
        } => test(only, without_control_plane, &args),
        Verb::Kind { verb } => kind::perform(verb),
        Verb::ClusterTest { args } => cluster_test::run_suite(&args),
        Verb::Conformance(options) => conformance::perform(&options),
        Verb::Ci {
            without_control_plane,
        } => {
            machine::check()?;
            run(&mut cargo(["fmt", "--all", "--check"]))?;
            run(&mut cargo([
                "clippy",
                "--workspace",
                "--all-targets",
                "--all-features",
                "--",
                "--deny",
                "warnings",
            ]))?;
            test(None, without_control_plane, &[])
        }
        Verb::Bench { what } => match what {
            Bench::Datapath { args } => bench("datapath", &args, None),
            Bench::Throughput { args } => bench("throughput", &args, None),
            Bench::ControlPlane { args } => bench("control-plane", &args, Some(Programs::begin()?)),
        },
        Verb::Build { release } => {
            setup::setup()?;
            build(
                &["--package", "netpol-agent", "--bins"]
                    .into_iter()
                    .chain(release.then_some("--release"))
                    .collect::<Vec<_>>(),
            )?;
            println!("{}", binary("netpol-agent", release)?.display());
            Ok(())
        }
        Verb::Image(options) => image::image(&options),
        Verb::Setup => {
            setup::setup()?;
            say("setup: everything that building needs is here");
            Ok(())
        }
        Verb::ControlPlane => {
            println!("{}", Programs::begin()?.folder()?.display());
            Ok(())
        }
    }
}

fn lab(args: &[OsString]) -> Result<()> {
    machine::check()?;
    setup::setup()?;
    build(&[
        "--package",
        "netpol-agent",
        "--package",
        "netpol-tests",
        "--bins",
    ])?;
    let mut lab = std::process::Command::new(binary("netpol-lab", false)?);
    become_program(
        lab.arg("run")
            .args(args)
            .env("NETPOL_AGENT_BIN", binary("netpol-agent", false)?),
    )
}

fn bench(what: &str, args: &[OsString], control_plane: Option<Programs>) -> Result<()> {
    machine::check()?;
    setup::setup()?;
    build(&[
        "--package",
        "netpol-agent",
        "--package",
        "netpol-tests",
        "--bin",
        "netpol-agent",
        "--bin",
        "netpol-bench",
        "--release",
    ])?;
    let mut measure = std::process::Command::new(binary("netpol-bench", true)?);
    measure
        .arg(what)
        .args(args)
        .env("NETPOL_AGENT_BIN", binary("netpol-agent", true)?);
    if let Some(control_plane) = control_plane {
        measure.env(control_plane::VARIABLE, control_plane.folder()?);
    }
    become_program(&mut measure)
}

/// Tests on real packets mostly wait for what must not arrive, so more of them than processors may run at once; a bound
/// keeps the number of namespaces, and the time that each agent has, the same on a large machine.
const TESTS_AT_ONCE: &str = "4";

fn test(only: Option<OsString>, without_control_plane: bool, args: &[OsString]) -> Result<()> {
    machine::check()?;
    setup::setup()?;
    // Beside the build of the tests, and done before they run: some of them count losses.
    let control_plane = (!without_control_plane).then(Programs::begin).transpose()?;
    let features = match &control_plane {
        Some(_) => "netpol-tests/control-plane",
        None => "netpol-tests/kernel",
    };
    // One selection of packages for both commands: another one could choose other features of shared dependencies, and
    // compile them a second time.
    let all = ["--workspace", "--features", features];
    build(&[&all[..], &["--bins", "--tests"]].concat())?;
    let mut tests = cargo(["test"]);
    tests
        .args(all)
        .args(["--no-fail-fast", "--"])
        .args(only)
        .args(args)
        .env("NETPOL_AGENT_BIN", binary("netpol-agent", false)?);
    if let Some(control_plane) = control_plane {
        tests.env(control_plane::VARIABLE, control_plane.folder()?);
    }
    if env::var_os("RUST_TEST_THREADS").is_none() {
        tests.env("RUST_TEST_THREADS", TESTS_AT_ONCE);
    }
    let result = run(&mut tests);
    if without_control_plane {
        say("the tests against a real kube-apiserver were left out (--without-control-plane)");
    }
    result
}

fn build(arguments: &[&str]) -> Result<()> {
    say("building");
    run(cargo(["build"]).args(arguments))
}

/// Where cargo put a program: beside this one, or in the other profile's folder.
fn binary(name: &str, release: bool) -> Result<PathBuf> {
    let program = target_folder()?
        .join(if release { "release" } else { "debug" })
        .join(name);
    program
        .is_file()
        .then_some(())
        .with_context(|| format!("cargo built no {}", program.display()))?;
    Ok(program)
}

/// Cargo's target directory: it has put this program there.
fn target_folder() -> Result<PathBuf> {
    let this = env::current_exe().context("where is xtask itself?")?;
    this.ancestors()
        .nth(2)
        .map(PathBuf::from)
        .context("xtask is started by cargo, from its target directory")
}
