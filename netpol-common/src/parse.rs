//! Parsing: from the bytes of a frame to a [`Packet`].

use crate::{
    Address, Frame, Kind, Packet, Parsed, Piece, Reason,
    packet::{icmp, is_link_local, protocol},
};

/// EtherTypes (IEEE 802).
pub(crate) mod ether_type {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const IPV6: u16 = 0x86dd;
}

/// How many IPv6 extension headers are followed.
const MAX_EXTENSIONS: usize = 8;
/// Length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// Length of an IPv6 header.
const IPV6_HEADER: usize = 40;
/// What is looked at in every frame: the Ethernet header and the shortest IPv4 header.
pub(crate) const START: usize = 34;

/// Parses a frame. `packet` holds what was found in it, as far as the answer says that there is something.
#[inline(always)]
pub fn parse<F: Frame>(frame: &F, packet: &mut Packet) -> Parsed {
    match start(frame) {
        Ok(head) => parse_from(frame, &head, packet),
        Err(reason) => Parsed::Opaque(reason),
    }
}

/// The first bytes, loaded by one call: what every packet has to have.
#[inline(always)]
pub(crate) fn start<F: Frame>(frame: &F) -> Result<[u8; START], Reason> {
    frame.start().ok_or(Reason::Malformed)
}

/// Parses a frame whose first bytes are known.
///
/// A function of its own, and its result in memory that the verifier does not follow: so it need not go on, after each of the
/// many ways through here, as if it had never seen what comes next.
#[inline(never)]
pub(crate) fn parse_from<F: Frame>(frame: &F, head: &[u8; START], packet: &mut Packet) -> Parsed {
    if frame.tagged() {
        return Parsed::Opaque(Reason::EtherType);
    }
    match u16::from_be_bytes([head[12], head[13]]) {
        ether_type::IPV4 => ipv4(frame, head, packet),
        ether_type::IPV6 => ipv6(frame, packet),
        ether_type::ARP => Parsed::Arp,
        _ => Parsed::Opaque(Reason::EtherType),
    }
}

/// Sets everything that is not read from an IP header. Field by field: a whole packet on the stack is too much of it.
#[inline(always)]
fn begin(packet: &mut Packet, number: u8, end: usize) {
    packet.source_port = 0;
    packet.destination_port = 0;
    packet.protocol = number;
    packet.flags = 0;
    packet.kind = Kind::Plain;
    packet.piece = Piece::Whole;
    packet.at = 0;
    packet.end = end as u32;
    packet.id = 0;
    packet.offset = 0;
    packet.headers = 0;
}

/// RFC 791 section 3.1.
#[inline(always)]
fn ipv4<F: Frame>(frame: &F, start: &[u8; START], packet: &mut Packet) -> Parsed {
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
    if header > 20 {
        match route(frame, header) {
            Route::Direct => {}
            Route::Sourced => return Parsed::Opaque(Reason::Extensions),
            Route::Malformed => return Parsed::Opaque(Reason::Malformed),
        }
    }
    packet.source = Address::v4([h[12], h[13], h[14], h[15]]);
    packet.destination = Address::v4([h[16], h[17], h[18], h[19]]);
    begin(packet, h[9], end);
    let at = ETHERNET + header;
    let fragment = u16::from_be_bytes([h[6], h[7]]);
    if fragment & 0x3fff != 0 {
        // Numbered for each protocol by itself (RFC 791 section 3.2).
        packet.id = u32::from_ne_bytes([h[4], h[5], h[9], 0]);
        packet.offset = (fragment & 0x1fff) << 3;
        packet.piece = if packet.offset == 0 {
            Piece::First
        } else {
            Piece::Later
        };
    }
    transport(frame, packet, at, at)
}

/// Where the options of an IPv4 header send a packet.
#[derive(Clone, Copy)]
enum Route {
    /// To its destination address.
    Direct,
    /// Loose or strict source routing: the destination in the header is not where the packet ends.
    Sourced,
    /// The options do not fit into the header.
    Malformed,
}

/// How many options of an IPv4 header are looked at; four in a row that do nothing count as one.
const MAX_OPTIONS: usize = 16;

/// Walks the options of an IPv4 header (RFC 791 section 3.1). Seldom: a function of its own, off the stack of the fast path.
#[inline(never)]
fn route<F: Frame>(frame: &F, header: usize) -> Route {
    const END: u8 = 0;
    const NOP: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    let end = ETHERNET + header;
    let mut at = ETHERNET + 20;
    for _ in 0..MAX_OPTIONS {
        at = frame.forget(at as u64) as usize;
        if at == end {
            return Route::Direct;
        }
        if at > end {
            return Route::Malformed;
        }
        // The very last byte of a frame is an option of one byte or none.
        let Some([kind, length]) = frame.load::<2>(at) else {
            let last = frame.load::<1>(at);
            return if matches!(last, Some([END | NOP])) {
                Route::Direct
            } else {
                Route::Malformed
            };
        };
        if kind == END {
            return Route::Direct;
        }
        if kind == LOOSE || kind == STRICT {
            return Route::Sourced;
        }
        at += if kind == NOP {
            match frame.load::<4>(at) {
                Some([NOP, NOP, NOP, NOP]) => 4,
                _ => 1,
            }
        } else if length < 2 {
            return Route::Malformed;
        } else {
            length as usize
        };
    }
    // More than anybody needs, or something that is cut off.
    if at == end {
        Route::Direct
    } else {
        Route::Malformed
    }
}

/// What lies between an IPv6 header and the transport header.
struct Extensions {
    /// Where the transport header begins.
    at: usize,
    /// Where the fragmentable part begins.
    fragmentable: usize,
    protocol: u8,
    piece: Piece,
    offset: u16,
    id: u32,
}

/// RFC 8200 sections 3 and 4.
#[inline(always)]
fn ipv6<F: Frame>(frame: &F, packet: &mut Packet) -> Parsed {
    // One after the other: out of three results that are looked at together the compiler makes reads of stack that was never
    // written, which older verifiers refuse.
    let Some(h) = frame.load::<8>(ETHERNET) else {
        return Parsed::Opaque(Reason::Malformed);
    };
    let Some(source) = frame.load(ETHERNET + 8).map(Address) else {
        return Parsed::Opaque(Reason::Malformed);
    };
    packet.source = source;
    let Some(destination) = frame.load(ETHERNET + 24).map(Address) else {
        return Parsed::Opaque(Reason::Malformed);
    };
    packet.destination = destination;
    let payload = u16::from_be_bytes([h[4], h[5]]) as usize;
    let first = ETHERNET + IPV6_HEADER;
    // A payload length of 0 is a jumbogram (RFC 2675): on a node that is a GSO packet (BIG TCP).
    let end = if payload == 0 {
        frame.len() as usize
    } else {
        first + payload
    };
    if h[0] >> 4 != 6
        || end > frame.len() as usize
        || packet.source.is_v4()
        || packet.destination.is_v4()
    {
        return Parsed::Opaque(Reason::Malformed);
    }
    let mut x = Extensions {
        at: first,
        fragmentable: first,
        protocol: h[6],
        piece: Piece::Whole,
        offset: 0,
        id: 0,
    };
    if is_extension(x.protocol) {
        let reason = extensions(frame, &mut x);
        if let Some(reason) = reason {
            return Parsed::Opaque(reason);
        }
    }
    begin(packet, x.protocol, end);
    packet.at = x.at as u32;
    packet.piece = x.piece;
    packet.offset = x.offset;
    packet.id = x.id;
    if x.protocol == protocol::ICMPV6 && !matches!(x.piece, Piece::Later) {
        let Some(i) = frame.load::<2>(x.at) else {
            return Parsed::Opaque(Reason::Malformed);
        };
        let hop_limit = h[7];
        // Only what a router cannot have passed on (RFC 4861 section 6.1, RFC 3810 section 5): a hop limit of 1 may have been
        // one of 2, but no router passes on what has a source of its link alone (RFC 4291 section 2.5.6).
        let on_link = match i[0] {
            icmp::V6_ROUTER_SOLICITATION
            | icmp::V6_ROUTER_ADVERTISEMENT
            | icmp::V6_NEIGHBOUR_SOLICITATION
            | icmp::V6_NEIGHBOUR_ADVERTISEMENT
            | icmp::V6_REDIRECT => hop_limit == 255,
            icmp::V6_LISTENER_QUERY..=icmp::V6_LISTENER_DONE | icmp::V6_LISTENER_REPORT_V2 => {
                hop_limit == 1 && (is_link_local(&packet.source) || packet.source == Address::NONE)
            }
            _ => false,
        };
        // They are never fragmented (RFC 6980).
        if on_link && matches!(x.piece, Piece::Whole) {
            packet.flags = i[0];
            return match icmp_kind(protocol::ICMPV6, i[0]) {
                Kind::Router => Parsed::Router,
                _ => Parsed::Neighbour,
            };
        }
    }
    transport(frame, packet, x.at, x.fragmentable)
}

#[inline(always)]
const fn is_extension(number: u8) -> bool {
    matches!(
        number,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION
            | protocol::MOBILITY
            | protocol::HIP
            | protocol::SHIM6
    )
}

/// Walks the extension headers. `None` if the transport header, or a later fragment, has been reached.
#[inline(never)]
fn extensions<F: Frame>(frame: &F, x: &mut Extensions) -> Option<Reason> {
    for _ in 0..MAX_EXTENSIONS {
        x.at = frame.forget(x.at as u64) as usize;
        x.protocol = frame.forget(x.protocol.into()) as u8;
        if x.protocol == protocol::FRAGMENT {
            let Some(e) = frame.load::<8>(x.at) else {
                return Some(Reason::Malformed);
            };
            // One datagram is cut up once (RFC 8200 section 4.5); what a second header hides is not looked for.
            if !matches!(x.piece, Piece::Whole) {
                return Some(Reason::Extensions);
            }
            x.at += 8;
            x.protocol = e[0];
            let field = u16::from_be_bytes([e[2], e[3]]);
            // Offset 0 and no more to come: an atomic fragment (RFC 6946) is a whole datagram.
            if field & 0xfff9 != 0 {
                x.fragmentable = x.at;
                x.offset = field & 0xfff8;
                x.id = u32::from_ne_bytes([e[4], e[5], e[6], e[7]]);
                x.piece = Piece::First;
                if x.offset != 0 {
                    x.piece = Piece::Later;
                    return None;
                }
            }
        } else {
            let Some(e) = frame.load::<4>(x.at) else {
                return Some(Reason::Malformed);
            };
            // Segments left: the destination in the header is not where the packet ends.
            if x.protocol == protocol::ROUTING && e[3] != 0 {
                return Some(Reason::Extensions);
            }
            // RFC 4302 counts in words less two, everything else in eight bytes less one.
            x.at += if x.protocol == protocol::AUTHENTICATION {
                8 + e[1] as usize * 4
            } else {
                8 + e[1] as usize * 8
            };
            x.protocol = e[0];
        }
        if !is_extension(x.protocol) {
            return None;
        }
    }
    Some(Reason::Extensions)
}

/// Reads the transport header at `at`. `fragmentable` is where the fragmentable part of the datagram begins.
#[inline(always)]
fn transport<F: Frame>(frame: &F, packet: &mut Packet, at: usize, fragmentable: usize) -> Parsed {
    packet.at = at as u32;
    if matches!(packet.piece, Piece::Later) {
        packet.kind = Kind::Portless;
        return Parsed::Packet;
    }
    // The whole fixed header has to be there, inside the length that the IP header states.
    let header = match packet.protocol {
        protocol::TCP => 20,
        protocol::UDP | protocol::ICMP | protocol::ICMPV6 => 8,
        // With the header of its first chunk.
        protocol::SCTP => 16,
        _ => 0,
    };
    if at + header > packet.end as usize {
        return Parsed::Opaque(Reason::Malformed);
    }
    packet.headers = (at + header - fragmentable) as u16;
    if packet.protocol == protocol::TCP || packet.protocol == protocol::SCTP {
        let Some(t) = frame.load::<14>(at) else {
            return Parsed::Opaque(Reason::Malformed);
        };
        packet.source_port = u16::from_be_bytes([t[0], t[1]]);
        packet.destination_port = u16::from_be_bytes([t[2], t[3]]);
        packet.flags = if packet.protocol == protocol::TCP {
            t[13]
        } else {
            t[12]
        };
    } else if header != 0 {
        let Some(t) = frame.load::<8>(at) else {
            return Parsed::Opaque(Reason::Malformed);
        };
        if packet.protocol == protocol::UDP {
            packet.source_port = u16::from_be_bytes([t[0], t[1]]);
            packet.destination_port = u16::from_be_bytes([t[2], t[3]]);
        } else {
            packet.flags = t[0];
            packet.kind = icmp_kind(packet.protocol, t[0]);
            if matches!(packet.kind, Kind::EchoRequest | Kind::EchoReply) {
                packet.source_port = u16::from_be_bytes([t[4], t[5]]);
                packet.destination_port = packet.source_port;
            }
        }
    }
    Parsed::Packet
}

/// RFC 792, RFC 4443. A redirect quotes as well; a pod may receive it from its router.
#[inline(always)]
pub(crate) const fn icmp_kind(number: u8, message: u8) -> Kind {
    if number == protocol::ICMP {
        match message {
            icmp::ECHO_REQUEST => Kind::EchoRequest,
            icmp::ECHO_REPLY => Kind::EchoReply,
            icmp::UNREACHABLE
            | icmp::SOURCE_QUENCH
            | icmp::REDIRECT
            | icmp::TIME_EXCEEDED
            | icmp::PARAMETER_PROBLEM => Kind::Error,
            icmp::ROUTER_ADVERTISEMENT => Kind::Router,
            _ => Kind::Plain,
        }
    } else {
        match message {
            icmp::V6_ECHO_REQUEST => Kind::EchoRequest,
            icmp::V6_ECHO_REPLY => Kind::EchoReply,
            icmp::V6_UNREACHABLE..=icmp::V6_PARAMETER_PROBLEM => Kind::Error,
            icmp::V6_ROUTER_ADVERTISEMENT | icmp::V6_REDIRECT => Kind::Router,
            _ => Kind::Plain,
        }
    }
}

/// Reads the packet that an ICMP error quotes into `quoted`; false if there is not enough of it (RFC 792 promises its IP
/// header and eight bytes more). Its length says nothing: it is cut off.
#[inline(never)]
pub(crate) fn quote<F: Frame>(frame: &F, error: &Packet, quoted: &mut Packet) -> bool {
    let at = error.at as usize + 8;
    if error.protocol == protocol::ICMP {
        let Some(h) = frame.load::<20>(at) else {
            return false;
        };
        let header = (h[0] & 0x0f) as usize * 4;
        let later = u16::from_be_bytes([h[6], h[7]]) & 0x1fff != 0;
        if h[0] >> 4 != 4 || header < 20 || later {
            return false;
        }
        quoted.source = Address::v4([h[12], h[13], h[14], h[15]]);
        quoted.destination = Address::v4([h[16], h[17], h[18], h[19]]);
        quoted.protocol = h[9];
        quoted.at = (at + header) as u32;
    } else {
        let Some(h) = frame.load::<8>(at) else {
            return false;
        };
        let Some(source) = frame.load(at + 8).map(Address) else {
            return false;
        };
        quoted.source = source;
        let Some(destination) = frame.load(at + 24).map(Address) else {
            return false;
        };
        quoted.destination = destination;
        if h[0] >> 4 != 6 || quoted.source.is_v4() || quoted.destination.is_v4() {
            return false;
        }
        let mut x = Extensions {
            at: at + IPV6_HEADER,
            fragmentable: 0,
            protocol: h[6],
            piece: Piece::Whole,
            offset: 0,
            id: 0,
        };
        if is_extension(x.protocol) {
            let reason = extensions(frame, &mut x);
            if reason.is_some() || matches!(x.piece, Piece::Later) {
                return false;
            }
        }
        quoted.protocol = x.protocol;
        quoted.at = x.at as u32;
    }
    let at = quoted.at as usize;
    quoted.source_port = 0;
    quoted.destination_port = 0;
    quoted.flags = 0;
    quoted.kind = Kind::Plain;
    let ports = matches!(
        quoted.protocol,
        protocol::TCP | protocol::UDP | protocol::SCTP
    );
    let echo = matches!(quoted.protocol, protocol::ICMP | protocol::ICMPV6);
    if !ports && !echo {
        return true;
    }
    let Some(t) = frame.load::<8>(at) else {
        return false;
    };
    if at + 8 > error.end as usize {
        return false;
    }
    if ports {
        quoted.source_port = u16::from_be_bytes([t[0], t[1]]);
        quoted.destination_port = u16::from_be_bytes([t[2], t[3]]);
        return true;
    }
    quoted.kind = icmp_kind(quoted.protocol, t[0]);
    if matches!(quoted.kind, Kind::EchoRequest | Kind::EchoReply) {
        quoted.source_port = u16::from_be_bytes([t[4], t[5]]);
        quoted.destination_port = quoted.source_port;
    }
    // No error is sent about an error (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
    !matches!(quoted.kind, Kind::Error)
}
