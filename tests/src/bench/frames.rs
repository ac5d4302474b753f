//! The packets of the benchmark.

use std::net::IpAddr;

use netpol_agent::packet_builder::{Payload, frame};
use netpol_common::{icmp, protocol, tcp};

/// The port that a client sends from.
pub const CLIENT_PORT: u16 = 40_000;
/// Ethernet header.
const ETHERNET: usize = 14;
/// IPv4 header without options.
const V4_HEADER: usize = 20;
/// IPv6 header.
const V6_HEADER: usize = 40;

/// One end of a conversation.
pub type End = (IpAddr, u16);

/// A TCP segment.
pub fn segment(from: End, to: End, flags: u8) -> Vec<u8> {
    let payload = Payload::Tcp {
        source: from.1,
        destination: to.1,
        flags,
    };
    frame(from.0, to.0, payload).expect("both ends are of one family")
}

/// The segments of a handshake: who opens it sends the first and the last.
pub fn handshake(from: End, to: End) -> [Vec<u8>; 3] {
    [
        segment(from, to, tcp::SYN),
        segment(to, from, tcp::SYN | tcp::ACK),
        segment(from, to, tcp::ACK),
    ]
}

/// A TCP segment of an IPv4 datagram in fragments: the first of them, or a later one.
pub fn fragment(from: End, to: End, later: bool) -> Vec<u8> {
    const MORE: u16 = 0x2000;
    let mut bytes = segment(from, to, tcp::ACK);
    let field = if later { 4 } else { MORE };
    bytes[18..20].copy_from_slice(&[0x12, 0x34]);
    bytes[20..22].copy_from_slice(&u16::to_be_bytes(field));
    bytes
}

/// "Unreachable" from a router, about a packet of which this is the beginning.
pub fn unreachable(router: IpAddr, about: &[u8], quoted: End) -> Vec<u8> {
    let v4 = router.is_ipv4();
    let number = if v4 { protocol::ICMP } else { protocol::ICMPV6 };
    let mut bytes =
        frame(router, quoted.0, Payload::Other(number)).expect("both are of one family");
    let kind = if v4 {
        icmp::UNREACHABLE
    } else {
        icmp::V6_UNREACHABLE
    };
    bytes.extend([kind, 1, 0, 0, 0, 0, 0, 0]);
    bytes.extend(&about[ETHERNET..]);
    let header = if v4 { V4_HEADER } else { V6_HEADER };
    let payload = bytes.len() - ETHERNET - header;
    let (at, length) = if v4 {
        (16, payload + V4_HEADER)
    } else {
        (18, payload)
    };
    bytes[at..at + 2].copy_from_slice(&(length as u16).to_be_bytes());
    bytes
}
