//! What is probed on a cluster: the cells of a scenario's table that it has somebody for.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netpol_agent::policy::object::Protocol;

use crate::table::{Destination, Family, Outcome, Party, Table};

/// One connection attempt.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Probe {
    /// Who opens it.
    pub source: Party,
    /// Whom the table names as its goal.
    pub destination: Destination,
    /// The goal's address.
    pub address: IpAddr,
    /// The protocol to connect by.
    pub protocol: Protocol,
    /// The port at that address.
    pub port: u16,
}

impl Probe {
    /// By which address family.
    pub const fn family(&self) -> Family {
        Family::of(self.address)
    }
}

/// The part of a table that a cluster can show.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What must be found.
    pub expected: Table,
    /// Cells of the scenario's table that no cluster has anybody for, by the reason.
    pub left_out: BTreeMap<&'static str, usize>,
}

impl Plan {
    /// Takes the cells between pods and to cluster addresses of Services, and adds what every table says without words: the
    /// pod's own node reaches it.
    pub fn of(table: &Table) -> Self {
        let mut expected = Table::new();
        let mut left_out = BTreeMap::new();
        for (source, destination, cell) in table.iter() {
            if let Some(reason) = missing(source, destination) {
                *left_out.entry(reason).or_default() += 1;
                continue;
            }
            for family in Family::ALL {
                if let Some(outcome) = cell.get(family) {
                    expected.set(source, destination, family, outcome);
                }
            }
            if matches!(destination.party, Party::Pod(_)) {
                for family in Family::ALL {
                    let outcome = table.get(&Party::Node, destination, family);
                    let outcome = outcome.unwrap_or(Outcome::Open);
                    expected.set(&Party::Node, destination, family, outcome);
                }
            }
        }
        Self { expected, left_out }
    }

    /// The probes of these cells, by the addresses that the parties have on the cluster. Also the families that nobody has
    /// an address of, which are not probed.
    pub fn probes(
        table: &Table,
        addresses: &BTreeMap<Party, Vec<IpAddr>>,
    ) -> (Vec<Probe>, BTreeSet<Family>) {
        let mut probes = Vec::new();
        let mut missing: BTreeSet<Family> = Family::ALL.into();
        for (source, destination, _) in table.iter() {
            let Some((protocol, port)) = destination.port.transport() else {
                continue;
            };
            for address in addresses.get(&destination.party).into_iter().flatten() {
                missing.remove(&Family::of(*address));
                probes.push(Probe {
                    source: source.clone(),
                    destination: destination.clone(),
                    address: *address,
                    protocol,
                    port,
                });
            }
        }
        (probes, missing)
    }
}

/// Why a cluster cannot show a cell.
fn missing(source: &Party, destination: &Destination) -> Option<&'static str> {
    let outside = "a host outside the cluster";
    match (source, &destination.party) {
        (Party::Host(_), _) | (_, Party::Host(_)) => Some(outside),
        (Party::Machine(_), _) | (_, Party::Machine(_) | Party::Node) => {
            Some("a node as somebody else than the pod's own")
        }
        (_, Party::Service(_, via)) if *via != crate::table::Via::ClusterIp => {
            Some("a Service by another address than its cluster address")
        }
        _ if destination.port.transport().is_none() => Some("ICMP"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{scenario::Scenario, table::Port};

    #[test]
    fn what_a_cluster_does_not_have_is_counted_and_the_rest_stays() {
        let table: Table = "a/b TCP/80\n open: a/c\n denied: host/h\n\
             a/c ICMP\n open: a/b host/h\n\
             host/h TCP/80\n open: a/b a/c\n\
             service/a/s UDP/53\n open: a/b\n denied: a/c\n"
            .parse()
            .unwrap();
        let plan = Plan::of(&table);
        assert_eq!(
            plan.left_out,
            BTreeMap::from([("ICMP", 1), ("a host outside the cluster", 4)])
        );
        let expected: Table =
            "a/b TCP/80\n open: a/c\nservice/a/s UDP/53\n open: a/b\n denied: a/c\n"
                .parse()
                .unwrap();
        assert!(
            expected == plan.expected,
            "{}",
            expected.differences(&plan.expected)
        );
        let own = Destination::new(Party::pod("a", "b"), Port::Tcp(80));
        assert!(
            plan.expected
                .iter()
                .any(|(source, to, cell)| *source == Party::Node
                    && *to == own
                    && cell.v4 == Some(Outcome::Open)),
            "the node has a cell of its own"
        );
    }

    #[test]
    fn every_address_is_probed_and_a_missing_family_is_named() {
        let table: Table = "a/b UDP/53\n denied: a/c\n".parse().unwrap();
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        let both = BTreeMap::from([(Party::pod("a", "b"), vec![at("10.0.0.1"), at("fd00::1")])]);
        let (probes, missing) = Plan::probes(&table, &both);
        assert_eq!(probes.len(), 2);
        assert_eq!(probes[1].family(), Family::V6);
        assert_eq!((probes[1].protocol, probes[1].port), (Protocol::Udp, 53));
        assert!(missing.is_empty());
        let one = BTreeMap::from([(Party::pod("a", "b"), vec![at("10.0.0.1")])]);
        let (probes, missing) = Plan::probes(&table, &one);
        assert_eq!(probes.len(), 1);
        assert_eq!(missing, BTreeSet::from([Family::V6]));
    }

    /// Only what lies outside the cluster may be left out of the scenarios as they are.
    #[test]
    fn every_scenario_keeps_all_cells_between_its_pods() {
        for scenario in Scenario::all().unwrap() {
            for step in &scenario.steps {
                let plan = Plan::of(&step.expected);
                let reasons: Vec<_> = plan.left_out.keys().copied().collect();
                assert!(
                    reasons.is_empty() || reasons == ["a host outside the cluster"],
                    "{}, {}: {reasons:?}",
                    scenario.name,
                    step.name
                );
                let pods = scenario.world.pods().len();
                let goals = plan
                    .expected
                    .destinations()
                    .filter(|to| !to.party.is_service())
                    .count();
                let cells = plan
                    .expected
                    .iter()
                    .filter(|(source, to, _)| **source != Party::Node && !to.party.is_service())
                    .count();
                assert_eq!(cells, goals * (pods - 1), "{}", scenario.name);
            }
        }
    }
}
