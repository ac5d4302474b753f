//! From Kubernetes objects as they are read ([`slim`]) to what the index keeps: trimmed, checked, and with the defaults that the API
//! server would have filled in.
//!
//! Manifests read from files have not passed the API server, so everything it would refuse is refused here, with the same
//! rules. An object that is refused changes nothing: its last good version stays in force.

mod policy;
mod service;
pub mod slim;
mod syntax;

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use self::{
    slim::{Metadata, PodSpec, PodStatus},
    syntax::Field,
};
use super::{
    object::{ContainerPort, Labels, Namespace, ObjectKey, Pod, Requirement, Selector},
    world::NAME_LABEL,
};

pub use self::{policy::policy, service::service};

/// Why an object cannot be compiled.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{kind} {object}: {field}: {reason}")]
pub struct Refusal {
    /// The kind of the object.
    pub kind: &'static str,
    /// Namespace and name of the object.
    pub object: ObjectKey,
    /// The field, as in `spec.ingress[0].from[1].ipBlock.cidr`.
    pub field: String,
    /// What is wrong with it and what to write instead.
    pub reason: String,
}

/// What is wrong with a field, before it is known in which object.
struct Fault {
    field: String,
    reason: String,
}

impl Fault {
    fn of(self, kind: &'static str, object: &ObjectKey) -> Refusal {
        Refusal {
            kind,
            object: object.clone(),
            field: self.field,
            reason: self.reason,
        }
    }
}

/// Namespace and name of a namespaced object; without a namespace it belongs to `default`.
fn key(metadata: &Metadata) -> ObjectKey {
    let namespace = metadata.namespace.as_deref().filter(|n| !n.is_empty());
    ObjectKey::new(
        namespace.unwrap_or("default"),
        metadata.name.clone().unwrap_or_default(),
    )
}

/// `metadata.name`, which there has to be.
fn name(metadata: &Metadata) -> Result<(Field, &str), Fault> {
    let field = Field::new("metadata.name");
    match metadata.name.as_deref() {
        None | Some("") => Err(field.fault("is missing: give the object a name")),
        Some(name) => Ok((field, name)),
    }
}

/// Name and namespace of a namespaced object.
fn check_key(metadata: &Metadata, key: &ObjectKey) -> Result<(), Fault> {
    let (field, name) = name(metadata)?;
    field.object_name(name)?;
    Field::new("metadata.namespace").namespace_name(&key.namespace)
}

/// `metadata.labels`, checked.
fn labels(metadata: &Metadata) -> Result<Labels, Fault> {
    let labels = metadata.labels.clone().unwrap_or_default();
    let field = Field::new("metadata.labels");
    for (key, value) in &labels {
        field.label_key(key)?;
        field.child(key).label_value(value)?;
    }
    Ok(labels)
}

/// A namespace. It always has the label `kubernetes.io/metadata.name`, whatever the manifest says about it.
pub fn namespace(object: &slim::Namespace) -> Result<Namespace, Refusal> {
    let name = object.metadata.name.clone().unwrap_or_default();
    let read = || -> Result<Labels, Fault> {
        let (field, given) = self::name(&object.metadata)?;
        field.namespace_name(given)?;
        let mut labels = labels(&object.metadata)?;
        labels.insert(NAME_LABEL.to_owned(), name.clone());
        Ok(labels)
    };
    match read() {
        Ok(labels) => Ok(Namespace { name, labels }),
        Err(fault) => Err(fault.of("Namespace", &ObjectKey::new("", name))),
    }
}

/// A pod.
pub fn pod(object: &slim::Pod) -> Result<Pod, Refusal> {
    let key = key(&object.metadata);
    read_pod(object, &key).map_err(|fault| fault.of("Pod", &key))
}

fn read_pod(object: &slim::Pod, key: &ObjectKey) -> Result<Pod, Fault> {
    check_key(&object.metadata, key)?;
    let meta = &object.metadata;
    let spec = object.spec.as_ref();
    let status = object.status.as_ref();
    let phase = status.and_then(|s| s.phase.as_deref());
    Ok(Pod {
        key: key.clone(),
        uid: meta.uid.clone().unwrap_or_default(),
        created: meta
            .creation_timestamp
            .as_ref()
            .map_or(0, |t| t.0.as_second()),
        terminating: meta.deletion_timestamp.is_some(),
        labels: labels(meta)?,
        node: spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        host_network: spec.and_then(|s| s.host_network).unwrap_or(false),
        finished: matches!(phase, Some("Succeeded" | "Failed")),
        addresses: addresses(status)?,
        ports: spec.map_or(Ok(Vec::new()), container_ports)?,
    })
}

/// `status.podIPs`, or `status.podIP` where only that is written.
fn addresses(status: Option<&PodStatus>) -> Result<Vec<IpAddr>, Fault> {
    let Some(status) = status else {
        return Ok(Vec::new());
    };
    let field = Field::new("status.podIPs");
    let listed = status.pod_ips.as_deref().unwrap_or_default();
    let mut texts: Vec<(Field, &str)> = listed
        .iter()
        .enumerate()
        .map(|(at, ip)| (field.at(at).child("ip"), ip.ip.as_str()))
        .collect();
    if texts.is_empty() {
        texts.extend(
            status
                .pod_ip
                .as_deref()
                .map(|ip| (Field::new("status.podIP"), ip)),
        );
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (field, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        let address = field.ip_address(text)?;
        if addresses.iter().any(|a| a.is_ipv4() == address.is_ipv4()) {
            return Err(field.fault(format!(
                "{text} is a second address of its family: a pod has at most one of each"
            )));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

/// The ports of the containers, and of the init containers that keep running beside them.
fn container_ports(spec: &PodSpec) -> Result<Vec<ContainerPort>, Fault> {
    let containers = spec
        .containers
        .iter()
        .flatten()
        .enumerate()
        .map(|(at, c)| (Field::new("spec.containers").at(at), c));
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .enumerate()
        .filter(|(_, c)| c.restart_policy.as_deref() == Some("Always"))
        .map(|(at, c)| (Field::new("spec.initContainers").at(at), c));
    let mut ports = Vec::new();
    for (field, container) in containers.chain(sidecars) {
        for (at, port) in container.ports.iter().flatten().enumerate() {
            let field = field.child("ports").at(at);
            if let Some(name) = &port.name {
                field.child("name").port_name(name)?;
            }
            ports.push(ContainerPort {
                name: port.name.clone(),
                protocol: field.child("protocol").protocol(port.protocol.as_deref())?,
                port: field
                    .child("containerPort")
                    .port_number(port.container_port)?,
            });
        }
    }
    Ok(ports)
}

/// A label selector, checked, in its canonical form.
fn selector(field: &Field, selector: &LabelSelector) -> Result<Selector, Fault> {
    let mut requirements = Vec::new();
    for (key, value) in selector.match_labels.iter().flatten() {
        let field = field.child("matchLabels");
        field.label_key(key)?;
        field.child(key).label_value(value)?;
        requirements.push(Requirement::In(key.clone(), vec![value.clone()]));
    }
    for (at, expression) in selector.match_expressions.iter().flatten().enumerate() {
        let field = field.child("matchExpressions").at(at);
        let key = expression.key.clone();
        field.child("key").label_key(&key)?;
        let mut values = expression.values.clone().unwrap_or_default();
        for (at, value) in values.iter().enumerate() {
            field.child("values").at(at).label_value(value)?;
        }
        values.sort_unstable();
        values.dedup();
        let operator = expression.operator.as_str();
        let values_field = field.child("values");
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                return Err(values_field.fault(format!("{operator} needs at least one value")));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                return Err(values_field.fault(format!(
                    "{operator} takes no values: remove them, or use In or NotIn"
                )));
            }
            _ => {}
        }
        requirements.push(match operator {
            "In" => Requirement::In(key, values),
            "NotIn" => Requirement::NotIn(key, values),
            "Exists" => Requirement::Exists(key),
            "DoesNotExist" => Requirement::DoesNotExist(key),
            _ => {
                return Err(field.child("operator").fault(format!(
                    "{operator:?} is not an operator: use In, NotIn, Exists or DoesNotExist"
                )));
            }
        });
    }
    requirements.sort_unstable();
    requirements.dedup();
    Ok(Selector { requirements })
}
