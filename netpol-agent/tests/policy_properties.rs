//! The compiler against the reference, on random small worlds: snapshots, sequences of changes, and every moment between
//! two states.
//!
//! The alphabets are tiny so that things collide: two pods claim one address, blocks nest and overlap, two pods give one
//! name to different ports.

mod policy_support;

use std::{collections::BTreeSet, net::IpAddr};

use netpol_agent::policy::{
    Generation, Index, ObjectChange,
    object::{
        ContainerPort, Labels, Namespace, ObjectKey, Pod, Policy, PolicyPeer, PolicyPort,
        PortMatch, Protocol, Requirement, Rule, Selector,
    },
    reference::Snapshot,
};
use policy_support::{HERE, Plane, Question, compile, decide_across, expected, questions, settle};
use proptest::{collection::vec, option, prelude::*, sample::select};

const NAMESPACES: [&str; 3] = ["n0", "n1", "n2"];
const KEYS: [&str; 2] = ["app", "env"];
const VALUES: [&str; 3] = ["a", "b", ""];
const NAMES: [&str; 2] = ["web", "dns"];
const BLOCKS: [&str; 13] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.0/28",
    "10.0.0.4/30",
    "10.0.0.5/32",
    "192.168.0.0/16",
    "192.168.1.0/24",
    "::/0",
    "fd00::/64",
    "fd00::/124",
    "fd00::4/126",
    "fd00::5/128",
];
const OUTSIDE: [&str; 6] = [
    "10.0.0.200",
    "192.168.1.9",
    "192.168.2.9",
    "8.8.8.8",
    "fd00::ff",
    "2001:db8::9",
];
const NODE: [&str; 2] = ["10.0.0.14", "fd00::e"];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn labels() -> impl Strategy<Value = Labels> {
    vec((select(&KEYS[..]), select(&VALUES[..])), 0..=2).prop_map(|pairs| {
        pairs
            .into_iter()
            .map(|(k, v)| (k.into(), v.into()))
            .collect()
    })
}

fn requirement() -> impl Strategy<Value = Requirement> {
    let values = vec(select(&VALUES[..]), 1..=2).prop_map(|values| {
        values
            .into_iter()
            .map(str::to_owned)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    });
    (select(&KEYS[..]), values, 0..6).prop_map(|(key, values, operator)| {
        let key = key.to_owned();
        match operator {
            0..=2 => Requirement::In(key, values),
            3 => Requirement::NotIn(key, values),
            4 => Requirement::Exists(key),
            _ => Requirement::DoesNotExist(key),
        }
    })
}

fn selector() -> impl Strategy<Value = Selector> {
    let by_name = select(&NAMESPACES[..])
        .prop_map(|n| Requirement::In("kubernetes.io/metadata.name".into(), vec![n.into()]));
    prop_oneof![
        2 => Just(Selector::default()),
        6 => vec(requirement(), 1..=2).prop_map(|requirements| {
            let requirements: BTreeSet<_> = requirements.into_iter().collect();
            Selector { requirements: requirements.into_iter().collect() }
        }),
        1 => by_name.prop_map(|requirement| Selector { requirements: vec![requirement] }),
    ]
}

fn namespace() -> impl Strategy<Value = Namespace> {
    (select(&NAMESPACES[..]), labels()).prop_map(|(name, mut labels)| {
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
        Namespace {
            name: name.into(),
            labels,
        }
    })
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![4 => Just(Protocol::Tcp), 2 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn container_port() -> impl Strategy<Value = ContainerPort> {
    (
        option::weighted(0.8, select(&NAMES[..])),
        protocol(),
        select(&[53, 80, 8080][..]),
    )
        .prop_map(|(name, protocol, port)| ContainerPort {
            name: name.map(str::to_owned),
            protocol,
            port,
        })
}

fn pod_key() -> impl Strategy<Value = ObjectKey> {
    (select(&NAMESPACES[..]), select(&["p0", "p1", "p2"][..]))
        .prop_map(|(namespace, name)| ObjectKey::new(namespace, name))
}

fn pod() -> impl Strategy<Value = Pod> {
    let rare = || prop::bool::weighted(0.1);
    (
        (pod_key(), labels(), vec(container_port(), 0..=3)),
        (
            select(&["u0", "u1"][..]),
            0..3_i64,
            rare(),
            prop::bool::weighted(0.6),
            rare(),
            rare(),
        ),
        (
            option::weighted(0.8, 1..12_u8),
            option::weighted(0.7, 1..12_u8),
        ),
    )
        .prop_map(
            |(
                (key, labels, ports),
                (uid, created, terminating, local, host_network, finished),
                (four, six),
            )| {
                let four = four.map(|n| ip(&format!("10.0.0.{n}")));
                let six = six.map(|n| ip(&format!("fd00::{n:x}")));
                Pod {
                    key,
                    uid: uid.into(),
                    created,
                    terminating,
                    labels,
                    node: if local { HERE } else { "there" }.into(),
                    host_network,
                    finished,
                    addresses: four.into_iter().chain(six).collect(),
                    ports,
                }
            },
        )
}

fn block() -> impl Strategy<Value = PolicyPeer> {
    (select(&BLOCKS[..]), vec(select(&BLOCKS[..]), 0..=4)).prop_map(|(cidr, except)| {
        let cidr: ipnet::IpNet = cidr.parse().expect("a prefix");
        let except: BTreeSet<ipnet::IpNet> = except
            .into_iter()
            .map(|e| e.parse().expect("a prefix"))
            .filter(|e| cidr.contains(e) && *e != cidr)
            .collect();
        PolicyPeer::Block {
            cidr,
            except: except.into_iter().collect(),
        }
    })
}

fn peer() -> impl Strategy<Value = PolicyPeer> {
    prop_oneof![
        2 => selector().prop_map(PolicyPeer::Pods),
        2 => (selector(), selector()).prop_map(|(n, p)| PolicyPeer::Namespaces(n, p)),
        3 => block(),
    ]
}

fn policy_port() -> impl Strategy<Value = PolicyPort> {
    const RANGES: [(u16, u16); 6] = [
        (53, 53),
        (80, 80),
        (8080, 8080),
        (80, 90),
        (81, 8080),
        (1, 65535),
    ];
    let port = prop_oneof![
        1 => Just(PortMatch::All),
        4 => select(&RANGES[..]).prop_map(|(first, last)| PortMatch::Range(first, last)),
        3 => select(&NAMES[..]).prop_map(|name| PortMatch::Named(name.into())),
    ];
    (protocol(), port).prop_map(|(protocol, port)| PolicyPort { protocol, port })
}

fn rule() -> impl Strategy<Value = Rule> {
    (
        option::weighted(0.85, vec(peer(), 1..=3)),
        option::weighted(0.8, vec(policy_port(), 1..=3)),
    )
        .prop_map(|(peers, ports)| Rule { peers, ports })
}

fn policy_key() -> impl Strategy<Value = ObjectKey> {
    (select(&NAMESPACES[..]), select(&["q0", "q1"][..]))
        .prop_map(|(namespace, name)| ObjectKey::new(namespace, name))
}

fn policy() -> impl Strategy<Value = Policy> {
    let rules = || option::weighted(0.7, vec(rule(), 0..=2));
    (policy_key(), selector(), rules(), rules()).prop_map(|(key, selector, ingress, egress)| {
        Policy {
            key,
            selector,
            ingress,
            egress,
        }
    })
}

fn change() -> impl Strategy<Value = ObjectChange> {
    let node = vec(select(&NODE[..]), 0..=2)
        .prop_map(|a| ObjectChange::NodeAddresses(a.into_iter().map(ip).collect()));
    prop_oneof![
        8 => pod().prop_map(ObjectChange::Pod),
        3 => pod_key().prop_map(ObjectChange::PodGone),
        8 => policy().prop_map(ObjectChange::Policy),
        2 => policy_key().prop_map(ObjectChange::PolicyGone),
        3 => namespace().prop_map(ObjectChange::Namespace),
        1 => select(&NAMESPACES[..]).prop_map(|n| ObjectChange::NamespaceGone(n.into())),
        1 => node,
    ]
}

/// A world, as the changes that make it.
fn world() -> impl Strategy<Value = Snapshot> {
    (
        vec(namespace(), 0..=3),
        vec(pod(), 2..=8),
        vec(policy(), 1..=5),
    )
        .prop_map(|(namespaces, pods, policies)| {
            let mut world = Snapshot {
                node: HERE.into(),
                node_addresses: NODE.map(ip).into(),
                ..Snapshot::default()
            };
            let namespaces = namespaces.into_iter().map(ObjectChange::Namespace);
            let pods = pods.into_iter().map(ObjectChange::Pod);
            let policies = policies.into_iter().map(ObjectChange::Policy);
            for change in namespaces.chain(pods).chain(policies) {
                world.apply(&change);
            }
            world
        })
}

/// Everybody a pod could talk to in any of these worlds.
fn remotes(worlds: &[&Snapshot]) -> Vec<IpAddr> {
    let pods = worlds
        .iter()
        .flat_map(|w| w.pods.values())
        .flat_map(|pod| pod.addresses.clone());
    let fixed = OUTSIDE.into_iter().chain(NODE).map(ip);
    let all: BTreeSet<_> = pods.chain(fixed).collect();
    all.into_iter().collect()
}

/// Whether a question is one a pod asks about itself: the judge answers that without the tables.
fn about_itself(world: &Snapshot, q: &Question) -> bool {
    world.owner(q.remote).is_some_and(|pod| pod.key == q.pod)
}

fn check(world: &Snapshot, plane: &Plane) -> Result<(), TestCaseError> {
    for q in questions(world, &remotes(&[world])) {
        if !about_itself(world, &q) {
            prop_assert_eq!(plane.decide(&q), expected(world, &q), "{:?}", q);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2000, ..ProptestConfig::default() })]

    /// The judge, on packets and compiled tables, says what the reference says.
    #[test]
    fn compiled_tables_mean_what_the_policies_say(world in world()) {
        let (index, mut plane) = compile(world.objects());
        prop_assert_eq!(plane.tables.content(), index.tables());
        for q in questions(&world, &remotes(&[&world])) {
            let own = world.pods[&q.pod].addresses.iter().find(|own| {
                own.is_ipv4() == q.remote.is_ipv4()
                    && world.owner(**own).is_some_and(|owner| owner.key == q.pod)
            });
            if let Some(own) = own {
                prop_assert_eq!(plane.judge(*own, &q), expected(&world, &q), "{:?}", q);
            }
        }
    }

    /// The same objects in another order and in other batches give the same tables, byte for byte.
    #[test]
    fn order_and_batches_do_not_matter(
        world in world(),
        order in any::<prop::sample::Index>(),
        batch in 1..4_usize,
        reverse in any::<bool>(),
    ) {
        let (whole, _) = compile(world.objects());
        let mut objects = world.objects();
        let middle = order.index(objects.len());
        objects.rotate_left(middle);
        if reverse {
            objects.reverse();
        }
        let mut index = Index::new(HERE);
        let mut plane = Plane::default();
        for batch in objects.chunks(batch) {
            plane.write_change(&index.apply(batch.iter().cloned()));
        }
        settle(&mut index, &mut plane);
        prop_assert_eq!(index.tables(), whole.tables());
        prop_assert_eq!(plane.tables.content(), index.tables());
    }

    /// A manifest read again changes nothing.
    #[test]
    fn the_same_objects_again_change_nothing(world in world()) {
        let (mut index, mut plane) = compile(world.objects());
        settle(&mut index, &mut plane);
        let generation = index.generation();
        prop_assert!(index.apply(world.objects()).is_empty());
        prop_assert_eq!(index.generation(), generation);
        prop_assert!(index.settled());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2000, ..ProptestConfig::default() })]

    /// After every batch of a random history the tables say what the reference says of the objects of that moment; and when
    /// all has come to rest nothing tells them from tables compiled from nothing.
    #[test]
    fn every_history_ends_in_the_tables_of_its_last_objects(
        batches in vec((vec(change(), 1..=4), 0..4_u8), 1..=12),
    ) {
        let mut world = Snapshot { node: HERE.into(), ..Snapshot::default() };
        let mut index = Index::new(HERE);
        let mut plane = Plane::default();
        for (changes, rest) in batches {
            for change in &changes {
                world.apply(change);
            }
            plane.write_change(&index.apply(changes));
            prop_assert_eq!(plane.tables.content(), index.tables());
            // Mostly nothing, sometimes an older generation, sometimes the last one.
            let safe = match rest {
                0 => Some(index.generation()),
                1 => Some(Generation(index.generation().0.saturating_sub(1))),
                _ => None,
            };
            if let Some(safe) = safe {
                plane.write(&index.settle(safe));
                prop_assert_eq!(plane.tables.content(), index.tables());
            }
            check(&world, &plane)?;
            let known: Vec<_> = plane.isolation.values().cloned().collect();
            let mut local: Vec<_> = index.local_pods().map(|p| p.key).collect();
            local.sort();
            prop_assert_eq!(known.iter().map(|i| i.pod.clone()).collect::<Vec<_>>(), local);
        }
        settle(&mut index, &mut plane);
        check(&world, &plane)?;
        let (fresh, _) = compile(world.objects());
        prop_assert_eq!(index.tables(), fresh.tables());
        prop_assert_eq!(plane.tables.content(), fresh.tables());
        let isolations = |index: &Index| {
            let mut all: Vec<_> =
                index.local_pods().map(|p| (p.key, p.ingress, p.egress, p.addresses)).collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        prop_assert_eq!(isolations(&index), isolations(&fresh));
    }
}

/// The tables at every moment of a history, one element written at a time.
struct Timeline {
    moments: Vec<Plane>,
    /// Where each generation was complete: a packet that started later saw nothing older.
    complete: Vec<(Generation, usize)>,
}

impl Timeline {
    fn last(&self) -> &Plane {
        &self.moments[self.moments.len() - 1]
    }

    fn step(&mut self, write: impl FnOnce(&mut Plane)) {
        let mut next = self.last().clone();
        write(&mut next);
        self.moments.push(next);
    }

    /// The answer to a packet that reads the endpoint, the peer, the row and the ports at these moments.
    fn under_way(&self, moments: [usize; 4], q: &Question) -> bool {
        let [endpoint, peer, row, ports] = moments.map(|at| &self.moments[at]);
        decide_across(
            endpoint.isolation(q),
            &peer.tables,
            &row.tables,
            &ports.tables,
            q,
        )
    }

    /// The first moment at which `generation` was complete.
    fn since(&self, generation: Generation) -> usize {
        self.complete
            .iter()
            .find(|(g, _)| *g >= generation)
            .map_or(0, |(_, at)| *at)
    }
}

/// Four moments from `start` to `end`, in order.
fn in_order(picks: &[prop::sample::Index; 4], start: usize, end: usize) -> [usize; 4] {
    let mut moments = picks.map(|pick| start + pick.index(end - start + 1));
    moments.sort_unstable();
    moments
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2000, ..ProptestConfig::default() })]

    /// While one object changes, element by element, every question has its old answer or its new one, and then only the
    /// new one while the old state is taken away; also for a packet that reads one table before and the next one after.
    #[test]
    fn no_moment_of_a_change_gives_a_third_answer(
        world in world(),
        before in vec(change(), 0..=3),
        change in change(),
        picks in vec(any::<[prop::sample::Index; 4]>(), 24),
    ) {
        // Stale terms of earlier changes may still be around.
        let (mut index, plane) = compile(world.objects());
        let mut timeline = Timeline { moments: vec![plane], complete: Vec::new() };
        let mut old = world;
        for earlier in before {
            old.apply(&earlier);
            let written = index.apply([earlier]);
            timeline.step(|plane| plane.write_change(&written));
        }
        let mut new = old.clone();
        new.apply(&change);
        timeline.moments.drain(..timeline.moments.len() - 1);
        timeline.complete.push((index.generation(), 0));

        let questions: Vec<_> = questions(&old, &remotes(&[&old, &new]))
            .into_iter()
            // A pod that is replaced, or of this node only before or after, has no isolation to speak of in between.
            .filter(|q| new.pods.get(&q.pod).is_some_and(|pod| {
                let before = &old.pods[&q.pod];
                pod.node == before.node && !pod.finished && !pod.host_network
            }))
            .filter(|q| !about_itself(&old, q) && !about_itself(&new, q))
            .map(|q| { let answers = (expected(&old, &q), expected(&new, &q)); (q, answers) })
            .collect();

        let before_change = index.generation();
        let change = index.apply([change]);
        for edit in &change.add {
            timeline.step(|plane| plane.tables.write(edit));
        }
        for flip in &change.flip {
            timeline.step(|plane| plane.flip(flip));
        }
        let changed = timeline.moments.len() - 1;
        timeline.complete.push((index.generation(), changed));
        // What the change before left behind may go meanwhile: packets of its time are still under way.
        for edit in index.settle(before_change) {
            timeline.step(|plane| plane.tables.write(&edit));
        }
        let cleaned = timeline.moments.len() - 1;
        timeline.complete.push((index.generation(), cleaned));
        for (at, moment) in timeline.moments.iter().enumerate() {
            for (q, (old, new)) in &questions {
                let answer = moment.decide(q);
                prop_assert!(answer == *old || answer == *new, "moment {at} of {changed}: {q:?} was {old}, will be {new}");
            }
        }
        // Packets that are under way while the change is written.
        for pick in &picks {
            let moments = in_order(pick, 0, cleaned);
            for (q, (old, new)) in &questions {
                let answer = timeline.under_way(moments, q);
                prop_assert!(answer == *old || answer == *new, "under way in {moments:?} of {changed}: {q:?}");
            }
        }

        // What is left of the old state goes, in rounds.
        for _ in 0..5 {
            if index.settled() {
                break;
            }
            let safe = index.generation();
            let start = timeline.since(safe);
            for edit in index.settle(safe) {
                timeline.step(|plane| plane.tables.write(&edit));
            }
            let end = timeline.moments.len() - 1;
            timeline.complete.push((index.generation(), end));
            for at in start..=end {
                for (q, (_, new)) in &questions {
                    prop_assert_eq!(timeline.moments[at].decide(q), *new, "settling, moment {}: {:?}", at, q);
                }
            }
            for pick in &picks {
                let moments = in_order(pick, start, end);
                for (q, (_, new)) in &questions {
                    let answer = timeline.under_way(moments, q);
                    prop_assert_eq!(answer, *new, "under way while settling in {:?}: {:?}", moments, q);
                }
            }
        }
        prop_assert!(index.settled());
        prop_assert_eq!(timeline.last().tables.content(), index.tables());
    }
}
