//! Where an agent runs, and how its commands are started.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use super::{AgentError, BINARY_VARIABLE};
use crate::lab::{self, Lab};

/// Where an agent has its objects from.
pub(super) enum Source {
    /// A directory.
    Manifests(PathBuf),
    /// The API server that a kubeconfig names.
    Kubeconfig(PathBuf),
}

impl Source {
    /// The option of `run` and its value.
    pub fn arguments(&self) -> [&OsStr; 2] {
        match self {
            Self::Manifests(directory) => ["--manifests".as_ref(), directory.as_ref()],
            Self::Kubeconfig(file) => ["--kubeconfig".as_ref(), file.as_ref()],
        }
    }
}

/// What every command of the agent needs to know.
pub(super) struct Site {
    pub binary: PathBuf,
    pub node: String,
    pub namespace: OwnedFd,
    pub directory: PathBuf,
    pub source: Source,
    pub run_dir: PathBuf,
    pub bpf_dir: PathBuf,
    pub log: PathBuf,
}

impl Site {
    pub fn new(lab: &Lab, node: &str) -> Result<Self, AgentError> {
        let own = lab.run_dir().node(node);
        Ok(Self {
            binary: find_binary()?,
            node: node.to_owned(),
            namespace: lab.node_named(node)?.station().namespace.open()?.into(),
            directory: lab.run_dir().path().to_owned(),
            source: Source::Manifests(lab.run_dir().manifests()),
            run_dir: own.agent,
            bpf_dir: own.bpf,
            log: own.log,
        })
    }

    /// The agent's binary, to be started in the node's namespace.
    pub fn command(&self) -> Result<Command, AgentError> {
        let namespace = self.namespace.try_clone().map_err(|error| AgentError::Io {
            what: "enter the node's namespace".to_owned(),
            error,
        })?;
        Ok(lab::command_in(namespace, &self.binary))
    }

    /// A command of the agent, not yet started; its last argument is an option that takes this directory.
    pub fn command_of(&self, arguments: &[&str], directory: &Path) -> Result<Command, AgentError> {
        let mut command = self.command()?;
        command.args(arguments).arg(directory).stdin(Stdio::null());
        Ok(command)
    }

    /// Asks the running agent and returns the answer. The last argument is the option of its directory.
    pub fn ask(&self, arguments: &[&str]) -> Result<String, AgentError> {
        let command = self.command_of(arguments, &self.run_dir)?;
        self.finish(arguments, command)
    }

    /// Runs a command to its end and returns what it printed.
    pub fn finish(&self, arguments: &[&str], mut command: Command) -> Result<String, AgentError> {
        let output = command.output().map_err(|error| AgentError::Io {
            what: format!("run {}", self.binary.display()),
            error,
        })?;
        self.judge(arguments, output)
    }

    pub fn judge(&self, arguments: &[&str], output: Output) -> Result<String, AgentError> {
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

    pub fn log_end(&self) -> String {
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
