//! What the decision procedure knows of a packet.

use core::cell::Cell;

use crate::{
    Address, ClassId, Direction, Endpoint, Event, Flow, FlowKey, Fragment, FragmentKey, PortSetId,
    Reason, Tick,
};

/// IP protocol numbers (IANA "Assigned Internet Protocol Numbers").
#[expect(missing_docs, reason = "names of the registry")]
pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const IPV4: u8 = 4;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const IPV6: u8 = 41;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const GRE: u8 = 47;
    pub const AUTHENTICATION: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION: u8 = 60;
    pub const SCTP: u8 = 132;
    pub const MOBILITY: u8 = 135;
    pub const HIP: u8 = 139;
    pub const SHIM6: u8 = 140;
}

/// TCP flags (RFC 9293 section 3.1).
#[expect(missing_docs, reason = "names of the RFC")]
pub mod tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// Types of SCTP chunks (RFC 9260 section 3.2).
#[expect(missing_docs, reason = "names of the RFC")]
pub mod chunk {
    pub const INIT: u8 = 1;
    pub const ABORT: u8 = 6;
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// ICMP and ICMPv6 types (IANA "ICMP Parameters", "ICMPv6 Parameters").
#[expect(missing_docs, reason = "names of the registry")]
pub mod icmp {
    pub const ECHO_REPLY: u8 = 0;
    pub const UNREACHABLE: u8 = 3;
    pub const SOURCE_QUENCH: u8 = 4;
    pub const REDIRECT: u8 = 5;
    pub const ECHO_REQUEST: u8 = 8;
    pub const ROUTER_ADVERTISEMENT: u8 = 9;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const PARAMETER_PROBLEM: u8 = 12;
    pub const V6_UNREACHABLE: u8 = 1;
    pub const V6_PARAMETER_PROBLEM: u8 = 4;
    pub const V6_ECHO_REQUEST: u8 = 128;
    pub const V6_ECHO_REPLY: u8 = 129;
    pub const V6_LISTENER_QUERY: u8 = 130;
    pub const V6_LISTENER_DONE: u8 = 132;
    pub const V6_ROUTER_SOLICITATION: u8 = 133;
    pub const V6_ROUTER_ADVERTISEMENT: u8 = 134;
    pub const V6_NEIGHBOUR_SOLICITATION: u8 = 135;
    pub const V6_NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    pub const V6_REDIRECT: u8 = 137;
    pub const V6_LISTENER_REPORT_V2: u8 = 143;
}

/// A frame as the hook sees it.
pub trait Frame {
    /// The `N` bytes from `offset` on (from the Ethernet header), or `None` past the end.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
    /// The Ethernet header and the bytes of the shortest IPv4 header.
    #[inline(always)]
    fn start(&self) -> Option<[u8; 34]> {
        self.load::<34>(0)
    }
    /// The EtherType in host byte order, 0 if the frame is too short for one.
    #[inline(always)]
    fn ether_type(&self) -> u16 {
        self.load::<2>(12).map_or(0, u16::from_be_bytes)
    }
    /// Length in bytes, Ethernet header included (`__sk_buff.len`).
    fn len(&self) -> u32;
    /// The same number, of which the verifier has forgotten all that it knew.
    ///
    /// A walk from header to header asks this of what it carries from one step to the next. Kernels before 6.8 or so follow
    /// every way through a step with what is known of a number on it; without this the ways multiply with each step, and the
    /// program is refused for its million instructions.
    #[inline(always)]
    fn forget(&self, number: u64) -> u64 {
        number
    }
    /// The device of the hook (`__sk_buff.ifindex`).
    fn interface(&self) -> u32;
    /// The device by which the packet came to this node, 0 if the node itself sent it (`__sk_buff.ingress_ifindex`).
    fn came_in_by(&self) -> u32;
    /// Whether it belongs to a socket (`__sk_buff.sk`). What a node forwards belongs to none (`ip_forward` in
    /// net/ipv4/ip_forward.c, `ip6_forward` in net/ipv6/ip6_output.c).
    fn of_a_socket(&self) -> bool;
    /// Whether the node itself sent it, of which `piece` says which part of a datagram it is.
    ///
    /// A fragment says nothing about the device by which its datagram came in: where the kernel cuts one up anew, it does not
    /// copy that (`ip6_copy_metadata` in net/ipv6/ip6_output.c, `ip_copy_metadata` before Linux 5.19). Nor has every other
    /// packet of the node's own a socket (netfilter's resets).
    #[inline(always)]
    fn is_own(&self, piece: Piece) -> bool {
        self.came_in_by() == 0 && (matches!(piece, Piece::Whole) || self.of_a_socket())
    }
    /// Whether a VLAN tag was taken off the frame into the metadata (`__sk_buff.vlan_present`).
    fn tagged(&self) -> bool;
    /// The mark that the packet carries through this node (`__sk_buff.mark`).
    fn mark(&self) -> u32;
    /// Sets the mark.
    fn set_mark(&self, mark: u32);
    /// Whether there is nothing in the frame.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What the decision procedure needs to know of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port in host byte order, the identifier of an ICMP echo, or 0.
    pub source_port: u16,
    /// Destination port in host byte order, the identifier of an ICMP echo, or 0.
    pub destination_port: u16,
    /// IP protocol number of the first header that is not an extension.
    pub protocol: u8,
    /// TCP flags, the type of the first SCTP chunk, or the ICMP type; 0 for other protocols.
    pub flags: u8,
    /// What is special about it.
    pub kind: Kind,
    /// Which part of a datagram it is.
    pub piece: Piece,
    /// Offset of the transport header in the frame.
    pub at: u32,
    /// Offset of the end of the packet in the frame.
    pub end: u32,
    /// The identification of a fragment, as it stands in [`FragmentKey`].
    pub id: u32,
    /// Where a fragment begins, in bytes of the fragmentable part.
    pub offset: u16,
    /// Bytes of the fragmentable part up to the end of the transport header.
    pub headers: u16,
}

/// Packets that are not simply "one of a flow".
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// An ordinary packet.
    Plain = 0,
    /// An ICMP echo request.
    EchoRequest = 1,
    /// An ICMP echo reply.
    EchoReply = 2,
    /// An ICMP error: it belongs to the flow of the packet that it quotes.
    Error = 3,
    /// A fragment of which nobody knows the ports.
    Portless = 4,
    /// A router advertisement or redirect that a router may have passed on: it means nothing to its receiver.
    Router = 5,
}

/// Which part of a datagram a packet is.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Piece {
    /// All of it.
    Whole = 0,
    /// The first fragment, with the transport header.
    First = 1,
    /// Another fragment.
    Later = 2,
}

/// What [`crate::parse`] could make of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// An IP packet whose transport header is there, or a fragment.
    Packet,
    /// ARP.
    Arp,
    /// Neighbour discovery (RFC 4861) or multicast listener discovery (RFC 3810) that no router has passed on.
    Neighbour,
    /// A router advertisement or redirect that no router has passed on.
    Router,
    /// Something that cannot be judged by its ports, for this reason.
    Opaque(Reason),
}

/// What the rules said about a packet when they were asked last.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The class of the peer.
    pub class: Cell<ClassId>,
    /// What the rules give it.
    pub set: Cell<PortSetId>,
}

/// What is too large for the stack of an eBPF program: one for each CPU, used by one packet at a time.
#[derive(Clone, Debug)]
pub struct Scratch {
    /// The packet.
    pub packet: Packet,
    /// What an ICMP error quotes.
    pub quoted: Packet,
    /// The key of its flow.
    pub key: FlowKey,
    /// The key of another flow that is looked at on the way.
    pub other: FlowKey,
    /// Its flow.
    pub flow: Flow,
    /// What the rules said.
    pub found: Found,
}

impl Default for Scratch {
    fn default() -> Self {
        let packet = Packet::between(Address::NONE, Address::NONE);
        let key = packet.flow_key(0, Direction::Ingress);
        Self {
            packet,
            quoted: packet,
            key,
            other: key,
            flow: Flow::open(0, Direction::Ingress, 0, 0),
            found: Found::default(),
        }
    }
}

impl Packet {
    /// A packet of which only the addresses are known.
    #[inline(always)]
    pub const fn between(source: Address, destination: Address) -> Self {
        Self {
            source,
            destination,
            source_port: 0,
            destination_port: 0,
            protocol: 0,
            flags: 0,
            kind: Kind::Plain,
            piece: Piece::Whole,
            at: 0,
            end: 0,
            id: 0,
            offset: 0,
            headers: 0,
        }
    }

    /// The address of the other end.
    #[inline(always)]
    pub const fn remote(&self, direction: Direction) -> Address {
        match direction {
            Direction::Ingress => self.source,
            Direction::Egress => self.destination,
        }
    }

    /// The key of the flow that this packet belongs to at the endpoint behind `interface`.
    #[inline(always)]
    pub const fn flow_key(&self, interface: u32, direction: Direction) -> FlowKey {
        let (remote, mut local_port, mut remote_port) = match direction {
            Direction::Ingress => (self.source, self.destination_port, self.source_port),
            Direction::Egress => (self.destination, self.source_port, self.destination_port),
        };
        // Both ends ping with identifiers of their own choice: whose request it is belongs to the key.
        let peer_asks = match (self.kind, direction) {
            (Kind::EchoRequest, Direction::Ingress) | (Kind::EchoReply, Direction::Egress) => {
                Some(1)
            }
            (Kind::EchoRequest, Direction::Egress) | (Kind::EchoReply, Direction::Ingress) => {
                Some(0)
            }
            _ => None,
        };
        if let Some(who) = peer_asks {
            local_port = self.source_port;
            remote_port = who;
        }
        FlowKey {
            remote,
            interface,
            local_port,
            remote_port,
            protocol: self.protocol as u32,
        }
    }

    /// Whether this is the first packet of a TCP connection (SYN without ACK) or of an SCTP association (INIT).
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        match self.protocol {
            protocol::TCP => self.flags & (tcp::SYN | tcp::ACK) == tcp::SYN,
            protocol::SCTP => self.flags == chunk::INIT,
            _ => false,
        }
    }

    /// Whether this ends a conversation at once.
    #[inline(always)]
    pub const fn aborts(&self) -> bool {
        match self.protocol {
            protocol::TCP => self.flags & tcp::RST != 0,
            protocol::SCTP => matches!(self.flags, chunk::ABORT | chunk::SHUTDOWN_COMPLETE),
            _ => false,
        }
    }

    /// Whether this is the last that its sender has to say.
    #[inline(always)]
    pub const fn finishes(&self) -> bool {
        self.protocol == protocol::TCP && self.flags & tcp::FIN != 0
    }

    /// Whether a packet opens nothing: without a flow it is a stray of a conversation that nobody remembers.
    #[inline(always)]
    pub const fn strays(&self) -> bool {
        match self.protocol {
            protocol::TCP | protocol::SCTP => !self.opens(),
            _ => matches!(self.kind, Kind::EchoReply),
        }
    }

    /// Whether a flow can be kept for it.
    #[inline(always)]
    pub const fn tracked(&self) -> bool {
        !matches!(self.kind, Kind::Error | Kind::Portless | Kind::Router)
    }

    /// The key that the fragments of this datagram share, when it is judged for the endpoint behind `interface`.
    #[inline(always)]
    pub const fn fragment_key(&self, interface: u32) -> FragmentKey {
        FragmentKey {
            source: self.source,
            destination: self.destination,
            interface,
            id: self.id,
        }
    }

    /// What this first fragment says for all of them.
    #[inline(always)]
    pub const fn fragment(&self, now: Tick) -> Fragment {
        Fragment {
            source_port: self.source_port,
            destination_port: self.destination_port,
            protocol: self.protocol,
            probe: self.kind as u8,
            headers: self.headers,
            seen: now,
        }
    }

    /// Completes a later fragment by what the first one said. It opens and ends nothing.
    #[inline(always)]
    pub const fn complete(&mut self, first: &Fragment) {
        self.source_port = first.source_port;
        self.destination_port = first.destination_port;
        self.protocol = first.protocol;
        self.flags = match first.protocol {
            protocol::TCP => tcp::ACK,
            _ => 0,
        };
        self.kind = if first.probe == Kind::EchoRequest as u8 {
            Kind::EchoRequest
        } else if first.probe == Kind::EchoReply as u8 {
            Kind::EchoReply
        } else if first.probe == Kind::Error as u8 {
            Kind::Portless
        } else {
            Kind::Plain
        };
    }
}

/// How long the fragments of a datagram may keep coming, in [`Tick`]s: as long as the kernel waits for them (60 s for IPv6,
/// `IPV6_FRAG_TIMEOUT`).
pub const FRAGMENT_LIFETIME: Tick = 56;

/// A packet that is dropped, for the record.
#[derive(Clone, Copy, Debug)]
pub struct Dropped<'a> {
    /// The packet.
    pub packet: &'a Packet,
    /// Whether it could be parsed.
    pub parsed: bool,
    /// Under which key the sender knows a flow that was judged after translation.
    pub service: &'a FlowKey,
    /// Whether it was judged after translation, and the key is known.
    pub translated: bool,
    /// The host interface of the endpoint whose rules dropped it.
    pub interface: u32,
    /// The endpoint.
    pub slot: u32,
    /// Seen from the endpoint.
    pub direction: Direction,
    /// Why.
    pub reason: Reason,
}

impl Dropped<'_> {
    /// Writes every field of the record. `time` in nanoseconds of `CLOCK_MONOTONIC`.
    #[inline(always)]
    pub fn write<F: Frame>(&self, frame: &F, time: u64, event: &mut Event) {
        event.time = time;
        event.interface = self.interface;
        event.slot = self.slot;
        event.length = frame.len();
        event.device = frame.interface();
        event.direction = self.direction as u8;
        event.reason = self.reason as u8;
        event.ether_type = frame.ether_type();
        event.pad = 0;
        event.source = Address::NONE;
        event.destination = Address::NONE;
        event.source_port = 0;
        event.destination_port = 0;
        event.protocol = 0;
        event.tcp_flags = 0;
        if self.parsed {
            let packet = self.packet;
            event.source = packet.source;
            event.destination = packet.destination;
            event.source_port = packet.source_port;
            event.destination_port = packet.destination_port;
            event.protocol = packet.protocol;
            if packet.protocol == protocol::TCP {
                event.tcp_flags = packet.flags;
            }
        }
        event.service = Address::NONE;
        event.service_port = 0;
        if self.translated {
            event.service = self.service.remote;
            event.service_port = self.service.remote_port;
            // The sender's own port: masquerade may have changed it.
            event.source_port = self.service.local_port;
        }
    }
}

/// Whether an IP address is one that a node must never see on a wire (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.3).
#[inline(always)]
pub fn is_loopback(address: &Address) -> bool {
    if address.is_v4() {
        address.0[12] == 127
    } else {
        *address == Address::LOOPBACK
    }
}

/// Whether an address is of a group: multicast or the limited broadcast address.
#[inline(always)]
pub fn is_group(address: &Address) -> bool {
    if address.is_v4() {
        address.0[12] >= 224 && (address.0[12] < 240 || address.0[12] == 255)
    } else {
        address.0[0] == 0xff
    }
}

/// Whether an IPv6 address means something on its own link only (RFC 4291 section 2.5.6).
#[inline(always)]
pub(crate) fn is_link_local(address: &Address) -> bool {
    address.0[0] == 0xfe && address.0[1] & 0xc0 == 0x80
}

/// Whether two hardware addresses are the same; an unknown one of the endpoint is any.
#[inline(always)]
pub fn is_mac_of(endpoint: &Endpoint, mac: [u8; 6]) -> bool {
    let own = &endpoint.mac;
    let high = u32::from_ne_bytes([own[0], own[1], own[2], own[3]]);
    let low = u16::from_ne_bytes([own[4], own[5]]);
    (high == u32::from_ne_bytes([mac[0], mac[1], mac[2], mac[3]])
        && low == u16::from_ne_bytes([mac[4], mac[5]]))
        || (high == 0 && low == 0)
}
