//! What is measured.

use std::net::IpAddr;

use netpol_common::{Deferral, MarkField, map, tcp};

use super::{
    frames::{self, CLIENT_PORT, End},
    world,
};
use crate::kernel::Context;

/// The row that most others are compared with.
pub const BARE_LOOKUP: &str = "bare lookup";
/// The same of an IPv6 packet.
pub const BARE_LOOKUP_SIX: &str = "bare lookup, IPv6";
const EMPTY: &str = "empty program";
const RECEIVED: &str = "pod_ingress: established";
const SENT: &str = "pod_egress: established";

/// The slot of the server, whose packets are judged at the loopback device.
pub const SERVER_SLOT: u32 = 0;
/// The slot of the pod at the other device, which has the address of the server's friend.
pub const NEIGHBOUR_SLOT: u32 = 1;
/// The port that the server's rules allow.
pub const PORT: u16 = 80;

/// How the flow tables are before a measurement. None: with the flows of [`openings`], and what other cases have left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Before {
    /// As other cases have left them.
    Any,
    /// Emptied, and only this many repeats: so many fit in beside the flows of [`openings`].
    Empty(u32),
    /// Full of flows that are being opened: this case fills them by itself.
    Full,
    /// With as many answered flows as there are repeats.
    Answered(u32),
}

/// One measured thing.
pub struct Case {
    /// A name for people.
    pub name: String,
    /// Whether the program is of the yardstick object.
    pub yardstick: bool,
    /// The program.
    pub program: &'static str,
    /// What it runs on.
    pub packet: Vec<u8>,
    /// The rest of what it runs on.
    pub context: Context,
    /// Whether policies select the server.
    pub isolated: bool,
    /// The verdict.
    pub passes: bool,
    /// The name of the case whose cost is 1.
    pub base: &'static str,
    /// At most this.
    pub target: Option<f64>,
    /// The flow tables before.
    pub before: Before,
}

impl Case {
    fn new(name: &str, program: &'static str, packet: Vec<u8>) -> Self {
        Self {
            name: name.to_owned(),
            yardstick: false,
            program,
            packet,
            context: Context::default(),
            isolated: true,
            passes: true,
            base: BARE_LOOKUP,
            target: None,
            before: Before::Any,
        }
    }

    fn yardstick(name: &str, program: &'static str, packet: Vec<u8>) -> Self {
        Self {
            yardstick: true,
            ..Self::new(name, program, packet)
        }
    }

    fn denied(self) -> Self {
        Self {
            passes: false,
            ..self
        }
    }

    fn at_most(self, target: f64) -> Self {
        Self {
            target: Some(target),
            ..self
        }
    }

    fn of(self, base: &'static str) -> Self {
        Self { base, ..self }
    }

    fn with(self, before: Before) -> Self {
        Self { before, ..self }
    }

    fn context(self, context: Context) -> Self {
        Self { context, ..self }
    }
}

/// So many flows fit in empty tables.
const FEW: u32 = 8_192;
/// So many records fit in an empty ring buffer.
const RECORDS: u32 = 5_000;

fn server(six: bool) -> End {
    (address(world::SERVER.0, six), PORT)
}

fn friend(six: bool) -> End {
    (address(world::FRIEND, six), CLIENT_PORT)
}

fn address(v4: std::net::Ipv4Addr, six: bool) -> IpAddr {
    if six {
        world::six(v4).into()
    } else {
        v4.into()
    }
}

/// The server as it opens connections.
const CLIENT: End = (IpAddr::V4(world::SERVER.0), CLIENT_PORT);
/// Where it is allowed to.
const GOAL: End = (IpAddr::V4(world::FRIEND), PORT);
/// A Service with that behind it.
const SERVICE: End = (IpAddr::V4(world::SERVICE), PORT);

/// The mark of a packet that the server sends to the Service.
fn mark(urgent: bool) -> u32 {
    let deferral = Deferral {
        slot: SERVER_SLOT,
        urgent,
        ticket: 0,
    };
    MarkField::DEFAULT.write(0, deferral)
}

/// The context of a packet of the server at another device, for a yardstick that marks it.
fn marked(device: u32, urgent: bool) -> Context {
    Context {
        device,
        control: [mark(urgent), 0],
        ..Context::default()
    }
}

/// One run that only changes what the tables know: a program of the agent, a packet and its context.
pub type Run = (&'static str, Vec<u8>, Context);

/// What opens the flows that the cases find: the server's with its friend in both directions and both families, the one with
/// the Service, and its neighbour's with the server.
pub fn openings(device: u32) -> Vec<Run> {
    let here = Context::default();
    let mut runs = vec![];
    for six in [false, true] {
        let opener = map::POD_INGRESS;
        runs.extend(handshake(opener, here, friend(six), server(six)));
        let (client, goal) = (
            (address(world::SERVER.0, six), CLIENT_PORT),
            (address(world::FRIEND, six), PORT),
        );
        runs.extend(handshake(map::POD_EGRESS, here, client, goal));
    }
    let there = Context { device, ..here };
    runs.extend(handshake(map::POD_INGRESS, there, CLIENT, GOAL));
    runs.extend([
        // The sender's hook leaves a ticket; each hook behind it reads the ticket of the mark that it is given.
        (
            map::POD_EGRESS,
            frames::segment(CLIENT, SERVICE, tcp::SYN),
            here,
        ),
        (
            map::HOST_EGRESS,
            frames::segment(CLIENT, GOAL, tcp::SYN),
            Context {
                mark: ticketed(),
                ..there
            },
        ),
        (
            map::POD_INGRESS,
            frames::segment(SERVICE, CLIENT, tcp::SYN | tcp::ACK),
            here,
        ),
        (
            map::POD_EGRESS,
            frames::segment(CLIENT, SERVICE, tcp::ACK),
            here,
        ),
        (
            map::POD_INGRESS,
            frames::fragment(friend(false), server(false), false),
            here,
        ),
    ]);
    runs
}

/// The mark that the server's hook gives to the first packet of its connection with the Service.
fn ticketed() -> u32 {
    let key = netpol_common::FlowKey {
        remote: SERVICE.0.into(),
        interface: crate::kernel::LOOPBACK,
        local_port: CLIENT.1,
        remote_port: SERVICE.1,
        protocol: u32::from(netpol_common::protocol::TCP),
    };
    let field = MarkField::DEFAULT;
    let deferral = Deferral {
        slot: SERVER_SLOT,
        urgent: true,
        ticket: field.ticket(key.ticket()),
    };
    field.write(0, deferral)
}

fn handshake(opener: &'static str, context: Context, from: End, to: End) -> [Run; 3] {
    let other = if opener == map::POD_INGRESS {
        map::POD_EGRESS
    } else {
        map::POD_INGRESS
    };
    let [syn, answer, ack] = frames::handshake(from, to);
    [
        (opener, syn, context),
        (other, answer, context),
        (opener, ack, context),
    ]
}

/// Everything, at the loopback device and at another one, which is `device`.
pub fn cases(device: u32) -> Vec<Case> {
    let received = |six| frames::segment(friend(six), server(six), tcp::ACK);
    let mut cases = vec![
        Case::yardstick(EMPTY, "empty", received(false)),
        Case::yardstick(BARE_LOOKUP, "bare_lookup", received(false)),
        Case::yardstick(BARE_LOOKUP_SIX, "bare_lookup", received(true)),
        Case::yardstick(
            "bare insertion into a flow table",
            "bare_insert",
            received(false),
        )
        .with(Before::Empty(FEW)),
    ];
    cases.extend(at_pod_ingress());
    cases.extend(at_pod_egress());
    cases.extend(deferred(device));
    cases
}

fn at_pod_ingress() -> Vec<Case> {
    let program = map::POD_INGRESS;
    let received = |six| frames::segment(friend(six), server(six), tcp::ACK);
    let opening = |six| frames::segment(friend(six), server(six), tcp::SYN);
    let syn = |from, port| {
        let to = (server(false).0, port);
        frames::segment((IpAddr::V4(from), CLIENT_PORT), to, tcp::SYN)
    };
    let about = frames::segment(server(false), friend(false), tcp::ACK);
    vec![
        Case::new(RECEIVED, program, received(false)).at_most(1.5),
        Case::new("pod_ingress: established, IPv6", program, received(true))
            .of(BARE_LOOKUP_SIX)
            .at_most(1.5),
        Case {
            isolated: false,
            ..Case::new(
                "pod_ingress: no policy selects the pod",
                program,
                received(false),
            )
            .at_most(1.5)
        },
        Case::yardstick("pod_ingress: new flow", "pod_ingress_new", opening(false))
            .with(Before::Empty(FEW))
            .at_most(3.0),
        Case::yardstick(
            "pod_ingress: new flow, IPv6",
            "pod_ingress_new",
            opening(true),
        )
        .of(BARE_LOOKUP_SIX)
        .with(Before::Empty(FEW))
        .at_most(3.0),
        Case::yardstick(
            "pod_ingress: new flow, table full",
            "pod_ingress_new",
            opening(false),
        )
        .with(Before::Full),
        Case::yardstick(
            "pod_ingress: first packet after an answer",
            "pod_ingress_answered",
            received(false),
        )
        .with(Before::Answered(FEW)),
        Case::new(
            "pod_ingress: from the node",
            program,
            syn(world::NODE_ADDRESS, PORT),
        )
        .context(Context {
            came_in_by: 0,
            ..Context::default()
        })
        .at_most(3.0),
        Case::new(
            "pod_ingress: first fragment",
            program,
            frames::fragment(friend(false), server(false), false),
        ),
        Case::new(
            "pod_ingress: later fragment",
            program,
            frames::fragment(friend(false), server(false), true),
        ),
        Case::new(
            "pod_ingress: ICMP error",
            program,
            frames::unreachable(IpAddr::V4(world::STRANGER), &about, server(false)),
        ),
        Case::new(
            "pod_ingress: denied, wrong port",
            program,
            syn(world::FRIEND, PORT + 1),
        )
        .denied()
        .at_most(3.0),
        Case::new(
            "pod_ingress: denied, other pod",
            program,
            syn(world::FOREIGNER, PORT),
        )
        .denied()
        .at_most(3.0),
        Case::new(
            "pod_ingress: denied, stranger",
            program,
            syn(world::STRANGER, PORT),
        )
        .denied()
        .at_most(3.0),
        Case::yardstick(
            "pod_ingress: denied and recorded",
            "pod_ingress_recorded",
            syn(world::STRANGER, PORT),
        )
        .denied()
        .with(Before::Empty(RECORDS)),
    ]
}

fn at_pod_egress() -> Vec<Case> {
    let program = map::POD_EGRESS;
    let sent = |six, flags| {
        let from = (address(world::SERVER.0, six), CLIENT_PORT);
        frames::segment(from, (address(world::FRIEND, six), PORT), flags)
    };
    vec![
        Case::new(SENT, program, sent(false, tcp::ACK)).at_most(1.5),
        Case::new(
            "pod_egress: established, IPv6",
            program,
            sent(true, tcp::ACK),
        )
        .of(BARE_LOOKUP_SIX)
        .at_most(1.5),
        Case {
            isolated: false,
            ..Case::new(
                "pod_egress: no policy selects the pod",
                program,
                sent(false, tcp::ACK),
            )
            .at_most(1.5)
        },
        Case::yardstick(
            "pod_egress: new flow",
            "pod_egress_new",
            sent(false, tcp::SYN),
        )
        .with(Before::Empty(FEW))
        .at_most(3.0),
        Case::new(
            "pod_egress: denied, stranger",
            program,
            frames::segment(CLIENT, (IpAddr::V4(world::STRANGER), PORT), tcp::SYN),
        )
        .denied()
        .at_most(3.0),
    ]
}

/// What a pod sends to a Service, where it leaves the pod and on its way.
fn deferred(device: u32) -> Vec<Case> {
    let there = Context {
        device,
        ..Context::default()
    };
    let behind = |flags| frames::segment(CLIENT, GOAL, flags);
    vec![
        Case::new(
            "pod_egress: to a Service",
            map::POD_EGRESS,
            frames::segment(CLIENT, SERVICE, tcp::ACK),
        )
        .of(SENT)
        .at_most(1.3),
        Case::yardstick(
            "pod_egress: to a Service, new flow",
            "pod_egress_new",
            frames::segment(CLIENT, SERVICE, tcp::SYN),
        )
        .with(Before::Empty(FEW))
        .at_most(3.0),
        Case::new("host_egress: no mark", map::HOST_EGRESS, behind(tcp::ACK))
            .context(there)
            .of(EMPTY)
            .at_most(1.3),
        Case::yardstick(
            "host_egress: to a Service",
            "host_egress_marked",
            behind(tcp::ACK),
        )
        .context(marked(device, false))
        .of(SENT)
        .at_most(1.3),
        Case::yardstick(
            "host_egress: to a Service, judged",
            "host_egress_marked",
            behind(tcp::ACK),
        )
        .context(marked(device, true))
        .at_most(3.0),
        Case::yardstick(
            "pod_ingress: to a Service",
            "pod_ingress_marked",
            behind(tcp::ACK),
        )
        .context(marked(device, false))
        .of(RECEIVED)
        .at_most(1.3),
    ]
}
