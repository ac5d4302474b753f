//! What the lab reads of Services and EndpointSlices, and what it writes into Services as the API server would.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netpol_agent::policy::object::ObjectKey;
use serde_json::{Value, json};

use super::{
    DocumentId, World,
    pod::{PodManifest, list, read_port},
};
use crate::{
    lab::LabError,
    table::{Destination, Family, Party, Port, Via},
};

/// The label of an EndpointSlice that names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// `sessionAffinityConfig.clientIP.timeoutSeconds` where a Service has none.
const AFFINITY_SECONDS: u32 = 10_800;

/// A Service, as far as the lab cares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceManifest {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `spec.ipFamilies` and `spec.ipFamilyPolicy`: the families that it has addresses of. IPv4 where it does not say.
    pub families: Vec<Family>,
    /// `spec.selector`; `None` when its endpoints come from EndpointSlices alone.
    pub selector: Option<BTreeMap<String, String>>,
    /// `clusterIP: None`: a name for its pods, and no virtual address.
    pub headless: bool,
    /// Type NodePort or LoadBalancer: every port has a node port too.
    pub node_ports: bool,
    /// Type LoadBalancer.
    pub balanced: bool,
    /// `spec.clusterIPs`
    pub cluster_addresses: Vec<IpAddr>,
    /// `spec.externalIPs`
    pub external_addresses: Vec<IpAddr>,
    /// `status.loadBalancer.ingress`
    pub balancer_addresses: Vec<IpAddr>,
    /// `sessionAffinity: ClientIP`, and for how many seconds.
    pub affinity: Option<u32>,
    /// `externalTrafficPolicy: Local`
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`
    pub internal_local: bool,
    /// `spec.ports`
    pub ports: Vec<ServicePort>,
}

/// One entry of `spec.ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// `name`, empty where there is none.
    pub name: String,
    /// `port` and `protocol`.
    pub port: Port,
    /// `targetPort`
    pub target: Target,
    /// `nodePort`
    pub node_port: Option<u16>,
}

/// Where a Service's port leads to on a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// This port.
    Number(u16),
    /// The container port of this name.
    Name(String),
}

/// Somebody who serves a port of a Service.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Endpoint {
    /// A pod that the selector selects.
    Pod {
        /// Which.
        key: ObjectKey,
        /// The port on it.
        port: Port,
    },
    /// An address out of an EndpointSlice.
    Address {
        /// The address.
        address: IpAddr,
        /// The port there.
        port: Port,
        /// `nodeName`
        node: Option<String>,
    },
}

/// What the lab gives a Service that does not bring its own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServicePlacement {
    /// For `spec.clusterIPs`.
    pub cluster_addresses: Vec<IpAddr>,
    /// For `status.loadBalancer.ingress`.
    pub balancer_addresses: Vec<IpAddr>,
    /// For `nodePort` of each port.
    pub node_ports: Vec<Option<u16>>,
}

impl ServiceManifest {
    /// Reads a Service document; `None` for any other kind, and for a Service that is only a name for another name.
    pub(super) fn read(value: &Value) -> Result<Option<Self>, String> {
        let spec = &value["spec"];
        if value["kind"] != "Service" || spec["type"] == "ExternalName" {
            return Ok(None);
        }
        let key = ObjectKey::new(
            value["metadata"]["namespace"].as_str().unwrap_or("default"),
            value["metadata"]["name"]
                .as_str()
                .ok_or("a Service without metadata.name")?,
        );
        let wrong = |reason: String| format!("Service {key}: {reason}");
        let ports: Vec<ServicePort> = list(&spec["ports"])
            .iter()
            .map(|port| ServicePort::read(port).map_err(wrong))
            .collect::<Result<_, _>>()?;
        let headless = spec["clusterIP"] == "None";
        let mut cluster_addresses = addresses(list(&spec["clusterIPs"]), "spec.clusterIPs");
        if cluster_addresses.as_ref().is_ok_and(Vec::is_empty) {
            cluster_addresses = addresses(std::slice::from_ref(&spec["clusterIP"]), "clusterIP");
        }
        let ingress: Vec<Value> = list(&value["status"]["loadBalancer"]["ingress"])
            .iter()
            .map(|ingress| ingress["ip"].clone())
            .collect();
        let affinity = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
        let balanced = spec["type"] == "LoadBalancer";
        Ok(Some(Self {
            families: families(spec),
            selector: selector(spec),
            headless,
            node_ports: spec["type"] == "NodePort"
                || (balanced && spec["allocateLoadBalancerNodePorts"] != false),
            balanced,
            cluster_addresses: cluster_addresses.map_err(wrong)?,
            external_addresses: addresses(list(&spec["externalIPs"]), "externalIPs")
                .map_err(wrong)?,
            balancer_addresses: addresses(&ingress, "loadBalancer.ingress").map_err(wrong)?,
            affinity: (spec["sessionAffinity"] == "ClientIP").then(|| {
                let seconds = affinity.as_u64().and_then(|s| u32::try_from(s).ok());
                seconds.unwrap_or(AFFINITY_SECONDS)
            }),
            external_local: spec["externalTrafficPolicy"] == "Local",
            internal_local: spec["internalTrafficPolicy"] == "Local",
            ports,
            key,
        }))
    }
}

impl ServicePort {
    fn read(value: &Value) -> Result<Self, String> {
        let port = read_port(value, "port")?;
        let number = |value: &Value| value.as_u64().and_then(|n| u16::try_from(n).ok());
        let target = match (&value["targetPort"], port.transport()) {
            (Value::Null, Some((_, port))) => Target::Number(port),
            (Value::String(name), _) => Target::Name(name.clone()),
            (other, _) => Target::Number(
                number(other).ok_or_else(|| format!("targetPort: {other} is no port"))?,
            ),
        };
        Ok(Self {
            name: value["name"].as_str().unwrap_or_default().to_owned(),
            port,
            target,
            node_port: number(&value["nodePort"]),
        })
    }
}

/// A Service without a policy has one family, its first; one that prefers or requires two has both.
fn families(spec: &Value) -> Vec<Family> {
    let named: Vec<Family> = list(&spec["ipFamilies"])
        .iter()
        .filter_map(|name| {
            Family::ALL
                .into_iter()
                .find(|family| Some(family.to_string().as_str()) == name.as_str())
        })
        .collect();
    let dual = matches!(
        spec["ipFamilyPolicy"].as_str(),
        Some("PreferDualStack" | "RequireDualStack")
    );
    match (named.is_empty(), dual) {
        (true, true) => Family::ALL.into(),
        (true, false) => vec![Family::V4],
        (false, true) if named.len() == 1 => {
            let other = Family::ALL.into_iter().filter(|family| *family != named[0]);
            named.iter().copied().chain(other).collect()
        }
        (false, _) => named,
    }
}

fn selector(spec: &Value) -> Option<BTreeMap<String, String>> {
    let selector = spec["selector"].as_object()?;
    let labels = selector
        .iter()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
    Some(labels.collect())
}

fn addresses(values: &[Value], field: &str) -> Result<Vec<IpAddr>, String> {
    values
        .iter()
        .filter_map(Value::as_str)
        .filter(|text| !text.is_empty() && *text != "None")
        .map(|text| {
            text.parse()
                .map_err(|_| format!("{field}: {text} is no address"))
        })
        .collect()
}

impl World {
    /// The Services that the lab understands, in order.
    pub fn services(&self) -> Vec<ServiceManifest> {
        self.objects()
            .filter_map(|(_, value)| ServiceManifest::read(value).transpose()?.ok())
            .collect()
    }

    /// Every port of every Service that has a cluster address, by it.
    pub fn service_destinations(&self) -> BTreeSet<Destination> {
        let virtual_ones = self.services().into_iter().filter(|s| !s.headless);
        virtual_ones
            .flat_map(|service| {
                let party = Party::Service(service.key, Via::ClusterIp);
                let ports = service.ports.into_iter();
                ports.map(move |port| Destination::new(party.clone(), port.port))
            })
            .collect()
    }

    /// The running pods and the hosts behind a Service's port, each with its own port.
    pub fn backends(&self, destination: &Destination) -> BTreeSet<Destination> {
        let Party::Service(key, _) = &destination.party else {
            return BTreeSet::from([destination.clone()]);
        };
        let services = self.services();
        let service = services.iter().find(|service| service.key == *key);
        let hosts = self.hosts();
        let party_at = |address: IpAddr| {
            let host = hosts
                .iter()
                .find(|host| host.addresses.contains(&address))?;
            Some(Party::host(&host.name))
        };
        service
            .into_iter()
            .flat_map(|service| service.ports.iter().map(move |port| (service, port)))
            .filter(|(_, port)| port.port == destination.port)
            .flat_map(|(service, port)| self.endpoints(service, port))
            .filter_map(|endpoint| match endpoint {
                Endpoint::Pod { key, port } => Some(Destination::new(Party::Pod(key), port)),
                Endpoint::Address { address, port, .. } => {
                    Some(Destination::new(party_at(address)?, port))
                }
            })
            .collect()
    }

    /// Who serves a port of a Service: the running pods that its selector selects, or what its EndpointSlices name.
    pub fn endpoints(&self, service: &ServiceManifest, port: &ServicePort) -> Vec<Endpoint> {
        let mut found: Vec<Endpoint> = match &service.selector {
            Some(selector) => self.selected(service, selector, port),
            None => self.sliced(service, port),
        };
        found.sort();
        found.dedup();
        found
    }

    fn selected(
        &self,
        service: &ServiceManifest,
        selector: &BTreeMap<String, String>,
        port: &ServicePort,
    ) -> Vec<Endpoint> {
        let pods = self.objects().filter_map(|(_, value)| {
            let pod = PodManifest::read(value).ok()??;
            let labels = &value["metadata"]["labels"];
            let selected = pod.key.namespace == service.key.namespace
                && selector
                    .iter()
                    .all(|(key, label)| labels[key] == label.as_str());
            let ending = !value["metadata"]["deletionTimestamp"].is_null();
            (selected && !pod.finished && !ending).then_some((pod.key, value))
        });
        pods.filter_map(|(key, pod)| {
            let number = match &port.target {
                Target::Number(number) => *number,
                Target::Name(name) => named_port(pod, name, port.port)?,
            };
            let port = port.port.with_number(number);
            Some(Endpoint::Pod { key, port })
        })
        .collect()
    }

    fn sliced(&self, service: &ServiceManifest, port: &ServicePort) -> Vec<Endpoint> {
        let slices = self.objects().map(|(_, value)| value).filter(|value| {
            value["kind"] == "EndpointSlice"
                && value["metadata"]["namespace"].as_str().unwrap_or("default")
                    == service.key.namespace
                && value["metadata"]["labels"][SERVICE_LABEL] == service.key.name.as_str()
        });
        slices
            .flat_map(|slice| {
                let number = list(&slice["ports"])
                    .iter()
                    .filter(|there| there["name"].as_str().unwrap_or_default() == port.name)
                    .find_map(|there| read_port(there, "port").ok())
                    .filter(|there| there.with_number(0) == port.port.with_number(0));
                list(&slice["endpoints"])
                    .iter()
                    .filter(|endpoint| endpoint["conditions"]["ready"] != false)
                    .filter_map(move |endpoint| {
                        Some(Endpoint::Address {
                            address: endpoint["addresses"][0].as_str()?.parse().ok()?,
                            port: number?,
                            node: endpoint["nodeName"].as_str().map(str::to_owned),
                        })
                    })
            })
            .collect()
    }

    /// Writes into each Service what `place` gives it; says nothing of those that have it already.
    pub(crate) fn place_services(
        &mut self,
        mut place: impl FnMut(&ServiceManifest) -> ServicePlacement,
    ) -> Result<(), LabError> {
        for service in self.services() {
            let placement = place(&service);
            let ports = service.ports.iter().map(|port| port.node_port);
            let is_so = service.cluster_addresses == placement.cluster_addresses
                && service.balancer_addresses == placement.balancer_addresses
                && ports.eq(placement.node_ports.iter().copied());
            if is_so {
                continue;
            }
            let id = DocumentId::new("Service", &service.key.namespace, &service.key.name);
            self.edit(&id, |value| write(value, &service, &placement))?;
        }
        Ok(())
    }
}

fn write(value: &mut Value, service: &ServiceManifest, placement: &ServicePlacement) {
    let spec = &mut value["spec"];
    if let Some(first) = placement.cluster_addresses.first() {
        spec["clusterIP"] = json!(first);
        spec["clusterIPs"] = json!(placement.cluster_addresses);
    }
    let families: Vec<String> = service.families.iter().map(Family::to_string).collect();
    spec["ipFamilies"] = json!(families);
    for (nth, node_port) in placement.node_ports.iter().enumerate() {
        if let Some(node_port) = node_port {
            spec["ports"][nth]["nodePort"] = json!(node_port);
        }
    }
    if !placement.balancer_addresses.is_empty() {
        let ingress: Vec<Value> = placement
            .balancer_addresses
            .iter()
            .map(|address| json!({ "ip": address }))
            .collect();
        value["status"]["loadBalancer"]["ingress"] = json!(ingress);
    }
}

/// The container port of a name, of the Service port's protocol.
fn named_port(pod: &Value, name: &str, like: Port) -> Option<u16> {
    list(&pod["spec"]["containers"])
        .iter()
        .flat_map(|container| list(&container["ports"]))
        .filter(|port| port["name"] == name)
        .filter_map(|port| read_port(port, "containerPort").ok())
        .find(|port| port.with_number(0) == like.with_number(0))
        .and_then(Port::transport)
        .map(|(_, number)| number)
}
