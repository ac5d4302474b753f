//! `netpol-agent run`

use std::{
    io::IsTerminal as _,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, bail};
use futures::future::Either;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{LogFormat, RunArgs, lock, mounts, preflight};
use crate::{
    agent,
    cluster::{Access, Api, Directory, Source as _, Timing},
    dataplane::{self, Dataplane, Sizes},
};

pub(super) fn run(args: &RunArgs) -> anyhow::Result<()> {
    log(args.log_format)?;
    preflight::check()?;
    mounts::outlive(&args.bpf_dir.bpf_dir);
    let _run_dir = lock::run_dir(&args.run_dir.run_dir)?;
    let pins = &args.bpf_dir.bpf_dir;
    let taken = || {
        format!(
            "another agent has the pins in {}: stop it, or give this one another --bpf-dir",
            pins.display()
        )
    };
    let mut lock = lock::pins(pins)?;
    if matches!(lock, Some(lock::Pins::Taken)) {
        bail!(taken());
    }
    let source = match &args.manifests {
        Some(manifests) => Either::Left(Directory::open(manifests, Some(&args.run_dir.run_dir))?),
        None => {
            let access = args.kubeconfig.clone().map(Access::Kubeconfig);
            let access = access.unwrap_or_else(Access::infer);
            Either::Right(Api::open(access, Timing::default())?)
        }
    };
    let dataplane = Dataplane::open(&dataplane::Options {
        pins: pins.clone(),
        hook: args.hook.into(),
        sizes: Sizes::default(),
        trace: !args.trace_pod.is_empty(),
        mark: args.mark_mask,
    })?;
    if lock.is_none() {
        lock = lock::pins(pins)?;
        if matches!(lock, Some(lock::Pins::Taken)) {
            bail!(taken());
        }
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = args.node_name,
        source = source.describe(),
        hook = %dataplane.hook(),
        "netpol-agent starts"
    );
    let options = agent::Options {
        node: args.node_name.clone(),
        run_dir: args.run_dir.run_dir.clone(),
        trace: args.trace_pod.iter().cloned().collect(),
        allow_spoofing: args.allow_spoofing,
        metrics: args.metrics_address,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen to SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen to SIGINT")?;
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        anyhow::Ok(agent::run(&options, source, dataplane, stop).await?)
    })?;
    tracing::info!(
        "netpol-agent ends; enforcement stays pinned, `netpol-agent cleanup` removes it"
    );
    drop(lock);
    Ok(())
}

fn log(format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .with_env_var("NETPOL_LOG")
        .from_env()
        .context("NETPOL_LOG is no log filter; try NETPOL_LOG=debug")?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => {
            log.json().flatten_event(true).init();
            // A panic tells of itself in several lines of plain text otherwise.
            std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
            JSON.store(true, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Whether everything on standard error is JSON.
static JSON: AtomicBool = AtomicBool::new(false);

/// Tells why the program ends.
pub(super) fn tell(error: &str) {
    if JSON.load(Ordering::Relaxed) {
        tracing::error!("{error}");
    } else {
        eprintln!("netpol-agent: {error}");
    }
}
