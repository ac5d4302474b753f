//! What cannot be compiled is refused, with the object, the field, and what to do.

use netpol_agent::policy::{
    convert::{self, Refusal},
    object::{Policy, PolicyPeer, PortMatch, Protocol, Requirement, Service},
};
use serde_json::{Value, json};

fn policy(spec: Value) -> Result<Policy, Refusal> {
    let object = json!({ "metadata": { "namespace": "ns", "name": "p" }, "spec": spec });
    convert::policy(&serde_json::from_value(object).expect("the shape of a policy"))
}

fn pod(
    metadata: Value,
    spec: Value,
    status: Value,
) -> Result<netpol_agent::policy::object::Pod, Refusal> {
    let object = json!({ "metadata": metadata, "spec": spec, "status": status });
    convert::pod(&serde_json::from_value(object).expect("the shape of a pod"))
}

/// The policy is refused at this field, for a reason that contains these words.
#[track_caller]
fn refused(spec: Value, field: &str, reason: &str) {
    let refusal = policy(spec).expect_err("is refused");
    assert_eq!(refusal.field, field, "{refusal}");
    assert!(refusal.reason.contains(reason), "{refusal}");
    assert_eq!(refusal.kind, "NetworkPolicy");
    assert_eq!(refusal.object.to_string(), "ns/p");
}

fn from(peer: Value) -> Value {
    json!({ "podSelector": {}, "ingress": [{}, { "from": [{ "podSelector": {} }, peer] }] })
}

fn block(cidr: &str, except: Value) -> Value {
    from(json!({ "ipBlock": { "cidr": cidr, "except": except } }))
}

fn port(port: Value) -> Value {
    json!({ "podSelector": {}, "egress": [{ "ports": [port] }] })
}

fn expression(operator: &str, values: Value) -> Value {
    json!({ "podSelector": { "matchExpressions": [{ "key": "app", "operator": operator, "values": values }] } })
}

#[test]
fn a_refusal_names_object_field_and_reason() {
    let refusal = policy(block("10.0.0.0/33", json!([]))).expect_err("is refused");
    assert_eq!(
        refusal.to_string(),
        "NetworkPolicy ns/p: spec.ingress[1].from[1].ipBlock.cidr: \"10.0.0.0/33\" is not an address block: write it as \
         10.1.0.0/16, 10.1.2.3/32 or 2001:db8::/64"
    );
}

#[test]
fn bad_blocks() {
    let cidr = "spec.ingress[1].from[1].ipBlock.cidr";
    for text in [
        "",
        "10.0.0.1",
        "10.0.0.0/33",
        "10.0.0/8",
        "ten/8",
        "2001:db8::/129",
        "10.0.0.0/-1",
    ] {
        refused(block(text, json!([])), cidr, "not an address block");
    }
    let except = "spec.ingress[1].from[1].ipBlock.except[1]";
    let with = |text: &str| block("10.0.0.0/8", json!(["10.1.0.0/16", text]));
    refused(with("10.0.0.0/99"), except, "not an address block");
    refused(
        with("11.0.0.0/16"),
        except,
        "not a smaller block inside 10.0.0.0/8",
    );
    refused(
        with("10.0.0.0/8"),
        except,
        "not a smaller block inside 10.0.0.0/8",
    );
    refused(
        with("0.0.0.0/0"),
        except,
        "not a smaller block inside 10.0.0.0/8",
    );
    refused(
        with("fd00::/64"),
        except,
        "not a smaller block inside 10.0.0.0/8",
    );
}

#[test]
fn an_ipv4_block_in_ipv6_form() {
    refused(
        block("::ffff:10.0.0.0/104", json!([])),
        "spec.ingress[1].from[1].ipBlock.cidr",
        "write 10.0.0.0/8",
    );
    // Never the advice to allow all of IPv4.
    refused(
        block("::ffff:10.0.0.0/8", json!([])),
        "spec.ingress[1].from[1].ipBlock.cidr",
        "write ::/8 if",
    );
}

#[test]
fn host_bits_are_masked_and_not_refused() {
    let policy = policy(block("10.1.2.3/8", json!(["10.1.2.3/16"]))).expect("a good policy");
    let rules = policy.ingress.expect("ingress");
    let peers = rules[1].peers.as_ref().expect("peers");
    let PolicyPeer::Block { cidr, except } = &peers[1] else {
        panic!("{peers:?}")
    };
    assert_eq!(cidr.to_string(), "10.0.0.0/8");
    assert_eq!(except[0].to_string(), "10.1.0.0/16");
}

#[test]
fn bad_operators() {
    let at = |field: &str| format!("spec.podSelector.matchExpressions[0].{field}");
    refused(
        expression("Equals", json!(["x"])),
        &at("operator"),
        "use In, NotIn, Exists or DoesNotExist",
    );
    refused(
        expression("in", json!(["x"])),
        &at("operator"),
        "not an operator",
    );
    refused(
        expression("", json!([])),
        &at("operator"),
        "not an operator",
    );
    for operator in ["In", "NotIn"] {
        refused(
            expression(operator, json!([])),
            &at("values"),
            "at least one value",
        );
        refused(
            expression(operator, json!(null)),
            &at("values"),
            "at least one value",
        );
    }
    for operator in ["Exists", "DoesNotExist"] {
        refused(
            expression(operator, json!(["x"])),
            &at("values"),
            "takes no values",
        );
        assert!(policy(expression(operator, json!([]))).is_ok());
    }
}

#[test]
fn bad_labels_in_selectors() {
    let labels =
        |key: &str, value: &str| json!({ "podSelector": { "matchLabels": { key: value } } });
    let long = "x".repeat(64);
    for key in [
        "",
        "-a",
        "a-",
        "a b",
        "/a",
        "a/",
        "a/b/c",
        "UPPER.dns/a",
        long.as_str(),
    ] {
        refused(
            labels(key, "v"),
            "spec.podSelector.matchLabels",
            "not a label key",
        );
    }
    for value in ["-v", "v.", "a b", "a/b", long.as_str()] {
        refused(
            labels("k", value),
            "spec.podSelector.matchLabels.k",
            "not a label value",
        );
    }
    for (key, value) in [
        ("a", ""),
        ("app.kubernetes.io/name", "A_b-1.c"),
        ("A", "1"),
        (&long[..63], &long[..63]),
    ] {
        assert!(policy(labels(key, value)).is_ok(), "{key}={value}");
    }
    refused(
        expression("In", json!(["ok", "not ok"])),
        "spec.podSelector.matchExpressions[0].values[1]",
        "not a label value",
    );
    refused(
        from(
            json!({ "namespaceSelector": { "matchExpressions": [{ "key": "a b", "operator": "Exists" }] } }),
        ),
        "spec.ingress[1].from[1].namespaceSelector.matchExpressions[0].key",
        "not a label key",
    );
}

#[test]
fn bad_ports() {
    let at = |field: &str| format!("spec.egress[0].ports[0].{field}");
    for number in [0, -1, 65536] {
        refused(
            port(json!({ "port": number })),
            &at("port"),
            "use 1 to 65535",
        );
    }
    for name in [
        "",
        "-http",
        "http-",
        "ht--tp",
        "80",
        "Http",
        "http_alt",
        "a-name-with-16-ch",
    ] {
        refused(
            port(json!({ "port": name })),
            &at("port"),
            "not a port name",
        );
    }
    refused(
        port(json!({ "port": "a".repeat(40) })),
        &at("port"),
        "1 to 15 characters",
    );
    for name in ["http", "a", "8a", "fifteen-chars-x"] {
        assert!(policy(port(json!({ "port": name }))).is_ok(), "{name}");
    }
    refused(
        port(json!({ "port": 80, "endPort": 79 })),
        &at("endPort"),
        "below port 80",
    );
    refused(
        port(json!({ "port": 80, "endPort": 65536 })),
        &at("endPort"),
        "use 1 to 65535",
    );
    refused(
        port(json!({ "port": "http", "endPort": 90 })),
        &at("endPort"),
        "needs a port number",
    );
    refused(
        port(json!({ "endPort": 90 })),
        &at("endPort"),
        "no port to start from",
    );
    refused(
        port(json!({ "port": 80, "protocol": "ICMP" })),
        &at("protocol"),
        "use TCP, UDP or SCTP",
    );
    refused(
        port(json!({ "port": 80, "protocol": "tcp" })),
        &at("protocol"),
        "use TCP, UDP or SCTP",
    );
}

#[test]
fn bad_peers() {
    refused(from(json!({})), "spec.ingress[1].from[1]", "names no peer");
    for beside in ["podSelector", "namespaceSelector"] {
        refused(
            from(json!({ "ipBlock": { "cidr": "10.0.0.0/8" }, beside: {} })),
            "spec.ingress[1].from[1].ipBlock",
            "stands beside a selector",
        );
    }
    refused(
        json!({ "podSelector": {}, "egress": [{ "to": [{}] }] }),
        "spec.egress[0].to[0]",
        "names no peer",
    );
}

#[test]
fn bad_policy_types() {
    refused(
        json!({ "podSelector": {}, "policyTypes": ["Ingress", "egress"] }),
        "spec.policyTypes[1]",
        "use Ingress or Egress",
    );
}

#[test]
fn more_than_two_policy_types() {
    refused(
        json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress", "Ingress"] }),
        "spec.policyTypes",
        "more than two",
    );
    // The API server does not mind.
    assert!(policy(json!({ "policyTypes": ["Egress", "Egress"] })).is_ok());
}

#[test]
fn rules_that_mean_nothing_are_checked_all_the_same() {
    refused(
        json!({ "podSelector": {}, "policyTypes": ["Ingress"], "egress": [{ "ports": [{ "port": 0 }] }] }),
        "spec.egress[0].ports[0].port",
        "not a port",
    );
}

#[test]
fn defaults_of_the_api_server() {
    let object = json!({ "metadata": { "name": "p" }, "spec": { "podSelector": {}, "ingress": [{ "ports": [{ "port": 53 }] }] } });
    let policy =
        convert::policy(&serde_json::from_value(object).expect("a policy")).expect("a good policy");
    assert_eq!(policy.key.to_string(), "default/p");
    assert_eq!(policy.egress, None);
    let rules = policy.ingress.expect("ingress");
    let port = &rules[0].ports.as_ref().expect("ports")[0];
    assert_eq!(
        (port.protocol, &port.port),
        (Protocol::Tcp, &PortMatch::Range(53, 53))
    );
}

#[test]
fn a_selector_has_one_form_whatever_its_order() {
    let one = json!({ "podSelector": { "matchLabels": { "b": "2", "a": "1" } } });
    let other = json!({ "podSelector": { "matchExpressions": [
        { "key": "b", "operator": "In", "values": ["2", "2"] },
        { "key": "a", "operator": "In", "values": ["1"] },
        { "key": "a", "operator": "In", "values": ["1"] },
    ] } });
    let one = policy(one).expect("a good policy").selector;
    assert_eq!(one, policy(other).expect("a good policy").selector);
    assert_eq!(
        one.requirements[0],
        Requirement::In("a".into(), vec!["1".into()])
    );
}

#[test]
fn a_namespace_always_has_its_name_as_a_label() {
    let object = json!({ "metadata": { "name": "prod", "labels": { "kubernetes.io/metadata.name": "other", "env": "x" } } });
    let namespace = convert::namespace(&serde_json::from_value(object).expect("a namespace"))
        .expect("a good namespace");
    assert_eq!(namespace.labels["kubernetes.io/metadata.name"], "prod");
    assert_eq!(namespace.labels["env"], "x");
}

#[test]
fn objects_without_a_name_and_with_bad_labels() {
    let object = json!({ "metadata": { "labels": { "a b": "c" }, "name": "prod" } });
    let refusal = convert::namespace(&serde_json::from_value(object).expect("a namespace"))
        .expect_err("is refused");
    assert_eq!(
        (refusal.kind, refusal.field.as_str()),
        ("Namespace", "metadata.labels")
    );
    assert_eq!(refusal.object.to_string(), "prod");
    let refusal = pod(json!({}), json!({ "containers": [] }), json!({})).expect_err("is refused");
    assert_eq!(
        (refusal.kind, refusal.field.as_str()),
        ("Pod", "metadata.name")
    );
}

#[test]
fn bad_names() {
    let read = |namespace: &str, name: &str| {
        let object = json!({ "metadata": { "namespace": namespace, "name": name }, "spec": {} });
        let policy = convert::policy(&serde_json::from_value(object).expect("a policy"));
        let pod = pod(
            json!({ "namespace": namespace, "name": name }),
            json!({ "containers": [] }),
            json!({}),
        );
        let fields = (
            policy.err().map(|refusal| refusal.field),
            pod.err().map(|refusal| refusal.field),
        );
        assert_eq!(fields.0, fields.1, "{namespace}/{name}");
        fields.0
    };
    let long = "x".repeat(254);
    for name in ["A", "a_b", "-a", "a-", "a/b", "..", "a b", &long] {
        assert_eq!(read("ns", name).as_deref(), Some("metadata.name"));
    }
    for namespace in ["Prod", "a.b", "-a", &long[..64]] {
        assert_eq!(read(namespace, "p").as_deref(), Some("metadata.namespace"));
        let object = json!({ "metadata": { "name": namespace } });
        let refusal = convert::namespace(&serde_json::from_value(object).expect("a namespace"));
        assert_eq!(refusal.expect_err("is refused").field, "metadata.name");
    }
    for (namespace, name) in [("", "a.b-1"), ("1", "1"), (&long[..63], &long[..253])] {
        assert_eq!(read(namespace, name), None);
    }
}

#[test]
fn bad_pods() {
    let name = || json!({ "namespace": "ns", "name": "x" });
    let spec = || json!({ "containers": [] });
    let address = |status: Value| pod(name(), spec(), status);
    let field = |status: Value| address(status).expect_err("is refused").field;
    assert_eq!(
        field(json!({ "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "ten" }] })),
        "status.podIPs[1].ip"
    );
    assert_eq!(field(json!({ "podIP": "10.0.0.256" })), "status.podIP");
    assert_eq!(
        field(json!({ "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "10.0.0.2" }] })),
        "status.podIPs[1].ip"
    );
    assert_eq!(
        field(json!({ "podIPs": [{ "ip": "::ffff:10.0.0.1" }] })),
        "status.podIPs[0].ip"
    );
    let dual = address(
        json!({ "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }] }),
    );
    assert_eq!(dual.expect("a good pod").addresses.len(), 2);
    let single = address(json!({ "podIP": "10.0.0.1" })).expect("a good pod");
    assert_eq!(single.addresses.len(), 1);

    let port = |port: Value| {
        let spec = json!({ "containers": [{ "name": "c", "ports": [port] }] });
        pod(name(), spec, json!({})).expect_err("is refused").field
    };
    assert_eq!(
        port(json!({ "containerPort": 0 })),
        "spec.containers[0].ports[0].containerPort"
    );
    assert_eq!(
        port(json!({ "containerPort": 80, "name": "Web" })),
        "spec.containers[0].ports[0].name"
    );
    assert_eq!(
        port(json!({ "containerPort": 80, "protocol": "x" })),
        "spec.containers[0].ports[0].protocol"
    );
}

#[test]
fn what_matters_of_a_pod_is_kept() {
    let pod = pod(
        json!({ "name": "x", "uid": "u", "creationTimestamp": "1970-01-01T00:01:00Z", "deletionTimestamp": "1970-01-01T00:02:00Z",
                "labels": { "app": "web" } }),
        json!({ "nodeName": "n", "hostNetwork": true, "containers": [] }),
        json!({ "phase": "Failed" }),
    )
    .expect("a good pod");
    assert_eq!(pod.key.to_string(), "default/x");
    assert_eq!(
        (pod.uid.as_str(), pod.created, pod.terminating),
        ("u", 60, true)
    );
    assert_eq!(
        (pod.node.as_str(), pod.host_network, pod.finished),
        ("n", true, true)
    );
}

fn service(spec: Value, status: Value) -> Result<Service, Refusal> {
    let object =
        json!({ "metadata": { "namespace": "ns", "name": "s" }, "spec": spec, "status": status });
    convert::service(&serde_json::from_value(object).expect("the shape of a Service"))
}

#[test]
fn every_address_of_a_service_counts() {
    let read = |spec, status| {
        let service = service(spec, status).expect("a good Service");
        let texts: Vec<_> = service.addresses.iter().map(ToString::to_string).collect();
        texts.join(" ")
    };
    let all = json!({
        "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:96::1"], "externalIPs": ["192.0.2.7"],
        "loadBalancerIP": "192.0.2.8",
    });
    let status = json!({ "loadBalancer": { "ingress": [{ "hostname": "lb.example" }, { "ip": "192.0.2.9" }] } });
    assert_eq!(
        read(all, status),
        "10.96.0.1 192.0.2.7 192.0.2.8 192.0.2.9 fd00:96::1"
    );
    let headless = json!({ "clusterIP": "None", "clusterIPs": ["None"] });
    assert_eq!(read(headless, Value::Null), "");
    let named = json!({ "type": "ExternalName", "externalName": "db.example", "clusterIP": "" });
    assert_eq!(read(named, Value::Null), "");
    assert_eq!(read(Value::Null, json!({ "loadBalancer": {} })), "");
}

#[test]
fn bad_services() {
    let refused = |spec, status, field: &str, reason: &str| {
        let refusal = service(spec, status).expect_err("is refused");
        assert_eq!(refusal.field, field, "{refusal}");
        assert!(refusal.reason.contains(reason), "{refusal}");
        assert_eq!(
            (refusal.kind, refusal.object.to_string().as_str()),
            ("Service", "ns/s")
        );
    };
    for (spec, field, reason) in [
        (
            json!({ "clusterIP": "10.96.0" }),
            "spec.clusterIP",
            "not an IP address",
        ),
        (
            json!({ "clusterIP": "none" }),
            "spec.clusterIP",
            "not an IP address",
        ),
        (
            json!({ "clusterIPs": ["10.96.0.1", "::ffff:10.96.0.1"] }),
            "spec.clusterIPs[1]",
            "write it as IPv4",
        ),
        (
            json!({ "externalIPs": ["None"] }),
            "spec.externalIPs[0]",
            "not an IP address",
        ),
        (
            json!({ "loadBalancerIP": "x" }),
            "spec.loadBalancerIP",
            "not an IP address",
        ),
    ] {
        refused(spec, Value::Null, field, reason);
    }
    refused(
        json!({ "clusterIP": "None" }),
        json!({ "loadBalancer": { "ingress": [{}, { "ip": "1.2.3" }] } }),
        "status.loadBalancer.ingress[1].ip",
        "not an IP address",
    );
}
