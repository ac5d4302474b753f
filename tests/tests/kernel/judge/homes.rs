//! The judge in its two homes, side by side: the same tables, the same packets, and what each packet leaves behind.

use std::{cell::Cell, collections::BTreeMap, time::Duration};

use netpol_agent::{
    dataplane::{
        HookChoice, Sizes,
        memory::{MemoryTables, SliceFrame},
        monotonic, tick,
    },
    object,
};
use netpol_common::{
    Budget, Direction, Event, Flow, FlowKey, FlowRef as _, Fragment, MarkField, Parsed, Reason,
    Scratch, TICK_SHIFT, Tables as _, Tick, host_egress, lost, parse,
};
use netpol_tests::kernel::{Bench, Context, DROP, PASS, Programs, Ran};

use super::{
    counts::{Counts, Ledger},
    hooks::{Bare, came_in_by, device_of, make_devices, place},
    kernel_tables::KernelTables,
    outcome::Outcome,
    shot::{Hook, Shot},
    story::{Change, Planted, Story},
    world::{Pod, TUNNELS, edits, row},
};

/// Why a story ends early.
#[derive(Debug)]
pub enum Failure {
    /// The clock of the kernel moved on during a packet, or somebody took the CPU away: the story begins anew.
    Interrupted,
    /// The homes disagree.
    Disagree(String),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Disagree(format!("{:#}", error.into()))
    }
}

/// Bits that the programs may use where they may not use many: four tickets.
const NARROW: MarkField = MarkField {
    mask: 0x1fff,
    shift: 0,
};

/// Words of the context that belong to others.
const CONTROL: [u32; 2] = [0x0bad_cafe, 0x5eed_f00d];

/// Both homes.
pub struct Homes {
    bench: Bench,
    /// With the default field of the mark, and with [`NARROW`].
    programs: [Programs; 2],
    narrow: bool,
    kernel: KernelTables,
    host: MemoryTables,
    /// How far the host's clock is ahead.
    ahead: Tick,
    carried: u32,
    budgets: BTreeMap<(u32, Direction), Budget>,
    ledger: Ledger,
    lost: [u64; lost::COUNT as usize],
    row_gone: bool,
}

impl Homes {
    pub fn new() -> anyhow::Result<Self> {
        let sizes = Sizes {
            hosts: 256,
            nets: 256,
            rules: 256,
            ports: 256,
            // A table is read as a whole after each packet. Nothing is evicted from one that holds a few dozen.
            flows: 4096,
        };
        let mut bench = Bench::with("judge", sizes, HookChoice::Auto)?;
        let programs = [
            bench.load(object::NETPOL)?,
            bench.load_with(object::NETPOL, Some(NARROW))?,
        ];
        bench.dataplane.write(&edits())?;
        bench.dataplane.set_tunnels(&TUNNELS.into())?;
        let kernel = KernelTables::open(&mut bench)?;
        make_devices()?;
        Ok(Self {
            bench,
            programs,
            narrow: false,
            kernel,
            host: MemoryTables::new(),
            ahead: 0,
            carried: 0,
            budgets: BTreeMap::new(),
            ledger: Ledger::default(),
            lost: [0; lost::COUNT as usize],
            row_gone: false,
        })
    }

    /// Brings both homes into the state in which a story begins.
    pub fn begin(&mut self, story: &Story) -> Result<(), Failure> {
        self.host = MemoryTables::new();
        self.host.write_all(&edits());
        self.host.set_tunnels(TUNNELS);
        self.narrow = story.narrow;
        self.host.set_mark_field(self.field());
        self.kernel.clear()?;
        if std::mem::take(&mut self.row_gone) {
            self.bench.dataplane.write(&[row(true)])?;
        }
        (self.ahead, self.carried) = (0, 0);
        for pod in Pod::ALL {
            self.bench.dataplane.remove_endpoint(device_of(pod))?;
            self.kernel.set_slot(pod.slot(), 0)?;
            for direction in Direction::BOTH {
                self.set_budget(pod, direction, Budget::default())?;
            }
        }
        for (pod, profile) in [Pod::A, Pod::B].into_iter().zip(&story.profiles) {
            self.change(&Change::Profile(pod, profile.clone()), &[])?;
        }
        self.count_anew()
    }

    pub fn field(&self) -> MarkField {
        if self.narrow {
            NARROW
        } else {
            MarkField::DEFAULT
        }
    }

    fn set_budget(
        &mut self,
        pod: Pod,
        direction: Direction,
        budget: Budget,
    ) -> Result<(), Failure> {
        self.kernel.set_budget(pod.slot(), direction, budget)?;
        self.budgets.insert((pod.slot(), direction), budget);
        Ok(())
    }

    fn raise_epoch(&mut self) -> Result<(), Failure> {
        self.bench.dataplane.raise_epoch()?;
        self.host.raise_epoch();
        Ok(())
    }

    /// Ends a story: nothing was counted where nobody has looked after each packet.
    pub fn end(&mut self) -> Result<(), Failure> {
        let elsewhere = self.ledger.elsewhere(&self.kernel)?;
        if elsewhere.is_empty() {
            Ok(())
        } else {
            Err(Failure::Disagree(format!(
                "The kernel has counted, and the host has not: {elsewhere:?}\n"
            )))
        }
    }

    /// What is counted from here on is the next packet's.
    fn count_anew(&mut self) -> Result<(), Failure> {
        self.ledger = Ledger::open(&self.kernel, &self.host)?;
        self.lost = self.bench.dataplane.lost()?;
        Ok(())
    }

    /// Changes the tables of both homes. `shots` are the packets so far.
    pub fn change(&mut self, change: &Change, shots: &[Shot]) -> Result<(), Failure> {
        match change {
            Change::Epoch => self.raise_epoch()?,
            Change::Profile(pod, profile) => {
                let endpoint = profile.endpoint(*pod);
                let device = device_of(*pod);
                self.bench.dataplane.set_endpoint(device, &endpoint)?;
                self.host.set_endpoint(device, Some(endpoint));
            }
            Change::Gone(pod) => {
                // The kernel's statistics of the slot go too.
                self.end()?;
                let device = device_of(*pod);
                self.bench.dataplane.remove_endpoint(device)?;
                self.host.set_endpoint(device, None);
                self.count_anew()?;
            }
            Change::Slot(slot, leads) => {
                let device = leads.map(device_of);
                self.kernel.set_slot(slot.slot(), device.unwrap_or(0))?;
                self.host.set_slot(slot.slot(), device);
            }
            Change::Row(present) => {
                self.bench.dataplane.write(&[row(*present)])?;
                self.host.write(&row(*present));
                self.row_gone |= !present;
            }
            Change::Time(ticks) => {
                self.kernel.age(*ticks)?;
                self.ahead = self.ahead.wrapping_add(*ticks);
            }
            Change::Evict(which) => {
                let goes = |key: &FlowKey| key.ticket() % 4 == *which;
                self.kernel.evict(goes)?;
                self.host.evict_flows(goes);
            }
            Change::Plant(which, planted) if !shots.is_empty() => {
                self.plant(which.get(shots), planted)?;
            }
            Change::Plant(..) => {}
            Change::Spend(pod, direction, used) => {
                let tick = (monotonic() >> TICK_SHIFT) as Tick;
                self.set_budget(*pod, *direction, Budget { tick, used: *used })?;
            }
        }
        Ok(())
    }

    /// Writes a flow for the conversation of a packet, as the agent may find one of an earlier version or in connection tracking.
    fn plant(&mut self, shot: &Shot, planted: &Planted) -> Result<(), Failure> {
        let (_, interface, Some(direction)) = place(shot.hook) else {
            return Ok(());
        };
        let bytes = shot.bytes();
        let frame = SliceFrame {
            bytes: &bytes,
            interface,
            ..SliceFrame::default()
        };
        let mut packet = Scratch::default().packet;
        if parse(&frame, &mut packet) != Parsed::Packet {
            return Ok(());
        }
        let mut key = packet.flow_key(interface, direction);
        if planted.translated {
            key.protocol |= FlowKey::TRANSLATED | FlowKey::source_bits(&packet.source);
        }
        let now = tick();
        let flow = |epoch: u32, now: Tick| Flow {
            epoch: epoch.wrapping_sub(planted.changes),
            origin: planted.origin as u8,
            phase: planted.phase,
            flags: planted.flags,
            seen: now.wrapping_sub(planted.rested),
            backend_port: planted.port,
            pad: 0,
            backend: planted.backend.address(!packet.source.is_v4()).into(),
        };
        let in_kernel = flow(self.bench.dataplane.epoch(), now);
        self.kernel.plant(&key, &in_kernel, planted.settled)?;
        let on_host = flow(self.host.epoch(), now.wrapping_add(self.ahead));
        if planted.settled {
            // Also beside one that is being opened: another CPU may be about to take it away.
            let opening = self.host.opening(&key);
            self.host.settle(&key, &on_host);
            if let Some(opening) = opening {
                self.host.remember(&key, &opening.load());
            }
        } else {
            self.host.remember(&key, &on_host);
        }
        Ok(())
    }

    /// The mark with which a packet comes.
    pub fn mark(&self, shot: &Shot) -> u32 {
        shot.mark.value(self.field(), self.carried)
    }

    /// Judges a packet in both homes and returns the reason, if they agree in everything, and what the packet left behind.
    pub fn fire(&mut self, shot: &Shot) -> Result<(Reason, Outcome), Failure> {
        let bytes = shot.bytes();
        let (program, device, direction) = place(shot.hook);
        let mark = self.mark(shot);
        let came_in_by = came_in_by(shot.entry);
        let context = Context {
            device,
            came_in_by,
            mark,
            control: CONTROL,
        };
        let now = steady();
        let began = monotonic();
        let programs = &mut self.programs[usize::from(self.narrow)];
        let ran = programs.observe(program, &bytes, context)?;
        let ended = monotonic();
        if tick() != now || (ended >> TICK_SHIFT) as Tick != now {
            return Err(Failure::Interrupted);
        }

        let frame = SliceFrame {
            bytes: &bytes,
            interface: device,
            came_in_by,
            // The kernel's test run gives every packet one (`bpf_prog_test_run_skb` in net/bpf/test_run.c).
            of_a_socket: true,
            tagged: false,
            mark: Cell::new(mark),
        };
        self.host.set_now(now.wrapping_add(self.ahead));
        let reason = match direction {
            Some(direction) => self.host.judge(&frame, direction),
            None if shot.hook == Hook::Leaves => self.host.host_egress(&frame),
            None => host_egress(&Bare(&frame), &self.host, &mut Scratch::default()),
        };

        let on_host = self.host_outcome(reason, &frame, now);
        let counted = self.ledger.kernel(&self.kernel, &on_host.counted)?;
        let in_kernel = self.kernel_outcome(&ran, &bytes, counted, (now, began, ended))?;
        if let Some(difference) = in_kernel.difference(&on_host) {
            return Err(Failure::Disagree(format!(
                "The host says {reason}. What the homes differ in:\n{difference}"
            )));
        }
        if let (Hook::Sends(_), true) = (shot.hook, in_kernel.passes) {
            self.carried = in_kernel.mark;
        }
        Ok((reason, in_kernel))
    }

    fn kernel_outcome(
        &mut self,
        ran: &Ran,
        bytes: &[u8],
        counted: Counts,
        (now, began, ended): (Tick, u64, u64),
    ) -> Result<Outcome, Failure> {
        let epoch = self.bench.dataplane.epoch();
        let lost = self.bench.dataplane.lost()?;
        let mut events = self.kernel.events();
        for event in &mut events {
            if !(began..=ended).contains(&event.time) {
                return Err(Failure::Disagree(format!(
                    "a record of {} for a packet between {began} and {ended}",
                    event.time
                )));
            }
            event.time = 0;
        }
        let mut budgets = BTreeMap::new();
        for &(slot, direction) in self.budgets.keys() {
            budgets.insert((slot, direction), self.kernel.budget(slot, direction)?);
        }
        let outcome = Outcome {
            passes: match ran.verdict {
                PASS => true,
                DROP => false,
                other => return Err(Failure::Disagree(format!("the program returned {other}"))),
            },
            mark: ran.context.mark,
            changed: (ran.bytes != bytes).then(|| ran.bytes.clone()),
            context: [
                ran.context.device,
                ran.context.came_in_by,
                ran.context.control[0],
                ran.context.control[1],
            ],
            counted,
            events,
            lost: [0, 1].map(|how| lost[how] - self.lost[how]),
            budgets,
            flows: rested(self.kernel.flows()?, epoch, now),
            opening: rested(self.kernel.opening()?, epoch, now),
            fragments: rested_fragments(self.kernel.fragments()?, now),
            tickets: self.kernel.tickets()?,
        };
        self.lost = lost;
        Ok(outcome)
    }

    fn host_outcome(&mut self, reason: Reason, frame: &SliceFrame<'_>, tick: Tick) -> Outcome {
        let (epoch, now) = (self.host.epoch(), self.host.now());
        // The host has no budget: whether the kernel may still write a record is said here.
        let mut lost = [0; lost::COUNT as usize];
        let events: Vec<Event> = self.host.take_events();
        let told = events.into_iter().filter(|event| {
            let direction = Direction::BOTH[usize::from(event.direction)];
            let budget = self.budgets.entry((event.slot, direction)).or_default();
            let may = budget.take(tick);
            lost[lost::BUDGET as usize] += u64::from(!may);
            may
        });
        let events = told.collect();
        Outcome {
            passes: reason.passes(),
            mark: frame.mark.get(),
            changed: None,
            context: [frame.interface, frame.came_in_by, CONTROL[0], CONTROL[1]],
            counted: self.ledger.host(&self.host),
            events,
            lost,
            budgets: self.budgets.clone(),
            flows: rested(self.host.flow_entries(), epoch, now),
            opening: rested(self.host.opening_entries(), epoch, now),
            fragments: rested_fragments(self.host.fragment_entries(), now),
            tickets: self.host.ticket_entries(),
        }
    }
}

/// Flows with the number of changes since they were allowed, and of ticks since they were seen.
fn rested<K: Ord>(flows: BTreeMap<K, Flow>, epoch: u32, now: Tick) -> BTreeMap<K, Flow> {
    let rested = |flow: Flow| Flow {
        epoch: epoch.wrapping_sub(flow.epoch),
        seen: now.wrapping_sub(flow.seen),
        ..flow
    };
    flows
        .into_iter()
        .map(|(key, flow)| (key, rested(flow)))
        .collect()
}

fn rested_fragments<K: Ord>(fragments: BTreeMap<K, Fragment>, now: Tick) -> BTreeMap<K, Fragment> {
    let rested = |first: Fragment| Fragment {
        seen: now.wrapping_sub(first.seen),
        ..first
    };
    fragments
        .into_iter()
        .map(|(key, first)| (key, rested(first)))
        .collect()
}

/// Waits until no clock of the kernel is about to go on to the next tick, or has just done so: the coarse one is up to 10 ms late.
fn steady() -> Tick {
    loop {
        let time = monotonic();
        let into = Duration::from_nanos(time & ((1 << TICK_SHIFT) - 1));
        let length = Duration::from_nanos(1 << TICK_SHIFT);
        if into > Duration::from_millis(12) && into < length - Duration::from_millis(3) {
            return (time >> TICK_SHIFT) as Tick;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
