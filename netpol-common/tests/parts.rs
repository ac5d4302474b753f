//! The parts of the decision procedure that need no table: marks, budgets, and how a flow goes on.

use netpol_common::{
    Address, Budget, Deferral, Direction, Flow, FlowKey, MarkField, Packet, Phase, chunk, lifetime,
    protocol, size, tcp,
};
use proptest::prelude::*;

#[test]
fn a_mark_field_has_no_gap_enough_bits_and_none_of_kube_proxy() {
    for mask in [0xffff_0000, 0x1fff_0000, 0xfff8_0000, 0x1fff] {
        let field = MarkField::of_mask(mask).expect("a field");
        assert_eq!(field.mask, mask);
        assert_eq!(field.shift, mask.trailing_zeros());
    }
    // Nothing, too few bits, a gap, and the bits of kube-proxy and portmap.
    for mask in [
        0,
        0x0fff_0000,
        0xfffb_0000,
        0xffff_8000,
        0x3fff,
        0xffff_ffff,
    ] {
        assert_eq!(MarkField::of_mask(mask), None, "{mask:#x}");
    }
}

fn fields() -> impl Strategy<Value = MarkField> {
    prop::sample::select(vec![
        0xffff_0000,
        0x1fff_0000,
        0xfff8_0000,
        0x1fff,
        0x03ff_f000 << 4,
    ])
    .prop_filter_map("a field", MarkField::of_mask)
}

proptest! {
    #[test]
    fn what_is_written_is_read_and_other_bits_stay(
        field in fields(), mark: u32, slot in 0..size::SLOTS, urgent: bool, number: u32,
    ) {
        let ticket = field.ticket(number);
        prop_assert!(ticket < size::TICKETS);
        let deferral = Deferral { slot, urgent, ticket };
        let written = field.write(mark, deferral);
        prop_assert_eq!(field.read(written), Some(deferral));
        prop_assert_eq!(written & !field.mask, mark & !field.mask);
        prop_assert_eq!(field.clear(written), mark & !field.mask);
        prop_assert_eq!(field.read(field.clear(written)), None);
    }

    #[test]
    fn equal_keys_have_equal_tickets(port: u16, remote: [u8; 4]) {
        let key = FlowKey {
            remote: Address::v4(remote),
            interface: 1,
            local_port: port,
            remote_port: 80,
            protocol: u32::from(protocol::UDP),
        };
        // The interface is no part of it: the ticket's reader compares the whole key.
        prop_assert_eq!(key.ticket(), FlowKey { interface: 2, ..key }.ticket());
    }
}

#[test]
fn a_budget_lasts_for_a_tick_and_is_full_again_in_the_next() {
    let mut budget = Budget::default();
    for tick in [5, 6, u32::MAX, 0] {
        let taken = (0..Budget::EVENTS * 2)
            .filter(|_| budget.take(tick))
            .count();
        assert_eq!(taken, Budget::EVENTS as usize, "tick {tick}");
    }
    let indexes = (0..3).flat_map(|slot| Direction::BOTH.map(|d| Budget::index(slot, d)));
    assert_eq!(indexes.collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
}

/// A packet of a protocol with these TCP flags, or this SCTP chunk.
fn packet(number: u8, flags: u8) -> Packet {
    Packet {
        protocol: number,
        flags,
        ..Packet::between(Address::NONE, Address::NONE)
    }
}

/// The phases that a conversation opened from outside goes through.
fn phases(number: u8, packets: &[(Direction, u8)]) -> Vec<u8> {
    let mut flow = Flow::open(1, Direction::Ingress, 0, 0);
    let step = packets.iter().map(|&(direction, flags)| {
        flow = flow.advance(&packet(number, flags), direction, 1, 0);
        flow.phase
    });
    step.collect()
}

const IN: Direction = Direction::Ingress;
const OUT: Direction = Direction::Egress;

#[test]
fn tcp_ends_when_both_have_finished_and_begins_again_with_the_openers_syn() {
    let phases = phases(
        protocol::TCP,
        &[
            (IN, tcp::SYN),
            (OUT, tcp::SYN | tcp::ACK),
            (IN, tcp::FIN | tcp::ACK),
            (IN, tcp::FIN | tcp::ACK),
            (OUT, tcp::ACK),
            (OUT, tcp::FIN | tcp::ACK),
            (IN, tcp::ACK),
            (IN, tcp::SYN),
        ],
    );
    let expected = [
        Phase::Opening,
        Phase::Established,
        Phase::OpenerDone,
        Phase::OpenerDone,
        Phase::OpenerDone,
        Phase::Closing,
        Phase::Closing,
        Phase::Opening,
    ];
    assert_eq!(phases, expected.map(|phase| phase as u8));
}

#[test]
fn aborts_end_at_once_whoever_sends_them() {
    for direction in Direction::BOTH {
        for (number, flags) in [
            (protocol::TCP, tcp::RST),
            (protocol::TCP, tcp::RST | tcp::ACK),
            (protocol::SCTP, chunk::ABORT),
            (protocol::SCTP, chunk::SHUTDOWN_COMPLETE),
        ] {
            let phases = phases(number, &[(direction, flags)]);
            assert_eq!(phases, [Phase::Closing as u8]);
        }
        // The same number is nothing to UDP.
        let phases = phases(protocol::UDP, &[(direction, tcp::RST)]);
        assert_ne!(phases, [Phase::Closing as u8]);
    }
}

#[test]
fn a_flow_settles_when_its_opener_goes_on_after_an_answer() {
    let mut flow = Flow::open(1, OUT, 0, 0);
    assert!(!flow.settles(OUT));
    flow = flow.advance(&packet(protocol::UDP, 0), OUT, 1, 0);
    assert!(!flow.settles(OUT), "nobody has answered");
    flow = flow.advance(&packet(protocol::UDP, 0), IN, 1, 0);
    assert!(flow.settles(OUT));
    assert!(!flow.settles(IN), "who answers proves nothing");
}

#[test]
fn a_flow_expires_after_its_lifetime_also_when_the_clock_turns_over() {
    for phase in 0..=Phase::Closing as u8 {
        for number in [protocol::TCP, protocol::SCTP, protocol::UDP, protocol::ICMP] {
            for seen in [0, 1000, u32::MAX - 3] {
                let mut flow = Flow::open(1, OUT, 0, seen);
                flow.phase = phase;
                let last = seen.wrapping_add(lifetime(number, phase));
                assert!(!flow.expired(number, last));
                assert!(flow.expired(number, last.wrapping_add(1)));
            }
        }
    }
}

#[test]
fn going_on_keeps_who_opened_and_who_answers() {
    let flow = Flow {
        backend: Address::v4([10, 0, 0, 9]),
        backend_port: 8080,
        ..Flow::open(1, OUT, Flow::DEFERRED | Flow::RESOLVED, 5)
    };
    let next = flow.advance(&packet(protocol::TCP, tcp::ACK), IN, 2, 7);
    assert_eq!((next.origin, next.flags), (flow.origin, flow.flags));
    assert_eq!((next.backend, next.backend_port), (flow.backend, 8080));
    assert_eq!((next.epoch, next.seen), (2, 7));
}
