//! Small packets for tests and for questions to the judge. Checksums are left 0: nothing here looks at them.

use std::net::IpAddr;

use netpol_common::{chunk, icmp, protocol, tcp};

/// What a packet carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Payload {
    /// A TCP segment with these flags (see [`netpol_common::tcp`]).
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Flags.
        flags: u8,
    },
    /// A UDP datagram.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// An SCTP packet.
    Sctp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// An ICMP (or ICMPv6) echo.
    Echo {
        /// The identifier.
        identifier: u16,
        /// Whether it is the reply.
        reply: bool,
    },
    /// A bare header of another protocol, by number.
    Other(u8),
}

impl Payload {
    /// The first segment of a TCP connection.
    pub const fn syn(source: u16, destination: u16) -> Self {
        Self::Tcp {
            source,
            destination,
            flags: tcp::SYN,
        }
    }

    /// The protocol number, and the bytes of the transport header.
    fn encode(self, v4: bool) -> (u8, Vec<u8>) {
        let ports = |source: u16, destination: u16, length: usize| {
            let mut bytes = [source.to_be_bytes(), destination.to_be_bytes()].concat();
            bytes.resize(length, 0);
            bytes
        };
        match self {
            Self::Tcp {
                source,
                destination,
                flags,
            } => {
                let mut bytes = ports(source, destination, 20);
                bytes[12] = 5 << 4;
                bytes[13] = flags;
                (protocol::TCP, bytes)
            }
            Self::Udp {
                source,
                destination,
            } => {
                let mut bytes = ports(source, destination, 8);
                bytes[5] = 8;
                (protocol::UDP, bytes)
            }
            Self::Sctp {
                source,
                destination,
            } => {
                let mut bytes = ports(source, destination, 16);
                bytes[12] = chunk::INIT;
                bytes[15] = 4;
                (protocol::SCTP, bytes)
            }
            Self::Echo { identifier, reply } => {
                let (number, kind) = match (v4, reply) {
                    (true, false) => (protocol::ICMP, icmp::ECHO_REQUEST),
                    (true, true) => (protocol::ICMP, icmp::ECHO_REPLY),
                    (false, false) => (protocol::ICMPV6, icmp::V6_ECHO_REQUEST),
                    (false, true) => (protocol::ICMPV6, icmp::V6_ECHO_REPLY),
                };
                let [high, low] = identifier.to_be_bytes();
                (number, vec![kind, 0, 0, 0, high, low, 0, 1])
            }
            Self::Other(number) => (number, Vec::new()),
        }
    }
}

/// An Ethernet frame from one address to another; `None` if they are of different families.
pub fn frame(source: IpAddr, destination: IpAddr, payload: Payload) -> Option<Vec<u8>> {
    let mut bytes = vec![0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let (number, transport) = payload.encode(true);
            let total = (20 + transport.len()) as u16;
            bytes.extend([0x08, 0x00, 0x45, 0]);
            bytes.extend(total.to_be_bytes());
            bytes.extend([0, 0, 0, 0, 64, number, 0, 0]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            bytes.extend(transport);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let (number, transport) = payload.encode(false);
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend((transport.len() as u16).to_be_bytes());
            bytes.extend([number, 64]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            bytes.extend(transport);
        }
        _ => return None,
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::memory::SliceFrame;
    use netpol_common::{Kind, Packet, Parsed, Scratch, parse};

    fn parsed(source: IpAddr, destination: IpAddr, payload: Payload) -> Packet {
        let bytes = frame(source, destination, payload).expect("one family");
        let frame = SliceFrame {
            bytes: &bytes,
            ..SliceFrame::default()
        };
        let mut packet = Scratch::default().packet;
        assert_eq!(parse(&frame, &mut packet), Parsed::Packet, "{payload:?}");
        packet
    }

    #[test]
    fn what_is_built_is_what_is_parsed() {
        let four: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        let six: [IpAddr; 2] = [
            [0xfd00, 0, 0, 0, 0, 0, 0, 1].into(),
            [0xfd00, 0, 0, 0, 0, 0, 0, 2].into(),
        ];
        for [source, destination] in [four, six] {
            let ports = |payload, number| {
                let packet = parsed(source, destination, payload);
                assert_eq!(
                    (packet.source, packet.destination),
                    (source.into(), destination.into())
                );
                assert_eq!((packet.source_port, packet.destination_port), (1000, 80));
                assert_eq!(packet.protocol, number);
            };
            ports(Payload::syn(1000, 80), protocol::TCP);
            ports(
                Payload::Udp {
                    source: 1000,
                    destination: 80,
                },
                protocol::UDP,
            );
            ports(
                Payload::Sctp {
                    source: 1000,
                    destination: 80,
                },
                protocol::SCTP,
            );
            let ping = |reply| {
                parsed(
                    source,
                    destination,
                    Payload::Echo {
                        identifier: 5,
                        reply,
                    },
                )
                .kind
            };
            assert_eq!(
                (ping(false), ping(true)),
                (Kind::EchoRequest, Kind::EchoReply)
            );
            assert!(parsed(source, destination, Payload::syn(1, 2)).opens());
        }
        assert_eq!(frame(four[0], six[1], Payload::syn(1, 2)), None);
    }
}
