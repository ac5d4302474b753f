//! Messages of ctnetlink (include/uapi/linux/netfilter/nfnetlink_conntrack.h), read by hand and leniently: an attribute that
//! a newer kernel adds must not blind the agent.

use netpol_common::{Address, protocol};

use super::{Connection, Tuple};

/// `struct nlmsghdr`
const HEADER: usize = 16;
/// `struct nfgenmsg`
const FAMILY_HEADER: usize = 4;

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW`
const NEW: u16 = 1 << 8;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`
const GET: u16 = NEW | 1;

const NLA_F_NESTED: u16 = 1 << 15;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_ZONE: u16 = 18;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;

const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;

const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTO_ICMP_ID: u16 = 4;
const CTA_PROTO_ICMP_TYPE: u16 = 5;
const CTA_PROTO_ICMP_CODE: u16 = 6;
const CTA_PROTO_ICMPV6_ID: u16 = 7;
const CTA_PROTO_ICMPV6_TYPE: u16 = 8;
const CTA_PROTO_ICMPV6_CODE: u16 = 9;

const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
/// `TCP_CONNTRACK_TIME_WAIT` and `TCP_CONNTRACK_CLOSE`
const TCP_ENDED: std::ops::RangeInclusive<u8> = 7..=8;

/// `IPS_SEEN_REPLY`
const SEEN_REPLY: u32 = 1 << 1;

/// A request without its header.
pub(super) struct Question {
    pub dump: bool,
    body: Vec<u8>,
}

impl Question {
    pub fn encode(&self, sequence: u32) -> Vec<u8> {
        let dump = if self.dump { libc::NLM_F_DUMP } else { 0 };
        let flags = (libc::NLM_F_REQUEST | dump) as u16;
        let mut message = Vec::with_capacity(HEADER + self.body.len());
        message.extend(((HEADER + self.body.len()) as u32).to_ne_bytes());
        message.extend(GET.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.extend(&self.body);
        message
    }
}

/// Asks for everything, of both families.
pub(super) fn dump() -> Question {
    Question {
        dump: true,
        body: vec![0; FAMILY_HEADER],
    }
}

/// Asks for the connection of a packet. The kernel finds it by the tuple of either direction
/// (net/netfilter/nf_conntrack_netlink.c, `ctnetlink_get_conntrack`).
pub(super) fn query(tuple: &Tuple) -> Question {
    let v4 = tuple.source.is_v4();
    let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
    let mut body = vec![family as u8, 0, 0, 0];
    nest(&mut body, CTA_TUPLE_ORIG, |body| {
        nest(body, CTA_TUPLE_IP, |body| {
            let (kinds, from) = if v4 {
                ([CTA_IP_V4_SRC, CTA_IP_V4_DST], 12)
            } else {
                ([CTA_IP_V6_SRC, CTA_IP_V6_DST], 0)
            };
            attribute(body, kinds[0], &tuple.source.0[from..]);
            attribute(body, kinds[1], &tuple.destination.0[from..]);
        });
        nest(body, CTA_TUPLE_PROTO, |body| {
            attribute(body, CTA_PROTO_NUM, &[tuple.protocol]);
            let icmp = match tuple.protocol {
                protocol::ICMP => [CTA_PROTO_ICMP_ID, CTA_PROTO_ICMP_TYPE, CTA_PROTO_ICMP_CODE],
                protocol::ICMPV6 => [
                    CTA_PROTO_ICMPV6_ID,
                    CTA_PROTO_ICMPV6_TYPE,
                    CTA_PROTO_ICMPV6_CODE,
                ],
                _ => {
                    attribute(body, CTA_PROTO_SRC_PORT, &tuple.source_port.to_be_bytes());
                    let port = tuple.destination_port.to_be_bytes();
                    return attribute(body, CTA_PROTO_DST_PORT, &port);
                }
            };
            attribute(body, icmp[0], &tuple.source_port.to_be_bytes());
            attribute(body, icmp[1], &[tuple.icmp_type]);
            attribute(body, icmp[2], &[0]);
        });
    });
    Question { dump: false, body }
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend(((4 + value.len()) as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn nest(body: &mut Vec<u8>, kind: u16, content: impl FnOnce(&mut Vec<u8>)) {
    let start = body.len();
    attribute(body, kind | NLA_F_NESTED, &[]);
    content(body);
    let length = ((body.len() - start) as u16).to_ne_bytes();
    body[start..start + 2].copy_from_slice(&length);
}

pub(super) struct Message {
    pub sequence: u32,
    pub content: Content,
}

pub(super) enum Content {
    Done,
    /// Of `struct nlmsgerr`: 0 or a negative error number.
    Error(i32),
    Connection(Connection),
    /// Something else, or of a protocol that nobody asks for.
    Other,
}

pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message> {
    std::iter::from_fn(move || {
        let length = word(bytes.get(..4)?)? as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let sequence = word(bytes.get(8..12)?)?;
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let content = if kind == libc::NLMSG_DONE as u16 {
            Content::Done
        } else if kind == libc::NLMSG_ERROR as u16 {
            Content::Error(body.get(..4).and_then(word).map_or(0, u32::cast_signed))
        } else if kind == NEW {
            connection(body).map_or(Content::Other, Content::Connection)
        } else {
            Content::Other
        };
        Some(Message { sequence, content })
    })
}

fn word(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// Type and value of each attribute. Numbers in them are in network byte order.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The upper bits are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
        Some((kind & 0x3fff, value))
    })
}

fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

fn port(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_be_bytes)
}

fn connection(body: &[u8]) -> Option<Connection> {
    let body = body.get(FAMILY_HEADER..)?;
    let status = find(body, CTA_STATUS)
        .and_then(|value| value.try_into().ok())
        .map_or(0, u32::from_be_bytes);
    let ended = find(body, CTA_PROTOINFO)
        .and_then(|info| find(info, CTA_PROTOINFO_TCP))
        .and_then(|info| find(info, CTA_PROTOINFO_TCP_STATE))
        .and_then(|state| state.first())
        .is_some_and(|state| TCP_ENDED.contains(state));
    Some(Connection {
        original: tuple(find(body, CTA_TUPLE_ORIG)?)?,
        reply: tuple(find(body, CTA_TUPLE_REPLY)?)?,
        ended,
        answered: status & SEEN_REPLY != 0,
        zone: find(body, CTA_ZONE).and_then(port).unwrap_or(0),
    })
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (ip, layer) = (find(bytes, CTA_TUPLE_IP)?, find(bytes, CTA_TUPLE_PROTO)?);
    let address = |v4, v6| match (find(ip, v4), find(ip, v6)) {
        (Some(a), _) => a.try_into().ok().map(Address::v4),
        (None, Some(a)) => a.try_into().ok().map(Address),
        (None, None) => None,
    };
    let byte = |kind| find(layer, kind).and_then(|value| value.first().copied());
    let number = byte(CTA_PROTO_NUM)?;
    let both = |id| {
        let id = find(layer, id).and_then(port)?;
        Some((id, id))
    };
    let (ports, icmp_type) = match number {
        protocol::ICMP => (both(CTA_PROTO_ICMP_ID)?, byte(CTA_PROTO_ICMP_TYPE)?),
        protocol::ICMPV6 => (both(CTA_PROTO_ICMPV6_ID)?, byte(CTA_PROTO_ICMPV6_TYPE)?),
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            let source = find(layer, CTA_PROTO_SRC_PORT).and_then(port)?;
            let destination = find(layer, CTA_PROTO_DST_PORT).and_then(port)?;
            ((source, destination), 0)
        }
        _ => return None,
    };
    Some(Tuple {
        source: address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
        destination: address(CTA_IP_V4_DST, CTA_IP_V6_DST)?,
        protocol: number,
        source_port: ports.0,
        destination_port: ports.1,
        icmp_type,
    })
}

#[cfg(test)]
mod tests;
