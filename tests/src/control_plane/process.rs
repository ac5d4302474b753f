//! A program of the control plane: it ends with whoever started it, in whatever way that ends.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
    },
    unistd::Pid,
};

use crate::lab::Worker;

/// How long a program may take to end by itself.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// A running program. Killed on drop, and when the worker's thread ends.
pub(super) struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program in the namespace of a worker. What it writes is appended to `NAME.log` in this directory.
    pub fn start(
        name: &'static str,
        worker: &Worker,
        directory: &Path,
        mut command: Command,
    ) -> anyhow::Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0);
        // SAFETY: between `fork` and `exec` it makes two system calls, `prctl` and `rt_sigprocmask`, and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                // The parent, to the kernel, is the thread that forks: the worker's, which lives as long as this control plane.
                prctl::set_pdeathsig(Signal::SIGKILL)?;
                SigSet::empty().thread_set_mask()?;
                Ok(())
            });
        }
        let child = worker
            .run(move || async move { command.spawn() })
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, child, log })
    }

    /// An error with its last words if it has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let name = self.name;
            bail!(
                "{name} ended by itself ({status}); its last words:\n{}",
                self.log_end()
            );
        }
        Ok(())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// Asks it to end, and kills it if it does not.
    pub fn end(mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGTERM)?;
        let deadline = Instant::now() + LAST_WORDS;
        while self.child.try_wait()?.is_none() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The end of what it wrote.
    pub fn log_end(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
