//! The thread that reads.

use std::{
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use netpol_common::Event;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::sync::mpsc::{self, error::TrySendError};

use super::super::repair::{Outcome, Repairer};
use crate::dataplane::{Dataplane, Events};

/// How many records go to the loop at once, and how many batches may wait there.
const BATCH: usize = 256;
const BATCHES: usize = 32;

/// What the thread counts.
#[derive(Default)]
pub(super) struct Counters {
    /// Records that the loop had no time for.
    pub unread: AtomicU64,
    /// Lost flows that were written again.
    pub repaired: AtomicU64,
    /// Drops that may have been answers, of which nobody was asked because there were too many.
    pub unasked: AtomicU64,
}

struct Reader {
    events: Events,
    /// `None` if the flow tables cannot be opened.
    repairer: Option<Repairer>,
    counters: Arc<Counters>,
    batches: mpsc::Sender<Vec<Event>>,
}

/// Starts the thread; it ends when nobody receives any more.
pub(super) fn start(
    dataplane: &mut Dataplane,
    counters: &Arc<Counters>,
) -> Result<mpsc::Receiver<Vec<Event>>, String> {
    let repairer = dataplane.flows().map(Repairer::new).inspect_err(|e| {
        tracing::error!(error = %e, "flows that are lost are not repaired");
    });
    let (batches, receiver) = mpsc::channel(BATCHES);
    let reader = Reader {
        events: dataplane.events().map_err(|e| e.to_string())?,
        repairer: repairer.ok(),
        counters: Arc::clone(counters),
        batches,
    };
    thread::Builder::new()
        .name("drops".into())
        .spawn(move || reader.run())
        .map_err(|e| e.to_string())?;
    Ok(receiver)
}

impl Reader {
    fn run(mut self) {
        while !self.batches.is_closed() {
            let mut ready = [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
            // A second, to notice that nobody receives any more.
            match poll(&mut ready, PollTimeout::from(1000_u16)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => {
                    tracing::error!(error = %e, "cannot wait for dropped packets");
                    return;
                }
            }
            while self.read() {}
        }
    }

    /// Hands on one batch; returns whether there may be more.
    fn read(&mut self) -> bool {
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            let Some(event) = self.events.read() else {
                break;
            };
            self.repair(&event);
            batch.push(event);
        }
        let more = batch.len() == BATCH;
        if batch.is_empty() {
            return false;
        }
        match self.batches.try_send(batch) {
            Ok(()) => more,
            Err(TrySendError::Full(batch)) => {
                let unread = batch.len() as u64;
                self.counters.unread.fetch_add(unread, Ordering::Relaxed);
                more
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }

    fn repair(&mut self, event: &Event) {
        let Some(repairer) = &mut self.repairer else {
            return;
        };
        match repairer.consider(event) {
            Outcome::Repaired => {
                self.counters.repaired.fetch_add(1, Ordering::Relaxed);
            }
            Outcome::Limited => {
                self.counters.unasked.fetch_add(1, Ordering::Relaxed);
            }
            Outcome::Rightful | Outcome::Unknown => {}
        }
    }
}
