//! Who is asked for, and what is written.

use std::net::IpAddr;

use super::*;

const POD: &str = "10.1.0.1";
const PEER: &str = "10.1.0.2";
const SERVICE: &str = "10.96.0.9";
const NODE: &str = "10.1.0.254";

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().expect("an address").into()
}

fn tuple(from: (&str, u16), to: (&str, u16)) -> Tuple {
    Tuple {
        source: address(from.0),
        destination: address(to.0),
        protocol: protocol::TCP,
        source_port: from.1,
        destination_port: to.1,
        icmp_type: 0,
    }
}

fn connection(original: Tuple, reply: Tuple) -> Connection {
    Connection {
        original,
        reply,
        ended: false,
        answered: true,
        zone: 0,
    }
}

fn endpoint() -> Endpoint {
    Endpoint {
        ipv4: address(POD),
        ..Endpoint::default()
    }
}

fn dropped(direction: Direction, protocol: u8, reason: Reason) -> Event {
    let (source, destination) = match direction {
        Direction::Egress => ((POD, 80), (PEER, 4000)),
        Direction::Ingress => ((PEER, 4000), (POD, 80)),
    };
    Event {
        source: address(source.0),
        destination: address(destination.0),
        source_port: source.1,
        destination_port: destination.1,
        protocol,
        direction: direction as u8,
        reason: reason as u8,
        interface: 7,
        ..Event::default()
    }
}

#[test]
fn only_what_opens_nothing_may_be_an_answer() {
    let may = |protocol, reason| may_answer(&dropped(Direction::Egress, protocol, reason));
    assert!(may(protocol::TCP, Reason::NoFlow));
    assert!(may(protocol::UDP, Reason::Denied));
    assert!(may(protocol::ICMP, Reason::NoFlow));
    assert!(!may(protocol::TCP, Reason::Denied), "a SYN");
    assert!(!may(protocol::ICMP, Reason::Denied), "an echo request");
    assert!(!may(protocol::TCP, Reason::Revoked));
    assert!(!may(protocol::UDP, Reason::Revoked));
    assert!(!may(0, Reason::Malformed));
}

#[test]
fn both_directions_ask_from_the_pod_to_its_peer() {
    for direction in Direction::BOTH {
        let event = dropped(direction, protocol::TCP, Reason::NoFlow);
        let lost = lost(&event, &endpoint()).expect("the pod's own");
        assert_eq!(lost.tuple, tuple((POD, 80), (PEER, 4000)));
        assert_eq!(lost.direction, direction);
    }
    let mut foreign = dropped(Direction::Egress, protocol::TCP, Reason::NoFlow);
    foreign.source = address(PEER);
    assert_eq!(lost(&foreign, &endpoint()), None, "somebody else's address");
}

#[test]
fn what_was_translated_is_asked_for_as_the_sender_knows_it() {
    let event = Event {
        service: address(NODE),
        service_port: 5000,
        source: address(NODE),
        ..dropped(Direction::Egress, protocol::TCP, Reason::NoFlow)
    };
    let lost = lost(&event, &endpoint()).expect("the pod's own");
    assert_eq!(lost.tuple, tuple((POD, 80), (NODE, 5000)));
}

#[test]
fn an_echo_reply_asks_for_the_question_of_the_other_side() {
    let mut event = dropped(Direction::Egress, protocol::ICMP, Reason::NoFlow);
    (event.source_port, event.destination_port) = (9, 9);
    let answers = lost(&event, &endpoint()).expect("the pod's own").tuple;
    assert_eq!(
        (answers.icmp_type, answers.source_port),
        (icmp::ECHO_REPLY, 9)
    );
    assert_eq!(answers.key(7, Direction::Ingress).remote_port, 1);
    (event.source, event.destination) = (event.destination, event.source);
    event.direction = Direction::Ingress as u8;
    let asks = lost(&event, &endpoint()).expect("the pod's own").tuple;
    assert_eq!(asks.icmp_type, icmp::ECHO_REQUEST);
    assert_eq!(asks.key(7, Direction::Egress).remote_port, 0);
    assert_eq!(asks.mirror(8, Direction::Ingress).remote_port, 1);
}

#[test]
fn who_opened_a_translated_connection_knows_the_service_and_the_backend() {
    let opened = connection(
        tuple((POD, 4000), (SERVICE, 80)),
        tuple((PEER, 8080), (POD, 4000)),
    );
    let (key, flow) = opened_by(&opened, 7, 5).expect("tracked");
    assert_eq!(
        (key.remote, key.local_port, key.remote_port),
        (address(SERVICE), 4000, 80)
    );
    assert_eq!(flow.origin(), Direction::Egress);
    assert!(flow.deferred() && flow.resolved());
    assert_eq!((flow.backend, flow.backend_port), (address(PEER), 8080));
    // Masquerade alone translates no destination.
    let out = connection(
        tuple((POD, 4000), (PEER, 80)),
        tuple((PEER, 80), (NODE, 61000)),
    );
    assert!(!opened_by(&out, 7, 5).expect("tracked").1.deferred());
}

#[test]
fn to_whom_a_connection_was_opened_knows_the_address_that_it_sees() {
    let opened = connection(
        tuple((SERVICE, 4000), (NODE, 30080)),
        tuple((POD, 80), (NODE, 61000)),
    );
    let (key, flow) = opened_to(&opened, 7, 5, |a| *a == address(NODE)).expect("tracked");
    assert_eq!(
        (key.remote, key.local_port, key.remote_port),
        (address(NODE), 80, 61000)
    );
    assert_eq!((flow.origin(), flow.seen), (Direction::Ingress, 5));
    assert!(
        !flow.local(),
        "somebody whose address was translated to the node's"
    );
    let probe = connection(
        tuple((NODE, 5000), (POD, 80)),
        tuple((POD, 80), (NODE, 5000)),
    );
    let (_, flow) = opened_to(&probe, 7, 5, |a| *a == address(NODE)).expect("tracked");
    assert!(flow.local());
}

#[test]
fn an_ended_connection_is_closing_and_one_without_an_answer_opening() {
    let mut c = connection(
        tuple((PEER, 4000), (POD, 80)),
        tuple((POD, 80), (PEER, 4000)),
    );
    assert_eq!(phase(&c), Phase::Established as u8);
    c.answered = false;
    assert_eq!(phase(&c), Phase::Opening as u8);
    c.ended = true;
    assert_eq!(phase(&c), Phase::Closing as u8);
    // Rules of the node may keep zones apart in which the same tuple is another connection.
    c.zone = 1;
    assert_eq!(opened_by(&c, 7, 5), None);
}
