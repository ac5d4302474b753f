//! The table that the naive evaluator ([`netpol_agent::policy::reference`]) expects of a lab as it is.

use std::{collections::BTreeSet, net::IpAddr};

use netpol_agent::policy::{
    convert,
    reference::{self, Snapshot},
};
use serde::de::DeserializeOwned;

use crate::{
    lab::{Lab, Node},
    table::{Destination, Family, Outcome, Party, Port, Table, Via},
};

/// What the naive evaluator says of these destinations, and the objects that it refused, each with its reason. A Service
/// is judged as the backend that serves it; backends that differ are a reason to refuse.
pub fn table(lab: &Lab, destinations: &BTreeSet<Destination>) -> (Table, Vec<String>) {
    let (mut snapshot, mut refused) = snapshot(lab);
    let sources = lab.sources();
    let mut table = Table::new();
    for destination in destinations {
        if let Party::Service(_, via) = &destination.party
            && *via != Via::ClusterIp
        {
            refused.push(format!(
                "{destination}: who comes that way has another address"
            ));
            continue;
        }
        for source in sources
            .iter()
            .filter(|source| lab.may_try(source, &destination.party))
        {
            for family in Family::ALL {
                let (Ok(from), Ok(_)) =
                    (lab.address(source, family), lab.goal(destination, family))
                else {
                    continue;
                };
                let mut verdicts: Vec<bool> = lab
                    .receivers(destination, family)
                    .iter()
                    .filter_map(|goal| {
                        let to = lab.address(&goal.party, family).ok()?;
                        let ends = [(source, from), (&goal.party, to)];
                        // A pod always reaches itself.
                        let same = *source == goal.party;
                        Some(same || allows(lab, &mut snapshot, ends, goal.port, family))
                    })
                    .collect();
                verdicts.sort_unstable();
                verdicts.dedup();
                let outcome = match verdicts[..] {
                    [true] => Outcome::Open,
                    [false] => Outcome::Denied,
                    _ => {
                        refused.push(format!("{source} to {destination}: its backends differ"));
                        continue;
                    }
                };
                table.set(source, destination, family, outcome);
            }
        }
    }
    (table, refused)
}

/// Whether both ends allow it, each by what its own node enforces.
fn allows(
    lab: &Lab,
    snapshot: &mut Snapshot,
    [(source, from), (goal, to)]: [(&Party, IpAddr); 2],
    port: Port,
    family: Family,
) -> bool {
    let (protocol, port) = match port.transport() {
        Some((protocol, port)) => (Some(protocol), port),
        None => (None, 0),
    };
    let family = match family {
        Family::V4 => reference::Family::V4,
        Family::V6 => reference::Family::V6,
    };
    let mut judged_at = |judge: &Party| {
        let node = lab.home(judge).or_else(|| lab.home(&Party::Node));
        if let Some(node) = node {
            node.name().clone_into(&mut snapshot.node);
            snapshot.node_addresses = node.all_addresses();
        }
        let from = seen_from(lab, source, from, node);
        let ends = [(source, from), (goal, to)];
        let [from, to] = ends.map(|(party, address)| end(lab, party, address, node));
        snapshot.allows(&from, &to, protocol, port, family)
    };
    judged_at(source).egress && judged_at(goal).ingress
}

/// The address that pods of this node see a source come from: of another node, what its routes choose.
fn seen_from(lab: &Lab, source: &Party, address: IpAddr, by: Option<&Node>) -> IpAddr {
    match lab.home(source) {
        Some(home) if !same(by, home) && home.addresses().contains(&address) => home
            .addresses_abroad()
            .into_iter()
            .find(|abroad| abroad.is_ipv4() == address.is_ipv4())
            .unwrap_or(address),
        _ => address,
    }
}

/// One end of a connection, as this node sees it.
fn end(lab: &Lab, party: &Party, address: IpAddr, by: Option<&Node>) -> reference::Party {
    match (party, lab.home(party)) {
        (Party::Node, _) => reference::Party::Node,
        (Party::Machine(_), Some(home)) if same(by, home) => reference::Party::Node,
        // To other nodes, a node and the pods in its network are whoever has that address.
        (_, Some(home)) if !same(by, home) && home.all_addresses().contains(&address) => {
            reference::Party::Address(address)
        }
        (Party::Pod(key), _) => reference::Party::Pod(key.clone()),
        (Party::Host(_) | Party::Machine(_) | Party::Service(..), _) => {
            reference::Party::Address(address)
        }
    }
}

fn same(node: Option<&Node>, other: &Node) -> bool {
    node.is_some_and(|node| node.name() == other.name())
}

fn snapshot(lab: &Lab) -> (Snapshot, Vec<String>) {
    let mut refused = Vec::new();
    let mut snapshot = Snapshot::default();
    for object in read(lab, "Namespace", convert::namespace, &mut refused) {
        snapshot.namespaces.insert(object.name.clone(), object);
    }
    for object in read(lab, "Pod", convert::pod, &mut refused) {
        snapshot.pods.insert(object.key.clone(), object);
    }
    for object in read(lab, "NetworkPolicy", convert::policy, &mut refused) {
        snapshot.policies.insert(object.key.clone(), object);
    }
    (snapshot, refused)
}

/// The objects of a kind that can be read; the others are refused, as the agent refuses them.
fn read<K: DeserializeOwned, T, E: std::fmt::Display>(
    lab: &Lab,
    kind: &str,
    convert: impl Fn(&K) -> Result<T, E>,
    refused: &mut Vec<String>,
) -> Vec<T> {
    let mut objects = Vec::new();
    for value in lab.documents(kind) {
        let object = serde_json::from_value::<K>(value)
            .map_err(|error| format!("{kind}: {error}"))
            .and_then(|object| convert(&object).map_err(|refusal| refusal.to_string()));
        match object {
            Ok(object) => objects.push(object),
            Err(reason) => refused.push(reason),
        }
    }
    objects
}
