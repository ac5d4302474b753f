//! Dropped packets: read from the kernel, their lost flows repaired, and told in the log.
//!
//! A thread of its own reads and repairs, so that no work of the loop makes it fall behind; what it read comes to the loop,
//! which knows the names, by one bounded channel.

mod log;
mod reader;

use std::{
    future::pending,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use netpol_common::{Event, lost};
use tokio::sync::mpsc;

use self::{log::Log, reader::Counters};
use super::{enforcer::Enforcer, kernel::Kernel, status::DropStatus};
use crate::dataplane::Dataplane;

pub(super) struct Drops {
    /// `None` if drops cannot be read, which stops nothing else.
    batches: Option<mpsc::Receiver<Vec<Event>>>,
    counters: Arc<Counters>,
    log: Log,
    /// How many drops had no record when that was told last.
    told: u64,
}

impl Drops {
    /// Starts to read.
    pub fn start(dataplane: &mut Dataplane) -> Self {
        let counters = Arc::<Counters>::default();
        let batches = reader::start(dataplane, &counters)
            .inspect_err(|error| {
                tracing::error!(
                    error,
                    "dropped packets are not told; they are dropped all the same"
                );
            })
            .ok();
        Self {
            batches,
            counters,
            log: Log::default(),
            told: dataplane.lost().map_or(0, |lost| lost.iter().sum()),
        }
    }

    /// The next records, or never. Cancelling loses nothing.
    pub async fn next(&mut self) -> Vec<Event> {
        if let Some(batches) = &mut self.batches {
            if let Some(batch) = batches.recv().await {
                return batch;
            }
            tracing::error!("dropped packets are not told any more; restart the agent");
            self.batches = None;
        }
        pending().await
    }

    /// Tells what is new of these records.
    pub fn take<K: Kernel>(&mut self, batch: &[Event], enforcer: &Enforcer<K>) {
        for event in batch {
            self.log.take(event, enforcer);
        }
    }

    /// When [`Drops::tell`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.log.due()
    }

    /// Tells what came again since it was told last, if it is time.
    pub fn tell<K: Kernel>(&mut self, enforcer: &Enforcer<K>) {
        if self.due().is_none_or(|due| due > Instant::now()) {
            return;
        }
        self.log.tell(enforcer);
        let status = self.status(enforcer);
        let lost = status.over_budget + status.buffer_full + status.unread;
        if lost > self.told {
            tracing::warn!(
                packets = lost - self.told,
                over_budget = status.over_budget,
                buffer_full = status.buffer_full,
                unread = status.unread,
                "more packets were dropped than are told one by one; all of them are counted in the status"
            );
            self.told = lost;
        }
    }

    /// For the status.
    pub fn status<K: Kernel>(&self, enforcer: &Enforcer<K>) -> DropStatus {
        let lost = enforcer.kernel.lost().unwrap_or_else(|e| {
            tracing::warn!(error = %e, "cannot read how many drops have no record");
            [0; lost::COUNT as usize]
        });
        let (unread, repaired, unasked) = self.counted();
        DropStatus {
            over_budget: lost[lost::BUDGET as usize],
            buffer_full: lost[lost::FULL as usize],
            unread,
            repaired,
            unasked,
        }
    }

    /// The last three of them, which the reader counts.
    pub fn counted(&self) -> (u64, u64, u64) {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        (
            count(&counters.unread),
            count(&counters.repaired),
            count(&counters.unasked),
        )
    }
}
