//! One packet at one hook: who sends what to whom, and what is wrong with it.

use netpol_common::{Deferral, MarkField};

use super::world::{Pod, Who};

/// Where the packet is judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// The pod sends it.
    Sends(Pod),
    /// The pod receives it.
    Hears(Pod),
    /// It leaves by a device that is no pod's.
    Leaves,
    /// The same, and the packet has no Ethernet header.
    LeavesBare,
}

/// By which device a packet came to the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// By none: the node itself has sent it.
    Node,
    Pod(Pod),
    Uplink,
}

/// Whose hardware address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mac {
    Of(Pod),
    Router,
    /// Of a group.
    Group,
}

/// The mark with which a packet comes to a hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// These bits and no others.
    Raw(u32),
    /// What the last packet that a pod has sent went on with.
    Carried,
    /// Of this slot, and these bits of somebody else.
    Says(Deferral, u32),
}

impl Mark {
    pub const fn value(self, field: MarkField, carried: u32) -> u32 {
        match self {
            Self::Raw(mark) => mark,
            Self::Carried => carried,
            Self::Says(deferral, foreign) => field.write(foreign, deferral),
        }
    }
}

/// What an IP packet carries. Ports are those of the sender and the receiver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    Tcp {
        ports: (u16, u16),
        flags: u8,
    },
    Udp {
        ports: (u16, u16),
    },
    Sctp {
        ports: (u16, u16),
        chunk: u8,
    },
    Echo {
        identifier: u16,
        reply: bool,
    },
    /// A message of ICMP or ICMPv6 that quotes a packet.
    Quotes {
        kind: u8,
        quote: Box<Quote>,
    },
    /// Any other message of ICMP or ICMPv6.
    Icmp {
        kind: u8,
        target: Who,
        option: Option<(u8, Mac)>,
    },
    /// Of this protocol.
    Other(u8),
}

/// A packet in an ICMP error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Quote {
    pub sender: Who,
    pub receiver: Who,
    pub body: Body,
    pub headers: Vec<u8>,
    pub piece: Piece,
    /// How many bytes of it there are; all, if there are fewer.
    pub kept: usize,
}

/// Which part of a datagram. Offsets are in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Piece {
    Whole,
    First {
        id: u16,
    },
    Later {
        id: u16,
        offset: u16,
    },
    /// The first one, without all of its transport header.
    Tiny {
        id: u16,
        length: usize,
    },
}

/// What is in a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    Ip {
        v6: bool,
        sender: Who,
        receiver: Who,
        body: Body,
        piece: Piece,
        /// IPv6: extension headers by number. IPv4: options by kind.
        headers: Vec<u8>,
        hop_limit: u8,
    },
    /// An ARP message.
    Arp { speaker: (Mac, Who), hardware: u8 },
    /// A UDP datagram behind this EtherType, which says that something stands before it.
    Type { ether_type: u16, sender: Who },
}

/// A packet at a hook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shot {
    pub hook: Hook,
    pub entry: Entry,
    pub mark: Mark,
    pub macs: (Mac, Mac),
    pub content: Content,
    /// What follows inside the length that the IP header states.
    pub tail: Vec<u8>,
    /// Bytes that are overwritten at last, and where the frame ends.
    pub damage: Vec<(usize, u8)>,
    pub cut: Option<usize>,
}

impl Shot {
    /// An honest packet from one to the other, judged at a hook.
    pub fn honest(hook: Hook, v6: bool, (sender, receiver): (Who, Who), body: Body) -> Self {
        let (entry, macs) = match hook {
            Hook::Sends(pod) => (Entry::Pod(pod), (Mac::Of(pod), Mac::Router)),
            Hook::Hears(pod) => (Entry::Uplink, (Mac::Router, Mac::Of(pod))),
            Hook::Leaves | Hook::LeavesBare => (Entry::Pod(Pod::A), (Mac::Router, Mac::Router)),
        };
        Self {
            hook,
            entry,
            mark: Mark::Raw(0),
            macs,
            content: Content::Ip {
                v6,
                sender,
                receiver,
                body,
                piece: Piece::Whole,
                headers: Vec::new(),
                hop_limit: 64,
            },
            tail: Vec::new(),
            damage: Vec::new(),
            cut: None,
        }
    }

    /// What the other side sends back, at the other hook of the same pod.
    pub fn mirrored(&self) -> Self {
        let mut back = self.clone();
        back.hook = match self.hook {
            Hook::Sends(pod) => Hook::Hears(pod),
            Hook::Hears(pod) => Hook::Sends(pod),
            other => other,
        };
        back.entry = match back.hook {
            Hook::Sends(pod) => Entry::Pod(pod),
            _ => Entry::Uplink,
        };
        back.macs = (self.macs.1, self.macs.0);
        if let (Hook::Sends(pod), Mac::Router) = (back.hook, back.macs.0) {
            back.macs.0 = Mac::Of(pod);
        }
        back.mark = Mark::Raw(0);
        if let Content::Ip {
            sender,
            receiver,
            body,
            ..
        } = &mut back.content
        {
            std::mem::swap(sender, receiver);
            *body = body.mirrored();
        }
        back
    }

    /// An ICMP error about this packet, for the one who sent it, from `router`.
    pub fn complaint(&self, router: Who, kind: u8, kept: usize) -> Option<Self> {
        let Content::Ip {
            v6,
            sender,
            receiver,
            body,
            piece,
            headers,
            ..
        } = &self.content
        else {
            return None;
        };
        let mut error = self.mirrored();
        let quote = Quote {
            sender: *sender,
            receiver: *receiver,
            body: body.clone(),
            headers: headers.clone(),
            piece: *piece,
            kept,
        };
        error.content = Content::Ip {
            v6: *v6,
            sender: router,
            receiver: *sender,
            body: Body::Quotes {
                kind,
                quote: Box::new(quote),
            },
            piece: Piece::Whole,
            headers: Vec::new(),
            hop_limit: 64,
        };
        (error.tail, error.damage, error.cut) = (Vec::new(), Vec::new(), None);
        Some(error)
    }

    /// The body of an IP packet, and which part of it this is.
    pub fn ip(&mut self) -> Option<(&mut Who, &mut Who, &mut Body, &mut Piece)> {
        match &mut self.content {
            Content::Ip {
                sender,
                receiver,
                body,
                piece,
                ..
            } => Some((sender, receiver, body, piece)),
            _ => None,
        }
    }
}

impl Body {
    /// What answers it.
    fn mirrored(&self) -> Self {
        use netpol_common::tcp::{ACK, SYN};
        let back = |(from, to): (u16, u16)| (to, from);
        match self {
            Self::Tcp { ports, flags } => Self::Tcp {
                ports: back(*ports),
                flags: if *flags == SYN { SYN | ACK } else { *flags },
            },
            Self::Udp { ports } => Self::Udp {
                ports: back(*ports),
            },
            Self::Sctp { ports, chunk } => Self::Sctp {
                ports: back(*ports),
                chunk: *chunk,
            },
            Self::Echo { identifier, reply } => Self::Echo {
                identifier: *identifier,
                reply: !reply,
            },
            other => other.clone(),
        }
    }
}
