//! Random policies that cover a given traffic, each time by other words, and never the traffic of a foe.

use netpol_tests::table::Family;
use serde_json::{Value, json};

/// A small generator of random numbers (splitmix64): the same seed gives the same flips everywhere.
pub struct Dice(u64);

impl Dice {
    /// A generator for this seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of several.
    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

/// Somebody who must be covered: the ways to say so.
#[derive(Clone)]
pub struct Peer {
    /// Selectors that hold it, and no foe.
    pub selectors: Vec<Value>,
    /// Sets of blocks that hold both of its addresses, and no foe's.
    pub blocks: Vec<Vec<Value>>,
}

/// What a direction of a policy must cover.
#[derive(Clone)]
pub struct Need {
    /// All of these, by TCP port 80 (`http`) and UDP port 53 (`dns`).
    pub peers: Vec<Peer>,
    /// Whether everybody else may be let in on these ports too.
    pub everybody: bool,
}

/// Host addresses as blocks.
pub fn exactly(addresses: &[std::net::IpAddr]) -> Vec<Value> {
    addresses
        .iter()
        .map(|address| {
            let length = if address.is_ipv4() { 32 } else { 128 };
            json!({"ipBlock": {"cidr": format!("{address}/{length}")}})
        })
        .collect()
}

/// Two large blocks without the addresses of some.
pub fn except(blocks: [&str; 2], without: &[std::net::IpAddr]) -> Vec<Value> {
    Family::ALL
        .into_iter()
        .zip(blocks)
        .map(|(family, block)| {
            let foes = without.iter().filter(|foe| Family::of(**foe) == family);
            let except: Vec<String> = foes
                .map(|foe| format!("{foe}/{}", if foe.is_ipv4() { 32 } else { 128 }))
                .collect();
            json!({"ipBlock": {"cidr": block, "except": except}})
        })
        .collect()
}

/// TCP 80 and UDP 53 and never 7000, by number, range, or (where `names` are understood) name.
fn ports(dice: &mut Dice, names: bool) -> Vec<Value> {
    [("TCP", 80, "http"), ("UDP", 53, "dns")]
        .into_iter()
        .map(|(protocol, number, name)| match dice.below(6) {
            0 if names => json!({"protocol": protocol, "port": name}),
            1 => json!({"protocol": protocol, "port": 1, "endPort": 6999}),
            2 => json!({"protocol": protocol, "port": number, "endPort": number}),
            3 => json!({"protocol": protocol, "port": number - dice.below(50), "endPort": number + dice.below(500)}),
            _ => json!({"protocol": protocol, "port": number}),
        })
        .collect()
}

/// Rules for one direction that cover the need. `side` is `from` or `to`.
pub fn rules(dice: &mut Dice, need: &Need, side: &str) -> Vec<Value> {
    if need.everybody && dice.once_in(4) {
        return vec![json!({"ports": ports(dice, side == "from")})];
    }
    // Some rules that match nobody, or somebody who is covered anyway: classes come and go.
    let mut rules: Vec<Value> = (0..dice.below(3))
        .map(|_| {
            let revision = dice.below(4).to_string();
            json!({side: [{"podSelector": {"matchLabels": {"revision": revision}}}], "ports": ports(dice, true)})
        })
        .collect();
    let mut all = Vec::new();
    let merged = dice.once_in(2);
    for peer in &need.peers {
        let by_block = peer.selectors.is_empty() || (!peer.blocks.is_empty() && dice.once_in(3));
        let terms = if by_block {
            dice.pick(&peer.blocks)
        } else {
            vec![dice.pick(&peer.selectors)]
        };
        if merged {
            all.extend(terms);
        } else {
            // A name says nothing about an address that is no pod's.
            rules.push(json!({side: terms, "ports": ports(dice, !by_block)}));
        }
    }
    if merged {
        rules.push(json!({side: all, "ports": ports(dice, false)}));
    }
    // The order of rules means nothing.
    let at = dice.below(rules.len());
    rules.rotate_left(at);
    rules
}

/// A policy of namespace `a` for the pods of an app; `None` for a direction that it is not about.
pub fn policy(
    name: &str,
    app: &str,
    ingress: Option<Vec<Value>>,
    egress: Option<Vec<Value>>,
) -> Value {
    let mut types = Vec::new();
    let mut spec = json!({"podSelector": {"matchLabels": {"app": app}}});
    if let Some(rules) = ingress {
        types.push("Ingress");
        spec["ingress"] = json!(rules);
    }
    if let Some(rules) = egress {
        types.push("Egress");
        spec["egress"] = json!(rules);
    }
    spec["policyTypes"] = json!(types);
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "a", "name": name},
        "spec": spec,
    })
}
