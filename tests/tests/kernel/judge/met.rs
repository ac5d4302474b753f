//! What a run has met: a comparison of nothing would agree as well.

use std::collections::BTreeMap;

use netpol_common::{Address, Direction, Flow, FlowKey, MarkField, Reason, lost};

use super::{
    outcome::Outcome,
    shot::{Entry, Hook, Shot},
    world::Pod,
};

/// Every sight that a run must have met.
const SIGHTS: [&str; 25] = [
    "a mark is written",
    "a mark is taken off",
    "a mark goes on to the sender itself",
    "a foreign mark stays",
    "a mark of the node's own packet stays",
    "a marked packet is dropped where it leaves",
    "a marked packet is dropped where it leaves without an Ethernet header",
    "a marked packet is dropped at its receiver, by its sender's rules",
    "a marked packet is dropped at a device without endpoint",
    "a record names the Service",
    "a record is not written for want of budget",
    "a flow is settled",
    "a flow is deferred",
    "a flow is resolved",
    "a flow is local",
    "a flow is masqueraded",
    "a flow is closing",
    "a translated flow is noted",
    "an ingress packet is of a revoked flow",
    "an egress packet is of a revoked flow",
    "a flow of an older epoch goes on",
    "a first fragment is noted",
    "a ticket is issued",
    "an error sent belongs to a flow",
    "an error received belongs to a flow",
];

/// How often each reason and each sight was met.
#[derive(Default, Debug)]
pub struct Met {
    reasons: BTreeMap<Reason, u64>,
    sights: BTreeMap<&'static str, u64>,
    packets: u64,
    last: Option<Outcome>,
}

impl Met {
    /// Another story begins.
    pub fn begin(&mut self) {
        self.last = None;
    }

    /// Notes what became of a packet.
    pub fn note(
        &mut self,
        shot: &Shot,
        (before, field): (u32, MarkField),
        reason: Reason,
        after: Outcome,
    ) {
        self.packets += 1;
        *self.reasons.entry(reason).or_default() += 1;
        let own = |mark| field.read(mark).is_some();
        let has = |flag: u16| {
            let all = after.flows.values().chain(after.opening.values());
            let mut flows = all.filter(|flow| flow.flags & flag != 0);
            flows.next().is_some()
        };
        let sends = matches!(shot.hook, Hook::Sends(_));
        let hears = matches!(shot.hook, Hook::Hears(_));
        let direction = if sends {
            Direction::Egress
        } else {
            Direction::Ingress
        };
        let marked = own(before) && shot.entry != Entry::Node;
        // Counted at somebody else than the receiver, as what that one sends.
        let judged_for_sender = hears && after.counted.keys().any(|key| key.1 == Direction::Egress);
        let older = self.last.as_ref().is_some_and(|last| {
            let old = last.flows.iter().chain(&last.opening);
            let mut old = old.filter(|(_, flow)| flow.epoch > 0);
            old.any(|(key, _)| {
                let now = after.flows.get(key).or_else(|| after.opening.get(key));
                now.is_some_and(|flow| flow.epoch == 0)
            })
        });
        let sights = [
            !marked && own(after.mark) && sends,
            marked && !own(after.mark),
            shot.hook == Hook::Leaves && marked && own(after.mark),
            !own(before) && before != 0 && after.mark & !field.mask == before & !field.mask,
            own(before) && shot.entry == Entry::Node && after.mark == before,
            shot.hook == Hook::Leaves && !after.passes,
            shot.hook == Hook::LeavesBare && !after.passes,
            judged_for_sender && !after.passes,
            shot.hook == Hook::Hears(Pod::C) && !after.passes,
            after
                .events
                .iter()
                .any(|event| event.service != Address::NONE),
            after.lost[lost::BUDGET as usize] > 0,
            !after.flows.is_empty(),
            has(Flow::DEFERRED),
            has(Flow::RESOLVED),
            has(Flow::LOCAL),
            has(Flow::MASQUERADED),
            after.flows.values().any(|flow| flow.phase == 4),
            after
                .opening
                .keys()
                .any(|key| key.protocol & FlowKey::TRANSLATED != 0),
            reason == Reason::Revoked && direction == Direction::Ingress,
            reason == Reason::Revoked && sends,
            older,
            !after.fragments.is_empty(),
            !after.tickets.is_empty(),
            reason == Reason::Related && sends,
            reason == Reason::Related && hears,
        ];
        for (sight, seen) in SIGHTS.into_iter().zip(sights) {
            *self.sights.entry(sight).or_default() += u64::from(seen);
        }
        self.last = Some(after);
    }

    /// Fails if a reason or a sight was met less than `least` times.
    pub fn require(&self, least: u64) {
        let reasons = Reason::ALL.map(|reason| {
            let times = self.reasons.get(&reason).copied().unwrap_or_default();
            (reason.name(), times)
        });
        let sights = SIGHTS.map(|sight| {
            let times = self.sights.get(sight).copied().unwrap_or_default();
            (sight, times)
        });
        let all: Vec<(&str, u64)> = reasons.into_iter().chain(sights).collect();
        let lines: String = all
            .iter()
            .map(|(what, n)| format!("{n:8} {what}\n"))
            .collect();
        println!("{} packets\n{lines}", self.packets);
        let unmet: Vec<_> = all.iter().filter(|(_, times)| *times < least).collect();
        assert!(
            unmet.is_empty(),
            "met less than {least} times: {unmet:?}. In all:\n{lines}"
        );
    }
}
