//! Synthetic clusters, compiled by the real compiler.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netpol_agent::policy::{
    Index, ObjectChange,
    object::{
        Labels, Namespace, ObjectKey, Pod, Policy, PolicyPeer, PolicyPort, PortMatch, Protocol,
        Requirement, Rule, Selector,
    },
};

/// The node whose tables are compiled.
pub const NODE: &str = "node";
/// The pod whose packets are judged, selected by the first policy.
pub const SERVER: (Ipv4Addr, &str) = (Ipv4Addr::new(10, 1, 0, 1), "server-0");
/// What every packet of the benchmark is sent from.
pub const MAC: [u8; 8] = [2, 0, 0, 0, 0, 1, 0, 0];
/// A peer that the first policy allows to reach TCP 80.
pub const FRIEND: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 0);
/// A pod that policies name, but not for the server.
pub const FOREIGNER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
/// Somebody whom nothing names.
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
/// The node's own address.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
/// The address of a Service.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Local pods; each policy selects one of them.
const LOCAL: u32 = 100;

fn labels(app: &str, number: u32) -> Labels {
    [("app".to_owned(), format!("{app}-{number}"))].into()
}

fn only(key: &str, value: String) -> Selector {
    Selector {
        requirements: vec![Requirement::In(key.to_owned(), vec![value])],
    }
}

/// The IPv6 address of who has this IPv4 address.
pub fn six(v4: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = v4.octets();
    let low = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, low[0], low[1])
}

fn pod(name: String, node: &str, labels: Labels, v4: Ipv4Addr) -> Pod {
    Pod {
        key: ObjectKey::new("bench", name),
        uid: String::new(),
        created: 0,
        terminating: false,
        labels,
        node: node.to_owned(),
        host_network: false,
        finished: false,
        addresses: vec![IpAddr::V4(v4), IpAddr::V6(six(v4))],
        ports: vec![],
    }
}

/// A cluster with `policies` policies and `peers` pods on other nodes.
///
/// Policy *n* selects one local pod and allows the pods of client group *n* (as far as there are peers) TCP 80, and a
/// block of addresses of its own TCP 443, both from there and to there.
pub fn cluster(policies: u32, peers: u32) -> Index {
    let mut changes = vec![ObjectChange::Namespace(Namespace {
        name: "bench".to_owned(),
        labels: Labels::new(),
    })];
    for n in 0..LOCAL {
        let address = Ipv4Addr::from(u32::from(SERVER.0) + n);
        changes.push(ObjectChange::Pod(pod(
            format!("server-{n}"),
            NODE,
            labels("server", n),
            address,
        )));
    }
    for n in 0..peers {
        // Groups are dealt out so that the first peer is of group 0 and the second one of group 1.
        let group = n % policies.max(2);
        let address = Ipv4Addr::from(u32::from(FRIEND) + n);
        changes.push(ObjectChange::Pod(pod(
            format!("client-{n}"),
            "elsewhere",
            labels("client", group),
            address,
        )));
    }
    for n in 0..policies {
        let block = Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + (n << 8));
        let ports = |port| {
            Some(vec![PolicyPort {
                protocol: Protocol::Tcp,
                port: PortMatch::Range(port, port),
            }])
        };
        let rules = vec![
            Rule {
                peers: Some(vec![PolicyPeer::Pods(only("app", format!("client-{n}")))]),
                ports: ports(80),
            },
            Rule {
                peers: Some(vec![PolicyPeer::Block {
                    cidr: ipnet::IpNet::new(IpAddr::V4(block), 24).expect("a valid prefix"),
                    except: vec![],
                }]),
                ports: ports(443),
            },
        ];
        changes.push(ObjectChange::Policy(Policy {
            key: ObjectKey::new("bench", format!("policy-{n}")),
            selector: only("app", format!("server-{}", n % LOCAL)),
            ingress: Some(rules.clone()),
            egress: Some(rules),
        }));
    }
    let mut index = Index::new(NODE);
    index.apply(changes);
    index
}

/// A cluster around a client and its server on this node, with their addresses: of `policies` policies a quarter selects
/// each of them, and the last two allow the client what it asks of the server. Every policy names a group of a thousand
/// peers on other nodes.
pub fn pair([client, server]: [&[IpAddr]; 2], policies: u32) -> Index {
    const PEERS: u32 = 1_000;
    let mut changes = vec![ObjectChange::Namespace(Namespace {
        name: "bench".to_owned(),
        labels: Labels::new(),
    })];
    for (name, addresses) in [("client", client), ("server", server)] {
        changes.push(ObjectChange::Pod(Pod {
            addresses: addresses.to_vec(),
            ..pod(
                name.to_owned(),
                NODE,
                labels(name, 0),
                Ipv4Addr::UNSPECIFIED,
            )
        }));
    }
    for n in 0..PEERS {
        let address = Ipv4Addr::from(u32::from(FRIEND) + n);
        let group = n % policies.clamp(1, PEERS);
        changes.push(ObjectChange::Pod(pod(
            format!("peer-{n}"),
            "elsewhere",
            labels("peer", group),
            address,
        )));
    }
    for n in 0..policies.max(2) {
        let last = policies.max(2) - 1 - n;
        let (selected, peer) = match (last, n % 4) {
            (0, _) => ("server-0".to_owned(), "client-0".to_owned()),
            (1, _) => ("client-0".to_owned(), "server-0".to_owned()),
            (_, 0) => ("server-0".to_owned(), format!("peer-{n}")),
            (_, 1) => ("client-0".to_owned(), format!("peer-{n}")),
            _ => (format!("other-{n}"), format!("peer-{n}")),
        };
        let rules = vec![Rule {
            peers: Some(vec![PolicyPeer::Pods(only("app", peer))]),
            ports: Some(
                [Protocol::Tcp, Protocol::Udp]
                    .map(|protocol| PolicyPort {
                        protocol,
                        port: PortMatch::Range(7_000, 7_009),
                    })
                    .to_vec(),
            ),
        }];
        let server = selected == "server-0";
        changes.push(ObjectChange::Policy(Policy {
            key: ObjectKey::new("bench", format!("policy-{n}")),
            selector: only("app", selected),
            ingress: server.then(|| rules.clone()),
            egress: (!server).then_some(rules),
        }));
    }
    let mut index = Index::new(NODE);
    index.apply(changes);
    index
}
