//! Random packets: between few addresses and ports, so that they meet the flows of others.

use netpol_common::{chunk, protocol, tcp};
use proptest::prelude::*;

use super::{
    shot::{Body, Content, Entry, Hook, Mac, Piece, Quote, Shot},
    world::{Pod, VXLAN, Who},
};

pub fn pods() -> impl Strategy<Value = Pod> {
    prop_oneof![8 => Just(Pod::A), 4 => Just(Pod::B), 1 => Just(Pod::C)]
}

/// Who is at the other end.
pub fn peers() -> impl Strategy<Value = Who> {
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

pub fn anybody() -> impl Strategy<Value = Who> {
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

pub fn flags() -> impl Strategy<Value = u8> {
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
pub fn ports() -> impl Strategy<Value = (u16, u16)> {
    let far = vec![53u16, 79, 80, 80, 443, 8191, 8192, 8447, 8448, 9, VXLAN, 0];
    (
        prop::sample::select(vec![4000u16, 80, VXLAN]),
        prop::sample::select(far),
    )
}

/// What a flow can be kept for.
pub fn conversations() -> impl Strategy<Value = Body> {
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

pub fn bodies() -> impl Strategy<Value = Body> {
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
pub fn quotes() -> impl Strategy<Value = Body> {
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
pub fn shots(bodies: BoxedStrategy<Body>) -> impl Strategy<Value = Shot> {
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
pub fn oddities() -> impl Strategy<Value = Shot> {
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

pub fn entries() -> impl Strategy<Value = Entry> {
    prop_oneof![
        3 => Just(Entry::Uplink),
        2 => Just(Entry::Node),
        1 => pods().prop_map(Entry::Pod),
    ]
}

pub fn macs() -> impl Strategy<Value = Mac> {
    prop_oneof![
        3 => Just(Mac::Of(Pod::A)),
        1 => Just(Mac::Of(Pod::B)),
        1 => Just(Mac::Router),
        1 => Just(Mac::Group),
    ]
}

/// The identifications are few, so that pieces of one datagram meet those of another.
pub fn pieces() -> impl Strategy<Value = Piece> {
    let id = || 0u16..2;
    let offset = prop::sample::select(vec![8u16, 16, 24, 1480]);
    prop_oneof![
        1 => Just(Piece::Whole),
        3 => id().prop_map(|id| Piece::First { id }),
        3 => (id(), offset).prop_map(|(id, offset)| Piece::Later { id, offset }),
        1 => (id(), 0usize..20).prop_map(|(id, length)| Piece::Tiny { id, length }),
    ]
}
