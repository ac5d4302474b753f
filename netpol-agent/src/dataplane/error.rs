//! What can go wrong between the agent and the kernel.

use std::{io, path::PathBuf};

use super::pins::Hook;

/// An error of the dataplane. What was enforced before stays in force.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent was built without its eBPF object.
    #[error(
        "this netpol-agent was built without its eBPF object: build it with `cargo xtask build`"
    )]
    NotBuilt,
    /// Pins or their file system.
    #[error(
        "cannot {what} {}: {source} (the agent needs root and a writable directory for pins)",
        path.display()
    )]
    Pins {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file system of the pins.
    #[error(
        "cannot mount a bpf file system on {}: {source} (it needs CAP_SYS_ADMIN; where the agent has not got that, mount it \
         before, with `netpol-agent mount-bpffs` or `mount -t bpf bpf {}`)",
        path.display(), path.display()
    )]
    Mount {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A pinned map has another layout than this version expects.
    #[error(
        "the pinned map {} has another layout than this version: run `netpol-agent cleanup` first (pods are open \
         until the agent runs again)",
        path.display()
    )]
    Layout {
        /// The pin.
        path: PathBuf,
    },
    /// Filters are on devices of another network namespace.
    #[error(
        "the programs are filters on devices of another network namespace, {}: run this there, with `nsenter --net=`; if that \
         namespace is gone, --force removes the pins",
        namespace.display()
    )]
    Elsewhere {
        /// As `/proc/PID/ns/net` names it.
        namespace: PathBuf,
    },
    /// The object cannot be loaded.
    #[error("cannot load the eBPF programs: {0:#}")]
    Load(anyhow::Error),
    /// A program cannot be put on a device.
    #[error("cannot put a program on {device} ({hook}): {source:#}")]
    Attach {
        /// The device.
        device: String,
        /// The hook.
        hook: Hook,
        /// Why not.
        source: anyhow::Error,
    },
    /// Filters on devices.
    #[error("cannot read or remove filters on network devices: {source}")]
    Filters {
        /// Why not.
        source: io::Error,
    },
    /// An element of a map cannot be written.
    #[error("cannot write table {table}: {source}{}", advice(source))]
    Write {
        /// The map.
        table: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A map cannot be read.
    #[error("cannot read table {table}: {source}")]
    Read {
        /// The map.
        table: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn advice(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => ": it is full; what it held before stays in force",
        _ => "",
    }
}

/// The operating system's part of an aya map error.
pub(super) fn os_error(error: aya::maps::MapError) -> io::Error {
    match error {
        aya::maps::MapError::SyscallError(e) => e.io_error,
        aya::maps::MapError::IoError(e) => e,
        other => io::Error::other(other.to_string()),
    }
}
