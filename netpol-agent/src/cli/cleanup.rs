//! `netpol-agent cleanup`

use std::path::Path;

use anyhow::bail;
use nix::sys::signal::{SigSet, Signal};

use super::{CleanupArgs, lock, mounts, preflight};
use crate::{agent::SOCKET, dataplane};

pub(super) fn cleanup(args: &CleanupArgs) -> anyhow::Result<()> {
    remove(args)?;
    if args.stay {
        let mut ends = SigSet::empty();
        ends.add(Signal::SIGTERM);
        ends.add(Signal::SIGINT);
        ends.thread_block()?;
        ends.wait()?;
    }
    Ok(())
}

fn remove(args: &CleanupArgs) -> anyhow::Result<()> {
    if let Some(lacking) = preflight::privileges()? {
        eprintln!("netpol-agent: {lacking}");
    }
    let pins = &args.bpf_dir.bpf_dir;
    mounts::outlive(pins);
    let lock = lock::pins(pins)?;
    let running = match &lock {
        None => {
            println!("nothing is pinned in {}", pins.display());
            if !args.force
                && let Some(socket) = agent_elsewhere()
                && dataplane::filters()? > 0
            {
                bail!(
                    "filters of netpol-agent are on interfaces, and an agent seems to be running (it listens on {socket}): \
                     name its pins with --bpf-dir, or stop it. With --force they are removed nevertheless"
                );
            }
            tell_orphans(dataplane::cleanup(pins, args.force)?.orphans);
            return Ok(());
        }
        Some(lock::Pins::Ours(_)) => false,
        Some(lock::Pins::Taken) => true,
    };
    if running && !args.force {
        bail!(
            "an agent is running and uses the pins in {}: stop it first. With --force they are removed nevertheless; its \
             pods are open until it is restarted",
            pins.display()
        );
    }
    let removed = dataplane::cleanup(pins, args.force)?;
    println!(
        "removed {} programs from interfaces and {} pins from {}; pods are open now",
        removed.links,
        removed.pins,
        pins.display()
    );
    tell_orphans(removed.orphans);
    if removed.left > 0 {
        println!(
            "{} filters were not removed: they are on devices of another network namespace",
            removed.left
        );
    }
    if running {
        println!("the agent that is running enforces nothing until it is restarted");
    }
    Ok(())
}

/// The socket of an agent that runs in this network namespace, whatever pins it has: `/proc/net/unix` knows of no other namespace.
fn agent_elsewhere() -> Option<String> {
    let sockets = std::fs::read_to_string("/proc/self/net/unix").ok()?;
    let paths = sockets
        .lines()
        .filter_map(|line| line.split(' ').next_back());
    paths
        .filter(|path| Path::new(path).file_name() == Some(SOCKET.as_ref()))
        .map(str::to_owned)
        .next()
}

/// A bpf file system that is unmounted takes the pins with it, and leaves the filters.
fn tell_orphans(orphans: usize) {
    if orphans > 0 {
        println!(
            "removed {orphans} filters of netpol-agent from interfaces that no pin told of; pods are open now"
        );
    }
}
