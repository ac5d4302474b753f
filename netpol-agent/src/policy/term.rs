//! Terms: what a rule can say about a peer.

use super::{
    fingerprint::Fingerprint,
    object::{Protocol, Requirement, Selector},
    prefix::Prefix,
    selector::Scope,
    store::Ref,
};

/// One thing a rule can say about a peer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Term {
    /// Pods.
    Pods {
        /// In which namespaces.
        scope: Scope,
        /// With which labels.
        selector: Selector,
        /// Only those that give this name to a port of this protocol; the peer's own number for it is then the port that
        /// the rule allows.
        name: Option<(Protocol, String)>,
    },
    /// Addresses.
    Block(Block),
}

/// An `ipBlock`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Block {
    /// `cidr`
    pub(super) cidr: Prefix,
    /// `except`: sorted, and none inside another.
    pub(super) except: Vec<Prefix>,
}

impl Block {
    pub(super) fn new(cidr: Prefix, except: impl IntoIterator<Item = Prefix>) -> Self {
        let mut except: Vec<_> = except.into_iter().filter(|e| cidr.covers(e)).collect();
        except.sort_unstable();
        // A prefix follows those that cover it.
        except.dedup_by(|inner, outer| outer.covers(inner));
        Self { cidr, except }
    }
}

/// That a peer matches a term: with the number it gives to the term's port name, or 0 for a term without a name.
pub(super) type Match = (Ref<Term>, u16);

impl Term {
    /// A number wide enough to stand for the content in the numbers of classes and rulesets.
    pub(super) fn digest(&self) -> u128 {
        let mut to = Fingerprint::new("term");
        match self {
            Self::Pods {
                scope,
                selector,
                name,
            } => {
                match scope {
                    Scope::Named(name) => {
                        to.byte(0).text(name);
                    }
                    Scope::Matching(selector) => {
                        to.byte(1);
                        describe(selector, &mut to);
                    }
                }
                describe(selector, &mut to);
                if let Some((protocol, name)) = name {
                    to.byte(protocol.number()).text(name);
                }
            }
            Self::Block(block) => {
                to.byte(2);
                for prefix in std::iter::once(&block.cidr).chain(&block.except) {
                    to.bytes(&prefix.address.0).number(prefix.bits.into());
                }
            }
        }
        to.wide()
    }
}

fn describe(selector: &Selector, to: &mut Fingerprint) {
    to.number(selector.requirements.len() as u128);
    for requirement in &selector.requirements {
        let (operator, key, values) = match requirement {
            Requirement::In(key, values) => (0, key, values.as_slice()),
            Requirement::NotIn(key, values) => (1, key, values.as_slice()),
            Requirement::Exists(key) => (2, key, [].as_slice()),
            Requirement::DoesNotExist(key) => (3, key, [].as_slice()),
        };
        to.byte(operator).text(key).number(values.len() as u128);
        for value in values {
            to.text(value);
        }
    }
}
