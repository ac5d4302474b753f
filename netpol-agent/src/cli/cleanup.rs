//! `netpol-agent cleanup`

use anyhow::bail;
use nix::sys::signal::{SigSet, Signal};

use super::{CleanupArgs, lock, mounts, preflight};
use crate::dataplane;

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
