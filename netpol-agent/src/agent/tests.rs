//! The enforcer against a kernel that keeps a diary and fails on demand.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use netpol_common::{Direction, Endpoint, Reason, Tally};

use super::{
    enforcer::Enforcer,
    kernel::{Kernel, Tallies},
};
use crate::{
    dataplane::TableFill,
    node::{Interface, Missing, Report},
    policy::{
        Edit, ObjectChange,
        object::{Namespace, ObjectKey, Pod, Policy, PolicyPeer, Rule, Selector},
    },
};

/// What may fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Nothing,
    Tables,
    Endpoints,
    Attach,
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} failed")]
struct Failed(Part);

/// A kernel in memory.
struct Fake {
    broken: Cell<Part>,
    /// Elements by what names them.
    tables: BTreeMap<String, Edit>,
    endpoints: BTreeMap<u32, Endpoint>,
    diary: Vec<String>,
    epoch: u32,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            broken: Cell::new(Part::Nothing),
            tables: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            diary: Vec::new(),
            epoch: 0,
        }
    }
}

impl Fake {
    fn try_to(&self, part: Part) -> Result<(), Failed> {
        if self.broken.get() == part {
            Err(Failed(part))
        } else {
            Ok(())
        }
    }
}

/// What names an element, and whether the edit removes it.
fn element(edit: &Edit) -> (String, bool) {
    match *edit {
        Edit::Port { key, bits, present } => (format!("{key:?}/{bits}"), !present),
        Edit::Rule { key, ports } => (format!("{key:?}"), ports.is_none()),
        Edit::Host { address, peer } => (format!("{address}"), peer.is_none()),
        Edit::Net {
            address,
            bits,
            peer,
        } => (format!("{address}/{bits}"), peer.is_none()),
    }
}

impl Kernel for Fake {
    type Error = Failed;

    fn write(&mut self, edits: &[Edit]) -> Result<(), Failed> {
        self.try_to(Part::Tables)?;
        for edit in edits {
            let (name, removes) = element(edit);
            if removes {
                self.tables.remove(&name);
            } else {
                self.tables.insert(name, *edit);
            }
        }
        self.diary.push("tables".into());
        Ok(())
    }
    fn adopt(&mut self, tables: &[Edit]) -> Result<(), Failed> {
        self.write(tables)
    }
    fn discard_unknown(&mut self, tables: &[Edit]) -> Result<(), Failed> {
        let known: BTreeSet<_> = tables.iter().map(|edit| element(edit).0).collect();
        self.tables.retain(|name, _| known.contains(name));
        self.diary.push("discard".into());
        Ok(())
    }
    fn endpoints(&self) -> Result<Vec<(u32, Endpoint)>, Failed> {
        Ok(self.endpoints.iter().map(|(&i, &e)| (i, e)).collect())
    }
    fn set_endpoint(&mut self, interface: u32, endpoint: &Endpoint) -> Result<(), Failed> {
        self.try_to(Part::Endpoints)?;
        self.endpoints.insert(interface, *endpoint);
        self.diary.push(format!("endpoint {interface}"));
        Ok(())
    }
    fn remove_endpoint(&mut self, interface: u32) -> Result<(), Failed> {
        self.endpoints.remove(&interface);
        self.diary.push(format!("remove {interface}"));
        Ok(())
    }
    fn attach(&mut self, interface: u32, _: &str) -> Result<(), Failed> {
        self.try_to(Part::Attach)?;
        self.diary.push(format!("attach {interface}"));
        Ok(())
    }
    fn raise_epoch(&mut self) -> Result<u32, Failed> {
        self.epoch += 1;
        self.diary.push("epoch".into());
        Ok(self.epoch)
    }
    fn epoch(&self) -> u32 {
        self.epoch
    }
    fn hook(&self) -> String {
        "none".into()
    }
    fn statistics(&self, _: u32) -> Result<Tallies, Failed> {
        Ok([[Tally::default(); Reason::COUNT]; 2])
    }
    fn fill(&self) -> Result<Vec<TableFill>, Failed> {
        Ok(Vec::new())
    }
    fn lost(&self) -> Result<[u64; 2], Failed> {
        Ok([0; 2])
    }
    fn seed(&mut self, _: &[(u32, Endpoint)]) {}
}

fn namespace() -> ObjectChange {
    ObjectChange::Namespace(Namespace {
        name: "shop".into(),
        labels: BTreeMap::new(),
    })
}

fn pod(name: &str, uid: &str, address: &str) -> ObjectChange {
    ObjectChange::Pod(Pod {
        key: ObjectKey::new("shop", name),
        uid: uid.into(),
        created: 0,
        terminating: false,
        labels: BTreeMap::new(),
        node: "here".into(),
        host_network: false,
        finished: false,
        addresses: vec![address.parse().expect("an address")],
        ports: Vec::new(),
    })
}

/// A policy that isolates every pod for ingress, but for one block.
fn policy() -> ObjectChange {
    let block = PolicyPeer::Block {
        cidr: "10.9.0.0/16".parse().expect("a block"),
        except: Vec::new(),
    };
    ObjectChange::Policy(Policy {
        key: ObjectKey::new("shop", "block"),
        selector: Selector::default(),
        ingress: Some(vec![Rule {
            peers: Some(vec![block]),
            ports: None,
        }]),
        egress: None,
    })
}

fn policy_gone() -> ObjectChange {
    ObjectChange::PolicyGone(ObjectKey::new("shop", "block"))
}

/// A report that finds the pods with these interfaces.
fn found(enforcer: &Enforcer<Fake>, interfaces: &[(&str, u32)]) -> Arc<Report> {
    let by_name: BTreeMap<_, _> = interfaces.iter().copied().collect();
    let pods = enforcer.wanted().into_iter().map(|wanted| {
        let interface = by_name.get(&*wanted.key.name).map(|&index| Interface {
            index,
            name: format!("veth{index}"),
        });
        (
            wanted.key.clone(),
            (wanted, interface.ok_or(Missing::NotFound)),
        )
    });
    Arc::new(Report {
        addresses: ["10.0.0.254".parse::<IpAddr>().expect("an address")].into(),
        pods: pods.collect(),
        interfaces: interfaces
            .iter()
            .map(|&(_, i)| (i, format!("veth{i}")))
            .collect(),
        answers: 1,
        ..Report::default()
    })
}

fn work(enforcer: &mut Enforcer<Fake>) {
    for _ in 0..100 {
        if !enforcer.work() {
            return;
        }
    }
    panic!("the work does not end");
}

fn diary(enforcer: &mut Enforcer<Fake>) -> String {
    std::mem::take(&mut enforcer.kernel.diary).join(", ")
}

/// A node with the pod a on interface 5, enforced and settled.
fn world(kernel: Fake) -> Enforcer<Fake> {
    let mut enforcer = Enforcer::new(kernel, "here", BTreeSet::new());
    enforcer.apply(vec![namespace(), pod("a", "1", "10.0.0.1")]);
    enforcer.expect(1);
    let report = found(&enforcer, &[("a", 5)]);
    enforcer.see(report);
    assert!(!enforcer.work(), "nothing is done before the gate opens");
    assert_eq!(enforcer.kernel.diary, Vec::<String>::new());
    enforcer.start().expect("a start");
    work(&mut enforcer);
    settle(&mut enforcer);
    enforcer
}

fn settle(enforcer: &mut Enforcer<Fake>) {
    while let Some(grace) = enforcer.wants_grace() {
        enforcer.settle(grace);
        work(enforcer);
    }
}

fn isolated(enforcer: &Enforcer<Fake>, interface: u32) -> bool {
    let endpoint = enforcer.kernel.endpoints[&interface];
    endpoint.isolation(Direction::Ingress).ruleset().is_some()
}

#[test]
fn an_endpoint_is_written_before_the_programs_and_the_epoch_comes_last() {
    let mut enforcer = world(Fake::default());
    let diary = diary(&mut enforcer);
    assert_eq!(diary, "tables, endpoint 5, epoch, attach 5, epoch, discard");
    assert_eq!(enforcer.behind(), Vec::<String>::new());
}

#[test]
fn a_policy_goes_tables_endpoints_epoch() {
    let mut enforcer = world(Fake::default());
    diary(&mut enforcer);
    enforcer.apply(vec![policy()]);
    work(&mut enforcer);
    let diary = diary(&mut enforcer);
    assert!(
        diary == "endpoint 5, epoch" || diary == "tables, endpoint 5, epoch",
        "{diary}"
    );
    assert!(isolated(&enforcer, 5));
}

#[test]
fn endpoints_do_not_move_while_tables_cannot_be_written() {
    let mut enforcer = world(Fake::default());
    enforcer.kernel.broken.set(Part::Tables);
    enforcer.apply(vec![pod("b", "1", "10.0.0.2"), policy()]);
    work(&mut enforcer);
    assert!(!isolated(&enforcer, 5));
    assert!(enforcer.pending() > 0);
    let failure = enforcer.failure.as_ref().expect("a failure").error.clone();
    assert!(
        enforcer.behind().iter().any(|line| line.contains(&failure)),
        "{:?}",
        enforcer.behind()
    );
    assert_eq!(enforcer.wants_grace(), None);

    enforcer.kernel.broken.set(Part::Nothing);
    enforcer.retry();
    work(&mut enforcer);
    assert!(isolated(&enforcer, 5));
    assert!(enforcer.failure.is_none());
    assert_eq!(enforcer.behind(), Vec::<String>::new());
}

#[test]
fn what_was_refused_by_the_kernel_and_is_not_wanted_any_more_holds_up_nothing() {
    let mut enforcer = world(Fake::default());
    let before = enforcer.kernel.tables.clone();
    enforcer.kernel.broken.set(Part::Tables);
    enforcer.apply(vec![pod("b", "1", "10.0.0.2"), policy()]);
    work(&mut enforcer);
    enforcer.kernel.broken.set(Part::Nothing);
    enforcer.apply(vec![
        ObjectChange::PodGone(ObjectKey::new("shop", "b")),
        policy_gone(),
    ]);
    work(&mut enforcer);
    settle(&mut enforcer);
    assert!(!isolated(&enforcer, 5));
    assert_eq!(enforcer.kernel.tables, before);
}

#[test]
fn one_endpoint_that_fails_is_told_and_tried_again() {
    for part in [Part::Endpoints, Part::Attach] {
        let mut enforcer = world(Fake::default());
        enforcer.apply(vec![pod("b", "1", "10.0.0.2")]);
        enforcer.kernel.broken.set(part);
        let report = found(&enforcer, &[("a", 5), ("b", 6)]);
        enforcer.see(report);
        work(&mut enforcer);
        assert!(
            enforcer.behind().iter().any(|line| line.contains("shop/b")),
            "{:?}",
            enforcer.behind()
        );
        enforcer.kernel.broken.set(Part::Nothing);
        enforcer.retry();
        work(&mut enforcer);
        assert_eq!(enforcer.behind(), Vec::<String>::new());
        assert!(enforcer.endpoints.attached.contains(&6));
    }
}

#[test]
fn pinned_endpoints_keep_their_slots_and_those_without_a_pod_go() {
    let mut kernel = Fake::default();
    for (interface, slot) in [(5, 7), (9, 0)] {
        let endpoint = Endpoint {
            slot,
            ..Endpoint::default()
        };
        kernel.endpoints.insert(interface, endpoint);
    }
    let mut enforcer = world(kernel);
    assert_eq!(enforcer.kernel.endpoints[&5].slot, 7);
    assert!(!enforcer.kernel.endpoints.contains_key(&9));
    enforcer.apply(vec![pod("b", "1", "10.0.0.2")]);
    let report = found(&enforcer, &[("a", 5), ("b", 6)]);
    enforcer.see(report);
    work(&mut enforcer);
    assert_eq!(enforcer.kernel.endpoints[&6].slot, 0);
}

#[test]
fn a_pinned_endpoint_stays_when_its_pod_cannot_be_found_again() {
    let mut kernel = Fake::default();
    let address = "10.0.0.1".parse::<IpAddr>().expect("an address").into();
    kernel.endpoints.insert(
        5,
        Endpoint {
            ipv4: address,
            ..Endpoint::default()
        },
    );
    let mut enforcer = Enforcer::new(kernel, "here", BTreeSet::new());
    enforcer.apply(vec![namespace(), pod("a", "1", "10.0.0.1"), policy()]);
    enforcer.expect(1);
    let mut report = Report::clone(&found(&enforcer, &[]));
    report.interfaces.insert(5, "veth5".into());
    enforcer.see(Arc::new(report.clone()));
    enforcer.start().expect("a start");
    work(&mut enforcer);
    enforcer.see(Arc::new(report.clone()));
    work(&mut enforcer);
    assert!(isolated(&enforcer, 5));
    // But not without its interface.
    report.interfaces.clear();
    enforcer.see(Arc::new(report));
    work(&mut enforcer);
    assert!(enforcer.kernel.endpoints.is_empty());
}

#[test]
fn a_pod_that_is_looked_for_again_keeps_its_endpoint_meanwhile() {
    let mut enforcer = world(Fake::default());
    enforcer.apply(vec![policy(), pod("a", "1", "10.0.0.3")]);
    work(&mut enforcer);
    assert!(isolated(&enforcer, 5), "the discovery has not answered yet");
    // A pod of the same name that is another one does not inherit it, but it may be found on the same interface: nothing
    // is taken off before the discovery has answered.
    enforcer.apply(vec![pod("a", "2", "10.0.0.4")]);
    enforcer.expect(2);
    work(&mut enforcer);
    assert!(enforcer.endpoints.targets.is_empty());
    assert!(isolated(&enforcer, 5));
    let mut report = Report::clone(&found(&enforcer, &[]));
    report.answers = 2;
    enforcer.see(Arc::new(report));
    work(&mut enforcer);
    assert!(enforcer.kernel.endpoints.is_empty());
}

#[test]
fn a_pod_that_goes_is_released() {
    let mut enforcer = world(Fake::default());
    diary(&mut enforcer);
    enforcer.apply(vec![ObjectChange::PodGone(ObjectKey::new("shop", "a"))]);
    work(&mut enforcer);
    assert!(enforcer.kernel.endpoints.is_empty());
    settle(&mut enforcer);
    assert_eq!(enforcer.index.tables().len(), enforcer.kernel.tables.len());
}
