//! The kernel's maps as the tables of the decision procedure.

use aya_ebpf::{
    Global,
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
    helpers::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns},
    macros::btf_map,
    programs::TcContext,
};
use aya_log_ebpf::info;
use netpol_common::{
    Address, Budget, ClassId, Direction, Dropped, Endpoint, Event, Flow, FlowKey, FlowRef,
    Fragment, FragmentKey, Frame, MarkField, Packet, Peer, PortKey, PortSetId, Reason, RuleKey,
    Scratch, TICK_SHIFT, Tables, Tally, Tick, TunnelKey, lost, size,
};

use crate::frame::Skb;

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
static ENDPOINTS: HashMap<u32, Endpoint, { size::SLOTS as usize }> = HashMap::new();
#[btf_map]
static PEER_HOSTS: HashMap<Address, Peer, { size::PEER_HOSTS as usize }, NO_PREALLOC> =
    HashMap::new();
#[btf_map]
static PEER_NETS: LpmTrie<Address, Peer, { size::PEER_NETS as usize }> = LpmTrie::new();
#[btf_map]
static RULES: HashMap<RuleKey, PortSetId, { size::RULES as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
static PORTS: LpmTrie<PortKey, u8, { size::PORTS as usize }> = LpmTrie::new();
#[btf_map]
static FLOWS: LruHashMap<FlowKey, Flow, { size::FLOWS as usize }> = LruHashMap::new();
#[btf_map]
static OPENING: LruHashMap<FlowKey, Flow, { size::OPENING as usize }> = LruHashMap::new();
#[btf_map]
static SLOTS: Array<u32, { size::SLOTS as usize }> = Array::new();
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, Fragment, { size::FRAGMENTS as usize }> =
    LruHashMap::new();
#[btf_map]
static TICKETS: PerCpuArray<FlowKey, { size::TICKETS as usize }> = PerCpuArray::new();
#[btf_map]
static TUNNELS: HashMap<TunnelKey, u32, { size::TUNNELS as usize }> = HashMap::new();
#[btf_map]
static EVENTS: RingBuf<Event, { size::EVENTS as usize }> = RingBuf::new();
#[btf_map]
pub static BUDGETS: PerCpuArray<Budget, { size::SLOTS as usize * 2 }> = PerCpuArray::new();
#[btf_map]
static LOST: PerCpuArray<u64, { lost::COUNT as usize }> = PerCpuArray::new();
#[btf_map]
static STATS: PerCpuArray<Tally, { size::SLOTS as usize * 2 * Reason::COUNT }> = PerCpuArray::new();
#[btf_map]
static EPOCH: Array<u32, 1> = Array::new();

/// Not 0 in a program that is loaded for tracing. Read-only and frozen before the program is loaded, so that the verifier
/// knows its value and takes all of the logging out of programs that are not.
#[unsafe(no_mangle)]
static TRACE: Global<u8> = Global::new(0);

/// The bits of the mark that are ours. Read-only, as [`TRACE`].
#[unsafe(no_mangle)]
static MARK_MASK: Global<u32> = Global::new(MarkField::DEFAULT.mask);
/// The number of bits below them.
#[unsafe(no_mangle)]
static MARK_SHIFT: Global<u32> = Global::new(MarkField::DEFAULT.shift);

#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// This CPU's scratch memory. The programs at the hooks of one CPU do not interrupt each other.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: nobody else has this CPU's element while the program runs, and a program asks for it once.
    SCRATCH
        .get_ptr_mut(0)
        .map(|scratch| unsafe { &mut *scratch })
}

/// The maps of this object, and the packet for which they are asked (a log record needs its context).
pub struct Kernel<'a>(&'a Skb);

impl<'a> Kernel<'a> {
    /// The maps, asked for the sake of `skb`.
    #[inline(always)]
    pub fn of(skb: &'a Skb) -> Self {
        Self(skb)
    }
}

/// A value in the flow table.
pub struct Place(*mut Flow);

impl FlowRef for Place {
    #[inline(always)]
    fn load(&self) -> Flow {
        // SAFETY: the kernel keeps the element while the program runs. Word by word, because another CPU may write it.
        unsafe {
            let words = self.0.cast::<u64>();
            let words = [
                words.read_volatile(),
                words.add(1).read_volatile(),
                words.add(2).read_volatile(),
                words.add(3).read_volatile(),
            ];
            core::mem::transmute::<[u64; 4], Flow>(words)
        }
    }

    #[inline(always)]
    fn store(&self, flow: &Flow) {
        // SAFETY: as above; each word is written whole, and each is valid beside any other one.
        unsafe {
            let [first, ..] = core::mem::transmute::<Flow, [u64; 4]>(*flow);
            self.0.cast::<u64>().write_volatile(first);
            // Not the port beside it, which belongs to the backend.
            (&raw mut (*self.0).seen).write_volatile(flow.seen);
        }
    }

    #[inline(always)]
    fn resolve(&self, backend: &Address, port: u16, epoch: u32) {
        // Whoever reads it meanwhile, on another CPU, finds a flow of which it is not known who answers.
        let mut flow = self.load();
        flow.flags &= !Flow::RESOLVED;
        self.store(&flow);
        // SAFETY: as above.
        unsafe {
            (*self.0).backend = *backend;
            (*self.0).backend_port = port;
        }
        flow.epoch = epoch;
        flow.flags |= Flow::RESOLVED;
        self.store(&flow);
    }
}

impl Tables for Kernel<'_> {
    type Flow = Place;

    #[inline(always)]
    fn epoch(&self) -> u32 {
        // The JIT turns a constant index of an array into an address: this costs one load.
        EPOCH.get(0).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn now(&self) -> Tick {
        // SAFETY: takes nothing, changes nothing.
        (unsafe { bpf_ktime_get_coarse_ns() } >> TICK_SHIFT) as Tick
    }

    #[inline(always)]
    fn endpoint(&self, interface: u32) -> Option<&Endpoint> {
        // SAFETY: the agent replaces whole elements; it never writes into one.
        unsafe { ENDPOINTS.get(interface) }
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<Place> {
        FLOWS.get_ptr_mut(key).map(Place)
    }

    #[inline(always)]
    fn opening(&self, key: &FlowKey) -> Option<Place> {
        OPENING.get_ptr_mut(key).map(Place)
    }

    #[inline(always)]
    fn remember(&self, key: &FlowKey, flow: &Flow) {
        // A full table evicts its least recently used entry; only a lack of memory fails. The verdict stands either way.
        let _ = OPENING.insert(key, flow, 0);
    }

    #[inline(always)]
    fn settle(&self, key: &FlowKey, flow: &Flow) {
        settle(key, flow);
    }

    #[inline(always)]
    fn interface_of(&self, slot: u32) -> Option<u32> {
        SLOTS.get(slot).copied().filter(|interface| *interface != 0)
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        // SAFETY: plain data; a torn read is one of two first fragments of the same datagram.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn note_fragment(&self, key: &FragmentKey, fragment: Fragment) {
        note_fragment(key, &fragment);
    }

    #[inline(always)]
    fn ticket(&self, number: u32) -> Option<FlowKey> {
        TICKETS.get(number).copied()
    }

    #[inline(always)]
    fn issue(&self, number: u32, key: &FlowKey) {
        if let Some(ticket) = TICKETS.get_ptr_mut(number) {
            // SAFETY: this CPU's own element; a hook that reads it runs after this one, in the same context.
            unsafe { *ticket = *key };
        }
    }

    #[inline(always)]
    fn tunnel(&self, key: TunnelKey) -> bool {
        // SAFETY: as for endpoints.
        unsafe { TUNNELS.get(key) }.is_some()
    }

    #[inline(always)]
    fn mark_field(&self) -> MarkField {
        MarkField {
            mask: MARK_MASK.load(),
            shift: MARK_SHIFT.load(),
        }
    }

    #[inline(always)]
    fn host(&self, address: &Address) -> Option<Peer> {
        // SAFETY: as for endpoints.
        unsafe { PEER_HOSTS.get(address) }.copied()
    }

    #[inline(always)]
    fn net(&self, address: &Address) -> Option<Peer> {
        PEER_NETS.get(&Key::new(128, *address)).copied()
    }

    #[inline(always)]
    fn rule(&self, key: &RuleKey) -> Option<PortSetId> {
        // SAFETY: as for endpoints.
        unsafe { RULES.get(key) }.copied()
    }

    #[inline(always)]
    fn port(&self, set: PortSetId, protocol: u8, port: u16) -> bool {
        PORTS
            .get(&Key::new(
                PortKey::FULL_BITS,
                PortKey::new(set, protocol, port),
            ))
            .is_some()
    }

    #[inline(always)]
    fn count(&self, slot: u32, direction: Direction, reason: Reason, length: u32) {
        if let Some(tally) = STATS.get_ptr_mut(Tally::index(slot, direction, reason)) {
            // SAFETY: this CPU's own element; programs at the hooks of one CPU do not interrupt each other.
            unsafe {
                (*tally).packets += 1;
                (*tally).bytes += u64::from(length);
            }
        }
    }

    #[inline(always)]
    fn report<F: Frame>(&self, frame: &F, dropped: &Dropped<'_>) {
        report(frame, dropped);
    }

    #[inline(always)]
    fn trace(
        &self,
        endpoint: &Endpoint,
        scratch: &Scratch,
        (direction, reason): (Direction, Reason),
    ) {
        if TRACE.load() == 0 || endpoint.flags & Endpoint::TRACE == 0 {
            return;
        }
        let context = self.0.context();
        let interface = self.0.interface();
        log_packet(context, interface, direction, &scratch.packet);
        if matches!(reason, Reason::Flow | Reason::Deferred)
            && let Some(place) = self
                .flow(&scratch.key)
                .or_else(|| self.opening(&scratch.key))
        {
            let flow = place.load();
            log_flow(context, interface, flow.origin(), flow.epoch, flow.phase);
        } else {
            let found = &scratch.found;
            log_rules(context, interface, found.class.get(), found.set.get());
        }
        log_verdict(context, interface, direction, reason);
    }
}

/// Functions of their own, as everything that few packets need: the stack of the others stays small.
#[inline(never)]
fn settle(key: &FlowKey, flow: &Flow) {
    if FLOWS.insert(key, flow, 0).is_ok() {
        let _ = OPENING.remove(key);
    }
}

#[inline(never)]
fn note_fragment(key: &FragmentKey, fragment: &Fragment) {
    let _ = FRAGMENTS.insert(key, fragment, 0);
}

/// Writes a record of a drop, as long as the endpoint's budget lasts.
#[inline(never)]
fn report<F: Frame>(frame: &F, dropped: &Dropped<'_>) {
    let Some(budget) = BUDGETS.get_ptr_mut(Budget::index(dropped.slot, dropped.direction)) else {
        return;
    };
    // SAFETY: takes nothing, changes nothing.
    let time = unsafe { bpf_ktime_get_ns() };
    // SAFETY: this CPU's own element.
    if !unsafe { (*budget).take((time >> TICK_SHIFT) as Tick) } {
        return lose(lost::BUDGET);
    }
    let Some(mut entry) = EVENTS.reserve(0) else {
        return lose(lost::FULL);
    };
    // SAFETY: reserved for this record; every field is written.
    dropped.write(frame, time, unsafe { &mut *entry.as_mut_ptr() });
    entry.submit(0);
}

#[inline(always)]
fn lose(how: u32) {
    if let Some(count) = LOST.get_ptr_mut(how) {
        // SAFETY: this CPU's own element.
        unsafe { *count += 1 };
    }
}

// Each record is written by a function of its own: what it needs of the stack does not add up to more than the 512 bytes
// that the verifier gives to a program and its callees together (MAX_BPF_STACK in include/linux/filter.h).

#[inline(never)]
fn log_packet(context: &TcContext, interface: u32, direction: Direction, packet: &Packet) {
    info!(
        context,
        "if {} {}: protocol {} {:i} port {} -> {:i} port {} flags {:x}",
        interface,
        direction as u8,
        packet.protocol,
        packet.source.0,
        packet.source_port,
        packet.destination.0,
        packet.destination_port,
        packet.flags
    );
}

#[inline(never)]
fn log_flow(context: &TcContext, interface: u32, origin: Direction, epoch: u32, phase: u8) {
    info!(
        context,
        "if {}: known flow, opened {}, allowed in epoch {}, phase {}",
        interface,
        origin as u8,
        epoch,
        phase
    );
}

#[inline(never)]
fn log_rules(context: &TcContext, interface: u32, class: ClassId, set: PortSetId) {
    info!(
        context,
        "if {}: judged, the peer is of class {:x}, its port set is {:x}", interface, class, set
    );
}

#[inline(never)]
fn log_verdict(context: &TcContext, interface: u32, direction: Direction, reason: Reason) {
    info!(
        context,
        "if {} {}: verdict {}", interface, direction as u8, reason as u8
    );
}
