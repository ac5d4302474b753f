//! What kube-proxy's iptables mode writes (pkg/proxy/iptables/proxier.go), for `iptables-restore --noflush`.

use std::{
    collections::BTreeSet,
    fmt::Write,
    hash::{DefaultHasher, Hash, Hasher},
};

use super::{
    cluster_net,
    model::{Backend, Entry},
};
use crate::table::Family;

/// The bit that asks for masquerade.
const MASQUERADE: &str = "0x4000";

/// Chain, from which base chain, and under which condition: written once, before the first rules.
const FILTER_JUMPS: [(&str, &str, &str); 11] = [
    (
        "KUBE-EXTERNAL-SERVICES",
        "INPUT",
        "-m conntrack --ctstate NEW",
    ),
    (
        "KUBE-EXTERNAL-SERVICES",
        "FORWARD",
        "-m conntrack --ctstate NEW",
    ),
    ("KUBE-NODEPORTS", "INPUT", ""),
    ("KUBE-SERVICES", "FORWARD", "-m conntrack --ctstate NEW"),
    ("KUBE-SERVICES", "OUTPUT", "-m conntrack --ctstate NEW"),
    ("KUBE-FORWARD", "FORWARD", ""),
    ("KUBE-PROXY-FIREWALL", "INPUT", "-m conntrack --ctstate NEW"),
    (
        "KUBE-PROXY-FIREWALL",
        "OUTPUT",
        "-m conntrack --ctstate NEW",
    ),
    (
        "KUBE-PROXY-FIREWALL",
        "FORWARD",
        "-m conntrack --ctstate NEW",
    ),
    ("KUBE-FIREWALL", "INPUT", ""),
    ("KUBE-FIREWALL", "OUTPUT", ""),
];
const NAT_JUMPS: [(&str, &str, &str); 3] = [
    ("KUBE-SERVICES", "OUTPUT", ""),
    ("KUBE-SERVICES", "PREROUTING", ""),
    ("KUBE-POSTROUTING", "POSTROUTING", ""),
];
const FILTER_CHAINS: [&str; 6] = [
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FIREWALL",
    "KUBE-FORWARD",
    "KUBE-NODEPORTS",
    "KUBE-PROXY-FIREWALL",
    "KUBE-SERVICES",
];
const NAT_CHAINS: [&str; 4] = [
    "KUBE-MARK-MASQ",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-SERVICES",
];

/// What is written at one time.
pub(super) struct Written {
    pub text: String,
    /// The chains of Services and backends that it leaves, to be removed when they are no longer wanted.
    pub chains: BTreeSet<String>,
}

/// The rules of one family on one node. `old` are the chains that the rules before left; `None` the first time.
pub(super) fn rules(
    family: Family,
    entries: &[Entry],
    node: &str,
    old: Option<&BTreeSet<String>>,
) -> Written {
    let mut rules = Rules {
        family,
        node,
        filter: String::new(),
        nat: String::new(),
        node_ports: String::new(),
        chains: BTreeSet::new(),
    };
    rules.preamble(old.is_none());
    for entry in entries.iter().filter(|entry| entry.family == family) {
        rules.service(entry);
    }
    rules.text(old)
}

struct Rules<'a> {
    family: Family,
    node: &'a str,
    filter: String,
    nat: String,
    node_ports: String,
    chains: BTreeSet<String>,
}

/// Where a chain is in the rules of an entry.
struct Names {
    cluster: String,
    local: String,
    external: String,
}

impl Rules<'_> {
    fn preamble(&mut self, first: bool) {
        if first {
            for (text, jumps) in [
                (&mut self.filter, &FILTER_JUMPS[..]),
                (&mut self.nat, &NAT_JUMPS[..]),
            ] {
                // Each goes before what is there.
                for (chain, base, condition) in jumps {
                    line(text, &format!("-I {base} 1 {condition} -j {chain}"));
                }
            }
        }
        let masked = format!("{MASQUERADE}/{MASQUERADE}");
        for rule in [
            "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP".to_owned(),
            format!("-A KUBE-FORWARD -m mark --mark {masked} -j ACCEPT"),
            "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned(),
        ] {
            line(&mut self.filter, &rule);
        }
        if self.family == Family::V4 {
            // Node ports are reachable at 127.0.0.1 (route_localnet), and 127/8 only from there.
            let states = "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT";
            let rule = format!("-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 {states} -j DROP");
            line(&mut self.filter, &rule);
        }
        for rule in [
            format!("-A KUBE-POSTROUTING -m mark ! --mark {masked} -j RETURN"),
            format!("-A KUBE-POSTROUTING -j MARK --xor-mark {MASQUERADE}"),
            "-A KUBE-POSTROUTING -j MASQUERADE --random-fully".to_owned(),
            format!("-A KUBE-MARK-MASQ -j MARK --or-mark {MASQUERADE}"),
        ] {
            line(&mut self.nat, &rule);
        }
    }

    fn service(&mut self, entry: &Entry) {
        let names = Names {
            cluster: chain("KUBE-SVC-", entry, None),
            local: chain("KUBE-SVL-", entry, None),
            external: chain("KUBE-EXT-", entry, None),
        };
        let here = entry.on_node(self.node);
        let all: Vec<&Backend> = entry.backends.iter().collect();
        if all.is_empty() {
            self.refuse(entry);
            return;
        }
        let internal = if entry.internal_local {
            &names.local
        } else {
            &names.cluster
        };
        self.capture(entry, &names, internal, here.is_empty());
        self.fan_out(&names.cluster, entry, &all);
        if (entry.internal_local || entry.external_local) && !here.is_empty() {
            self.fan_out(&names.local, entry, &here);
        }
        if entry.is_outside() {
            self.external(entry, &names, here.is_empty());
        }
        for backend in all {
            self.backend(entry, backend);
        }
    }

    /// No backends at all: whoever tries is told so at once.
    fn refuse(&mut self, entry: &Entry) {
        let to = self.dport(entry, entry.number());
        let filter = &mut self.filter;
        let cluster = entry.cluster;
        line(
            filter,
            &format!("-A KUBE-SERVICES {to} -d {cluster} -j REJECT"),
        );
        for address in entry.outer_addresses() {
            line(
                filter,
                &format!("-A KUBE-EXTERNAL-SERVICES {to} -d {address} -j REJECT"),
            );
        }
        if let Some(port) = entry.node_port {
            let protocol = entry.protocol();
            line(
                filter,
                &format!(
                    "-A KUBE-EXTERNAL-SERVICES -m addrtype --dst-type LOCAL -m {protocol} -p {protocol} --dport {port} -j REJECT"
                ),
            );
        }
    }

    /// From the addresses to the chains; what a local policy leaves without a backend is dropped.
    fn capture(&mut self, entry: &Entry, names: &Names, internal: &str, none_here: bool) {
        let to = self.dport(entry, entry.number());
        let cluster = entry.cluster;
        if entry.internal_local && none_here {
            line(
                &mut self.filter,
                &format!("-A KUBE-SERVICES {to} -d {cluster} -j DROP"),
            );
        } else {
            let title = comment(&format!("{} cluster IP", entry.title()));
            line(
                &mut self.nat,
                &format!("-A KUBE-SERVICES {title} {to} -d {cluster} -j {internal}"),
            );
            let net = cluster_net(self.family);
            self.chains.insert(internal.to_owned());
            line(
                &mut self.nat,
                &format!("-A {internal} {to} -d {cluster} ! -s {net} -j KUBE-MARK-MASQ"),
            );
        }
        let dropped = entry.external_local && none_here;
        for address in entry.outer_addresses() {
            let external = &names.external;
            line(
                &mut self.nat,
                &format!("-A KUBE-SERVICES {to} -d {address} -j {external}"),
            );
            if dropped {
                line(
                    &mut self.filter,
                    &format!("-A KUBE-EXTERNAL-SERVICES {to} -d {address} -j DROP"),
                );
            }
        }
        if let Some(port) = entry.node_port {
            let to = self.dport(entry, port);
            let external = &names.external;
            line(
                &mut self.node_ports,
                &format!("-A KUBE-NODEPORTS {to} -j {external}"),
            );
            if dropped {
                line(
                    &mut self.filter,
                    &format!("-A KUBE-EXTERNAL-SERVICES -m addrtype --dst-type LOCAL {to} -j DROP"),
                );
            }
        }
    }

    /// Traffic to a node port, an external address or the load balancer's.
    fn external(&mut self, entry: &Entry, names: &Names, none_here: bool) {
        let Names {
            cluster,
            local,
            external,
        } = names;
        self.chains.insert(external.clone());
        let nat = &mut self.nat;
        if !entry.external_local {
            line(nat, &format!("-A {external} -j KUBE-MARK-MASQ"));
            line(nat, &format!("-A {external} -j {cluster}"));
            return;
        }
        let net = cluster_net(self.family);
        let from_node = "-m addrtype --src-type LOCAL";
        line(nat, &format!("-A {external} -s {net} -j {cluster}"));
        line(nat, &format!("-A {external} {from_node} -j KUBE-MARK-MASQ"));
        line(nat, &format!("-A {external} {from_node} -j {cluster}"));
        if !none_here {
            line(nat, &format!("-A {external} -j {local}"));
        }
    }

    fn fan_out(&mut self, from: &str, entry: &Entry, backends: &[&Backend]) {
        self.chains.insert(from.to_owned());
        let nat = &mut self.nat;
        if let Some(seconds) = entry.affinity {
            for backend in backends {
                let to = chain("KUBE-SEP-", entry, Some(backend));
                line(
                    nat,
                    &format!(
                        "-A {from} -m recent --name {to} --rcheck --seconds {seconds} --reap -j {to}"
                    ),
                );
            }
        }
        for (nth, backend) in backends.iter().enumerate() {
            let to = chain("KUBE-SEP-", entry, Some(backend));
            let left = backends.len() - nth;
            if left == 1 {
                line(nat, &format!("-A {from} -j {to}"));
            } else {
                let share = 1.0 / left as f64;
                line(
                    nat,
                    &format!(
                        "-A {from} -m statistic --mode random --probability {share:.10} -j {to}"
                    ),
                );
            }
        }
    }

    fn backend(&mut self, entry: &Entry, backend: &Backend) {
        let name = chain("KUBE-SEP-", entry, Some(backend));
        self.chains.insert(name.clone());
        let nat = &mut self.nat;
        // To itself, through the node: the answer must come back the same way.
        let address = backend.address;
        line(nat, &format!("-A {name} -s {address} -j KUBE-MARK-MASQ"));
        let recent = if entry.affinity.is_some() {
            format!("-m recent --name {name} --set ")
        } else {
            String::new()
        };
        let protocol = entry.protocol();
        let target = backend.target();
        line(
            nat,
            &format!(
                "-A {name} {recent}-m {protocol} -p {protocol} -j DNAT --to-destination {target}"
            ),
        );
    }

    fn dport(&self, entry: &Entry, port: u16) -> String {
        let protocol = entry.protocol();
        format!("-m {protocol} -p {protocol} --dport {port}")
    }

    fn text(mut self, old: Option<&BTreeSet<String>>) -> Written {
        self.nat.push_str(&self.node_ports);
        // Last, so that a Service on the node's own address goes before.
        line(
            &mut self.nat,
            "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
        );
        let mut text = String::from("*filter\n");
        for chain in FILTER_CHAINS {
            line(&mut text, &format!(":{chain} - [0:0]"));
        }
        text.push_str(&self.filter);
        text.push_str("COMMIT\n*nat\n");
        let gone: Vec<&String> = old
            .into_iter()
            .flatten()
            .filter(|chain| !self.chains.contains(*chain))
            .collect();
        // A chain that is declared is emptied.
        let mine = self.chains.iter().map(String::as_str);
        for chain in NAT_CHAINS
            .into_iter()
            .chain(mine)
            .chain(gone.iter().map(|chain| chain.as_str()))
        {
            line(&mut text, &format!(":{chain} - [0:0]"));
        }
        text.push_str(&self.nat);
        for chain in gone {
            line(&mut text, &format!("-X {chain}"));
        }
        text.push_str("COMMIT\n");
        Written {
            text,
            chains: self.chains,
        }
    }
}

fn comment(text: &str) -> String {
    format!("-m comment --comment \"{text}\"")
}

fn line(text: &mut String, line: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}

/// A chain's name: its kind, and a hash as the kernel takes no longer names.
pub(super) fn chain(kind: &str, entry: &Entry, backend: Option<&Backend>) -> String {
    let mut hasher = DefaultHasher::new();
    (&entry.service, &entry.name, entry.protocol()).hash(&mut hasher);
    backend.map(Backend::target).hash(&mut hasher);
    format!("{kind}{:016X}", hasher.finish())
}
