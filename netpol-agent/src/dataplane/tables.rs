//! Tables of edits in kernel maps: batched writes, and comparison with what is pinned.

use std::{
    collections::HashMap as Memory,
    hash::Hash,
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key},
};
use netpol_common::{Address, Peer, PortKey, PortSetId, RuleKey, map};

use super::{Error, error::os_error, sys};
use crate::policy::edit::Edit;

/// How many elements go in one call. A batch holds the map's lock for none of them longer than a single write does.
const BATCH: usize = 4096;
/// Fewer elements than this are written one by one.
const WORTH_A_BATCH: usize = 8;

/// A hash or a trie that the agent writes.
struct Table<T, K, V> {
    name: &'static str,
    map: T,
    fd: OwnedFd,
    marker: std::marker::PhantomData<(K, V)>,
}

/// How an aya map is written; its key may be wrapped.
trait Write<K, V> {
    /// The key as it lies in the kernel.
    type Raw: Pod;
    fn raw(key: &K) -> Self::Raw;
    fn unraw(raw: &Self::Raw) -> K;
    fn insert(&mut self, key: &K, value: V) -> Result<(), MapError>;
    fn remove(&mut self, key: &K) -> Result<(), MapError>;
    fn entries(&self) -> Result<Vec<(K, V)>, MapError>;
}

impl<K: Pod, V: Pod> Write<K, V> for HashMap<MapData, K, V> {
    type Raw = K;
    fn raw(key: &K) -> K {
        *key
    }
    fn unraw(raw: &K) -> K {
        *raw
    }
    fn insert(&mut self, key: &K, value: V) -> Result<(), MapError> {
        Self::insert(self, key, value, 0)
    }
    fn remove(&mut self, key: &K) -> Result<(), MapError> {
        Self::remove(self, key)
    }
    fn entries(&self) -> Result<Vec<(K, V)>, MapError> {
        self.iter().collect()
    }
}

/// A prefix: how many bits of which key.
type Prefix<K> = (u32, K);

impl<K: Pod, V: Pod> Write<Prefix<K>, V> for LpmTrie<MapData, K, V> {
    type Raw = Key<K>;
    fn raw(key: &Prefix<K>) -> Key<K> {
        Key::new(key.0, key.1)
    }
    fn unraw(raw: &Key<K>) -> Prefix<K> {
        (raw.prefix_len(), raw.data())
    }
    fn insert(&mut self, key: &Prefix<K>, value: V) -> Result<(), MapError> {
        Self::insert(self, &<Self as Write<_, V>>::raw(key), value, 0)
    }
    fn remove(&mut self, key: &Prefix<K>) -> Result<(), MapError> {
        Self::remove(self, &<Self as Write<_, V>>::raw(key))
    }
    fn entries(&self) -> Result<Vec<(Prefix<K>, V)>, MapError> {
        self.iter()
            .map(|entry| entry.map(|(key, value)| (<Self as Write<_, V>>::unraw(&key), value)))
            .collect()
    }
}

impl<T: Write<K, V>, K: Copy + Eq + Hash, V: Pod + PartialEq> Table<T, K, V> {
    fn take(object: &mut Ebpf, name: &'static str) -> Result<Self, Error>
    where
        T: TryFrom<Map, Error = MapError>,
    {
        let missing = || Error::Load(anyhow::anyhow!("the object has no map {name}"));
        let map = object.take_map(name).ok_or_else(missing)?;
        let read = |source| Error::Read {
            table: name,
            source,
        };
        let data = match &map {
            Map::HashMap(data) | Map::LpmTrie(data) => data,
            _ => return Err(missing()),
        };
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(read)?;
        let map = T::try_from(map).map_err(os_error).map_err(read)?;
        Ok(Self {
            name,
            map,
            fd,
            marker: std::marker::PhantomData,
        })
    }

    /// Removes elements, then writes the others.
    fn write(&mut self, edits: &[(K, Option<V>)]) -> Result<(), Error> {
        let failed = |source| Error::Write {
            table: self.name,
            source,
        };
        let mut keys = vec![];
        let mut values = vec![];
        for (key, value) in edits {
            if let Some(value) = value {
                keys.push(T::raw(key));
                values.push(*value);
            } else {
                match self.map.remove(key) {
                    Err(MapError::KeyNotFound) | Ok(()) => {}
                    Err(MapError::SyscallError(e))
                        if e.io_error.raw_os_error() == Some(libc::ENOENT) => {}
                    Err(error) => return Err(failed(os_error(error))),
                }
            }
        }
        if keys.len() < WORTH_A_BATCH {
            for (key, value) in keys.iter().zip(&values) {
                self.map
                    .insert(&T::unraw(key), *value)
                    .map_err(os_error)
                    .map_err(failed)?;
            }
            return Ok(());
        }
        for (keys, values) in keys.chunks(BATCH).zip(values.chunks(BATCH)) {
            match sys::update_batch(self.fd.as_fd(), keys, values) {
                Ok(()) => {}
                // A kernel without batches for this kind of map.
                Err((_, error)) if unsupported(&error) => {
                    for (key, value) in keys.iter().zip(values) {
                        self.map
                            .insert(&T::unraw(key), *value)
                            .map_err(os_error)
                            .map_err(failed)?;
                    }
                }
                Err((_, error)) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    fn entries(&self) -> Result<Memory<K, V>, Error> {
        let read = |error| Error::Read {
            table: self.name,
            source: os_error(error),
        };
        Ok(self.map.entries().map_err(read)?.into_iter().collect())
    }

    /// The elements of `wanted` that the map has not, or has with another value.
    fn missing(&self, wanted: &[(K, Option<V>)]) -> Result<Vec<(K, Option<V>)>, Error> {
        let there = self.entries()?;
        Ok(wanted
            .iter()
            .filter(|(k, v)| there.get(k).copied() != *v)
            .copied()
            .collect())
    }

    /// Removals of the elements that `wanted` has not.
    fn surplus(&self, wanted: &[(K, Option<V>)]) -> Result<Vec<(K, Option<V>)>, Error> {
        let mut there = self.entries()?;
        for (key, _) in wanted {
            there.remove(key);
        }
        Ok(there.into_keys().map(|key| (key, None)).collect())
    }
}

fn unsupported(error: &io::Error) -> bool {
    // EINVAL before the command existed, ENOTSUPP (524, not in libc) where the map kind lacks it.
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | 524 | libc::EOPNOTSUPP)
    )
}

/// The tables that edits change.
pub(super) struct EditTables {
    ports: Table<LpmTrie<MapData, PortKey, u8>, Prefix<PortKey>, u8>,
    rules: Table<HashMap<MapData, RuleKey, PortSetId>, RuleKey, PortSetId>,
    hosts: Table<HashMap<MapData, Address, Peer>, Address, Peer>,
    nets: Table<LpmTrie<MapData, Address, Peer>, Prefix<Address>, Peer>,
}

/// Edits of each table, in order.
#[derive(Default)]
struct Sorted {
    ports: Vec<(Prefix<PortKey>, Option<u8>)>,
    rules: Vec<(RuleKey, Option<PortSetId>)>,
    hosts: Vec<(Address, Option<Peer>)>,
    nets: Vec<(Prefix<Address>, Option<Peer>)>,
}

impl Sorted {
    fn push(&mut self, edit: &Edit) {
        match *edit {
            Edit::Port { key, bits, present } => {
                self.ports.push(((bits, key), present.then_some(1)))
            }
            Edit::Rule { key, ports } => self.rules.push((key, ports)),
            Edit::Host { address, peer } => self.hosts.push((address, peer)),
            Edit::Net {
                address,
                bits,
                peer,
            } => self.nets.push(((bits, address), peer)),
        }
    }

    fn of(edits: &[Edit]) -> Self {
        let mut sorted = Self::default();
        for edit in edits {
            sorted.push(edit);
        }
        sorted
    }
}

const fn table_of(edit: &Edit) -> u8 {
    match edit {
        Edit::Port { .. } => 0,
        Edit::Rule { .. } => 1,
        Edit::Host { .. } => 2,
        Edit::Net { .. } => 3,
    }
}

const fn removes(edit: &Edit) -> bool {
    match edit {
        Edit::Port { present, .. } => !*present,
        Edit::Rule { ports, .. } => ports.is_none(),
        Edit::Host { peer, .. } | Edit::Net { peer, .. } => peer.is_none(),
    }
}

impl EditTables {
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            ports: Table::take(object, map::PORTS)?,
            rules: Table::take(object, map::RULES)?,
            hosts: Table::take(object, map::PEER_HOSTS)?,
            nets: Table::take(object, map::PEER_NETS)?,
        })
    }

    /// Writes edits in their order; neighbours of the same table go in one batch.
    pub(super) fn write(&mut self, edits: &[Edit]) -> Result<(), Error> {
        // A removal and a write never share a batch: what an element is in the end depends on their order.
        for run in edits.chunk_by(|a, b| table_of(a) == table_of(b) && removes(a) == removes(b)) {
            self.write_sorted(&Sorted::of(run))?;
        }
        Ok(())
    }

    /// In the order in which one table refers to another: port sets, rows, peers.
    fn write_sorted(&mut self, sorted: &Sorted) -> Result<(), Error> {
        self.ports.write(&sorted.ports)?;
        self.rules.write(&sorted.rules)?;
        self.hosts.write(&sorted.hosts)?;
        self.nets.write(&sorted.nets)
    }

    pub(super) fn adopt(&mut self, tables: &[Edit]) -> Result<(), Error> {
        let wanted = Sorted::of(tables);
        let missing = Sorted {
            ports: self.ports.missing(&wanted.ports)?,
            rules: self.rules.missing(&wanted.rules)?,
            hosts: self.hosts.missing(&wanted.hosts)?,
            nets: self.nets.missing(&wanted.nets)?,
        };
        self.write_sorted(&missing)
    }

    pub(super) fn discard_unknown(&mut self, tables: &[Edit]) -> Result<(), Error> {
        let wanted = Sorted::of(tables);
        // Peers first: nothing may refer to a row that is gone.
        self.nets.write(&self.nets.surplus(&wanted.nets)?)?;
        self.hosts.write(&self.hosts.surplus(&wanted.hosts)?)?;
        self.rules.write(&self.rules.surplus(&wanted.rules)?)?;
        self.ports.write(&self.ports.surplus(&wanted.ports)?)
    }
}
