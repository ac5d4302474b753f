//! What a policy means for live conversations, without a packet, a table or a flag: short enough to be read against
//! `docs/semantics.md`.
//!
//! A conversation belongs to whoever opened it. It goes on while the rules of the direction in which it was opened allow its
//! real destination, and it is forgotten when it has rested too long. Whatever belongs to no conversation opens one, if the
//! rules of its own direction allow that.

use std::collections::{BTreeMap, BTreeSet};

use netpol_common::{Direction, FRAGMENT_LIFETIME, Phase, Tick, is_stream, lifetime, protocol};

/// Everybody in the stories. `A` and `B` are pods of this node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Who {
    A,
    B,
    X,
    Y,
    Service,
    Node,
}

impl Who {
    /// Whether somebody else may answer for it.
    pub fn is_virtual(self) -> bool {
        matches!(self, Self::Service | Self::Node)
    }
    pub fn is_pod(self) -> bool {
        matches!(self, Self::A | Self::B)
    }
}

/// What a rule allows to one peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ports {
    All,
    Tcp,
    On(u16),
}

impl Ports {
    fn hold(self, number: u8, port: Option<u16>) -> bool {
        match self {
            Self::All => true,
            Self::Tcp => number == protocol::TCP,
            Self::On(own) => number != protocol::ICMP && port == Some(own),
        }
    }
}

/// `None`: no policy selects the pod for this direction.
pub type Policy = Option<BTreeMap<Who, Ports>>;

/// A conversation as its pod sees it. For an echo `pod_port` is the identifier, and `port` is 0 if the pod asks, else 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Tuple {
    pub pod: Who,
    pub protocol: u8,
    pub remote: Who,
    pub pod_port: u16,
    pub port: u16,
}

/// What a packet does to its conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    Open,
    Go,
    Finish,
    Abort,
}

/// At whose hook, from whom to whom, the protocol and the number of a datagram.
type Datagram = (Who, Who, Who, u8, u16);

#[derive(Clone, Debug)]
struct Conversation {
    opened: Direction,
    /// Who answered for a virtual address, and on which port. Of an open pod nobody looks whether it is still the same one.
    backends: BTreeSet<(Who, u16)>,
    answered: bool,
    opener_finished: bool,
    other_finished: bool,
    aborted: bool,
    seen: Tick,
    /// Opened by a process of this node, which no rule forbids.
    of_the_node: bool,
}

impl Conversation {
    fn new(opened: Direction, now: Tick) -> Self {
        Self {
            opened,
            backends: BTreeSet::new(),
            answered: false,
            opener_finished: false,
            other_finished: false,
            aborted: false,
            seen: now,
            of_the_node: false,
        }
    }

    fn alive(&self, number: u8, now: Tick) -> bool {
        let phase = if self.aborted || self.opener_finished && self.other_finished {
            Phase::Closing
        } else if self.answered || self.opener_finished || self.other_finished {
            Phase::Established
        } else {
            Phase::Opening
        };
        now - self.seen <= lifetime(number, phase as u8)
    }

    fn goes_on(&mut self, direction: Direction, act: Act, now: Tick) {
        let opener = self.opened == direction;
        let ended = self.aborted || self.opener_finished || self.other_finished;
        match act {
            Act::Open if opener && ended => {
                *self = Self {
                    answered: false,
                    opener_finished: false,
                    other_finished: false,
                    aborted: false,
                    ..self.clone()
                };
            }
            Act::Abort => self.aborted = true,
            Act::Finish if opener => self.opener_finished = true,
            Act::Finish => self.other_finished = true,
            Act::Open | Act::Go => self.answered |= !opener,
        }
        self.seen = now;
    }
}

/// The pods' policies, and what is known of their conversations.
#[derive(Clone, Default, Debug)]
pub struct Model {
    pub now: Tick,
    policies: BTreeMap<(Who, Direction), Policy>,
    conversations: BTreeMap<Tuple, Conversation>,
    /// Those of which nobody can tell any more who may answer, or for how long: see [`Model::hears`].
    unclear: BTreeSet<Tuple>,
    /// First fragments that have passed: at whose hook, from whom to whom, the protocol and the number of the
    /// datagram; and when.
    fragments: BTreeMap<Datagram, (Tick, Tuple)>,
}

impl Model {
    pub fn set_policy(&mut self, pod: Who, direction: Direction, policy: Policy) {
        self.policies.insert((pod, direction), policy);
    }

    pub fn isolated(&self, pod: Who, direction: Direction) -> bool {
        matches!(self.policies.get(&(pod, direction)), Some(Some(_)))
    }

    /// What the rules of one direction say. A packet without a port needs a rule without ports.
    pub fn allows(
        &self,
        pod: Who,
        direction: Direction,
        peer: Who,
        (number, port): (u8, Option<u16>),
    ) -> bool {
        match self.policies.get(&(pod, direction)) {
            Some(Some(rules)) => {
                peer == pod
                    || rules
                        .get(&peer)
                        .is_some_and(|ports| ports.hold(number, port))
            }
            _ => true,
        }
    }

    pub fn forget(&mut self, tuple: &Tuple) {
        self.conversations.remove(tuple);
        self.unclear.remove(tuple);
    }

    fn live(&self, tuple: &Tuple) -> Option<&Conversation> {
        let known = self.conversations.get(tuple)?;
        known.alive(tuple.protocol, self.now).then_some(known)
    }

    /// The conversation that a packet in `direction` belongs to. Who opens one against another opens another one.
    fn belongs(&self, tuple: &Tuple, direction: Direction, act: Act) -> Option<&Conversation> {
        let known = self.live(tuple)?;
        let other = act == Act::Open && known.opened != direction;
        (!other).then_some(known)
    }

    /// Whether the rules still allow a conversation, if that is certain.
    fn still_allowed(&self, tuple: &Tuple, known: &Conversation) -> Option<bool> {
        let number = tuple.protocol;
        if known.of_the_node {
            return Some(true);
        }
        if known.opened == Direction::Ingress {
            let about = (number, Some(tuple.pod_port));
            return Some(self.allows(tuple.pod, Direction::Ingress, tuple.remote, about));
        }
        let to = |who, port| self.allows(tuple.pod, Direction::Egress, who, (number, Some(port)));
        if !tuple.remote.is_virtual() {
            return Some(to(tuple.remote, tuple.port));
        }
        let verdicts: BTreeSet<bool> = known.backends.iter().map(|&(w, p)| to(w, p)).collect();
        (verdicts.len() == 1).then(|| verdicts.contains(&true))
    }

    fn note(&mut self, tuple: &Tuple, direction: Direction, act: Act) {
        let now = self.now;
        if self.belongs(tuple, direction, act).is_none() {
            let new = Conversation::new(direction, now);
            self.conversations.insert(*tuple, new);
        } else if let Some(known) = self.conversations.get_mut(tuple) {
            known.goes_on(direction, act, now);
        }
    }

    /// Whether what a pod sends reaches `real`, who stands behind the address that it sends to.
    pub fn sends(&mut self, tuple: &Tuple, act: Act, real: (Who, u16)) -> bool {
        let known = self.belongs(tuple, Direction::Egress, act).cloned();
        let answers = known.as_ref().filter(|c| c.opened == Direction::Ingress);
        if let Some(known) = answers {
            let allowed = self.still_allowed(tuple, known) == Some(true);
            if allowed {
                self.note(tuple, Direction::Egress, act);
            }
            return allowed;
        }
        let about = (tuple.protocol, Some(real.1));
        let local = tuple.remote.is_virtual() && matches!(real.0, Who::Node);
        let allowed = local || self.allows(tuple.pod, Direction::Egress, real.0, about);
        if !tuple.remote.is_virtual() {
            if allowed {
                self.note(tuple, Direction::Egress, act);
            }
            return allowed;
        }
        // Nothing refreshes what is remembered of somebody who may no longer answer.
        let revoked = known.is_some_and(|c| {
            act != Act::Open
                && !c.backends.is_empty()
                && self.still_allowed(tuple, &c) == Some(false)
        });
        if !revoked {
            self.note(tuple, Direction::Egress, act);
            if act == Act::Open
                && let Some(known) = self.conversations.get_mut(tuple)
            {
                known.backends.clear();
            }
        }
        let one = self.isolated(tuple.pod, Direction::Egress) || !is_stream(tuple.protocol);
        if !local
            && real.0 != tuple.pod
            && let Some(known) = self.conversations.get_mut(tuple)
        {
            // Whoever may not answer leaves nobody who may: connection tracking takes what it says for answers of the other.
            if one || !allowed {
                known.backends.clear();
            }
            if allowed {
                known.backends.insert(real);
            }
        }
        allowed
    }

    /// Whether somebody looks who answers this packet: not if its pod may speak to everybody, and an older one of the same TCP
    /// conversation was looked at.
    pub fn looks_at(&self, tuple: &Tuple, act: Act) -> bool {
        match self.belongs(tuple, Direction::Egress, act) {
            Some(known) if known.opened == Direction::Ingress => false,
            Some(known) if act != Act::Open && !known.backends.is_empty() => {
                self.isolated(tuple.pod, Direction::Egress) || !is_stream(tuple.protocol)
            }
            _ => true,
        }
    }

    /// Whether a pod hears what comes from the address `tuple.remote`. `None`: nobody can tell, because a backend was changed
    /// under the ports of a conversation of a pod that may speak to everybody, or the node itself has taken its place.
    pub fn hears(&mut self, tuple: &Tuple, act: Act, from_node: bool) -> Option<bool> {
        let known = self.belongs(tuple, Direction::Ingress, act).cloned();
        if !from_node && self.unclear.contains(tuple) {
            return None;
        }
        let deferred = tuple.remote.is_virtual();
        let answered = known.filter(|c| {
            from_node
                || !c.of_the_node
                    && (c.opened == Direction::Ingress || !deferred || !c.backends.is_empty())
        });
        if let Some(known) = answered {
            if from_node && known.opened == Direction::Egress {
                self.unclear.insert(*tuple);
                return Some(true);
            }
            let verdict = if from_node {
                Some(true)
            } else {
                self.still_allowed(tuple, &known)
            };
            if verdict.is_none() {
                self.unclear.insert(*tuple);
            }
            if verdict == Some(true) {
                self.note(tuple, Direction::Ingress, act);
            }
            return verdict;
        }
        if tuple.remote.is_virtual() && from_node {
            // Whatever the rules say: kubelet asks whether the pod is well. A Service only answers.
            let asked = self.conversations.get(tuple);
            let asked = asked.is_some_and(|c| c.opened == Direction::Egress);
            if tuple.remote == Who::Node && !asked {
                self.note_new(tuple, Direction::Ingress);
                let noted = self.conversations.get_mut(tuple);
                noted.expect("just noted").of_the_node = true;
            }
            return Some(true);
        }
        let about = (tuple.protocol, Some(tuple.pod_port));
        let allowed = self.allows(tuple.pod, Direction::Ingress, tuple.remote, about);
        let asked = self.conversations.get(tuple);
        let asked = asked.is_some_and(|c| deferred && c.opened == Direction::Egress);
        if tuple.remote == Who::Service || asked {
            // A Service opens nothing, nor does the node where the pod has asked it.
            return Some(allowed && !self.isolated(tuple.pod, Direction::Egress));
        }
        if allowed {
            self.note_new(tuple, Direction::Ingress);
        }
        Some(allowed)
    }

    fn note_new(&mut self, tuple: &Tuple, direction: Direction) {
        let new = Conversation::new(direction, self.now);
        self.conversations.insert(*tuple, new);
    }

    /// Whether an ICMP error about a conversation passes its pod's hook; `from`: the other end of the error.
    pub fn complains(&self, tuple: &Tuple, direction: Direction, from: Who) -> Option<bool> {
        // How long a conversation that no rule forbids is remembered makes no difference to it.
        let of_the_node = self.conversations.get(tuple).is_some_and(|c| c.of_the_node)
            || tuple.remote == Who::Node && tuple.pod_port < 1024;
        if of_the_node || self.unclear.contains(tuple) {
            return None;
        }
        let known = self.live(tuple).filter(|c| {
            c.opened == Direction::Ingress || !tuple.remote.is_virtual() || !c.backends.is_empty()
        });
        match known {
            Some(known) => self.still_allowed(tuple, known),
            None => Some(self.complains_of_nothing(tuple.pod, direction, from)),
        }
    }

    /// Whether one about no known conversation does: as any other ICMP message.
    pub fn complains_of_nothing(&self, pod: Who, direction: Direction, from: Who) -> bool {
        let stranger = from == Who::Service && self.isolated(pod, Direction::Egress);
        !stranger && self.allows(pod, direction, from, (protocol::ICMP, None))
    }

    /// The conversation of a datagram whose first fragment has passed the hook of `pod`.
    pub fn knows_fragment(
        &self,
        Tuple { pod, protocol, .. }: Tuple,
        (from, to, id): (Who, Who, u16),
    ) -> Option<Tuple> {
        let (seen, tuple) = self.fragments.get(&(pod, from, to, protocol, id))?;
        (self.now - seen <= FRAGMENT_LIFETIME).then_some(*tuple)
    }

    pub fn note_fragment(&mut self, tuple: &Tuple, (from, to, id): (Who, Who, u16)) {
        let noted = (self.now, *tuple);
        self.fragments
            .insert((tuple.pod, from, to, tuple.protocol, id), noted);
    }
}
