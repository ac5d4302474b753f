//! What each sentence of the NetworkPolicy documentation means in the compiled tables: a small world, a policy, and who may
//! talk to whom. Every answer is asked of the judge on a packet, and of the reference.

mod policy_support;
#[path = "policy_support/world.rs"]
mod world;

use std::collections::BTreeSet;

use netpol_agent::policy::{ObjectChange, object::Protocol};
use netpol_common::{Direction, Isolation};
use policy_support::compile;
use serde_json::{Value, json};
use world::{TCP, World, clients, namespace, pod, pod_with, policy, server_policy};

const UDP: Option<Protocol> = Some(Protocol::Udp);
const SCTP: Option<Protocol> = Some(Protocol::Sctp);
const ICMP: Option<Protocol> = None;

fn ports(ports: Value) -> Value {
    json!({ "containers": [{ "name": "c", "ports": ports }] })
}

/// Whether a pod lets out to another one.
fn lets_out(world: &mut World, pod: &str, to: &str, protocol: Option<Protocol>, port: u16) -> bool {
    let to = world.address(to);
    world.permits(pod, Direction::Egress, to, protocol, port)
}

const CLIENTS: [&str; 4] = ["prod/web", "prod/bare", "dev/web", "dev/bare"];

/// Who of [`CLIENTS`] the server lets in on TCP 80 under these ingress rules.
fn let_in(rules: Value) -> Vec<&'static str> {
    let mut world = World::of(clients());
    world.change(server_policy(rules));
    CLIENTS
        .into_iter()
        .filter(|client| world.lets_in("prod/server", client, TCP, 80))
        .collect()
}

#[test]
fn without_a_policy_everything_is_open() {
    let mut world = World::of(clients());
    for client in CLIENTS {
        assert!(world.lets_in("prod/server", client, TCP, 80));
        assert!(lets_out(&mut world, "prod/server", client, ICMP, 0));
    }
}

#[test]
fn no_rule_lets_nobody_in_and_an_empty_rule_lets_everybody_in() {
    assert_eq!(let_in(json!([])), Vec::<&str>::new());
    assert_eq!(let_in(json!([{}])), CLIENTS);
    assert_eq!(let_in(json!([{ "from": [], "ports": [] }])), CLIENTS);
}

#[test]
fn selectors_in_one_item_are_anded() {
    let both = json!([{ "from": [{
        "namespaceSelector": { "matchLabels": { "env": "dev" } },
        "podSelector": { "matchLabels": { "app": "web" } },
    }] }]);
    assert_eq!(let_in(both), ["dev/web"]);
}

#[test]
fn items_of_a_list_are_ored_and_a_pod_selector_alone_stays_in_its_namespace() {
    let either = json!([{ "from": [
        { "namespaceSelector": { "matchLabels": { "env": "dev" } } },
        { "podSelector": { "matchLabels": { "app": "web" } } },
    ] }]);
    assert_eq!(let_in(either), ["prod/web", "dev/web", "dev/bare"]);
    let own = json!([{ "from": [{ "podSelector": { "matchLabels": { "app": "web" } } }] }]);
    assert_eq!(let_in(own), ["prod/web"]);
}

#[test]
fn not_in_matches_a_pod_that_lacks_the_key() {
    let not_web = json!([{ "from": [{ "podSelector": { "matchExpressions": [
        { "key": "app", "operator": "NotIn", "values": ["web"] },
    ] } }] }]);
    assert_eq!(let_in(not_web), ["prod/bare"]);
    let absent = json!([{ "from": [{ "namespaceSelector": {}, "podSelector": { "matchExpressions": [
        { "key": "app", "operator": "DoesNotExist" },
    ] } }] }]);
    assert_eq!(let_in(absent), ["prod/bare", "dev/bare"]);
}

#[test]
fn all_requirements_of_a_selector_must_hold() {
    let both = json!([{ "from": [{ "namespaceSelector": { "matchLabels": { "env": "dev" }, "matchExpressions": [
        { "key": "env", "operator": "In", "values": ["prod", "test"] },
    ] } }] }]);
    assert_eq!(let_in(both), Vec::<&str>::new());
}

#[test]
fn rules_of_all_policies_add_up() {
    let mut world = World::of(clients());
    world.change(server_policy(json!([])));
    let from_web = json!({ "podSelector": {}, "ingress": [
        { "from": [{ "podSelector": { "matchLabels": { "app": "web" } } }], "ports": [{ "port": 80 }] },
        { "from": [{ "podSelector": {} }], "ports": [{ "port": 81 }] },
    ] });
    world.change(policy("prod", "more", from_web));
    assert!(world.lets_in("prod/server", "prod/web", TCP, 80));
    assert!(world.lets_in("prod/server", "prod/web", TCP, 81));
    assert!(world.lets_in("prod/server", "prod/bare", TCP, 81));
    assert!(!world.lets_in("prod/server", "prod/bare", TCP, 80));
}

#[test]
fn except_takes_addresses_out_of_its_own_block_only() {
    let mut world = World::of(clients());
    world.change(server_policy(json!([
        { "from": [{ "ipBlock": { "cidr": "192.168.0.0/16", "except": ["192.168.1.0/24", "192.168.1.128/25"] } }] },
        { "from": [{ "ipBlock": { "cidr": "192.168.1.7/24", "except": ["192.168.1.9/32"] } }], "ports": [{ "port": 80 }] },
    ])));
    let mut asks = |from: &str, port| {
        world.permits(
            "prod/server",
            Direction::Ingress,
            from.parse().expect("an address"),
            TCP,
            port,
        )
    };
    assert!(asks("192.168.2.1", 443));
    assert!(
        !asks("192.168.1.1", 443),
        "the first block makes an exception of it"
    );
    assert!(
        asks("192.168.1.1", 80),
        "but the second one does not, and its host bits mean nothing"
    );
    assert!(asks("192.168.1.200", 80));
    assert!(!asks("192.168.1.9", 80), "exception of both");
    assert!(!asks("192.169.0.1", 80));
}

#[test]
fn an_ipv6_block_never_speaks_for_ipv4() {
    let mut world = World::of(clients());
    world.change(server_policy(
        json!([{ "from": [{ "ipBlock": { "cidr": "::/0" } }] }]),
    ));
    let server = world.address("prod/server");
    assert!(server.is_ipv4());
    let outside = "8.8.8.8".parse().expect("an address");
    assert!(!world.permits("prod/server", Direction::Ingress, outside, TCP, 80));
}

#[test]
fn a_pod_inside_a_block_is_allowed_by_either() {
    let rules = json!([
        { "from": [{ "ipBlock": { "cidr": "10.0.1.0/24", "except": ["10.0.1.2/32"] } }] },
        { "from": [{ "podSelector": { "matchLabels": { "app": "web" } } }] },
    ]);
    assert_eq!(let_in(rules), ["prod/web", "dev/bare"]);
}

#[test]
fn a_port_without_protocol_is_tcp() {
    let mut world = World::of(clients());
    world.change(server_policy(json!([{ "ports": [{ "port": 53 }] }])));
    assert!(world.lets_in("prod/server", "prod/web", TCP, 53));
    assert!(!world.lets_in("prod/server", "prod/web", UDP, 53));
    assert!(!world.lets_in("prod/server", "prod/web", SCTP, 53));
}

#[test]
fn a_protocol_without_port_is_all_its_ports() {
    let mut world = World::of(clients());
    world.change(server_policy(json!([{ "ports": [{ "protocol": "UDP" }] }])));
    for port in [1, 53, 65535] {
        assert!(world.lets_in("prod/server", "prod/web", UDP, port));
        assert!(!world.lets_in("prod/server", "prod/web", TCP, port));
    }
}

#[test]
fn icmp_passes_only_by_a_rule_without_ports() {
    let mut world = World::of(clients());
    world.change(server_policy(json!([{ "ports": [{ "protocol": "UDP" }, { "protocol": "TCP" }, { "protocol": "SCTP" }] }])));
    assert!(!world.lets_in("prod/server", "prod/web", ICMP, 0));
    world.change(server_policy(json!([{}])));
    assert!(world.lets_in("prod/server", "prod/web", ICMP, 0));
}

#[test]
fn end_port_is_included_and_its_neighbours_are_not() {
    let mut world = World::of(clients());
    world.change(server_policy(
        json!([{ "ports": [{ "port": 80, "endPort": 90 }, { "port": 200, "endPort": 200 }] }]),
    ));
    for (port, open) in [
        (79, false),
        (80, true),
        (85, true),
        (90, true),
        (91, false),
        (199, false),
        (200, true),
        (201, false),
    ] {
        assert_eq!(
            world.lets_in("prod/server", "prod/web", TCP, port),
            open,
            "port {port}"
        );
    }
}

#[test]
fn ingress_rules_say_nothing_about_what_a_pod_sends() {
    let mut world = World::of(clients());
    let spec = |types: Value| {
        json!({
            "podSelector": { "matchLabels": { "app": "server" } },
            "policyTypes": types,
            "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "web" } } }] }],
            "egress": [{ "to": [{ "namespaceSelector": { "matchLabels": { "env": "dev" } } }] }],
        })
    };
    world.change(policy("prod", "server", spec(json!(["Ingress", "Egress"]))));
    assert!(world.lets_in("prod/server", "prod/web", TCP, 80));
    assert!(!lets_out(&mut world, "prod/server", "prod/web", TCP, 80));
    assert!(lets_out(&mut world, "prod/server", "dev/bare", TCP, 80));
    assert!(!world.lets_in("prod/server", "dev/bare", TCP, 80));
    world.change(policy("prod", "server", spec(json!(["Ingress"]))));
    assert!(
        lets_out(&mut world, "prod/server", "prod/web", TCP, 80),
        "not isolated for egress"
    );
    assert!(!world.lets_in("prod/server", "dev/bare", TCP, 80));
}

#[test]
fn policy_types_default_to_ingress_and_to_egress_where_there_are_rules() {
    let isolation = |spec: Value| {
        let (index, _) = compile(clients().into_iter().chain([policy("prod", "p", spec)]));
        let server = index
            .local_pods()
            .find(|p| p.key.name == "server")
            .expect("the server");
        (
            server.ingress != Isolation::OPEN,
            server.egress != Isolation::OPEN,
        )
    };
    assert_eq!(isolation(json!({ "podSelector": {} })), (true, false));
    assert_eq!(
        isolation(json!({ "podSelector": {}, "egress": [] })),
        (true, false)
    );
    assert_eq!(
        isolation(json!({ "podSelector": {}, "egress": [{}] })),
        (true, true)
    );
    assert_eq!(
        isolation(json!({ "podSelector": {}, "policyTypes": [] })),
        (true, false)
    );
    assert_eq!(
        isolation(json!({ "podSelector": {}, "policyTypes": ["Egress"] })),
        (false, true)
    );
}

#[test]
fn a_port_name_means_on_ingress_what_the_selected_pod_calls_so() {
    let mut world = World::of(clients());
    let tcp = ports(
        json!([{ "name": "web", "containerPort": 8080 }, { "name": "web", "containerPort": 53, "protocol": "UDP" }]),
    );
    world.change(pod_with(
        "prod",
        "server",
        "10.0.0.1",
        json!({ "app": "server" }),
        tcp,
        json!({}),
    ));
    world.change(server_policy(json!([{ "from": [{ "ipBlock": { "cidr": "10.0.0.0/8" } }], "ports": [{ "port": "web" }] }])));
    assert!(world.lets_in("prod/server", "prod/web", TCP, 8080));
    assert!(
        !world.lets_in("prod/server", "prod/web", UDP, 53),
        "another protocol, another name"
    );
    // The port moves to another number, and then has no name.
    let moved = ports(json!([{ "name": "web", "containerPort": 9090 }]));
    world.change(pod_with(
        "prod",
        "server",
        "10.0.0.1",
        json!({ "app": "server" }),
        moved,
        json!({}),
    ));
    assert!(world.lets_in("prod/server", "prod/web", TCP, 9090));
    assert!(!world.lets_in("prod/server", "prod/web", TCP, 8080));
    world.change(pod(
        "prod",
        "server",
        "10.0.0.1",
        json!({ "app": "server" }),
    ));
    assert!(!world.lets_in("prod/server", "prod/web", TCP, 9090));
}

#[test]
fn a_port_name_means_on_egress_what_each_destination_calls_so() {
    let mut world = World::of(clients());
    let named = |number: u16| ports(json!([{ "name": "web", "containerPort": number }]));
    world.change(pod_with(
        "prod",
        "web",
        "10.0.0.2",
        json!({ "app": "web" }),
        named(80),
        json!({}),
    ));
    world.change(pod_with(
        "dev",
        "web",
        "10.0.1.2",
        json!({ "app": "web" }),
        named(8080),
        json!({}),
    ));
    let spec = |to: Value| {
        json!({
            "podSelector": { "matchLabels": { "app": "server" } },
            "policyTypes": ["Egress"],
            "egress": [{ "to": to, "ports": [{ "port": "web" }] }],
        })
    };
    for to in [json!([{ "namespaceSelector": {} }]), json!([])] {
        world.change(policy("prod", "server", spec(to)));
        assert!(lets_out(&mut world, "prod/server", "prod/web", TCP, 80));
        assert!(!lets_out(&mut world, "prod/server", "prod/web", TCP, 8080));
        assert!(lets_out(&mut world, "prod/server", "dev/web", TCP, 8080));
        assert!(!lets_out(&mut world, "prod/server", "dev/web", TCP, 80));
        assert!(!lets_out(&mut world, "prod/server", "dev/bare", TCP, 80));
    }
    // An address of a block has no names, even if a pod has the address.
    world.change(policy(
        "prod",
        "server",
        spec(json!([{ "ipBlock": { "cidr": "10.0.0.0/8" } }])),
    ));
    assert!(!lets_out(&mut world, "prod/server", "prod/web", TCP, 80));
}

#[test]
fn a_restartable_init_container_has_named_ports_too() {
    let container = |policy: &str| {
        json!({
            "initContainers": [{ "name": "i", "restartPolicy": policy, "ports": [{ "name": "web", "containerPort": 80 }] }],
        })
    };
    for (restart, open) in [("Always", true), ("Never", false)] {
        let mut world = World::of(clients());
        world.change(pod_with(
            "prod",
            "server",
            "10.0.0.1",
            json!({ "app": "server" }),
            container(restart),
            json!({}),
        ));
        world.change(server_policy(json!([{ "ports": [{ "port": "web" }] }])));
        assert_eq!(world.lets_in("prod/server", "prod/web", TCP, 80), open);
    }
}

#[test]
fn relabelling_a_namespace_takes_the_permission_away() {
    let mut world = World::of(clients());
    world.change(server_policy(
        json!([{ "from": [{ "namespaceSelector": { "matchLabels": { "env": "dev" } } }] }]),
    ));
    assert!(world.lets_in("prod/server", "dev/bare", TCP, 80));
    world.change(namespace("dev", json!({})));
    assert!(!world.lets_in("prod/server", "dev/bare", TCP, 80));
    world.change(namespace("dev", json!({ "env": "dev" })));
    assert!(world.lets_in("prod/server", "dev/bare", TCP, 80));
    world.change(ObjectChange::NamespaceGone("dev".into()));
    assert!(!world.lets_in("prod/server", "dev/bare", TCP, 80));
}

#[test]
fn a_namespace_without_an_object_still_has_its_name() {
    let mut world = World::of([
        pod("a", "server", "10.0.0.1", json!({})),
        pod("b", "client", "10.0.0.2", json!({})),
        policy(
            "a",
            "p",
            json!({ "podSelector": {}, "ingress": [{ "from": [{ "namespaceSelector": {
            "matchLabels": { "kubernetes.io/metadata.name": "b" },
        } }] }] }),
        ),
    ]);
    assert!(world.lets_in("a/server", "b/client", TCP, 80));
}

#[test]
fn a_pod_with_host_network_is_its_node() {
    let mut world = World::of(clients());
    world.change(pod_with(
        "prod",
        "agent",
        "10.9.9.9",
        json!({ "app": "web" }),
        json!({ "hostNetwork": true }),
        json!({}),
    ));
    world.change(server_policy(json!([{ "from": [{ "podSelector": {} }] }])));
    assert!(
        !world.lets_in("prod/server", "prod/agent", TCP, 80),
        "not a peer"
    );
    assert!(
        world.index.local_pods().all(|p| p.key.name != "agent"),
        "not selected"
    );
    let node = BTreeSet::from(["10.9.9.9".parse().expect("an address")]);
    world.change(ObjectChange::NodeAddresses(node));
    assert!(
        world.lets_in("prod/server", "prod/agent", TCP, 80),
        "its node is always allowed"
    );
    assert!(lets_out(&mut world, "prod/server", "prod/agent", TCP, 80));
}

#[test]
fn a_finished_pod_has_given_its_address_back() {
    let mut world = World::of(clients());
    world.change(server_policy(
        json!([{ "from": [{ "podSelector": { "matchLabels": { "app": "web" } } }] }]),
    ));
    assert!(world.lets_in("prod/server", "prod/web", TCP, 80));
    let done = pod_with(
        "prod",
        "web",
        "10.0.0.2",
        json!({ "app": "web" }),
        json!({}),
        json!({ "phase": "Succeeded" }),
    );
    world.change(done);
    assert!(!world.lets_in("prod/server", "prod/web", TCP, 80));
}
