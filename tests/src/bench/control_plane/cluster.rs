//! Synthetic clusters: as clusters are, and as they should not be.

use std::fmt;

use clap::ValueEnum;
use serde_json::{Value, json};

/// What is odd about a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Kind {
    /// Nothing: few labels that many pods share, a default deny in every namespace, rules by label, by namespace and by block.
    Realistic,
    /// Every pod has a label value of its own, and policies name single pods.
    OwnLabels,
    /// As realistic, and one policy in each namespace selects all its pods and lets everybody in, by selectors.
    SelectsAll,
    /// As realistic, spread over 5,000 namespaces.
    Namespaces,
    /// As realistic, with selectors that say what a peer must not be.
    NotIn,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// A cluster to make up.
#[derive(Clone, Copy, Debug)]
pub struct Cluster {
    /// What is odd about it.
    pub kind: Kind,
    /// Pods in all.
    pub pods: usize,
    /// How many of them are on the agent's node: the first ones.
    pub local: usize,
    /// Policies.
    pub policies: usize,
}

const APPS: usize = 20;
const TIERS: [&str; 3] = ["web", "api", "db"];
const STAGES: [&str; 3] = ["production", "staging", "test"];
const TEAMS: usize = 25;
/// Pods of one node, as many as kubelet allows by default.
const NODE: usize = 110;

impl Cluster {
    /// Namespaces.
    pub fn namespaces(&self) -> usize {
        match self.kind {
            Kind::Namespaces => 5_000,
            _ => (self.pods / 50).clamp(10, 500),
        }
    }

    fn namespace(&self, number: usize) -> String {
        format!("team-{:04}", number % self.namespaces())
    }

    /// The namespaces as objects.
    pub fn namespace_objects(&self) -> impl Iterator<Item = Value> {
        (0..self.namespaces()).map(|number| {
            json!({
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": self.namespace(number), "labels": {
                    "kubernetes.io/metadata.name": self.namespace(number),
                    "team": format!("team-{}", number % TEAMS),
                    "stage": STAGES[number % STAGES.len()],
                }},
            })
        })
    }

    /// Namespace and name of a pod.
    pub fn pod_name(&self, number: usize) -> (String, String) {
        // The pods of one node are those of a few namespaces, as schedulers spread them.
        (self.namespace(number), format!("pod-{number:05}"))
    }

    /// The labels of a pod.
    pub fn pod_labels(&self, number: usize) -> Value {
        let round = number / self.namespaces();
        let mut labels = json!({
            "app": format!("app-{}", round % APPS),
            "tier": TIERS[round % TIERS.len()],
            "pod-template-hash": format!("{:x}", 0x5f00_0000 + (number % 977)),
        });
        if self.kind == Kind::OwnLabels {
            labels["statefulset.kubernetes.io/pod-name"] = json!(format!("pod-{number:05}"));
        }
        labels
    }

    /// A pod of another node, running.
    pub fn remote_pod(&self, number: usize) -> Value {
        let (namespace, name) = self.pod_name(number);
        let address = remote_address(number);
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": self.pod_labels(number)},
            "spec": {"nodeName": format!("node-{:04}", number / NODE), "containers": [{
                "name": "main",
                "image": "none",
                "ports": [{"name": "http", "containerPort": 8080}],
            }]},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
        })
    }

    /// A pod of the agent's node, as a manifest of the lab.
    pub fn local_pod(&self, number: usize) -> Value {
        let (namespace, name) = self.pod_name(number);
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": self.pod_labels(number)},
            "spec": {"containers": [{"name": "main"}]},
        })
    }

    /// A policy.
    pub fn policy(&self, number: usize) -> Value {
        let round = number / self.namespaces();
        let app = |number: usize| json!({"matchLabels": {"app": format!("app-{}", number % APPS)}});
        let spec = match (self.kind, round) {
            (_, 0) => json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
            (Kind::SelectsAll, 1) => json!({
                "podSelector": {},
                "ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {}}]}],
                "policyTypes": ["Ingress"],
            }),
            (Kind::OwnLabels, _) => {
                let named = |number: usize| {
                    let name = format!("pod-{:05}", number % self.pods.max(1));
                    json!({"matchLabels": {"statefulset.kubernetes.io/pod-name": name}})
                };
                json!({
                    "podSelector": named(number),
                    "ingress": [{"from": [
                        {"podSelector": named(number + self.namespaces())},
                        {"namespaceSelector": {}, "podSelector": named(number * 7 + 1)},
                    ]}],
                    "policyTypes": ["Ingress"],
                })
            }
            (Kind::NotIn, _) => json!({
                "podSelector": app(round),
                "ingress": [{"from": [{
                    "namespaceSelector": {"matchExpressions": [
                        {"key": "team", "operator": "NotIn", "values": [format!("team-{}", number % TEAMS)]},
                    ]},
                    "podSelector": {"matchExpressions": [
                        {"key": "app", "operator": "NotIn", "values": [format!("app-{}", number % APPS)]},
                        {"key": "legacy", "operator": "DoesNotExist"},
                    ]},
                }]}],
                "policyTypes": ["Ingress"],
            }),
            (_, round) => match round % 4 {
                1 => json!({
                    "podSelector": app(round),
                    "ingress": [{
                        "from": [{"podSelector": app(round + 1)}],
                        "ports": [{"port": "http"}, {"port": 9090}],
                    }],
                    "policyTypes": ["Ingress"],
                }),
                2 => json!({
                    "podSelector": {"matchLabels": {"tier": "web"}},
                    "ingress": [{"from": [{
                        "namespaceSelector": {"matchLabels": {"team": format!("team-{}", number % TEAMS)}},
                        "podSelector": app(round),
                    }]}],
                    "policyTypes": ["Ingress"],
                }),
                3 => json!({
                    "podSelector": app(round),
                    "egress": [
                        {"to": [{"podSelector": {"matchLabels": {"tier": "db"}}}], "ports": [{"port": 5432}]},
                        {"ports": [{"protocol": "UDP", "port": 53}]},
                    ],
                    "policyTypes": ["Egress"],
                }),
                _ => json!({
                    "podSelector": app(round),
                    "ingress": [{"from": [{"ipBlock": {
                        "cidr": format!("192.168.{}.0/24", number % 256),
                        "except": [format!("192.168.{}.128/25", number % 256)],
                    }}]}],
                    "policyTypes": ["Ingress"],
                }),
            },
        };
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"namespace": self.namespace(number), "name": format!("policy-{number:05}")},
            "spec": spec,
        })
    }
}

/// Outside of the subnets of the lab's nodes.
pub fn remote_address(number: usize) -> String {
    let [_, b, c, d] = (number as u32).to_be_bytes();
    format!("10.{}.{c}.{d}", 128 + u32::from(b))
}
