//! The real agent, as a child process in the lab's node.

use std::{
    env, fmt,
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{SigSet, Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::lab::{self, Lab, LabError, NODE_NAME};

/// Names the agent's binary, for a test of a binary that lies elsewhere.
pub const BINARY_VARIABLE: &str = "NETPOL_AGENT_BIN";

/// How long the agent may take to enforce what it is given.
const PATIENCE: Duration = Duration::from_secs(20);

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

/// Why the agent does not do what the lab wants of it.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// There is no binary.
    #[error(
        "found no netpol-agent binary (looked at {tried}): build it with `cargo build -p netpol-agent`, or name it in \
         {BINARY_VARIABLE}"
    )]
    NoBinary {
        /// The paths that were tried.
        tried: String,
    },
    /// The lab could not help.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// It could not be started, or not be spoken to.
    #[error("cannot {what}: {error}")]
    Io {
        /// What was tried, as the rest of "cannot ...".
        what: String,
        /// The kernel's answer.
        error: io::Error,
    },
    /// It ended although nobody asked it to.
    #[error("the agent ended by itself ({status}); its last words:\n{log}")]
    Ended {
        /// How.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// One of its commands failed.
    #[error(
        "`netpol-agent {command}` failed ({status}): {output}\nthe agent's log ends with:\n{log}"
    )]
    Command {
        /// The command.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        output: String,
        /// The end of the agent's log.
        log: String,
    },
    /// `status -o json` is no JSON.
    #[error("`netpol-agent status -o json` printed no JSON: {0}")]
    Status(String),
}

/// A running agent. Ended on drop; what it pinned stays until the lab goes.
pub struct Agent {
    /// `None` once it was stopped.
    child: Option<Child>,
    site: Site,
}

/// What every command of the agent needs to know.
struct Site {
    binary: PathBuf,
    namespace: OwnedFd,
    directory: PathBuf,
    manifests: PathBuf,
    run_dir: PathBuf,
    bpf_dir: PathBuf,
    log: PathBuf,
}

impl Agent {
    /// Starts the agent in a lab's node. It is not yet enforcing anything: see [`Agent::wait`].
    pub fn start(lab: &Lab, hook: Hook) -> Result<Self, AgentError> {
        Self::start_with(lab, hook, &[])
    }

    /// Starts the agent with more arguments.
    pub fn start_with(lab: &Lab, hook: Hook, arguments: &[&str]) -> Result<Self, AgentError> {
        let site = Site::new(lab)?;
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
            .arg("--manifests")
            .arg(&site.manifests)
            .args(["--node-name", NODE_NAME])
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

    /// Its process id; `None` once it was stopped.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The binary that runs.
    pub fn binary(&self) -> &Path {
        &self.site.binary
    }

    /// Waits until everything that is in the manifests now is enforced, or the agent has ended.
    pub fn wait(&mut self) -> Result<(), AgentError> {
        let failed = |error| AgentError::Io {
            what: "run `netpol-agent wait`".to_owned(),
            error,
        };
        let timeout = format!("{}s", PATIENCE.as_secs());
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

    /// Asks it to end (SIGTERM) and waits. Enforcement stays.
    pub fn stop(&mut self) -> Result<ExitStatus, AgentError> {
        self.end(Signal::SIGTERM)
    }

    /// Kills it (SIGKILL). Enforcement stays.
    pub fn kill(&mut self) -> Result<ExitStatus, AgentError> {
        self.end(Signal::SIGKILL)
    }

    /// Runs `cleanup` on a lab's node: every link and pin goes.
    pub fn cleanup(lab: &Lab) -> Result<(), AgentError> {
        let site = Site::new(lab)?;
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
                eprintln!("the agent's log ends with:\n{}", self.site.log_end());
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

impl Site {
    fn new(lab: &Lab) -> Result<Self, AgentError> {
        Ok(Self {
            binary: find_binary()?,
            namespace: lab.node().namespace.open()?.into(),
            directory: lab.run_dir().path().to_owned(),
            manifests: lab.run_dir().manifests(),
            run_dir: lab.run_dir().agent(),
            bpf_dir: lab.run_dir().bpf(),
            log: lab.run_dir().agent_log(),
        })
    }

    /// The agent's binary, to be started in the node's namespace.
    fn command(&self) -> Result<Command, AgentError> {
        let namespace = self.namespace.try_clone().map_err(|error| AgentError::Io {
            what: "enter the node's namespace".to_owned(),
            error,
        })?;
        let mut command = Command::new(&self.binary);
        // SAFETY: between `fork` and `exec` it makes two system calls, `setns` and `rt_sigprocmask` (the lab's program
        // blocks signals, and the child would inherit that), and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                lab::enter(&namespace)?;
                SigSet::empty().thread_set_mask()?;
                Ok(())
            });
        }
        Ok(command)
    }

    /// A command of the agent, not yet started; its last argument is an option that takes this directory.
    fn command_of(&self, arguments: &[&str], directory: &Path) -> Result<Command, AgentError> {
        let mut command = self.command()?;
        command.args(arguments).arg(directory).stdin(Stdio::null());
        Ok(command)
    }

    /// Asks the running agent and returns the answer. The last argument is the option of its directory.
    fn ask(&self, arguments: &[&str]) -> Result<String, AgentError> {
        let command = self.command_of(arguments, &self.run_dir)?;
        self.finish(arguments, command)
    }

    /// Runs a command to its end and returns what it printed.
    fn finish(&self, arguments: &[&str], mut command: Command) -> Result<String, AgentError> {
        let output = command.output().map_err(|error| AgentError::Io {
            what: format!("run {}", self.binary.display()),
            error,
        })?;
        self.judge(arguments, output)
    }

    fn judge(&self, arguments: &[&str], output: Output) -> Result<String, AgentError> {
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(stdout);
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        Err(AgentError::Command {
            command: arguments.join(" "),
            status: output.status,
            output: format!("{}{}", stdout.trim_end(), stderr.trim_end()),
            log: self.log_end(),
        })
    }

    fn log_end(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

/// The binary that [`BINARY_VARIABLE`] names, or the one beside this program, or the workspace's own.
fn find_binary() -> Result<PathBuf, AgentError> {
    if let Some(path) = env::var_os(BINARY_VARIABLE) {
        return Ok(path.into());
    }
    let mut directories = Vec::new();
    if let Ok(program) = env::current_exe() {
        // target/debug/netpol-lab, or target/debug/deps/a-test
        directories.extend(program.ancestors().skip(1).take(2).map(Path::to_owned));
    }
    let profiles = if cfg!(debug_assertions) {
        ["debug", "release"]
    } else {
        ["release", "debug"]
    };
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    for target in env::var_os("CARGO_TARGET_DIR")
        .map(PathBuf::from)
        .into_iter()
        .chain([workspace])
    {
        directories.extend(profiles.map(|profile| target.join(profile)));
    }
    let candidates: Vec<PathBuf> = directories
        .iter()
        .map(|directory| directory.join("netpol-agent"))
        .collect();
    candidates
        .iter()
        .find(|path| path.is_file())
        .cloned()
        .ok_or_else(|| AgentError::NoBinary {
            tried: candidates
                .iter()
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
                .join(", "),
        })
}
