//! Keeping the lab equal to its world: who comes, who goes, and the manifests that the agent reads.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    sync::Arc,
};

use netpol_agent::policy::object::ObjectKey;
use serde_json::Value;

use super::{
    Lab, Place, Seat,
    error::LabError,
    run_dir::PREFIX,
    serve,
    station::Station,
    topology::{NODE_NAME, NODE_NUMBER, pod_addresses},
};
use crate::{
    manifests::{DocumentId, Placement, PodManifest, World},
    table::{Family, Party, Port},
};

/// Which addresses a restarted pod has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Restart {
    /// Those it had.
    SameAddress,
    /// New ones.
    NewAddress,
}

/// Which subnet a node has, and which index in it a pod has. Nothing is given twice, unless a manifest asks for it.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    nodes: BTreeMap<String, u8>,
    next: BTreeMap<u8, u16>,
    pods: BTreeMap<ObjectKey, (u8, u16)>,
}

impl Addresses {
    fn node(&mut self, name: &str) -> u8 {
        if name == NODE_NAME {
            return NODE_NUMBER;
        }
        // A lab has a handful of nodes; they share the numbers after its own.
        let next = NODE_NUMBER + 1 + self.nodes.len() as u8;
        *self.nodes.entry(name.to_owned()).or_insert(next)
    }

    fn pod(&mut self, pod: &PodManifest) -> Vec<IpAddr> {
        let node = self.node(pod.node.as_deref().unwrap_or(NODE_NAME));
        let known = self.pods.get(&pod.key).filter(|(on, _)| *on == node);
        let index = match (pod.address_index, known) {
            (Some(index), _) => index,
            (None, Some((_, index))) => *index,
            (None, None) => {
                // 1 is the router.
                let next = self.next.entry(node).or_insert(2);
                *next += 1;
                *next - 1
            }
        };
        self.pods.insert(pod.key.clone(), (node, index));
        pod_addresses(node, index)
            .into_iter()
            .filter(|address| pod.family.is_none_or(|only| Family::of(*address) == only))
            .collect()
    }

    fn forget(&mut self, key: &ObjectKey) {
        self.pods.remove(key);
    }
}

/// A party as its manifest wants it.
struct Wish {
    addresses: Vec<IpAddr>,
    ports: Vec<Port>,
    /// The node of a pod, or nothing for a host.
    node: Option<String>,
    /// It has no namespace of its own: it shares its node's.
    in_node: bool,
}

impl Lab {
    /// The world as it is.
    pub const fn world(&self) -> &World {
        &self.world
    }

    /// Changes the world, and the lab with it: pods and hosts come and go, the agent's manifests are rewritten.
    pub fn change(
        &mut self,
        change: impl FnOnce(&mut World) -> Result<(), LabError>,
    ) -> Result<(), LabError> {
        change(&mut self.world)?;
        self.sync()
    }

    /// The documents of a kind as the agent sees them: pods with their node and their addresses.
    pub fn documents(&self, kind: &str) -> Vec<Value> {
        self.world.values(kind, |pod| self.placement(pod))
    }

    /// Replaces the whole world.
    pub fn replace_world(&mut self, world: World) -> Result<(), LabError> {
        self.world = world;
        self.sync()
    }

    /// Applies YAML documents, as `kubectl apply` would.
    pub fn apply(&mut self, text: &str) -> Result<(), LabError> {
        self.change(|world| {
            world.apply(text);
            Ok(())
        })
    }

    /// Deletes a document; of a pod, its namespace too.
    pub fn delete(&mut self, id: &DocumentId) -> Result<(), LabError> {
        self.change(|world| world.remove(id))
    }

    /// Sets (`Some`) and removes (`None`) labels.
    pub fn label(
        &mut self,
        id: &DocumentId,
        labels: &[(&str, Option<&str>)],
    ) -> Result<(), LabError> {
        self.change(|world| world.label(id, labels))
    }

    /// Replaces a pod's sandbox: a new namespace, a new interface, new servers, and new addresses if so wished.
    pub fn restart_pod(
        &mut self,
        namespace: &str,
        name: &str,
        restart: Restart,
    ) -> Result<(), LabError> {
        let key = ObjectKey::new(namespace, name);
        let party = Party::Pod(key.clone());
        if !self.parties.contains_key(&party) {
            return Err(LabError::NoSuchParty(party));
        }
        self.leave(&party)?;
        if restart == Restart::NewAddress {
            self.addresses.forget(&key);
        }
        self.sync()
    }

    /// Makes the lab what its world says.
    pub(super) fn sync(&mut self) -> Result<(), LabError> {
        self.add_nodes()?;
        let wishes = self.wishes();
        let gone: Vec<Party> = self
            .parties
            .iter()
            .filter(|(party, seat)| wishes.get(party).is_none_or(|wish| !seat.fits(wish)))
            .map(|(party, _)| party.clone())
            .collect();
        for party in gone {
            self.leave(&party)?;
        }
        let pods: BTreeSet<Party> = self
            .world
            .pods()
            .into_iter()
            .map(|pod| Party::Pod(pod.key))
            .collect();
        self.addresses
            .pods
            .retain(|key, _| pods.contains(&Party::Pod(key.clone())));
        for (party, wish) in wishes {
            self.settle(&party, wish)?;
        }
        self.sync_services()?;
        self.write_manifests()
    }

    /// With a backend, builds the nodes that pods name.
    fn add_nodes(&mut self) -> Result<(), LabError> {
        if self.backbone.backend.is_none() {
            return Ok(());
        }
        let pods = self.world.pods().into_iter().filter(|pod| !pod.finished);
        let names: BTreeSet<String> = pods.filter_map(|pod| pod.node).collect();
        for name in names {
            if !self.backbone.nodes.contains_key(&name) {
                self.run_dir.add_node(&name)?;
                let number = self.addresses.node(&name);
                self.backbone.add_node(&name, number)?;
            }
        }
        Ok(())
    }

    fn wishes(&mut self) -> BTreeMap<Party, Wish> {
        let mut wishes = BTreeMap::new();
        for pod in self.world.pods().into_iter().filter(|pod| !pod.finished) {
            let name = pod.node.as_deref().unwrap_or(NODE_NAME);
            let node = self.backbone.nodes.get(name);
            let host = node.filter(|_| pod.host_network);
            let wish = Wish {
                addresses: match host {
                    Some(node) => node.addresses().into(),
                    None => self.addresses.pod(&pod),
                },
                node: Some(name.to_owned()),
                in_node: host.is_some(),
                ports: pod.ports,
            };
            wishes.insert(Party::Pod(pod.key), wish);
        }
        for host in self.world.hosts() {
            let wish = Wish {
                addresses: host.addresses,
                ports: host.ports,
                node: None,
                in_node: false,
            };
            wishes.insert(Party::Host(host.name), wish);
        }
        wishes
    }

    /// Removes a party's servers, its connection and its namespace.
    fn leave(&mut self, party: &Party) -> Result<(), LabError> {
        let Some(seat) = self.parties.remove(party) else {
            return Ok(());
        };
        for server in &seat.servers {
            server.abort();
        }
        match &seat.place {
            Place::Own { cable, .. } => self.backbone.disconnect(cable),
            Place::Node(_) => Ok(()),
        }
    }

    /// Gives a party its place, or only its new ports if it has one.
    fn settle(&mut self, party: &Party, wish: Wish) -> Result<(), LabError> {
        match self.parties.get(party) {
            Some(seat) if seat.ports == wish.ports => return Ok(()),
            Some(_) => {}
            None => {
                let place = self.make_place(party, &wish)?;
                let seat = Seat {
                    place,
                    addresses: wish.addresses,
                    ports: Vec::new(),
                    servers: Vec::new(),
                    inbox: Arc::default(),
                };
                self.parties.insert(party.clone(), seat);
            }
        }
        self.serve(party, wish.ports)
    }

    fn make_place(&mut self, party: &Party, wish: &Wish) -> Result<Place, LabError> {
        if let (true, Some(node)) = (wish.in_node, &wish.node) {
            return Ok(Place::Node(node.clone()));
        }
        let id = self.run_dir.id();
        let (name, label) = match party {
            Party::Pod(key) => (
                format!("{PREFIX}{id}-p-{}-{}", key.namespace, key.name),
                key.name.as_str(),
            ),
            Party::Host(name) => (format!("{PREFIX}{id}-h-{name}"), name.as_str()),
            Party::Node | Party::Machine(_) | Party::Service(..) => {
                return Err(LabError::NoSuchParty(party.clone()));
            }
        };
        let station = Station::create(name)?;
        let node = wish.node.as_deref();
        let cable = self
            .backbone
            .connect(node, &station, label, &wish.addresses)?;
        Ok(Place::Own {
            station,
            cable,
            node: wish.node.clone(),
        })
    }

    fn serve(&mut self, party: &Party, ports: Vec<Port>) -> Result<(), LabError> {
        let worker = &self.station(party)?.worker;
        let seat = &self.parties[party];
        let addresses = seat.addresses.clone();
        let inbox = Arc::clone(&seat.inbox);
        let names = Arc::clone(&self.services.names);
        let old = seat.servers.clone();
        let open = ports.clone();
        let started = worker.run(move || async move {
            for server in old {
                server.abort();
            }
            // An aborted server closes its socket when it is next polled.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            serve::start(&addresses, &open, &inbox, &names)
        });
        let servers = started
            .map_err(|error| LabError::io(format!("start the servers of {party}"), error))?;
        if let Some(seat) = self.parties.get_mut(party) {
            seat.servers = servers;
            seat.ports = ports;
        }
        Ok(())
    }

    fn placement(&self, pod: &PodManifest) -> Option<Placement> {
        let seat = self.parties.get(&Party::Pod(pod.key.clone()))?;
        let node = seat.place.node().unwrap_or(NODE_NAME);
        let built = self.backbone.nodes.get(node);
        Some(Placement {
            node: node.to_owned(),
            host_addresses: built.map_or_else(Vec::new, |node| node.addresses().into()),
            addresses: seat.addresses.clone(),
        })
    }

    /// Writes the files that changed, each whole or not at all, and removes those that are gone.
    fn write_manifests(&mut self) -> Result<(), LabError> {
        let files = self.world.materialise(|pod| self.placement(pod));
        let directory = self.run_dir.manifests();
        let failed =
            |file: &str, error: io::Error| LabError::io(format!("write manifest {file}"), error);
        for (file, text) in &files {
            if self.written.get(file) != Some(text) {
                let temporary = directory.join(format!(".{file}.new"));
                fs::write(&temporary, text)
                    .and_then(|()| fs::rename(&temporary, directory.join(file)))
                    .map_err(|error| failed(file, error))?;
            }
        }
        for file in self
            .written
            .keys()
            .filter(|file| !files.contains_key(*file))
        {
            fs::remove_file(directory.join(file)).map_err(|error| failed(file, error))?;
        }
        self.written = files;
        Ok(())
    }
}

impl Seat {
    /// Whether the party can stay where it is.
    fn fits(&self, wish: &Wish) -> bool {
        let in_node = matches!(self.place, Place::Node(_));
        let place = in_node == wish.in_node && self.place.node() == wish.node.as_deref();
        place && self.addresses == wish.addresses
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // In the node's namespace they would go on.
        for server in &self.servers {
            server.abort();
        }
    }
}
