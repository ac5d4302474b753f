//! What can go wrong while a lab is built or used.

use std::{io, path::PathBuf};

use crate::table::Party;

/// Why the lab cannot do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Namespaces, raw sockets and bpffs all need root.
    #[error("the lab needs root: run it with sudo, or in a privileged container")]
    NotRoot,
    /// The bridge shape with br_netfilter was asked for, and the kernel has none.
    #[error(
        "this kernel has no br_netfilter: load it with `modprobe br_netfilter`, or choose --shape bridge or routed"
    )]
    NoBridgeNetfilter,
    /// A system call or file operation failed.
    #[error("cannot {what}: {error}")]
    Io {
        /// What was tried, as the rest of "cannot ...".
        what: String,
        /// The kernel's answer.
        error: io::Error,
    },
    /// A netlink request failed.
    #[error("cannot {what}: {error}")]
    Netlink {
        /// What was tried, as the rest of "cannot ...".
        what: String,
        /// The kernel's answer.
        error: rtnetlink::Error,
    },
    /// A program that writes the rules for Services is not installed.
    #[error(
        "cannot find `{0}`: `cargo xtask setup` installs it (Debian's packages iptables, nftables and conntrack)"
    )]
    NoProgram(&'static str),
    /// A manifest that the lab itself must understand (a Pod or a Host) has something wrong.
    #[error("{file}: {reason}")]
    Manifest {
        /// The file it is in.
        file: String,
        /// Field and reason.
        reason: String,
    },
    /// A directory of manifests cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        error: io::Error,
    },
    /// A program that shapes a node ended with an error.
    #[error("`{command}` in namespace {namespace}: {said}")]
    Program {
        /// The command line.
        command: String,
        /// Where it ran.
        namespace: String,
        /// What it wrote to standard error.
        said: String,
    },
    /// There is no such pod, host or node in the lab.
    #[error("the lab has no {0}")]
    NoSuchParty(Party),
    /// The party has no address of that family.
    #[error("{0} has no {1} address")]
    NoAddress(Party, crate::table::Family),
    /// There is no such document in the world.
    #[error("the world has no {0}")]
    NoSuchDocument(crate::manifests::DocumentId),
    /// A connection between two parties did not come about.
    #[error("no connection from {from} to {to}: {reason}")]
    NotConnected {
        /// Who opened it.
        from: String,
        /// Where it should have gone.
        to: String,
        /// Silence, refusal or an error.
        reason: String,
    },
}

impl LabError {
    /// Wraps an I/O error; `what` is the rest of "cannot ...".
    pub fn io(what: impl Into<String>, error: impl Into<io::Error>) -> Self {
        Self::Io {
            what: what.into(),
            error: error.into(),
        }
    }

    /// Wraps a netlink error; `what` is the rest of "cannot ...".
    pub fn netlink(what: impl Into<String>, error: rtnetlink::Error) -> Self {
        Self::Netlink {
            what: what.into(),
            error,
        }
    }
}
