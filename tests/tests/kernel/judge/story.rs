//! Stories: what happens on the node, packet after packet.

use netpol_common::{Direction, Tick, tcp};
use proptest::sample::Index;

use super::{
    shot::{Body, Content, Entry, Hook, Mac, Mark, Piece, Shot},
    world::{Pod, Profile, Who},
};

/// From empty flow tables to the last packet.
#[derive(Clone, Debug)]
pub struct Story {
    /// Whether the programs have only a few bits of the mark.
    pub narrow: bool,
    /// Of the pods A and B.
    pub profiles: [Profile; 2],
    pub acts: Vec<Act>,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Act {
    /// A packet, with what is wrong with it.
    Packet(Shot, Vec<Twist>),
    /// A packet that there was, or its answer.
    Again(Index, bool, Vec<Twist>),
    /// An ICMP error about a packet that there was.
    Complaint(Index, Complaint, Vec<Twist>),
    /// A conversation: its first packet; and of each next one what the tables do before it, whether the other side sends it, and
    /// its TCP flags.
    Talk(Shot, Vec<(Option<Raising>, bool, u8)>),
    /// A datagram in pieces, in this order.
    Pieces(Shot, bool, Vec<Piece>),
    /// A pod speaks to an address behind which somebody else answers.
    Visit(Visit),
    /// The tables change.
    Change(Raising),
}

/// A change, and whether the epoch rises.
pub type Raising = (Change, bool);

/// Something unusual about a packet.
#[derive(Clone, Debug)]
pub enum Twist {
    Hook(Hook),
    Entry(Entry),
    Mark(Mark),
    SourceMac(Mac),
    DestinationMac(Mac),
    Sender(Who),
    Receiver(Who),
    Piece(Piece),
    Headers(Vec<u8>),
    HopLimit(u8),
    Flags(u8),
    Tail(Vec<u8>),
    Damage(Vec<(usize, u8)>),
    Cut(usize),
}

/// Who sends an error, and what is not as it should be in it.
#[derive(Clone, Debug)]
pub struct Complaint {
    /// Which kind, of those that each family has.
    pub kind: usize,
    /// `None`: the one to whom the packet was sent.
    pub router: Option<Who>,
    /// How many bytes are quoted.
    pub kept: usize,
    /// Whom the quoted packet claims to be from.
    pub forged_sender: Option<Who>,
    pub forged_receiver: Option<Who>,
}

/// A conversation through a translation.
#[derive(Clone, Debug)]
pub struct Visit {
    pub pod: Pod,
    pub v6: bool,
    pub body: Body,
    pub service: Who,
    pub backend: Who,
    /// Where the packet is judged again.
    pub arrival: Hook,
    /// Whether the pod's address is translated as well.
    pub masqueraded: bool,
    /// What follows the mark on its way.
    pub twists: Vec<Twist>,
    /// TCP flags of each packet of the pod, what the tables do before it arrives, and by whom it is answered.
    pub rounds: Vec<(u8, Option<Raising>, Option<Entry>)>,
}

/// Something that happens to the tables.
#[derive(Clone, Debug)]
pub enum Change {
    Epoch,
    Profile(Pod, Profile),
    /// The endpoint goes.
    Gone(Pod),
    /// The slot of a pod leads to the interface of another one, or to none: as in the moment in which an endpoint is written.
    Slot(Pod, Option<Pod>),
    /// The row of class 5 goes or comes back.
    Row(bool),
    Time(Tick),
    /// A part of the flows goes.
    Evict(u32),
    /// A flow, under the key of a packet that there was.
    Plant(Index, Planted),
    /// So many records were written in this tick.
    Spend(Pod, Direction, u32),
}

/// A flow of any kind.
#[derive(Clone, Debug)]
pub struct Planted {
    pub settled: bool,
    pub translated: bool,
    pub changes: u32,
    pub origin: Direction,
    pub phase: u8,
    pub flags: u16,
    pub rested: Tick,
    pub backend: Who,
    pub port: u16,
}

/// A packet, or a change.
pub enum Step<'a> {
    Shot(Shot),
    Change(&'a Change),
    RaiseEpoch,
}

impl Act {
    /// What happens, one after the other. `shots` are the packets so far.
    pub fn steps(&self, shots: &[Shot]) -> Vec<Step<'_>> {
        let earlier = |which: &Index| (!shots.is_empty()).then(|| which.get(shots));
        match self {
            Self::Packet(shot, twists) => vec![Step::Shot(twisted(shot.clone(), twists))],
            Self::Again(which, back, twists) => {
                let again = |shot: &Shot| if *back { shot.mirrored() } else { shot.clone() };
                let shot = earlier(which).map(again);
                let shot = shot.map(|shot| Step::Shot(twisted(shot, twists)));
                shot.into_iter().collect()
            }
            Self::Complaint(which, complaint, twists) => {
                let error = earlier(which).and_then(|shot| complaint.about(shot));
                let error = error.map(|error| Step::Shot(twisted(error, twists)));
                error.into_iter().collect()
            }
            Self::Talk(first, rest) => {
                let mut steps = vec![Step::Shot(first.clone())];
                for (change, back, flags) in rest {
                    steps.extend(change.iter().flat_map(changed));
                    let shot = if *back {
                        first.mirrored()
                    } else {
                        first.clone()
                    };
                    steps.push(Step::Shot(twisted(shot, &[Twist::Flags(*flags)])));
                }
                steps
            }
            Self::Pieces(shot, mirrored, pieces) => {
                let shot = if *mirrored {
                    shot.mirrored()
                } else {
                    shot.clone()
                };
                let piece =
                    |piece: &Piece| Step::Shot(twisted(shot.clone(), &[Twist::Piece(*piece)]));
                pieces.iter().map(piece).collect()
            }
            Self::Visit(visit) => visit.steps(),
            Self::Change(change) => changed(change),
        }
    }
}

fn changed((change, raises): &Raising) -> Vec<Step<'_>> {
    let mut steps = vec![Step::Change(change)];
    if *raises {
        steps.push(Step::RaiseEpoch);
    }
    steps
}

fn twisted(mut shot: Shot, twists: &[Twist]) -> Shot {
    for twist in twists {
        twist.apply(&mut shot);
    }
    shot
}

impl Twist {
    fn apply(&self, shot: &mut Shot) {
        match self {
            Self::Hook(hook) => shot.hook = *hook,
            Self::Entry(entry) => shot.entry = *entry,
            Self::Mark(mark) => shot.mark = *mark,
            Self::SourceMac(mac) => shot.macs.0 = *mac,
            Self::DestinationMac(mac) => shot.macs.1 = *mac,
            Self::Tail(tail) => shot.tail.clone_from(tail),
            Self::Damage(damage) => shot.damage.clone_from(damage),
            Self::Cut(length) => shot.cut = Some(*length),
            Self::Sender(_)
            | Self::Receiver(_)
            | Self::Piece(_)
            | Self::Headers(_)
            | Self::HopLimit(_)
            | Self::Flags(_) => self.apply_to_ip(shot),
        }
    }

    fn apply_to_ip(&self, shot: &mut Shot) {
        let Content::Ip {
            sender,
            receiver,
            body,
            piece,
            headers,
            hop_limit,
            ..
        } = &mut shot.content
        else {
            return;
        };
        match (self, body) {
            (Self::Sender(who), _) => *sender = *who,
            (Self::Receiver(who), _) => *receiver = *who,
            (Self::Piece(which), _) => *piece = *which,
            (Self::Headers(kinds), _) => headers.clone_from(kinds),
            (Self::HopLimit(limit), _) => *hop_limit = *limit,
            (Self::Flags(new), Body::Tcp { flags, .. }) => *flags = *new,
            // What opens an association, ends it at once, or does neither.
            (Self::Flags(new), Body::Sctp { chunk, .. }) => {
                *chunk = match *new {
                    tcp::SYN => 1,
                    tcp::RST => 6,
                    _ => 0,
                };
            }
            _ => {}
        }
    }
}

impl Complaint {
    fn about(&self, shot: &Shot) -> Option<Shot> {
        let Content::Ip { v6, receiver, .. } = &shot.content else {
            return None;
        };
        // Unreachable, too big or quench, time exceeded, parameter problem, redirect.
        let kind = if *v6 {
            [1, 2, 3, 4, 137][self.kind]
        } else {
            [3, 4, 11, 12, 5][self.kind]
        };
        let router = self.router.unwrap_or(*receiver);
        let mut error = shot.complaint(router, kind, self.kept)?;
        if let Some((_, _, Body::Quotes { quote, .. }, _)) = error.ip() {
            quote.sender = self.forged_sender.unwrap_or(quote.sender);
            quote.receiver = self.forged_receiver.unwrap_or(quote.receiver);
        }
        Some(error)
    }
}

impl Visit {
    fn steps(&self) -> Vec<Step<'_>> {
        let mut steps = Vec::new();
        for (flags, change, answer) in &self.rounds {
            let flags = [Twist::Flags(*flags)];
            let who = (self.pod.who(), self.service);
            let asks = Shot::honest(Hook::Sends(self.pod), self.v6, who, self.body.clone());
            let asks = twisted(asks, &flags);
            steps.push(Step::Shot(asks.clone()));
            steps.extend(change.iter().flat_map(changed));
            let source = match (self.arrival, self.masqueraded) {
                (Hook::LeavesBare, _) => Who::Bare,
                (_, true) => Who::Node,
                (_, false) => self.pod.who(),
            };
            let body = translated(&self.body, source != self.pod.who());
            let mut arrives = Shot::honest(self.arrival, self.v6, (source, self.backend), body);
            (arrives.mark, arrives.entry) = (Mark::Carried, Entry::Pod(self.pod));
            let arrives = twisted(twisted(arrives, &flags), &self.twists);
            steps.push(Step::Shot(arrives));
            if let Some(entry) = answer {
                let mut answers = asks.mirrored();
                answers.entry = *entry;
                steps.push(Step::Shot(answers));
            }
        }
        steps
    }
}

/// What the backend gets: another destination port, and if the source is translated another source port.
fn translated(body: &Body, masqueraded: bool) -> Body {
    let change = |(from, to): (u16, u16)| {
        let to = if to == 443 { 80 } else { to };
        (if masqueraded { from + 10_000 } else { from }, to)
    };
    match body.clone() {
        Body::Tcp { ports, flags } => Body::Tcp {
            ports: change(ports),
            flags,
        },
        Body::Udp { ports } => Body::Udp {
            ports: change(ports),
        },
        Body::Sctp { ports, chunk } => Body::Sctp {
            ports: change(ports),
            chunk,
        },
        other => other,
    }
}

impl std::fmt::Display for Story {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b] = &self.profiles;
        writeln!(f, "  pod A: {a}")?;
        writeln!(f, "  pod B: {b}")?;
        writeln!(f, "  a narrow field of the mark: {}", self.narrow)?;
        for act in &self.acts {
            writeln!(f, "  {act:?}")?;
        }
        Ok(())
    }
}
