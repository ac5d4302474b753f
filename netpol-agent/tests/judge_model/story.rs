//! What may happen in a story, told so that a failing one can be read.

use std::{cell::Cell, collections::BTreeMap, fmt};

use netpol_common::{Direction, protocol};
use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    model::{Act, Policy, Ports, Tuple, Who},
    play::{Translation, Wire, World, address},
};

#[derive(Clone, Debug)]
pub enum Action {
    /// The pod of a conversation says something; whoever answers is chosen if nobody has been yet.
    Says(Tuple, Act, Translation),
    /// Its remote end does.
    Hears(Tuple, Act),
    /// A pod's policies change.
    Policy(Who, Direction, Policy),
    Wait(u32),
    /// The entry of a conversation is evicted.
    Evict(Tuple),
    /// All that the hooks between the pods have noted is.
    EvictTranslated,
    /// kube-proxy forgets who answers: the next packet on the same ports may go elsewhere.
    Rebalance,
    /// Fragments of one datagram between a pod and a plain peer outside, in this order.
    Fragments(Tuple, Direction, u16, Vec<Fragment>),
    /// An ICMP error about a conversation; forged: about a packet of somebody else.
    Error(Tuple, Direction, bool),
    /// A pod sends with somebody else's address, or gets what is for somebody else.
    Foreign(Tuple, Direction, Who),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment {
    First,
    Later,
    /// Begins inside the transport header.
    Overlapping,
}

fn name(number: u8) -> &'static str {
    match number {
        protocol::TCP => "TCP",
        protocol::UDP => "UDP",
        protocol::SCTP => "SCTP",
        _ => "echo",
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let talk = |t: &Tuple, arrow| {
            format!(
                "{} {:?}:{} {arrow} {:?}:{}",
                name(t.protocol),
                t.pod,
                t.pod_port,
                t.remote,
                t.port
            )
        };
        let arrow = |d: &Direction| if *d == Direction::Egress { "->" } else { "<-" };
        match self {
            Self::Says(t, act, way) if t.remote.is_virtual() => {
                let (who, port) = way.backend;
                let masquerade = if way.masqueraded { ", masqueraded" } else { "" };
                let talk = talk(t, "->");
                write!(f, "{talk} {act:?} (to {who:?}:{port}{masquerade}, if new)")
            }
            Self::Says(t, act, _) => write!(f, "{} {act:?}", talk(t, "->")),
            Self::Hears(t, act) => write!(f, "{} {act:?}", talk(t, "<-")),
            Self::Policy(pod, d, None) => write!(f, "{pod:?} {d}: no policy"),
            Self::Policy(pod, d, Some(rules)) => write!(f, "{pod:?} {d}: only {rules:?}"),
            Self::Wait(ticks) => write!(f, "{ticks} ticks later"),
            Self::Evict(t) => write!(f, "evicted: {}", talk(t, "--")),
            Self::EvictTranslated => write!(f, "evicted: what was noted after translation"),
            Self::Rebalance => write!(f, "conntrack forgets who answers"),
            Self::Fragments(t, d, id, pieces) => {
                write!(
                    f,
                    "{} in fragments of datagram {id}: {pieces:?}",
                    talk(t, arrow(d))
                )
            }
            Self::Error(t, d, forged) => {
                let kind = if *forged { "forged " } else { "" };
                write!(f, "{kind}ICMP error, {d}, about {}", talk(t, "--"))
            }
            Self::Foreign(t, d, who) => {
                write!(f, "{} with the address of {who:?}", talk(t, arrow(d)))
            }
        }
    }
}

fn tuples() -> impl Strategy<Value = Tuple> {
    let numbers = vec![
        protocol::TCP,
        protocol::TCP,
        protocol::UDP,
        protocol::SCTP,
        protocol::ICMP,
    ];
    let remotes = vec![
        Who::B,
        Who::B,
        Who::X,
        Who::Y,
        Who::Service,
        Who::Service,
        Who::Node,
    ];
    let pods = select(vec![Who::A, Who::A, Who::B]);
    (
        pods,
        select(numbers),
        select(remotes),
        any::<bool>(),
        0..2u16,
    )
        .prop_map(|(pod, number, remote, client, n)| {
            let remote = if remote == pod { Who::A } else { remote };
            let echo = number == protocol::ICMP && !remote.is_virtual();
            let (pod_port, port) = match remote {
                _ if echo => (5, n),
                Who::Node if client => (40_000 + n, 30_080),
                // A Service opens nothing.
                _ if client || remote == Who::Service => (40_000 + n, 80),
                _ => (80, 40_000 + n),
            };
            Tuple {
                pod,
                protocol: if echo || number != protocol::ICMP {
                    number
                } else {
                    protocol::UDP
                },
                remote,
                pod_port,
                port,
            }
        })
}

/// The same conversation with a plain peer outside, if it is with anybody else.
fn outside(tuple: &Tuple) -> Tuple {
    Tuple {
        remote: match tuple.remote {
            Who::X => Who::X,
            _ => Who::Y,
        },
        port: if tuple.port == 30_080 { 80 } else { tuple.port },
        ..*tuple
    }
}

fn policies() -> impl Strategy<Value = Policy> {
    let rule = (
        select(vec![Who::A, Who::B, Who::X, Who::Y]),
        select(vec![Ports::All, Ports::Tcp, Ports::On(80), Ports::On(8080)]),
    );
    prop::option::weighted(
        0.75,
        vec(rule, 0..4).prop_map(|rules| rules.into_iter().collect::<BTreeMap<_, _>>()),
    )
}

/// A story of a few conversations.
pub fn stories() -> impl Strategy<Value = Vec<Action>> {
    vec(tuples(), 1..6).prop_flat_map(|told| vec(actions(told), 1..60))
}

fn actions(told: Vec<Tuple>) -> impl Strategy<Value = Action> {
    let tuples = || select(told.clone());
    let outside = || select(told.iter().map(outside).collect::<Vec<_>>());
    let act = || {
        select(vec![
            Act::Open,
            Act::Open,
            Act::Go,
            Act::Go,
            Act::Go,
            Act::Finish,
            Act::Abort,
        ])
    };
    let way = (
        select(vec![Who::A, Who::B, Who::X, Who::Y, Who::Node]),
        any::<bool>(),
        any::<bool>(),
    );
    let way = way.prop_map(|(who, masqueraded, by_bridge)| Translation {
        backend: (who, 8080),
        masqueraded,
        by_bridge,
    });
    let direction = || select(Direction::BOTH.to_vec());
    let piece = select(vec![
        Fragment::First,
        Fragment::Later,
        Fragment::Later,
        Fragment::Overlapping,
    ]);
    prop_oneof![
        10 => (tuples(), act(), way).prop_map(|(t, a, w)| Action::Says(t, a, w)),
        8 => (tuples(), act()).prop_map(|(t, a)| Action::Hears(t, a)),
        4 => (select(vec![Who::A, Who::A, Who::B]), direction(), policies())
            .prop_map(|(p, d, policy)| Action::Policy(p, d, policy)),
        1 => select(vec![1, 11, 31, 60, 170, 6800]).prop_map(Action::Wait),
        1 => tuples().prop_map(Action::Evict),
        1 => Just(Action::EvictTranslated),
        1 => Just(Action::Rebalance),
        1 => (outside(), direction(), 0..2u16, vec(piece, 1..4))
            .prop_map(|(t, d, id, pieces)| Action::Fragments(t, d, id, pieces)),
        1 => (tuples(), direction(), any::<bool>()).prop_map(|(t, d, forged)| Action::Error(t, d, forged)),
        1 => (outside(), direction(), select(vec![Who::B, Who::X, Who::Service, Who::Node]))
            .prop_map(|(t, d, who)| Action::Foreign(t, d, who)),
    ]
}

impl Action {
    /// Plays it on both sides; tells where they differ.
    pub fn play(&self, world: &mut World) -> Result<(), String> {
        match self {
            Self::Says(tuple, act, way) => world.pod_says(tuple, *act, *way).map(drop),
            Self::Hears(tuple, act) => world.pod_hears(tuple, *act).map(drop),
            Self::Policy(pod, direction, policy) => {
                world.set_policy(*pod, *direction, policy);
                Ok(())
            }
            Self::Wait(ticks) => {
                world.wait(*ticks);
                Ok(())
            }
            Self::Evict(tuple) => {
                world.evict(tuple);
                Ok(())
            }
            Self::EvictTranslated => {
                world.evict_translated();
                Ok(())
            }
            Self::Rebalance => {
                world.conntrack.clear();
                Ok(())
            }
            Self::Fragments(tuple, direction, id, pieces) => pieces
                .iter()
                .try_for_each(|&piece| fragment(world, tuple, *direction, (*id, piece))),
            Self::Error(tuple, direction, forged) => error(world, tuple, *direction, *forged),
            Self::Foreign(tuple, direction, who) => foreign(world, tuple, *direction, *who),
        }
    }
}

fn hook(world: &World, tuple: &Tuple, direction: Direction, bytes: &[u8]) -> Result<bool, String> {
    let mark = Cell::new(0xe000);
    world.pod_hook(tuple.pod, direction, bytes, (3, &mark))
}

fn expect(what: &str, judge: bool, model: bool) -> Result<(), String> {
    if judge == model {
        return Ok(());
    }
    Err(format!("{what}: the judge says {judge}, the model {model}"))
}

fn fragment(
    world: &mut World,
    tuple: &Tuple,
    direction: Direction,
    (id, piece): (u16, Fragment),
) -> Result<(), String> {
    let wire = Wire::of(tuple, direction, Act::Go);
    let mut bytes = wire.bytes();
    bytes[18..20].copy_from_slice(&id.to_be_bytes());
    let (field, long): (u16, usize) = match piece {
        Fragment::First => (0x2000, 0),
        Fragment::Later => (0x2000 | 64, 8),
        // Every header here but that of UDP and of an echo is longer than eight bytes.
        Fragment::Overlapping => (0x2000 | 1, 8),
    };
    bytes[20..22].copy_from_slice(&field.to_be_bytes());
    bytes.resize(bytes.len() + long, 0xff);
    let length = (bytes.len() - 14) as u16;
    bytes[16..18].copy_from_slice(&length.to_be_bytes());
    let passes = hook(world, tuple, direction, &bytes)?;

    let (from, to) = (wire.source.0, wire.destination.0);
    let whole = |world: &mut World| match direction {
        Direction::Egress => world
            .model
            .sends(tuple, Act::Go, (tuple.remote, tuple.port)),
        Direction::Ingress => world.model.hears(tuple, Act::Go, false) == Some(true),
    };
    let isolated = world.model.isolated(tuple.pod, direction);
    let known = world.model.knows_fragment(*tuple, (from, to, id));
    let longer = |of: &Tuple| matches!(of.protocol, protocol::TCP | protocol::SCTP);
    let overwrites = piece == Fragment::Overlapping && known.as_ref().is_some_and(longer);
    let expected = match (piece, known) {
        (Fragment::First, _) => {
            let passes = whole(world);
            if passes {
                world.model.note_fragment(tuple, (from, to, id));
            }
            passes
        }
        (_, Some(_)) if overwrites => !isolated,
        (_, Some(of)) => match direction {
            Direction::Egress => world.model.sends(&of, Act::Go, (of.remote, of.port)),
            Direction::Ingress => world.model.hears(&of, Act::Go, false) == Some(true),
        },
        (_, None) => {
            let peer = tuple.remote;
            let about = (tuple.protocol, None);
            world.model.allows(tuple.pod, direction, peer, about)
        }
    };
    expect("a fragment passes", passes, expected)
}

fn error(world: &World, tuple: &Tuple, direction: Direction, forged: bool) -> Result<(), String> {
    let sends = direction == Direction::Egress;
    if tuple.remote.is_virtual() && sends {
        return Ok(());
    }
    // The quoted packet went the other way. A forged one was addressed to, or sent by, somebody else.
    let mut quoted = Wire::of(tuple, direction.reverse(), Act::Go);
    if forged && sends {
        quoted.destination.0 = Who::Y;
    } else if forged {
        quoted.source.0 = Who::Y;
    }
    let outer = Wire {
        protocol: protocol::UDP,
        ..Wire::of(tuple, direction, Act::Go)
    };
    let mut bytes = outer.bytes();
    bytes.truncate(34);
    bytes[23] = protocol::ICMP;
    bytes.extend([3, 3, 0, 0, 0, 0, 0, 0]);
    bytes.extend(&quoted.bytes()[14..]);
    let length = (bytes.len() - 14) as u16;
    bytes[16..18].copy_from_slice(&length.to_be_bytes());
    let passes = hook(world, tuple, direction, &bytes)?;
    let peer = tuple.remote;
    let expected = if forged && sends {
        Some(false)
    } else if forged {
        Some(world.model.complains_of_nothing(tuple.pod, direction, peer))
    } else {
        world.model.complains(tuple, direction, peer)
    };
    expected.map_or(Ok(()), |expected| {
        expect("an ICMP error passes", passes, expected)
    })
}

fn foreign(world: &World, tuple: &Tuple, direction: Direction, who: Who) -> Result<(), String> {
    let mut bytes = Wire::of(tuple, direction, Act::Go).bytes();
    if who == tuple.pod {
        return Ok(());
    }
    let at = if direction == Direction::Egress {
        26
    } else {
        30
    };
    let std::net::IpAddr::V4(other) = address(who) else {
        return Ok(());
    };
    bytes[at..at + 4].copy_from_slice(&other.octets());
    let passes = hook(world, tuple, direction, &bytes)?;
    expect("what carries somebody else's address passes", passes, false)
}
