//! Kubernetes objects as they are read: only the fields that matter, under their names in the API.
//!
//! A pod has hundreds of fields, and most of its text is bookkeeping (`managedFields`, conditions). What is not named here is
//! skipped by the parser and never takes memory.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::NetworkPolicySpec, apimachinery::pkg::apis::meta::v1::Time,
};
use serde::Deserialize;

/// `metadata`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// `name`
    pub name: Option<String>,
    /// `namespace`
    pub namespace: Option<String>,
    /// `uid`
    pub uid: Option<String>,
    /// `labels`
    pub labels: Option<BTreeMap<String, String>>,
    /// `creationTimestamp`
    pub creation_timestamp: Option<Time>,
    /// `deletionTimestamp`
    pub deletion_timestamp: Option<Time>,
}

/// `v1 Namespace`
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Namespace {
    /// `metadata`
    #[serde(default)]
    pub metadata: Metadata,
}

/// `networking.k8s.io/v1 NetworkPolicy`: every field of its `spec` matters.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct NetworkPolicy {
    /// `metadata`
    #[serde(default)]
    pub metadata: Metadata,
    /// `spec`
    pub spec: Option<NetworkPolicySpec>,
}

/// `v1 Pod`
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Pod {
    /// `metadata`
    #[serde(default)]
    pub metadata: Metadata,
    /// `spec`
    pub spec: Option<PodSpec>,
    /// `status`
    pub status: Option<PodStatus>,
}

/// `spec` of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// `nodeName`
    pub node_name: Option<String>,
    /// `hostNetwork`
    pub host_network: Option<bool>,
    /// `containers`
    pub containers: Option<Vec<Container>>,
    /// `initContainers`
    pub init_containers: Option<Vec<Container>>,
}

/// One of `containers` or `initContainers`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// `restartPolicy`: an init container with `Always` keeps running.
    pub restart_policy: Option<String>,
    /// `ports`
    pub ports: Option<Vec<ContainerPort>>,
}

/// One of `ports` of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPort {
    /// `name`
    pub name: Option<String>,
    /// `protocol`
    pub protocol: Option<String>,
    /// `containerPort`
    #[serde(default)]
    pub container_port: i32,
}

/// `status` of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// `phase`
    pub phase: Option<String>,
    /// `podIP`
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    /// `podIPs`
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<PodIp>>,
}

/// One of `podIPs`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PodIp {
    /// `ip`
    #[serde(default)]
    pub ip: String,
}

/// `v1 Service`
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Service {
    /// `metadata`
    #[serde(default)]
    pub metadata: Metadata,
    /// `spec`
    pub spec: Option<ServiceSpec>,
    /// `status`
    pub status: Option<ServiceStatus>,
}

/// `spec` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ServiceSpec {
    /// `clusterIP`
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// `clusterIPs`
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Option<Vec<String>>,
    /// `externalIPs`
    #[serde(rename = "externalIPs")]
    pub external_ips: Option<Vec<String>>,
    /// `loadBalancerIP`
    #[serde(rename = "loadBalancerIP")]
    pub load_balancer_ip: Option<String>,
}

/// `status` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// `loadBalancer`
    pub load_balancer: Option<LoadBalancer>,
}

/// `status.loadBalancer` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct LoadBalancer {
    /// `ingress`
    pub ingress: Option<Vec<LoadBalancerIngress>>,
}

/// One of `status.loadBalancer.ingress` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct LoadBalancerIngress {
    /// `ip`; many have a host name in its place.
    pub ip: Option<String>,
}
