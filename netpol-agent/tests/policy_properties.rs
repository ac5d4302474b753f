//! The compiler against the reference, on random small worlds: snapshots, sequences of changes, and every moment between
//! two states.

#[path = "policy_support/moments.rs"]
mod moments;
mod policy_support;
#[path = "policy_support/worlds.rs"]
mod worlds;

use moments::{Timeline, about_itself, decide, in_order, questions, remotes};
use netpol_agent::policy::{Generation, Index, reference::Snapshot};
use netpol_common::{Peer, Tables as _};
use policy_support::{HERE, Plane, compile, expected, settle};
use proptest::{collection::vec, prelude::*};
use worlds::{change, world};

fn check(world: &Snapshot, plane: &Plane) -> Result<(), TestCaseError> {
    for remote in remotes(&[world]) {
        let peer = plane.tables.host(&remote.into()).unwrap_or_default();
        let flags = [
            (Peer::NODE, world.node_addresses.contains(&remote)),
            (Peer::SERVICE, world.is_service(remote)),
        ];
        for (flag, wanted) in flags {
            prop_assert_eq!(peer.flags & flag != 0, wanted, "{}: flag {}", remote, flag);
        }
    }
    for q in questions(world, &remotes(&[world])) {
        if !about_itself(world, &q) {
            prop_assert_eq!(decide(plane, &q), expected(world, &q), "{:?}", q);
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
            // What goes to a Service is judged where it leaves; what comes from one nobody has sent.
            if let Some(own) = own
                && !world.is_service(q.remote)
            {
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
                let answer = decide(moment, q);
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
                    prop_assert_eq!(decide(&timeline.moments[at], q), *new, "settling, moment {}: {:?}", at, q);
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
