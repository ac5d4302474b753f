//! The kernel's maps as a test reads and writes them.

use std::collections::BTreeMap;

use anyhow::Context as _;
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, PerCpuValues};
use netpol_agent::dataplane::Events;
use netpol_common::{
    Address, Budget, Direction, Event, Flow, FlowKey, Fragment, FragmentKey, Reason, Tally, Tick,
    map, size,
};
use netpol_tests::kernel::Bench;

/// What an array holds where nothing was ever written.
const NOBODY: FlowKey = FlowKey {
    remote: Address::NONE,
    interface: 0,
    local_port: 0,
    remote_port: 0,
    protocol: 0,
};

/// Handles on the tables that packets change, and what this thread's CPU has in those that each CPU has by itself.
pub struct KernelTables {
    flows: HashMap<MapData, FlowKey, Flow>,
    opening: HashMap<MapData, FlowKey, Flow>,
    fragments: HashMap<MapData, FragmentKey, Fragment>,
    tickets: PerCpuArray<MapData, FlowKey>,
    budgets: PerCpuArray<MapData, Budget>,
    statistics: PerCpuArray<MapData, Tally>,
    slots: Array<MapData, u32>,
    events: Events,
    cpu: usize,
}

impl KernelTables {
    /// Opens them, and keeps this thread on the CPU that it is on.
    pub fn open(bench: &mut Bench) -> anyhow::Result<Self> {
        let cpu = nix::sched::sched_getcpu()?;
        let mut only = nix::sched::CpuSet::new();
        only.set(cpu)?;
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &only)
            .context("cannot stay on one CPU")?;
        Ok(Self {
            flows: bench.table(map::FLOWS)?,
            opening: bench.table(map::OPENING)?,
            fragments: bench.table(map::FRAGMENTS)?,
            tickets: bench.table(map::TICKETS)?,
            budgets: bench.table(map::BUDGETS)?,
            statistics: bench.table(map::STATS)?,
            slots: bench.table(map::SLOTS)?,
            events: bench.dataplane.events()?,
            cpu,
        })
    }

    /// Takes away whatever packets have left.
    pub fn clear(&mut self) -> anyhow::Result<()> {
        retain(&mut self.flows, |_| None)?;
        retain(&mut self.opening, |_| None)?;
        retain(&mut self.fragments, |_| None)?;
        for number in self.tickets()?.into_keys() {
            let cpus =
                PerCpuValues::try_from(vec![NOBODY; aya::util::nr_cpus().map_err(|e| e.1)?])?;
            self.tickets.set(number, cpus, 0)?;
        }
        while self.events.read().is_some() {}
        Ok(())
    }

    pub fn flows(&self) -> anyhow::Result<BTreeMap<FlowKey, Flow>> {
        Ok(self.flows.iter().collect::<Result<_, _>>()?)
    }

    pub fn opening(&self) -> anyhow::Result<BTreeMap<FlowKey, Flow>> {
        Ok(self.opening.iter().collect::<Result<_, _>>()?)
    }

    pub fn fragments(&self) -> anyhow::Result<BTreeMap<FragmentKey, Fragment>> {
        Ok(self.fragments.iter().collect::<Result<_, _>>()?)
    }

    /// The tickets that were issued.
    pub fn tickets(&self) -> anyhow::Result<BTreeMap<u32, FlowKey>> {
        let mut tickets = BTreeMap::new();
        for number in 0..size::TICKETS {
            let key = self.tickets.get(&number, 0)?[self.cpu];
            if key != NOBODY {
                tickets.insert(number, key);
            }
        }
        Ok(tickets)
    }

    /// All records that there are.
    pub fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.read()).collect()
    }

    pub fn tally(
        &self,
        (slot, direction, reason): (u32, Direction, Reason),
    ) -> anyhow::Result<Tally> {
        let index = Tally::index(slot, direction, reason);
        Ok(self.statistics.get(&index, 0)?[self.cpu])
    }

    pub fn budget(&self, slot: u32, direction: Direction) -> anyhow::Result<Budget> {
        Ok(self.budgets.get(&Budget::index(slot, direction), 0)?[self.cpu])
    }

    pub fn set_budget(
        &mut self,
        slot: u32,
        direction: Direction,
        budget: Budget,
    ) -> anyhow::Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|e| e.1)?;
        let all = PerCpuValues::try_from(vec![budget; cpus])?;
        Ok(self.budgets.set(Budget::index(slot, direction), all, 0)?)
    }

    pub fn set_slot(&mut self, slot: u32, interface: u32) -> anyhow::Result<()> {
        Ok(self.slots.set(slot, interface, 0)?)
    }

    pub fn plant(&mut self, key: &FlowKey, flow: &Flow, settled: bool) -> anyhow::Result<()> {
        let table = if settled {
            &mut self.flows
        } else {
            &mut self.opening
        };
        Ok(table.insert(key, flow, 0)?)
    }

    /// Takes flows away.
    pub fn evict(&mut self, goes: impl Fn(&FlowKey) -> bool) -> anyhow::Result<()> {
        for table in [&mut self.flows, &mut self.opening] {
            for key in table.keys().collect::<Result<Vec<_>, _>>()? {
                if goes(&key) {
                    table.remove(&key)?;
                }
            }
        }
        Ok(())
    }

    /// Lets everything look as if it had been noted earlier.
    pub fn age(&mut self, ticks: Tick) -> anyhow::Result<()> {
        let older = |flow: Flow| {
            Some(Flow {
                seen: flow.seen.wrapping_sub(ticks),
                ..flow
            })
        };
        retain(&mut self.flows, older)?;
        retain(&mut self.opening, older)?;
        retain(&mut self.fragments, |first| {
            Some(Fragment {
                seen: first.seen.wrapping_sub(ticks),
                ..first
            })
        })
    }
}

/// Changes every entry, or removes it.
fn retain<K: aya::Pod, V: aya::Pod>(
    table: &mut HashMap<MapData, K, V>,
    change: impl Fn(V) -> Option<V>,
) -> anyhow::Result<()> {
    let entries: Result<Vec<(K, V)>, MapError> = table.iter().collect();
    for (key, value) in entries? {
        match change(value) {
            Some(value) => table.insert(key, value, 0)?,
            None => table.remove(&key)?,
        }
    }
    Ok(())
}
