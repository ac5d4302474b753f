//! What this node looks like: its own addresses, and the host side of each local pod's veth.
//!
//! One thread hears of every change of links and addresses, in the agent's network namespace and in every one that is
//! connected to it, and publishes a [`Report`].

mod addresses;
mod identity;
mod interfaces;
mod namespaces;
mod rtnetlink;
mod tunnels;
mod watcher;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use netpol_common::TunnelKey;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::watch;

pub use self::identity::{Identity, Mac};
use crate::policy::object::ObjectKey;

/// A local pod whose interface is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// The pod.
    pub key: ObjectKey,
    /// Its uid: a pod that comes back under the same name is another one.
    pub uid: String,
    /// The addresses by which it is found.
    pub addresses: Vec<IpAddr>,
    /// It is being deleted: once its interface has gone, none will ever be its own again.
    pub leaving: bool,
}

impl Wanted {
    /// Whether this is the same pod with the same addresses.
    pub fn is(&self, other: &Self) -> bool {
        self.key == other.key && self.uid == other.uid && self.addresses == other.addresses
    }
}

/// An interface of the node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its index in the agent's network namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// The interface of a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Its host side.
    pub interface: Interface,
    /// What the pod's side answers to.
    pub identity: Identity,
}

/// A device of the agent's network namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// What it is to the pods.
    pub kind: DeviceKind,
}

/// What a device is to the pods.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum DeviceKind {
    /// A veth whose other end lies in another namespace: a pod's, or one that is going to be.
    Pod,
    /// Anything else by which packets leave: bridges, uplinks, tunnels.
    Host,
    /// As [`DeviceKind::Host`], but its packets have no Ethernet header: WireGuard, tun, IPIP.
    Bare,
}

/// Why a local pod has no interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    /// The pod has no address yet.
    NoAddress,
    /// No namespace that is connected to this node has the pod's address.
    NotFound,
    /// As before, but a namespace that is connected to this node could not be looked into.
    NotFoundYet,
    /// It had an interface, which has gone: its sandbox is made anew, and may get another address.
    Lost,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAddress => "the pod has no address in status.podIPs yet, or a newer pod has the same one",
            Self::NotFound => "no network namespace that is connected to this node has the pod's address",
            Self::NotFoundYet => {
                "no network namespace that could be read has the pod's address, and one that is connected to this node \
                 could not be read yet"
            }
            Self::Lost => "the pod's interface has gone, and none has its address since",
        })
    }
}

/// What the node looks like now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The node's own addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The wanted pods, each with its interface.
    pub pods: BTreeMap<ObjectKey, (Wanted, Result<Place, Missing>)>,
    /// Interfaces of nobody (yet) behind which an address lies that a wanted pod still claims whose own interface has gone. By
    /// index, with that pod.
    pub disputed: BTreeMap<u32, ObjectKey>,
    /// The devices of the node by index, but for the loopback device.
    pub devices: BTreeMap<u32, Device>,
    /// The envelopes that they open.
    pub tunnels: BTreeSet<TunnelKey>,
    /// The number of the list of wanted pods that this report answers; 0 before the first one.
    pub answers: u64,
    /// The highest ticket of [`Discovery::rescan`] that this report covers.
    pub covers: u64,
    /// What keeps the discovery from working, if anything.
    pub trouble: Option<String>,
}

/// What the discovery is asked for.
#[derive(Clone, Default)]
struct Request {
    wanted: Arc<[Wanted]>,
    number: u64,
    ticket: u64,
    stop: bool,
}

/// The discovery, running in a thread of its own.
pub struct Discovery {
    request: Arc<Mutex<Request>>,
    wake: Arc<EventFd>,
    /// The report, always the latest.
    pub reports: watch::Receiver<Arc<Report>>,
}

impl Discovery {
    /// Starts the discovery in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// If netlink cannot be listened to.
    pub fn start() -> io::Result<Self> {
        let request = Arc::<Mutex<Request>>::default();
        let wake = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let (send, reports) = watch::channel(Arc::default());
        // Opened here, so that an error is told to the caller, and before anything is read, so that no change is missed.
        let watcher = watcher::Watcher::new(Arc::clone(&request), Arc::clone(&wake), send)?;
        thread::Builder::new()
            .name("discovery".into())
            .spawn(move || watcher.run())?;
        Ok(Self {
            request,
            wake,
            reports,
        })
    }

    /// Says which pods are local. Returns the number of the report that answers.
    pub fn want(&self, wanted: Vec<Wanted>) -> u64 {
        let mut request = self.request.lock().unwrap_or_else(PoisonError::into_inner);
        if request.number == 0 || *request.wanted != *wanted {
            request.wanted = wanted.into();
            request.number += 1;
            let _ = self.wake.write(1);
        }
        request.number
    }

    /// Asks for everything to be looked at again.
    pub fn rescan(&self, ticket: u64) {
        let mut request = self.request.lock().unwrap_or_else(PoisonError::into_inner);
        request.ticket = request.ticket.max(ticket);
        let _ = self.wake.write(1);
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.request
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .stop = true;
        let _ = self.wake.write(1);
    }
}
