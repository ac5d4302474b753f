//! Services as goals: where to knock, and where it may arrive.

use std::{collections::BTreeSet, net::IpAddr};

use super::model::Entry;
use crate::{
    lab::{Lab, LabError},
    table::{Destination, Family, Party, Port, Via},
};

impl Lab {
    /// The address and port that a client of a destination uses; node ports at the first node.
    pub fn goal(&self, to: &Destination, family: Family) -> Result<(IpAddr, Port), LabError> {
        let Party::Service(_, via) = &to.party else {
            return Ok((self.address(&to.party, family)?, to.port));
        };
        let node = self.address(&Party::Node, family)?;
        self.entry(to, family)
            .and_then(|entry| entry.goal(*via, node))
            .ok_or_else(|| LabError::NoAddress(to.party.clone(), family))
    }

    /// Where what is sent to a destination may arrive: itself, or the backends of a Service that the lab has.
    pub fn receivers(&self, to: &Destination, family: Family) -> Vec<Destination> {
        if !to.party.is_service() {
            return vec![to.clone()];
        }
        let backends = self.entry(to, family).map(|entry| entry.backends.iter());
        backends
            .into_iter()
            .flatten()
            .flat_map(|backend| {
                let lives_there = |party: &&Party| {
                    self.addresses(party)
                        .is_ok_and(|own| own.contains(&backend.address))
                };
                self.parties
                    .keys()
                    .filter(lives_there)
                    .map(|party| Destination::new(party.clone(), backend.port))
            })
            .collect()
    }

    /// Every port of every Service by every address that it has.
    pub fn service_destinations(&self) -> BTreeSet<Destination> {
        let entries = self.services.entries.iter();
        entries
            .flat_map(|entry| {
                Via::ALL.into_iter().filter_map(|via| {
                    entry.goal(via, entry.cluster)?;
                    let party = Party::Service(entry.service.clone(), via);
                    Some(Destination::new(party, entry.port))
                })
            })
            .collect()
    }

    /// Whether a probe from a source makes sense: none at itself; the addresses that only a node's own rules know are for
    /// those on a node with such rules; and of several nodes each is named, as a Service is beside none of them.
    pub fn may_try(&self, source: &Party, to: &Party) -> bool {
        let on_a_node = self.home(source).is_some();
        let only_there = matches!(to, Party::Service(_, Via::ClusterIp));
        let nameless = *source == Party::Node && to.is_service() && self.backend().is_some();
        source != to && !nameless && to.is_there_for(source) && (on_a_node || !only_there)
    }

    fn entry(&self, to: &Destination, family: Family) -> Option<&Entry> {
        let Party::Service(service, _) = &to.party else {
            return None;
        };
        self.services.entries.iter().find(|entry| {
            entry.service == *service && entry.port == to.port && entry.family == family
        })
    }
}
