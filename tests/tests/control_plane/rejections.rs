//! The server refuses what the agent refuses in a manifest, and no more: the server decides what is right, and the agent must
//! not be stricter or laxer.

use std::fmt::Write as _;

use anyhow::ensure;
use netpol_agent::policy::convert;
use netpol_tests::{control_plane::Answer, manifests::DocumentId};
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// One thing to judge.
struct Case {
    name: &'static str,
    object: Value,
    /// What is expected of both.
    good: bool,
}

fn policy(name: &'static str, good: bool, spec: Value) -> Case {
    let object = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "default", "name": "p"},
        "spec": spec,
    });
    Case { name, object, good }
}

fn peer(name: &'static str, good: bool, peer: Value) -> Case {
    let spec = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}, peer]}]});
    policy(name, good, spec)
}

fn block(name: &'static str, good: bool, cidr: &str) -> Case {
    peer(name, good, json!({"ipBlock": {"cidr": cidr}}))
}

fn except(name: &'static str, good: bool, cidr: &str, except: &[&str]) -> Case {
    peer(
        name,
        good,
        json!({"ipBlock": {"cidr": cidr, "except": except}}),
    )
}

fn port(name: &'static str, good: bool, port: Value) -> Case {
    policy(
        name,
        good,
        json!({"podSelector": {}, "egress": [{"ports": [port]}]}),
    )
}

fn selector(name: &'static str, good: bool, selector: Value) -> Case {
    policy(name, good, json!({"podSelector": selector}))
}

fn expression(name: &'static str, good: bool, operator: &str, values: Value) -> Case {
    let expression = json!({"key": "app", "operator": operator, "values": values});
    selector(name, good, json!({"matchExpressions": [expression]}))
}

fn named(name: &'static str, good: bool, given: &str) -> Case {
    let mut case = policy(name, good, json!({"podSelector": {}}));
    case.object["metadata"]["name"] = json!(given);
    case
}

fn cases() -> Vec<Case> {
    let both = json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}});
    vec![
        policy("no rules", true, json!({"podSelector": {}})),
        policy("no spec", true, json!({})),
        // Types
        policy(
            "a type twice",
            true,
            json!({"podSelector": {}, "policyTypes": ["Ingress", "Ingress"]}),
        ),
        policy(
            "three types",
            false,
            json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress", "Ingress"]}),
        ),
        policy(
            "an unknown type",
            false,
            json!({"podSelector": {}, "policyTypes": ["Sideways"]}),
        ),
        policy(
            "a type in lower case",
            false,
            json!({"podSelector": {}, "policyTypes": ["ingress"]}),
        ),
        // Peers
        peer("a peer without anything", false, json!({})),
        peer("a block beside a selector", false, both),
        peer(
            "a block beside a selector of namespaces",
            false,
            json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "namespaceSelector": {}}),
        ),
        peer("a block without a cidr", false, json!({"ipBlock": {}})),
        policy(
            "a bad rule of a direction that the policy does not have",
            false,
            json!({"podSelector": {}, "policyTypes": ["Ingress"], "egress": [{"to": [{}]}]}),
        ),
        // Blocks
        block("a block of everything", true, "0.0.0.0/0"),
        block("one address", true, "10.0.0.1/32"),
        block("a block with host bits", true, "10.1.2.3/8"),
        block("a block of IPv6", true, "2001:db8::/64"),
        block("a block of IPv6 in capitals", true, "2001:DB8::/64"),
        block("an address without a length", false, "10.0.0.1"),
        block("an empty block", false, ""),
        block("a length of 33", false, "10.0.0.0/33"),
        block("a length of 129", false, "2001:db8::/129"),
        block("a negative length", false, "10.0.0.0/-1"),
        block("three numbers", false, "10.0.0/8"),
        block("a name", false, "ten/8"),
        block("a space", false, " 10.0.0.0/8"),
        block("a mask for a length", false, "10.0.0.0/255.0.0.0"),
        block("a leading zero", true, "10.010.0.0/16"),
        block("a leading zero in the length", true, "10.0.0.0/08"),
        block("a zone", false, "fe80::1%eth0/64"),
        block("a plus sign", false, "10.0.0.0/+8"),
        // Exceptions
        except("an exception inside", true, "10.0.0.0/8", &["10.1.0.0/16"]),
        except(
            "two that overlap",
            true,
            "10.0.0.0/8",
            &["10.1.0.0/16", "10.1.2.0/24"],
        ),
        except(
            "an exception twice",
            true,
            "10.0.0.0/8",
            &["10.1.0.0/16", "10.1.0.0/16"],
        ),
        except(
            "an exception with host bits",
            true,
            "10.0.0.0/8",
            &["10.1.2.3/16"],
        ),
        except("the block itself", false, "10.0.0.0/8", &["10.0.0.0/8"]),
        except(
            "an exception outside",
            false,
            "10.0.0.0/8",
            &["11.0.0.0/16"],
        ),
        except("a larger exception", false, "10.0.0.0/8", &["0.0.0.0/0"]),
        except(
            "an exception of the other family",
            false,
            "10.0.0.0/8",
            &["fd00::/64"],
        ),
        except(
            "an exception without a length",
            false,
            "10.0.0.0/8",
            &["10.1.1.1"],
        ),
        // Ports
        port("a port", true, json!({"port": 80})),
        port("the last port", true, json!({"port": 65535})),
        port("port 0", false, json!({"port": 0})),
        port("port 65536", false, json!({"port": 65536})),
        port("a negative port", false, json!({"port": -1})),
        port("a named port", true, json!({"port": "http-alt"})),
        port("a name of 15", true, json!({"port": "a23456789012345"})),
        port("a name of 16", false, json!({"port": "a234567890123456"})),
        port("a name in capitals", false, json!({"port": "HTTP"})),
        port("a name without a letter", false, json!({"port": "80"})),
        port("a name with two dashes", false, json!({"port": "a--b"})),
        port(
            "a name that begins with a dash",
            false,
            json!({"port": "-a"}),
        ),
        port("an empty name", false, json!({"port": ""})),
        port("a protocol alone", true, json!({"protocol": "UDP"})),
        port("an unknown protocol", false, json!({"protocol": "ICMP"})),
        port(
            "a protocol in lower case",
            false,
            json!({"protocol": "tcp"}),
        ),
        port("a range", true, json!({"port": 80, "endPort": 90})),
        port("a range of one", true, json!({"port": 80, "endPort": 80})),
        port(
            "a range backwards",
            false,
            json!({"port": 90, "endPort": 80}),
        ),
        port("a range without a beginning", false, json!({"endPort": 90})),
        port(
            "a range that begins with a name",
            false,
            json!({"port": "http", "endPort": 90}),
        ),
        port(
            "a range to 65536",
            false,
            json!({"port": 80, "endPort": 65536}),
        ),
        port("a range to 0", false, json!({"port": 80, "endPort": 0})),
        // Selectors
        selector("an empty label", true, json!({"matchLabels": {"app": ""}})),
        selector(
            "a key with a prefix",
            true,
            json!({"matchLabels": {"example.org/app": "x"}}),
        ),
        selector(
            "a value of 63",
            true,
            json!({"matchLabels": {"app": "x".repeat(63)}}),
        ),
        selector(
            "a value of 64",
            false,
            json!({"matchLabels": {"app": "x".repeat(64)}}),
        ),
        selector(
            "a value with a space",
            false,
            json!({"matchLabels": {"app": "a b"}}),
        ),
        selector(
            "a value that ends with a dash",
            false,
            json!({"matchLabels": {"app": "a-"}}),
        ),
        selector("an empty key", false, json!({"matchLabels": {"": "x"}})),
        selector(
            "a key with a space",
            false,
            json!({"matchLabels": {"a b": "x"}}),
        ),
        selector(
            "a prefix in capitals",
            false,
            json!({"matchLabels": {"Example.org/app": "x"}}),
        ),
        selector(
            "an empty prefix",
            false,
            json!({"matchLabels": {"/app": "x"}}),
        ),
        selector(
            "two prefixes",
            false,
            json!({"matchLabels": {"a/b/c": "x"}}),
        ),
        expression("In", true, "In", json!(["x"])),
        expression("In without values", false, "In", json!([])),
        expression("NotIn without values", false, "NotIn", json!([])),
        expression("In an empty value", true, "In", json!([""])),
        expression("In a bad value", false, "In", json!(["a b"])),
        expression("Exists", true, "Exists", json!([])),
        expression("Exists with values", false, "Exists", json!(["x"])),
        expression(
            "DoesNotExist with values",
            false,
            "DoesNotExist",
            json!(["x"]),
        ),
        expression("an unknown operator", false, "Equals", json!(["x"])),
        expression("an operator in lower case", false, "in", json!(["x"])),
        // Names
        named("a name with dots", true, "a.b-c.1"),
        named("a name in capitals as the object's", false, "P"),
        named("a name with a line below", false, "a_b"),
        named(
            "a long name",
            true,
            "a23456789012345678901234567890123456789012345678901234567890123456789",
        ),
    ]
}

/// `Ok` or what is wrong.
fn by_the_agent(object: &Value) -> Result<(), String> {
    let read = serde_json::from_value(object.clone()).map_err(|error| error.to_string())?;
    convert::policy(&read).map(drop).map_err(|e| e.to_string())
}

#[test]
fn the_agent_and_the_server_refuse_the_same() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    let mut wrong = String::new();
    for Case { name, object, good } in cases() {
        let server = match cluster.control_plane.create(&object)? {
            Answer::Stored(stored) => {
                let id = DocumentId::policy(
                    "default",
                    stored["metadata"]["name"].as_str().unwrap_or_default(),
                );
                cluster.control_plane.delete(&id)?;
                Ok(())
            }
            Answer::Refused { code, message } => {
                ensure!((400..500).contains(&code), "{name}: {code} {message}");
                Err(message)
            }
        };
        let agent = by_the_agent(&object);
        if server.is_ok() != good || agent.is_ok() != good {
            writeln!(
                wrong,
                "{name}: the server: {server:?}; the agent: {agent:?}"
            )?;
        }
    }
    ensure!(wrong.is_empty(), "\n{wrong}");
    Ok(())
}
