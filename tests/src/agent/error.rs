//! What can go wrong with the agent.

use std::{io, process::ExitStatus};

use super::BINARY_VARIABLE;
use crate::lab::LabError;

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
    /// One of its commands does not end.
    #[error("`netpol-agent {0}` did not end, and was killed")]
    Endless(String),
    /// `status -o json` is no JSON.
    #[error("`netpol-agent status -o json` printed no JSON: {0}")]
    Status(String),
}
