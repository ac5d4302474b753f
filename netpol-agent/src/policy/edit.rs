//! What the index hands to the dataplane: edits of tables, in phases.
//!
//! A change of objects becomes a [`Change`]. Its `add` edits are written first; they never alter the answer that any
//! packet gets, except that an address may move to the class that its new labels give it. Its `flip` then moves the
//! endpoints to their new rulesets, one atomic element each, and the dataplane raises the epoch. What nobody refers to
//! any more is taken away later by [`crate::policy::Index::settle`], once no packet can still be on its way through the old
//! state.

use netpol_common::{Address, Isolation, Peer, PortKey, PortSetId, RuleKey};

use super::object::ObjectKey;

/// One element of one table. Writing an edit twice is harmless.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Edit {
    /// A prefix of ports of a port set: present or not.
    Port {
        /// Port set, protocol and first port of the prefix.
        key: PortKey,
        /// Prefix length in bits: [`PortKey::PROTOCOL_BITS`] to [`PortKey::FULL_BITS`].
        bits: u32,
        /// Whether it is to be there.
        present: bool,
    },
    /// What a class may use under a ruleset; [`netpol_common::NO_PORTS`] in the row of a class other than
    /// [`netpol_common::NO_CLASS`] is a row that is present and allows nothing; `None` removes the row.
    Rule {
        /// Ruleset and class.
        key: RuleKey,
        /// The port set.
        ports: Option<PortSetId>,
    },
    /// A single address; `None` removes it.
    Host {
        /// The address.
        address: Address,
        /// Its class and flags.
        peer: Option<Peer>,
    },
    /// A prefix of an `ipBlock` or of an `except`; `None` removes it.
    Net {
        /// First address of the prefix.
        address: Address,
        /// Prefix length in bits of the sixteen-byte form (an IPv4 /24 is 120).
        bits: u32,
        /// The class of the addresses in the prefix that lie in no longer one.
        peer: Option<Peer>,
    },
}

/// The isolation of one local pod in both directions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodIsolation {
    /// The pod.
    pub pod: ObjectKey,
    /// What it may receive.
    pub ingress: Isolation,
    /// What it may send.
    pub egress: Isolation,
}

/// A number that grows with every change of the index. See [`crate::policy::Index::settle`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Generation(pub u64);

/// What a batch of object changes does to the tables, in the order in which it has to be written.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// First: port sets, rows, then peers, in this order.
    pub add: Vec<Edit>,
    /// Then: local pods whose isolation is new or different, or that have another uid or other addresses than before.
    pub flip: Vec<PodIsolation>,
    /// Local pods that are no longer there (deleted, finished, or moved away); their endpoints go with the flip.
    pub gone: Vec<ObjectKey>,
}

impl Change {
    /// Whether nothing has to be written.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.flip.is_empty() && self.gone.is_empty()
    }
}
