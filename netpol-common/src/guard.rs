//! Who is who: a pod speaks only for itself, and hears only what is meant for it.
//!
//! For every endpoint with [`Endpoint::GUARD`], isolated or not: rules about addresses mean nothing where a pod may choose
//! its own.

use crate::{
    Address, Direction, Endpoint, Frame, Packet, Reason,
    packet::{icmp, is_group, is_mac_of},
    parse::{ETHERNET, START, ether_type},
};

/// Whether a frame that a pod sends has the pod's hardware address: a bridge learns from it where to send the answers.
#[inline(always)]
pub(crate) fn hardware(endpoint: &Endpoint, head: &[u8; START]) -> bool {
    let mac = [head[6], head[7], head[8], head[9], head[10], head[11]];
    !endpoint.guarded() || is_mac_of(endpoint, mac)
}

/// Whether the addresses of a packet are those of the pod that sends or receives it.
#[inline(always)]
pub(crate) fn addresses(
    endpoint: &Endpoint,
    packet: &Packet,
    head: &[u8; START],
    direction: Direction,
) -> Option<Reason> {
    if !endpoint.guarded() {
        return None;
    }
    match direction {
        Direction::Egress => {
            // What a pod sends to itself never leaves it. To all neighbours at once, in the name of one of them, it would get
            // past the rules that name that one.
            let honest = endpoint.owns(&packet.source)
                && !endpoint.owns(&packet.destination)
                && (head[0] & 1 == 0 || is_for_many(&packet.destination));
            (!honest).then_some(Reason::Spoofed)
        }
        Direction::Ingress => {
            let meant = endpoint.owns(&packet.destination)
                || is_group(&packet.destination)
                || (head[0] & 1 != 0 && is_for_many(&packet.destination));
            (!meant).then_some(Reason::Astray)
        }
    }
}

/// Whether an address may belong to more than one: a group, or the broadcast address of a subnet that is a whole number of bytes
/// long.
#[inline(always)]
fn is_for_many(address: &Address) -> bool {
    is_group(address) || (address.is_v4() && address.0[15] == 255)
}

/// Whether a frame that could not be parsed may be to its receiver what a pod must not send.
///
/// What comes behind the place where the parser has given up on an IP packet, the kernel may read all the same: a packet for a
/// tunnel, or one with somebody else's address. And of VLAN 0 it takes the tag off, and goes on as if there had been none
/// (`__netif_receive_skb_core` in net/core/dev.c). Other frames are only what they look like.
#[inline(always)]
pub(crate) fn disguised<F: Frame>(frame: &F) -> bool {
    frame.tagged()
        || matches!(
            frame.load::<2>(ETHERNET - 2).map(u16::from_be_bytes),
            Some(ether_type::IPV4 | ether_type::IPV6)
        )
}

/// Whether an ARP message speaks for the pod that sends it (RFC 826; RFC 5227 for the probe without an address).
#[inline(always)]
pub(crate) fn arp<F: Frame>(frame: &F, endpoint: &Endpoint) -> bool {
    let Some(m) = frame.load::<20>(ETHERNET) else {
        return false;
    };
    let sender = Address::v4([m[14], m[15], m[16], m[17]]);
    let ethernet_and_ipv4 = u32::from_be_bytes([m[0], m[1], m[2], m[3]]) == 0x0001_0800
        && u16::from_be_bytes([m[4], m[5]]) == 0x0604;
    ethernet_and_ipv4
        && is_mac_of(endpoint, [m[8], m[9], m[10], m[11], m[12], m[13]])
        && (sender == endpoint.ipv4 || sender == Address::v4([0; 4]))
}

/// How many options of a message of neighbour discovery are looked at. Linux sends one or two.
const MAX_OPTIONS: usize = 8;

/// Whether a message of neighbour discovery or multicast listener discovery speaks for the pod that sends it.
#[inline(always)]
pub(crate) fn neighbour<F: Frame>(frame: &F, endpoint: &Endpoint, message: &Packet) -> bool {
    // Duplicate address detection and the first listener reports have no address yet (RFC 4862 section 5.4.2).
    let own = endpoint.owns(&message.source) || message.source == Address::NONE;
    if !own {
        return false;
    }
    let at = message.at as usize;
    let mut option = at
        + match message.flags {
            icmp::V6_ROUTER_SOLICITATION => 8,
            icmp::V6_NEIGHBOUR_SOLICITATION | icmp::V6_NEIGHBOUR_ADVERTISEMENT => 24,
            _ => return true,
        };
    if message.flags == icmp::V6_NEIGHBOUR_ADVERTISEMENT {
        let Some(target) = frame.load(at + 8).map(Address) else {
            return false;
        };
        if !endpoint.owns(&target) {
            return false;
        }
    }
    // Each hardware address in it, the source's (1) or the target's (2), is the pod's (RFC 4861 section 4.6.1).
    for _ in 0..MAX_OPTIONS {
        option = frame.forget(option as u64) as usize;
        if option >= message.end as usize {
            return true;
        }
        let Some(o) = frame.load::<8>(option) else {
            return false;
        };
        if matches!(o[0], 1 | 2) && !is_mac_of(endpoint, [o[2], o[3], o[4], o[5], o[6], o[7]]) {
            return false;
        }
        if o[1] == 0 {
            return false;
        }
        option += o[1] as usize * 8;
    }
    false
}
