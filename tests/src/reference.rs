//! The table that the naive evaluator ([`netpol_agent::policy::reference`]) expects of a lab as it is.

use std::{collections::BTreeSet, net::IpAddr};

use netpol_agent::policy::{
    convert,
    reference::{self, Snapshot},
};
use serde::de::DeserializeOwned;

use crate::{
    lab::{Lab, NODE_NAME},
    table::{Destination, Family, Outcome, Party, Table},
};

/// What the naive evaluator says of these destinations, and the objects that it refused, each with its reason.
pub fn table(lab: &Lab, destinations: &BTreeSet<Destination>) -> (Table, Vec<String>) {
    let (snapshot, refused) = snapshot(lab);
    let mut sources = lab.parties();
    sources.insert(Party::Node);
    let mut table = Table::new();
    for destination in destinations {
        for source in sources
            .iter()
            .filter(|source| **source != destination.party)
        {
            for family in Family::ALL {
                let (Ok(from), Ok(to)) = (
                    lab.address(source, family),
                    lab.address(&destination.party, family),
                ) else {
                    continue;
                };
                let (protocol, port) = match destination.port.transport() {
                    Some((protocol, port)) => (Some(protocol), port),
                    None => (None, 0),
                };
                let verdict = snapshot.allows(
                    &end(source, from),
                    &end(&destination.party, to),
                    protocol,
                    port,
                    match family {
                        Family::V4 => reference::Family::V4,
                        Family::V6 => reference::Family::V6,
                    },
                );
                let outcome = if verdict.allowed() {
                    Outcome::Open
                } else {
                    Outcome::Denied
                };
                table.set(source, destination, family, outcome);
            }
        }
    }
    (table, refused)
}

fn end(party: &Party, address: IpAddr) -> reference::Party {
    match party {
        Party::Pod(key) => reference::Party::Pod(key.clone()),
        Party::Host(_) => reference::Party::Address(address),
        Party::Node => reference::Party::Node,
    }
}

fn snapshot(lab: &Lab) -> (Snapshot, Vec<String>) {
    let mut refused = Vec::new();
    let mut snapshot = Snapshot {
        node: NODE_NAME.to_owned(),
        node_addresses: lab.node_addresses(),
        ..Snapshot::default()
    };
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
