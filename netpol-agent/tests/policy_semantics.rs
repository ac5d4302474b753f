//! What each sentence of the NetworkPolicy documentation means in the compiled tables: a small world, a policy, and who may
//! talk to whom. Every answer is asked of the judge on a packet, and of the reference.

mod policy_support;

use std::{collections::BTreeSet, net::IpAddr};

use netpol_agent::policy::{
    Edit, Generation, Index, ObjectChange, convert,
    object::{ObjectKey, Protocol},
    reference::Snapshot,
};
use netpol_common::{Direction, Isolation, Peer};
use policy_support::{HERE, Plane, Question, compile, expected, settle};
use serde_json::{Value, json};

const TCP: Option<Protocol> = Some(Protocol::Tcp);
const UDP: Option<Protocol> = Some(Protocol::Udp);
const SCTP: Option<Protocol> = Some(Protocol::Sctp);
const ICMP: Option<Protocol> = None;

fn namespace(name: &str, labels: Value) -> ObjectChange {
    let object = json!({ "metadata": { "name": name, "labels": labels } });
    let object = serde_json::from_value(object).expect("a namespace");
    ObjectChange::Namespace(convert::namespace(&object).expect("a good namespace"))
}

/// A pod of this node.
fn pod(namespace: &str, name: &str, ip: &str, labels: Value) -> ObjectChange {
    pod_with(namespace, name, ip, labels, json!({}), json!({}))
}

/// A pod with more in its spec and status.
fn pod_with(
    namespace: &str,
    name: &str,
    ip: &str,
    labels: Value,
    spec: Value,
    status: Value,
) -> ObjectChange {
    let mut object = json!({
        "metadata": { "namespace": namespace, "name": name, "labels": labels },
        "spec": { "nodeName": HERE, "containers": [] },
        "status": { "podIPs": [{ "ip": ip }] },
    });
    for (section, more) in [("spec", spec), ("status", status)] {
        for (key, value) in more.as_object().expect("an object") {
            object[section][key] = value.clone();
        }
    }
    let object = serde_json::from_value(object).expect("a pod");
    ObjectChange::Pod(convert::pod(&object).expect("a good pod"))
}

fn policy(namespace: &str, name: &str, spec: Value) -> ObjectChange {
    let object = json!({ "metadata": { "namespace": namespace, "name": name }, "spec": spec });
    let object = serde_json::from_value(object).expect("a policy");
    ObjectChange::Policy(convert::policy(&object).expect("a good policy"))
}

fn ports(ports: Value) -> Value {
    json!({ "containers": [{ "name": "c", "ports": ports }] })
}

/// A world that is changed and asked.
struct World {
    objects: Snapshot,
    index: Index,
    plane: Plane,
}

impl World {
    fn of(changes: impl IntoIterator<Item = ObjectChange>) -> Self {
        let mut world = Self {
            objects: Snapshot {
                node: HERE.into(),
                ..Snapshot::default()
            },
            index: Index::new(HERE),
            plane: Plane::default(),
        };
        for change in changes {
            world.change(change);
        }
        world
    }

    /// Applies and settles a change.
    fn change(&mut self, change: ObjectChange) {
        self.objects.apply(&change);
        self.plane.write_change(&self.index.apply([change]));
        settle(&mut self.index, &mut self.plane);
    }

    fn address(&self, pod: &str) -> IpAddr {
        let (namespace, name) = pod.split_once('/').expect("namespace/name");
        self.objects.pods[&ObjectKey::new(namespace, name)].addresses[0]
    }

    /// Whether a pod's own rules let it talk with an address.
    fn permits(
        &mut self,
        pod: &str,
        direction: Direction,
        remote: IpAddr,
        protocol: Option<Protocol>,
        port: u16,
    ) -> bool {
        let (namespace, name) = pod.split_once('/').expect("namespace/name");
        let question = Question {
            pod: ObjectKey::new(namespace, name),
            direction,
            remote,
            protocol,
            port,
        };
        let answer = self.plane.judge(self.address(pod), &question);
        assert_eq!(
            answer,
            expected(&self.objects, &question),
            "reference: {question:?}"
        );
        answer
    }

    /// Whether a pod lets another one in.
    fn lets_in(&mut self, pod: &str, from: &str, protocol: Option<Protocol>, port: u16) -> bool {
        let from = self.address(from);
        self.permits(pod, Direction::Ingress, from, protocol, port)
    }

    /// Whether a pod lets out to another one.
    fn lets_out(&mut self, pod: &str, to: &str, protocol: Option<Protocol>, port: u16) -> bool {
        let to = self.address(to);
        self.permits(pod, Direction::Egress, to, protocol, port)
    }
}

/// A server in `prod`, and clients of every kind.
fn clients() -> Vec<ObjectChange> {
    vec![
        namespace("prod", json!({ "env": "prod" })),
        namespace("dev", json!({ "env": "dev" })),
        pod("prod", "server", "10.0.0.1", json!({ "app": "server" })),
        pod("prod", "web", "10.0.0.2", json!({ "app": "web" })),
        pod("prod", "bare", "10.0.0.3", json!({})),
        pod("dev", "web", "10.0.1.2", json!({ "app": "web" })),
        pod("dev", "bare", "10.0.1.3", json!({})),
    ]
}

fn server_policy(rules: Value) -> ObjectChange {
    policy(
        "prod",
        "server",
        json!({ "podSelector": { "matchLabels": { "app": "server" } }, "ingress": rules }),
    )
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
        assert!(world.lets_out("prod/server", client, ICMP, 0));
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
    assert!(!world.lets_out("prod/server", "prod/web", TCP, 80));
    assert!(world.lets_out("prod/server", "dev/bare", TCP, 80));
    assert!(!world.lets_in("prod/server", "dev/bare", TCP, 80));
    world.change(policy("prod", "server", spec(json!(["Ingress"]))));
    assert!(
        world.lets_out("prod/server", "prod/web", TCP, 80),
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
        assert!(world.lets_out("prod/server", "prod/web", TCP, 80));
        assert!(!world.lets_out("prod/server", "prod/web", TCP, 8080));
        assert!(world.lets_out("prod/server", "dev/web", TCP, 8080));
        assert!(!world.lets_out("prod/server", "dev/web", TCP, 80));
        assert!(!world.lets_out("prod/server", "dev/bare", TCP, 80));
    }
    // An address of a block has no names, even if a pod has the address.
    world.change(policy(
        "prod",
        "server",
        spec(json!([{ "ipBlock": { "cidr": "10.0.0.0/8" } }])),
    ));
    assert!(!world.lets_out("prod/server", "prod/web", TCP, 80));
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
    assert!(world.lets_out("prod/server", "prod/agent", TCP, 80));
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

#[test]
fn an_address_belongs_to_the_successor_while_the_old_pod_is_still_on_record() {
    let mut world = World::of(clients());
    world.change(server_policy(
        json!([{ "from": [{ "podSelector": { "matchLabels": { "app": "web" } } }] }]),
    ));
    // `bare` got the address of `web`, which is going away.
    let ObjectChange::Pod(mut old) = pod("prod", "web", "10.0.0.2", json!({ "app": "web" })) else {
        unreachable!("a pod")
    };
    old.terminating = true;
    world.change(ObjectChange::Pod(old.clone()));
    assert!(
        world.lets_in("prod/server", "prod/web", TCP, 80),
        "it counts until it is gone"
    );
    world.change(pod("prod", "bare", "10.0.0.2", json!({})));
    assert!(!world.lets_in("prod/server", "prod/bare", TCP, 80));
    let addresses = |world: &World, name: &str| {
        let pod = world
            .index
            .local_pods()
            .find(|p| p.key == ObjectKey::new("prod", name));
        pod.expect("a local pod").addresses
    };
    assert!(addresses(&world, "web").is_empty());
    assert_eq!(addresses(&world, "bare"), [world.address("prod/bare")]);
    world.change(ObjectChange::PodGone(ObjectKey::new("prod", "bare")));
    assert!(
        world.lets_in("prod/server", "prod/web", TCP, 80),
        "and takes it back"
    );
}

#[test]
fn policies_of_other_nodes_pods_leave_no_trace() {
    let there = |name: &str, ip: &str| {
        pod_with(
            "prod",
            name,
            ip,
            json!({ "app": "server" }),
            json!({ "nodeName": "there" }),
            json!({}),
        )
    };
    let world = World::of([
        there("a", "10.0.0.1"),
        there("b", "10.0.0.2"),
        server_policy(
            json!([{ "from": [{ "podSelector": {} }, { "ipBlock": { "cidr": "10.0.0.0/8" } }] }]),
        ),
    ]);
    // The root entry of IPv4 is always there.
    assert_eq!(world.index.tables().len(), 1);
    assert_eq!(world.index.local_pods().count(), 0);
    let status: Vec<_> = world.index.policies().collect();
    assert_eq!(status.len(), 1);
    assert!(status[0].pods.is_empty());
}

#[test]
fn the_last_policy_gone_leaves_empty_tables() {
    let mut world = World::of(clients());
    let empty = world.index.tables();
    world.change(server_policy(json!([{ "from": [{ "podSelector": {} }, { "ipBlock": { "cidr": "10.0.0.0/8" } }], "ports": [{ "port": 80 }] }])));
    assert_ne!(world.index.tables(), empty);
    world.change(ObjectChange::PolicyGone(ObjectKey::new("prod", "server")));
    assert_eq!(world.index.tables(), empty);
    assert_eq!(world.plane.tables.content(), empty);
}

#[test]
fn a_peer_that_comes_is_one_entry_whatever_the_number_of_policies() {
    let mut objects = clients();
    for n in 0..200 {
        objects.push(policy("prod", &format!("p{n}"), json!({ "podSelector": {}, "ingress": [
            { "from": [{ "podSelector": { "matchLabels": { "app": format!("web{}", n % 7) } } }], "ports": [{ "port": n + 1 }] },
        ] })));
        objects.push(pod(
            "prod",
            &format!("w{n}"),
            &format!("10.0.7.{n}"),
            json!({ "app": format!("web{}", n % 7) }),
        ));
    }
    let (mut index, _) = compile(objects);
    let there = pod_with(
        "prod",
        "new",
        "10.0.8.1",
        json!({ "app": "web3" }),
        json!({ "nodeName": "there" }),
        json!({}),
    );
    let change = index.apply([there]);
    assert!(matches!(change.add[..], [Edit::Host { .. }]), "{change:?}");
    assert!(change.flip.is_empty() && index.settled());
}

#[test]
fn a_local_pod_is_announced_before_it_has_an_address() {
    let mut world = World::of([policy("prod", "deny", json!({ "podSelector": {} }))]);
    let ObjectChange::Pod(mut early) = pod("prod", "early", "10.0.0.1", json!({})) else {
        unreachable!("a pod")
    };
    let addresses = std::mem::take(&mut early.addresses);
    let change = world.index.apply([ObjectChange::Pod(early.clone())]);
    assert_eq!(change.flip.len(), 1);
    assert_ne!(change.flip[0].ingress, Isolation::OPEN);
    let listed: Vec<_> = world.index.local_pods().collect();
    assert!(listed[0].addresses.is_empty());
    assert_eq!(listed[0].ingress_policies, ["deny"]);
    assert!(listed[0].egress_policies.is_empty());
    drop(listed);
    // The address is news for the dataplane, although the isolation is the same.
    early.addresses = addresses;
    assert_eq!(world.index.apply([ObjectChange::Pod(early)]).flip.len(), 1);
}

#[test]
fn a_pod_replaced_under_its_name_is_announced_again() {
    let mut world = World::of(clients());
    let key = ObjectKey::new("prod", "web");
    let change = world.index.apply([
        ObjectChange::PodGone(key.clone()),
        pod("prod", "web", "10.0.0.9", json!({ "app": "web" })),
    ]);
    assert!(change.gone.is_empty());
    assert_eq!(
        change.flip.iter().map(|f| &f.pod).collect::<Vec<_>>(),
        [&key]
    );
    let change = world.index.apply([ObjectChange::PodGone(key.clone())]);
    assert_eq!(change.gone, [key]);
    assert!(change.flip.is_empty());
}

#[test]
fn a_pod_that_moves_to_another_node_is_gone_here_and_still_a_peer() {
    let mut world = World::of(clients());
    world.change(server_policy(json!([{ "from": [{ "podSelector": {} }] }])));
    let moved = pod_with(
        "prod",
        "web",
        "10.0.0.2",
        json!({ "app": "web" }),
        json!({ "nodeName": "there" }),
        json!({}),
    );
    let change = world.index.apply([moved]);
    assert_eq!(change.gone, [ObjectKey::new("prod", "web")]);
    assert!(change.add.is_empty());
}

#[test]
fn what_is_needed_again_before_it_was_taken_away_costs_no_entry() {
    let mut world = World::of(clients());
    let web = server_policy(
        json!([{ "from": [{ "podSelector": { "matchLabels": { "app": "web" } } }] }]),
    );
    world.change(web.clone());
    world.index.apply([server_policy(json!([]))]);
    assert!(!world.index.settled());
    let back = world.index.apply([web]);
    assert!(back.add.is_empty(), "{back:?}");
    assert_eq!(back.flip.len(), 1);
}

#[test]
fn nothing_is_taken_away_before_its_time() {
    let mut world = World::of(clients());
    world.change(server_policy(
        json!([{ "from": [{ "podSelector": { "matchLabels": { "app": "web" } } }] }]),
    ));
    let before = world.index.generation();
    world
        .index
        .apply([ObjectChange::PolicyGone(ObjectKey::new("prod", "server"))]);
    assert_eq!(world.index.settle(before), []);
    assert!(!world.index.settled());
    let after = world.index.generation();
    assert!(after > before);
    assert!(!world.index.settle(after).is_empty());
    // The class that the peers left just now waits for its own time.
    assert_eq!(world.index.settle(after), []);
    assert!(!world.index.settled());
    world.index.settle(world.index.generation());
    assert!(world.index.settled());
    assert!(world.index.generation() > Generation(0));
}

#[test]
fn a_node_address_is_marked_and_keeps_its_blocks() {
    let node: IpAddr = "10.0.0.100".parse().expect("an address");
    let mut world = World::of(clients());
    world.change(ObjectChange::NodeAddresses([node].into()));
    let entry = |world: &World| {
        world
            .index
            .tables()
            .into_iter()
            .find_map(|edit| match edit {
                Edit::Host { address, peer } if address == node.into() => peer,
                _ => None,
            })
    };
    let peer = entry(&world).expect("an entry");
    assert_eq!((peer.class, peer.flags), (0, Peer::NODE));
    world.change(server_policy(
        json!([{ "from": [{ "ipBlock": { "cidr": "10.0.0.0/24" } }] }]),
    ));
    let peer = entry(&world).expect("an entry");
    assert!(peer.is_node() && peer.class != 0);
    world.change(ObjectChange::NodeAddresses(BTreeSet::new()));
    let peer = entry(&world);
    assert_eq!(peer, None, "the block's prefix answers for it again");
}
