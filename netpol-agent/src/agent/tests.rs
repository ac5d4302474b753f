//! The enforcer against a kernel that keeps a diary and fails on demand.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use netpol_common::{Direction, Endpoint, Reason, Tally, TunnelKey};

use super::{
    AwayStatus, DropStatus, Origin, SourceStatus, endpoints::Orders, enforcer::Enforcer,
    kernel::Kernel, status,
};
use crate::{
    cluster::{Away, Update},
    dataplane::{TableFill, Tallies},
    node::{Device, DeviceKind, Identity, Interface, Missing, Place, Report},
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
    /// Devices with programs.
    pinned: BTreeSet<u32>,
    /// Some of the programs are of another version.
    displaces: bool,
    diary: Vec<String>,
    epoch: u32,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            broken: Cell::new(Part::Nothing),
            tables: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            pinned: BTreeSet::new(),
            displaces: false,
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
    fn adopt_endpoints(&mut self) -> Result<Vec<(u32, Endpoint)>, Failed> {
        Ok(self.endpoints.iter().map(|(&i, &e)| (i, e)).collect())
    }
    fn attached(&self) -> Result<BTreeSet<u32>, Failed> {
        Ok(self.pinned.clone())
    }
    fn displaces(&self) -> Result<bool, Failed> {
        Ok(self.displaces)
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
    fn attach(&mut self, interface: u32, device: &Device) -> Result<(), Failed> {
        self.try_to(Part::Attach)?;
        self.pinned.insert(interface);
        let kind = match device.kind {
            DeviceKind::Pod => "attach",
            DeviceKind::Host | DeviceKind::Bare => "host",
        };
        self.diary.push(format!("{kind} {interface}"));
        Ok(())
    }
    fn release(&mut self, interface: u32) -> Result<(), Failed> {
        self.pinned.remove(&interface);
        self.diary.push(format!("release {interface}"));
        Ok(())
    }
    fn retire_others(&mut self) -> Result<usize, Failed> {
        Ok(0)
    }
    fn set_tunnels(&mut self, tunnels: &BTreeSet<TunnelKey>) -> Result<(), Failed> {
        self.diary.push(format!("tunnels {}", tunnels.len()));
        Ok(())
    }
    fn pinned(&self) -> bool {
        true
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

/// As its kubelet has not told its address yet.
fn pod_without_address(name: &str) -> ObjectChange {
    let ObjectChange::Pod(mut pod) = pod(name, "1", "10.0.0.9") else {
        unreachable!("a pod")
    };
    pod.addresses.clear();
    ObjectChange::Pod(pod)
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

/// A device of every node that is no pod's.
const UPLINK: u32 = 2;

fn device(index: u32, kind: DeviceKind) -> (u32, Device) {
    let name = format!("veth{index}");
    (index, Device { name, kind })
}

/// A report that finds the pods with these interfaces.
fn found(enforcer: &Enforcer<Fake>, interfaces: &[(&str, u32)]) -> Arc<Report> {
    let by_name: BTreeMap<_, _> = interfaces.iter().copied().collect();
    let pods = enforcer.wanted().into_iter().map(|wanted| {
        let place = by_name.get(&*wanted.key.name).map(|&index| Place {
            interface: Interface {
                index,
                name: format!("veth{index}"),
            },
            identity: Identity {
                mac: Some([2, 0, 0, 0, 0, index as u8]),
                link_local: "fe80::1".parse().ok(),
            },
        });
        (wanted.key.clone(), (wanted, place.ok_or(Missing::NotFound)))
    });
    Arc::new(Report {
        addresses: ["10.0.0.254".parse::<IpAddr>().expect("an address")].into(),
        pods: pods.collect(),
        devices: interfaces
            .iter()
            .map(|&(_, i)| device(i, DeviceKind::Pod))
            .chain([device(UPLINK, DeviceKind::Host)])
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
    let mut enforcer = Enforcer::new(kernel, "here", Orders::default());
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
fn programs_come_first_those_of_other_devices_before_all_and_the_epoch_last() {
    let mut enforcer = world(Fake::default());
    let diary = diary(&mut enforcer);
    assert_eq!(
        diary,
        "tables, tunnels 0, epoch, host 2, epoch, attach 5, endpoint 5, epoch, discard"
    );
    assert_eq!(enforcer.behind(), Vec::<String>::new());
}

#[test]
fn a_device_is_missing_its_programs_only_once_they_are_to_be_there() {
    let mut enforcer = Enforcer::new(Fake::default(), "here", Orders::default());
    enforcer.apply(vec![namespace(), pod("a", "1", "10.0.0.1")]);
    enforcer.expect(1);
    let report = found(&enforcer, &[("a", 5)]);
    enforcer.see(report);
    enforcer.work();
    let missing = |enforcer: &Enforcer<Fake>| {
        let source = SourceStatus::default();
        let status = status::of(enforcer, "here", source, DropStatus::default());
        status.devices.missing.len()
    };
    assert_eq!(missing(&enforcer), 0, "nothing is attempted yet");
    enforcer.start().expect("a start");
    assert_eq!(missing(&enforcer), 2);
    work(&mut enforcer);
    assert_eq!(missing(&enforcer), 0);
}

#[test]
fn endpoints_come_first_where_programs_take_the_places_of_others_that_judge() {
    let enforcer = &mut world(Fake {
        displaces: true,
        ..Fake::default()
    });
    let diary = diary(enforcer);
    assert_eq!(
        diary,
        "tables, tunnels 0, endpoint 5, epoch, host 2, epoch, attach 5, epoch, discard"
    );
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
    for (part, told) in [(Part::Endpoints, "shop/b"), (Part::Attach, "veth6")] {
        let mut enforcer = world(Fake::default());
        enforcer.apply(vec![pod("b", "1", "10.0.0.2")]);
        enforcer.kernel.broken.set(part);
        let report = found(&enforcer, &[("a", 5), ("b", 6)]);
        enforcer.see(report);
        work(&mut enforcer);
        assert!(
            enforcer.behind().iter().any(|line| line.contains(told)),
            "{:?}",
            enforcer.behind()
        );
        let endpoint = part == Part::Endpoints;
        assert_eq!(enforcer.endpoints.errors.len(), usize::from(endpoint));
        assert_eq!(enforcer.written(), !endpoint, "a pod is open");
        enforcer.kernel.broken.set(Part::Nothing);
        enforcer.retry();
        work(&mut enforcer);
        assert!(enforcer.written());
        assert_eq!(enforcer.behind(), Vec::<String>::new());
        assert!(enforcer.hooks.guard_pod(6));
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
    let mut enforcer = Enforcer::new(kernel, "here", Orders::default());
    enforcer.apply(vec![namespace(), pod("a", "1", "10.0.0.1"), policy()]);
    enforcer.expect(1);
    let mut report = Report::clone(&found(&enforcer, &[]));
    report.devices.extend([device(5, DeviceKind::Pod)]);
    enforcer.see(Arc::new(report.clone()));
    enforcer.start().expect("a start");
    work(&mut enforcer);
    enforcer.see(Arc::new(report.clone()));
    work(&mut enforcer);
    assert!(isolated(&enforcer, 5));
    // But not without its interface.
    report.devices.clear();
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
fn an_interface_that_comes_while_a_pod_is_awaited_is_not_open() {
    let mut enforcer = world(Fake::default());
    let look = |enforcer: &mut Enforcer<Fake>, pods: &[(&str, u32)], devices: &[u32], answers| {
        let mut report = Report::clone(&found(enforcer, pods));
        for (wanted, found) in report.pods.values_mut() {
            if wanted.addresses.is_empty() {
                *found = Err(Missing::NoAddress);
            }
        }
        let more = devices.iter().map(|&i| device(i, DeviceKind::Pod));
        report.devices.extend(more);
        report.answers = answers;
        enforcer.see(Arc::new(report));
        work(enforcer);
        settle(enforcer);
    };
    // Nobody is awaited: whatever this is, it is none of ours.
    look(&mut enforcer, &[("a", 5)], &[6], 1);
    enforcer.apply(vec![policy(), pod_without_address("b")]);
    enforcer.expect(2);
    look(&mut enforcer, &[("a", 5)], &[6], 2);
    assert!(!enforcer.kernel.endpoints.contains_key(&6));
    look(&mut enforcer, &[("a", 5)], &[6, 7], 2);
    assert!(!enforcer.kernel.endpoints.contains_key(&6));
    let (known, held) = (enforcer.kernel.endpoints[&5], enforcer.kernel.endpoints[&7]);
    assert_eq!((held.ingress, held.egress), (known.ingress, known.egress));
    assert!(isolated(&enforcer, 7) && !held.guarded() && held.slot != known.slot);
    // It will be let go some time; but nothing is due before the next try while something has failed.
    assert!(enforcer.deadline().is_some_and(|due| due > Instant::now()));
    enforcer.kernel.broken.set(Part::Endpoints);
    look(&mut enforcer, &[("a", 5)], &[6, 7, 8], 2);
    let retry = enforcer.failure.as_ref().expect("a failure").retry;
    assert_eq!(enforcer.deadline(), Some(retry));
    enforcer.kernel.broken.set(Part::Nothing);
    look(&mut enforcer, &[("a", 5)], &[6, 7], 2);
    // It stays so until the discovery has found the pod, which is guarded from then on.
    enforcer.apply(vec![pod("b", "1", "10.0.0.2")]);
    enforcer.expect(3);
    work(&mut enforcer);
    assert_eq!(enforcer.kernel.endpoints[&7], held);
    look(&mut enforcer, &[("a", 5), ("b", 7)], &[6], 3);
    let endpoint = enforcer.kernel.endpoints[&7];
    assert_eq!(endpoint.ipv4, "10.0.0.2".parse::<IpAddr>().unwrap().into());
    assert_eq!(endpoint.slot, held.slot);
    // What never became anybody's is let go as soon as nobody is awaited.
    enforcer.apply(vec![pod_without_address("c")]);
    enforcer.expect(4);
    look(&mut enforcer, &[("a", 5), ("b", 7)], &[6, 8], 4);
    assert!(isolated(&enforcer, 8));
    enforcer.apply(vec![ObjectChange::PodGone(ObjectKey::new("shop", "c"))]);
    enforcer.expect(5);
    look(&mut enforcer, &[("a", 5), ("b", 7)], &[6, 8], 5);
    assert!(!enforcer.kernel.endpoints.contains_key(&8));
}

#[test]
fn an_agent_holds_what_the_one_before_it_has_held() {
    let mut kernel = Fake::default();
    kernel.endpoints.insert(7, Endpoint::default());
    let mut enforcer = Enforcer::new(kernel, "here", Orders::default());
    enforcer.apply(vec![namespace(), policy(), pod_without_address("b")]);
    enforcer.expect(1);
    let mut report = Report::clone(&found(&enforcer, &[]));
    let devices = [6, 7].map(|index| device(index, DeviceKind::Pod));
    report.devices.extend(devices);
    for (_, found) in report.pods.values_mut() {
        *found = Err(Missing::NoAddress);
    }
    enforcer.see(Arc::new(report));
    enforcer.start().expect("a start");
    work(&mut enforcer);
    assert!(isolated(&enforcer, 7));
    assert!(!enforcer.kernel.endpoints.contains_key(&6));
}

/// Deleted by force, or by somebody who cannot reach its node: its processes run on.
#[test]
fn an_isolated_pod_whose_object_goes_before_its_interface_ends_closed() {
    let mut enforcer = world(Fake::default());
    enforcer.apply(vec![policy(), pod("b", "1", "10.0.0.2")]);
    enforcer.expect(1);
    let report = found(&enforcer, &[("a", 5), ("b", 6)]);
    enforcer.see(report);
    work(&mut enforcer);
    let before = enforcer.kernel.endpoints[&6];
    assert!(isolated(&enforcer, 6));
    enforcer.apply(vec![ObjectChange::PodGone(ObjectKey::new("shop", "b"))]);
    enforcer.expect(2);
    let look = |enforcer: &mut Enforcer<Fake>, devices: &[u32]| {
        let mut report = Report::clone(&found(enforcer, &[("a", 5)]));
        let more = devices.iter().map(|&i| device(i, DeviceKind::Pod));
        report.devices.extend(more);
        report.answers = 2;
        enforcer.see(Arc::new(report));
        work(enforcer);
        settle(enforcer);
    };
    look(&mut enforcer, &[6]);
    let after = enforcer.kernel.endpoints[&6];
    assert_eq!(after.ipv4, before.ipv4);
    assert_eq!(after.egress, before.egress, "open as before");
    assert!(isolated(&enforcer, 6) && after.ingress != before.ingress);
    // It is a pod's again, which is known before the discovery has answered for the pods of now.
    enforcer.apply(vec![pod("b", "2", "10.0.0.2")]);
    enforcer.expect(3);
    let mut report = Report::clone(&found(&enforcer, &[("a", 5), ("b", 6)]));
    report.answers = 2;
    enforcer.see(Arc::new(report));
    work(&mut enforcer);
    assert_eq!(enforcer.kernel.endpoints[&6].ingress, before.ingress);
    enforcer.apply(vec![ObjectChange::PodGone(ObjectKey::new("shop", "b"))]);
    enforcer.expect(2);
    look(&mut enforcer, &[]);
    assert!(!enforcer.kernel.endpoints.contains_key(&6));
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

#[test]
fn a_veth_has_the_programs_of_a_pod_before_and_after_it_has_one() {
    let mut enforcer = world(Fake::default());
    diary(&mut enforcer);
    let mut report = Report::clone(&found(&enforcer, &[("a", 5)]));
    report.devices.extend([
        device(6, DeviceKind::Pod),
        device(7, DeviceKind::Host),
        device(8, DeviceKind::Host),
    ]);
    enforcer.see(Arc::new(report.clone()));
    work(&mut enforcer);
    assert_eq!(
        diary(&mut enforcer),
        "host 7, epoch, host 8, epoch, attach 6, epoch"
    );
    enforcer.apply(vec![ObjectChange::PodGone(ObjectKey::new("shop", "a"))]);
    work(&mut enforcer);
    assert!(enforcer.kernel.endpoints.is_empty() && enforcer.kernel.pinned.contains(&5));
    diary(&mut enforcer);
    // A device becomes one of the other kind, and one goes.
    report.devices.extend([device(6, DeviceKind::Host)]);
    report.devices.remove(&8);
    enforcer.see(Arc::new(report));
    work(&mut enforcer);
    assert_eq!(diary(&mut enforcer), "host 6, epoch, release 8");
    assert_eq!(enforcer.hooks.count(DeviceKind::Host), 3);
    assert_eq!(enforcer.behind(), Vec::<String>::new());
}

#[test]
fn a_device_that_cannot_be_hooked_is_told_and_holds_up_no_pod() {
    let kernel = Fake::default();
    kernel.broken.set(Part::Attach);
    let mut enforcer = world(kernel);
    assert!(enforcer.kernel.endpoints.contains_key(&5));
    let behind = enforcer.behind();
    assert!(
        behind
            .iter()
            .any(|line| line.contains("device veth2 (2): Attach failed")),
        "{behind:?}"
    );
    enforcer.kernel.broken.set(Part::Nothing);
    enforcer.retry();
    work(&mut enforcer);
    assert_eq!(enforcer.behind(), Vec::<String>::new());
}

#[test]
fn what_the_node_opens_is_written_when_it_changes_and_raises_the_epoch() {
    let mut enforcer = world(Fake::default());
    diary(&mut enforcer);
    let mut report = Report::clone(&found(&enforcer, &[("a", 5)]));
    report.tunnels.insert(TunnelKey {
        protocol: 17,
        port: 8472,
    });
    for told in ["tunnels 1, epoch", ""] {
        enforcer.see(Arc::new(report.clone()));
        work(&mut enforcer);
        assert_eq!(diary(&mut enforcer), told);
    }
}

#[test]
fn an_endpoint_says_who_the_pod_is() {
    let orders = Orders {
        guard: true,
        ..Orders::default()
    };
    let mut enforcer = Enforcer::new(Fake::default(), "here", orders);
    enforcer.apply(vec![namespace(), pod("a", "1", "10.0.0.1")]);
    enforcer.expect(1);
    let report = found(&enforcer, &[("a", 5)]);
    enforcer.see(report);
    enforcer.start().expect("a start");
    work(&mut enforcer);
    let endpoint = enforcer.kernel.endpoints[&5];
    assert!(endpoint.guarded());
    assert_eq!(endpoint.mac, [2, 0, 0, 0, 0, 5, 0, 0]);
    assert!(endpoint.owns(&"fe80::1".parse::<IpAddr>().expect("an address").into()));
    // While the pod is looked for again it stays who it was.
    enforcer.apply(vec![policy(), pod("a", "1", "10.0.0.3")]);
    work(&mut enforcer);
    assert_eq!(enforcer.kernel.endpoints[&5].mac, endpoint.mac);
}

#[test]
fn a_source_that_is_away_is_told_to_those_who_wait_and_by_the_status() {
    let update = |covers, away: Option<Arc<Away>>| Update {
        changes: Vec::new(),
        revision: "7".into(),
        problems: Arc::default(),
        complete: true,
        covers,
        unanswered: None,
        away,
    };
    let mut origin = Origin {
        description: "the API server at https://there".into(),
        ..Origin::default()
    };
    origin.take(&update(1, None));
    assert_eq!(origin.behind(1), None);
    assert_eq!(
        origin.behind(2).as_deref(),
        Some("the API server at https://there: not read to the end yet")
    );
    let away = Arc::new(Away {
        since: SystemTime::now() - Duration::from_secs(90),
        reason: "nobody answers".into(),
    });
    origin.take(&update(1, Some(Arc::clone(&away))));
    assert_eq!(origin.behind(1), None, "what was covered stays so");
    let told = origin.behind(2).expect("not covered");
    assert!(
        told.contains("cannot be reached since 9") && told.ends_with("nobody answers"),
        "{told}"
    );
    let status = AwayStatus::from(&*away);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock")
        .as_secs();
    assert!((80..=100).contains(&(now - status.since)), "{status:?}");
    let mut unanswered = update(1, None);
    unanswered.unanswered = Some("the server is too busy".into());
    origin.take(&unanswered);
    assert_eq!(
        origin.behind(2).as_deref(),
        Some(
            "the API server at https://there: does not say whether everything is read: the server is too busy; it is asked again"
        )
    );
    origin.take(&update(2, None));
    assert_eq!(origin.behind(2), None);
    assert_eq!(origin.away, None);
}
