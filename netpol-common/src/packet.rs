//! Parsing: from the bytes of a frame to what a policy can say about it.

use crate::{Address, Direction, FlowKey, Reason};

/// IP protocol numbers (IANA "Assigned Internet Protocol Numbers").
#[expect(missing_docs, reason = "names of the registry")]
pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
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

/// ICMP and ICMPv6 types (IANA "ICMP Parameters", "ICMPv6 Parameters").
#[expect(missing_docs, reason = "names of the registry")]
pub mod icmp {
    pub const ECHO_REPLY: u8 = 0;
    pub const ECHO_REQUEST: u8 = 8;
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

/// EtherTypes (IEEE 802).
mod ether_type {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const IPV6: u16 = 0x86dd;
}

/// How many IPv6 extension headers are followed.
const MAX_EXTENSIONS: usize = 8;
/// Length of an Ethernet header.
const ETHERNET: usize = 14;
/// The first extension header of an IPv6 packet.
const IPV6_PAYLOAD: usize = ETHERNET + 40;

/// A frame as the hook sees it.
pub trait Frame {
    /// The `N` bytes from `offset` on (from the Ethernet header), or `None` past the end.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
    /// Length in bytes, Ethernet header included (`__sk_buff.len`).
    fn len(&self) -> u32;
    /// The device of the hook (`__sk_buff.ifindex`).
    fn interface(&self) -> u32;
    /// The device by which the packet came to this node, 0 if the node itself sent it (`__sk_buff.ingress_ifindex`).
    fn came_in_by(&self) -> u32;
    /// Whether a VLAN tag was taken off the frame into the metadata (`__sk_buff.vlan_present`).
    fn tagged(&self) -> bool;
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
    /// IP protocol number of the first header that is not an extension.
    pub protocol: u8,
    /// TCP flags; 0 for other protocols.
    pub tcp_flags: u8,
    /// What is special about it.
    pub probe: Probe,
    /// Source port in host byte order, the identifier of an ICMP echo, or 0.
    pub source_port: u16,
    /// Destination port in host byte order, the identifier of an ICMP echo, or 0.
    pub destination_port: u16,
}

/// Packets that are not simply "one of a flow".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probe {
    /// An ordinary packet.
    None,
    /// An ICMP echo request.
    EchoRequest,
    /// An ICMP echo reply.
    EchoReply,
}

/// What [`parse`] could make of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// An IP packet whose transport header is there.
    Packet(Packet),
    /// ARP, neighbour discovery or multicast listener discovery that cannot leave the link.
    Neighbour,
    /// A router advertisement or redirect.
    Router,
    /// Something that cannot be judged by its ports, for this reason.
    Opaque(Reason),
}

impl Packet {
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
        let peer_asks = match (self.probe, direction) {
            (Probe::None, _) => None,
            (Probe::EchoRequest, Direction::Ingress) | (Probe::EchoReply, Direction::Egress) => {
                Some(1)
            }
            _ => Some(0),
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

    /// Whether this is the first packet of a TCP connection (SYN without ACK).
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.protocol == protocol::TCP && self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }

    /// Whether a TCP packet opens nothing: without a flow it is a stray of a connection that nobody remembers.
    #[inline(always)]
    pub const fn strays(&self) -> bool {
        self.protocol == protocol::TCP && !self.opens()
    }
}

/// Parses a frame.
#[inline(always)]
pub fn parse<F: Frame>(frame: &F) -> Parsed {
    if frame.tagged() {
        return Parsed::Opaque(Reason::EtherType);
    }
    // One call for the Ethernet header and the shortest IPv4 header: what every packet has to have.
    let Some(h) = frame.load::<34>(0) else {
        return Parsed::Opaque(Reason::Malformed);
    };
    match u16::from_be_bytes([h[12], h[13]]) {
        ether_type::IPV4 => ipv4(frame, &h),
        ether_type::IPV6 => ipv6(frame),
        ether_type::ARP => Parsed::Neighbour,
        _ => Parsed::Opaque(Reason::EtherType),
    }
}

/// RFC 791 section 3.1.
#[inline(always)]
fn ipv4<F: Frame>(frame: &F, start: &[u8; 34]) -> Parsed {
    let h = &start[ETHERNET..];
    let header = (h[0] & 0x0f) as usize * 4;
    let total = u16::from_be_bytes([h[2], h[3]]) as usize;
    // A total length of 0 is a GSO packet of more than 64 KiB (BIG TCP, include/net/ip.h iph_totlen()).
    let end = if total == 0 {
        frame.len() as usize
    } else {
        ETHERNET + total
    };
    if h[0] >> 4 != 4 || header < 20 || end < ETHERNET + header || end > frame.len() as usize {
        return Parsed::Opaque(Reason::Malformed);
    }
    // The fragment offset: later fragments carry no ports. The first one (offset 0, more to come) does.
    if u16::from_be_bytes([h[6], h[7]]) & 0x1fff != 0 {
        return Parsed::Opaque(Reason::Fragment);
    }
    let source = Address::v4([h[12], h[13], h[14], h[15]]);
    let destination = Address::v4([h[16], h[17], h[18], h[19]]);
    transport(frame, source, destination, h[9], ETHERNET + header, end)
}

/// RFC 8200 sections 3 and 4.
#[inline(always)]
fn ipv6<F: Frame>(frame: &F) -> Parsed {
    // One after the other: out of three results that are looked at together the compiler makes reads of stack that was never
    // written, which older verifiers refuse.
    let Some(h) = frame.load::<8>(ETHERNET) else {
        return Parsed::Opaque(Reason::Malformed);
    };
    let Some(source) = frame.load(ETHERNET + 8).map(Address) else {
        return Parsed::Opaque(Reason::Malformed);
    };
    let Some(destination) = frame.load(ETHERNET + 24).map(Address) else {
        return Parsed::Opaque(Reason::Malformed);
    };
    let payload = u16::from_be_bytes([h[4], h[5]]) as usize;
    // A payload length of 0 is a jumbogram (RFC 2675): on a node that is a GSO packet (BIG TCP).
    let end = if payload == 0 {
        frame.len() as usize
    } else {
        IPV6_PAYLOAD + payload
    };
    if h[0] >> 4 != 6 || end > frame.len() as usize || source.is_v4() || destination.is_v4() {
        return Parsed::Opaque(Reason::Malformed);
    }
    let mut next = h[6];
    let mut at = IPV6_PAYLOAD;
    let mut settled = false;
    for _ in 0..=MAX_EXTENSIONS {
        match next {
            protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::DESTINATION
            | protocol::MOBILITY
            | protocol::HIP
            | protocol::SHIM6
            | protocol::AUTHENTICATION => {
                let Some(e) = frame.load::<4>(at) else {
                    return Parsed::Opaque(Reason::Malformed);
                };
                // Segments left: the destination in the header is not where the packet ends.
                if next == protocol::ROUTING && e[3] != 0 {
                    return Parsed::Opaque(Reason::Extensions);
                }
                // RFC 4302 counts in words less two, everything else in eight bytes less one.
                at += if next == protocol::AUTHENTICATION {
                    8 + e[1] as usize * 4
                } else {
                    8 + e[1] as usize * 8
                };
                next = e[0];
            }
            protocol::FRAGMENT => {
                let Some(e) = frame.load::<8>(at) else {
                    return Parsed::Opaque(Reason::Malformed);
                };
                if u16::from_be_bytes([e[2], e[3]]) & 0xfff8 != 0 {
                    return Parsed::Opaque(Reason::Fragment);
                }
                at += 8;
                next = e[0];
            }
            _ => {
                settled = true;
                break;
            }
        }
    }
    if !settled {
        return Parsed::Opaque(Reason::Extensions);
    }
    if next == protocol::ICMPV6 {
        let Some(i) = frame.load::<2>(at) else {
            return Parsed::Opaque(Reason::Malformed);
        };
        let hop_limit = h[7];
        // Only what a router cannot have passed on (RFC 4861 section 6.1, RFC 3810 section 5): it stays on this link.
        match i[0] {
            icmp::V6_ROUTER_ADVERTISEMENT | icmp::V6_REDIRECT => return Parsed::Router,
            icmp::V6_ROUTER_SOLICITATION
            | icmp::V6_NEIGHBOUR_SOLICITATION
            | icmp::V6_NEIGHBOUR_ADVERTISEMENT
                if hop_limit == 255 =>
            {
                return Parsed::Neighbour;
            }
            icmp::V6_LISTENER_QUERY..=icmp::V6_LISTENER_DONE | icmp::V6_LISTENER_REPORT_V2
                if hop_limit == 1 =>
            {
                return Parsed::Neighbour;
            }
            _ => {}
        }
    }
    transport(frame, source, destination, next, at, end)
}

#[inline(always)]
fn transport<F: Frame>(
    frame: &F,
    source: Address,
    destination: Address,
    number: u8,
    at: usize,
    end: usize,
) -> Parsed {
    // The whole fixed header has to be there, inside the length that the IP header states.
    let header = match number {
        protocol::TCP => 20,
        protocol::UDP | protocol::ICMP | protocol::ICMPV6 => 8,
        protocol::SCTP => 12,
        _ => 0,
    };
    if at + header > end {
        return Parsed::Opaque(Reason::Malformed);
    }
    let (mut source_port, mut destination_port, mut tcp_flags) = (0, 0, 0);
    let mut probe = Probe::None;
    if number == protocol::TCP {
        let Some(t) = frame.load::<14>(at) else {
            return Parsed::Opaque(Reason::Malformed);
        };
        source_port = u16::from_be_bytes([t[0], t[1]]);
        destination_port = u16::from_be_bytes([t[2], t[3]]);
        tcp_flags = t[13];
    } else if header != 0 {
        let Some(t) = frame.load::<8>(at) else {
            return Parsed::Opaque(Reason::Malformed);
        };
        if number == protocol::ICMP || number == protocol::ICMPV6 {
            probe = match (number, t[0]) {
                (protocol::ICMP, icmp::ECHO_REQUEST)
                | (protocol::ICMPV6, icmp::V6_ECHO_REQUEST) => Probe::EchoRequest,
                (protocol::ICMP, icmp::ECHO_REPLY) | (protocol::ICMPV6, icmp::V6_ECHO_REPLY) => {
                    Probe::EchoReply
                }
                _ => Probe::None,
            };
            if !matches!(probe, Probe::None) {
                source_port = u16::from_be_bytes([t[4], t[5]]);
                destination_port = source_port;
            }
        } else {
            source_port = u16::from_be_bytes([t[0], t[1]]);
            destination_port = u16::from_be_bytes([t[2], t[3]]);
        }
    }
    Parsed::Packet(Packet {
        source,
        destination,
        protocol: number,
        tcp_flags,
        probe,
        source_port,
        destination_port,
    })
}
