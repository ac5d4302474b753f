//! The parser on every kind of header, whole and cut off, and on arbitrary bytes.

use netpol_common::{
    Address, Direction, Frame, Kind as PacketKind, Packet, Parsed, Piece, Reason, Scratch, icmp,
    parse, protocol, tcp,
};
use proptest::prelude::*;

struct Bytes<'a>(&'a [u8], bool);

impl Frame for Bytes<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }
    fn len(&self) -> u32 {
        self.0.len() as u32
    }
    fn interface(&self) -> u32 {
        1
    }
    fn came_in_by(&self) -> u32 {
        0
    }
    fn of_a_socket(&self) -> bool {
        true
    }
    fn tagged(&self) -> bool {
        self.1
    }
    fn mark(&self) -> u32 {
        0
    }
    fn set_mark(&self, _: u32) {}
}

/// What kind of frame it is, and the packet if it is one.
fn parsed(bytes: &[u8]) -> (Kind, Option<Packet>) {
    let mut packet = Scratch::default().packet;
    match parse(&Bytes(bytes, false), &mut packet) {
        Parsed::Packet => (Kind::Packet, Some(packet)),
        Parsed::Arp => (Kind::Arp, None),
        Parsed::Neighbour => (Kind::Neighbour, None),
        Parsed::Router => (Kind::Router, None),
        Parsed::Opaque(reason) => (Kind::Opaque(reason), None),
    }
}

fn packet(bytes: &[u8]) -> Packet {
    parsed(bytes).1.expect("a packet")
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Packet,
    Arp,
    Neighbour,
    Router,
    Opaque(Reason),
}

fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

const FROM: [u8; 4] = [10, 0, 0, 1];
const TO: [u8; 4] = [10, 0, 0, 2];

/// An IPv4 packet with `words` words of options.
fn v4(number: u8, words: usize, transport: &[u8]) -> Vec<u8> {
    let header = 20 + words * 4;
    let mut ip = vec![0; header];
    ip[0] = 0x40 | (header / 4) as u8;
    ip[2..4].copy_from_slice(&((header + transport.len()) as u16).to_be_bytes());
    ip[8] = 64;
    ip[9] = number;
    ip[12..16].copy_from_slice(&FROM);
    ip[16..20].copy_from_slice(&TO);
    ip.extend(transport);
    ethernet(0x0800, &ip)
}

fn v6_address(last: u8) -> [u8; 16] {
    let mut a = [0; 16];
    a[0] = 0xfd;
    a[15] = last;
    a
}

/// An IPv6 packet with a hop limit and a chain of extension headers (number, body).
fn v6(hops: u8, chain: &[(u8, Vec<u8>)], last: u8, transport: &[u8]) -> Vec<u8> {
    let mut body = vec![];
    for (i, (_, extension)) in chain.iter().enumerate() {
        let mut extension = extension.clone();
        extension[0] = chain.get(i + 1).map_or(last, |next| next.0);
        body.extend(extension);
    }
    body.extend(transport);
    let mut ip = vec![0; 40];
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&(body.len() as u16).to_be_bytes());
    ip[6] = chain.first().map_or(last, |first| first.0);
    ip[7] = hops;
    ip[8..24].copy_from_slice(&v6_address(1));
    ip[24..40].copy_from_slice(&v6_address(2));
    ip.extend(body);
    ethernet(0x86dd, &ip)
}

fn tcp_header(flags: u8) -> Vec<u8> {
    let mut h = vec![0; 20];
    h[0..2].copy_from_slice(&4000u16.to_be_bytes());
    h[2..4].copy_from_slice(&80u16.to_be_bytes());
    h[12] = 0x50;
    h[13] = flags;
    h
}

fn ports(length: usize) -> Vec<u8> {
    let mut h = vec![0; length];
    h[0..2].copy_from_slice(&4000u16.to_be_bytes());
    h[2..4].copy_from_slice(&53u16.to_be_bytes());
    h
}

#[test]
fn ipv4_with_any_number_of_options() {
    for words in 0..=10 {
        let packet = packet(&v4(protocol::TCP, words, &tcp_header(tcp::SYN)));
        assert_eq!(
            (packet.source, packet.destination),
            (Address::v4(FROM), Address::v4(TO))
        );
        assert_eq!((packet.source_port, packet.destination_port), (4000, 80));
        assert!(packet.opens());
    }
}

#[test]
fn a_header_length_below_twenty_bytes_is_malformed() {
    for words in 0..5u8 {
        let mut frame = v4(protocol::TCP, 0, &tcp_header(tcp::SYN));
        frame[14] = 0x40 | words;
        assert_eq!(parsed(&frame).0, Kind::Opaque(Reason::Malformed));
    }
}

#[test]
fn cut_off_at_every_byte_is_malformed() {
    let frames = [
        v4(protocol::TCP, 3, &tcp_header(tcp::SYN)),
        v4(protocol::UDP, 0, &ports(8)),
        v4(protocol::SCTP, 0, &ports(16)),
        v4(
            protocol::ICMP,
            0,
            &[icmp::ECHO_REQUEST, 0, 0, 0, 0, 7, 0, 1],
        ),
        v6(
            64,
            &[(protocol::DESTINATION, vec![0; 8])],
            protocol::TCP,
            &tcp_header(tcp::SYN),
        ),
    ];
    for frame in frames {
        assert_eq!(parsed(&frame).0, Kind::Packet, "whole");
        for length in 0..frame.len() {
            let kind = parsed(&frame[..length]).0;
            assert_eq!(
                kind,
                Kind::Opaque(Reason::Malformed),
                "cut to {length} bytes"
            );
        }
    }
}

#[test]
fn ports_beyond_the_length_that_the_ip_header_states_are_not_ports() {
    // The ports lie in the padding of the frame: the receiver's stack never sees them.
    let mut frame = v4(protocol::UDP, 0, &ports(8));
    frame[16..18].copy_from_slice(&22u16.to_be_bytes());
    assert_eq!(parsed(&frame).0, Kind::Opaque(Reason::Malformed));
}

#[test]
fn a_total_length_of_zero_is_a_packet_of_more_than_64_kib() {
    let mut frame = v4(protocol::TCP, 0, &tcp_header(tcp::ACK));
    frame[16..18].copy_from_slice(&0u16.to_be_bytes());
    assert_eq!(parsed(&frame).0, Kind::Packet);
}

#[test]
fn first_fragments_have_ports_and_later_ones_have_not() {
    let mut first = v4(protocol::UDP, 0, &ports(8));
    first[20] = 0x20;
    assert_eq!(parsed(&first).0, Kind::Packet);
    let mut later = v4(protocol::UDP, 0, &ports(8));
    later[21] = 1;
    let portless = |frame: &[u8]| {
        let later = packet(frame);
        assert_eq!(
            (later.kind, later.piece, later.offset),
            (PacketKind::Portless, Piece::Later, 8)
        );
    };
    portless(&later);

    let fragment = |offset: u16, more: u16| {
        let mut header = vec![0; 8];
        header[2..4].copy_from_slice(&(offset << 3 | more).to_be_bytes());
        v6(
            64,
            &[(protocol::FRAGMENT, header)],
            protocol::UDP,
            &ports(8),
        )
    };
    assert_eq!(parsed(&fragment(0, 1)).0, Kind::Packet);
    portless(&fragment(1, 0));
}

#[test]
fn ipv6_chains_up_to_the_bound() {
    let hop = |n| vec![(protocol::DESTINATION, vec![0; 8]); n];
    for n in 0..=8 {
        let packet = packet(&v6(64, &hop(n), protocol::UDP, &ports(8)));
        assert_eq!(packet.destination_port, 53, "{n} extension headers");
    }
    for n in 9..12 {
        let (kind, _) = parsed(&v6(64, &hop(n), protocol::UDP, &ports(8)));
        assert_eq!(
            kind,
            Kind::Opaque(Reason::Extensions),
            "{n} extension headers"
        );
    }
}

#[test]
fn every_extension_header_is_as_long_as_it_says() {
    // Length bytes of 1: 16 bytes in units of eight, 12 in the words of the authentication header.
    for (number, length) in [
        (protocol::HOP_BY_HOP, 16),
        (protocol::ROUTING, 16),
        (protocol::DESTINATION, 16),
        (protocol::MOBILITY, 16),
        (protocol::HIP, 16),
        (protocol::SHIM6, 16),
        (protocol::AUTHENTICATION, 12),
    ] {
        let mut header = vec![0; length];
        header[1] = 1;
        let packet = packet(&v6(64, &[(number, header)], protocol::UDP, &ports(8)));
        assert_eq!(packet.destination_port, 53, "header {number}");
    }
}

#[test]
fn a_route_that_goes_on_has_another_destination() {
    let mut header = vec![0; 8];
    header[3] = 1;
    let frame = v6(64, &[(protocol::ROUTING, header)], protocol::UDP, &ports(8));
    assert_eq!(parsed(&frame).0, Kind::Opaque(Reason::Extensions));
}

#[test]
fn a_mapped_address_on_the_wire_is_not_an_ipv4_address() {
    for at in [22, 38] {
        let mut frame = v6(64, &[], protocol::UDP, &ports(8));
        frame[at..at + 16].copy_from_slice(&Address::v4(FROM).0);
        assert_eq!(parsed(&frame).0, Kind::Opaque(Reason::Malformed));
    }
}

#[test]
fn discovery_passes_only_where_no_router_can_have_passed_it_on() {
    let frame = |kind: u8, hops| v6(hops, &[], protocol::ICMPV6, &[kind, 0, 0, 0, 0, 0, 0, 0]);
    let message = |kind, hops| parsed(&frame(kind, hops)).0;
    // From an address that no router passes on.
    let near = |kind, hops, source: [u8; 2]| {
        let mut frame = frame(kind, hops);
        frame[22..38].fill(0);
        frame[22..24].copy_from_slice(&source);
        parsed(&frame).0
    };
    for kind in [133, 135, 136] {
        assert_eq!(message(kind, 255), Kind::Neighbour, "type {kind}");
        assert_eq!(message(kind, 254), Kind::Packet, "type {kind}");
    }
    for kind in [130, 131, 132, 143] {
        for source in [[0xfe, 0x80], [0xfe, 0xbf], [0, 0]] {
            assert_eq!(near(kind, 1, source), Kind::Neighbour, "type {kind}");
            assert_eq!(near(kind, 2, source), Kind::Packet, "type {kind}");
        }
        // It may have had a hop limit of 2.
        assert_eq!(near(kind, 1, [0xfe, 0xc0]), Kind::Packet, "type {kind}");
        assert_eq!(message(kind, 1), Kind::Packet, "type {kind}");
    }
    for kind in [134, 137] {
        assert_eq!(message(kind, 255), Kind::Router, "type {kind}");
    }
}

#[test]
fn frames_that_are_not_ip() {
    assert_eq!(parsed(&ethernet(0x0806, &[0; 28])).0, Kind::Arp);
    for kind in [0x8100, 0x88a8, 0x8847, 0x8863, 0x8864, 0x0026, 0x9999] {
        assert_eq!(
            parsed(&ethernet(kind, &[0; 60])).0,
            Kind::Opaque(Reason::EtherType)
        );
    }
    // The tag is in the metadata, the frame looks like an ordinary one.
    let frame = v4(protocol::TCP, 0, &tcp_header(tcp::SYN));
    assert!(matches!(
        parse(&Bytes(&frame, true), &mut Scratch::default().packet),
        Parsed::Opaque(Reason::EtherType)
    ));
}

#[test]
fn an_echo_and_its_reply_are_one_flow_and_two_pingers_are_two() {
    let echo = |kind: u8, identifier: u16| {
        let [hi, lo] = identifier.to_be_bytes();
        packet(&v4(protocol::ICMP, 0, &[kind, 0, 0, 0, hi, lo, 0, 1]))
    };
    let asks = echo(icmp::ECHO_REQUEST, 7);
    let answers = echo(icmp::ECHO_REPLY, 7);
    assert_eq!(
        (asks.kind, answers.kind),
        (PacketKind::EchoRequest, PacketKind::EchoReply)
    );
    // The peer's address differs here (both frames go FROM -> TO), everything else is equal.
    let key = |p: &Packet, d| {
        let k = p.flow_key(1, d);
        (k.local_port, k.remote_port)
    };
    assert_eq!(
        key(&asks, Direction::Egress),
        key(&answers, Direction::Ingress)
    );
    assert_eq!(
        key(&asks, Direction::Ingress),
        key(&answers, Direction::Egress)
    );
    assert_ne!(
        key(&asks, Direction::Egress),
        key(&asks, Direction::Ingress)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Whatever a pod sends: an answer, and addresses that stood in the frame.
    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in prop::sample::select(vec![0x0800u16, 0x86dd, 0x0806, 0x8100])) {
        let frame = ethernet(kind, &bytes);
        if let Some(packet) = parsed(&frame).1 {
            let address = |a: &Address| if a.is_v4() { a.0[12..].to_vec() } else { a.0.to_vec() };
            for a in [&packet.source, &packet.destination] {
                let a = address(a);
                prop_assert!(frame.windows(a.len()).any(|w| w == a));
            }
        }
    }

    /// A valid packet with some bytes changed: an answer, and never a port that is not where the headers say.
    #[test]
    fn damaged_packets(changes in prop::collection::vec((0usize..120, any::<u8>()), 0..6), n in 0usize..10) {
        let chain = vec![(protocol::DESTINATION, vec![0; 8]); n];
        for mut frame in [v4(protocol::TCP, n, &tcp_header(tcp::ACK)), v6(64, &chain, protocol::TCP, &tcp_header(tcp::ACK))] {
            for (at, value) in &changes {
                if let Some(byte) = frame.get_mut(*at) {
                    *byte = *value;
                }
            }
            if let Some(packet) = parsed(&frame).1.filter(|p| p.protocol == protocol::TCP) {
                let port = packet.destination_port.to_be_bytes();
                prop_assert!(frame.windows(2).any(|w| w == port));
            }
        }
    }
}

/// An IPv4 packet with these options, filled up to whole words.
fn with_options(options: &[u8]) -> Vec<u8> {
    let words = options.len().div_ceil(4);
    let mut frame = v4(protocol::TCP, words, &tcp_header(tcp::SYN));
    frame[34..34 + options.len()].copy_from_slice(options);
    frame
}

#[test]
fn a_source_route_is_found_wherever_it_stands() {
    for route in [131, 137] {
        for before in [
            &[][..],
            &[1],
            &[1, 1, 1, 1, 1],
            &[7, 7, 4, 0, 0, 0, 0],
            &[148, 4, 0, 0, 1],
        ] {
            let options = [before, &[route, 7, 4, 192, 0, 2, 1]].concat();
            let kind = parsed(&with_options(&options)).0;
            assert_eq!(kind, Kind::Opaque(Reason::Extensions), "{options:?}");
        }
        // Behind the end of the options it is padding, within another option it is data.
        for harmless in [
            &[0, route, 7, 4, 192, 0, 2, 1][..],
            &[7, 11, 4, route, 7, 4, 192, 0, 2, 1, 0],
        ] {
            assert_eq!(
                parsed(&with_options(harmless)).0,
                Kind::Packet,
                "{harmless:?}"
            );
        }
    }
}

#[test]
fn options_that_do_not_fit_are_malformed() {
    for options in [[7, 0, 0, 0], [7, 1, 0, 0], [7, 5, 0, 0], [1, 1, 1, 148]] {
        let kind = parsed(&with_options(&options)).0;
        assert_eq!(kind, Kind::Opaque(Reason::Malformed), "{options:?}");
    }
}
