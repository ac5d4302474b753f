//! One scenario on a cluster: its objects under their new names, its pods' addresses, and tables of what they reach.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use netpol_agent::policy::object::ObjectKey;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    Options,
    client::{Cluster, Shell},
    names::Names,
    pods::{self, Readiness},
    probes::{Plan, Probe},
    script,
};
use crate::{
    manifests::{API_KINDS, DocumentId, World},
    scenario::Scenario,
    table::{Family, Outcome, Party, Table, Via},
};

/// A scenario's own namespace for the pods in the nodes' networks. No scenario calls a namespace this.
const NODES: &str = "on-nodes";
/// How long images may be pulled and pods started.
const PODS_PATIENCE: Duration = Duration::from_secs(300);

/// A scenario's world on the cluster.
pub struct Stage<'a> {
    cluster: &'a Cluster,
    options: &'a Options,
    names: Names,
    nodes: &'a [String],
    /// Which pod is on which node.
    pub placement: BTreeMap<ObjectKey, String>,
    applied: BTreeMap<DocumentId, Value>,
    addresses: BTreeMap<Party, Vec<IpAddr>>,
}

impl<'a> Stage<'a> {
    /// Makes the world of a scenario, without policies, and waits until its pods run.
    pub async fn set(
        cluster: &'a Cluster,
        options: &'a Options,
        scenario: &Scenario,
        nodes: &'a [String],
        start: usize,
    ) -> Result<Self> {
        let names = Names::new(&options.prefix, &scenario.name);
        let keys = scenario.world.pods().into_iter().map(|pod| pod.key);
        let mut stage = Self {
            cluster,
            options,
            placement: pods::spread(keys, nodes, start),
            names,
            nodes,
            applied: BTreeMap::new(),
            addresses: BTreeMap::new(),
        };
        stage.become_world(&scenario.world).await?;
        stage.send_to_nodes().await?;
        stage.wait_for_pods().await?;
        stage.read_addresses(&scenario.world).await?;
        Ok(stage)
    }

    /// Brings the cluster's objects to those of a world: applies what is new or changed, deletes what is no longer there.
    pub async fn become_world(&mut self, world: &World) -> Result<()> {
        let wanted = self.objects(world)?;
        for (id, object) in &self.applied {
            if !wanted.contains_key(id) {
                self.cluster.delete(object).await?;
            }
        }
        for kind in API_KINDS {
            for (id, object) in wanted.iter().filter(|(id, _)| id.kind == kind) {
                if self.applied.get(id) == Some(object) {
                    continue;
                }
                if kind == "Namespace" && !self.applied.contains_key(id) {
                    self.cluster.claim(object).await?;
                } else {
                    self.cluster.apply(object).await?;
                }
            }
        }
        self.applied = wanted;
        Ok(())
    }

    /// What a world's documents are on this cluster.
    fn objects(&self, world: &World) -> Result<BTreeMap<DocumentId, Value>> {
        let mut objects = BTreeMap::new();
        for kind in world.kinds() {
            if kind == "Host" {
                continue;
            }
            for document in world.values(&kind, |_| None) {
                let key = ObjectKey::new(
                    document["metadata"]["namespace"]
                        .as_str()
                        .unwrap_or("default"),
                    document["metadata"]["name"].as_str().unwrap_or_default(),
                );
                let mut object = self.names.rename(&document)?;
                if kind == "Pod" {
                    let node = self.placement.get(&key);
                    let node = node.with_context(|| format!("pod {key} is new in this step"))?;
                    object = pods::complete(object, node, self.options.probe_image.as_deref());
                }
                let id = DocumentId::of(&object).context("a document without a name")?;
                objects.insert(id, object);
            }
        }
        Ok(objects)
    }

    /// A pod in the network of each node.
    async fn send_to_nodes(&self) -> Result<()> {
        let pod = self.applied.values().find(|object| object["kind"] == "Pod");
        let image = pod.and_then(pods::image).context("a scenario has pods")?;
        let namespace = serde_json::json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": NODES, "labels": {"pod-security.kubernetes.io/enforce": "privileged"}},
        });
        self.cluster.claim(&self.names.rename(&namespace)?).await?;
        for (nth, node) in self.nodes.iter().enumerate() {
            let pod = pods::on_the_node(&self.names.namespace(NODES), &node_pod(nth), node, image);
            self.cluster.apply(&pod).await?;
        }
        Ok(())
    }

    /// Waits until every pod of ours is ready.
    async fn wait_for_pods(&self) -> Result<()> {
        let mut wanted: BTreeSet<(String, String)> = self
            .placement
            .keys()
            .map(|key| (self.names.namespace(&key.namespace), key.name.clone()))
            .collect();
        wanted
            .extend((0..self.nodes.len()).map(|nth| (self.names.namespace(NODES), node_pod(nth))));
        let end = Instant::now() + PODS_PATIENCE;
        loop {
            let mut waiting = Vec::new();
            for (namespace, name) in &wanted {
                let id = format!("{namespace}/{name}");
                match pods::readiness(&self.cluster.get(&DocumentId::pod(namespace, name)).await?) {
                    Readiness::Ready => {}
                    Readiness::NotYet(detail) => waiting.push(format!("{id}: {detail}")),
                    Readiness::Never(detail) => bail!("pod {id} does not run: {detail}"),
                }
            }
            if waiting.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                bail!(
                    "pods are not ready after {} s: {}",
                    PODS_PATIENCE.as_secs(),
                    waiting.join("; ")
                );
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// Reads the addresses that the cluster gave to pods and Services.
    async fn read_addresses(&mut self, world: &World) -> Result<()> {
        for key in self.placement.keys() {
            let namespace = self.names.namespace(&key.namespace);
            let id = DocumentId::pod(&namespace, &key.name);
            let pod = self.cluster.get(&id).await?;
            let addresses = addresses(&pod["status"]["podIPs"], "/ip");
            self.addresses.insert(Party::Pod(key.clone()), addresses);
        }
        for service in world.services() {
            let namespace = self.names.namespace(&service.key.namespace);
            let id = DocumentId::new("Service", &namespace, &service.key.name);
            let object = self.cluster.get(&id).await?;
            let addresses = addresses(&object["spec"]["clusterIPs"], "");
            let party = Party::Service(service.key, Via::ClusterIp);
            self.addresses.insert(party, addresses);
        }
        Ok(())
    }

    /// Probes the cells of a table, and names the families that nobody here has an address of.
    pub async fn probe(&self, cells: &Table) -> Result<(Table, BTreeSet<Family>)> {
        let (probes, missing) = Plan::probes(cells, &self.addresses);
        let mut by_pod: BTreeMap<Shell, Vec<&Probe>> = BTreeMap::new();
        for probe in &probes {
            by_pod.entry(self.from(probe)?).or_default().push(probe);
        }
        let timeout = self.options.timeout;
        let tables: Vec<Vec<(&Probe, Outcome)>> = stream::iter(by_pod)
            .map(|(shell, probes)| async move {
                let script = script::script(&probes, timeout);
                // Batches run one after the other.
                let longest = timeout * u32::try_from(probes.len()).unwrap_or(u32::MAX);
                let read = |printed: &str| script::outcomes(printed, probes.len());
                let outcomes = self.cluster.shell(&shell, &script, longest, read).await?;
                anyhow::Ok(probes.into_iter().zip(outcomes).collect())
            })
            .buffer_unordered(64)
            .try_collect()
            .await?;
        let mut found = Table::new();
        for (probe, outcome) in tables.into_iter().flatten() {
            found.set(&probe.source, &probe.destination, probe.family(), outcome);
        }
        Ok((found, missing))
    }

    /// Where a probe starts: for the node, in the pod in the network of the destination's own node.
    fn from(&self, probe: &Probe) -> Result<Shell> {
        let (namespace, pod) = match (&probe.source, &probe.destination.party) {
            (Party::Pod(key), _) => (self.names.namespace(&key.namespace), key.name.clone()),
            (Party::Node, Party::Pod(key)) => {
                let node = self.placement.get(key).context("a pod without a node")?;
                let nth = self.nodes.iter().position(|other| other == node);
                let nth = nth.with_context(|| format!("{node} is none of the nodes"))?;
                (self.names.namespace(NODES), node_pod(nth))
            }
            (source, destination) => bail!("no pod stands for {source} toward {destination}"),
        };
        let object = self.applied.get(&DocumentId::pod(&namespace, &pod));
        let container = object.and_then(pods::first_container);
        Ok(Shell {
            container: container.unwrap_or(pods::NODE_CONTAINER).to_owned(),
            namespace,
            pod,
        })
    }

    /// Deletes everything, without waiting for its end.
    pub async fn strike(&self) -> Result<()> {
        let ours = self.applied.keys().filter(|id| id.kind == "Namespace");
        let ours = ours.map(|id| id.name.clone());
        self.cluster
            .delete_namespaces(ours.chain([self.names.namespace(NODES)]))
            .await
    }
}

fn node_pod(nth: usize) -> String {
    format!("node-{nth}")
}

/// The addresses in a list, each at a pointer inside its item.
fn addresses(list: &Value, pointer: &str) -> Vec<IpAddr> {
    let items = list.as_array().into_iter().flatten();
    items
        .filter_map(|item| item.pointer(pointer)?.as_str()?.parse().ok())
        .collect()
}
