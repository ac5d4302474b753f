//! IPv4 headers: options, and lengths that do not fit.

use netpol_common::Reason;
use netpol_tests::table::Family;

use super::{judged, unreadable};
use crate::{
    stage::Stage,
    wire::{Path, UDP, V4, fresh, tag, udp},
};

fn datagram(path: &Path, header: &V4, port: u16) -> Vec<u8> {
    path.v4(header, UDP, &udp(fresh(), port, &tag()))
}

/// Options that leave the way of a packet alone: it is judged by its ports.
fn harmless() -> Vec<(String, Vec<u8>)> {
    let mut rows: Vec<(String, Vec<u8>)> = (5..=15)
        .map(|words| (format!("IHL {words}"), vec![1; (words - 5) * 4]))
        .collect();
    for (name, options) in [
        ("end of options", &[0, 0, 0, 0][..]),
        ("NOP and end", &[1, 0, 0, 0]),
        ("record route", &[7, 7, 4, 0, 0, 0, 0, 0]),
        ("timestamp", &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("router alert", &[148, 4, 0, 0]),
        ("security", &[130, 4, 0, 0]),
        ("unknown", &[0xd2, 4, 0, 0]),
        (
            "record route, router alert, NOPs",
            &[7, 7, 4, 0, 0, 0, 0, 148, 4, 0, 0, 1],
        ),
    ] {
        rows.push((name.to_owned(), options.to_vec()));
    }
    rows
}

pub fn play(stage: &Stage) {
    for (name, options) in harmless() {
        let header = V4 {
            options,
            ..V4::default()
        };
        judged(stage, &name, Family::V4, |path, port| {
            datagram(path, &header, port)
        });
    }
    for (name, options) in [
        ("loose source route", vec![131, 7, 4, 10, 244, 1, 3, 1]),
        ("strict source route", vec![137, 7, 4, 10, 244, 1, 3, 1]),
        (
            "source route behind NOPs",
            vec![1, 1, 1, 1, 1, 131, 7, 4, 10, 244, 1, 3],
        ),
        (
            "source route behind another option",
            vec![148, 4, 0, 0, 137, 3, 4, 1],
        ),
        ("source route that is full", vec![131, 3, 4, 0]),
    ] {
        let header = V4 {
            options,
            ..V4::default()
        };
        unreadable(stage, name, Family::V4, Reason::Extensions, |path| {
            datagram(path, &header, 53)
        });
    }
    let wrong = |name: &str, header: V4| {
        unreadable(stage, name, Family::V4, Reason::Malformed, |path| {
            datagram(path, &header, 53)
        });
    };
    for (name, options) in [
        ("option of length 0", vec![7, 0, 4, 0]),
        ("option of length 1", vec![7, 1, 4, 0]),
        ("option longer than the header", vec![7, 5, 4, 0]),
        ("option of length 255", vec![7, 255, 4, 0]),
        ("option whose length is cut off", vec![1, 1, 1, 7]),
        ("more options than are looked at", [0xd2, 2].repeat(20)),
    ] {
        let header = V4 {
            options,
            ..V4::default()
        };
        // What lies behind the header must not pass for its options.
        wrong(name, header);
    }
    for words in 0..5 {
        let header = V4 {
            header_words: Some(words),
            ..V4::default()
        };
        wrong(&format!("IHL {words}"), header);
    }
    for version in (0..16).filter(|version| *version != 4) {
        let header = V4 {
            version,
            ..V4::default()
        };
        wrong(&format!("version {version} in an IPv4 frame"), header);
    }
    // The datagram has 20 + 8 + 8 bytes.
    for total in [1, 19, 20, 27, 37, 1500, 65535] {
        let header = V4 {
            total: Some(total),
            ..V4::default()
        };
        wrong(&format!("total length {total}"), header);
    }
    let header = V4 {
        header_words: Some(15),
        ..V4::default()
    };
    wrong("header longer than the packet", header);
    // Bytes behind the end of a packet are nobody's.
    judged(stage, "padding", Family::V4, |path, port| {
        let mut frame = datagram(path, &V4::default(), port);
        frame.extend(udp(1, 53, &[0; 12]));
        frame
    });
}
