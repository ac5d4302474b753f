//! The world of these cases: two shops, a pod that nobody may reach, policies, and who walks.

use std::time::Duration;

use netpol_agent::policy::object::ObjectKey;
use serde_json::{Value, json};

use super::{
    super::{names::OURS, pods},
    trail::{Goal, walk},
};

/// What a walker is to the policies: its label `role`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// May reach the shops.
    Friend,
    /// May not.
    Stranger,
    /// The shops take its connections, but its own policy lets it go to port 80 only.
    Captive,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Friend, Self::Stranger, Self::Captive];

    /// As the label says it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Friend => "friend",
            Self::Stranger => "stranger",
            Self::Captive => "captive",
        }
    }

    /// Whether it reaches this port of a server, of which there are `shop` and `plain`, whom no policy selects.
    pub fn may_reach(self, app: &str, port: u16) -> bool {
        match self {
            Self::Friend => true,
            Self::Stranger => app != "shop",
            Self::Captive => app == "shop" && port == 80,
        }
    }
}

/// What pods of these cases have in common.
pub struct Maker<'a> {
    /// Their namespace.
    pub namespace: &'a str,
    /// Their image.
    pub image: &'a str,
    /// How long one attempt may take.
    pub timeout: Duration,
}

impl Maker<'_> {
    /// The namespace of all. One pod of it is in its node's network.
    pub fn namespace(&self, prefix: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": self.namespace,
            "labels": {OURS: prefix, "pod-security.kubernetes.io/enforce": "privileged"},
        }})
    }

    /// What is in force in all cases.
    pub fn policies(&self) -> [Value; 3] {
        [
            self.policy(
                "shops",
                json!({
                    "podSelector": {"matchLabels": {"app": "shop"}},
                    "policyTypes": ["Ingress"],
                    "ingress": [{"from": [{"podSelector": {"matchExpressions": [
                        {"key": "role", "operator": "In", "values": ["friend", "captive"]},
                    ]}}]}],
                }),
            ),
            self.policy(
                "captives",
                json!({
                    "podSelector": {"matchLabels": {"role": "captive"}},
                    "policyTypes": ["Egress"],
                    "egress": [{
                        "to": [{"podSelector": {"matchLabels": {"app": "shop"}}}],
                        "ports": [{"protocol": "TCP", "port": 80}],
                    }],
                }),
            ),
            self.policy(
                "locked",
                json!({
                    "podSelector": {"matchLabels": {"app": "locked"}},
                    "policyTypes": ["Ingress", "Egress"],
                }),
            ),
        ]
    }

    /// A pod with servers on the ports 80 and 81. One with probes of the kubelet is not ready when these fail.
    pub fn server(&self, name: &str, app: &str, node: &str, probed: bool) -> Value {
        let containers = [80, 81].map(|port| {
            let mut container = json!({
                "name": format!("tcp-{port}"),
                "args": ["netexec", format!("--http-port={port}"), "--udp-port=-1"],
                "ports": [{"containerPort": port, "protocol": "TCP"}],
            });
            if probed {
                container["readinessProbe"] = json!({
                    "httpGet": {"path": "/hostname", "port": port},
                    "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 2,
                });
                container["livenessProbe"] = json!({
                    "tcpSocket": {"port": port},
                    "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 3,
                });
            }
            container
        });
        self.pod(name, json!({"app": app}), node, json!(containers))
    }

    /// A pod that tries its goals without a pause, and writes what came of it into its log.
    pub fn walker(&self, name: &str, role: Role, node: &str, goals: &[Goal]) -> Value {
        let labels = json!({"role": role.label()});
        self.pod(name, labels, node, self.walk(goals))
    }

    /// A walker in its node's network, with the labels of the pod that may do nothing.
    pub fn walker_on_the_node(&self, name: &str, node: &str, goals: &[Goal]) -> Value {
        let mut pod = self.pod(name, json!({"app": "locked"}), node, self.walk(goals));
        pod["spec"]["hostNetwork"] = json!(true);
        pod
    }

    fn walk(&self, goals: &[Goal]) -> Value {
        let script = walk(goals, self.timeout);
        json!([{"name": "walker", "command": ["sh", "-c", script]}])
    }

    fn pod(&self, name: &str, labels: Value, node: &str, mut containers: Value) -> Value {
        for container in containers.as_array_mut().into_iter().flatten() {
            container["image"] = json!(self.image);
        }
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": self.namespace, "name": name, "labels": labels},
            "spec": {"restartPolicy": "Always", "containers": containers},
        });
        pods::complete(pod, node, None)
    }

    fn policy(&self, name: &str, spec: Value) -> Value {
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"namespace": self.namespace, "name": name},
            "spec": spec,
        })
    }

    /// A pod's key.
    pub fn key(&self, name: &str) -> ObjectKey {
        ObjectKey::new(self.namespace, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAKER: Maker<'_> = Maker {
        namespace: "npt-life",
        image: "agnhost:1",
        timeout: Duration::from_secs(1),
    };

    #[test]
    fn every_role_has_somebody_whom_it_reaches() {
        for role in Role::ALL {
            assert!(
                role.may_reach("plain", 80) || role.may_reach("shop", 80),
                "{role:?}"
            );
        }
        assert!(!Role::Stranger.may_reach("shop", 80));
        assert!(!Role::Captive.may_reach("shop", 81));
    }

    #[test]
    fn pods_are_complete() {
        let pod = MAKER.walker("w", Role::Captive, "one", &[]);
        assert_eq!(pod["metadata"]["labels"]["role"], "captive");
        assert_eq!(pod["spec"]["nodeName"], "one");
        assert_eq!(pod["spec"]["containers"][0]["image"], "agnhost:1");
        assert!(pod["spec"]["hostNetwork"].is_null());
        let node = MAKER.walker_on_the_node("n", "two", &[]);
        assert_eq!(node["spec"]["hostNetwork"], true);
        assert_eq!(node["metadata"]["labels"]["app"], "locked");
        let server = MAKER.server("s", "shop", "one", true);
        assert_eq!(
            server["spec"]["containers"][1]["livenessProbe"]["tcpSocket"]["port"],
            81
        );
    }
}
