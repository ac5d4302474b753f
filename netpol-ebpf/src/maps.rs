//! The kernel's maps as the tables of the decision procedure.

use aya_ebpf::{
    Global,
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    helpers::bpf_ktime_get_coarse_ns,
    macros::btf_map,
    programs::TcContext,
};
use aya_log_ebpf::info;
use netpol_common::{
    Address, ClassId, Direction, Endpoint, Flow, FlowKey, FlowRef, Packet, Peer, PortKey,
    PortSetId, Reason, RuleKey, Step, TICK_SHIFT, Tables, Tally, Tick, size,
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
static STATS: PerCpuArray<Tally, { size::SLOTS as usize * 2 * Reason::COUNT }> = PerCpuArray::new();
#[btf_map]
static EPOCH: Array<u32, 1> = Array::new();

/// Not 0 in a program that is loaded for tracing. Read-only and frozen before the program is loaded, so that the verifier
/// knows its value and takes all of the logging out of programs that are not.
#[unsafe(no_mangle)]
static TRACE: Global<u8> = Global::new(0);

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
            let words = [words.read_volatile(), words.add(1).read_volatile()];
            core::mem::transmute::<[u64; 2], Flow>(words)
        }
    }

    #[inline(always)]
    fn store(&self, flow: Flow) {
        // SAFETY: as above; each word is written whole, and each is valid beside any other one.
        unsafe {
            let [first, second] = core::mem::transmute::<Flow, [u64; 2]>(flow);
            let words = self.0.cast::<u64>();
            words.write_volatile(first);
            words.add(1).write_volatile(second);
        }
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
    fn remember(&self, key: &FlowKey, flow: Flow) {
        // A full table evicts its least recently used entry; only a lack of memory fails. The verdict stands either way.
        let _ = FLOWS.insert(key, flow, 0);
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
    fn trace(&self, interface: u32, step: Step<'_>) {
        if TRACE.load() == 0 {
            return;
        }
        if !self
            .endpoint(interface)
            .is_some_and(|e| e.flags & Endpoint::TRACE != 0)
        {
            return;
        }
        let context = self.0.context();
        match step {
            // A copy, made only here: the address of the packet itself would keep it in memory on the fast path.
            Step::Parsed(direction, packet) => {
                let copy = *packet;
                log_parsed(context, interface, direction, &copy);
            }
            Step::Known(origin, then, now) => log_known(context, interface, origin, then, now),
            Step::Judged(origin, class, set) => log_judged(context, interface, origin, class, set),
            Step::Verdict(direction, reason) => log_verdict(context, interface, direction, reason),
        }
    }
}

// Each record is written by a function of its own: what it needs of the stack does not add up to more than the 512 bytes
// that the verifier gives to a program and its callees together (MAX_BPF_STACK in include/linux/filter.h).

#[inline(never)]
fn log_parsed(context: &TcContext, interface: u32, direction: Direction, packet: &Packet) {
    info!(
        context,
        "if {} {}: protocol {} {:i} port {} -> {:i} port {} tcp flags {:x}",
        interface,
        direction as u8,
        packet.protocol,
        packet.source.0,
        packet.source_port,
        packet.destination.0,
        packet.destination_port,
        packet.tcp_flags
    );
}

#[inline(never)]
fn log_known(context: &TcContext, interface: u32, origin: Direction, then: u32, now: u32) {
    info!(
        context,
        "if {}: known flow, opened {}, allowed in epoch {}, now {}",
        interface,
        origin as u8,
        then,
        now
    );
}

#[inline(never)]
fn log_judged(
    context: &TcContext,
    interface: u32,
    origin: Direction,
    class: ClassId,
    set: PortSetId,
) {
    info!(
        context,
        "if {}: judged in direction {}, class {:x}, port set {:x}",
        interface,
        origin as u8,
        class,
        set
    );
}

#[inline(never)]
fn log_verdict(context: &TcContext, interface: u32, direction: Direction, reason: Reason) {
    info!(
        context,
        "if {} {}: verdict {}", interface, direction as u8, reason as u8
    );
}
