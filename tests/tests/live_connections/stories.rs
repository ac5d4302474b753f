//! The worlds, the changes, and the conversations that end and that live.

use netpol_tests::{
    manifests::DocumentId,
    table::{Destination, Party, Port},
};

/// The ports of the conversations.
pub const TCP: Port = Port::Tcp(80);
const OTHER_TCP: Port = Port::Tcp(8080);
const UDP: Port = Port::Udp(53);
const OTHER_UDP: Port = Port::Udp(5353);

/// Five pods, alike but for their labels, and two hosts outside.
pub fn world() -> String {
    let mut world = String::new();
    for namespace in ["a", "b", "c"] {
        world += &format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}, labels: {{team: blue}}}}}}\n---\n"
        );
    }
    let ports = "[{containerPort: 80}, {containerPort: 8080}, {containerPort: 53, protocol: UDP}, {containerPort: 5353, protocol: UDP}]";
    for (namespace, name) in [
        ("a", "server"),
        ("a", "client"),
        ("a", "twin"),
        ("b", "client"),
        ("c", "twin"),
    ] {
        world += &format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{namespace: {namespace}, name: {name}, labels: {{app: {name}, pass: 'yes'}}}}, \
             spec: {{containers: [{{name: c, ports: {ports}}}]}}}}\n---\n"
        );
    }
    world
        + "{apiVersion: lab.netpol-agent/v1, kind: Host, metadata: {name: client}, spec: {addresses: [10.0.5.7, 'fd00:5::7']}}\n---\n\
           {apiVersion: lab.netpol-agent/v1, kind: Host, metadata: {name: twin}, spec: {addresses: [10.0.5.8, 'fd00:5::8']}}\n"
}

/// A policy of namespace `a` for the pods of an app.
fn policy(name: &str, app: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{namespace: a, name: {name}}}, \
         spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, {spec}}}}}\n"
    )
}

/// What takes the permissions away.
#[derive(Clone, Debug)]
pub enum Change {
    /// Other policies.
    Policies(String),
    /// A label goes.
    Unlabel(DocumentId, &'static str),
    /// A pod goes from the manifests, while its namespace and its interface still live.
    Vanish(DocumentId),
}

/// What happens to the conversations of a world when it changes.
pub struct Story {
    /// What happens.
    pub name: &'static str,
    /// The policies before it.
    pub policies: String,
    /// What takes permissions away.
    pub change: Change,
    /// The conversations that end.
    pub ends: Vec<(Party, Destination)>,
    /// Conversations that both states allow, of the same pods as far as there are such.
    pub lives: Vec<(Party, Destination)>,
}

fn pod(name: &str) -> Party {
    let (namespace, name) = name.split_once('/').unwrap_or(("a", name));
    match namespace {
        "host" => Party::host(name),
        namespace => Party::pod(namespace, name),
    }
}

/// `from` speaks with `to`, by TCP and by UDP.
fn pair(from: &str, to: &str) -> Vec<(Party, Destination)> {
    [TCP, UDP]
        .map(|port| (pod(from), Destination::new(pod(to), port)))
        .into()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(Party, Destination)> {
    pairs.iter().flat_map(|(from, to)| pair(from, to)).collect()
}

fn at_ports(from: &str, to: &str, ports: [Port; 2]) -> Vec<(Party, Destination)> {
    ports
        .map(|port| (pod(from), Destination::new(pod(to), port)))
        .into()
}

const ALL_PORTS: &str =
    "[{port: 80}, {port: 8080}, {port: 53, protocol: UDP}, {port: 5353, protocol: UDP}]";
const OTHER_PORTS: &str = "[{port: 8080}, {port: 5353, protocol: UDP}]";
const PASS: &str = "podSelector: {matchLabels: {pass: 'yes'}}";

/// Every way in which a permission may go.
pub fn stories() -> Vec<Story> {
    let story = |name, policies: &str, change, ends, lives| Story {
        name,
        policies: policies.to_owned(),
        change,
        ends,
        lives,
    };
    let ingress = |peers: &str| {
        policy(
            "server",
            "server",
            &format!("ingress: [{{from: [{peers}]}}]"),
        )
    };
    let egress = |peers: &str| {
        let spec = format!("policyTypes: [Egress], egress: [{{to: [{peers}]}}]");
        policy("client", "client", &spec)
    };
    let app = |apps: &str| {
        format!("podSelector: {{matchExpressions: [{{key: app, operator: In, values: [{apps}]}}]}}")
    };
    let closed = policy("closed", "server", "policyTypes: [Ingress]");
    let for_twin = policy(
        "twin",
        "server",
        &format!("ingress: [{{from: [{{{}}}]}}]", app("twin")),
    );
    let for_client = policy(
        "client",
        "server",
        &format!("ingress: [{{from: [{{{}}}]}}]", app("client")),
    );
    let server_only = pairs(&[("client", "server")]);
    vec![
        story(
            "ports go from an ingress rule",
            &policy(
                "server",
                "server",
                &format!("ingress: [{{ports: {ALL_PORTS}}}]"),
            ),
            Change::Policies(policy(
                "server",
                "server",
                &format!("ingress: [{{ports: {OTHER_PORTS}}}]"),
            )),
            server_only.clone(),
            at_ports("client", "server", [OTHER_TCP, OTHER_UDP]),
        ),
        story(
            "ports go from an egress rule",
            &policy(
                "client",
                "client",
                &format!("policyTypes: [Egress], egress: [{{ports: {ALL_PORTS}}}]"),
            ),
            Change::Policies(policy(
                "client",
                "client",
                &format!("policyTypes: [Egress], egress: [{{ports: {OTHER_PORTS}}}]"),
            )),
            server_only.clone(),
            [
                at_ports("client", "server", [OTHER_TCP, OTHER_UDP]),
                pair("server", "client"),
            ]
            .concat(),
        ),
        story(
            "a peer goes from an ingress rule",
            &ingress(&format!("{{{}}}", app("client, twin"))),
            Change::Policies(ingress(&format!("{{{}}}", app("twin")))),
            server_only.clone(),
            pairs(&[("twin", "server"), ("server", "client")]),
        ),
        story(
            "a peer goes from an egress rule",
            &egress(&format!("{{{}}}", app("server, twin"))),
            Change::Policies(egress(&format!("{{{}}}", app("twin")))),
            server_only.clone(),
            pairs(&[("client", "twin"), ("server", "client")]),
        ),
        story(
            "an exception is cut into a block",
            &ingress("{ipBlock: {cidr: 10.0.5.0/24}}, {ipBlock: {cidr: 'fd00:5::/64'}}"),
            Change::Policies(ingress(
                "{ipBlock: {cidr: 10.0.5.0/24, except: [10.0.5.7/32]}}, {ipBlock: {cidr: 'fd00:5::/64', except: ['fd00:5::7/128']}}",
            )),
            pairs(&[("host/client", "server")]),
            pairs(&[("host/twin", "server")]),
        ),
        story(
            "the first policy of the server: ingress",
            "",
            Change::Policies(for_twin.clone()),
            pairs(&[("client", "server"), ("b/client", "server")]),
            pairs(&[("twin", "server"), ("server", "client")]),
        ),
        story(
            "the first policy of the client: egress",
            "",
            Change::Policies(egress(&format!("{{{}}}", app("twin")))),
            server_only.clone(),
            pairs(&[("client", "twin"), ("server", "client")]),
        ),
        story(
            "the first policy of the server: nothing in and nothing out",
            "",
            Change::Policies(policy("server", "server", "policyTypes: [Ingress, Egress]")),
            pairs(&[("client", "server"), ("server", "client")]),
            pairs(&[("client", "twin"), ("twin", "client")]),
        ),
        story(
            "the client is relabelled, the server has the policy",
            &ingress(&format!("{{{PASS}}}")),
            Change::Unlabel(DocumentId::pod("a", "client"), "pass"),
            server_only.clone(),
            pairs(&[("twin", "server"), ("server", "client")]),
        ),
        story(
            "the server is relabelled, the client has the policy",
            &egress(&format!("{{{PASS}}}")),
            Change::Unlabel(DocumentId::pod("a", "server"), "pass"),
            server_only.clone(),
            pairs(&[("client", "twin"), ("server", "client")]),
        ),
        story(
            "a client's namespace is relabelled, the server has the policy",
            &ingress("{namespaceSelector: {matchLabels: {team: blue}}}"),
            Change::Unlabel(DocumentId::namespace("b"), "team"),
            pairs(&[("b/client", "server")]),
            pairs(&[("c/twin", "server"), ("server", "b/client")]),
        ),
        story(
            "a server's namespace is relabelled, the client has the policy",
            &egress("{namespaceSelector: {matchLabels: {team: blue}}}"),
            Change::Unlabel(DocumentId::namespace("b"), "team"),
            pairs(&[("client", "b/client")]),
            pairs(&[("client", "c/twin"), ("b/client", "client")]),
        ),
        story(
            "the client is deleted, the server has the policy",
            &ingress(&format!("{{{PASS}}}")),
            Change::Vanish(DocumentId::pod("a", "client")),
            server_only.clone(),
            pairs(&[("twin", "server"), ("server", "client")]),
        ),
        story(
            "the server is deleted, the client has the policy",
            &egress(&format!("{{{PASS}}}")),
            Change::Vanish(DocumentId::pod("a", "server")),
            server_only.clone(),
            pairs(&[("client", "twin"), ("server", "client")]),
        ),
        story(
            "the only policy that allows is deleted",
            &[closed.clone(), for_twin.clone(), for_client].concat(),
            Change::Policies([closed, for_twin].concat()),
            server_only,
            pairs(&[("twin", "server"), ("server", "client")]),
        ),
    ]
}
