//! The thread behind [`super::Discovery`].

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    os::fd::AsFd as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::EventFd,
};
use tokio::sync::watch;

use super::{
    Place, Report, Request, Wanted, addresses,
    interfaces::{Knowledge, Mapping},
    namespaces::Inside,
    rtnetlink::{Event, Socket},
};

/// How long to wait before looking again for a pod that was not found, at first and at most. Only what no event tells
/// needs this: a namespace that could not be read.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

pub(super) struct Watcher {
    request: Arc<Mutex<Request>>,
    wake: Arc<EventFd>,
    reports: watch::Sender<Arc<Report>>,
    listener: Socket,
    socket: Socket,
    known: Knowledge,
    addresses: BTreeSet<IpAddr>,
    mapped: Mapping,
    /// What of the agent's own namespace has to be read again.
    links_changed: bool,
    addresses_changed: bool,
    retry: Duration,
}

impl Watcher {
    pub fn new(
        request: Arc<Mutex<Request>>,
        wake: Arc<EventFd>,
        reports: watch::Sender<Arc<Report>>,
    ) -> io::Result<Self> {
        Ok(Self {
            request,
            wake,
            reports,
            listener: Socket::listen()?,
            socket: Socket::open()?,
            known: Knowledge::default(),
            addresses: BTreeSet::new(),
            mapped: Mapping::default(),
            links_changed: true,
            addresses_changed: true,
            retry: RETRY.0,
        })
    }

    pub fn run(mut self) {
        let (mut number, mut ticket) = (0, 0);
        loop {
            let asked = self
                .request
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            if asked.stop {
                return;
            }
            if asked.number != number {
                self.retry = RETRY.0;
            }
            if asked.ticket != ticket {
                self.everything_changed();
            }
            (number, ticket) = (asked.number, asked.ticket);
            let wanted = asked.wanted;
            let trouble = self.look(&wanted);
            let resolved = self.publish(&wanted, number, ticket, trouble);
            let timeout = (!resolved).then(|| {
                let now = self.retry;
                self.retry = (self.retry * 2).min(RETRY.1);
                now
            });
            let timed_out = match self.wait(timeout) {
                Ok(timed_out) => timed_out,
                Err(e) => return self.give_up(&format!("cannot listen to netlink: {e}")),
            };
            if timed_out {
                // Links may have gone to namespaces that could not be read then, and addresses may have come there.
                self.links_changed = true;
            }
        }
    }

    fn everything_changed(&mut self) {
        self.links_changed = true;
        self.addresses_changed = true;
        self.known.inside.clear();
    }

    /// Reads what has changed, looks for the pods that have no interface, and looks again at the interfaces of those that have
    /// one. Returns what went wrong, if anything.
    fn look(&mut self, wanted: &[Wanted]) -> Option<String> {
        let mut trouble = None;
        if self.addresses_changed {
            match addresses::read(&mut self.socket) {
                Ok(addresses) => {
                    self.addresses = addresses;
                    self.addresses_changed = false;
                }
                Err(e) => trouble = Some(format!("cannot read the node's addresses: {e}")),
            }
        }
        if self.links_changed {
            match self.socket.links(None) {
                Ok(links) => {
                    self.known.set_links(&links);
                    self.links_changed = false;
                }
                Err(e) => trouble = Some(format!("cannot read the node's interfaces: {e}")),
            }
        }
        self.known.resolve(wanted, &mut self.mapped);
        let lacks = |pod: &Wanted| match self.mapped.found.get(&pod.key) {
            Some(found) => self.known.stale(found),
            None => !pod.addresses.is_empty(),
        };
        if wanted.iter().any(lacks) {
            let unread: BTreeSet<_> = self.known.unread().collect();
            for namespace in unread {
                match Inside::read(&mut self.socket, namespace) {
                    Ok(inside) => {
                        self.known.inside.insert(namespace, inside);
                    }
                    Err(e) => {
                        tracing::debug!(namespace, error = %e, "cannot look into a network namespace");
                    }
                }
            }
            self.known.resolve(wanted, &mut self.mapped);
        }
        trouble
    }

    /// Publishes the report. Returns whether there is nothing to look for any more.
    fn publish(
        &mut self,
        wanted: &[Wanted],
        number: u64,
        ticket: u64,
        trouble: Option<String>,
    ) -> bool {
        let mut resolved = trouble.is_none();
        let pods = wanted
            .iter()
            .map(|pod| {
                let found = match self.mapped.found.get(&pod.key) {
                    Some(found) => {
                        resolved &= !self.known.stale(found);
                        Ok(Place {
                            interface: found.interface.clone(),
                            identity: found.identity,
                        })
                    }
                    None => {
                        resolved &= pod.addresses.is_empty();
                        Err(self.known.why_missing(pod, &self.mapped))
                    }
                };
                (pod.key.clone(), (pod.clone(), found))
            })
            .collect();
        let report = Report {
            addresses: self.addresses.clone(),
            pods,
            disputed: self.known.disputed(wanted, &self.mapped),
            devices: self.known.devices.clone(),
            tunnels: self.known.tunnels.clone(),
            answers: number,
            covers: ticket,
            trouble,
        };
        self.reports.send_if_modified(|last| {
            let same = **last == report;
            if !same {
                *last = Arc::new(report);
            }
            !same
        });
        resolved
    }

    /// Waits for something to happen, and notes what. Returns whether the time was up first.
    fn wait(&mut self, limit: Option<Duration>) -> io::Result<bool> {
        let timeout = limit.map_or(PollTimeout::NONE, |limit| {
            PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)
        });
        let mut ready = [
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, timeout) {
            Ok(0) => return Ok(true),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let _ = self.wake.read();
        for event in self.listener.events()? {
            self.retry = RETRY.0;
            match event {
                Event::Link(None) | Event::Namespace => self.links_changed = true,
                Event::Address(None) => self.addresses_changed = true,
                Event::Link(Some(id)) | Event::Address(Some(id)) => {
                    self.known.inside.remove(&id);
                }
                Event::Lost => self.everything_changed(),
            }
        }
        Ok(false)
    }

    fn give_up(&self, trouble: &str) {
        tracing::error!(
            error = trouble,
            "interfaces of pods are not looked for any more; what is enforced stays in force; restart the agent"
        );
        self.reports.send_modify(|last| {
            let mut report = Report::clone(last);
            report.trouble = Some(format!("{trouble}; restart the agent"));
            *last = Arc::new(report);
        });
    }
}
