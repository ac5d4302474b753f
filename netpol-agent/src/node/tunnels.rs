//! The envelopes that a device of the node opens: what comes out of one has passed no rule.

use std::collections::BTreeSet;

use netpol_common::TunnelKey;

use super::rtnetlink::Link;
use crate::netlink::attributes;

const UDP: u16 = 17;
const IPIP: u16 = 4;
const IPV6: u16 = 41;
const GRE: u16 = 47;
const MPLS: u16 = 137;

/// Attributes of `IFLA_INFO_DATA` (include/uapi/linux/if_link.h, if_tunnel.h).
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_GENEVE_PORT: u16 = 5;
const IFLA_BAREUDP_PORT: u16 = 1;
const IFLA_IPTUN_PROTO: u16 = 9;

/// The envelopes that the devices of the node open.
///
/// Only devices that are up have a socket or are found by the tunnel protocols (`ip_tunnel_lookup` in net/ipv4/ip_tunnel.c).
/// WireGuard and IPsec open nothing without a key.
pub(super) fn of(links: &[Link]) -> BTreeSet<TunnelKey> {
    links
        .iter()
        .filter(|link| link.up)
        .flat_map(|link| opened(&link.kind, &link.data))
        .collect()
}

fn opened(kind: &str, data: &[u8]) -> Vec<TunnelKey> {
    let protocols = |numbers: &[u16]| {
        let key = |&protocol| TunnelKey { protocol, port: 0 };
        numbers.iter().map(key).collect::<Vec<_>>()
    };
    match kind {
        "vxlan" => port(data, IFLA_VXLAN_PORT),
        "geneve" => port(data, IFLA_GENEVE_PORT),
        "bareudp" => port(data, IFLA_BAREUDP_PORT),
        "gre" | "gretap" | "ip6gre" | "ip6gretap" | "erspan" | "ip6erspan" => protocols(&[GRE]),
        "ipip" | "sit" | "ip6tnl" => match (attribute(data, IFLA_IPTUN_PROTO), kind) {
            (Some(&[inner]), _) if inner != 0 => protocols(&[inner.into()]),
            (Some(_), _) => protocols(&[IPIP, IPV6, MPLS]),
            (None, "ipip") => protocols(&[IPIP]),
            (None, "sit") => protocols(&[IPV6]),
            (None, _) => protocols(&[IPIP, IPV6]),
        },
        _ => Vec::new(),
    }
}

fn attribute(data: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(data, 0)
        .find(|&(kind, _)| kind == wanted)
        .map(|(_, value)| value)
}

/// A UDP port in network byte order.
fn port(data: &[u8], wanted: u16) -> Vec<TunnelKey> {
    let port = attribute(data, wanted).and_then(|value| value.try_into().ok());
    port.map(|port| TunnelKey {
        protocol: UDP,
        port: u16::from_be_bytes(port),
    })
    .into_iter()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(kind: &str, data: &[u8]) -> Link {
        Link {
            up: true,
            kind: kind.into(),
            data: data.into(),
            ..Link::default()
        }
    }

    fn told(links: &[Link]) -> Vec<(u16, u16)> {
        of(links).iter().map(|t| (t.protocol, t.port)).collect()
    }

    #[test]
    fn ports_are_big_endian() {
        // IFLA_VXLAN_ID (1), then the port: 8472 is 0x2118.
        let vxlan = [8, 0, 1, 0, 1, 0, 0, 0, 6, 0, 15, 0, 0x21, 0x18, 0, 0];
        let geneve = [6, 0, 5, 0, 0x17, 0xc1, 0, 0];
        assert_eq!(
            told(&[link("vxlan", &vxlan), link("geneve", &geneve)]),
            [(17, 6081), (17, 8472)]
        );
        assert_eq!(told(&[link("vxlan", &[])]), []);
    }

    #[test]
    fn protocols_are_those_that_the_device_takes() {
        let proto = |number| [5, 0, 9, 0, number, 0, 0, 0];
        assert_eq!(told(&[link("ipip", &proto(4))]), [(4, 0)]);
        assert_eq!(told(&[link("sit", &proto(41))]), [(41, 0)]);
        assert_eq!(
            told(&[link("ip6tnl", &proto(0))]),
            [(4, 0), (41, 0), (137, 0)]
        );
        assert_eq!(told(&[link("ip6tnl", &[])]), [(4, 0), (41, 0)]);
        assert_eq!(told(&[link("ip6gretap", &[])]), [(47, 0)]);
        assert_eq!(told(&[link("bridge", &[]), link("wireguard", &[])]), []);
    }

    #[test]
    fn a_device_that_is_down_opens_nothing() {
        let mut gre = link("gre", &[]);
        gre.up = false;
        assert_eq!(told(&[gre]), []);
    }
}
