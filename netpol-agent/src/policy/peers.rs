//! What every address is to the pods of this node: the content of the two peer tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use netpol_common::{Address, Peer};

use super::{
    blocks::Blocks,
    catalog::{Catalog, Class},
    edit::{Edit, Generation},
    prefix::Prefix,
    slab::Handle,
    store::Ref,
    term::{Block, Match, Term},
    world::{PodRecord, World},
};

/// A single address that pods claim, or that the node or Services have.
#[derive(Default)]
struct Host {
    /// Pods that claim it; more than one only while an old object has not been deleted yet.
    claimants: Vec<Handle<PodRecord>>,
    /// The one of them that has it, as of the last refresh.
    owner: Option<Handle<PodRecord>>,
    node: bool,
    /// How many Services have it: an external address may be given to several, for different ports.
    services: usize,
    class: Option<Ref<Class>>,
    written: Option<Peer>,
}

impl Host {
    fn flags(&self) -> u32 {
        let node = if self.node { Peer::NODE } else { 0 };
        let service = if self.services > 0 { Peer::SERVICE } else { 0 };
        node | service
    }
}

/// A boundary of an `ipBlock`, as of the last refresh.
struct Net {
    class: Option<Ref<Class>>,
    written: Peer,
}

/// Addresses and prefixes with their classes.
///
/// A single address has an entry when it has a class, or is the node's or a Service's. Where its class is none, no block holds it, so the
/// prefix that answers in its place has no class either.
#[derive(Default)]
pub(super) struct Peers {
    hosts: BTreeMap<Address, Host>,
    nets: BTreeMap<Prefix, Net>,
    blocks: Blocks,
    /// What has to be refreshed.
    dirty_hosts: BTreeSet<Address>,
    dirty_nets: BTreeSet<Prefix>,
}

impl Peers {
    pub(super) fn new() -> Self {
        Self {
            dirty_nets: BTreeSet::from([Prefix::IPV4]),
            ..Self::default()
        }
    }

    pub(super) fn owner(&self, address: &Address) -> Option<Handle<PodRecord>> {
        self.hosts.get(address)?.owner
    }

    /// Notes whether a pod claims an address.
    pub(super) fn claim(&mut self, address: Address, pod: Handle<PodRecord>, claims: bool) {
        let host = self.hosts.entry(address).or_default();
        host.claimants.retain(|p| *p != pod);
        if claims {
            host.claimants.push(pod);
        }
        if host.owner == Some(pod) && !claims {
            // The handle may name another pod by the time of the refresh.
            host.owner = None;
        }
        self.dirty_hosts.insert(address);
    }

    /// Notes whether an address is the node's.
    pub(super) fn set_node(&mut self, address: Address, node: bool) {
        self.hosts.entry(address).or_default().node = node;
        self.dirty_hosts.insert(address);
    }

    /// Notes that one more Service has an address, or one less.
    pub(super) fn set_service(&mut self, address: Address, has: bool) {
        let host = self.hosts.entry(address).or_default();
        host.services = if has {
            host.services + 1
        } else {
            host.services.saturating_sub(1)
        };
        self.dirty_hosts.insert(address);
    }

    /// Notes that an address may match other terms.
    pub(super) fn touch(&mut self, address: Address) {
        self.dirty_hosts.insert(address);
    }

    /// Adds a block or takes it away, and notes what lies inside.
    pub(super) fn set_block(&mut self, term: Ref<Term>, block: &Block, present: bool) {
        if present {
            self.blocks.insert(term, block);
        }
        self.dirty_nets.extend(self.blocks.inside(block.cidr));
        if !present {
            self.blocks.remove(term, block);
        }
        let inside = (
            Bound::Included(block.cidr.address),
            Bound::Included(block.cidr.last()),
        );
        self.dirty_hosts.extend(
            self.hosts
                .range(inside)
                .map(|(address, _)| *address)
                .filter(|address| block.cidr.holds(address)),
        );
    }

    /// Brings the entries of everything noted up to date. Pods whose set of addresses changed are added to `moved`.
    pub(super) fn refresh(
        &mut self,
        world: &World,
        catalog: &mut Catalog,
        now: Generation,
        moved: &mut BTreeSet<Handle<PodRecord>>,
    ) -> Vec<Edit> {
        let mut edits = Vec::new();
        for address in std::mem::take(&mut self.dirty_hosts) {
            edits.extend(self.refresh_host(address, world, catalog, now, moved));
        }
        for prefix in std::mem::take(&mut self.dirty_nets) {
            edits.extend(self.refresh_net(prefix, catalog, now));
        }
        edits
    }

    fn refresh_host(
        &mut self,
        address: Address,
        world: &World,
        catalog: &mut Catalog,
        now: Generation,
        moved: &mut BTreeSet<Handle<PodRecord>>,
    ) -> Option<Edit> {
        let host = self.hosts.get_mut(&address)?;
        let owner = host
            .claimants
            .iter()
            .copied()
            .max_by(|a, b| world.rank(*a).cmp(&world.rank(*b)));
        if owner != host.owner {
            moved.extend(host.owner);
            moved.extend(owner);
            host.owner = owner;
        }
        let gone = host.claimants.is_empty() && !host.node && host.services == 0;
        let mut matches: Vec<Match> = Vec::new();
        if !gone {
            matches.extend(
                self.blocks
                    .holding_address(address)
                    .into_iter()
                    .map(|t| (t, 0)),
            );
            if let Some(owner) = owner {
                matches.extend_from_slice(&world.profiles[world.pods[owner].profile].matches);
            }
            matches.sort_unstable();
        }
        let old = host.class;
        if catalog.class(old) != matches {
            host.class = catalog.acquire_class(matches);
            if let Some(old) = old {
                catalog.release_class(old, now);
            }
        }
        let peer = Peer {
            flags: host.flags(),
            ..Peer::of(catalog.class_id(host.class))
        };
        let peer = (peer != Peer::default()).then_some(peer);
        let edit = (peer != host.written).then_some(Edit::Host { address, peer });
        host.written = peer;
        if gone {
            self.hosts.remove(&address);
        }
        edit
    }

    fn refresh_net(
        &mut self,
        prefix: Prefix,
        catalog: &mut Catalog,
        now: Generation,
    ) -> Option<Edit> {
        let wanted = prefix == Prefix::IPV4 || self.blocks.contains(&prefix);
        let old = self.nets.get(&prefix).map(|net| (net.class, net.written));
        let (address, bits) = (prefix.address, prefix.bits);
        if !wanted {
            let (class, _) = old?;
            self.nets.remove(&prefix);
            if let Some(class) = class {
                catalog.release_class(class, now);
            }
            return Some(Edit::Net {
                address,
                bits,
                peer: None,
            });
        }
        let matches: Vec<Match> = self
            .blocks
            .holding(prefix)
            .into_iter()
            .map(|t| (t, 0))
            .collect();
        let old_class = old.and_then(|(class, _)| class);
        let mut class = old_class;
        if catalog.class(old_class) != matches {
            class = catalog.acquire_class(matches);
            if let Some(old) = old_class {
                catalog.release_class(old, now);
            }
        }
        let written = Peer::of(catalog.class_id(class));
        self.nets.insert(prefix, Net { class, written });
        (old.map(|(_, written)| written) != Some(written)).then_some(Edit::Net {
            address,
            bits,
            peer: Some(written),
        })
    }

    /// All entries.
    pub(super) fn tables(&self) -> Vec<Edit> {
        let hosts = self.hosts.iter().filter_map(|(address, host)| {
            Some(Edit::Host {
                address: *address,
                peer: Some(host.written?),
            })
        });
        let nets = self.nets.iter().map(|(prefix, net)| Edit::Net {
            address: prefix.address,
            bits: prefix.bits,
            peer: Some(net.written),
        });
        hosts.chain(nets).collect()
    }
}
