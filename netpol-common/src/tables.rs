//! The layout of every eBPF map: keys, values, names and sizes.
//!
//! Everything here is plain `#[repr(C)]` data without padding that the compiler chooses: the kernel hashes whole keys.
//! A change of any layout needs a new [`map::SCHEMA`], because a pinned map of another layout opens without an error.

use crate::{Address, Direction};

/// A class of peers. Derived from the content of the class, so that the same objects give the same number in every run.
/// 0 is the class of addresses that no term names.
pub type ClassId = u64;
/// The class of addresses that no term names.
pub const NO_CLASS: ClassId = 0;

/// A ruleset, derived from its content. 0 stands for "not isolated".
pub type RulesetId = u64;

/// A port set, derived from its content.
pub type PortSetId = u64;
/// The port set that allows nothing.
pub const NO_PORTS: PortSetId = 0;
/// The port set that allows every protocol and every port, ICMP included.
pub const ALL_PORTS: PortSetId = 1;

/// Whether an endpoint is isolated in one direction, and by which ruleset.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Isolation(RulesetId);

impl Isolation {
    /// No policy selects the pod for this direction.
    pub const OPEN: Self = Self(0);

    /// Isolated: only what `ruleset` (not 0) allows.
    #[inline(always)]
    pub const fn by(ruleset: RulesetId) -> Self {
        Self(ruleset)
    }

    /// The ruleset that isolates, or `None` when open.
    #[inline(always)]
    pub const fn ruleset(self) -> Option<RulesetId> {
        if self.0 == 0 { None } else { Some(self.0) }
    }
}

/// Value of [`map::ENDPOINTS`]; the key is the index of the pod's host interface in the node's network namespace.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Endpoint {
    /// Index of this endpoint in the statistics, below [`size::SLOTS`].
    pub slot: u32,
    /// [`Endpoint::TRACE`] and [`Endpoint::GUARD`], or 0.
    pub flags: u32,
    /// What the pod may receive.
    pub ingress: Isolation,
    /// What the pod may send.
    pub egress: Isolation,
    /// The pod's IPv4 address, or [`Address::NONE`].
    pub ipv4: Address,
    /// The pod's IPv6 address, or [`Address::NONE`].
    pub ipv6: Address,
    /// The pod's link-local IPv6 address, or [`Address::NONE`].
    pub link_local: Address,
    /// The pod's hardware address in the first six bytes; all 0 if it is not known.
    pub mac: [u8; 8],
}
const _: () = assert!(size_of::<Endpoint>() == 80);

/// Value of [`map::SLOTS`] after the pod that had the slot is gone: no interface has this index. What it has sent may still be
/// under way.
pub const SLOT_OF_NOBODY: u32 = u32::MAX;

impl Endpoint {
    /// Flag: log the way of every packet of this endpoint (only by programs that were loaded for tracing).
    pub const TRACE: u32 = 1;
    /// Flag: what the pod sends must carry the pod's own addresses, and what it receives must be for them.
    pub const GUARD: u32 = 2;

    /// Whether [`Endpoint::GUARD`] is set.
    #[inline(always)]
    pub const fn guarded(&self) -> bool {
        self.flags & Self::GUARD != 0
    }

    /// Whether an address is one of the pod's own. `::` is nobody's, also where a pod lacks a family.
    #[inline(always)]
    pub fn owns(&self, address: &Address) -> bool {
        (*address == self.ipv4 || *address == self.ipv6 || *address == self.link_local)
            && *address != Address::NONE
    }

    /// The isolation in one direction.
    #[inline(always)]
    pub const fn isolation(&self, direction: Direction) -> Isolation {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

/// Value of [`map::PEER_HOSTS`] (key: [`Address`]) and [`map::PEER_NETS`] (key: prefix of an [`Address`]).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Peer {
    /// The class of the address.
    pub class: ClassId,
    /// [`Peer::NODE`] and [`Peer::SERVICE`], or 0.
    pub flags: u32,
    /// Always 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<Peer>() == 16);

impl Peer {
    /// Flag: one of this node's own addresses.
    pub const NODE: u32 = 1;
    /// Flag: an address of a Service (a ClusterIP, an external address, or one of a load balancer).
    pub const SERVICE: u32 = 2;

    /// A peer that is only a class.
    pub const fn of(class: ClassId) -> Self {
        Self {
            class,
            flags: 0,
            pad: 0,
        }
    }

    /// Whether the address is one of this node's own.
    #[inline(always)]
    pub const fn is_node(&self) -> bool {
        self.flags & Self::NODE != 0
    }

    /// Whether the node may send what is addressed here to somebody else.
    #[inline(always)]
    pub const fn is_virtual(&self) -> bool {
        self.flags & (Self::NODE | Self::SERVICE) != 0
    }
}

/// Key of [`map::RULES`]; the value is a [`PortSetId`].
///
/// A class without a row of its own has what the ruleset gives to everybody: the row of [`NO_CLASS`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RuleKey {
    /// The ruleset.
    pub ruleset: RulesetId,
    /// The class of the peer.
    pub class: ClassId,
}
const _: () = assert!(size_of::<RuleKey>() == 16);

/// Key of [`map::PORTS`], a longest-prefix trie: a port set, a protocol, and a prefix of a port.
///
/// A range of ports is at most 30 prefixes. All ports of a protocol are the prefix of length [`PortKey::PROTOCOL_BITS`].
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortKey {
    /// The [`PortSetId`] in native byte order.
    pub set: [u8; 8],
    /// IP protocol number.
    pub protocol: u8,
    /// Always 0.
    pub pad: u8,
    /// The destination port in network byte order.
    pub port: [u8; 2],
}
const _: () = assert!(size_of::<PortKey>() == 12);

impl PortKey {
    /// The prefix length that names a set and a protocol, with any port.
    pub const PROTOCOL_BITS: u32 = 80;
    /// The prefix length that names one port.
    pub const FULL_BITS: u32 = 96;

    /// The key of `port` (host byte order).
    #[inline(always)]
    pub const fn new(set: PortSetId, protocol: u8, port: u16) -> Self {
        Self {
            set: set.to_ne_bytes(),
            protocol,
            pad: 0,
            port: port.to_be_bytes(),
        }
    }
}

/// Key of [`map::FRAGMENTS`]: what the fragments of one datagram have in common at one hook.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FragmentKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Index of the host interface of the pod on whose behalf the datagram is judged.
    pub interface: u32,
    /// The identification in network byte order; for IPv4 two bytes, then the protocol.
    pub id: u32,
}
const _: () = assert!(size_of::<FragmentKey>() == 40);

/// Value of [`map::FRAGMENTS`]: what only the first fragment says.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// Source port in host byte order, or the identifier of an ICMP echo.
    pub source_port: u16,
    /// Destination port in host byte order, or the identifier of an ICMP echo.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`crate::Probe`].
    pub probe: u8,
    /// Bytes of the fragmentable part up to the end of the transport header: no other fragment may begin before.
    pub headers: u16,
    /// When it was noted, in [`crate::Tick`]s.
    pub seen: u32,
}
const _: () = assert!(size_of::<Fragment>() == 12);

/// Key of [`map::TUNNELS`]: what a node takes out of its envelope, past every rule.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TunnelKey {
    /// IP protocol number.
    pub protocol: u16,
    /// Destination port of a UDP tunnel in host byte order, 0 for other protocols.
    pub port: u16,
}
const _: () = assert!(size_of::<TunnelKey>() == 4);

/// A record of [`map::EVENTS`]: a packet that was dropped.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Event {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// Index of the host interface of the pod that sent (`direction` egress) or should have received it.
    pub interface: u32,
    /// The slot of that pod's endpoint.
    pub slot: u32,
    /// Source address as the pod sees it, [`Address::NONE`] if there is none.
    pub source: Address,
    /// Destination address, after the translation of a Service if it was judged after that.
    pub destination: Address,
    /// The address to which the pod sent what was judged after translation, else [`Address::NONE`].
    pub service: Address,
    /// Source port in host byte order, or the identifier of an ICMP echo.
    pub source_port: u16,
    /// Destination port in host byte order, or the identifier of an ICMP echo.
    pub destination_port: u16,
    /// The port of `service` in host byte order.
    pub service_port: u16,
    /// IP protocol number, 0 if nothing was parsed.
    pub protocol: u8,
    /// TCP flags, 0 for other protocols.
    pub tcp_flags: u8,
    /// Length in bytes, Ethernet header included.
    pub length: u32,
    /// The device at whose hook the packet was dropped.
    pub device: u32,
    /// The [`Direction`].
    pub direction: u8,
    /// The [`crate::Reason`].
    pub reason: u8,
    /// The EtherType in host byte order.
    pub ether_type: u16,
    /// Always 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<Event>() == 88);

/// Value of [`map::BUDGETS`]: how many events an endpoint may still cause.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Budget {
    /// The [`crate::Tick`] for which `used` counts.
    pub tick: u32,
    /// Events in that tick.
    pub used: u32,
}

impl Budget {
    /// How many events an endpoint may cause in a tick on one CPU, in each direction.
    pub const EVENTS: u32 = 32;

    /// Takes one, if there is one left.
    #[inline(always)]
    pub const fn take(&mut self, now: crate::Tick) -> bool {
        if self.tick != now {
            self.tick = now;
            self.used = 0;
        }
        if self.used >= Self::EVENTS {
            return false;
        }
        self.used += 1;
        true
    }

    /// The index in [`map::BUDGETS`].
    #[inline(always)]
    pub const fn index(slot: u32, direction: Direction) -> u32 {
        slot * 2 + direction as u32
    }
}

/// Indexes in [`map::LOST`]: drops without a record.
pub mod lost {
    /// The endpoint had no [`super::Budget`] left.
    pub const BUDGET: u32 = 0;
    /// The ring buffer was full.
    pub const FULL: u32 = 1;
    /// How many there are.
    pub const COUNT: u32 = 2;
}

/// How the mark of a packet whose verdict is deferred is made up.
///
/// Ten bits hold `slot + 1`, the next one asks for the flow to be resolved, and those above number a ticket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MarkField {
    /// The bits of the mark that are ours, without a gap between them, at least [`MarkField::MIN_BITS`].
    pub mask: u32,
    /// The number of bits below them.
    pub shift: u32,
}

/// What the mark of a packet whose verdict is deferred says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deferral {
    /// The slot of the endpoint that sent it.
    pub slot: u32,
    /// Whether the sender does not know yet who answers.
    pub urgent: bool,
    /// Where, on the CPU that the packet came in by, the key stands under which the sender knows the flow.
    pub ticket: u32,
}

impl MarkField {
    /// Bits that name the slot.
    pub const SLOT_BITS: u32 = 10;
    /// The slot, the request and four tickets.
    pub const MIN_BITS: u32 = Self::SLOT_BITS + 3;
    /// What kube-proxy (0x4000, 0x8000) and the portmap plugin (0x2000) use.
    pub const FOREIGN: u32 = 0xe000;
    /// The field unless an option says otherwise.
    pub const DEFAULT: Self = Self {
        mask: 0xffff_0000,
        shift: 16,
    };

    /// The field of a mask; `None` if it has gaps, too few bits, or bits of [`MarkField::FOREIGN`].
    pub const fn of_mask(mask: u32) -> Option<Self> {
        if mask == 0 {
            return None;
        }
        let shift = mask.trailing_zeros();
        let fits = mask.count_ones() >= Self::MIN_BITS
            && (mask >> shift).trailing_ones() == mask.count_ones()
            && mask & Self::FOREIGN == 0;
        if fits {
            Some(Self { mask, shift })
        } else {
            None
        }
    }

    /// `mark` with our field set. Bits of the ticket that do not fit are lost.
    #[inline(always)]
    pub const fn write(self, mark: u32, deferral: Deferral) -> u32 {
        let field = (deferral.slot + 1)
            | (deferral.urgent as u32) << Self::SLOT_BITS
            | deferral.ticket << (Self::SLOT_BITS + 1);
        mark & !self.mask | field << self.shift & self.mask
    }

    /// What a mark says, if our field is set.
    #[inline(always)]
    pub const fn read(self, mark: u32) -> Option<Deferral> {
        let field = (mark & self.mask) >> self.shift;
        let slot = field & ((1 << Self::SLOT_BITS) - 1);
        if slot == 0 {
            return None;
        }
        Some(Deferral {
            slot: slot - 1,
            urgent: field >> Self::SLOT_BITS & 1 != 0,
            ticket: field >> (Self::SLOT_BITS + 1),
        })
    }

    /// A ticket as it can be read out of the mark again.
    #[inline(always)]
    pub const fn ticket(self, number: u32) -> u32 {
        number & (self.mask >> self.shift >> (Self::SLOT_BITS + 1)) & (size::TICKETS - 1)
    }

    /// `mark` without our field.
    #[inline(always)]
    pub const fn clear(self, mark: u32) -> u32 {
        mark & !self.mask
    }
}

/// Value of [`map::STATS`]: what was counted under one reason.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Packets (a GSO packet counts as one).
    pub packets: u64,
    /// Bytes, Ethernet header included.
    pub bytes: u64,
}

impl Tally {
    /// The index in [`map::STATS`] of an endpoint's slot, a direction and a reason.
    #[inline(always)]
    pub const fn index(slot: u32, direction: Direction, reason: crate::Reason) -> u32 {
        (slot * 2 + direction as u32) * crate::Reason::COUNT as u32 + reason as u32
    }
}

/// Names of maps and programs in the object file, and of their pins.
pub mod map {
    /// The version of all layouts in this file, part of the pin path.
    pub const SCHEMA: u32 = 2;
    /// Hash: interface index -> [`super::Endpoint`].
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// Hash: [`crate::Address`] -> [`super::Peer`].
    pub const PEER_HOSTS: &str = "PEER_HOSTS";
    /// Longest-prefix trie: prefix of a [`crate::Address`] -> [`super::Peer`].
    pub const PEER_NETS: &str = "PEER_NETS";
    /// Hash: [`super::RuleKey`] -> [`super::PortSetId`].
    pub const RULES: &str = "RULES";
    /// Longest-prefix trie: [`super::PortKey`] -> 1.
    pub const PORTS: &str = "PORTS";
    /// Array: slot -> index of the endpoint's host interface, 0 if the slot was never used, [`super::SLOT_OF_NOBODY`] if its
    /// pod is gone.
    pub const SLOTS: &str = "SLOTS";
    /// LRU hash: [`crate::FlowKey`] -> [`crate::Flow`], flows whose opener has seen an answer and gone on.
    pub const FLOWS: &str = "FLOWS";
    /// LRU hash: [`crate::FlowKey`] -> [`crate::Flow`], all other flows: whoever opens thousands of them takes away only
    /// the places of others that are being opened.
    pub const OPENING: &str = "OPENING";
    /// LRU hash: [`super::FragmentKey`] -> [`super::Fragment`].
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// Per-CPU array: ticket -> [`crate::FlowKey`] under which the sender knows a deferred flow.
    pub const TICKETS: &str = "TICKETS";
    /// Hash: [`super::TunnelKey`] -> 1.
    pub const TUNNELS: &str = "TUNNELS";
    /// Ring buffer of [`super::Event`]s.
    pub const EVENTS: &str = "EVENTS";
    /// Per-CPU array: [`super::Budget::index`] -> [`super::Budget`].
    pub const BUDGETS: &str = "BUDGETS";
    /// Per-CPU array: [`super::lost`] -> how many (u64).
    pub const LOST: &str = "LOST";
    /// Per-CPU array: [`super::Tally::index`] -> [`super::Tally`].
    pub const STATS: &str = "STATS";
    /// Array of one: the epoch.
    pub const EPOCH: &str = "EPOCH";
    /// Read-only global: not 0 in programs that log the way of traced packets.
    pub const TRACE: &str = "TRACE";
    /// Read-only global: the mask of [`super::MarkField`].
    pub const MARK_MASK: &str = "MARK_MASK";
    /// Read-only global: the shift of [`super::MarkField`].
    pub const MARK_SHIFT: &str = "MARK_SHIFT";
    /// The classifier of what leaves by a device that is no pod's.
    pub const HOST_EGRESS: &str = "host_egress";
    /// The same for a device whose packets have no Ethernet header.
    pub const BARE_EGRESS: &str = "bare_egress";
    /// The classifier of what a pod sends.
    pub const POD_EGRESS: &str = "pod_egress";
    /// The classifier of what a pod receives.
    pub const POD_INGRESS: &str = "pod_ingress";
}

/// How many entries each map holds unless an option says otherwise.
pub mod size {
    /// Local pods: as many as [`super::MarkField`] can name.
    pub const SLOTS: u32 = (1 << super::MarkField::SLOT_BITS) - 1;
    /// Addresses of pods and nodes.
    pub const PEER_HOSTS: u32 = 262_144;
    /// Prefixes of ipBlocks.
    pub const PEER_NETS: u32 = 131_072;
    /// Pairs of a ruleset and a class.
    pub const RULES: u32 = 262_144;
    /// Prefixes of ports.
    pub const PORTS: u32 = 262_144;
    /// Flows; the least recently used one goes first.
    pub const FLOWS: u32 = 131_072;
    /// Flows that are being opened.
    pub const OPENING: u32 = 65_536;
    /// Datagrams in fragments.
    pub const FRAGMENTS: u32 = 8_192;
    /// Tickets on each CPU, a power of two.
    pub const TICKETS: u32 = 32;
    /// Kinds of tunnels.
    pub const TUNNELS: u32 = 256;
    /// Bytes of events that nobody has read.
    pub const EVENTS: u32 = 1 << 19;
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for plain data")]
mod pod {
    // SAFETY: every type is `repr(C)` or `repr(transparent)`, without padding and valid for every bit pattern it can hold.
    unsafe impl aya::Pod for super::Endpoint {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Peer {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::RuleKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::PortKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Tally {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FragmentKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Fragment {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::TunnelKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Event {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Budget {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::Address {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::Flow {}
}
