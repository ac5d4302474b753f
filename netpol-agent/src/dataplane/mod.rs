//! The kernel's side: maps, programs, links and their pins. Knows no Kubernetes type.
//!
//! Maps and links are pinned: enforcement goes on when the agent ends, and the next one adopts what it finds.

mod error;
mod events;
mod filters;
mod flows;
mod links;
pub mod memory;
mod pins;
mod qdisc;
mod readings;
mod sys;
mod tables;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, MapError, MapInfo, PerCpuArray, RingBuf},
    programs::SchedClassifier,
};
use netpol_common::{
    Direction, Endpoint, Flow, FlowKey, MarkField, Reason, SLOT_OF_NOBODY, Tally, TunnelKey, lost,
    map, size,
};

pub use self::{
    error::Error,
    events::Events,
    flows::Flows,
    links::{HookChoice, HookKind},
    pins::{Hook, holds_pins},
    readings::{FORMER, Readings, TableFill, Tallies},
    sys::{grace, monotonic, tick},
};
use self::{
    error::os_error,
    pins::{LinkPin, Pins},
    readings::Moving,
    tables::EditTables,
};
use crate::{object, policy::edit::Edit};

/// How many entries the tables hold. A pinned table keeps the size with which it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Addresses of pods and nodes.
    pub hosts: u32,
    /// Prefixes of ipBlocks.
    pub nets: u32,
    /// Pairs of a ruleset and a class.
    pub rules: u32,
    /// Prefixes of ports.
    pub ports: u32,
    /// Flows. Half as many again may be being opened.
    pub flows: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            hosts: size::PEER_HOSTS,
            nets: size::PEER_NETS,
            rules: size::RULES,
            ports: size::PORTS,
            flows: size::FLOWS,
        }
    }
}

/// How to open the dataplane.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory of the pins, on a bpf file system (mounted there if it is not).
    pub pins: PathBuf,
    /// Which hooks to use.
    pub hook: HookChoice,
    /// Sizes of tables that are not pinned yet.
    pub sizes: Sizes,
    /// Load programs that log the way of packets of endpoints with [`Endpoint::TRACE`].
    pub trace: bool,
    /// The bits of packet marks that are ours.
    pub mark: MarkField,
}

/// The loaded programs and their tables.
pub struct Dataplane {
    object: Ebpf,
    pins: Pins,
    hook: HookKind,
    tables: EditTables,
    endpoints: HashMap<MapData, u32, Endpoint>,
    slots: Array<MapData, u32>,
    tunnels: HashMap<MapData, TunnelKey, u32>,
    statistics: PerCpuArray<MapData, Tally>,
    lost: PerCpuArray<MapData, u64>,
    moving: Moving,
    epoch_map: Array<MapData, u32>,
    epoch: u32,
}

/// What [`cleanup`] took away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Removed {
    /// Hooks that carried a program.
    pub links: usize,
    /// Pins of any kind.
    pub pins: usize,
    /// Filters on devices of which no pin told.
    pub orphans: usize,
    /// Filters that stay on devices of another network namespace.
    pub left: usize,
}

/// The maps that outlive a process, with the sizes of their keys and values.
const PINNED: [(&str, usize, usize); 16] = [
    (map::ENDPOINTS, size_of::<u32>(), size_of::<Endpoint>()),
    (map::PEER_HOSTS, 16, size_of::<netpol_common::Peer>()),
    (map::PEER_NETS, 4 + 16, size_of::<netpol_common::Peer>()),
    (
        map::RULES,
        size_of::<netpol_common::RuleKey>(),
        size_of::<u64>(),
    ),
    (map::PORTS, 4 + size_of::<netpol_common::PortKey>(), 1),
    (map::FLOWS, size_of::<FlowKey>(), size_of::<Flow>()),
    (map::OPENING, size_of::<FlowKey>(), size_of::<Flow>()),
    (map::SLOTS, size_of::<u32>(), size_of::<u32>()),
    (
        map::FRAGMENTS,
        size_of::<netpol_common::FragmentKey>(),
        size_of::<netpol_common::Fragment>(),
    ),
    (map::TICKETS, size_of::<u32>(), size_of::<FlowKey>()),
    (
        map::TUNNELS,
        size_of::<netpol_common::TunnelKey>(),
        size_of::<u32>(),
    ),
    (map::EVENTS, 0, 0),
    (
        map::BUDGETS,
        size_of::<u32>(),
        size_of::<netpol_common::Budget>(),
    ),
    (map::LOST, size_of::<u32>(), size_of::<u64>()),
    (map::STATS, size_of::<u32>(), size_of::<Tally>()),
    (map::EPOCH, size_of::<u32>(), size_of::<u32>()),
];

impl Dataplane {
    /// Loads the programs and opens the tables, pinned ones where there are some. Nothing is attached or changed yet.
    ///
    /// # Errors
    ///
    /// If the object was not built in, the pins cannot be made or have another layout, or the kernel refuses a program.
    pub fn open(options: &Options) -> Result<Self, Error> {
        if object::NETPOL.is_empty() {
            return Err(Error::NotBuilt);
        }
        let pins = Pins::new(&options.pins);
        pins.prepare()?;
        pins.claim()?;
        for (name, key, value) in PINNED {
            check_layout(&pins.map(name), key, value)?;
        }
        let load = |e: aya::EbpfError| Error::Load(e.into());
        let trace = u8::from(options.trace);
        let mut loader = EbpfLoader::new();
        // The loader has parsed the types of the kernel, 15 MiB: dropped, they are for relocations (CO-RE), of which the object
        // has none, since it reads no structure of the kernel's. (aya 0.15 reads them only when there are some.)
        loader
            .btf(None)
            .override_global(map::TRACE, &trace, true)
            .override_global(map::MARK_MASK, &options.mark.mask, true)
            .override_global(map::MARK_SHIFT, &options.mark.shift, true)
            .map_max_entries(map::PEER_HOSTS, options.sizes.hosts)
            .map_max_entries(map::PEER_NETS, options.sizes.nets)
            .map_max_entries(map::RULES, options.sizes.rules)
            .map_max_entries(map::PORTS, options.sizes.ports)
            .map_max_entries(map::FLOWS, options.sizes.flows)
            .map_max_entries(map::OPENING, options.sizes.flows.div_ceil(2));
        for (name, ..) in PINNED {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut object = loader.load(object::NETPOL).map_err(load)?;
        for hook in Hook::ALL {
            program(&mut object, hook)?
                .load()
                .map_err(|e| Error::Load(anyhow::Error::new(e)))?;
        }
        let tables = EditTables::take(&mut object)?;
        let endpoints = take(&mut object, map::ENDPOINTS)?;
        let slots = take(&mut object, map::SLOTS)?;
        let tunnels = take(&mut object, map::TUNNELS)?;
        let statistics = take(&mut object, map::STATS)?;
        let lost = take(&mut object, map::LOST)?;
        let epoch_map: Array<MapData, u32> = take(&mut object, map::EPOCH)?;
        let epoch = epoch_map.get(&0, 0).map_err(|e| Error::Read {
            table: map::EPOCH,
            source: os_error(e),
        })?;
        let mut dataplane = Self {
            object,
            pins,
            hook: options.hook.resolve(),
            tables,
            endpoints,
            slots,
            tunnels,
            statistics,
            lost,
            moving: Moving::default(),
            epoch_map,
            epoch,
        };
        dataplane.collect_dead_links()?;
        Ok(dataplane)
    }

    /// The kind of hook in use.
    pub fn hook(&self) -> HookKind {
        self.hook
    }

    /// Writes edits in their order. After an error some of them may be written: writing all of them again is right.
    ///
    /// # Errors
    ///
    /// If the kernel refuses an element, for example because the table is full.
    pub fn write(&mut self, edits: &[Edit]) -> Result<(), Error> {
        self.tables.write(edits)
    }

    /// Writes what the tables lack of `tables`, the whole content that they should have.
    ///
    /// # Errors
    ///
    /// If a table cannot be read or written.
    pub fn adopt(&mut self, tables: &[Edit]) -> Result<(), Error> {
        self.tables.adopt(tables)
    }

    /// Removes what is not in `tables`, the whole content that the tables should have. Only after a [`grace`] since the
    /// last endpoint that could refer to it was changed.
    ///
    /// # Errors
    ///
    /// If a table cannot be read or written.
    pub fn discard_unknown(&mut self, tables: &[Edit]) -> Result<(), Error> {
        self.tables.discard_unknown(tables)
    }

    /// The endpoints as they are in force, by host interface.
    ///
    /// # Errors
    ///
    /// If the table cannot be read.
    pub fn endpoints(&self) -> Result<Vec<(u32, Endpoint)>, Error> {
        let read = |e| Error::Read {
            table: map::ENDPOINTS,
            source: os_error(e),
        };
        self.endpoints
            .iter()
            .map(|entry| entry.map_err(read))
            .collect()
    }

    /// Takes over the endpoints that an earlier process has left: their slots lead to them, and all others to none.
    ///
    /// # Errors
    ///
    /// If a table cannot be read or written.
    pub fn adopt_endpoints(&mut self) -> Result<Vec<(u32, Endpoint)>, Error> {
        let endpoints = self.endpoints()?;
        let mut slots = vec![0; size::SLOTS as usize];
        for (interface, endpoint) in &endpoints {
            if let Some(slot) = slots.get_mut(endpoint.slot as usize) {
                *slot = *interface;
            }
        }
        for (slot, interface) in (0..).zip(slots) {
            self.set_slot(slot, interface)?;
        }
        Ok(endpoints)
    }

    /// Writes one endpoint: atomic, a packet sees the old one or the new one.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, for example because there are more than [`size::SLOTS`] local pods.
    pub fn set_endpoint(&mut self, interface: u32, endpoint: &Endpoint) -> Result<(), Error> {
        // Before the endpoint: no packet carries the slot in its mark before it can be found by it.
        self.set_slot(endpoint.slot, interface)?;
        self.endpoints
            .insert(interface, endpoint, 0)
            .map_err(|e| Error::Write {
                table: map::ENDPOINTS,
                source: os_error(e),
            })
    }

    fn set_slot(&mut self, slot: u32, interface: u32) -> Result<(), Error> {
        self.slots
            .set(slot, interface, 0)
            .map_err(|e| Error::Write {
                table: map::SLOTS,
                source: os_error(e),
            })
    }

    /// Takes every program off a device that has gone, or that is not to have any.
    ///
    /// # Errors
    ///
    /// If a pin cannot be removed.
    pub fn release(&mut self, interface: u32) -> Result<(), Error> {
        for hook in Hook::ALL {
            self.detach(interface, hook)?;
        }
        Ok(())
    }

    fn detach(&mut self, interface: u32, hook: Hook) -> Result<(), Error> {
        for clsact in [false, true] {
            let pin = LinkPin {
                interface,
                hook,
                clsact,
            };
            links::detach(&self.pins, pin)?;
        }
        Ok(())
    }

    /// Removes the endpoint of an interface; what was counted for it goes to [`FORMER`]. The programs stay: they judge nothing of a pod
    /// that is not known, and what other pods have sent to it.
    ///
    /// # Errors
    ///
    /// If an element cannot be removed.
    pub fn remove_endpoint(&mut self, interface: u32) -> Result<(), Error> {
        let Ok(endpoint) = self.endpoints.get(&interface, 0) else {
            return Ok(());
        };
        self.set_slot(endpoint.slot, SLOT_OF_NOBODY)?;
        match self.endpoints.remove(&interface) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(e) => {
                return Err(Error::Write {
                    table: map::ENDPOINTS,
                    source: os_error(e),
                });
            }
        }
        self.give_up_statistics(endpoint.slot)
    }

    /// Puts both classifiers on the host side of a pod's veth, in place of whatever program of ours is there.
    ///
    /// # Errors
    ///
    /// If the device is gone or the kernel refuses.
    pub fn attach(&mut self, interface: u32, device: &str) -> Result<(), Error> {
        for hook in Hook::POD {
            self.attach_at(interface, device, hook)?;
        }
        Ok(())
    }

    /// Puts the classifier of what leaves the node on a device that is no pod's, in place of those of a pod if it was one's.
    ///
    /// # Errors
    ///
    /// If the device is gone or the kernel refuses.
    pub fn attach_host(&mut self, interface: u32, device: &str) -> Result<(), Error> {
        self.attach_at(interface, device, Hook::HostEgress)?;
        self.detach(interface, Hook::PodEgress)
    }

    /// The same for a device whose packets have no Ethernet header.
    ///
    /// # Errors
    ///
    /// If the device is gone or the kernel refuses.
    pub fn attach_bare(&mut self, interface: u32, device: &str) -> Result<(), Error> {
        self.attach_at(interface, device, Hook::BareEgress)?;
        self.detach(interface, Hook::PodEgress)
    }

    fn attach_at(&mut self, interface: u32, device: &str, hook: Hook) -> Result<(), Error> {
        let pin = LinkPin {
            interface,
            hook,
            clsact: self.hook == HookKind::Clsact,
        };
        let program = program(&mut self.object, hook)?;
        links::attach(&self.pins, program, pin, device)
    }

    /// Says which envelopes the node opens. Those that are new come first, so that at no time one that stays is missing.
    ///
    /// # Errors
    ///
    /// If the table cannot be read or written, for example because it is full.
    pub fn set_tunnels(&mut self, tunnels: &BTreeSet<TunnelKey>) -> Result<(), Error> {
        let failed = |e| Error::Write {
            table: map::TUNNELS,
            source: os_error(e),
        };
        for tunnel in tunnels {
            self.tunnels.insert(tunnel, 1, 0).map_err(failed)?;
        }
        let there: Result<Vec<TunnelKey>, MapError> = self.tunnels.keys().collect();
        let there = there.map_err(|e| Error::Read {
            table: map::TUNNELS,
            source: os_error(e),
        })?;
        for tunnel in there.iter().filter(|tunnel| !tunnels.contains(tunnel)) {
            match self.tunnels.remove(tunnel) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(())
    }

    /// The interfaces that carry a pinned program.
    ///
    /// # Errors
    ///
    /// If the pins cannot be read.
    pub fn attached(&self) -> Result<BTreeSet<u32>, Error> {
        Ok(self
            .pins
            .links()?
            .into_iter()
            .map(|pin| pin.interface)
            .collect())
    }

    /// Whether programs of ours are attached whose place those of this process will take, and that judge by other tables: of another
    /// schema, or with lost pins. TCX links of another schema judge on, beside the new ones; of filters there is one at a place.
    ///
    /// # Errors
    ///
    /// If the pins or the filters cannot be read.
    pub fn displaces(&self) -> Result<bool, Error> {
        if self.hook == HookKind::Tcx {
            return Ok(false);
        }
        let own = self.pins.links()?;
        let is_own = |filter: &filters::Filter| {
            own.iter().any(|pin| {
                pin.clsact
                    && pin.interface == filter.interface
                    && links::place(pin.hook) == filter.place
            })
        };
        Ok(!filters::all()?.iter().all(is_own))
    }

    /// Whether the tables are still pinned: `cleanup` may have taken everything away under a running agent.
    pub fn pinned(&self) -> bool {
        self.pins.map(map::ENDPOINTS).exists()
    }

    /// The number of the last change.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Raises the epoch: from the next packet on, every flow is judged again.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn raise_epoch(&mut self) -> Result<u32, Error> {
        let next = self.epoch.wrapping_add(1);
        self.epoch_map.set(0, next, 0).map_err(|e| Error::Write {
            table: map::EPOCH,
            source: os_error(e),
        })?;
        self.epoch = next;
        Ok(next)
    }

    /// What was counted for a slot: per [`Direction`] and [`Reason`].
    ///
    /// # Errors
    ///
    /// If the table cannot be read.
    pub fn statistics(&self, slot: u32) -> Result<Tallies, Error> {
        let mut all = Tallies::default();
        for (index, direction, reason) in counts_of(slot) {
            let cpus = self.statistics.get(&index, 0).map_err(|e| Error::Read {
                table: map::STATS,
                source: os_error(e),
            })?;
            let sum = &mut all[direction as usize][reason as usize];
            for cpu in cpus.iter() {
                sum.packets += cpu.packets;
                sum.bytes += cpu.bytes;
            }
        }
        Ok(all)
    }

    /// Counts what a slot has counted under [`FORMER`] instead.
    fn give_up_statistics(&mut self, slot: u32) -> Result<(), Error> {
        let moving = self.moving.clone();
        let _nobody_reads = moving.lock();
        let own = self.statistics(slot)?;
        let former = self.statistics(FORMER)?;
        let failed = |source| Error::Write {
            table: map::STATS,
            source,
        };
        let cpus = aya::util::nr_cpus().map_err(|(_, e)| failed(e))?;
        for (to, direction, reason) in counts_of(FORMER) {
            let sum = |of: &Tallies| of[direction as usize][reason as usize];
            let (own, former) = (sum(&own), sum(&former));
            let mut values = vec![Tally::default(); cpus];
            let mut set = |index, values: &[Tally]| {
                aya::maps::PerCpuValues::try_from(values.to_vec())
                    .map_err(failed)
                    .and_then(|values| {
                        let set = self.statistics.set(index, values, 0);
                        set.map_err(|e| failed(os_error(e)))
                    })
            };
            let zero = values.clone();
            if own != Tally::default() {
                values[0] = Tally {
                    packets: former.packets + own.packets,
                    bytes: former.bytes + own.bytes,
                };
                set(to, &values)?;
            }
            set(Tally::index(slot, direction, reason), &zero)?;
        }
        Ok(())
    }

    /// How full the tables are. The kernel counts no elements: this reads all of them, a thousand in less than a millisecond.
    ///
    /// # Errors
    ///
    /// If a table cannot be read.
    pub fn fill(&self) -> Result<Vec<TableFill>, Error> {
        readings::fill(&self.pins)
    }

    /// How many drops have no record, by [`lost`].
    ///
    /// # Errors
    ///
    /// If the table cannot be read.
    pub fn lost(&self) -> Result<[u64; lost::COUNT as usize], Error> {
        readings::sum_lost(&self.lost)
    }

    /// What is read for metrics, for another thread.
    ///
    /// # Errors
    ///
    /// If a pin cannot be opened.
    pub fn readings(&self) -> Result<Readings, Error> {
        Readings::open(&self.pins, &self.moving)
    }

    /// The records of drops. Only once: there is one reader.
    ///
    /// # Errors
    ///
    /// If the ring buffer cannot be opened.
    pub fn events(&mut self) -> Result<Events, Error> {
        take::<RingBuf<MapData>>(&mut self.object, map::EVENTS).map(Events::new)
    }

    /// The flow tables, for another thread.
    ///
    /// # Errors
    ///
    /// If a pin cannot be opened.
    pub fn flows(&self) -> Result<Flows, Error> {
        Flows::open(&self.pins)
    }

    /// Takes away the programs of agents with another schema, once those of this one are in their places: two generations
    /// would both have to allow a packet, and nobody writes the older one's tables. Returns how many pins went.
    ///
    /// # Errors
    ///
    /// If a pin cannot be removed.
    pub fn retire_others(&mut self) -> Result<usize, Error> {
        let mut removed = 0;
        for other in self.pins.others()? {
            for pin in other.links()? {
                // There is one clsact filter of ours at a place, and it is the new one now.
                if !(pin.clsact && self.hook == HookKind::Clsact) {
                    links::detach(&other, pin)?;
                    removed += 1;
                }
            }
            removed += other.remove_schema()?;
        }
        Ok(removed)
    }

    /// What the programs log of traced packets, for [`Options::trace`].
    ///
    /// # Errors
    ///
    /// If the log buffer cannot be opened.
    pub fn tracer(&mut self) -> Result<Tracer, Error> {
        aya_log::EbpfLogger::init(&mut self.object).map_err(|e| Error::Load(anyhow::Error::new(e)))
    }

    /// Removes pins of links whose device has gone, and the endpoints of those devices.
    fn collect_dead_links(&mut self) -> Result<(), Error> {
        let dead: Vec<LinkPin> = self
            .pins
            .links()?
            .into_iter()
            .filter(|&pin| !links::alive(&self.pins, pin))
            .collect();
        for pin in dead {
            tracing::info!(
                interface = pin.interface,
                "the device of a pinned link has gone"
            );
            self.release(pin.interface)?;
            self.remove_endpoint(pin.interface)?;
        }
        Ok(())
    }
}

/// Mounts a bpf file system for a pin directory if there is none. Returns where, if it did.
///
/// # Errors
///
/// If it cannot be mounted.
pub fn mount_bpffs(root: &Path) -> Result<Option<PathBuf>, Error> {
    Ok(Pins::new(root).mount()?.map(Path::to_owned))
}

/// Reads what traced programs log.
pub type Tracer = aya_log::EbpfLogger<&'static dyn log::Log>;

/// Takes every program off its hook and removes every pin under a pin directory. Pods are open afterwards.
///
/// Filters of ours without a pin go, too. They can be removed only in the network namespace of their devices. With `force` their pins are removed elsewhere, too.
///
/// # Errors
///
/// If something cannot be removed.
pub fn cleanup(root: &Path, force: bool) -> Result<Removed, Error> {
    let pins = Pins::new(root);
    let mut removed = Removed::default();
    let links = pins.links()?;
    let elsewhere = pins.elsewhere();
    if let Some(namespace) = &elsewhere
        && !force
        && links.iter().any(|pin| pin.clsact)
    {
        return Err(Error::Elsewhere {
            namespace: namespace.clone(),
        });
    }
    for pin in links {
        if pin.clsact && elsewhere.is_some() {
            removed.left += 1;
            continue;
        }
        links::detach(&pins, pin)?;
        removed.links += 1;
    }
    for other in pins.others()? {
        for pin in other.links()? {
            links::detach(&other, pin)?;
            removed.links += 1;
        }
    }
    if elsewhere.is_none() {
        removed.orphans = filters::remove_all()?;
    }
    removed.pins = removed.links + pins.remove_all()?;
    Ok(removed)
}

/// How many filters of ours are on the devices of this network namespace, pinned or not.
///
/// # Errors
///
/// If the kernel does not answer.
pub fn filters() -> Result<usize, Error> {
    Ok(filters::all()?.len())
}

/// What is counted of a slot: index, direction and reason.
fn counts_of(slot: u32) -> impl Iterator<Item = (u32, Direction, Reason)> {
    Direction::BOTH.into_iter().flat_map(move |direction| {
        Reason::ALL.map(|reason| (Tally::index(slot, direction, reason), direction, reason))
    })
}

fn program(object: &mut Ebpf, hook: Hook) -> Result<&mut SchedClassifier, Error> {
    let name = match hook {
        Hook::PodIngress => map::POD_INGRESS,
        Hook::PodEgress => map::POD_EGRESS,
        Hook::HostEgress => map::HOST_EGRESS,
        Hook::BareEgress => map::BARE_EGRESS,
    };
    object
        .program_mut(name)
        .ok_or_else(|| Error::Load(anyhow::anyhow!("the object has no program {name}")))?
        .try_into()
        .map_err(|e: aya::programs::ProgramError| Error::Load(e.into()))
}

fn take<T: TryFrom<aya::maps::Map, Error = MapError>>(
    object: &mut Ebpf,
    name: &str,
) -> Result<T, Error> {
    let map = object
        .take_map(name)
        .ok_or_else(|| Error::Load(anyhow::anyhow!("the object has no map {name}")))?;
    T::try_from(map).map_err(|e| Error::Load(e.into()))
}

/// aya opens a pinned map of any layout without a word: compare before it does.
fn check_layout(pin: &Path, key: usize, value: usize) -> Result<(), Error> {
    if !pin.exists() {
        return Ok(());
    }
    match MapInfo::from_pin(pin) {
        Ok(info) if info.key_size() as usize == key && info.value_size() as usize == value => {
            Ok(())
        }
        _ => Err(Error::Layout {
            path: pin.to_owned(),
        }),
    }
}
