//! Where the pins have to be so that they outlive the agent.

use std::{env, fs, fs::File, os::unix::fs::MetadataExt as _, path::Path, path::PathBuf};

use nix::sched::{CloneFlags, setns};

use crate::dataplane;

/// Moves this process out of a mount namespace that was made for it alone, if its pins would go with it.
///
/// `ip netns exec` starts its command in such a namespace and hides `/sys/fs/bpf` in it: a bpf file system that is mounted
/// there, and with it every program, would end with the agent. The namespace of the process that started it, or of the
/// oldest ancestor that can be seen, outlives it. A container has another root directory: its mount namespace is its own
/// affair and is left alone, as is a bpf file system that somebody has mounted in the namespace of this process only.
///
/// To be called before there are threads (setns(2)).
pub(super) fn outlive(pins: &Path) {
    let Some(lasting) = ancestors().filter(|process| encloses(process)).last() else {
        return;
    };
    let pins = std::path::absolute(pins).unwrap_or_else(|_| pins.to_owned());
    let there = lasting
        .join("root")
        .join(pins.strip_prefix("/").unwrap_or(&pins));
    if dataplane::holds_pins(&pins) && !dataplane::holds_pins(&there) {
        return;
    }
    // Relative paths mean the same as before.
    let here = env::current_dir();
    let namespace = lasting.join("ns/mnt");
    let moved = File::open(&namespace)
        .map_err(|e| e.to_string())
        .and_then(|file| setns(file, CloneFlags::CLONE_NEWNS).map_err(|e| e.to_string()));
    match moved {
        Ok(()) => {
            if let Ok(here) = here {
                let _ = env::set_current_dir(here);
            }
        }
        Err(error) => eprintln!(
            "netpol-agent: this mount namespace ends with the process, and {} cannot be entered ({error}): what is pinned \
             may end with it; start it with `nsenter --net=/run/netns/NAME` instead of `ip netns exec`",
            namespace.display()
        ),
    }
}

/// `netpol-agent mount-bpffs`
pub(super) fn mount_bpffs(pins: &Path) -> anyhow::Result<()> {
    match dataplane::mount_bpffs(pins)? {
        Some(mounted) => println!("mounted a bpf file system on {}", mounted.display()),
        None => println!("{} is on a bpf file system already", pins.display()),
    }
    Ok(())
}

/// The process that started this one, the one that started that, and so on, as directories of `/proc`.
fn ancestors() -> impl Iterator<Item = PathBuf> {
    let parent = |process: &PathBuf| {
        let status = fs::read_to_string(process.join("status")).ok()?;
        let pid: u32 = status
            .lines()
            .find_map(|l| l.strip_prefix("PPid:"))?
            .trim()
            .parse()
            .ok()?;
        (pid > 0).then(|| PathBuf::from(format!("/proc/{pid}")))
    };
    std::iter::successors(parent(&PathBuf::from("/proc/self")), parent)
}

/// Whether a process sees the same root directory in another mount namespace.
fn encloses(process: &Path) -> bool {
    let id = |path: PathBuf| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    let namespace = id(process.join("ns/mnt"));
    let root = id(process.join("root/."));
    namespace.is_some()
        && namespace != id("/proc/self/ns/mnt".into())
        && root.is_some()
        && root == id("/".into())
}
