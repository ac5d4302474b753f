//! From a [`Shot`] to bytes. Checksums are left 0: neither home looks at them.

use std::net::IpAddr;

use netpol_common::protocol;

use super::{
    shot::{Body, Content, Hook, Mac, Piece, Quote, Shot},
    world::Who,
};

const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

impl Shot {
    /// The packet as its hook sees it: without an Ethernet header where there is none.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = match &self.content {
            Content::Ip {
                v6,
                sender,
                receiver,
                body,
                piece,
                headers,
                hop_limit,
            } => {
                let who = (*sender, *receiver);
                let mut payload = body.encode(*v6, *piece);
                payload.extend(&self.tail);
                let packet = ip(
                    *v6,
                    who,
                    (body.number(*v6), payload),
                    *piece,
                    headers,
                    *hop_limit,
                );
                self.framed(if *v6 { IPV6 } else { IPV4 }, &packet)
            }
            Content::Arp { speaker, hardware } => {
                let (mac, who) = speaker;
                let mut message = vec![0, *hardware, 8, 0, 6, 4, 0, 1];
                message.extend(mac.octets());
                message.extend(octets(who.address(false)));
                message.extend([0; 10]);
                self.framed(ARP, &message)
            }
            Content::Type { ether_type, sender } => {
                let who = (*sender, Who::Friend);
                let udp = Body::Udp { ports: (4000, 53) };
                let payload = udp.encode(false, Piece::Whole);
                let mut tag = vec![0, 0];
                tag.extend(IPV4.to_be_bytes());
                tag.extend(ip(
                    false,
                    who,
                    (protocol::UDP, payload),
                    Piece::Whole,
                    &[],
                    64,
                ));
                self.framed(*ether_type, &tag)
            }
        };
        for &(at, value) in &self.damage {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if let Some(length) = self.cut {
            bytes.truncate(length);
        }
        if self.hook == Hook::LeavesBare {
            bytes.drain(..ETHERNET.min(bytes.len()));
        }
        pad(&mut bytes, ETHERNET + 1);
        let shortest = shortest(&bytes);
        pad(&mut bytes, shortest);
        bytes
    }

    fn framed(&self, ether_type: u16, payload: &[u8]) -> Vec<u8> {
        let (from, to) = self.macs;
        let mut frame = [to.octets(), from.octets()].concat();
        frame.extend(ether_type.to_be_bytes());
        frame.extend(payload);
        frame
    }
}

fn pad(bytes: &mut Vec<u8>, least: usize) {
    bytes.resize(bytes.len().max(least), 0);
}

/// `BPF_PROG_TEST_RUN` takes no frame without a byte behind the Ethernet header, and none whose EtherType says IP without
/// the whole IP header (net/bpf/test_run.c `bpf_prog_test_run_skb`).
fn shortest(bytes: &[u8]) -> usize {
    match bytes.get(12..14) {
        Some([0x08, 0x00]) => 34,
        Some([0x86, 0xdd]) => 54,
        _ => ETHERNET + 1,
    }
}

impl Mac {
    fn octets(self) -> [u8; 6] {
        match self {
            Self::Of(pod) => pod.mac(),
            Self::Router => [2, 0, 0, 0, 0, 0xfe],
            Self::Group => [0xff; 6],
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

impl Body {
    fn number(&self, v6: bool) -> u8 {
        match self {
            Self::Tcp { .. } => protocol::TCP,
            Self::Udp { .. } => protocol::UDP,
            Self::Sctp { .. } => protocol::SCTP,
            Self::Other(number) => *number,
            _ if v6 => protocol::ICMPV6,
            _ => protocol::ICMP,
        }
    }

    /// The transport header, and what of it this part of the datagram has.
    fn encode(&self, v6: bool, piece: Piece) -> Vec<u8> {
        let ports = |(from, to): (u16, u16), length: usize| {
            let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
            bytes.resize(length, 0);
            bytes
        };
        let mut bytes = match self {
            Self::Tcp { ports: both, flags } => {
                let mut bytes = ports(*both, 20);
                bytes[12] = 5 << 4;
                bytes[13] = *flags;
                bytes
            }
            Self::Udp { ports: both } => ports(*both, 8),
            Self::Sctp { ports: both, chunk } => {
                let mut bytes = ports(*both, 16);
                bytes[12] = *chunk;
                bytes[15] = 4;
                bytes
            }
            Self::Echo { identifier, reply } => {
                let kind = match (v6, reply) {
                    (false, false) => 8,
                    (false, true) => 0,
                    (true, false) => 128,
                    (true, true) => 129,
                };
                let [high, low] = identifier.to_be_bytes();
                vec![kind, 0, 0, 0, high, low, 0, 1]
            }
            Self::Quotes { kind, quote } => {
                let mut bytes = vec![*kind, 0, 0, 0, 0, 0, 0, 0];
                bytes.extend(quote.encode(v6));
                bytes
            }
            Self::Icmp {
                kind,
                target,
                option,
            } => {
                let mut bytes = vec![*kind, 0, 0, 0, 0, 0, 0, 0];
                // Solicitations of routers have no target (RFC 4861 section 4.1).
                if *kind != netpol_common::icmp::V6_ROUTER_SOLICITATION {
                    bytes.extend(octets(target.address(true)));
                }
                if let Some((number, mac)) = option {
                    bytes.extend([*number, 1]);
                    bytes.extend(mac.octets());
                }
                bytes
            }
            Self::Other(_) => vec![0; 8],
        };
        match piece {
            Piece::Whole | Piece::First { .. } => {}
            Piece::Later { .. } => bytes = vec![0xa5; 16],
            Piece::Tiny { length, .. } => bytes.truncate(length),
        }
        bytes
    }
}

impl Quote {
    fn encode(&self, v6: bool) -> Vec<u8> {
        let payload = self.body.encode(v6, self.piece);
        let who = (self.sender, self.receiver);
        let transport = (self.body.number(v6), payload);
        let mut packet = ip(v6, who, transport, self.piece, &self.headers, 64);
        packet.truncate(self.kept);
        packet
    }
}

/// An IP packet.
fn ip(
    v6: bool,
    (sender, receiver): (Who, Who),
    (number, payload): (u8, Vec<u8>),
    piece: Piece,
    headers: &[u8],
    hop_limit: u8,
) -> Vec<u8> {
    let addresses = [octets(sender.address(v6)), octets(receiver.address(v6))].concat();
    let (id, offset, more) = match piece {
        Piece::Whole => (0, 0, false),
        Piece::First { id } | Piece::Tiny { id, .. } => (id, 0, true),
        Piece::Later { id, offset } => (id, offset, false),
    };
    let mut packet;
    if v6 {
        let mut chain = headers.to_vec();
        if piece != Piece::Whole {
            chain.push(protocol::FRAGMENT);
        }
        chain.push(number);
        let mut rest = Vec::new();
        for pair in chain.windows(2) {
            let whole = piece == Piece::Whole;
            rest.extend(extension(
                pair[0],
                pair[1],
                if whole { (0, false) } else { (offset, more) },
                id,
            ));
        }
        rest.extend(payload);
        packet = vec![0x60, 0, 0, 0];
        packet.extend((rest.len() as u16).to_be_bytes());
        packet.extend([chain[0], hop_limit]);
        packet.extend(addresses);
        packet.extend(rest);
    } else {
        let options: Vec<u8> = headers.iter().flat_map(|kind| option(*kind)).collect();
        let header = 20 + options.len();
        packet = vec![0x40 | (header / 4) as u8, 0];
        packet.extend(((header + payload.len()) as u16).to_be_bytes());
        packet.extend(id.to_be_bytes());
        packet.extend((offset >> 3 | if more { 0x2000 } else { 0 }).to_be_bytes());
        packet.extend([hop_limit, number, 0, 0]);
        packet.extend(addresses);
        packet.extend(options);
        packet.extend(payload);
    }
    packet
}

/// An IPv4 option in four bytes. 0 stands for the end, 1 for nothing at all, four times.
fn option(kind: u8) -> [u8; 4] {
    match kind {
        0 => [0; 4],
        1 => [1; 4],
        other => [other, 4, 0, 0],
    }
}

/// An IPv6 extension header: eight bytes, or twelve of an authentication header.
fn extension(kind: u8, next: u8, (offset, more): (u16, bool), id: u16) -> Vec<u8> {
    match kind {
        protocol::AUTHENTICATION => vec![next, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1],
        protocol::FRAGMENT => {
            let mut bytes = vec![next, 0];
            bytes.extend((offset | u16::from(more)).to_be_bytes());
            bytes.extend(u32::from(id).to_be_bytes());
            bytes
        }
        // The fourth byte of a routing header counts the segments that are left: none.
        protocol::ROUTING => vec![next, 0, 4, 0, 0, 0, 0, 0],
        _ => vec![next, 0, 1, 4, 0, 0, 0, 0],
    }
}
