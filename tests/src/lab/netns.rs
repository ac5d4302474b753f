//! Named network namespaces, as `ip netns` makes them: a file under `/run/netns` that the namespace is mounted on.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    thread,
};

use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use super::error::LabError;

/// Where named network namespaces live.
pub const NETNS_DIR: &str = "/run/netns";

/// A network namespace with a name. Dropping it takes the name away; the kernel removes the namespace, and every
/// interface in it, when the last process has left.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    file: File,
}

impl NetNs {
    /// Makes a new namespace with this name.
    pub fn create(name: impl Into<String>) -> Result<Self, LabError> {
        let name = name.into();
        prepare_directory()?;
        let path = path_of(&name);
        File::create_new(&path)
            .map_err(|error| LabError::io(format!("create {}", path.display()), error))?;
        let target = path.clone();
        // `unshare` moves only the calling thread, so a thread of its own does it and ends.
        let made = thread::spawn(move || -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(
                Some("/proc/thread-self/ns/net"),
                &target,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )?;
            Ok(())
        })
        .join()
        .expect("the thread that makes a namespace does not panic");
        let opened = made.and_then(|()| File::open(&path));
        match opened {
            Ok(file) => Ok(Self { name, file }),
            Err(error) => {
                remove(&name);
                Err(LabError::io(
                    format!("make network namespace {name}"),
                    error,
                ))
            }
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that names it, for `nsenter --net=`.
    pub fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// Takes the name away now. The namespace lives on in its threads and processes, as one that a runtime made without a
    /// name.
    pub fn unname(&self) {
        remove(&self.name);
    }

    /// A second handle that does not remove the name.
    pub fn open(&self) -> Result<File, LabError> {
        self.file
            .try_clone()
            .map_err(|error| LabError::io(format!("open namespace {}", self.name), error))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Moves the calling thread into a network namespace. Safe to call between `fork` and `exec`.
pub fn enter(namespace: impl AsFd) -> io::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

/// Takes a name away, whether or not a namespace is still mounted on it.
pub(super) fn remove(name: &str) {
    let path = path_of(name);
    // Not mounted (a killed run got no further) is as good as unmounted.
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(&path);
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

/// Makes `/run/netns` a shared mount, exactly as iproute2 does, so that `ip netns` and the lab can work side by side.
/// The lock is the one iproute2 takes.
fn prepare_directory() -> Result<(), LabError> {
    let failed = |error: io::Error| LabError::io(format!("prepare {NETNS_DIR}"), error);
    fs::create_dir_all(NETNS_DIR).map_err(failed)?;
    let directory = File::open(NETNS_DIR).map_err(failed)?;
    let _lock = Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, error)| failed(error.into()))?;
    let share = || {
        mount(
            None::<&str>,
            NETNS_DIR,
            None::<&str>,
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            None::<&str>,
        )
    };
    if share().is_err() {
        mount(
            Some(NETNS_DIR),
            NETNS_DIR,
            None::<&str>,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            None::<&str>,
        )
        .and_then(|()| share())
        .map_err(|error| failed(error.into()))?;
    }
    Ok(())
}
