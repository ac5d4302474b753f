//! Random stories: few addresses and ports, so that packets meet the flows of others.

use netpol_common::{Deferral, Direction, chunk, protocol, tcp};
use proptest::{prelude::*, sample::Index};

use super::{
    shot::{Body, Content, Entry, Hook, Mac, Mark, Piece, Quote, Shot},
    story::{Act, Change, Complaint, Planted, Raising, Story, Twist, Visit},
    world::{Pod, VXLAN, Who, profiles},
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

fn pods() -> impl Strategy<Value = Pod> {
    prop_oneof![8 => Just(Pod::A), 4 => Just(Pod::B), 1 => Just(Pod::C)]
}

/// Who is at the other end.
fn peers() -> impl Strategy<Value = Who> {
    prop_oneof![
        4 => Just(Who::Friend),
        2 => Just(Who::Named),
        2 => Just(Who::Block),
        1 => Just(Who::Stranger),
        3 => Just(Who::Node),
        3 => Just(Who::Service),
        2 => Just(Who::External),
        2 => Just(Who::PodB),
        1 => anybody(),
    ]
}

fn anybody() -> impl Strategy<Value = Who> {
    prop::sample::select(vec![
        Who::PodA,
        Who::PodB,
        Who::PodC,
        Who::Friend,
        Who::Node,
        Who::Group,
        Who::Broadcast,
        Who::Loopback,
        Who::Nobody,
        Who::LinkLocal,
        Who::OtherLink,
        Who::Mapped,
        Who::Bare,
    ])
}

fn flags() -> impl Strategy<Value = u8> {
    prop_oneof![
        2 => Just(tcp::SYN),
        1 => Just(tcp::SYN | tcp::ACK),
        4 => Just(tcp::ACK),
        1 => Just(tcp::FIN | tcp::ACK),
        1 => Just(tcp::RST),
        1 => any::<u8>(),
    ]
}

/// The port of who opens, and that of who is spoken to.
fn ports() -> impl Strategy<Value = (u16, u16)> {
    let far = vec![53u16, 79, 80, 80, 443, 8191, 8192, 8447, 8448, 9, VXLAN, 0];
    (
        prop::sample::select(vec![4000u16, 80, VXLAN]),
        prop::sample::select(far),
    )
}

/// What a flow can be kept for.
fn conversations() -> impl Strategy<Value = Body> {
    let chunks = vec![
        chunk::INIT,
        chunk::INIT,
        0,
        chunk::ABORT,
        chunk::SHUTDOWN_COMPLETE,
    ];
    prop_oneof![
        4 => (ports(), prop_oneof![2 => Just(tcp::SYN), 1 => flags()])
            .prop_map(|(ports, flags)| Body::Tcp { ports, flags }),
        3 => ports().prop_map(|ports| Body::Udp { ports }),
        1 => (ports(), prop::sample::select(chunks))
            .prop_map(|(ports, chunk)| Body::Sctp { ports, chunk }),
        2 => (0u16..2, prop::bool::weighted(0.3))
            .prop_map(|(identifier, reply)| Body::Echo { identifier, reply }),
        1 => Just(Body::Other(protocol::GRE)),
        1 => Just(Body::Other(50)),
    ]
}

fn bodies() -> impl Strategy<Value = Body> {
    let numbers = vec![
        0u8,
        2,
        protocol::IPV4,
        33,
        protocol::IPV6,
        43,
        44,
        protocol::GRE,
        50,
        51,
        60,
        135,
        136,
        139,
    ];
    // Router discovery, redirects, neighbour and listener discovery of both families, and what nobody knows.
    let kinds = vec![
        9u8, 10, 13, 130, 131, 132, 133, 134, 135, 136, 137, 143, 200,
    ];
    prop_oneof![
        6 => conversations(),
        1 => prop::sample::select(numbers).prop_map(Body::Other),
        2 => (
            prop::sample::select(kinds),
            prop_oneof![2 => Just(Who::PodA), 1 => anybody()],
            prop::option::of((0u8..4, macs())),
        )
            .prop_map(|(kind, target, option)| Body::Icmp { kind, target, option }),
        1 => quotes(),
    ]
}

/// An error about nothing that was.
fn quotes() -> impl Strategy<Value = Body> {
    let kinds = prop::sample::select(vec![1u8, 2, 3, 4, 5, 11, 12, 137]);
    (
        kinds,
        anybody(),
        anybody(),
        conversations(),
        pieces(),
        0usize..80,
    )
        .prop_map(|(kind, sender, receiver, body, piece, kept)| Body::Quotes {
            kind,
            quote: Box::new(Quote {
                sender,
                receiver,
                body,
                headers: Vec::new(),
                piece,
                kept,
            }),
        })
}

/// Honest packets to and from pods.
fn shots(bodies: BoxedStrategy<Body>) -> impl Strategy<Value = Shot> {
    (
        pods(),
        any::<bool>(),
        any::<bool>(),
        peers(),
        bodies,
        entries(),
    )
        .prop_map(|(pod, sends, v6, peer, body, entry)| {
            if sends {
                Shot::honest(Hook::Sends(pod), v6, (pod.who(), peer), body)
            } else {
                let mut shot = Shot::honest(Hook::Hears(pod), v6, (peer, pod.who()), body);
                shot.entry = entry;
                shot
            }
        })
}

/// What is not IP, or not at once; and what stays on its link.
fn oddities() -> impl Strategy<Value = Shot> {
    let types = prop::sample::select(vec![
        0x8100u16, 0x88a8, 0x8847, 0x0026, 0x0805, 0x86dd, 0x0800,
    ]);
    let arp = (
        macs(),
        anybody(),
        prop_oneof![4 => Just(1u8), 1 => any::<u8>()],
    )
        .prop_map(|(mac, who, hardware)| Content::Arp {
            speaker: (mac, who),
            hardware,
        });
    let typed =
        (types, anybody()).prop_map(|(ether_type, sender)| Content::Type { ether_type, sender });
    let kinds = prop::sample::select(vec![130u8, 131, 132, 133, 134, 135, 136, 137, 143]);
    let target = prop_oneof![2 => Just(Who::PodA), 1 => Just(Who::LinkLocal), 1 => anybody()];
    let receiver = prop_oneof![Just(Who::Group), Just(Who::OtherLink), Just(Who::Friend)];
    let option = prop::option::of((0u8..4, macs()));
    let on_link = (kinds, target, receiver, option, any::<bool>()).prop_map(
        |(kind, target, receiver, option, own)| Content::Ip {
            v6: true,
            sender: if own { Who::LinkLocal } else { Who::PodA },
            receiver,
            body: Body::Icmp {
                kind,
                target,
                option,
            },
            piece: Piece::Whole,
            headers: Vec::new(),
            // What no router can have passed on.
            hop_limit: if matches!(kind, 133..=137) { 255 } else { 1 },
        },
    );
    let contents = prop_oneof![2 => arp, 1 => typed, 3 => on_link];
    (pods(), any::<bool>(), contents).prop_map(|(pod, sends, content)| {
        let hook = if sends {
            Hook::Sends(pod)
        } else {
            Hook::Hears(pod)
        };
        let nothing = Body::Other(50);
        Shot {
            content,
            ..Shot::honest(hook, true, (pod.who(), Who::Friend), nothing)
        }
    })
}

fn entries() -> impl Strategy<Value = Entry> {
    prop_oneof![
        3 => Just(Entry::Uplink),
        2 => Just(Entry::Node),
        1 => pods().prop_map(Entry::Pod),
    ]
}

fn macs() -> impl Strategy<Value = Mac> {
    prop_oneof![
        3 => Just(Mac::Of(Pod::A)),
        1 => Just(Mac::Of(Pod::B)),
        1 => Just(Mac::Router),
        1 => Just(Mac::Group),
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

/// The identifications are few, so that pieces of one datagram meet those of another.
fn pieces() -> impl Strategy<Value = Piece> {
    let id = || 0u16..2;
    let offset = prop::sample::select(vec![8u16, 16, 24, 1480]);
    prop_oneof![
        1 => Just(Piece::Whole),
        3 => id().prop_map(|id| Piece::First { id }),
        3 => (id(), offset).prop_map(|(id, offset)| Piece::Later { id, offset }),
        1 => (id(), 0usize..20).prop_map(|(id, length)| Piece::Tiny { id, length }),
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
        1 => (prop::sample::select(&Pod::ALL[..]), prop::option::of(self::pods()))
            .prop_map(|(slot, leads)| Change::Slot(slot, leads)),
        3 => prop::sample::select(times()).prop_map(Change::Time),
        1 => (0u32..4).prop_map(Change::Evict),
        3 => (any::<Index>(), planted).prop_map(|(which, planted)| Change::Plant(which, planted)),
        1 => (pods(), direction(), prop::sample::select(vec![31u32, 32]))
            .prop_map(|(pod, direction, used)| Change::Spend(pod, direction, used)),
    ]
}
