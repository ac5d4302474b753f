//! What a pod's interface answers to besides the addresses that the cluster gave it.

use std::net::{IpAddr, Ipv6Addr};

use super::namespaces::Inside;

/// A hardware address.
pub type Mac = [u8; 6];

/// The hardware address and the link-local address of a pod's interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Identity {
    /// The hardware address, if it is known.
    pub mac: Option<Mac>,
    /// The link-local IPv6 address, if it is known.
    pub link_local: Option<Ipv6Addr>,
}

impl Identity {
    /// Of an interface inside a namespace.
    ///
    /// An address counts from the moment it is there, also while the kernel looks for a duplicate: the pod has to speak with it.
    /// Until it is there, the one that the kernel will make counts.
    pub(super) fn of(inside: &Inside, index: u32) -> Self {
        let mac = inside.macs.get(&index).copied();
        let usual = mac.map(from_mac);
        let mut there = inside
            .addresses
            .iter()
            .filter(|(_, at)| *at == index)
            .filter_map(|(address, _)| match address {
                IpAddr::V6(six) if six.is_unicast_link_local() => Some(*six),
                _ => None,
            });
        let first = there.next();
        let link_local = match usual {
            Some(usual) if first == Some(usual) || there.any(|six| six == usual) => Some(usual),
            usual => first.or(usual),
        };
        Self { mac, link_local }
    }
}

/// The link-local address with the interface identifier that is made from a hardware address (RFC 4291 appendix A).
fn from_mac(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let mut address = [0; 16];
    address[..2].copy_from_slice(&[0xfe, 0x80]);
    address[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    address.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [0x02, 0x42, 0xac, 0x11, 0x00, 0x02];
    const USUAL: &str = "fe80::42:acff:fe11:2";

    fn link_local(addresses: &[(&str, u32)]) -> Option<String> {
        let inside = Inside {
            addresses: addresses
                .iter()
                .map(|(text, at)| (text.parse().expect("an address"), *at))
                .collect(),
            macs: [(2, MAC)].into(),
        };
        let identity = Identity::of(&inside, 2);
        assert_eq!(identity.mac, Some(MAC));
        identity.link_local.map(|six| six.to_string())
    }

    #[test]
    fn the_address_that_the_kernel_will_make_counts_until_there_is_one() {
        assert_eq!(
            link_local(&[("10.0.0.1", 2), ("fe80::9", 1)]).as_deref(),
            Some(USUAL)
        );
        assert_eq!(link_local(&[("fe80::7", 2)]).as_deref(), Some("fe80::7"));
        assert_eq!(
            link_local(&[("fe80::7", 2), (USUAL, 2)]).as_deref(),
            Some(USUAL)
        );
        assert_eq!(Identity::of(&Inside::default(), 2), Identity::default());
    }
}
