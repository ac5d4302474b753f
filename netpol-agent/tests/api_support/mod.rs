//! A small API server over real sockets that does what a test tells it, and a reader that follows it.

#![expect(dead_code, reason = "not every test uses all of it")]

pub mod reader;
mod respond;
pub mod server;

use std::time::Duration;

use netpol_agent::cluster::Timing;
use serde_json::{Value, json};

/// No wait of a test is longer: it is broken then.
pub const LIMIT: Duration = Duration::from_secs(20);

/// So short that faults are noticed within a test.
pub fn timing() -> Timing {
    Timing {
        connect: Duration::from_secs(1),
        answer: Duration::from_secs(1),
        watch: Duration::from_secs(300),
        idle: Duration::from_secs(60),
        withhold: Duration::from_millis(300),
        retry: Duration::from_millis(10),
        retry_limit: Duration::from_millis(100),
        busy_limit: Duration::from_millis(200),
    }
}

pub const NAMESPACES: &str = "/api/v1/namespaces";
pub const PODS: &str = "/api/v1/pods";
pub const SERVICES: &str = "/api/v1/services";
pub const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";
pub const ALL: [&str; 4] = [NAMESPACES, PODS, SERVICES, POLICIES];

/// A pod with a label by which its versions can be told apart.
pub fn pod(name: &str, uid: &str, color: &str) -> Value {
    json!({
        "metadata": { "namespace": "shop", "name": name, "uid": uid, "labels": { "color": color } },
        "spec": { "nodeName": "node", "containers": [{ "name": "c", "ports": [{ "containerPort": 80 }] }] },
        "status": { "phase": "Running", "podIPs": [{ "ip": "10.1.2.3" }] },
    })
}

/// A policy that lets this port in.
pub fn policy(name: &str, port: Value) -> Value {
    json!({
        "metadata": { "namespace": "shop", "name": name, "uid": format!("policy-{name}") },
        "spec": { "podSelector": {}, "ingress": [{ "ports": [{ "port": port }] }] },
    })
}

/// A namespace.
pub fn namespace(name: &str) -> Value {
    json!({ "metadata": { "name": name, "uid": format!("namespace-{name}") } })
}

/// A Service.
pub fn service(name: &str, ip: &str) -> Value {
    json!({
        "metadata": { "namespace": "shop", "name": name, "uid": format!("service-{name}") },
        "spec": { "clusterIP": ip, "clusterIPs": [ip] },
    })
}
