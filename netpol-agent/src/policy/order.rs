//! The order in which edits are written.

use netpol_common::{Address, PortKey, RuleKey};

use super::edit::Edit;

/// What is looked up last is written first: port sets, then the rows that name them, then the peers whose classes have rows.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Port(PortKey, u32),
    Rule(RuleKey),
    Host(Address),
    Net(Address, u32),
}

/// Sorts edits that add or change entries.
pub(super) fn sort(edits: &mut [Edit]) {
    edits.sort_by_key(place);
}

/// Sorts edits that take entries away: what is looked up first goes first.
pub(super) fn sort_removals(edits: &mut [Edit]) {
    edits.sort_by_key(|edit| std::cmp::Reverse(place(edit)));
}

fn place(edit: &Edit) -> Place {
    match *edit {
        Edit::Port { key, bits, .. } => Place::Port(key, bits),
        Edit::Rule { key, .. } => Place::Rule(key),
        Edit::Host { address, .. } => Place::Host(address),
        Edit::Net { address, bits, .. } => Place::Net(address, bits),
    }
}
