//! Programs inside a namespace of the lab.

use std::{
    ffi::OsStr,
    io::Write,
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Command, Stdio},
};

use nix::sys::signal::SigSet;

use super::{error::LabError, netns, station::Station};

/// A program that will start in a network namespace, with no signal blocked.
pub fn command_in(namespace: OwnedFd, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    // SAFETY: between `fork` and `exec` it makes two system calls, `setns` and `rt_sigprocmask` (the lab's program blocks
    // signals, and the child would inherit that), and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            netns::enter(&namespace)?;
            SigSet::empty().thread_set_mask()?;
            Ok(())
        });
    }
    command
}

impl Station {
    /// A program that will start here.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command, LabError> {
        Ok(command_in(self.namespace.open()?.into(), program))
    }

    /// Runs a program here to its end, with this as its standard input, and returns what it wrote.
    pub fn run_program(
        &self,
        program: &str,
        arguments: &[&str],
        input: &str,
    ) -> Result<String, LabError> {
        let line = [&[program], arguments].concat().join(" ");
        let failed = |error| LabError::io(format!("run `{line}`"), error);
        let mut child = self
            .command(program)?
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that ends without reading says why itself.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(LabError::Program {
            command: line,
            namespace: self.namespace.name().to_owned(),
            said: String::from_utf8_lossy(&output.stderr)
                .trim_end()
                .to_owned(),
        })
    }
}
