//! The tables in memory: what the kernel's maps would hold, for the very judge that runs in the kernel.
//!
//! Tests, `matrix` and `explain` ask these tables; nothing here touches the kernel.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use netpol_common::{
    Address, Direction, Dropped, Endpoint, Event, Flow, FlowKey, FlowRef, Fragment, FragmentKey,
    Frame, MarkField, Peer, PortKey, PortSetId, Reason, RuleKey, SLOT_OF_NOBODY, Scratch, Tables,
    Tally, Tick, TunnelKey,
};

use crate::policy::Edit;

/// A place in the flow table.
#[derive(Clone, Debug)]
pub struct FlowCell(Arc<Mutex<Flow>>);

impl FlowRef for FlowCell {
    fn load(&self) -> Flow {
        *lock(&self.0)
    }

    fn store(&self, flow: &Flow) {
        let mut place = lock(&self.0);
        *place = Flow {
            backend: place.backend,
            backend_port: place.backend_port,
            ..*flow
        };
    }

    fn resolve(&self, backend: &Address, port: u16, epoch: u32) {
        let mut place = lock(&self.0);
        place.backend = *backend;
        place.backend_port = port;
        place.epoch = epoch;
        place.flags |= Flow::RESOLVED;
    }
}

/// A panic elsewhere leaves plain data behind, never half of an update.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All tables.
#[derive(Debug)]
pub struct MemoryTables {
    ports: BTreeMap<(PortKey, u32), ()>,
    rules: BTreeMap<RuleKey, PortSetId>,
    hosts: BTreeMap<Address, Peer>,
    nets: BTreeMap<(Address, u32), Peer>,
    /// How many prefixes there are of each length.
    lengths: BTreeMap<u32, usize>,
    endpoints: BTreeMap<u32, Endpoint>,
    slots: BTreeMap<u32, u32>,
    mark_field: MarkField,
    flows: Mutex<HashMap<FlowKey, FlowCell>>,
    opening: Mutex<HashMap<FlowKey, FlowCell>>,
    fragments: Mutex<HashMap<FragmentKey, Fragment>>,
    tickets: Mutex<HashMap<u32, FlowKey>>,
    tunnels: BTreeSet<TunnelKey>,
    counts: Mutex<HashMap<(u32, Direction, Reason), Tally>>,
    events: Mutex<Vec<Event>>,
    epoch: AtomicU32,
    now: AtomicU32,
}

impl Default for MemoryTables {
    fn default() -> Self {
        Self {
            ports: BTreeMap::new(),
            rules: BTreeMap::new(),
            hosts: BTreeMap::new(),
            nets: BTreeMap::new(),
            lengths: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            slots: BTreeMap::new(),
            mark_field: MarkField::DEFAULT,
            flows: Mutex::default(),
            opening: Mutex::default(),
            fragments: Mutex::default(),
            tickets: Mutex::default(),
            tunnels: BTreeSet::new(),
            counts: Mutex::default(),
            events: Mutex::default(),
            epoch: AtomicU32::default(),
            now: AtomicU32::default(),
        }
    }
}

impl Clone for MemoryTables {
    /// A copy that shares nothing, flows included.
    fn clone(&self) -> Self {
        let copy = |flows: &Mutex<HashMap<FlowKey, FlowCell>>| {
            let flows = lock(flows);
            let flows = flows
                .iter()
                .map(|(key, flow)| (*key, FlowCell(Arc::new(Mutex::new(flow.load())))));
            Mutex::new(flows.collect())
        };
        Self {
            ports: self.ports.clone(),
            rules: self.rules.clone(),
            hosts: self.hosts.clone(),
            nets: self.nets.clone(),
            lengths: self.lengths.clone(),
            endpoints: self.endpoints.clone(),
            slots: self.slots.clone(),
            mark_field: self.mark_field,
            flows: copy(&self.flows),
            opening: copy(&self.opening),
            fragments: Mutex::new(lock(&self.fragments).clone()),
            tickets: Mutex::new(lock(&self.tickets).clone()),
            tunnels: self.tunnels.clone(),
            counts: Mutex::new(lock(&self.counts).clone()),
            events: Mutex::new(lock(&self.events).clone()),
            epoch: AtomicU32::new(self.epoch.load(Ordering::Relaxed)),
            now: AtomicU32::new(self.now.load(Ordering::Relaxed)),
        }
    }
}

impl MemoryTables {
    /// Empty tables.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes an edit.
    pub fn write(&mut self, edit: &Edit) {
        match *edit {
            Edit::Port { key, bits, present } => {
                let key = (port_prefix(key, bits), bits);
                if present {
                    self.ports.insert(key, ());
                } else {
                    self.ports.remove(&key);
                }
            }
            Edit::Rule { key, ports } => put(&mut self.rules, key, ports),
            Edit::Host { address, peer } => put(&mut self.hosts, address, peer),
            Edit::Net {
                address,
                bits,
                peer,
            } => {
                let key = (net_prefix(&address, bits), bits);
                let before = self.nets.len();
                put(&mut self.nets, key, peer);
                let count = self.lengths.entry(bits).or_default();
                *count = *count + self.nets.len() - before;
                if *count == 0 {
                    self.lengths.remove(&bits);
                }
            }
        }
    }

    /// Writes edits in their order.
    pub fn write_all<'a>(&mut self, edits: impl IntoIterator<Item = &'a Edit>) {
        for edit in edits {
            self.write(edit);
        }
    }

    /// Everything that edits have written, in the order of [`crate::policy::Index::tables`].
    pub fn content(&self) -> Vec<Edit> {
        let ports = self.ports.keys().map(|&(key, bits)| Edit::Port {
            key,
            bits,
            present: true,
        });
        let rules = self.rules.iter().map(|(key, ports)| Edit::Rule {
            key: *key,
            ports: Some(*ports),
        });
        let hosts = self.hosts.iter().map(|(address, peer)| Edit::Host {
            address: *address,
            peer: Some(*peer),
        });
        let nets = self.nets.iter().map(|(&(address, bits), peer)| Edit::Net {
            address,
            bits,
            peer: Some(*peer),
        });
        ports.chain(rules).chain(hosts).chain(nets).collect()
    }

    /// Sets the endpoint behind a host interface; `None` removes it. Its slot leads to the interface, or to nobody
    /// any more.
    pub fn set_endpoint(&mut self, interface: u32, endpoint: Option<Endpoint>) {
        match (endpoint, self.endpoints.get(&interface)) {
            (Some(endpoint), _) => self.set_slot(endpoint.slot, Some(interface)),
            (None, Some(gone)) => self.set_slot(gone.slot, Some(SLOT_OF_NOBODY)),
            (None, None) => {}
        }
        put(&mut self.endpoints, interface, endpoint);
    }

    /// Says to which host interface a slot leads, whatever endpoint is there.
    pub fn set_slot(&mut self, slot: u32, interface: Option<u32>) {
        put(&mut self.slots, slot, interface);
    }

    /// Says which bits of a mark are ours; [`MarkField::DEFAULT`] unless this is called.
    pub const fn set_mark_field(&mut self, field: MarkField) {
        self.mark_field = field;
    }

    /// Raises the epoch: every flow is judged again on its next packet.
    pub fn raise_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// Sets the coarse clock.
    pub fn set_now(&self, now: Tick) {
        self.now.store(now, Ordering::Relaxed);
    }

    /// Forgets every flow.
    pub fn clear_flows(&self) {
        lock(&self.flows).clear();
        lock(&self.opening).clear();
    }

    /// Forgets flows, as a full table does with those that were used least.
    pub fn evict_flows(&self, goes: impl Fn(&FlowKey) -> bool) {
        lock(&self.flows).retain(|key, _| !goes(key));
        lock(&self.opening).retain(|key, _| !goes(key));
    }

    /// Every flow whose opener has had an answer, in the order of their keys.
    pub fn flow_entries(&self) -> BTreeMap<FlowKey, Flow> {
        entries(&self.flows)
    }

    /// Every other flow, in the order of their keys.
    pub fn opening_entries(&self) -> BTreeMap<FlowKey, Flow> {
        entries(&self.opening)
    }

    /// What first fragments have said, in the order of their keys.
    pub fn fragment_entries(&self) -> BTreeMap<FragmentKey, Fragment> {
        let fragments = lock(&self.fragments);
        fragments
            .iter()
            .map(|(key, first)| (*key, *first))
            .collect()
    }

    /// Every ticket that was issued, in the order of their numbers.
    pub fn ticket_entries(&self) -> BTreeMap<u32, FlowKey> {
        let tickets = lock(&self.tickets);
        tickets
            .iter()
            .map(|(number, key)| (*number, *key))
            .collect()
    }

    /// What becomes of a frame at the hook of a pod.
    pub fn judge(&self, frame: &SliceFrame<'_>, direction: Direction) -> Reason {
        netpol_common::judge(frame, self, &mut Scratch::default(), direction)
    }

    /// What becomes of a frame that leaves by a device that is no pod's.
    pub fn host_egress(&self, frame: &SliceFrame<'_>) -> Reason {
        netpol_common::host_egress(frame, self, &mut Scratch::default())
    }

    /// Says which envelopes the node opens.
    pub fn set_tunnels(&mut self, tunnels: impl IntoIterator<Item = TunnelKey>) {
        self.tunnels = tunnels.into_iter().collect();
    }

    /// Takes the records of dropped packets, oldest first.
    pub fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut *lock(&self.events))
    }

    /// Everything that was counted, by slot, direction and reason.
    pub fn count_entries(&self) -> BTreeMap<(u32, Direction, Reason), Tally> {
        let counts = lock(&self.counts);
        counts.iter().map(|(key, tally)| (*key, *tally)).collect()
    }

    /// What was counted for a slot, a direction and a reason.
    pub fn counted(&self, slot: u32, direction: Direction, reason: Reason) -> Tally {
        lock(&self.counts)
            .get(&(slot, direction, reason))
            .copied()
            .unwrap_or_default()
    }
}

fn entries(table: &Mutex<HashMap<FlowKey, FlowCell>>) -> BTreeMap<FlowKey, Flow> {
    let flows = lock(table);
    flows
        .iter()
        .map(|(key, flow)| (*key, flow.load()))
        .collect()
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => {
            map.insert(key, value);
        }
        None => {
            map.remove(&key);
        }
    }
}

/// The port of a key without the bits after the prefix.
fn port_prefix(key: PortKey, bits: u32) -> PortKey {
    let free = PortKey::FULL_BITS - bits;
    let port = u32::from(u16::from_be_bytes(key.port)) >> free << free;
    PortKey {
        port: (port as u16).to_be_bytes(),
        ..key
    }
}

/// The address without the bits after the prefix.
fn net_prefix(address: &Address, bits: u32) -> Address {
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    Address((u128::from_be_bytes(address.0) & mask).to_be_bytes())
}

impl Tables for MemoryTables {
    type Flow = FlowCell;

    fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    fn now(&self) -> Tick {
        self.now.load(Ordering::Relaxed)
    }

    fn endpoint(&self, interface: u32) -> Option<&Endpoint> {
        self.endpoints.get(&interface)
    }

    fn flow(&self, key: &FlowKey) -> Option<FlowCell> {
        lock(&self.flows).get(key).cloned()
    }

    fn opening(&self, key: &FlowKey) -> Option<FlowCell> {
        lock(&self.opening).get(key).cloned()
    }

    fn remember(&self, key: &FlowKey, flow: &Flow) {
        lock(&self.opening).insert(*key, FlowCell(Arc::new(Mutex::new(*flow))));
    }

    fn settle(&self, key: &FlowKey, flow: &Flow) {
        lock(&self.opening).remove(key);
        lock(&self.flows).insert(*key, FlowCell(Arc::new(Mutex::new(*flow))));
    }

    fn interface_of(&self, slot: u32) -> Option<u32> {
        self.slots.get(&slot).copied()
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        lock(&self.fragments).get(key).copied()
    }

    fn note_fragment(&self, key: &FragmentKey, fragment: Fragment) {
        lock(&self.fragments).insert(*key, fragment);
    }

    fn ticket(&self, number: u32) -> Option<FlowKey> {
        lock(&self.tickets).get(&number).copied()
    }

    fn issue(&self, number: u32, key: &FlowKey) {
        lock(&self.tickets).insert(number, *key);
    }

    fn tunnel(&self, key: TunnelKey) -> bool {
        self.tunnels.contains(&key)
    }

    fn mark_field(&self) -> MarkField {
        self.mark_field
    }

    fn report<F: Frame>(&self, frame: &F, dropped: &Dropped<'_>) {
        let mut event = Event::default();
        dropped.write(frame, 0, &mut event);
        lock(&self.events).push(event);
    }

    fn host(&self, address: &Address) -> Option<Peer> {
        self.hosts.get(address).copied()
    }

    fn net(&self, address: &Address) -> Option<Peer> {
        let mut lengths = self.lengths.keys().rev();
        lengths.find_map(|&bits| self.nets.get(&(net_prefix(address, bits), bits)).copied())
    }

    fn rule(&self, key: &RuleKey) -> Option<PortSetId> {
        self.rules.get(key).copied()
    }

    fn port(&self, set: PortSetId, protocol: u8, port: u16) -> bool {
        let key = PortKey::new(set, protocol, port);
        (PortKey::PROTOCOL_BITS..=PortKey::FULL_BITS)
            .any(|bits| self.ports.contains_key(&(port_prefix(key, bits), bits)))
    }

    fn count(&self, slot: u32, direction: Direction, reason: Reason, length: u32) {
        let mut counts = lock(&self.counts);
        let tally = counts.entry((slot, direction, reason)).or_default();
        tally.packets += 1;
        tally.bytes += u64::from(length);
    }
}

/// A frame in memory.
#[derive(Clone, Debug, Default)]
pub struct SliceFrame<'a> {
    /// From the Ethernet header on.
    pub bytes: &'a [u8],
    /// The device of the hook.
    pub interface: u32,
    /// The device by which the packet came to the node, 0 if the node itself sent it.
    pub came_in_by: u32,
    /// Whether it belongs to a socket of the node.
    pub of_a_socket: bool,
    /// Whether a VLAN tag was taken off.
    pub tagged: bool,
    /// The mark that the packet carries.
    pub mark: Cell<u32>,
}

impl Frame for SliceFrame<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let bytes = self.bytes.get(offset..offset.checked_add(N)?)?;
        bytes.try_into().ok()
    }

    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn interface(&self) -> u32 {
        self.interface
    }

    fn came_in_by(&self) -> u32 {
        self.came_in_by
    }

    fn of_a_socket(&self) -> bool {
        self.of_a_socket
    }

    fn tagged(&self) -> bool {
        self.tagged
    }

    fn mark(&self) -> u32 {
        self.mark.get()
    }

    fn set_mark(&self, mark: u32) {
        self.mark.set(mark);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet_builder::{Payload, frame};
    use netpol_common::Isolation;

    #[test]
    fn the_longest_prefix_answers() {
        let mut tables = MemoryTables::new();
        let net = |address: [u8; 4], bits: u32, class: u64| Edit::Net {
            address: Address::v4(address),
            bits: 96 + bits,
            peer: (class != 0).then(|| Peer::of(class)),
        };
        tables.write_all(&[net([10, 0, 0, 0], 8, 2), net([10, 1, 0, 0], 16, 3)]);
        let class = |tables: &MemoryTables, address| {
            tables.net(&Address::v4(address)).map(|peer| peer.class)
        };
        assert_eq!(class(&tables, [10, 1, 2, 3]), Some(3));
        assert_eq!(class(&tables, [10, 2, 2, 3]), Some(2));
        assert_eq!(class(&tables, [11, 2, 2, 3]), None);
        tables.write(&net([10, 1, 0, 0], 16, 0));
        assert_eq!(class(&tables, [10, 1, 2, 3]), Some(2));
    }

    #[test]
    fn a_flow_is_remembered_until_the_epoch_rises_and_the_clone_is_another_world() {
        let mut tables = MemoryTables::new();
        let pod = Endpoint {
            ingress: Isolation::by(9),
            egress: Isolation::OPEN,
            ..Endpoint::default()
        };
        tables.set_endpoint(4, Some(pod));
        let bytes = frame(
            [10, 0, 0, 1].into(),
            [10, 0, 0, 2].into(),
            Payload::syn(1000, 80),
        );
        let bytes = bytes.expect("one family");
        let packet = SliceFrame {
            bytes: &bytes,
            interface: 4,
            came_in_by: 3,
            ..SliceFrame::default()
        };
        let other = tables.clone();
        assert_eq!(tables.judge(&packet, Direction::Egress), Reason::Open);
        assert_eq!(tables.judge(&packet, Direction::Egress), Reason::Flow);
        tables.raise_epoch();
        assert_eq!(tables.judge(&packet, Direction::Egress), Reason::Open);
        assert_eq!(tables.judge(&packet, Direction::Ingress), Reason::Denied);
        assert_eq!(
            tables.counted(0, Direction::Egress, Reason::Open).packets,
            2
        );
        assert_eq!(other.counted(0, Direction::Egress, Reason::Open).packets, 0);
    }
}
