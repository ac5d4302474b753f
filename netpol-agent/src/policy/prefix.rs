//! Address prefixes in the form of the tables.

use ipnet::IpNet;
use netpol_common::Address;

/// A prefix of a sixteen-byte address. Prefixes inside another one follow it in the order of this type.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Prefix {
    /// The first address.
    pub(super) address: Address,
    /// Length in bits of the sixteen-byte form.
    pub(super) bits: u32,
}

impl Prefix {
    /// All of IPv4. Without an entry of its own a prefix like `::/0` would answer for it.
    pub(super) const IPV4: Self = Self {
        address: Address::v4([0; 4]),
        bits: Address::V4_PREFIX,
    };

    /// The first `bits` bits of an address.
    pub(super) fn of(address: Address, bits: u32) -> Self {
        Self {
            address: Address((u128::from_be_bytes(address.0) & mask(bits)).to_be_bytes()),
            bits,
        }
    }

    pub(super) fn is_v4(&self) -> bool {
        self.bits >= Address::V4_PREFIX && self.address.is_v4()
    }

    /// The last address.
    pub(super) fn last(&self) -> Address {
        Address((u128::from_be_bytes(self.address.0) | !mask(self.bits)).to_be_bytes())
    }

    /// Whether an address is inside. An IPv6 prefix never holds an IPv4 address.
    pub(super) fn holds(&self, address: &Address) -> bool {
        self.is_v4() == address.is_v4() && Self::of(*address, self.bits).address == self.address
    }

    /// Whether all of `other` is inside.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.bits <= other.bits
            && self.is_v4() == other.is_v4()
            && Self::of(other.address, self.bits).address == self.address
    }
}

impl From<IpNet> for Prefix {
    fn from(net: IpNet) -> Self {
        let bits = u32::from(net.prefix_len());
        match net {
            IpNet::V4(net) => Self::of(net.addr().into(), bits + Address::V4_PREFIX),
            IpNet::V6(net) => Self::of(net.addr().into(), bits),
        }
    }
}

const fn mask(bits: u32) -> u128 {
    if bits == 0 {
        0
    } else {
        u128::MAX << (128 - bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse::<IpNet>().expect("a prefix").into()
    }

    #[test]
    fn host_bits_are_masked() {
        assert_eq!(prefix("10.1.2.3/8"), prefix("10.0.0.0/8"));
    }

    #[test]
    fn families_do_not_mix() {
        let four: Address = Address::v4([10, 0, 0, 1]);
        assert!(!prefix("::/0").holds(&four));
        assert!(!prefix("::/0").covers(&Prefix::IPV4));
        assert!(Prefix::IPV4.holds(&four));
    }

    #[test]
    fn what_is_inside_follows() {
        let outer = prefix("10.0.0.0/8");
        let inner = prefix("10.255.255.255/32");
        assert!(outer < inner && outer.covers(&inner) && !inner.covers(&outer));
        assert_eq!(outer.last(), inner.address);
    }
}
