//! Every scenario without a network: by the compiled tables alone, and by the decision procedure on packets in memory.
//!
//! Needs no root. One index lives through all steps of a scenario, so that each step is also a change; the tables at its
//! end must be those that compiling it from nothing gives.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context, ensure};
use netpol_agent::{
    dataplane::memory::{MemoryTables, SliceFrame},
    packet_builder::{Payload, frame},
    policy::{
        Index, ObjectChange, PodIsolation,
        convert::{self, Refusal},
        object::ObjectKey,
    },
};
use netpol_common::{ALL_PORTS, Address, Direction, Endpoint, NO_CLASS, RuleKey, Tables as _};
use netpol_tests::{
    manifests::{Placement, PodManifest, World},
    scenario::Scenario,
    table::{Destination, Family, Outcome, Party, Port, Table},
};
use serde::de::DeserializeOwned;

const NODE: &str = "node";

/// Everybody's addresses, and who is behind each Service.
struct Addresses {
    parties: BTreeMap<Party, Vec<IpAddr>>,
    services: BTreeMap<Destination, BTreeSet<Destination>>,
}

impl Addresses {
    fn of(world: &World) -> Self {
        let pods = world.pods().into_iter().enumerate().map(|(n, pod)| {
            let n = n as u16 + 2;
            let [high, low] = n.to_be_bytes();
            let v4 = Ipv4Addr::new(10, 244, high, low);
            let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, n);
            (Party::Pod(pod.key), vec![v4.into(), v6.into()])
        });
        let hosts = world
            .hosts()
            .into_iter()
            .map(|host| (Party::host(&host.name), host.addresses));
        let services = world.service_destinations().into_iter();
        Self {
            parties: pods.chain(hosts).collect(),
            services: services
                .map(|service| (service.clone(), world.backends(&service)))
                .collect(),
        }
    }

    /// Where what is sent to a destination really goes.
    fn goals(&self, destination: &Destination) -> BTreeSet<Destination> {
        let behind = self.services.get(destination).cloned();
        behind.unwrap_or_else(|| BTreeSet::from([destination.clone()]))
    }

    fn get(&self, party: &Party, family: Family) -> Option<IpAddr> {
        let v4 = family == Family::V4;
        self.parties
            .get(party)?
            .iter()
            .copied()
            .find(|address| address.is_ipv4() == v4)
    }

    fn place(&self, pod: &PodManifest) -> Option<Placement> {
        Some(Placement {
            node: NODE.to_owned(),
            host_addresses: vec![],
            addresses: self.parties.get(&Party::Pod(pod.key.clone()))?.clone(),
        })
    }
}

/// The objects of a world as the index takes them.
fn objects(world: &World, addresses: &Addresses) -> anyhow::Result<BTreeMap<String, ObjectChange>> {
    fn read<K: DeserializeOwned, T>(
        world: &World,
        addresses: &Addresses,
        kind: &str,
        convert: impl Fn(&K) -> Result<T, Refusal>,
        change: impl Fn(T) -> (String, ObjectChange),
        into: &mut BTreeMap<String, ObjectChange>,
    ) -> anyhow::Result<()> {
        for value in world.values(kind, |pod| addresses.place(pod)) {
            let object: K = serde_json::from_value(value).context(kind.to_owned())?;
            into.extend([change(convert(&object)?)]);
        }
        Ok(())
    }
    let mut all = BTreeMap::new();
    read(
        world,
        addresses,
        "Namespace",
        convert::namespace,
        |n| (format!("namespace {}", n.name), ObjectChange::Namespace(n)),
        &mut all,
    )?;
    read(
        world,
        addresses,
        "Pod",
        convert::pod,
        |p| (format!("pod {}", p.key), ObjectChange::Pod(p)),
        &mut all,
    )?;
    read(
        world,
        addresses,
        "NetworkPolicy",
        convert::policy,
        |p| (format!("policy {}", p.key), ObjectChange::Policy(p)),
        &mut all,
    )?;
    read(
        world,
        addresses,
        "Service",
        convert::service,
        |s| (format!("service {}", s.key), ObjectChange::Service(s)),
        &mut all,
    )?;
    Ok(all)
}

/// The end of an object that a step no longer has.
fn gone(change: &ObjectChange) -> Option<ObjectChange> {
    match change {
        ObjectChange::Namespace(n) => Some(ObjectChange::NamespaceGone(n.name.clone())),
        ObjectChange::Pod(p) => Some(ObjectChange::PodGone(p.key.clone())),
        ObjectChange::Policy(p) => Some(ObjectChange::PolicyGone(p.key.clone())),
        ObjectChange::Service(s) => Some(ObjectChange::ServiceGone(s.key.clone())),
        _ => None,
    }
}

/// An index and what its edits have made of the tables.
struct Compiled {
    index: Index,
    tables: MemoryTables,
    isolation: BTreeMap<ObjectKey, PodIsolation>,
    objects: BTreeMap<String, ObjectChange>,
}

impl Compiled {
    fn new() -> Self {
        Self {
            index: Index::new(NODE),
            tables: MemoryTables::new(),
            isolation: BTreeMap::new(),
            objects: BTreeMap::new(),
        }
    }

    /// Brings the objects to those of a step and takes away what nobody refers to.
    fn become_step(&mut self, objects: BTreeMap<String, ObjectChange>) {
        let ended: Vec<ObjectChange> = self
            .objects
            .iter()
            .filter(|(name, _)| !objects.contains_key(*name))
            .filter_map(|(_, change)| gone(change))
            .collect();
        let change = self
            .index
            .apply(ended.into_iter().chain(objects.values().cloned()));
        self.objects = objects;
        self.tables.write_all(&change.add);
        for flip in change.flip {
            self.isolation.insert(flip.pod.clone(), flip);
        }
        for pod in change.gone {
            self.isolation.remove(&pod);
        }
        while !self.index.settled() {
            let edits = self.index.settle(self.index.generation());
            self.tables.write_all(&edits);
        }
    }

    fn isolation(&self, party: &Party) -> Option<&PodIsolation> {
        match party {
            Party::Pod(key) => self.isolation.get(key),
            _ => None,
        }
    }

    /// By the tables alone: is `remote` allowed at `pod` in this direction?
    fn rows_allow(&self, pod: &Party, direction: Direction, remote: IpAddr, port: Port) -> bool {
        let Some(pod) = self.isolation(pod) else {
            return true;
        };
        let isolation = match direction {
            Direction::Ingress => pod.ingress,
            Direction::Egress => pod.egress,
        };
        let Some(ruleset) = isolation.ruleset() else {
            return true;
        };
        let address = Address::from(remote);
        let peer = self
            .tables
            .host(&address)
            .or_else(|| self.tables.net(&address));
        let class = peer.map_or(NO_CLASS, |peer| peer.class);
        let row = |class| self.tables.rule(&RuleKey { ruleset, class });
        let Some(set) = row(class).or_else(|| row(NO_CLASS)) else {
            return false;
        };
        set == ALL_PORTS
            || port
                .transport()
                .is_some_and(|(protocol, port)| self.tables.port(set, protocol.number(), port))
    }

    /// By the decision procedure: does the first packet pass the hooks of both ends?
    fn judge_allows(&mut self, from: (&Party, IpAddr), to: (&Party, IpAddr), port: Port) -> bool {
        let payload = match port {
            Port::Tcp(port) => Payload::syn(40_000, port),
            Port::Udp(port) => Payload::Udp {
                source: 40_000,
                destination: port,
            },
            Port::Sctp(port) => Payload::Sctp {
                source: 40_000,
                destination: port,
            },
            Port::Icmp => Payload::Echo {
                identifier: 7,
                reply: false,
            },
        };
        let Some(bytes) = frame(from.1, to.1, payload) else {
            return false;
        };
        self.tables.clear_flows();
        let ends = [
            (from.0, 7, Direction::Egress),
            (to.0, 8, Direction::Ingress),
        ];
        ends.into_iter().all(|(party, interface, direction)| {
            let Some(isolation) = self.isolation(party) else {
                return true;
            };
            let endpoint = Endpoint {
                ingress: isolation.ingress,
                egress: isolation.egress,
                ..Endpoint::default()
            };
            self.tables.set_endpoint(interface, Some(endpoint));
            let frame = SliceFrame {
                bytes: &bytes,
                interface,
                came_in_by: 99,
                ..SliceFrame::default()
            };
            self.tables.judge(&frame, direction).passes()
        })
    }

    /// The table of a step in two ways.
    fn table(
        &mut self,
        expected: &Table,
        addresses: &Addresses,
        allows: impl Fn(&mut Self, (&Party, IpAddr), (&Party, IpAddr), Port) -> bool,
    ) -> Table {
        let mut table = Table::new();
        let cells: BTreeSet<(Party, Destination)> = expected
            .iter()
            .map(|(source, to, _)| (source.clone(), to.clone()))
            .collect();
        for (source, destination) in cells {
            for family in Family::ALL {
                // Behind each Service of a scenario there is one pod, so that its cell has one answer.
                for goal in addresses.goals(&destination) {
                    let ends = addresses
                        .get(&source, family)
                        .zip(addresses.get(&goal.party, family));
                    let Some((from, to)) = ends else { continue };
                    let to_itself = source == goal.party;
                    let open =
                        to_itself || allows(self, (&source, from), (&goal.party, to), goal.port);
                    let outcome = if open { Outcome::Open } else { Outcome::Denied };
                    table.set(&source, &destination, family, outcome);
                }
            }
        }
        table
    }
}

#[test]
fn tables_and_judge_give_the_expected_table_of_every_step() -> anyhow::Result<()> {
    let mut cells = 0;
    for scenario in Scenario::all()? {
        let mut lived = Compiled::new();
        // Before any policy everything is open.
        let addresses = Addresses::of(&scenario.world);
        lived.become_step(objects(&scenario.world, &addresses)?);
        for step in &scenario.steps {
            let open = lived.table(&step.expected, &addresses, Compiled::judge_allows);
            ensure!(
                scenario.steps[0].name != step.name || open.all_open(),
                "{}: not everything is open before the policy",
                scenario.name
            );
            let addresses = Addresses::of(&step.world);
            let objects = objects(&step.world, &addresses)
                .with_context(|| format!("{}, {}", scenario.name, step.name))?;
            lived.become_step(objects.clone());
            let mut fresh = Compiled::new();
            fresh.become_step(objects);
            ensure!(
                lived.tables.content() == fresh.tables.content(),
                "{}, {}: the tables depend on what was before",
                scenario.name,
                step.name
            );
            let by_rows = lived.table(&step.expected, &addresses, |c, (from, a), (to, b), port| {
                c.rows_allow(from, Direction::Egress, b, port)
                    && c.rows_allow(to, Direction::Ingress, a, port)
            });
            let by_judge = lived.table(&step.expected, &addresses, Compiled::judge_allows);
            for (how, found) in [
                ("compiled tables", by_rows),
                ("decision procedure", by_judge),
            ] {
                let wrong = step.expected.differences(&found);
                ensure!(
                    wrong.is_empty(),
                    "{}, {}, by the {how}: {wrong}",
                    scenario.name,
                    step.name
                );
                cells += found.len();
            }
        }
    }
    ensure!(cells > 2000, "only {cells} cells were compared");
    Ok(())
}
