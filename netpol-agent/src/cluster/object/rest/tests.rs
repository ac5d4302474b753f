//! What is left allows no more than what was written.

use super::*;
use crate::{
    cluster::object::trim,
    policy::object::{Policy, PolicyPeer},
};

/// What is left of a policy with this `spec`; where it was refused.
fn rest(spec: Value) -> (Option<Policy>, String) {
    let key = ObjectKey::new("shop", "web");
    let policy = json!({ "metadata": { "namespace": "shop", "name": "web" }, "spec": spec });
    let refusal = trim(Kind::NetworkPolicy, &key, policy, Unknown::Judge).expect_err("refused");
    let rest = refusal.rest.map(|rest| match &*rest {
        Object::Policy(policy) => policy.clone(),
        other => panic!("{other:?}"),
    });
    (rest, refusal.field)
}

/// Rules in short: how many peers and ports each has, `*` for all.
fn shape(policy: &Policy) -> [Option<String>; 2] {
    let count = |n: Option<usize>| n.map_or("*".to_owned(), |n| n.to_string());
    [&policy.ingress, &policy.egress].map(|rules| {
        let rules = rules.as_ref()?.iter().map(|rule| {
            let peers = rule.peers.as_ref().map(Vec::len);
            let ports = rule.ports.as_ref().map(Vec::len);
            format!("{}:{}", count(peers), count(ports))
        });
        Some(rules.collect::<Vec<_>>().join(" "))
    })
}

const ODD_PORT: &str = "a-name-that-is-much-too-long";

#[test]
fn the_item_goes_and_the_others_stay() {
    let good = json!({ "podSelector": {} });
    let odd = json!({ "ipBlock": { "cidr": "::ffff:10.0.0.0/104" } });
    let (policy, field) = rest(json!({ "podSelector": {}, "ingress": [
        { "from": [good, odd, good], "ports": [{ "port": 80 }] },
        { "ports": [{ "port": ODD_PORT }, { "port": 81 }] },
        { "from": [{ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["11.0.0.0/8"] } }, good] },
    ]}));
    let policy = policy.expect("a rest");
    assert_eq!(field, "spec.ingress[0].from[1].ipBlock.cidr");
    assert_eq!(shape(&policy), [Some("2:1 *:1 1:*".into()), None]);
    let rules = policy.ingress.expect("rules");
    let peers = rules[2].peers.as_ref().expect("peers");
    assert!(matches!(peers[..], [PolicyPeer::Pods(_)]), "{peers:?}");
}

#[test]
fn a_rule_goes_with_its_last_peer_or_port() {
    for rule in [
        json!({ "from": [{ "ipBlock": { "cidr": "ten" } }] }),
        json!({ "from": [{}] }),
        json!({ "from": [{ "podSelector": {} }], "ports": [{ "port": 0 }] }),
        json!({ "ports": [{ "port": { "what": "is this" } }] }),
        json!({ "ports": "all" }),
        json!({ "form": [{ "podSelector": {} }] }),
        json!(7),
    ] {
        let spec = json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": 80 }] }, rule] });
        let (policy, field) = rest(spec);
        assert!(field.starts_with("spec.ingress[1]"), "{rule}: {field}");
        let policy = policy.unwrap_or_else(|| panic!("a rest of {rule}"));
        assert_eq!(shape(&policy), [Some("*:1".into()), None], "{rule}");
    }
}

#[test]
fn the_directions_stay_when_their_rules_go() {
    let odd = json!([{ "to": [{}] }]);
    let (policy, _) = rest(json!({ "podSelector": {}, "egress": odd }));
    let both = [Some(String::new()), Some(String::new())];
    assert_eq!(policy.map(|p| shape(&p)), Some(both));
    let (policy, _) = rest(json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": odd }));
    let egress = [None, Some(String::new())];
    assert_eq!(policy.map(|p| shape(&p)), Some(egress));
    let (policy, _) = rest(json!({ "podSelector": {}, "ingress": "all" }));
    let ingress = [Some(String::new()), None];
    assert_eq!(policy.map(|p| shape(&p)), Some(ingress));
}

#[test]
fn a_policy_with_too_many_mistakes_allows_nothing() {
    let mut rules = vec![json!({ "ports": [{ "port": 80 }] })];
    rules.extend(vec![
        json!({ "ports": [{ "port": ODD_PORT }] });
        MISTAKES + 1
    ]);
    let (policy, _) = rest(json!({ "podSelector": {}, "ingress": rules }));
    let nothing = [Some(String::new()), None];
    assert_eq!(policy.map(|p| shape(&p)), Some(nothing));
}

#[test]
fn whom_a_policy_selects_cannot_be_left_out() {
    for (spec, at) in [
        (
            json!({ "podSelector": { "matchLabels": { "-": "x" } } }),
            "spec.podSelector",
        ),
        (
            json!({ "podSelector": { "matchLabels": 7 }, "ingress": [{ "from": [{}] }] }),
            "spec.podSelector",
        ),
        (
            json!({ "podSelector": {}, "policyTypes": ["Both"] }),
            "spec.policyTypes",
        ),
        (json!({ "podSelectr": {} }), "spec.podSelectr"),
        (json!(7), "spec"),
    ] {
        let (policy, field) = rest(spec.clone());
        assert!(field.starts_with(at), "{spec}: {field}");
        assert_eq!(policy, None, "{spec}");
    }
}
