//! Frames, byte by byte: what is wrong with one of them is wrong on purpose.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU32, Ordering},
};

/// EtherTypes.
pub const IPV4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;
pub const IPV6: u16 = 0x86dd;

/// IP protocols, and IPv6 extension headers.
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

/// The hardware address of everybody.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// TCP flags.
pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;

/// What no other frame of these tests contains.
pub type Tag = [u8; 8];

const MAGIC: [u8; 4] = *b"\xa5npl";

fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A new tag.
pub fn tag() -> Tag {
    let [a, b, c, d] = MAGIC;
    let [w, x, y, z] = number().to_be_bytes();
    [a, b, c, d, w, x, y, z]
}

/// The last tag in a frame.
fn tag_of(frame: &[u8]) -> Option<&[u8]> {
    let at = frame
        .windows(8)
        .rposition(|window| window.starts_with(&MAGIC))?;
    frame.get(at..at + 8)
}

/// A source port, or an identification, that nothing else has used for long.
///
/// Never below 20,000.
pub fn fresh() -> u16 {
    (number() % 40_000) as u16 + 20_000
}

/// Whether a frame that was seen is one that was sent: by its tag, or else by everything that a router leaves as it is.
pub fn same(sent: &[u8], seen: &[u8]) -> bool {
    if let Some(tag) = tag_of(sent) {
        return seen.windows(tag.len()).any(|window| window == tag);
    }
    let lasting = |frame: &[u8]| {
        let mut rest = frame.get(12..).unwrap_or_default().to_vec();
        let changes: &[usize] = match rest.get(..2) {
            // Time to live and checksum.
            Some([0x08, 0x00]) => &[10, 12, 13],
            // Hop limit.
            Some([0x86, 0xdd]) => &[9],
            _ => &[],
        };
        for at in changes {
            if let Some(byte) = rest.get_mut(*at) {
                *byte = 0;
            }
        }
        rest
    };
    lasting(sent) == lasting(seen)
}

/// Who sends to whom, on the wire and in IP.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// Of the next hop.
    pub to_mac: [u8; 6],
    pub from_mac: [u8; 6],
    pub from: IpAddr,
    pub to: IpAddr,
}

/// The fields of an IPv4 header that a row may want otherwise.
#[derive(Clone, Debug)]
pub struct V4 {
    pub options: Vec<u8>,
    /// `None`: as long as the options.
    pub header_words: Option<u8>,
    pub version: u8,
    /// `None`: as long as it is.
    pub total: Option<u16>,
    pub id: u16,
    /// Flags and offset.
    pub fragment: u16,
}

impl Default for V4 {
    fn default() -> Self {
        Self {
            options: Vec::new(),
            header_words: None,
            version: 4,
            total: None,
            id: 0,
            fragment: 0,
        }
    }
}

/// More of a datagram follows.
pub const MORE: u16 = 0x2000;

impl Path {
    /// The way back.
    pub const fn back(self) -> Self {
        Self {
            to_mac: self.from_mac,
            from_mac: self.to_mac,
            from: self.to,
            to: self.from,
        }
    }

    /// A frame of any kind.
    pub fn frame(&self, ether_type: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = [self.to_mac, self.from_mac].concat();
        frame.extend(ether_type.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// An IP packet with nothing special in front of its transport header.
    pub fn ip(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match self.from {
            IpAddr::V4(_) => self.v4(&V4::default(), protocol, payload),
            IpAddr::V6(_) => self.v6(protocol, 64, payload),
        }
    }

    /// An IPv4 packet without its Ethernet header.
    pub fn packet4(&self, header: &V4, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let (IpAddr::V4(from), IpAddr::V4(to)) = (self.from, self.to) else {
            panic!("{} to {} is not IPv4", self.from, self.to);
        };
        let length = 20 + header.options.len();
        let words = header.header_words.unwrap_or((length / 4) as u8);
        let total = header.total.unwrap_or((length + payload.len()) as u16);
        let mut packet = vec![header.version << 4 | words, 0];
        packet.extend(total.to_be_bytes());
        packet.extend(header.id.to_be_bytes());
        packet.extend(header.fragment.to_be_bytes());
        packet.extend([64, protocol, 0, 0]);
        packet.extend(from.octets());
        packet.extend(to.octets());
        packet.extend(&header.options);
        let sum = checksum(&[&packet]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(payload);
        packet
    }

    /// An IPv4 packet.
    pub fn v4(&self, header: &V4, protocol: u8, payload: &[u8]) -> Vec<u8> {
        self.frame(IPV4, &self.packet4(header, protocol, payload))
    }

    /// An IPv6 packet without its Ethernet header.
    pub fn packet6(&self, next: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
        let (IpAddr::V6(from), IpAddr::V6(to)) = (self.from, self.to) else {
            panic!("{} to {} is not IPv6", self.from, self.to);
        };
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((payload.len() as u16).to_be_bytes());
        packet.extend([next, hop_limit]);
        packet.extend(from.octets());
        packet.extend(to.octets());
        packet.extend(payload);
        packet
    }

    /// An IPv6 packet.
    pub fn v6(&self, next: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
        self.frame(IPV6, &self.packet6(next, hop_limit, payload))
    }

    /// A tagged UDP datagram from a fresh port.
    pub fn udp(&self, port: u16) -> Vec<u8> {
        self.ip(UDP, &udp(fresh(), port, &tag()))
    }

    /// A UDP datagram with its checksum, without which nobody takes it in IPv6 (RFC 8200 section 8.1).
    pub fn summed(&self, mut datagram: Vec<u8>) -> Vec<u8> {
        let mut pseudo = match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
            (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
            _ => panic!("{} to {}", self.from, self.to),
        };
        pseudo.extend((datagram.len() as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, UDP]);
        let sum = checksum(&[&pseudo, &datagram]);
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
        self.ip(UDP, &datagram)
    }

    /// The same in an ICMPv6 message of this type, or ICMPv4, with its checksum.
    pub fn icmp(&self, kind: u8, code: u8, body: &[u8], hop_limit: u8) -> Vec<u8> {
        let mut message = vec![kind, code, 0, 0];
        message.extend(body);
        match (self.from, self.to) {
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let length = (message.len() as u32).to_be_bytes();
                let pseudo = [
                    &from.octets()[..],
                    &to.octets(),
                    &length,
                    &[0, 0, 0, ICMPV6],
                ];
                let sum = checksum(&[&pseudo.concat(), &message]);
                message[2..4].copy_from_slice(&sum.to_be_bytes());
                self.v6(ICMPV6, hop_limit, &message)
            }
            _ => {
                let sum = checksum(&[&message]);
                message[2..4].copy_from_slice(&sum.to_be_bytes());
                self.ip(ICMP, &message)
            }
        }
    }

    /// The first bytes of an IP packet, as an ICMP error quotes it.
    pub fn quote(&self, protocol: u8, transport: &[u8]) -> Vec<u8> {
        self.ip(protocol, transport).split_off(14)
    }
}

/// The Internet checksum (RFC 1071). Each part but the last has an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u32 = 0;
    for word in parts.iter().flat_map(|part| part.chunks(2)) {
        let low = word.get(1).copied().unwrap_or_default();
        sum += u32::from(u16::from_be_bytes([word[0], low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A UDP header and what it carries.
pub fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    bytes.extend((8 + payload.len() as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    bytes
}

/// A TCP header and what it carries.
pub fn tcp(source: u16, destination: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    bytes.extend([
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        1,
        5 << 4,
        flags,
        0xff,
        0xff,
        0,
        0,
        0,
        0,
    ]);
    bytes.extend(payload);
    bytes
}

/// An SCTP header with the header of an INIT chunk, and what it carries.
pub fn sctp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    bytes.extend([0; 8]);
    bytes.extend([1, 0, 0, 4 + payload.len() as u8]);
    bytes.extend(payload);
    bytes
}

/// An IPv6 extension header of eight bytes (authentication: twelve) that does nothing, but for the next header in it.
fn extension(kind: u8, next: u8) -> Vec<u8> {
    match kind {
        // Its length counts words of four bytes, less two.
        AUTHENTICATION => vec![next, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1],
        // Type 0, no segments left.
        ROUTING => vec![next, 0, 0, 0, 0, 0, 0, 0],
        // Not cut up at all (RFC 6946).
        FRAGMENT => vec![next, 0, 0, 0, 0, 0, 0, 7],
        // One option of padding.
        _ => vec![next, 0, 1, 4, 0, 0, 0, 0],
    }
}

/// A chain of extension headers before a transport header: the first next header, and the bytes.
pub fn chain(kinds: &[u8], last: u8, payload: &[u8]) -> (u8, Vec<u8>) {
    let mut bytes = Vec::new();
    for (nth, kind) in kinds.iter().enumerate() {
        bytes.extend(extension(
            *kind,
            kinds.get(nth + 1).copied().unwrap_or(last),
        ));
    }
    bytes.extend(payload);
    (kinds.first().copied().unwrap_or(last), bytes)
}

/// An IPv6 fragment header. `offset` in bytes, a multiple of eight.
pub fn fragment_header(next: u8, offset: u16, more: bool, id: u32) -> Vec<u8> {
    let mut bytes = vec![next, 0];
    bytes.extend((offset | u16::from(more)).to_be_bytes());
    bytes.extend(id.to_be_bytes());
    bytes
}
