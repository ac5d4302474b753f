//! Which programs there should be on which device, and which there are. Pure: the enforcer puts them there.
//!
//! Every device has some, whoever it belongs to: what a pod sends to a Service is judged where it leaves, and any device may be
//! the one. A veth has those of a pod before its pod is known.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use crate::node::{Device, DeviceKind};

/// The devices of this node by index.
#[derive(Default)]
pub(super) struct Hooks {
    /// As they are.
    pub devices: BTreeMap<u32, Device>,
    /// As they were when this process put programs on them.
    pub attached: BTreeMap<u32, Device>,
    /// Found pinned at the start, and not seen to since.
    pub inherited: BTreeSet<u32>,
    /// Why programs could not be put on a device.
    pub errors: BTreeMap<u32, String>,
}

impl Hooks {
    /// A device that lacks its programs and has not failed. Those that are no pod's come first: a pod's packet must not find
    /// a way out while its own device is waiting.
    pub fn to_attach(&self) -> Option<(u32, Device)> {
        self.missing()
            .filter(|(index, _)| !self.errors.contains_key(index))
            .min_by_key(|(index, device)| (Reverse(device.kind), *index))
            .map(|(index, device)| (index, device.clone()))
    }

    /// The devices that lack their programs.
    pub fn missing(&self) -> impl Iterator<Item = (u32, &Device)> {
        self.devices
            .iter()
            .filter(|(index, device)| self.attached.get(index) != Some(device))
            .map(|(&index, device)| (index, device))
    }

    /// A device that has gone and whose pins have to go, too.
    pub fn to_release(&self) -> Option<u32> {
        self.attached
            .keys()
            .chain(&self.inherited)
            .copied()
            .find(|index| !self.devices.contains_key(index) && !self.errors.contains_key(index))
    }

    /// Whether the programs of a pod are on a device.
    pub fn guard_pod(&self, index: u32) -> bool {
        let attached = self.attached.get(&index);
        attached.is_some_and(|device| device.kind == DeviceKind::Pod)
            && attached == self.devices.get(&index)
    }

    /// How many devices of a kind carry their programs.
    pub fn count(&self, kind: DeviceKind) -> usize {
        self.devices
            .iter()
            .filter(|(index, device)| {
                device.kind == kind && self.attached.get(index) == Some(device)
            })
            .count()
    }

    /// What is not in place, in plain words.
    pub fn behind(&self) -> Vec<String> {
        self.missing()
            .map(|(index, device)| match self.errors.get(&index) {
                Some(error) => format!(
                    "device {} ({index}): {error}; until that succeeds, what pods send to Services may leave by it unjudged; it \
                     is tried again",
                    device.name
                ),
                None => format!("device {} ({index}): programs are being put on it", device.name),
            })
            .collect()
    }
}
