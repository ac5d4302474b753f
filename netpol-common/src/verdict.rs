//! Directions and reasons.

/// A direction, always seen from the pod: ingress is what it receives.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Direction {
    /// Toward the pod.
    Ingress = 0,
    /// From the pod.
    Egress = 1,
}

impl Direction {
    /// The other one.
    #[inline(always)]
    pub const fn reverse(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }

    /// Both, for loops.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];
}

impl core::fmt::Display for Direction {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// Why a packet passed or was dropped. Every judged packet counts under exactly one reason.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// Passed: the endpoint is not isolated in the direction in which the flow was opened.
    Open = 0,
    /// Passed: it belongs to a flow that the current tables allow.
    Flow = 1,
    /// Passed: a rule allows it; its flow is remembered.
    Rule = 2,
    /// Passed: traffic between the pod and its own node.
    Node = 3,
    /// Passed: the pod talks to itself.
    Itself = 4,
    /// Passed: ARP, neighbour discovery or multicast listener discovery.
    Neighbour = 5,
    /// Passed: the endpoint is not isolated in this direction and the packet cannot be tracked (not IP, malformed, ...).
    Untracked = 6,
    /// Passed: the interface belongs to no endpoint (yet).
    Unknown = 7,
    /// Passed on: to an address behind which somebody else answers; judged where the packet leaves for its real
    /// destination.
    Deferred = 8,
    /// Passed: an ICMP error that quotes a packet of a flow that the current tables allow.
    Related = 9,
    /// Dropped: no rule allows it.
    Denied = 10,
    /// Dropped: it belongs to a flow that was allowed when it was opened and is not any more.
    Revoked = 11,
    /// Dropped: it opens nothing, belongs to no known flow, and no rule allows it.
    NoFlow = 12,
    /// Dropped: a header is malformed or cut off.
    Malformed = 13,
    /// Dropped: not ARP, IPv4 or IPv6, or with a VLAN tag.
    EtherType = 14,
    /// Dropped: a fragment whose first fragment is not known, or that would overwrite the headers in it.
    Fragment = 15,
    /// Dropped: more IPv6 extension headers than the parser follows, or a route that does not end at the destination address.
    Extensions = 16,
    /// Dropped: a router advertisement or redirect sent by a pod.
    Router = 17,
    /// Dropped: a pod sent it with an address that is not its own, or to an address that has no place on a wire.
    Spoofed = 18,
    /// Dropped: it came to a pod whose address is not its destination.
    Astray = 19,
    /// Dropped: a pod sent a packet in an envelope that the node would open, past every rule.
    Tunnel = 20,
}

impl Reason {
    /// How many reasons there are; statistics are indexed by them.
    pub const COUNT: usize = 21;

    /// All of them, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Open,
        Self::Flow,
        Self::Rule,
        Self::Node,
        Self::Itself,
        Self::Neighbour,
        Self::Untracked,
        Self::Unknown,
        Self::Deferred,
        Self::Related,
        Self::Denied,
        Self::Revoked,
        Self::NoFlow,
        Self::Malformed,
        Self::EtherType,
        Self::Fragment,
        Self::Extensions,
        Self::Router,
        Self::Spoofed,
        Self::Astray,
        Self::Tunnel,
    ];

    /// Whether a packet with this reason goes on.
    #[inline(always)]
    pub const fn passes(self) -> bool {
        (self as u8) < Self::Denied as u8
    }

    /// The name by which status, metrics and logs call this reason.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Flow => "flow",
            Self::Rule => "rule",
            Self::Node => "node",
            Self::Itself => "itself",
            Self::Neighbour => "neighbour",
            Self::Untracked => "untracked",
            Self::Unknown => "unknown",
            Self::Deferred => "deferred",
            Self::Related => "related",
            Self::Denied => "denied",
            Self::Revoked => "revoked",
            Self::NoFlow => "no-flow",
            Self::Malformed => "malformed",
            Self::EtherType => "ether-type",
            Self::Fragment => "fragment",
            Self::Extensions => "extensions",
            Self::Router => "router",
            Self::Spoofed => "spoofed",
            Self::Astray => "astray",
            Self::Tunnel => "tunnel",
        }
    }
}

impl core::fmt::Display for Reason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}
