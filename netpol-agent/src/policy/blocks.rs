//! The prefixes of all `ipBlock`s, and which blocks hold an address.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use netpol_common::Address;

use super::{
    prefix::Prefix,
    store::Ref,
    term::{Block, Term},
};

/// What is known about one prefix.
#[derive(Default)]
struct Net {
    /// How many blocks have it as their cidr or as an except.
    uses: usize,
    /// The blocks whose cidr it is, with their exceptions.
    blocks: Vec<(Ref<Term>, Vec<Prefix>)>,
}

/// The prefixes at which the answer to "which blocks hold this address" may change.
#[derive(Default)]
pub(super) struct Blocks {
    nets: BTreeMap<Prefix, Net>,
    /// How many prefixes there are of each length: only these lengths are looked up.
    lengths: BTreeMap<u32, usize>,
}

impl Blocks {
    pub(super) fn insert(&mut self, term: Ref<Term>, block: &Block) {
        for prefix in std::iter::once(block.cidr).chain(block.except.iter().copied()) {
            let net = self.nets.entry(prefix).or_insert_with(|| {
                *self.lengths.entry(prefix.bits).or_default() += 1;
                Net::default()
            });
            net.uses += 1;
            if prefix == block.cidr && !net.blocks.iter().any(|(t, _)| *t == term) {
                net.blocks.push((term, block.except.clone()));
            }
        }
    }

    pub(super) fn remove(&mut self, term: Ref<Term>, block: &Block) {
        for prefix in std::iter::once(block.cidr).chain(block.except.iter().copied()) {
            let Some(net) = self.nets.get_mut(&prefix) else {
                continue;
            };
            net.uses -= 1;
            net.blocks.retain(|(t, _)| *t != term);
            if net.uses == 0 {
                self.nets.remove(&prefix);
                if let Some(count) = self.lengths.get_mut(&prefix.bits) {
                    *count -= 1;
                    if *count == 0 {
                        self.lengths.remove(&prefix.bits);
                    }
                }
            }
        }
    }

    /// Whether a prefix is a boundary of some block.
    pub(super) fn contains(&self, prefix: &Prefix) -> bool {
        self.nets.contains_key(prefix)
    }

    /// The boundaries inside a prefix, itself included.
    pub(super) fn inside(&self, outer: Prefix) -> impl Iterator<Item = Prefix> {
        self.nets
            .range((
                Bound::Included(outer),
                Bound::Included(Prefix::of(outer.last(), 128)),
            ))
            .map(|(prefix, _)| *prefix)
            .filter(move |prefix| outer.covers(prefix))
    }

    /// The blocks that hold all of a prefix that is a boundary (or an address, of 128 bits).
    pub(super) fn holding(&self, inner: Prefix) -> BTreeSet<Ref<Term>> {
        let mut found = BTreeSet::new();
        for &bits in self.lengths.range(..=inner.bits).map(|(bits, _)| bits) {
            let outer = Prefix::of(inner.address, bits);
            if !outer.covers(&inner) {
                continue;
            }
            let Some(net) = self.nets.get(&outer) else {
                continue;
            };
            for (term, except) in &net.blocks {
                if !except.iter().any(|e| e.covers(&inner)) {
                    found.insert(*term);
                }
            }
        }
        found
    }

    /// The blocks that hold an address.
    pub(super) fn holding_address(&self, address: Address) -> BTreeSet<Ref<Term>> {
        self.holding(Prefix { address, bits: 128 })
    }
}
