//! What a change of objects costs and leaves behind: entries, announcements of local pods, and what waits to be taken away.

mod policy_support;
#[path = "policy_support/world.rs"]
mod world;

use std::{collections::BTreeSet, net::IpAddr};

use netpol_agent::policy::{
    Edit, Generation, ObjectChange,
    object::{ObjectKey, Service},
};
use netpol_common::{Isolation, Peer, Tables as _};
use policy_support::compile;
use serde_json::json;
use world::{TCP, World, clients, pod, pod_with, policy, server_policy};

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
fn an_address_is_a_services_as_long_as_one_service_has_it() {
    let address: IpAddr = "10.0.0.77".parse().expect("an address");
    let service = |name: &str, addresses: &[IpAddr]| {
        ObjectChange::Service(Service {
            key: ObjectKey::new("prod", name),
            addresses: addresses.iter().copied().collect(),
        })
    };
    let entry = |world: &World| world.plane.tables.host(&address.into()).unwrap_or_default();
    let mut world = World::of(clients());
    let start = world.index.tables();
    world.change(service("a", &[address]));
    assert_eq!(entry(&world).flags, Peer::SERVICE);
    let again = world.index.apply([service("a", &[address])]);
    assert!(again.is_empty(), "{again:?}");
    world.change(service("b", &[address]));
    world.change(ObjectChange::NodeAddresses([address].into()));
    world.change(service("a", &[]));
    assert_eq!(entry(&world).flags, Peer::SERVICE | Peer::NODE);
    world.change(server_policy(
        json!([{ "from": [{ "ipBlock": { "cidr": "10.0.0.0/24" } }] }]),
    ));
    assert!(entry(&world).is_virtual() && entry(&world).class != 0);
    world.change(ObjectChange::ServiceGone(ObjectKey::new("prod", "b")));
    assert_eq!(entry(&world).flags, Peer::NODE);
    world.change(ObjectChange::NodeAddresses(BTreeSet::new()));
    world.change(ObjectChange::PolicyGone(ObjectKey::new("prod", "server")));
    assert_eq!(world.index.tables(), start);
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
