//! Asking the rules: address to class, ruleset and class to port set, port set to port.

use super::*;

/// No rule allows it.
pub(super) struct NotAllowed;

/// Whose rules are asked, and what about.
pub(super) struct About<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) protocol: u8,
    pub(super) found: &'a Found,
}

/// Why a conversation with `remote`, opened in a direction in which the pod is isolated like this, is allowed. `port` is that
/// of the side to which it was opened.
#[inline(always)]
pub(super) fn permit<T: Tables>(
    tables: &T,
    about: &About<'_>,
    isolation: Isolation,
    remote: &Address,
    port: u16,
) -> Result<Reason, NotAllowed> {
    let Some(ruleset) = isolation.ruleset() else {
        return Ok(Reason::Open);
    };
    if about.endpoint.owns(remote) {
        return Ok(Reason::Itself);
    }
    if allowed(tables, about, ruleset, remote, port) {
        Ok(Reason::Rule)
    } else {
        Err(NotAllowed)
    }
}

/// Whether a ruleset allows a protocol and a port to an address.
#[inline(never)]
pub(super) fn allowed<T: Tables>(
    tables: &T,
    about: &About<'_>,
    ruleset: RulesetId,
    remote: &Address,
    port: u16,
) -> bool {
    let class = class(tables, remote);
    let set = rule(tables, ruleset, class);
    about.found.class.set(class);
    about.found.set.set(set);
    set == ALL_PORTS || (set != NO_PORTS && tables.port(set, about.protocol, port))
}

/// The flags of an address.
#[inline(always)]
pub(super) fn host<T: Tables>(tables: &T, address: &Address) -> u32 {
    match tables.host(address) {
        Some(peer) => peer.flags,
        None => 0,
    }
}

/// The class of an address: as a single one first, because the trie is three times slower.
#[inline(always)]
pub(super) fn class<T: Tables>(tables: &T, address: &Address) -> ClassId {
    match tables.host(address) {
        Some(peer) => peer.class,
        None => match tables.net(address) {
            Some(peer) => peer.class,
            None => NO_CLASS,
        },
    }
}

/// What a class may use: its own row, or else what everybody may.
#[inline(always)]
pub(super) fn rule<T: Tables>(tables: &T, ruleset: RulesetId, class: ClassId) -> PortSetId {
    if class != NO_CLASS
        && let Some(set) = tables.rule(&RuleKey { ruleset, class })
    {
        return set;
    }
    tables
        .rule(&RuleKey {
            ruleset,
            class: NO_CLASS,
        })
        .unwrap_or(NO_PORTS)
}
