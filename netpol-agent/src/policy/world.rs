//! The cluster as the compiler keeps it: namespaces, pods, and the profiles that pods share.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use netpol_common::Address;

use super::{
    labels::LabelSet,
    object::{Labels, Namespace, ObjectKey, Pod},
    ports::PortNames,
    selector,
    slab::{Handle, Slab},
    term::Match,
};

/// A namespace, as long as its object, a pod or a policy names it.
pub(super) struct Space {
    pub(super) name: Arc<str>,
    pub(super) labels: LabelSet,
    /// Whether there is a Namespace object.
    object: bool,
    pods: HashMap<Arc<str>, Handle<PodRecord>>,
    /// Local pods.
    pub(super) local: BTreeSet<Handle<PodRecord>>,
    pub(super) profiles: BTreeSet<Handle<Profile>>,
}

/// What policies can tell apart about pods: those of one profile are selected by the same policies and match the same
/// selectors. The pods of a deployment share one, so most work is done once for all of them.
pub(super) struct Profile {
    pub(super) key: ProfileKey,
    pub(super) pods: BTreeSet<Handle<PodRecord>>,
    /// The pod terms that the profile matches, sorted.
    pub(super) matches: Vec<Match>,
}

/// See [`Profile`].
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct ProfileKey {
    pub(super) namespace: Handle<Space>,
    pub(super) labels: LabelSet,
    pub(super) ports: Arc<PortNames>,
}

/// A pod that can be a peer.
pub(super) struct PodRecord {
    pub(super) namespace: Handle<Space>,
    pub(super) name: Arc<str>,
    pub(super) uid: Box<str>,
    pub(super) created: i64,
    pub(super) terminating: bool,
    pub(super) local: bool,
    pub(super) addresses: Box<[Address]>,
    pub(super) profile: Handle<Profile>,
}

/// What a change of a pod touched.
pub(super) struct PodChange {
    pub(super) pod: Handle<PodRecord>,
    /// It was local, and is not the same pod any more or is gone.
    pub(super) left: bool,
    /// It is local, and policies may select it differently or resolve its port names differently.
    pub(super) reselect: bool,
    /// A profile that did not exist before.
    pub(super) new_profile: Option<Handle<Profile>>,
    /// A profile that does not exist any more.
    pub(super) old_profile: Option<Handle<Profile>>,
    /// Addresses it claims or claimed.
    pub(super) addresses: Vec<Address>,
}

/// Namespaces, pods and profiles.
pub(super) struct World {
    node: String,
    pub(super) spaces: Slab<Space>,
    names: HashMap<Arc<str>, Handle<Space>>,
    pub(super) pods: Slab<PodRecord>,
    pub(super) profiles: Slab<Profile>,
    by_key: HashMap<ProfileKey, Handle<Profile>>,
    /// Profiles that carry a label, by [`selector::pair`].
    pub(super) by_label: HashMap<u64, BTreeSet<Handle<Profile>>>,
    /// Port names, shared by the profiles that have the same.
    port_names: HashSet<Arc<PortNames>>,
}

/// The label by which the API server marks every namespace.
pub(super) const NAME_LABEL: &str = "kubernetes.io/metadata.name";

fn bare(name: &str) -> LabelSet {
    LabelSet::new(&Labels::from([(NAME_LABEL.to_owned(), name.to_owned())]))
}

impl World {
    pub(super) fn new(node: String) -> Self {
        Self {
            node,
            spaces: Slab::default(),
            names: HashMap::new(),
            pods: Slab::default(),
            profiles: Slab::default(),
            by_key: HashMap::new(),
            by_label: HashMap::new(),
            port_names: HashSet::new(),
        }
    }

    /// The namespace of this name, which exists from now on if only because something in it does.
    pub(super) fn space(&mut self, name: &str) -> Handle<Space> {
        if let Some(space) = self.names.get(name) {
            return *space;
        }
        let name: Arc<str> = name.into();
        let space = self.spaces.insert(Space {
            name: name.clone(),
            labels: bare(&name),
            object: false,
            pods: HashMap::new(),
            local: BTreeSet::new(),
            profiles: BTreeSet::new(),
        });
        self.names.insert(name, space);
        space
    }

    pub(super) fn find_space(&self, name: &str) -> Option<Handle<Space>> {
        self.names.get(name).copied()
    }

    pub(super) fn find_pod(&self, key: &ObjectKey) -> Option<Handle<PodRecord>> {
        let space = self.find_space(&key.namespace)?;
        self.spaces[space].pods.get(key.name.as_str()).copied()
    }

    /// Forgets a namespace that nothing names. `policies` says whether policies do.
    pub(super) fn tidy_space(&mut self, space: Handle<Space>, policies: bool) {
        let record = &self.spaces[space];
        if !record.object && !policies && record.pods.is_empty() && record.profiles.is_empty() {
            let record = self.spaces.remove(space);
            self.names.remove(&record.name);
        }
    }

    /// Sets the labels of a namespace. Returns the profiles that may match differently now.
    pub(super) fn set_namespace(&mut self, namespace: &Namespace) -> Vec<Handle<Profile>> {
        let space = self.space(&namespace.name);
        self.relabel(space, LabelSet::new(&namespace.labels), true)
    }

    /// A namespace without an object has only the label that every namespace has.
    pub(super) fn namespace_gone(&mut self, name: &str) -> Vec<Handle<Profile>> {
        match self.find_space(name) {
            Some(space) => self.relabel(space, bare(name), false),
            None => Vec::new(),
        }
    }

    fn relabel(
        &mut self,
        space: Handle<Space>,
        labels: LabelSet,
        object: bool,
    ) -> Vec<Handle<Profile>> {
        let record = &mut self.spaces[space];
        record.object = object;
        if record.labels == labels {
            return Vec::new();
        }
        record.labels = labels;
        record.profiles.iter().copied().collect()
    }

    /// Adds or changes a pod; `None` if nothing that matters changed.
    pub(super) fn set_pod(&mut self, pod: &Pod) -> Option<PodChange> {
        // The pod is the node, or has given its addresses back: no policy sees it.
        if pod.host_network || pod.finished {
            return self.pod_gone(&pod.key);
        }
        let local = !self.node.is_empty() && pod.node == self.node;
        let mut addresses: Vec<Address> = pod.addresses.iter().map(|a| (*a).into()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let space = self.space(&pod.key.namespace);
        let key = ProfileKey {
            namespace: space,
            labels: LabelSet::new(&pod.labels),
            ports: self.port_names(pod),
        };
        let Some(&handle) = self.spaces[space].pods.get(pod.key.name.as_str()) else {
            let (profile, new) = self.profile(key);
            let name: Arc<str> = pod.key.name.as_str().into();
            let handle = self.pods.insert(PodRecord {
                namespace: space,
                name: name.clone(),
                uid: pod.uid.as_str().into(),
                created: pod.created,
                terminating: pod.terminating,
                local,
                addresses: addresses.clone().into(),
                profile,
            });
            self.profiles[profile].pods.insert(handle);
            let record = &mut self.spaces[space];
            record.pods.insert(name, handle);
            if local {
                record.local.insert(handle);
            }
            return Some(PodChange {
                pod: handle,
                left: false,
                reselect: local,
                new_profile: new.then_some(profile),
                old_profile: None,
                addresses,
            });
        };

        let record = &self.pods[handle];
        let (was_local, old) = (record.local, record.profile);
        let moved = self.profiles[old].key != key;
        let same = !moved
            && record.uid.as_ref() == pod.uid
            && record.created == pod.created
            && record.terminating == pod.terminating
            && record.local == local
            && *record.addresses == addresses[..];
        if same {
            return None;
        }
        let mut touched = record.addresses.to_vec();
        touched.extend_from_slice(&addresses);
        let (mut new_profile, mut old_profile) = (None, None);
        if moved {
            let (profile, new) = self.profile(key);
            new_profile = new.then_some(profile);
            self.profiles[profile].pods.insert(handle);
            self.pods[handle].profile = profile;
            old_profile = self.leave(old, handle);
        }
        let record = &mut self.pods[handle];
        record.uid = pod.uid.as_str().into();
        record.created = pod.created;
        record.terminating = pod.terminating;
        record.local = local;
        record.addresses = addresses.into();
        if local {
            self.spaces[space].local.insert(handle);
        } else {
            self.spaces[space].local.remove(&handle);
        }
        Some(PodChange {
            pod: handle,
            left: was_local && !local,
            reselect: local && (moved || !was_local),
            new_profile,
            old_profile,
            addresses: touched,
        })
    }

    /// Removes a pod. Its handle names nothing from now on.
    pub(super) fn pod_gone(&mut self, key: &ObjectKey) -> Option<PodChange> {
        let space = self.find_space(&key.namespace)?;
        let handle = self.spaces[space].pods.remove(key.name.as_str())?;
        self.spaces[space].local.remove(&handle);
        let record = self.pods.remove(handle);
        let old_profile = self.leave(record.profile, handle);
        Some(PodChange {
            pod: handle,
            left: record.local,
            reselect: false,
            new_profile: None,
            old_profile,
            addresses: record.addresses.into(),
        })
    }

    /// Namespace and name of a pod.
    pub(super) fn pod_key(&self, pod: Handle<PodRecord>) -> ObjectKey {
        let record = &self.pods[pod];
        ObjectKey::new(&*self.spaces[record.namespace].name, &*record.name)
    }

    /// Which of two pods that claim an address has it: the one that is not going away, then the younger one.
    pub(super) fn rank(&self, pod: Handle<PodRecord>) -> impl Ord + '_ {
        let record = &self.pods[pod];
        (
            !record.terminating,
            record.created,
            &record.uid,
            &self.spaces[record.namespace].name,
            &record.name,
        )
    }

    fn port_names(&mut self, pod: &Pod) -> Arc<PortNames> {
        let mut names = PortNames::new();
        for port in &pod.ports {
            if let Some(name) = &port.name {
                // The first container that has the name counts, as for a Service (podutil.FindPort).
                names
                    .entry((port.protocol, name.clone()))
                    .or_insert(port.port);
            }
        }
        if let Some(shared) = self.port_names.get(&names) {
            return shared.clone();
        }
        let names = Arc::new(names);
        self.port_names.insert(names.clone());
        names
    }

    /// The profile of this key, and whether it is new.
    fn profile(&mut self, key: ProfileKey) -> (Handle<Profile>, bool) {
        if let Some(profile) = self.by_key.get(&key) {
            return (*profile, false);
        }
        let profile = self.profiles.insert(Profile {
            key: key.clone(),
            pods: BTreeSet::new(),
            matches: Vec::new(),
        });
        for (k, v) in key.labels.iter() {
            self.by_label
                .entry(selector::pair(k, v))
                .or_default()
                .insert(profile);
        }
        self.spaces[key.namespace].profiles.insert(profile);
        self.by_key.insert(key, profile);
        (profile, true)
    }

    /// Takes a pod out of a profile. Returns the profile if that was its last pod, and it is gone.
    fn leave(
        &mut self,
        profile: Handle<Profile>,
        pod: Handle<PodRecord>,
    ) -> Option<Handle<Profile>> {
        let pods = &mut self.profiles[profile].pods;
        pods.remove(&pod);
        if !pods.is_empty() {
            return None;
        }
        let Profile { key, .. } = self.profiles.remove(profile);
        self.spaces[key.namespace].profiles.remove(&profile);
        for (k, v) in key.labels.iter() {
            let label = selector::pair(k, v);
            if let Some(listed) = self.by_label.get_mut(&label) {
                listed.remove(&profile);
                if listed.is_empty() {
                    self.by_label.remove(&label);
                }
            }
        }
        self.by_key.remove(&key);
        let ports = key.ports;
        // This one and the key of the table.
        if Arc::strong_count(&ports) <= 2 {
            self.port_names.remove(&ports);
        }
        Some(profile)
    }
}
