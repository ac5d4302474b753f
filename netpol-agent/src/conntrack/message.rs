//! Messages of ctnetlink (include/uapi/linux/netfilter/nfnetlink_conntrack.h). Numbers in them are in network byte order.

use netpol_common::{Address, protocol};

use super::{Connection, Tuple};
use crate::netlink::{attribute, find, nest};

/// `struct nfgenmsg`
const FAMILY_HEADER: usize = 4;

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW`
pub(super) const NEW: u16 = 1 << 8;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`
pub(super) const GET: u16 = NEW | 1;

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

/// Asks for everything, of both families.
pub(super) fn all() -> Vec<u8> {
    vec![0; FAMILY_HEADER]
}

/// Asks for the connection of a packet. The kernel finds it by the tuple of either direction
/// (net/netfilter/nf_conntrack_netlink.c, `ctnetlink_get_conntrack`).
pub(super) fn query(tuple: &Tuple) -> Vec<u8> {
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
    body
}

fn port(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_be_bytes)
}

/// A connection; `None` if it is of a protocol that nobody asks for.
pub(super) fn connection(body: &[u8]) -> Option<Connection> {
    let body = body.get(FAMILY_HEADER..)?;
    let find = |bytes, kind| find(bytes, 0, kind);
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
    let find = |bytes, kind| find(bytes, 0, kind);
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
