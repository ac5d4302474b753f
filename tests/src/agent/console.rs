//! Any command of the agent, as a person types it in the node, and what came of it.

use std::{
    fmt,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{AgentError, Site};
use crate::lab::{Lab, NODE_NAME};

/// A command that has not ended by then is killed, and is an error.
const LIMIT: Duration = Duration::from_secs(40);

/// A terminal in the node of a lab.
pub struct Console {
    site: Site,
}

/// How a command ended and what it said.
#[derive(Clone, Debug)]
pub struct Said {
    /// The command line, for the reader of a failure.
    pub command: String,
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self
            .code
            .map_or_else(|| "a signal".to_owned(), |code| format!("exit code {code}"));
        writeln!(
            f,
            "`netpol-agent {}` ended with {code} after {:?}",
            self.command, self.took
        )?;
        writeln!(f, "standard output: {}", self.out.trim_end())?;
        write!(f, "standard error: {}", self.err.trim_end())
    }
}

impl Console {
    /// A terminal in the lab's node.
    pub fn new(lab: &Lab) -> Result<Self, AgentError> {
        Ok(Self {
            site: Site::new(lab, NODE_NAME)?,
        })
    }

    /// Runs `netpol-agent` with exactly these arguments, to its end.
    pub fn run(&self, arguments: &[&str]) -> Result<Said, AgentError> {
        self.begin(arguments)?.end()
    }

    /// Runs `wait` with this timeout on the lab's agent.
    pub fn wait(&self, timeout: &str) -> Result<Said, AgentError> {
        self.begin_wait(timeout)?.end()
    }

    /// Starts `wait` with this timeout on the lab's agent, which need not be there yet.
    pub fn begin_wait(&self, timeout: &str) -> Result<Begun, AgentError> {
        self.begin(&["wait", "--timeout", timeout, "--run-dir", &self.run_dir()])
    }

    /// Runs `cleanup` on the lab's pins.
    pub fn cleanup(&self) -> Result<Said, AgentError> {
        let bpf_dir = self.site.bpf_dir.display().to_string();
        self.run(&["cleanup", "--bpf-dir", &bpf_dir])
    }

    /// The arguments of `run` that the lab's agent is started with; a test replaces some.
    pub fn run_arguments(&self) -> Vec<String> {
        let [option, source] = self.site.source.arguments();
        [
            "run",
            &option.to_string_lossy(),
            &source.to_string_lossy(),
            "--node-name",
            NODE_NAME,
            "--run-dir",
            &self.run_dir(),
            "--bpf-dir",
            &self.site.bpf_dir.display().to_string(),
        ]
        .map(str::to_owned)
        .into()
    }

    fn run_dir(&self) -> String {
        self.site.run_dir.display().to_string()
    }

    fn begin(&self, arguments: &[&str]) -> Result<Begun, AgentError> {
        // Before it begins: its own clock must not run ahead of this one.
        let started = Instant::now();
        let child = self
            .site
            .command()?
            .args(arguments)
            // What surrounds the tests must not fill in what a test leaves out.
            .env_remove("NODE_NAME")
            .env_remove("NETPOL_MANIFESTS")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| AgentError::Io {
                what: format!("run {}", self.site.binary.display()),
                error,
            })?;
        Ok(Begun {
            command: arguments.join(" "),
            child: Some(child),
            started,
        })
    }
}

/// A command that was started. Killed on drop.
pub struct Begun {
    command: String,
    child: Option<Child>,
    started: Instant,
}

impl Begun {
    /// Waits for its end.
    pub fn end(mut self) -> Result<Said, AgentError> {
        let failed = |error| AgentError::Io {
            what: "wait for a command of the agent".to_owned(),
            error,
        };
        let command = self.command.clone();
        let Some(child) = &mut self.child else {
            return Err(failed(std::io::ErrorKind::NotFound.into()));
        };
        while child.try_wait().map_err(failed)?.is_none() {
            if self.started.elapsed() > LIMIT {
                return Err(AgentError::Endless(command));
            }
            thread::sleep(Duration::from_millis(2));
        }
        let took = self.started.elapsed();
        let Some(child) = self.child.take() else {
            return Err(failed(std::io::ErrorKind::NotFound.into()));
        };
        let output = child.wait_with_output().map_err(failed)?;
        Ok(Said {
            command,
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            took,
        })
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
