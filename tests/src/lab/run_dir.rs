//! The lab's directory under `/run`, who owns it, and sweeping what dead owners left.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{error::LabError, netns, topology::NODE_NAME};

/// Where every lab has its directory.
pub const LABS_DIR: &str = "/run/netpol-lab";

/// What the name of every namespace of a lab begins with.
pub const PREFIX: &str = "npl-";

const NODES: &str = "nodes";
const BPF: &str = "bpf";

/// What the agent of one node has for itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeDir {
    /// The agent's own directory (its socket).
    pub agent: PathBuf,
    /// A bpffs for the agent's pins.
    pub bpf: PathBuf,
    /// What the agent writes.
    pub log: PathBuf,
}

/// The directory of one lab: `owner`, `manifests/`, and for the agent `agent/`, `bpf/` (a bpffs of its own) and
/// `agent.log`. Those of further nodes are in `nodes/NAME/`. Removed on drop.
#[derive(Debug)]
pub struct RunDir {
    id: String,
    path: PathBuf,
}

impl RunDir {
    /// Sweeps what killed runs left, then makes a new directory owned by this process.
    pub fn create() -> Result<Self, LabError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let _lock = lock()?;
        sweep_locked();
        let id = format!("{}x{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let run_dir = Self {
            path: Path::new(LABS_DIR).join(&id),
            id,
        };
        let failed = |error: io::Error| {
            LabError::io(
                format!("make the run directory {}", run_dir.path.display()),
                error,
            )
        };
        fs::create_dir(&run_dir.path).map_err(failed)?;
        fs::write(run_dir.path.join("owner"), identity(process::id())).map_err(failed)?;
        for directory in [run_dir.manifests(), run_dir.agent(), run_dir.bpf()] {
            fs::create_dir(directory).map_err(failed)?;
        }
        mount_bpffs(&run_dir.bpf()).map_err(failed)?;
        Ok(run_dir)
    }

    /// Makes what the agent of a further node needs.
    pub(super) fn add_node(&self, name: &str) -> Result<(), LabError> {
        let node = self.node(name);
        let make = || {
            fs::create_dir_all(&node.agent)?;
            fs::create_dir_all(&node.bpf)?;
            mount_bpffs(&node.bpf)
        };
        make().map_err(|error| LabError::io(format!("make the directories of node {name}"), error))
    }

    /// What the agent of a node has for itself.
    pub fn node(&self, name: &str) -> NodeDir {
        let path = match name {
            NODE_NAME => self.path.clone(),
            name => self.path.join(NODES).join(name),
        };
        NodeDir {
            agent: path.join("agent"),
            bpf: path.join(BPF),
            log: path.join("agent.log"),
        }
    }

    /// The lab's id, part of the names of its namespaces.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The manifests that the agent is given.
    pub fn manifests(&self) -> PathBuf {
        self.path.join("manifests")
    }

    /// As [`NodeDir::agent`], of the first node.
    pub fn agent(&self) -> PathBuf {
        self.node(NODE_NAME).agent
    }

    /// As [`NodeDir::bpf`], of the first node.
    pub fn bpf(&self) -> PathBuf {
        self.node(NODE_NAME).bpf
    }

    /// As [`NodeDir::log`], of the first node.
    pub fn agent_log(&self) -> PathBuf {
        self.node(NODE_NAME).log
    }

    /// Notes a child process, so that a sweep can end it should this process be killed.
    pub fn note_child(&self, pid: u32) -> io::Result<()> {
        fs::write(self.path.join(format!("child-{pid}")), identity(pid))
    }

    /// Forgets a child that has ended.
    pub fn forget_child(&self, pid: u32) {
        let _ = fs::remove_file(self.path.join(format!("child-{pid}")));
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes what labs of dead processes left: children, namespaces, mounts, directories. Returns the ids it removed.
/// Every new lab does this first.
pub fn sweep() -> Result<Vec<String>, LabError> {
    let _lock = lock()?;
    Ok(sweep_locked())
}

fn sweep_locked() -> Vec<String> {
    let mut alive = Vec::new();
    let mut swept = Vec::new();
    for path in entries(Path::new(LABS_DIR)) {
        let Some(id) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if !path.is_dir() {
            continue;
        }
        let owner = fs::read_to_string(path.join("owner")).unwrap_or_default();
        if is_alive(&owner) {
            alive.push(id.to_owned());
            continue;
        }
        for child in entries(&path) {
            let is_child = child
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("child-"));
            if is_child && let Ok(identity) = fs::read_to_string(&child) {
                end(&identity);
            }
        }
        swept.push(id.to_owned());
        remove(&path);
    }
    for path in entries(Path::new(netns::NETNS_DIR)) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if let Some((id, _)) = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('-'))
            && !alive.iter().any(|other| other == id)
        {
            netns::remove(name);
        }
    }
    swept
}

/// One sweep or one creation at a time: a directory without an owner is then always a leftover.
fn lock() -> Result<Flock<File>, LabError> {
    let failed = |error: io::Error| LabError::io(format!("lock {LABS_DIR}"), error);
    fs::create_dir_all(LABS_DIR).map_err(failed)?;
    let directory = File::open(LABS_DIR).map_err(failed)?;
    Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, error)| failed(error.into()))
}

fn mount_bpffs(at: &Path) -> io::Result<()> {
    mount(Some("bpf"), at, Some("bpf"), MsFlags::empty(), None::<&str>).map_err(io::Error::from)
}

fn remove(path: &Path) {
    // A lab that got no further than its directory has no bpffs.
    let nodes = entries(&path.join(NODES));
    for node in nodes.iter().map(PathBuf::as_path).chain([path]) {
        let _ = umount2(&node.join(BPF), MntFlags::MNT_DETACH);
    }
    let _ = fs::remove_dir_all(path);
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}

/// A process beyond mistake: its id and its start time.
fn identity(pid: u32) -> String {
    format!("{pid} {}", start_time(pid).unwrap_or_default())
}

fn is_alive(identity: &str) -> bool {
    let mut words = identity.split_whitespace();
    let (Some(Ok(pid)), Some(started)) = (words.next().map(str::parse), words.next()) else {
        return false;
    };
    start_time(pid).is_some_and(|now| now == started)
}

fn end(identity: &str) {
    if is_alive(identity)
        && let Some(Ok(pid)) = identity.split_whitespace().next().map(str::parse)
    {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Field 22 of `/proc/PID/stat`, in clock ticks since boot; `None` when there is no such process.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace();
    // A zombie is dead: nothing of it will come back to clean up.
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18).map(str::to_owned)
}
