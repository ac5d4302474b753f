//! Messages as this kernel (6.18) sends them, from a namespace with a DNAT rule.

use std::net::IpAddr;

use netpol_common::protocol;

use super::*;
use crate::netlink::messages;

/// `10.9.0.1:40001` has opened TCP to `10.96.0.9:80`, which is `10.9.0.2:8080`.
const TRANSLATED: &str = concat!(
    "d4000000000102000700000007050000020000003400018014000180080001000a090001080002000a6000091c0002800500",
    "010006000000060002009c41000006000300005000003400028014000180080001000a090002080002000a0900011c000280",
    "0500010006000000060002001f900000060003009c41000008000300000001ae080008000000000008000c0041ff45c40800",
    "0b0000000001080007000006977f300004802c0001800500010003000000050002000a000000050003000a00000006000400",
    "230000000600050023000000",
);

/// `[fd09::1]:40002` has opened TCP to `[fd09::2]:81`.
const IPV6: &str = concat!(
    "040100000001020007000000070500000a0000004c0001802c00018014000300fd0900000000000000000000000000011400",
    "0400fd0900000000000000000000000000021c0002800500010006000000060002009c42000006000300005100004c000280",
    "2c00018014000300fd09000000000000000000000000000214000400fd0900000000000000000000000000011c0002800500",
    "0100060000000600020000510000060003009c420000080003000000000e080008000000000008000c004f6c51ee08000b00",
    "00000001080007000006977f300004802c0001800500010003000000050002000a000000050003000a000000060004002300",
    "00000600050023000000",
);

/// `10.9.0.1:40003` has sent UDP to `10.9.0.2:53`, and got no answer.
const ONE_WAY: &str = concat!(
    "a4000000000102000700000007050000020000003400018014000180080001000a090001080002000a0900021c0002800500",
    "010011000000060002009c43000006000300003500003400028014000180080001000a090002080002000a0900011c000280",
    "05000100110000000600020000350000060003009c4300000800030000000188080008000000000008000c002ab153f40800",
    "0b0000000001080007000000001d",
);

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    digits
        .map(|pair| {
            let pair = std::str::from_utf8(pair).expect("ASCII");
            u8::from_str_radix(pair, 16).expect("hexadecimal")
        })
        .collect()
}

fn read(hex: &str) -> Connection {
    let bytes = bytes(hex);
    match messages(&bytes).next() {
        Some((NEW, 7, body)) => connection(body).expect("a connection"),
        _ => panic!("no connection"),
    }
}

fn tuple_of(protocol: u8, from: (&str, u16), to: (&str, u16)) -> Tuple {
    let address = |text: &str| text.parse::<IpAddr>().expect("an address").into();
    Tuple {
        source: address(from.0),
        destination: address(to.0),
        protocol,
        source_port: from.1,
        destination_port: to.1,
        icmp_type: 0,
    }
}

#[test]
fn a_translated_connection_names_both_destinations() {
    let (pod, service, backend) = (("10.9.0.1", 40001), ("10.96.0.9", 80), ("10.9.0.2", 8080));
    let expected = Connection {
        original: tuple_of(protocol::TCP, pod, service),
        reply: tuple_of(protocol::TCP, backend, pod),
        ended: false,
        answered: true,
        zone: 0,
    };
    assert_eq!(read(TRANSLATED), expected);
}

#[test]
fn both_families_and_what_has_no_answer() {
    let (one, other) = (("fd09::1", 40002), ("fd09::2", 81));
    let six = read(IPV6);
    assert_eq!(six.original, tuple_of(protocol::TCP, one, other));
    assert_eq!(six.reply, tuple_of(protocol::TCP, other, one));
    let udp = read(ONE_WAY);
    let (one, other) = (("10.9.0.1", 40003), ("10.9.0.2", 53));
    assert_eq!(udp.original, tuple_of(protocol::UDP, one, other));
    assert!(!udp.answered && !udp.ended && six.answered);
}

#[test]
fn a_question_holds_the_tuple_as_an_answer_does() {
    for hex in [TRANSLATED, IPV6, ONE_WAY] {
        let connection = read(hex);
        for wanted in [connection.original, connection.reply] {
            let question = query(&wanted);
            let found = find(&question, FAMILY_HEADER, CTA_TUPLE_ORIG);
            assert_eq!(found.and_then(tuple), Some(wanted));
            assert_eq!(question.len() % 4, 0);
        }
    }
    let echo = Tuple {
        icmp_type: 8,
        source_port: 0x1234,
        destination_port: 0x1234,
        ..tuple_of(protocol::ICMP, ("10.9.0.1", 0), ("10.9.0.2", 0))
    };
    let question = query(&echo);
    let found = find(&question, FAMILY_HEADER, CTA_TUPLE_ORIG);
    assert_eq!(found.and_then(tuple), Some(echo));
}

#[test]
fn a_message_cut_off_anywhere_is_no_connection_and_no_panic() {
    let (whole, known) = (bytes(TRANSLATED), read(TRANSLATED));
    for length in 0..whole.len() {
        assert_eq!(messages(&whole[..length]).count(), 0);
        // Said to be shorter than it is: attributes end early. What is behind the tuples may be missing.
        let mut cut = whole[..length].to_vec();
        if length >= size_of::<libc::nlmsghdr>() {
            cut[..4].copy_from_slice(&(length as u32).to_ne_bytes());
            let read = messages(&cut).find_map(|(_, _, body)| connection(body));
            assert!(
                read.is_none_or(|read| read.original == known.original && read.reply == known.reply),
                "cut off at {length}: {read:?}"
            );
        }
    }
}
