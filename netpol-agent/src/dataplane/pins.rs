//! Where pinned maps and links live, and the file system that holds them.

use std::{
    fmt, fs, io,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
};

use aya::maps::{Map, MapData, MapError};
use netpol_common::map;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::{Error, error::os_error};

/// Where nodes mount it.
const USUAL: &str = "/sys/fs/bpf";

/// The link that names a network namespace, as `/proc/self/ns/net` does.
const NAMESPACE: &str = "netns";

fn here() -> io::Result<PathBuf> {
    fs::read_link("/proc/thread-self/ns/net")
}

/// The directory of one agent's pins: `<root>/v<schema>/`.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
    schema: u32,
}

/// A program, and at which hook of a device it belongs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Hook {
    /// What a pod receives: egress of the host side of its veth.
    PodIngress,
    /// What a pod sends: ingress of the host side of its veth.
    PodEgress,
    /// What leaves by a device that is no pod's: its egress.
    HostEgress,
    /// The same where packets have no Ethernet header.
    BareEgress,
}

impl Hook {
    /// All of them.
    pub(super) const ALL: [Self; 4] = [
        Self::PodIngress,
        Self::PodEgress,
        Self::HostEgress,
        Self::BareEgress,
    ];
    /// Those of a pod's device. What it receives first: the program there also judges what other pods may send to it.
    pub(super) const POD: [Self; 2] = [Self::PodIngress, Self::PodEgress];

    /// Its name in the name of a pin.
    const fn name(self) -> &'static str {
        match self {
            Self::PodIngress => "ingress",
            Self::PodEgress => "egress",
            Self::HostEgress => "host",
            Self::BareEgress => "bare",
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PodIngress => "ingress of the pod",
            Self::PodEgress => "egress of the pod",
            Self::HostEgress | Self::BareEgress => "egress of the node",
        })
    }
}

/// A pinned link or, where the kernel has no links for this hook, the pinned program of a filter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct LinkPin {
    /// Index of the device.
    pub(super) interface: u32,
    /// The program.
    pub(super) hook: Hook,
    /// Whether it stands for a clsact filter.
    pub(super) clsact: bool,
}

impl Pins {
    /// The pins under `root`, which need not exist yet.
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            schema: map::SCHEMA,
        }
    }

    /// The pins of agents with other schemas. Their programs judge beside ours until they are taken away.
    ///
    /// # Errors
    ///
    /// If the directory cannot be read. One that is not there holds none.
    pub(super) fn others(&self) -> Result<Vec<Self>, Error> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            Err(source) => {
                return Err(Error::Pins {
                    what: "read",
                    path: self.root.clone(),
                    source,
                });
            }
        };
        let schemas = entries.flatten().filter_map(|entry| {
            let name = entry.file_name();
            name.to_str()?.strip_prefix('v')?.parse().ok()
        });
        Ok(schemas
            .filter(|&schema| schema != self.schema)
            .map(|schema| Self {
                root: self.root.clone(),
                schema,
            })
            .collect())
    }

    fn directory(&self) -> PathBuf {
        self.root.join(format!("v{}", self.schema))
    }

    /// The pin of a map.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// The pin of a link.
    pub(super) fn link(&self, pin: LinkPin) -> PathBuf {
        let kind = if pin.clsact { "clsact" } else { "tcx" };
        self.directory()
            .join(format!("{kind}-{}-{}", pin.interface, pin.hook.name()))
    }

    /// Makes the directory, on a BPF file system that is mounted if it is not there yet.
    ///
    /// # Errors
    ///
    /// If the directory cannot be made or the file system cannot be mounted (needs `CAP_SYS_ADMIN`).
    pub(super) fn prepare(&self) -> Result<(), Error> {
        self.mount()?;
        fs::create_dir_all(self.directory()).map_err(|source| Error::Pins {
            what: "make the directory",
            path: self.root.clone(),
            source,
        })
    }

    /// Mounts a BPF file system for the pins if there is none. Returns where, if it did.
    ///
    /// # Errors
    ///
    /// As [`Pins::prepare`].
    pub(super) fn mount(&self) -> Result<Option<&Path>, Error> {
        if holds_pins(&self.root) {
            return Ok(None);
        }
        let target = if self.root.starts_with(USUAL) {
            Path::new(USUAL)
        } else {
            self.root.as_path()
        };
        let failed = |source| Error::Mount {
            path: target.to_owned(),
            source,
        };
        fs::create_dir_all(target).map_err(failed)?;
        mount(
            Some("bpf"),
            target,
            Some("bpf"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            Some("mode=0700"),
        )
        .map_err(io::Error::from)
        .map_err(failed)?;
        Ok(Some(target))
    }

    /// Notes which network namespace the devices of clsact filters are in. A bpf file system holds no files, but links.
    ///
    /// # Errors
    ///
    /// If the note cannot be written.
    pub(super) fn claim(&self) -> Result<(), Error> {
        let path = self.directory().join(NAMESPACE);
        let wrap = |source| Error::Pins {
            what: "write",
            path: path.clone(),
            source,
        };
        let here = here().map_err(wrap)?;
        if self.namespace().as_ref() == Some(&here) {
            return Ok(());
        }
        self.remove(&path)?;
        symlink(&here, &path).map_err(wrap)
    }

    fn namespace(&self) -> Option<PathBuf> {
        fs::read_link(self.directory().join(NAMESPACE)).ok()
    }

    /// The network namespace of the devices, if it is another one than this thread's.
    pub(super) fn elsewhere(&self) -> Option<PathBuf> {
        self.namespace()
            .filter(|namespace| here().ok().as_ref() != Some(namespace))
    }

    /// The pinned links.
    ///
    /// # Errors
    ///
    /// If the directory cannot be read. A directory that is not there holds no links.
    pub(super) fn links(&self) -> Result<Vec<LinkPin>, Error> {
        let mut found = vec![];
        let entries = match fs::read_dir(self.directory()) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(source) => {
                return Err(Error::Pins {
                    what: "read",
                    path: self.directory(),
                    source,
                });
            }
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let mut parts = name.to_str().unwrap_or_default().split('-');
            let clsact = match parts.next() {
                Some("tcx") => false,
                Some("clsact") => true,
                _ => continue,
            };
            let Some(interface) = parts.next().and_then(|n| n.parse().ok()) else {
                continue;
            };
            let name = parts.next();
            let Some(hook) = Hook::ALL.into_iter().find(|hook| Some(hook.name()) == name) else {
                continue;
            };
            found.push(LinkPin {
                interface,
                hook,
                clsact,
            });
        }
        found.sort();
        Ok(found)
    }

    /// Removes one pin; one that is not there is fine.
    ///
    /// # Errors
    ///
    /// If the pin is there and cannot be removed.
    pub(super) fn remove(&self, path: &Path) -> Result<bool, Error> {
        match fs::remove_file(path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(Error::Pins {
                what: "remove",
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Removes the pins of this schema alone. Returns how many there were.
    ///
    /// # Errors
    ///
    /// If one cannot be removed.
    pub(super) fn remove_schema(&self) -> Result<usize, Error> {
        remove_directory(&self.directory())
    }

    /// Removes every pin of every schema and the directories that held them, and takes away the file system if it was
    /// mounted for this directory alone. Returns how many pins were removed.
    ///
    /// # Errors
    ///
    /// If something cannot be removed.
    pub(super) fn remove_all(&self) -> Result<usize, Error> {
        let wrap = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Pins {
                what: "remove",
                path,
                source,
            }
        };
        if !self.root.exists() || !is_bpf(&self.root) {
            return Ok(0);
        }
        let mut removed = 0;
        for schema in fs::read_dir(&self.root)
            .map_err(wrap(&self.root))?
            .flatten()
        {
            let path = schema.path();
            if !path.is_dir() {
                continue;
            }
            removed += remove_directory(&path)?;
        }
        if is_mount_point(&self.root) {
            if self.root != Path::new(USUAL) {
                umount2(&self.root, MntFlags::MNT_DETACH)
                    .map_err(io::Error::from)
                    .map_err(wrap(&self.root))?;
            }
        } else {
            fs::remove_dir(&self.root).map_err(wrap(&self.root))?;
        }
        Ok(removed)
    }
}

/// Removes a directory of pins. Returns how many there were.
fn remove_directory(path: &Path) -> Result<usize, Error> {
    let wrap = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Pins {
            what: "remove",
            path,
            source,
        }
    };
    let mut removed = 0;
    for pin in fs::read_dir(path).map_err(wrap(path))?.flatten() {
        fs::remove_file(pin.path()).map_err(wrap(&pin.path()))?;
        removed += 1;
    }
    fs::remove_dir(path).map_err(wrap(path))?;
    Ok(removed)
}

/// Whether a directory is on a bpf file system, or would be if it were made.
pub fn holds_pins(directory: &Path) -> bool {
    directory
        .ancestors()
        .find(|p| p.exists())
        .is_some_and(is_bpf)
}

/// Opens a pinned map a second time.
pub(super) fn open<T: TryFrom<Map, Error = MapError>>(
    pins: &Pins,
    table: &'static str,
) -> Result<T, Error> {
    MapData::from_pin(pins.map(table))
        .and_then(Map::from_map_data)
        .and_then(T::try_from)
        .map_err(|e| Error::Read {
            table,
            source: os_error(e),
        })
}

fn is_bpf(path: &Path) -> bool {
    statfs(path).is_ok_and(|s| s.filesystem_type() == BPF_FS_MAGIC)
}

fn is_mount_point(path: &Path) -> bool {
    let device = |p: &Path| fs::metadata(p).map(|m| m.dev()).ok();
    path.parent()
        .is_some_and(|parent| device(path) != device(parent))
}
