//! A new pod says where its addresses live, as the bridge plugin makes it do: neighbours may remember the MAC address of
//! another pod that had them before.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{error::LabError, frame, station::Station};

/// Sends a gratuitous ARP request or an unsolicited neighbour advertisement for each address, from this device.
pub(super) fn announce(
    station: &Station,
    device: u32,
    addresses: &[IpAddr],
) -> Result<(), LabError> {
    let mac = station.configure(move |netlink| async move { netlink.mac(device).await })?;
    let frames: Vec<Vec<u8>> = addresses
        .iter()
        .map(|address| match address {
            IpAddr::V4(address) => gratuitous_arp(mac, *address),
            IpAddr::V6(address) => unsolicited_advertisement(mac, *address),
        })
        .collect();
    let sent = station.worker.run(move || async move {
        let socket = frame::socket(device)?;
        frames.iter().try_for_each(|bytes| {
            socket
                .send_to(bytes, &frame::link_address(device))
                .map(|_| ())
        })
    });
    sent.map_err(|error| LabError::io(format!("announce {}", station.namespace.name()), error))
}

/// RFC 5944, 4.6: a request for one's own address.
fn gratuitous_arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &mac, &[0x08, 0x06]].concat();
    frame.extend([0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// RFC 4861, 7.2.6: to all nodes, with the override flag and the link-layer address.
fn unsolicited_advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    let everybody = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac);
    let checksum = icmpv6_checksum(address, everybody, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = [&[0x33, 0x33, 0, 0, 0, 1][..], &mac, &[0x86, 0xdd]].concat();
    frame.extend([0x60, 0, 0, 0, 0, message.len() as u8, 58, 255]);
    frame.extend(address.octets());
    frame.extend(everybody.octets());
    frame.extend(message);
    frame
}

/// RFC 4443, 2.3.
fn icmpv6_checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let mut bytes = [&from.octets()[..], &to.octets()].concat();
    bytes.extend((message.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, 58]);
    bytes.extend(message);
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u32::from(*byte)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
