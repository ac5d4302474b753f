//! Port sets.

use std::collections::BTreeMap;

use netpol_common::{ALL_PORTS, PortKey, PortSetId};

use super::{fingerprint::Fingerprint, object::Protocol};

/// Protocols and ports that a rule allows.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum PortSet {
    /// Every port of every protocol, and every protocol without ports.
    All,
    /// Ranges `(protocol, first, last)`: sorted, and neither overlapping nor adjacent. 0 to 65535 is the whole protocol.
    Ranges(Vec<(u8, u16, u16)>),
}

impl Default for PortSet {
    fn default() -> Self {
        Self::NONE
    }
}

impl PortSet {
    /// Nothing.
    pub(super) const NONE: Self = Self::Ranges(Vec::new());

    /// `first` to `last` of a protocol, both included.
    pub(super) fn range(protocol: Protocol, first: u16, last: u16) -> Self {
        Self::Ranges(vec![(protocol.number(), first, last)])
    }

    /// Every port of a protocol.
    pub(super) fn protocol(protocol: Protocol) -> Self {
        Self::range(protocol, 0, u16::MAX)
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Ranges(ranges) if ranges.is_empty())
    }

    /// Everything that one of `sets` holds.
    pub(super) fn union<'a>(sets: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut all = Vec::new();
        for set in sets {
            match set {
                Self::All => return Self::All,
                Self::Ranges(ranges) => all.extend_from_slice(ranges),
            }
        }
        all.sort_unstable();
        let mut merged: Vec<(u8, u16, u16)> = Vec::with_capacity(all.len());
        for (protocol, first, last) in all {
            match merged.last_mut() {
                Some((p, _, end)) if *p == protocol && u32::from(first) <= u32::from(*end) + 1 => {
                    *end = last.max(*end);
                }
                _ => merged.push((protocol, first, last)),
            }
        }
        Self::Ranges(merged)
    }

    /// Whether this holds everything that `other` holds.
    pub(super) fn covers(&self, other: &Self) -> bool {
        Self::union([self, other]) == *self
    }

    /// Feeds the canonical form.
    pub(super) fn describe(&self, to: &mut Fingerprint) {
        match self {
            Self::All => {
                to.byte(1);
            }
            Self::Ranges(ranges) => {
                to.byte(0).number(ranges.len() as u128);
                for (protocol, first, last) in ranges {
                    to.byte(*protocol)
                        .number((*first).into())
                        .number((*last).into());
                }
            }
        }
    }

    /// Its number, from its content.
    pub(super) fn number(&self) -> PortSetId {
        if *self == Self::All {
            return ALL_PORTS;
        }
        let mut fingerprint = Fingerprint::new("port set");
        self.describe(&mut fingerprint);
        fingerprint.id()
    }

    /// The entries of the port table: the fewest prefixes that cover each range exactly.
    pub(super) fn prefixes(&self, id: PortSetId) -> Vec<(PortKey, u32)> {
        let Self::Ranges(ranges) = self else {
            return Vec::new();
        };
        let mut out = Vec::new();
        for &(protocol, first, last) in ranges {
            let (mut at, last) = (u32::from(first), u32::from(last));
            while at <= last {
                // As large as the alignment of `at` and the rest of the range allow.
                let mut size = if at == 0 {
                    1 << 16
                } else {
                    1 << at.trailing_zeros()
                };
                while at + size - 1 > last {
                    size >>= 1;
                }
                let key = PortKey::new(id, protocol, at as u16);
                out.push((key, PortKey::FULL_BITS - u32::ilog2(size)));
                at += size;
            }
        }
        out
    }
}

/// Names of container ports with their numbers, for each protocol.
pub(super) type PortNames = BTreeMap<(Protocol, String), u16>;

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the prefixes hold a port, as the trie finds it.
    fn holds(prefixes: &[(PortKey, u32)], protocol: u8, port: u16) -> bool {
        prefixes.iter().any(|(key, bits)| {
            let free = PortKey::FULL_BITS - bits;
            key.protocol == protocol
                && u32::from(u16::from_be_bytes(key.port)) >> free == u32::from(port) >> free
        })
    }

    #[test]
    fn both_ends_of_a_range_are_in_and_their_neighbours_are_not() {
        for (first, last) in [
            (80, 80),
            (1, 65535),
            (1000, 2000),
            (32768, 65535),
            (1, 2),
            (1023, 1024),
        ] {
            let prefixes = PortSet::range(Protocol::Tcp, first, last).prefixes(2);
            assert!(prefixes.len() <= 30);
            for port in 0..=u16::MAX {
                assert_eq!(
                    holds(&prefixes, 6, port),
                    (first..=last).contains(&port),
                    "port {port} of {first}-{last}"
                );
            }
            assert!(!holds(&prefixes, 17, first));
        }
    }

    #[test]
    fn a_whole_protocol_is_one_prefix() {
        let prefixes = PortSet::protocol(Protocol::Udp).prefixes(2);
        assert_eq!(prefixes, [(PortKey::new(2, 17, 0), PortKey::PROTOCOL_BITS)]);
    }

    #[test]
    fn overlapping_and_adjacent_ranges_are_one() {
        let set = PortSet::union([
            &PortSet::range(Protocol::Tcp, 80, 90),
            &PortSet::range(Protocol::Tcp, 91, 95),
            &PortSet::range(Protocol::Tcp, 85, 88),
            &PortSet::range(Protocol::Udp, 96, 96),
        ]);
        assert_eq!(set, PortSet::Ranges(vec![(6, 80, 95), (17, 96, 96)]));
    }

    #[test]
    fn all_is_more_than_every_range() {
        let ranges = PortSet::protocol(Protocol::Tcp);
        assert!(PortSet::All.covers(&ranges));
        assert!(!ranges.covers(&PortSet::All));
    }
}
