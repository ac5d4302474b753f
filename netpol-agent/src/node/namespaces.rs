//! The network namespaces of the machine, as far as they can be found: by name under /run/netns, and through processes.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs::{self, File},
    io,
    net::IpAddr,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::PathBuf,
};

use nix::sched::{CloneFlags, setns};

use super::{
    identity::Mac,
    rtnetlink::{NamespaceId, Socket},
};

/// Where `ip netns` and container runtimes keep names of namespaces.
const NAMED: &str = "/run/netns";

/// What is inside a namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Inside {
    /// The addresses, each with the index of its interface.
    pub addresses: Vec<(IpAddr, u32)>,
    /// The hardware addresses by interface.
    pub macs: BTreeMap<u32, Mac>,
}

impl Inside {
    fn read(socket: &mut Socket) -> io::Result<Self> {
        let links = socket.links()?.into_iter();
        Ok(Self {
            macs: links
                .filter_map(|link| Some((link.index, link.mac?)))
                .collect(),
            addresses: socket.addresses()?,
        })
    }
}

/// The thread's way into other namespaces and back.
pub(super) struct Namespaces {
    own: File,
}

/// A thread that cannot get back into its own namespace must not go on.
#[derive(Debug, thiserror::Error)]
#[error("the discovery thread cannot return to its own network namespace: {0}")]
pub(super) struct Lost(io::Error);

impl Namespaces {
    /// Starts from the namespace of the calling thread.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            own: File::open("/proc/thread-self/ns/net")?,
        })
    }

    /// Looks into the wanted namespaces, as far as they can be found. No namespace is held open: that would
    /// keep it, and the pod's interface, alive after the pod's end.
    pub fn read(
        &self,
        socket: &mut Socket,
        mut wanted: BTreeSet<NamespaceId>,
    ) -> Result<BTreeMap<NamespaceId, Inside>, Lost> {
        let mut found = BTreeMap::new();
        let mut seen: HashSet<(u64, u64)> = self.own.metadata().iter().map(identity).collect();
        for path in named().chain(of_processes()) {
            if wanted.is_empty() {
                break;
            }
            // Processes end and names go at any time.
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            if !seen.insert(identity(&metadata)) {
                continue;
            }
            let Ok(file) = File::open(&path) else {
                continue;
            };
            // Anything that is not a network namespace has no number.
            let Ok(Some(id)) = socket.namespace_id(file.as_fd()) else {
                continue;
            };
            if !wanted.contains(&id) {
                continue;
            }
            match self
                .inside(&file)?
                .and_then(|mut socket| Inside::read(&mut socket))
            {
                Ok(inside) => {
                    wanted.remove(&id);
                    found.insert(id, inside);
                }
                Err(e) => {
                    tracing::debug!(path = %path.display(), error = %e, "cannot look into a namespace");
                }
            }
        }
        Ok(found)
    }

    /// A socket that belongs to another namespace.
    fn inside(&self, namespace: &File) -> Result<io::Result<Socket>, Lost> {
        if let Err(e) = setns(namespace, CloneFlags::CLONE_NEWNET) {
            return Ok(Err(e.into()));
        }
        let socket = Socket::open();
        setns(&self.own, CloneFlags::CLONE_NEWNET).map_err(|e| Lost(e.into()))?;
        Ok(socket)
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn entries(directory: &str) -> impl Iterator<Item = fs::DirEntry> {
    fs::read_dir(directory).into_iter().flatten().flatten()
}

fn named() -> impl Iterator<Item = PathBuf> {
    entries(NAMED).map(|entry| entry.path())
}

fn of_processes() -> impl Iterator<Item = PathBuf> {
    entries("/proc")
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
        })
        .map(|entry| entry.path().join("ns/net"))
}
