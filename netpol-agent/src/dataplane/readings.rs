//! What the kernel has counted, and how full its tables are: for another thread, so that reading holds up nobody.

use std::{
    os::fd::AsFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::maps::{HashMap, MapData, MapInfo, PerCpuArray};
use netpol_common::{Direction, Endpoint, Reason, Tally, lost, map, size};

use super::{
    Error,
    error::os_error,
    pins::{Pins, open},
    sys,
};

/// Packets by [`Direction`] and [`Reason`].
pub type Tallies = [[Tally; Reason::COUNT]; 2];

/// The slot that no endpoint gets: under it is counted what slots had counted that were given back. The sum of all never falls,
/// whatever pods come and go, and whichever agent reads it.
pub const FORMER: u32 = size::SLOTS - 1;

/// The tables whose fill is of interest, in the order in which `status` shows them.
const FILLED: [&str; 6] = [
    map::PEER_HOSTS,
    map::PEER_NETS,
    map::RULES,
    map::PORTS,
    map::ENDPOINTS,
    map::FLOWS,
];

/// How full a table is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableFill {
    /// The map.
    pub name: &'static str,
    /// How many elements it holds.
    pub entries: usize,
    /// How many it can hold.
    pub capacity: usize,
}

/// Held while counts move from one slot to another.
#[derive(Clone, Default)]
pub(super) struct Moving(Arc<Mutex<()>>);

impl Moving {
    pub(super) fn lock(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Handles of their own on what is read for metrics.
pub struct Readings {
    pins: Pins,
    endpoints: HashMap<MapData, u32, Endpoint>,
    statistics: MapData,
    lost: PerCpuArray<MapData, u64>,
    moving: Moving,
    cpus: usize,
}

impl Readings {
    pub(super) fn open(pins: &Pins, moving: &Moving) -> Result<Self, Error> {
        let failed = |source| Error::Read {
            table: map::STATS,
            source,
        };
        Ok(Self {
            pins: pins.clone(),
            endpoints: open(pins, map::ENDPOINTS)?,
            statistics: MapData::from_pin(pins.map(map::STATS)).map_err(|e| failed(os_error(e)))?,
            lost: open(pins, map::LOST)?,
            moving: moving.clone(),
            cpus: aya::util::nr_cpus().map_err(|(_, e)| failed(e))?,
        })
    }

    /// What was counted for all endpoints that are and were.
    ///
    /// # Errors
    ///
    /// If a table cannot be read.
    pub fn packets(&self) -> Result<Tallies, Error> {
        let failed = |table| move |source| Error::Read { table, source };
        let mut sum = Tallies::default();
        let _still = self.moving.lock();
        let mut slots = vec![FORMER];
        for endpoint in self.endpoints.iter() {
            let (_, endpoint) = endpoint.map_err(os_error).map_err(failed(map::ENDPOINTS))?;
            slots.push(endpoint.slot);
        }
        slots.sort_unstable();
        slots.dedup();
        for slot in slots {
            let first = Tally::index(slot, Direction::Ingress, Reason::ALL[0]);
            let count = 2 * Reason::COUNT;
            let bytes = sys::elements(
                self.statistics.fd().as_fd(),
                first,
                count,
                size_of::<Tally>() * self.cpus,
            )
            .map_err(failed(map::STATS))?;
            let (words, _) = bytes.as_chunks::<8>();
            // Two words for each CPU, the CPUs of an element together, the elements in the order of `Tally::index`.
            for (element, words) in words.chunks(2 * self.cpus).enumerate() {
                let tally = &mut sum[element / Reason::COUNT][element % Reason::COUNT];
                for cpu in words.as_chunks::<2>().0 {
                    tally.packets += u64::from_ne_bytes(cpu[0]);
                    tally.bytes += u64::from_ne_bytes(cpu[1]);
                }
            }
        }
        Ok(sum)
    }

    /// How many drops have no record, by [`lost`].
    ///
    /// # Errors
    ///
    /// If the table cannot be read.
    pub fn lost(&self) -> Result<[u64; lost::COUNT as usize], Error> {
        sum_lost(&self.lost)
    }

    /// How full the tables are. The kernel counts no elements: this reads all of them, a thousand in less than a millisecond.
    ///
    /// # Errors
    ///
    /// If a table cannot be read.
    pub fn fill(&self) -> Result<Vec<TableFill>, Error> {
        fill(&self.pins)
    }
}

pub(super) fn sum_lost(
    lost: &PerCpuArray<MapData, u64>,
) -> Result<[u64; lost::COUNT as usize], Error> {
    let mut all = [0; lost::COUNT as usize];
    for (index, sum) in (0..).zip(&mut all) {
        let cpus = lost.get(&index, 0).map_err(|e| Error::Read {
            table: map::LOST,
            source: os_error(e),
        })?;
        *sum = cpus.iter().sum();
    }
    Ok(all)
}

pub(super) fn fill(pins: &Pins) -> Result<Vec<TableFill>, Error> {
    let fill = |name: &'static str| {
        let read = |source| Error::Read {
            table: name,
            source,
        };
        let pin = pins.map(name);
        let info = MapInfo::from_pin(&pin).map_err(|e| read(os_error(e)))?;
        let map = sys::open_pin(&pin).map_err(read)?;
        let (key, value) = (info.key_size() as usize, info.value_size() as usize);
        let capacity = info.max_entries() as usize;
        let entries = sys::count(map.as_fd(), key, value, capacity).map_err(read)?;
        Ok(TableFill {
            name,
            entries,
            capacity,
        })
    };
    FILLED.into_iter().map(fill).collect()
}
