//! Random stories of random packets ([`super::bodies`]).

use netpol_common::{Deferral, Direction};
use proptest::{prelude::*, sample::Index};

use super::{
    bodies::{
        anybody, bodies, conversations, entries, flags, macs, oddities, peers, pieces, pods, shots,
    },
    shot::{Hook, Mark},
    story::{Act, Change, Complaint, Planted, Raising, Story, Twist, Visit},
    world::{Pod, Who, profiles},
};

pub fn stories() -> impl Strategy<Value = Story> {
    (
        prop::bool::weighted(0.2),
        [profiles(), profiles()],
        prop::collection::vec(acts(), 1..12),
    )
        .prop_map(|(narrow, profiles, acts)| Story {
            narrow,
            profiles,
            acts,
        })
}

fn acts() -> impl Strategy<Value = Act> {
    let twists = || prop::collection::vec(twists(), 0..3);
    let turn = (
        prop::option::weighted(0.3, raising(policies().boxed())),
        any::<bool>(),
        flags(),
    );
    prop_oneof![
        6 => (shots(bodies().boxed()), twists()).prop_map(|(shot, twists)| Act::Packet(shot, twists)),
        1 => (oddities(), twists()).prop_map(|(shot, twists)| Act::Packet(shot, twists)),
        4 => (any::<Index>(), any::<bool>(), twists())
            .prop_map(|(which, back, twists)| Act::Again(which, back, twists)),
        4 => (any::<Index>(), complaints(), prop::collection::vec(twists_of_place(), 0..2))
            .prop_map(|(which, complaint, twists)| Act::Complaint(which, complaint, twists)),
        4 => (shots(conversations().boxed()), prop::collection::vec(turn, 1..6))
            .prop_map(|(shot, rest)| Act::Talk(shot, rest)),
        2 => (shots(bodies().boxed()), any::<bool>(), prop::collection::vec(pieces(), 1..5))
            .prop_map(|(shot, back, pieces)| Act::Pieces(shot, back, pieces)),
        4 => visits().prop_map(Act::Visit),
        4 => raising(changes().boxed()).prop_map(Act::Change),
    ]
}

fn hooks() -> impl Strategy<Value = Hook> {
    prop_oneof![
        2 => pods().prop_map(Hook::Sends),
        2 => pods().prop_map(Hook::Hears),
        2 => Just(Hook::Leaves),
        1 => Just(Hook::LeavesBare),
    ]
}

fn marks() -> impl Strategy<Value = Mark> {
    let deferral = (pods(), any::<bool>(), 0u32..34).prop_map(|(pod, urgent, ticket)| Deferral {
        slot: pod.slot(),
        urgent,
        ticket,
    });
    prop_oneof![
        2 => Just(Mark::Carried),
        // kube-proxy's and others', and all bits at once.
        1 => prop::sample::select(vec![0x4000u32, 0xe000, 0x1, u32::MAX]).prop_map(Mark::Raw),
        1 => any::<u32>().prop_map(Mark::Raw),
        3 => (deferral, prop::sample::select(vec![0u32, 0x4000, u32::MAX]))
            .prop_map(|(deferral, foreign)| Mark::Says(deferral, foreign)),
    ]
}

/// Where a packet is judged, and with what around it.
fn twists_of_place() -> impl Strategy<Value = Twist> {
    prop_oneof![
        1 => hooks().prop_map(Twist::Hook),
        1 => entries().prop_map(Twist::Entry),
        2 => marks().prop_map(Twist::Mark),
    ]
}

fn twists() -> impl Strategy<Value = Twist> {
    // Extension headers that are followed, and one that is not; source routes among the options.
    let kinds = prop::sample::select(vec![0u8, 1, 43, 44, 51, 60, 60, 131, 135, 139, 140]);
    let damage = (prop_oneof![12usize..24, 12usize..90], any::<u8>());
    prop_oneof![
        8 => twists_of_place(),
        1 => macs().prop_map(Twist::SourceMac),
        1 => macs().prop_map(Twist::DestinationMac),
        1 => anybody().prop_map(Twist::Sender),
        1 => peers().prop_map(Twist::Receiver),
        2 => pieces().prop_map(Twist::Piece),
        2 => prop::collection::vec(kinds, 0..10).prop_map(Twist::Headers),
        1 => prop::sample::select(vec![0u8, 1, 255]).prop_map(Twist::HopLimit),
        2 => flags().prop_map(Twist::Flags),
        1 => prop::collection::vec(prop::sample::select(vec![0u8, 1, 6, 17, 43, 44, 60]), 0..48)
            .prop_map(Twist::Tail),
        1 => prop::collection::vec(damage, 1..4).prop_map(Twist::Damage),
        1 => (14usize..90).prop_map(Twist::Cut),
    ]
}

fn complaints() -> impl Strategy<Value = Complaint> {
    // All of it, what RFC 792 promises of each family, and less than that.
    let kept = prop_oneof![4 => Just(usize::MAX), 1 => Just(28), 1 => Just(48), 2 => 0usize..60];
    (
        0usize..5,
        prop::option::weighted(0.4, peers()),
        kept,
        prop::option::weighted(0.15, peers()),
        prop::option::weighted(0.15, peers()),
    )
        .prop_map(
            |(kind, router, kept, forged_sender, forged_receiver)| Complaint {
                kind,
                router,
                kept,
                forged_sender,
                forged_receiver,
            },
        )
}

fn visits() -> impl Strategy<Value = Visit> {
    let pod = prop_oneof![2 => Just(Pod::A), 1 => Just(Pod::B)];
    let service = prop::sample::select(vec![Who::Service, Who::Service, Who::Node, Who::External]);
    let backend = prop::sample::select(vec![
        Who::Friend,
        Who::Friend,
        Who::Named,
        Who::Block,
        Who::PodA,
        Who::PodB,
        Who::PodC,
        Who::Node,
    ]);
    let arrival = prop_oneof![
        3 => Just(Hook::Leaves),
        2 => Just(Hook::LeavesBare),
        3 => pods().prop_map(Hook::Hears),
    ];
    let change = prop::option::weighted(0.2, raising(changes().boxed()));
    let round = (flags(), change, prop::option::weighted(0.7, entries()));
    (
        (pod, any::<bool>(), conversations()),
        (service, backend, arrival, any::<bool>()),
        prop::collection::vec(twists(), 0..2),
        prop::collection::vec(round, 1..5),
    )
        .prop_map(
            |((pod, v6, body), (service, backend, arrival, masqueraded), twists, rounds)| Visit {
                pod,
                v6,
                body,
                service,
                backend,
                arrival,
                masqueraded,
                twists,
                rounds,
            },
        )
}

/// What the agent does with the epoch, as a rule: flows that were allowed before go on where it does not rise.
fn raising(changes: BoxedStrategy<Change>) -> impl Strategy<Value = Raising> {
    (changes, prop::bool::weighted(0.8))
}

/// What a change of the policies does.
fn policies() -> impl Strategy<Value = Change> {
    let pods = prop_oneof![Just(Pod::A), Just(Pod::B)];
    prop_oneof![
        2 => Just(Change::Epoch),
        3 => (pods, profiles()).prop_map(|(pod, profile)| Change::Profile(pod, profile)),
        2 => any::<bool>().prop_map(Change::Row),
    ]
}

fn changes() -> impl Strategy<Value = Change> {
    // About the lifetimes: of fragments, of what kube-proxy masquerades, of UDP, of TCP in each phase.
    let times = || {
        vec![
            1u32, 9, 11, 23, 24, 29, 31, 56, 58, 93, 94, 168, 170, 6706, 6708,
        ]
    };
    let pods = || prop_oneof![Just(Pod::A), Just(Pod::B)];
    let direction = || prop::sample::select(&Direction::BOTH[..]);
    let planted = (
        (
            any::<bool>(),
            prop::bool::weighted(0.2),
            0u32..3,
            direction(),
        ),
        (0u8..5, 0u16..16),
        prop_oneof![3 => Just(0), 1 => prop::sample::select(times())],
        peers(),
        prop::sample::select(vec![80u16, 53, 79]),
    )
        .prop_map(
            |((settled, translated, changes, origin), (phase, flags), rested, backend, port)| {
                Planted {
                    settled,
                    translated,
                    changes,
                    origin,
                    phase,
                    flags,
                    rested,
                    backend,
                    port,
                }
            },
        );
    prop_oneof![
        8 => policies(),
        1 => pods().prop_map(Change::Gone),
        1 => (prop::sample::select(&Pod::ALL[..]), prop::option::of(super::bodies::pods()))
            .prop_map(|(slot, leads)| Change::Slot(slot, leads)),
        3 => prop::sample::select(times()).prop_map(Change::Time),
        1 => (0u32..4).prop_map(Change::Evict),
        3 => (any::<Index>(), planted).prop_map(|(which, planted)| Change::Plant(which, planted)),
        1 => (pods(), direction(), prop::sample::select(vec![31u32, 32]))
            .prop_map(|(pod, direction, used)| Change::Spend(pod, direction, used)),
    ]
}
