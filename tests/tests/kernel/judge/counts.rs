//! What both homes have counted.

use std::collections::BTreeMap;

use netpol_agent::dataplane::memory::MemoryTables;
use netpol_common::{Direction, Reason, Tally};

use super::{kernel_tables::KernelTables, world::Pod};

/// How many bytes and packets each slot, direction and reason has.
pub type Counts = BTreeMap<(u32, Direction, Reason), Tally>;

/// The counts of both homes up to the last packet.
#[derive(Default)]
pub struct Ledger {
    kernel: Counts,
    host: Counts,
}

impl Ledger {
    /// Counts from here on.
    pub fn open(kernel: &KernelTables, host: &MemoryTables) -> anyhow::Result<Self> {
        Ok(Self {
            kernel: all(kernel)?,
            host: host.count_entries(),
        })
    }

    /// What the host has counted since it was asked last.
    pub fn host(&mut self, host: &MemoryTables) -> Counts {
        let now = host.count_entries();
        let grown = since(&self.host, &now);
        self.host = now;
        grown
    }

    /// What the kernel has counted since it was asked last: only where something is expected, and if that is not what is found
    /// there, everywhere.
    pub fn kernel(&mut self, kernel: &KernelTables, expected: &Counts) -> anyhow::Result<Counts> {
        let mut now = Counts::new();
        for &key in expected.keys() {
            now.insert(key, kernel.tally(key)?);
        }
        let grown = since(&self.kernel, &now);
        if grown != *expected {
            return self.elsewhere(kernel);
        }
        self.kernel.extend(now);
        Ok(grown)
    }

    /// What the kernel has counted since it was asked last, and where nobody has looked.
    pub fn elsewhere(&self, kernel: &KernelTables) -> anyhow::Result<Counts> {
        Ok(since(&self.kernel, &all(kernel)?))
    }
}

/// All counts of the pods.
fn all(kernel: &KernelTables) -> anyhow::Result<Counts> {
    let mut counts = Counts::new();
    for pod in Pod::ALL {
        for direction in Direction::BOTH {
            for reason in Reason::ALL {
                let key = (pod.slot(), direction, reason);
                counts.insert(key, kernel.tally(key)?);
            }
        }
    }
    Ok(counts)
}

/// What was counted since `before`.
fn since(before: &Counts, now: &Counts) -> Counts {
    let grown = now.iter().map(|(key, tally)| {
        let before = before.get(key).copied().unwrap_or_default();
        // Less than before is a number like any other: what the other home has not.
        let grown = Tally {
            packets: tally.packets.wrapping_sub(before.packets),
            bytes: tally.bytes.wrapping_sub(before.bytes),
        };
        (*key, grown)
    });
    grown
        .filter(|(_, grown)| *grown != Tally::default())
        .collect()
}
