//! Just enough SCTP (RFC 9260) to knock and be answered: INIT, INIT ACK and ABORT as raw packets, with the real CRC32c.
//! The kernels we test on may have no SCTP sockets; a firewall cannot tell the difference.

/// The IP protocol number.
pub const PROTOCOL: i32 = 132;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const STATE_COOKIE: u16 = 7;

/// One packet with one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Source port.
    pub from: u16,
    /// Destination port.
    pub to: u16,
    /// Verification tag: the initiate tag that the receiver once sent, 0 on an INIT.
    pub tag: u32,
    /// Its first chunk.
    pub chunk: Chunk,
}

/// The chunks that matter here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Chunk {
    /// Opens an association; carries the sender's initiate tag.
    Init(u32),
    /// Answers an INIT; carries the sender's initiate tag.
    InitAck(u32),
    /// Refuses.
    Abort,
    /// Anything else.
    Other(u8),
}

impl Packet {
    /// The packet as it goes into an IP packet.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(44);
        bytes.extend(self.from.to_be_bytes());
        bytes.extend(self.to.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        match self.chunk {
            Chunk::Init(tag) => handshake(&mut bytes, INIT, tag, &[]),
            // A cookie is mandatory; nobody will bring it back.
            Chunk::InitAck(tag) => handshake(&mut bytes, INIT_ACK, tag, b"npl!"),
            Chunk::Abort => bytes.extend([ABORT, 0, 0, 4]),
            Chunk::Other(kind) => bytes.extend([kind, 0, 0, 4]),
        }
        // RFC 9260, appendix A: the CRC32c goes in with its least significant byte first.
        let checksum = crc32c(&bytes).to_le_bytes();
        bytes[8..12].copy_from_slice(&checksum);
        bytes
    }

    /// Reads a packet; `None` when it is too short or its checksum is wrong.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (header, chunk) = bytes.split_at_checked(12)?;
        let mut zeroed = bytes.to_vec();
        zeroed[8..12].fill(0);
        if crc32c(&zeroed).to_le_bytes() != header[8..12] {
            return None;
        }
        let tag = chunk.get(4..8).and_then(|tag| tag.try_into().ok());
        let tag = tag.map(u32::from_be_bytes);
        Some(Self {
            from: u16::from_be_bytes([header[0], header[1]]),
            to: u16::from_be_bytes([header[2], header[3]]),
            tag: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            chunk: match *chunk.first()? {
                INIT => Chunk::Init(tag?),
                INIT_ACK => Chunk::InitAck(tag?),
                ABORT => Chunk::Abort,
                other => Chunk::Other(other),
            },
        })
    }

    /// What a server says to this packet: INIT ACK when it listens, ABORT when it does not, nothing to anything but INIT.
    pub const fn answer(&self, listening: bool) -> Option<Self> {
        let Chunk::Init(tag) = self.chunk else {
            return None;
        };
        Some(Self {
            from: self.to,
            to: self.from,
            tag,
            chunk: if listening {
                Chunk::InitAck(!tag)
            } else {
                Chunk::Abort
            },
        })
    }
}

fn handshake(bytes: &mut Vec<u8>, kind: u8, tag: u32, cookie: &[u8]) {
    let parameter = if cookie.is_empty() {
        0
    } else {
        4 + cookie.len()
    };
    bytes.extend([kind, 0]);
    // Sizes here are a few dozen bytes.
    bytes.extend((20 + parameter as u16).to_be_bytes());
    bytes.extend(tag.to_be_bytes());
    bytes.extend(65536_u32.to_be_bytes());
    bytes.extend([0, 1, 0, 1]);
    bytes.extend(tag.to_be_bytes());
    if parameter > 0 {
        bytes.extend(STATE_COOKIE.to_be_bytes());
        bytes.extend((parameter as u16).to_be_bytes());
        bytes.extend(cookie);
    }
}

/// CRC32c (Castagnoli), bit by bit: packets are few and small.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_of_the_check_string() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn packets_round_trip() {
        for chunk in [Chunk::Init(7), Chunk::InitAck(9), Chunk::Abort] {
            let packet = Packet {
                from: 1,
                to: 2,
                tag: 3,
                chunk,
            };
            let mut bytes = packet.encode();
            assert_eq!(bytes.len() % 4, 0);
            assert_eq!(Packet::decode(&bytes), Some(packet));
            bytes[0] ^= 1;
            assert_eq!(Packet::decode(&bytes), None);
        }
    }
}
