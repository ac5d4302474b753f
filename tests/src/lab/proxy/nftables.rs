//! What kube-proxy's nftables mode writes (pkg/proxy/nftables/proxier.go), as one transaction for `nft -f`.

use std::{collections::BTreeSet, fmt::Write};

use super::{
    cluster_net, iptables,
    model::{Backend, Entry},
    service_net,
};
use crate::table::Family;

/// Name, type, hook and priority. Filters run before DNAT, on the destination as it was sent.
const BASE_CHAINS: [(&str, &str, &str, i32); 8] = [
    ("filter-prerouting", "filter", "prerouting", -110),
    ("filter-input", "filter", "input", -110),
    ("filter-forward", "filter", "forward", -110),
    ("filter-output", "filter", "output", -110),
    ("filter-output-post-dnat", "filter", "output", -90),
    ("nat-prerouting", "nat", "prerouting", -100),
    ("nat-output", "nat", "output", -100),
    ("nat-postrouting", "nat", "postrouting", 100),
];
/// Base chain, condition, chain.
const JUMPS: [(&str, &str, &str); 11] = [
    ("filter-input", "ct state new", "nodeport-endpoints-check"),
    ("filter-input", "ct state new", "service-endpoints-check"),
    ("filter-forward", "ct state new", "service-endpoints-check"),
    ("filter-output", "ct state new", "service-endpoints-check"),
    ("filter-prerouting", "ct state new", "firewall-check"),
    ("filter-output", "ct state new", "firewall-check"),
    ("nat-output", "", "services"),
    ("nat-prerouting", "", "services"),
    ("nat-postrouting", "", "masquerading"),
    ("filter-forward", "ct state new", "cluster-ips-check"),
    (
        "filter-output-post-dnat",
        "ct state new",
        "cluster-ips-check",
    ),
];
const CHAINS: [&str; 8] = [
    "mark-for-masquerade",
    "reject-chain",
    "nodeport-endpoints-check",
    "service-endpoints-check",
    "firewall-check",
    "services",
    "masquerading",
    "cluster-ips-check",
];

/// What is written at one time.
pub(super) struct Written {
    pub text: String,
    /// The chains of Services and backends that have rules now.
    pub chains: BTreeSet<String>,
    /// The sets that remember clients.
    pub affinities: BTreeSet<String>,
}

/// The rules of one family on one node, after these, or as the first.
pub(super) fn rules(
    family: Family,
    entries: &[Entry],
    node: &str,
    old: Option<&Written>,
) -> Written {
    let (ip, address) = match family {
        Family::V4 => ("ip", "ipv4_addr"),
        Family::V6 => ("ip6", "ipv6_addr"),
    };
    let mut rules = Rules {
        family,
        ip,
        node,
        declared: String::new(),
        rules: String::new(),
        elements: String::new(),
        chains: BTreeSet::new(),
        affinities: BTreeSet::new(),
        cluster_ips: BTreeSet::new(),
    };
    rules.tables(address);
    rules.base();
    for entry in entries.iter().filter(|entry| entry.family == family) {
        rules.service(entry, address);
    }
    rules.written(old)
}

struct Rules<'a> {
    family: Family,
    ip: &'static str,
    node: &'a str,
    declared: String,
    rules: String,
    elements: String,
    chains: BTreeSet<String>,
    affinities: BTreeSet<String>,
    cluster_ips: BTreeSet<String>,
}

impl Rules<'_> {
    fn declare(&mut self, what: &str, name: &str, body: &str) {
        let ip = self.ip;
        let _ = writeln!(self.declared, "add {what} {ip} kube-proxy {name} {body}");
    }

    fn empty(&mut self, what: &str, name: &str) {
        let ip = self.ip;
        let _ = writeln!(self.declared, "flush {what} {ip} kube-proxy {name}");
    }

    fn rule(&mut self, chain: &str, rule: &str) {
        let ip = self.ip;
        let _ = writeln!(self.rules, "add rule {ip} kube-proxy {chain} {rule}");
    }

    fn element(&mut self, set: &str, element: &str) {
        let ip = self.ip;
        let _ = writeln!(
            self.elements,
            "add element {ip} kube-proxy {set} {{ {element} }}"
        );
    }

    fn tables(&mut self, address: &str) {
        let _ = writeln!(self.declared, "add table {} kube-proxy", self.ip);
        for (name, kind, hook, priority) in BASE_CHAINS {
            let body = format!("{{ type {kind} hook {hook} priority {priority} ; }}");
            self.declare("chain", name, &body);
            self.empty("chain", name);
        }
        for name in CHAINS {
            self.declare("chain", name, "");
            self.empty("chain", name);
        }
        self.declare("set", "cluster-ips", &format!("{{ type {address} ; }}"));
        self.empty("set", "cluster-ips");
        let by_address = format!("{{ type {address} . inet_proto . inet_service : verdict ; }}");
        let by_port = "{ type inet_proto . inet_service : verdict ; }";
        for (name, body) in [
            ("service-ips", by_address.as_str()),
            ("firewall-ips", &by_address),
            ("no-endpoint-services", &by_address),
            ("service-nodeports", by_port),
            ("no-endpoint-nodeports", by_port),
        ] {
            self.declare("map", name, body);
            self.empty("map", name);
        }
    }

    fn base(&mut self) {
        for (base, condition, chain) in JUMPS {
            self.rule(base, &format!("{condition} jump {chain}"));
        }
        let ip = self.ip;
        let not_localhost = match self.family {
            Family::V4 => "ip daddr != 127.0.0.0/8",
            Family::V6 => "ip6 daddr != ::1",
        };
        let by_address = format!("{ip} daddr . meta l4proto . th dport vmap");
        let by_port = "meta l4proto . th dport vmap";
        let services = service_net(self.family);
        for (chain, rule) in [
            ("mark-for-masquerade", "mark set mark or 0x4000".to_owned()),
            ("masquerading", "mark and 0x4000 == 0 return".to_owned()),
            ("masquerading", "mark set mark xor 0x4000".to_owned()),
            ("masquerading", "masquerade fully-random".to_owned()),
            (
                "cluster-ips-check",
                format!("{ip} daddr @cluster-ips reject"),
            ),
            ("cluster-ips-check", format!("{ip} daddr {services} drop")),
            ("reject-chain", "reject".to_owned()),
            (
                "service-endpoints-check",
                format!("{by_address} @no-endpoint-services"),
            ),
            (
                "nodeport-endpoints-check",
                format!("{not_localhost} {by_port} @no-endpoint-nodeports"),
            ),
            ("firewall-check", format!("{by_address} @firewall-ips")),
            ("services", format!("{by_address} @service-ips")),
            (
                "services",
                format!("fib daddr type local {not_localhost} {by_port} @service-nodeports"),
            ),
        ] {
            self.rule(chain, &rule);
        }
    }

    fn service(&mut self, entry: &Entry, address: &str) {
        let cluster = iptables::chain("service-", entry, None);
        let local = iptables::chain("local-", entry, None);
        let external = iptables::chain("external-", entry, None);
        let here = entry.on_node(self.node);
        let all: Vec<&Backend> = entry.backends.iter().collect();
        let internal = if entry.internal_local {
            &local
        } else {
            &cluster
        };
        let inside = if entry.internal_local { &here } else { &all };
        let outside = if entry.external_local { &here } else { &all };
        let refusal = if all.is_empty() {
            "goto reject-chain"
        } else {
            "drop"
        };
        let (protocol, number) = (entry.protocol(), entry.number());
        let at = |address| format!("{address} . {protocol} . {number}");
        self.cluster_ips.insert(entry.cluster.to_string());
        let goal = at(entry.cluster);
        if inside.is_empty() {
            self.element("no-endpoint-services", &format!("{goal} : {refusal}"));
        } else {
            self.element("service-ips", &format!("{goal} : goto {internal}"));
        }
        for goal in entry.outer_addresses().map(at) {
            if !all.is_empty() {
                self.element("service-ips", &format!("{goal} : goto {external}"));
            }
            if outside.is_empty() {
                self.element("no-endpoint-services", &format!("{goal} : {refusal}"));
            }
        }
        if let Some(port) = entry.node_port {
            let goal = format!("{protocol} . {port}");
            if !all.is_empty() {
                self.element("service-nodeports", &format!("{goal} : goto {external}"));
            }
            if outside.is_empty() {
                self.element("no-endpoint-nodeports", &format!("{goal} : {refusal}"));
            }
        }
        if all.is_empty() {
            return;
        }
        self.start(&cluster);
        if (entry.internal_local || entry.external_local) && !here.is_empty() {
            self.start(&local);
        }
        if !inside.is_empty() {
            let (ip, goal, net) = (self.ip, entry.cluster, cluster_net(self.family));
            self.rule(
                internal,
                &format!(
                    "{ip} daddr {goal} {protocol} dport {number} {ip} saddr != {net} jump mark-for-masquerade"
                ),
            );
        }
        if entry.is_outside() {
            self.start(&external);
            self.external(entry, [&external, &cluster, &local], here.is_empty());
        }
        self.fan_out(&cluster, entry, &all);
        if (entry.internal_local || entry.external_local) && !here.is_empty() {
            self.fan_out(&local, entry, &here);
        }
        for backend in all {
            self.backend(entry, backend, address);
        }
    }

    fn start(&mut self, chain: &str) {
        if self.chains.insert(chain.to_owned()) {
            self.declare("chain", chain, "");
            self.empty("chain", chain);
        }
    }

    fn external(&mut self, entry: &Entry, [external, cluster, local]: [&str; 3], none_here: bool) {
        if !entry.external_local {
            self.rule(external, "jump mark-for-masquerade");
            self.rule(external, &format!("goto {cluster}"));
            return;
        }
        let (ip, net) = (self.ip, cluster_net(self.family));
        self.rule(external, &format!("{ip} saddr {net} goto {cluster}"));
        self.rule(external, "fib saddr type local jump mark-for-masquerade");
        self.rule(external, &format!("fib saddr type local goto {cluster}"));
        if !none_here {
            self.rule(external, &format!("goto {local}"));
        }
    }

    fn fan_out(&mut self, from: &str, entry: &Entry, backends: &[&Backend]) {
        let ip = self.ip;
        let mut choice = Vec::new();
        for (nth, backend) in backends.iter().enumerate() {
            let to = iptables::chain("endpoint-", entry, Some(backend));
            if entry.affinity.is_some() {
                let set = iptables::chain("affinity-", entry, Some(backend));
                self.rule(from, &format!("{ip} saddr @{set} goto {to}"));
            }
            choice.push(format!("{nth} : goto {to}"));
        }
        let (count, choice) = (backends.len(), choice.join(", "));
        self.rule(
            from,
            &format!("numgen random mod {count} vmap {{ {choice} }}"),
        );
    }

    fn backend(&mut self, entry: &Entry, backend: &Backend, address: &str) {
        let name = iptables::chain("endpoint-", entry, Some(backend));
        let (ip, goal) = (self.ip, backend.address);
        self.start(&name);
        self.rule(
            &name,
            &format!("{ip} saddr {goal} jump mark-for-masquerade"),
        );
        if let Some(seconds) = entry.affinity {
            let set = iptables::chain("affinity-", entry, Some(backend));
            let body =
                format!("{{ type {address} ; flags dynamic,timeout ; timeout {seconds}s ; }}");
            self.declare("set", &set, &body);
            self.rule(&name, &format!("update @{set} {{ {ip} saddr }}"));
            self.affinities.insert(set);
        }
        let (protocol, target) = (entry.protocol(), backend.target());
        self.rule(&name, &format!("meta l4proto {protocol} dnat to {target}"));
    }

    fn written(mut self, old: Option<&Written>) -> Written {
        for address in std::mem::take(&mut self.cluster_ips) {
            self.element("cluster-ips", &address);
        }
        if let Some(old) = old {
            // Before kernel 6.2 a chain that a map has just let go of cannot be removed yet: kube-proxy empties it now and
            // removes it later, and here it stays.
            for chain in &old.chains {
                if !self.chains.contains(chain) {
                    self.empty("chain", chain);
                }
            }
            let ip = self.ip;
            for set in old.affinities.difference(&self.affinities) {
                let _ = writeln!(self.elements, "delete set {ip} kube-proxy {set}");
            }
        }
        let mut chains = self.chains;
        chains.extend(old.into_iter().flat_map(|old| old.chains.iter().cloned()));
        Written {
            text: [self.declared, self.rules, self.elements].concat(),
            chains,
            affinities: self.affinities,
        }
    }
}
