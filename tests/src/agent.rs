//! The real agent, as a child process in the lab's node.

mod console;
mod error;
mod fleet;
pub mod hooks;
pub mod http;
mod site;

use std::{
    fmt,
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

pub use console::{Begun, Console, Said};
pub use error::AgentError;
pub use fleet::Fleet;

use crate::lab::{Lab, NODE_NAME};
use site::{Site, Source};

/// Names the agent's binary, for a test of a binary that lies elsewhere.
pub const BINARY_VARIABLE: &str = "NETPOL_AGENT_BIN";

/// Names how many seconds the agent may take to enforce what it is given, for machines that are slow (an emulated processor
/// takes half a minute to verify the programs).
pub const PATIENCE_VARIABLE: &str = "NETPOL_TEST_PATIENCE";

/// How long the agent may take to enforce what it is given.
pub fn patience() -> Duration {
    let seconds = std::env::var(PATIENCE_VARIABLE).ok();
    let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(20);
    Duration::from_secs(seconds)
}

/// Which hook the agent shall use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Hook {
    /// The best that the kernel has.
    #[default]
    Auto,
    /// TCX links.
    Tcx,
    /// clsact filters.
    Clsact,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

impl FromStr for Hook {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "tcx" => Ok(Self::Tcx),
            "clsact" => Ok(Self::Clsact),
            _ => Err(format!("`{text}` is no hook: choose auto, tcx or clsact")),
        }
    }
}

/// A running agent. Ended on drop; what it pinned stays until the lab goes.
pub struct Agent {
    /// `None` once it was stopped.
    child: Option<Child>,
    site: Site,
}

impl Agent {
    /// Starts the agent in a lab's node. It is not yet enforcing anything: see [`Agent::wait`].
    pub fn start(lab: &Lab, hook: Hook) -> Result<Self, AgentError> {
        Self::start_with(lab, hook, &[])
    }

    /// Starts the agent with more arguments.
    pub fn start_with(lab: &Lab, hook: Hook, arguments: &[&str]) -> Result<Self, AgentError> {
        Self::start_at(lab, &lab.manifests(), hook, arguments)
    }

    /// Starts the agent with another directory of manifests than the lab's own.
    pub fn start_at(
        lab: &Lab,
        manifests: &Path,
        hook: Hook,
        arguments: &[&str],
    ) -> Result<Self, AgentError> {
        let site = Site {
            source: Source::Manifests(manifests.to_owned()),
            ..Site::new(lab, NODE_NAME)?
        };
        Self::start_in(lab, site, hook, arguments, |_| {})
    }

    /// Starts the agent with the objects of the API server that a kubeconfig names, where the lab's node has this name.
    pub fn start_with_api(
        lab: &Lab,
        kubeconfig: &Path,
        node_name: &str,
        hook: Hook,
        arguments: &[&str],
    ) -> Result<Self, AgentError> {
        let site = Site {
            source: Source::Kubeconfig(kubeconfig.to_owned()),
            node: node_name.to_owned(),
            ..Site::new(lab, NODE_NAME)?
        };
        Self::start_in(lab, site, hook, arguments, |_| {})
    }

    /// Starts the agent of one of several nodes.
    pub fn start_on(lab: &Lab, node: &str, hook: Hook) -> Result<Self, AgentError> {
        Self::start_in(lab, Site::new(lab, node)?, hook, &[], |_| {})
    }

    /// Starts the agent by a command that is changed before, for example to run it with less privilege.
    pub fn start_changed(
        lab: &Lab,
        hook: Hook,
        change: impl FnOnce(&mut Command),
    ) -> Result<Self, AgentError> {
        Self::start_in(lab, Site::new(lab, NODE_NAME)?, hook, &[], change)
    }

    fn start_in(
        lab: &Lab,
        site: Site,
        hook: Hook,
        arguments: &[&str],
        change: impl FnOnce(&mut Command),
    ) -> Result<Self, AgentError> {
        let failed = |error| AgentError::Io {
            what: format!("start {}", site.binary.display()),
            error,
        };
        let log = File::options()
            .create(true)
            .append(true)
            .open(&site.log)
            .map_err(failed)?;
        let mut command = site.command()?;
        command
            .arg("run")
            .args(site.source.arguments())
            .args(["--node-name", &site.node])
            .arg("--run-dir")
            .arg(&site.run_dir)
            .arg("--bpf-dir")
            .arg(&site.bpf_dir)
            .args(["--hook", &hook.to_string()])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            // Ctrl-C in a terminal is for the lab, which then ends the agent in its own way.
            .process_group(0);
        change(&mut command);
        let child = command.spawn().map_err(failed)?;
        let note = lab.run_dir().note_child(child.id());
        let agent = Self {
            child: Some(child),
            site,
        };
        note.map_err(|error| AgentError::Io {
            what: "note the agent's process id".to_owned(),
            error,
        })?;
        Ok(agent)
    }

    /// The name of its node.
    pub fn node(&self) -> &str {
        &self.site.node
    }

    /// Its process id; `None` once it was stopped.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The binary that runs.
    pub fn binary(&self) -> &Path {
        &self.site.binary
    }

    /// Waits until everything that is in the manifests now is enforced. Something that the agent refuses never is.
    pub fn wait(&mut self) -> Result<(), AgentError> {
        self.wait_for(patience())
    }

    /// As [`Agent::wait`], with another patience. Ends at once when the agent has ended.
    pub fn wait_for(&mut self, patience: Duration) -> Result<(), AgentError> {
        let failed = |error| AgentError::Io {
            what: "run `netpol-agent wait`".to_owned(),
            error,
        };
        let timeout = format!("{}ms", patience.as_millis());
        let arguments = ["wait", "--timeout", &timeout, "--run-dir"];
        let mut waiting = self
            .site
            .command_of(&arguments, &self.site.run_dir)?
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        while waiting.try_wait().map_err(failed)?.is_none() {
            if let Err(ended) = self.check() {
                waiting
                    .kill()
                    .and_then(|()| waiting.wait())
                    .map_err(failed)?;
                return Err(ended);
            }
            thread::sleep(Duration::from_millis(2));
        }
        let output = waiting.wait_with_output().map_err(failed)?;
        self.site.judge(&arguments, output).map(|_| ())
    }

    /// What `status -o json` says.
    pub fn status(&self) -> Result<Value, AgentError> {
        let output = self.site.ask(&["status", "-o", "json", "--run-dir"])?;
        serde_json::from_str(&output).map_err(|error| AgentError::Status(error.to_string()))
    }

    /// What `status` says to people.
    pub fn status_text(&self) -> Result<String, AgentError> {
        self.site.ask(&["status", "--run-dir"])
    }

    /// Everything it wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.site.log).unwrap_or_default()
    }

    /// Stops it in its tracks (SIGSTOP): it sees nothing of what happens until [`Agent::thaw`].
    pub fn freeze(&self) {
        self.child
            .iter()
            .for_each(|child| send(child, Signal::SIGSTOP));
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.child
            .iter()
            .for_each(|child| send(child, Signal::SIGCONT));
    }

    /// Asks it to end (SIGTERM) and waits. Enforcement stays.
    pub fn stop(&mut self) -> Result<ExitStatus, AgentError> {
        self.end(Signal::SIGTERM)
    }

    /// Kills it (SIGKILL). Enforcement stays.
    pub fn kill(&mut self) -> Result<ExitStatus, AgentError> {
        self.end(Signal::SIGKILL)
    }

    /// Runs `mount-bpffs` on a lab's node.
    pub fn mount_bpffs(lab: &Lab) -> Result<(), AgentError> {
        let site = Site::new(lab, NODE_NAME)?;
        let arguments = ["mount-bpffs", "--bpf-dir"];
        let command = site.command_of(&arguments, &site.bpf_dir)?;
        site.finish(&arguments, command).map(|_| ())
    }

    /// Runs `cleanup` on a lab's node: every link and pin goes.
    pub fn cleanup(lab: &Lab) -> Result<(), AgentError> {
        Self::cleanup_on(lab, NODE_NAME)
    }

    /// As [`Agent::cleanup`], on one of several nodes.
    pub fn cleanup_on(lab: &Lab, node: &str) -> Result<(), AgentError> {
        let site = Site::new(lab, node)?;
        let arguments = ["cleanup", "--bpf-dir"];
        let command = site.command_of(&arguments, &site.bpf_dir)?;
        site.finish(&arguments, command).map(|_| ())
    }

    /// An error if it is not running although it should.
    fn check(&mut self) -> Result<(), AgentError> {
        let ended = match &mut self.child {
            Some(child) => child.try_wait().map_err(|error| AgentError::Io {
                what: "look after the agent".to_owned(),
                error,
            })?,
            None => None,
        };
        match ended {
            Some(status) => Err(AgentError::Ended {
                status,
                log: self.site.log_end(),
            }),
            None => Ok(()),
        }
    }

    fn end(&mut self, signal: Signal) -> Result<ExitStatus, AgentError> {
        let failed = |error| AgentError::Io {
            what: "end the agent".to_owned(),
            error,
        };
        self.check()?;
        let Some(mut child) = self.child.take() else {
            return Err(failed(io::Error::other("it was ended before")));
        };
        let pid = child.id();
        send(&child, signal);
        let deadline = Instant::now() + Duration::from_secs(5);
        let status = loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                break status;
            }
            if Instant::now() > deadline {
                child.kill().map_err(failed)?;
                break child.wait().map_err(failed)?;
            }
            thread::sleep(Duration::from_millis(5));
        };
        let _ = fs::remove_file(self.site.directory.join(format!("child-{pid}")));
        Ok(status)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.child.is_some() {
            if thread::panicking() {
                eprintln!(
                    "the log of the agent on {} ends with:\n{}",
                    self.site.node,
                    self.site.log_end()
                );
            }
            let _ = self.end(Signal::SIGTERM);
        }
    }
}

fn send(child: &Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // It is our child and not yet waited for, so the id is still its own.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}
