//! Random small worlds. The alphabets are tiny so that things collide: two pods claim one address, blocks nest and overlap,
//! two pods give one name to different ports.

use std::{collections::BTreeSet, net::IpAddr};

use netpol_agent::policy::{
    ObjectChange,
    object::{
        ContainerPort, Labels, Namespace, ObjectKey, Pod, Policy, PolicyPeer, PolicyPort,
        PortMatch, Protocol, Requirement, Rule, Selector, Service,
    },
    reference::Snapshot,
};
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::policy_support::HERE;

const NAMESPACES: [&str; 3] = ["n0", "n1", "n2"];
const KEYS: [&str; 2] = ["app", "env"];
const VALUES: [&str; 3] = ["a", "b", ""];
const NAMES: [&str; 2] = ["web", "dns"];
const BLOCKS: [&str; 13] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.0/28",
    "10.0.0.4/30",
    "10.0.0.5/32",
    "192.168.0.0/16",
    "192.168.1.0/24",
    "::/0",
    "fd00::/64",
    "fd00::/124",
    "fd00::4/126",
    "fd00::5/128",
];
pub const OUTSIDE: [&str; 6] = [
    "10.0.0.200",
    "192.168.1.9",
    "192.168.2.9",
    "8.8.8.8",
    "fd00::ff",
    "2001:db8::9",
];
pub const NODE: [&str; 2] = ["10.0.0.14", "fd00::e"];

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn labels() -> impl Strategy<Value = Labels> {
    vec((select(&KEYS[..]), select(&VALUES[..])), 0..=2).prop_map(|pairs| {
        pairs
            .into_iter()
            .map(|(k, v)| (k.into(), v.into()))
            .collect()
    })
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let values = vec(select(&VALUES[..]), 1..=2).prop_map(|values| {
        values
            .into_iter()
            .map(str::to_owned)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    });
    (select(&KEYS[..]), values, 0..6).prop_map(|(key, values, operator)| {
        let key = key.to_owned();
        match operator {
            0..=2 => Requirement::In(key, values),
            3 => Requirement::NotIn(key, values),
            4 => Requirement::Exists(key),
            _ => Requirement::DoesNotExist(key),
        }
    })
}

fn selector() -> impl Strategy<Value = Selector> {
    let by_name = select(&NAMESPACES[..])
        .prop_map(|n| Requirement::In("kubernetes.io/metadata.name".into(), vec![n.into()]));
    prop_oneof![
        2 => Just(Selector::default()),
        6 => vec(requirement(), 1..=2).prop_map(|requirements| {
            let requirements: BTreeSet<_> = requirements.into_iter().collect();
            Selector { requirements: requirements.into_iter().collect() }
        }),
        1 => by_name.prop_map(|requirement| Selector { requirements: vec![requirement] }),
    ]
}

fn namespace() -> impl Strategy<Value = Namespace> {
    (select(&NAMESPACES[..]), labels()).prop_map(|(name, mut labels)| {
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
        Namespace {
            name: name.into(),
            labels,
        }
    })
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![4 => Just(Protocol::Tcp), 2 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn container_port() -> impl Strategy<Value = ContainerPort> {
    (
        option::weighted(0.8, select(&NAMES[..])),
        protocol(),
        select(&[53, 80, 8080][..]),
    )
        .prop_map(|(name, protocol, port)| ContainerPort {
            name: name.map(str::to_owned),
            protocol,
            port,
        })
}

fn pod_key() -> impl Strategy<Value = ObjectKey> {
    (select(&NAMESPACES[..]), select(&["p0", "p1", "p2"][..]))
        .prop_map(|(namespace, name)| ObjectKey::new(namespace, name))
}

fn pod() -> impl Strategy<Value = Pod> {
    let rare = || prop::bool::weighted(0.1);
    (
        (pod_key(), labels(), vec(container_port(), 0..=3)),
        (
            select(&["u0", "u1"][..]),
            0..3_i64,
            rare(),
            prop::bool::weighted(0.6),
            rare(),
            rare(),
        ),
        (
            option::weighted(0.8, 1..12_u8),
            option::weighted(0.7, 1..12_u8),
        ),
    )
        .prop_map(
            |(
                (key, labels, ports),
                (uid, created, terminating, local, host_network, finished),
                (four, six),
            )| {
                let four = four.map(|n| ip(&format!("10.0.0.{n}")));
                let six = six.map(|n| ip(&format!("fd00::{n:x}")));
                Pod {
                    key,
                    uid: uid.into(),
                    created,
                    terminating,
                    labels,
                    node: if local { HERE } else { "there" }.into(),
                    host_network,
                    finished,
                    addresses: four.into_iter().chain(six).collect(),
                    ports,
                }
            },
        )
}

fn block() -> impl Strategy<Value = PolicyPeer> {
    (select(&BLOCKS[..]), vec(select(&BLOCKS[..]), 0..=4)).prop_map(|(cidr, except)| {
        let cidr: ipnet::IpNet = cidr.parse().expect("a prefix");
        let except: BTreeSet<ipnet::IpNet> = except
            .into_iter()
            .map(|e| e.parse().expect("a prefix"))
            .filter(|e| cidr.contains(e) && *e != cidr)
            .collect();
        PolicyPeer::Block {
            cidr,
            except: except.into_iter().collect(),
        }
    })
}

fn peer() -> impl Strategy<Value = PolicyPeer> {
    prop_oneof![
        2 => selector().prop_map(PolicyPeer::Pods),
        2 => (selector(), selector()).prop_map(|(n, p)| PolicyPeer::Namespaces(n, p)),
        3 => block(),
    ]
}

fn policy_port() -> impl Strategy<Value = PolicyPort> {
    const RANGES: [(u16, u16); 6] = [
        (53, 53),
        (80, 80),
        (8080, 8080),
        (80, 90),
        (81, 8080),
        (1, 65535),
    ];
    let port = prop_oneof![
        1 => Just(PortMatch::All),
        4 => select(&RANGES[..]).prop_map(|(first, last)| PortMatch::Range(first, last)),
        3 => select(&NAMES[..]).prop_map(|name| PortMatch::Named(name.into())),
    ];
    (protocol(), port).prop_map(|(protocol, port)| PolicyPort { protocol, port })
}

fn rule() -> impl Strategy<Value = Rule> {
    (
        option::weighted(0.85, vec(peer(), 1..=3)),
        option::weighted(0.8, vec(policy_port(), 1..=3)),
    )
        .prop_map(|(peers, ports)| Rule { peers, ports })
}

fn policy_key() -> impl Strategy<Value = ObjectKey> {
    (select(&NAMESPACES[..]), select(&["q0", "q1"][..]))
        .prop_map(|(namespace, name)| ObjectKey::new(namespace, name))
}

fn policy() -> impl Strategy<Value = Policy> {
    let rules = || option::weighted(0.7, vec(rule(), 0..=2));
    (policy_key(), selector(), rules(), rules()).prop_map(|(key, selector, ingress, egress)| {
        Policy {
            key,
            selector,
            ingress,
            egress,
        }
    })
}

/// Addresses of Services: their own, one that pods claim, one in a block, and the node's.
pub const SERVICES: [&str; 5] = [
    "10.96.0.1",
    "10.0.0.5",
    "192.168.1.10",
    "fd00:96::1",
    "10.0.0.14",
];

fn service_key() -> impl Strategy<Value = ObjectKey> {
    (select(&NAMESPACES[..]), select(&["s0", "s1"][..]))
        .prop_map(|(namespace, name)| ObjectKey::new(namespace, name))
}

fn service() -> impl Strategy<Value = Service> {
    (service_key(), vec(select(&SERVICES[..]), 0..=3)).prop_map(|(key, addresses)| Service {
        key,
        addresses: addresses.into_iter().map(ip).collect(),
    })
}

pub fn change() -> impl Strategy<Value = ObjectChange> {
    let node = vec(select(&NODE[..]), 0..=2)
        .prop_map(|a| ObjectChange::NodeAddresses(a.into_iter().map(ip).collect()));
    prop_oneof![
        8 => pod().prop_map(ObjectChange::Pod),
        3 => pod_key().prop_map(ObjectChange::PodGone),
        8 => policy().prop_map(ObjectChange::Policy),
        2 => policy_key().prop_map(ObjectChange::PolicyGone),
        3 => namespace().prop_map(ObjectChange::Namespace),
        1 => select(&NAMESPACES[..]).prop_map(|n| ObjectChange::NamespaceGone(n.into())),
        2 => service().prop_map(ObjectChange::Service),
        1 => service_key().prop_map(ObjectChange::ServiceGone),
        1 => node,
    ]
}

/// A world, as the changes that make it.
pub fn world() -> impl Strategy<Value = Snapshot> {
    (
        vec(namespace(), 0..=3),
        vec(pod(), 2..=8),
        vec(policy(), 1..=5),
        vec(service(), 0..=2),
    )
        .prop_map(|(namespaces, pods, policies, services)| {
            let mut world = Snapshot {
                node: HERE.into(),
                node_addresses: NODE.map(ip).into(),
                ..Snapshot::default()
            };
            let namespaces = namespaces.into_iter().map(ObjectChange::Namespace);
            let pods = pods.into_iter().map(ObjectChange::Pod);
            let policies = policies.into_iter().map(ObjectChange::Policy);
            let services = services.into_iter().map(ObjectChange::Service);
            for change in namespaces.chain(pods).chain(policies).chain(services) {
                world.apply(&change);
            }
            world
        })
}
