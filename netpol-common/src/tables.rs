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
    /// [`Endpoint::TRACE`] or 0.
    pub flags: u32,
    /// What the pod may receive.
    pub ingress: Isolation,
    /// What the pod may send.
    pub egress: Isolation,
    /// The pod's IPv4 address, or [`Address::NONE`].
    pub ipv4: Address,
    /// The pod's IPv6 address, or [`Address::NONE`].
    pub ipv6: Address,
}
const _: () = assert!(size_of::<Endpoint>() == 56);

impl Endpoint {
    /// Flag: log the way of every packet of this endpoint (only by programs that were loaded for tracing).
    pub const TRACE: u32 = 1;

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
    /// [`Peer::NODE`] or 0.
    pub flags: u32,
    /// Always 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<Peer>() == 16);

impl Peer {
    /// Flag: one of this node's own addresses.
    pub const NODE: u32 = 1;

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
    pub const SCHEMA: u32 = 1;
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
    /// LRU hash: [`crate::FlowKey`] -> [`crate::Flow`].
    pub const FLOWS: &str = "FLOWS";
    /// Per-CPU array: [`super::Tally::index`] -> [`super::Tally`].
    pub const STATS: &str = "STATS";
    /// Array of one: the epoch.
    pub const EPOCH: &str = "EPOCH";
    /// Read-only global: not 0 in programs that log the way of traced packets.
    pub const TRACE: &str = "TRACE";
    /// The classifier of what a pod sends.
    pub const POD_EGRESS: &str = "pod_egress";
    /// The classifier of what a pod receives.
    pub const POD_INGRESS: &str = "pod_ingress";
}

/// How many entries each map holds unless an option says otherwise.
pub mod size {
    /// Local pods.
    pub const SLOTS: u32 = 1024;
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
    unsafe impl aya::Pod for crate::Address {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::Flow {}
}
