//! What the lab reads of Pods and Hosts, and what it writes into Pods.

use std::net::IpAddr;

use netpol_agent::policy::object::ObjectKey;
use serde_json::{Value, json};

use crate::table::{Family, Port};

/// A pod, as far as the lab cares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodManifest {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `spec.nodeName`
    pub node: Option<String>,
    /// `spec.hostNetwork`
    pub host_network: bool,
    /// `status.phase` is Succeeded or Failed: it runs nowhere, and its manifest stays as it is.
    pub finished: bool,
    /// Ports of the containers and of the restartable init containers.
    pub ports: Vec<Port>,
    /// Annotation `lab.netpol-agent/address-index`: the last part of its addresses, for a test that gives an address away.
    pub address_index: Option<u16>,
    /// Annotation `lab.netpol-agent/family`, `IPv4` or `IPv6`: the only family that it has an address of.
    pub family: Option<Family>,
}

/// A host outside the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostManifest {
    /// `metadata.name`
    pub name: String,
    /// `spec.addresses`
    pub addresses: Vec<IpAddr>,
    /// `spec.ports`
    pub ports: Vec<Port>,
}

/// Where a pod runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    /// For `spec.nodeName`.
    pub node: String,
    /// For `status.hostIPs`.
    pub host_addresses: Vec<IpAddr>,
    /// For `status.podIPs`.
    pub addresses: Vec<IpAddr>,
}

impl PodManifest {
    /// Reads a Pod document; `None` for any other kind.
    pub(super) fn read(value: &Value) -> Result<Option<Self>, String> {
        if value["kind"] != "Pod" {
            return Ok(None);
        }
        let key = ObjectKey::new(
            value["metadata"]["namespace"].as_str().unwrap_or("default"),
            value["metadata"]["name"]
                .as_str()
                .ok_or("a Pod without metadata.name")?,
        );
        let spec = &value["spec"];
        let mut ports = Vec::new();
        let init = list(&spec["initContainers"])
            .iter()
            .filter(|container| container["restartPolicy"] == "Always");
        for container in list(&spec["containers"]).iter().chain(init) {
            for port in list(&container["ports"]) {
                let read = read_port(port, "containerPort")
                    .map_err(|reason| format!("Pod {key}: {reason}"))?;
                ports.push(read);
            }
        }
        ports.sort_unstable();
        ports.dedup();
        let annotations = &value["metadata"]["annotations"];
        let index = &annotations["lab.netpol-agent/address-index"];
        let only = annotations["lab.netpol-agent/family"].as_str();
        Ok(Some(Self {
            node: spec["nodeName"].as_str().map(str::to_owned),
            host_network: spec["hostNetwork"] == true,
            finished: value["status"]["phase"] == "Succeeded"
                || value["status"]["phase"] == "Failed",
            ports,
            address_index: index.as_str().and_then(|index| index.parse().ok()),
            family: Family::ALL
                .into_iter()
                .find(|family| Some(family.to_string().as_str()) == only),
            key,
        }))
    }
}

impl HostManifest {
    /// Reads a Host document; `None` for any other kind.
    pub(super) fn read(value: &Value) -> Result<Option<Self>, String> {
        let is_ours = value["apiVersion"]
            .as_str()
            .is_some_and(|version| version.starts_with("lab.netpol-agent/"));
        if value["kind"] != "Host" || !is_ours {
            return Ok(None);
        }
        let name = value["metadata"]["name"]
            .as_str()
            .ok_or("a Host without metadata.name")?
            .to_owned();
        let addresses: Vec<IpAddr> = list(&value["spec"]["addresses"])
            .iter()
            .map(|address| {
                address
                    .as_str()
                    .and_then(|address| address.parse().ok())
                    .ok_or_else(|| format!("Host {name}: spec.addresses: {address} is no address"))
            })
            .collect::<Result<_, _>>()?;
        if addresses.is_empty() {
            return Err(format!("Host {name}: spec.addresses is empty"));
        }
        if addresses.iter().any(|address| {
            addresses
                .iter()
                .filter(|other| Family::of(**other) == Family::of(*address))
                .count()
                > 1
        }) {
            return Err(format!("Host {name}: spec.addresses has two of one family"));
        }
        let mut ports: Vec<Port> = list(&value["spec"]["ports"])
            .iter()
            .map(|port| read_port(port, "port").map_err(|reason| format!("Host {name}: {reason}")))
            .collect::<Result<_, _>>()?;
        ports.sort_unstable();
        ports.dedup();
        Ok(Some(Self {
            name,
            addresses,
            ports,
        }))
    }
}

pub(super) fn read_port(port: &Value, field: &str) -> Result<Port, String> {
    let number = port[field]
        .as_u64()
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number > 0)
        .ok_or_else(|| format!("{field}: {} is no port", port[field]))?;
    match port["protocol"].as_str().unwrap_or("TCP") {
        "TCP" => Ok(Port::Tcp(number)),
        "UDP" => Ok(Port::Udp(number)),
        "SCTP" => Ok(Port::Sctp(number)),
        other => Err(format!("protocol: `{other}` is not TCP, UDP or SCTP")),
    }
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Writes node, phase and addresses into a pod, or into every pod of a list. Says whether there was one.
pub(super) fn place_all(
    value: &mut Value,
    place: &impl Fn(&PodManifest) -> Option<Placement>,
) -> bool {
    if value["kind"] == "List" {
        let items = value["items"].as_array_mut();
        return items.is_some_and(|items| {
            items
                .iter_mut()
                .fold(false, |any, item| place_all(item, place) | any)
        });
    }
    let Ok(Some(pod)) = PodManifest::read(value) else {
        return false;
    };
    let Some(placement) = place(&pod) else {
        return false;
    };
    let ips = |addresses: &[IpAddr]| -> Vec<Value> {
        addresses
            .iter()
            .map(|address| json!({ "ip": address }))
            .collect()
    };
    value["spec"]["nodeName"] = json!(placement.node);
    let status = &mut value["status"];
    status["phase"] = json!("Running");
    status["podIP"] = json!(placement.addresses.first());
    status["podIPs"] = json!(ips(&placement.addresses));
    status["hostIP"] = json!(placement.host_addresses.first());
    status["hostIPs"] = json!(ips(&placement.host_addresses));
    true
}
