//! Addresses of both families in one type.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 or IPv6 address: sixteen bytes in network order, IPv4 as `::ffff:a.b.c.d`.
///
/// An IPv6 packet that carries a mapped address on the wire never gets this far: [`crate::parse`] refuses it (RFC 4038
/// section 4.2), so the two families cannot be confused.
///
/// Aligned, because the compiler of eBPF programs moves bytes one by one where it knows of no alignment.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Address(pub [u8; 16]);

impl Address {
    /// No address: `::`. Marks the family that an endpoint lacks.
    pub const NONE: Self = Self([0; 16]);

    /// `::1`, which has no place on a wire.
    pub const LOOPBACK: Self = Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    /// The IPv4 address of these four bytes (network order).
    #[inline(always)]
    pub const fn v4(a: [u8; 4]) -> Self {
        Self([
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3],
        ])
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let a = &self.0;
        u64::from_ne_bytes([a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]]) == 0
            && u32::from_ne_bytes([a[8], a[9], a[10], a[11]])
                == u32::from_ne_bytes([0, 0, 0xff, 0xff])
    }

    /// The ordinary form of this address.
    pub fn to_ip(self) -> IpAddr {
        let six = Ipv6Addr::from(self.0);
        six.to_ipv4_mapped().map_or(IpAddr::V6(six), IpAddr::V4)
    }

    /// The number of leading bits that an IPv4 prefix gains by the mapped form.
    pub const V4_PREFIX: u32 = 96;
}

impl From<Ipv4Addr> for Address {
    fn from(a: Ipv4Addr) -> Self {
        Self::v4(a.octets())
    }
}
impl From<Ipv6Addr> for Address {
    fn from(a: Ipv6Addr) -> Self {
        Self(a.octets())
    }
}
impl From<IpAddr> for Address {
    fn from(a: IpAddr) -> Self {
        match a {
            IpAddr::V4(a) => a.into(),
            IpAddr::V6(a) => a.into(),
        }
    }
}
impl core::fmt::Display for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.to_ip().fmt(f)
    }
}
