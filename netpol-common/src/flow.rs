//! Flows: who opened a conversation, under which tables it was allowed, and how long it may rest.

use crate::{Address, Direction, Packet, protocol};

/// Key of [`crate::map::FLOWS`]: both directions of one conversation of one endpoint have the same key.
///
/// The endpoint is named by the index of its host interface: the kernel hands out a fresh one for every pod, so the flows
/// of a pod that is gone can never be taken for those of the next one.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FlowKey {
    /// The peer's address.
    pub remote: Address,
    /// Index of the endpoint's host interface.
    pub interface: u32,
    /// The pod's port in host byte order, or the identifier of an ICMP echo.
    pub local_port: u16,
    /// The peer's port in host byte order; for an ICMP echo 0 if the pod asks and 1 if the peer asks.
    pub remote_port: u16,
    /// IP protocol number, with [`FlowKey::TRANSLATED`] or without; a whole word, so that the key has no padding.
    pub protocol: u32,
}
const _: () = assert!(size_of::<FlowKey>() == 28);

impl FlowKey {
    /// Bit of `protocol`: the remote end is the one behind a Service, and the entry notes only under which epoch it was
    /// allowed. Whoever opened a conversation under the plain key has nothing to do with it. The bits above it are
    /// [`FlowKey::source_bits`].
    pub const TRANSLATED: u32 = 1 << 8;

    /// What the `protocol` of a [`FlowKey::TRANSLATED`] key says of the address that the packet carries as its source: what
    /// was allowed to one is not allowed to another.
    #[inline(always)]
    pub const fn source_bits(source: &Address) -> u32 {
        const FACTOR: u32 = 0x9e37_79b1;
        let a = &source.0;
        let mut bits = u32::from_ne_bytes([a[0], a[1], a[2], a[3]]).wrapping_mul(FACTOR);
        bits = (bits ^ u32::from_ne_bytes([a[4], a[5], a[6], a[7]])).wrapping_mul(FACTOR);
        bits = (bits ^ u32::from_ne_bytes([a[8], a[9], a[10], a[11]])).wrapping_mul(FACTOR);
        bits = (bits ^ u32::from_ne_bytes([a[12], a[13], a[14], a[15]])).wrapping_mul(FACTOR);
        bits & !(Self::TRANSLATED | (Self::TRANSLATED - 1))
    }

    /// A number for this key, equal for equal keys: every bit of it may serve as the number of a ticket.
    #[inline(always)]
    pub const fn ticket(&self) -> u32 {
        let a = &self.remote.0;
        (self.local_port as u32 ^ ((self.remote_port as u32) << 5) ^ self.protocol)
            .wrapping_add(u32::from_ne_bytes([a[12], a[13], a[14], a[15]]))
            .wrapping_mul(0x9e37_79b1)
            >> 16
    }
}

/// Time in steps of 2^30 ns (1.07 s) of the kernel's coarse monotonic clock: a shift instead of a division.
pub type Tick = u32;
/// How far to shift nanoseconds right to get a [`Tick`].
pub const TICK_SHIFT: u32 = 30;

/// How far a conversation has come.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Phase {
    /// Packets in the opening direction only.
    Opening = 0,
    /// Packets in both directions.
    Established = 1,
    /// TCP: the opener has sent FIN.
    OpenerDone = 2,
    /// TCP: the other side has sent FIN.
    ReplierDone = 3,
    /// TCP: FIN from both sides, or RST.
    Closing = 4,
}

/// Value of [`crate::map::FLOWS`] and [`crate::map::OPENING`]. The first two words are written whole, each by itself: a
/// reader never sees an epoch with another flow's origin.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// The epoch under which this flow was last allowed.
    pub epoch: u32,
    /// The [`Direction`] in which it was opened.
    pub origin: u8,
    /// The [`Phase`].
    pub phase: u8,
    /// [`Flow::DEFERRED`], [`Flow::RESOLVED`], [`Flow::LOCAL`] and [`Flow::MASQUERADED`], or 0.
    pub flags: u16,
    /// When its last allowed packet was noted, in [`Tick`]s.
    pub seen: u32,
    /// The port of `backend` in host byte order.
    pub backend_port: u16,
    /// Always 0.
    pub pad: u16,
    /// Of a resolved flow: who really answers.
    pub backend: Address,
}
const _: () = assert!(size_of::<Flow>() == 32);

/// Whether a protocol has connections: whoever answers the first packet of one answers all of them.
#[inline(always)]
pub const fn is_stream(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::SCTP)
}

/// How long a flow of this protocol and phase may rest, in [`Tick`]s.
#[inline(always)]
pub const fn lifetime(protocol: u8, phase: u8) -> Tick {
    const SECOND: u64 = 1_000_000_000;
    const fn ticks(seconds: u64) -> Tick {
        ((seconds * SECOND) >> TICK_SHIFT) as Tick + 1
    }
    if is_stream(protocol) {
        if phase == Phase::Opening as u8 {
            ticks(60)
        } else if phase == Phase::Closing as u8 {
            ticks(10)
        } else {
            ticks(7200)
        }
    } else if phase == Phase::Opening as u8 {
        ticks(30)
    } else {
        ticks(180)
    }
}

impl Flow {
    /// Flag: the pod opened it to an address behind which somebody else answers. Each of its packets is judged where it
    /// leaves for its real destination.
    pub const DEFERRED: u16 = 1;
    /// Flag: a packet of this deferred flow was judged, `backend` and `backend_port` say for which destination.
    pub const RESOLVED: u16 = 2;
    /// Flag: a process of the node opened it, not somebody whose address was translated to the node's.
    pub const LOCAL: u16 = 4;
    /// Flag: opened by somebody whose address was translated to the node's. It must not outlive the translation: then the
    /// node itself would get what the pod answers, or somebody else.
    pub const MASQUERADED: u16 = 8;

    /// A flow that its first packet has just opened.
    #[inline(always)]
    pub const fn open(epoch: u32, origin: Direction, flags: u16, now: Tick) -> Self {
        Self {
            epoch,
            origin: origin as u8,
            phase: Phase::Opening as u8,
            flags,
            seen: now,
            backend_port: 0,
            pad: 0,
            backend: Address::NONE,
        }
    }

    /// The direction in which the flow was opened.
    #[inline(always)]
    pub const fn origin(&self) -> Direction {
        if self.origin == Direction::Ingress as u8 {
            Direction::Ingress
        } else {
            Direction::Egress
        }
    }

    /// Whether the pod opened it to an address behind which somebody else answers.
    #[inline(always)]
    pub const fn deferred(&self) -> bool {
        self.flags & Self::DEFERRED != 0
    }

    /// Whether a process of the node opened it.
    #[inline(always)]
    pub const fn local(&self) -> bool {
        self.flags & Self::LOCAL != 0
    }

    /// Whether it is known who answers.
    #[inline(always)]
    pub const fn resolved(&self) -> bool {
        self.flags & Self::RESOLVED != 0
    }

    /// Whether the flow has rested longer than its phase allows.
    #[inline(always)]
    pub const fn expired(&self, protocol: u8, now: Tick) -> bool {
        let rested = now.wrapping_sub(self.seen);
        if self.flags & Self::MASQUERADED != 0 && !is_stream(protocol) {
            // Below those of connection tracking, 30 s and 120 s (nf_conntrack_proto_udp.c), by more than a tick.
            let limit = if self.phase == Phase::Opening as u8 {
                23
            } else {
                93
            };
            return rested > limit;
        }
        rested > lifetime(protocol, self.phase)
    }

    /// This flow after one more allowed packet in `direction`.
    #[inline(always)]
    pub const fn advance(
        mut self,
        packet: &Packet,
        direction: Direction,
        epoch: u32,
        now: Tick,
    ) -> Self {
        let opener = self.origin == direction as u8;
        if opener && packet.opens() {
            // Somebody else may answer the next connection.
            self.flags &= !Self::RESOLVED;
        }
        if self.phase >= Phase::OpenerDone as u8 && opener && packet.opens() {
            // The ports of a connection that has ended carry the next one.
            self.phase = Phase::Opening as u8;
        } else if packet.aborts() {
            self.phase = Phase::Closing as u8;
        } else if packet.finishes() {
            let (mine, other) = if opener {
                (Phase::OpenerDone as u8, Phase::ReplierDone as u8)
            } else {
                (Phase::ReplierDone as u8, Phase::OpenerDone as u8)
            };
            self.phase = if self.phase == other || self.phase == Phase::Closing as u8 {
                Phase::Closing as u8
            } else {
                mine
            };
        } else if !opener && self.phase == Phase::Opening as u8 {
            self.phase = Phase::Established as u8;
        }
        self.epoch = epoch;
        self.seen = now;
        self
    }

    /// Whether its opener, who sends this packet, has had an answer: then the flow belongs into [`crate::map::FLOWS`].
    #[inline(always)]
    pub const fn settles(&self, direction: Direction) -> bool {
        self.phase == Phase::Established as u8 && self.origin == direction as u8
    }
}

/// A place in the flow table.
pub trait FlowRef {
    /// The flow as it stands there.
    fn load(&self) -> Flow;
    /// Writes it back, except for its backend.
    fn store(&self, flow: &Flow);
    /// Notes who answers, and that the flow was allowed under `epoch`.
    fn resolve(&self, backend: &Address, port: u16, epoch: u32);
}
