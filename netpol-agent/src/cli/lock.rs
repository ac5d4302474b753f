//! Two agents must not write to the same tables.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::Path,
};

use anyhow::{Context as _, bail};

/// Locks the run directory of an agent, made if it is missing. The lock ends with the process.
pub(super) fn run_dir(directory: &Path) -> anyhow::Result<File> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make the run directory {}", directory.display()))?;
    let path = directory.join("agent.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    if !lock(&file).with_context(|| format!("cannot lock {}", path.display()))? {
        bail!(
            "an agent is already running with the run directory {}: stop it, or give this one another --run-dir and \
             --bpf-dir",
            directory.display()
        );
    }
    Ok(file)
}

/// Locks the directory of the pins, if it is there. `Err(Busy)` if an agent has it.
pub(super) fn pins(directory: &Path) -> anyhow::Result<Option<Pins>> {
    let file = match File::open(directory) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("cannot open {}", directory.display())),
    };
    let free = lock(&file).with_context(|| format!("cannot lock {}", directory.display()))?;
    Ok(Some(if free { Pins::Ours(file) } else { Pins::Taken }))
}

/// Who has the pins.
#[must_use]
pub(super) enum Pins {
    /// We, as long as this lives.
    Ours(#[expect(dead_code, reason = "holds the lock")] File),
    /// An agent that is running.
    Taken,
}

fn lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e),
    }
}
