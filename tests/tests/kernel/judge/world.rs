//! The node on which every story plays: three pods, their peers, and the tables at the beginning.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netpol_agent::policy::edit::Edit;
use netpol_common::{
    ALL_PORTS, Address, Endpoint, Isolation, NO_CLASS, Peer, PortKey, RuleKey, TunnelKey, protocol,
};
use proptest::prelude::*;

/// A pod of the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pod {
    A,
    B,
    /// Has a device, and no endpoint.
    C,
}

impl Pod {
    pub const ALL: [Self; 3] = [Self::A, Self::B, Self::C];

    /// The index of its endpoint: the first but one, the very last, and one that nobody has.
    pub const fn slot(self) -> u32 {
        match self {
            Self::A => 1,
            Self::B => 1022,
            Self::C => 7,
        }
    }

    pub const fn mac(self) -> [u8; 6] {
        [2, 0, 0, 0, 0, self as u8 + 1]
    }

    pub const fn who(self) -> Who {
        match self {
            Self::A => Who::PodA,
            Self::B => Who::PodB,
            Self::C => Who::PodC,
        }
    }
}

/// Whose address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    PodA,
    PodB,
    PodC,
    /// Of a class that may use some ports.
    Friend,
    /// Of a class without a row.
    Named,
    /// In a block that may use all ports.
    Block,
    /// In no block but `::/0`.
    Stranger,
    Node,
    Service,
    /// An address of the node that is one of a Service too.
    External,
    Group,
    Broadcast,
    Loopback,
    /// `0.0.0.0` and `::`.
    Nobody,
    /// Pod A's own on its link.
    LinkLocal,
    OtherLink,
    /// The IPv4 address of [`Who::Block`], in an IPv6 header too.
    Mapped,
    /// What masquerade gives to a packet that leaves by a device without Ethernet headers. There the kernel makes of these bytes
    /// the EtherType of a test packet: it takes them for a frame (net/bpf/test_run.c, `eth_type_trans`).
    Bare,
}

impl Who {
    pub fn address(self, v6: bool) -> IpAddr {
        let four = |a: [u8; 4]| IpAddr::V4(Ipv4Addr::from(a));
        let six = |a: [u16; 8]| IpAddr::V6(Ipv6Addr::from(a));
        let (v4, other) = match self {
            Self::PodA => ([10, 1, 0, 1], [0xfd00, 0, 0, 0, 0, 0, 0, 1]),
            Self::PodB => ([10, 1, 0, 2], [0xfd00, 0, 0, 0, 0, 0, 0, 2]),
            Self::PodC => ([10, 1, 0, 3], [0xfd00, 0, 0, 0, 0, 0, 0, 3]),
            Self::Friend => ([10, 2, 0, 5], [0xfd00, 0, 0, 0, 0, 0, 1, 5]),
            Self::Named => ([10, 2, 0, 6], [0xfd00, 0, 0, 0, 0, 0, 1, 6]),
            Self::Block => ([192, 0, 2, 7], [0x2001, 0xdb8, 0, 0, 0, 0, 0, 7]),
            Self::Stranger => ([198, 51, 100, 1], [0x2002, 0, 0, 0, 0, 0, 0, 1]),
            Self::Node => ([10, 1, 0, 254], [0xfd00, 0, 0, 0, 0, 0, 1, 0xfe]),
            Self::Service => ([10, 96, 0, 1], [0xfd00, 0x96, 0, 0, 0, 0, 0, 1]),
            Self::External => ([10, 96, 0, 2], [0xfd00, 0x96, 0, 0, 0, 0, 0, 2]),
            Self::Group => ([224, 0, 0, 251], [0xff02, 0, 0, 0, 0, 0, 0, 0xfb]),
            Self::Broadcast => ([10, 1, 0, 255], [0xff02, 0, 0, 0, 0, 0, 0, 1]),
            Self::Loopback => ([127, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 1]),
            Self::Nobody => ([0; 4], [0; 8]),
            Self::LinkLocal => ([10, 1, 0, 1], [0xfe80, 0, 0, 0, 0, 0, 0, 0xa]),
            Self::OtherLink => ([169, 254, 0, 1], [0xfe80, 0, 0, 0, 0, 0, 0, 1]),
            Self::Mapped => ([192, 0, 2, 7], [0, 0, 0, 0, 0, 0xffff, 0xc000, 0x0207]),
            Self::Bare => ([8, 0, 0, 1], [0xfd00, 0, 0x86dd, 0, 0, 0, 0, 1]),
        };
        if v6 { six(other) } else { four(v4) }
    }
}

/// May use some ports of [`SOME_PORTS`] from class 5, and everything from class 7.
const RULESET: u64 = 900;
/// Class 5 may use everything, everybody some.
const OTHER_RULESET: u64 = 901;
/// Has no row.
const DENY: u64 = 12_345;
const SOME_PORTS: u64 = 70;
const EVERYBODY: u64 = 71;

/// How a direction may be isolated.
pub const ISOLATIONS: [Isolation; 4] = [
    Isolation::OPEN,
    Isolation::by(RULESET),
    Isolation::by(OTHER_RULESET),
    Isolation::by(DENY),
];

/// The row that a change of the policies takes away, or gives back.
pub const fn row(present: bool) -> Edit {
    Edit::Rule {
        key: RuleKey {
            ruleset: RULESET,
            class: 5,
        },
        ports: if present { Some(SOME_PORTS) } else { None },
    }
}

/// Everything but endpoints, as it is when a story begins.
pub fn edits() -> Vec<Edit> {
    let host = |who: Who, v6, class, flags| Edit::Host {
        address: who.address(v6).into(),
        peer: Some(Peer {
            class,
            flags,
            pad: 0,
        }),
    };
    let net = |ip: IpAddr, bits, class| Edit::Net {
        address: ip.into(),
        bits,
        peer: Some(Peer::of(class)),
    };
    let port = |set, protocol, port, bits| Edit::Port {
        key: PortKey::new(set, protocol, port),
        bits,
        present: true,
    };
    let rule = |ruleset, class, ports| Edit::Rule {
        key: RuleKey { ruleset, class },
        ports: Some(ports),
    };
    let mut edits = vec![
        // 80 and 8192..8447 of TCP, all of UDP; 53 of UDP for everybody.
        port(SOME_PORTS, protocol::TCP, 80, 96),
        port(SOME_PORTS, protocol::TCP, 8192, 88),
        port(SOME_PORTS, protocol::UDP, 0, 80),
        port(EVERYBODY, protocol::UDP, 53, 96),
        port(EVERYBODY, protocol::SCTP, 9, 96),
        row(true),
        rule(RULESET, 7, ALL_PORTS),
        rule(OTHER_RULESET, 5, ALL_PORTS),
        rule(OTHER_RULESET, NO_CLASS, EVERYBODY),
        net(Ipv4Addr::UNSPECIFIED.into(), 96, NO_CLASS),
        net(Ipv4Addr::new(192, 0, 2, 0).into(), 120, 7),
        net(Ipv6Addr::UNSPECIFIED.into(), 0, 5),
        net(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0).into(), 32, 7),
    ];
    for v6 in [false, true] {
        edits.extend([
            host(Who::PodA, v6, 5, 0),
            host(Who::PodB, v6, 6, 0),
            host(Who::Friend, v6, 5, 0),
            host(Who::Named, v6, 6, 0),
            host(Who::Node, v6, NO_CLASS, Peer::NODE),
            host(Who::Service, v6, NO_CLASS, Peer::SERVICE),
            host(Who::External, v6, 5, Peer::SERVICE | Peer::NODE),
            host(Who::Bare, v6, NO_CLASS, Peer::NODE),
        ]);
    }
    edits
}

/// The port of the node's VXLAN device.
pub const VXLAN: u16 = 8472;

/// What the node takes out of its envelope.
pub const TUNNELS: [TunnelKey; 3] = [
    TunnelKey {
        protocol: protocol::UDP as u16,
        port: VXLAN,
    },
    TunnelKey {
        protocol: protocol::GRE as u16,
        port: 0,
    },
    TunnelKey {
        protocol: protocol::IPV4 as u16,
        port: 0,
    },
];

/// What is known of a pod.
#[derive(Clone, Debug)]
pub struct Profile {
    ingress: Isolation,
    egress: Isolation,
    guarded: bool,
    /// Which of its addresses are known: IPv4, IPv6, link-local, hardware.
    knows: [bool; 4],
}

pub fn profiles() -> impl Strategy<Value = Profile> {
    let isolation = || prop::sample::select(&ISOLATIONS[..]);
    let known = prop_oneof![5 => Just([true; 4]), 1 => any::<[bool; 4]>()];
    (isolation(), isolation(), prop::bool::weighted(0.6), known).prop_map(
        |(ingress, egress, guarded, knows)| Profile {
            ingress,
            egress,
            guarded,
            knows,
        },
    )
}

impl Profile {
    /// All is known, and nobody guards who is who.
    pub const fn plain(ingress: Isolation, egress: Isolation) -> Self {
        Self {
            ingress,
            egress,
            guarded: false,
            knows: [true; 4],
        }
    }

    /// The endpoint of a pod with this profile.
    pub fn endpoint(&self, pod: Pod) -> Endpoint {
        let [v4, v6, link_local, mac] = self.knows;
        let address = |known: bool, who: Who, v6| match known {
            true => Address::from(who.address(v6)),
            false => Address::NONE,
        };
        let mut hardware = [0; 8];
        if mac {
            hardware[..6].copy_from_slice(&pod.mac());
        }
        Endpoint {
            slot: pod.slot(),
            // No program here was loaded for tracing: the flag means nothing.
            flags: Endpoint::TRACE | if self.guarded { Endpoint::GUARD } else { 0 },
            ingress: self.ingress,
            egress: self.egress,
            ipv4: address(v4, pod.who(), false),
            ipv6: address(v6, pod.who(), true),
            link_local: address(link_local && pod == Pod::A, Who::LinkLocal, true),
            mac: hardware,
        }
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = |isolation: Isolation| match isolation.ruleset() {
            None => "open".to_owned(),
            Some(ruleset) => format!("by {ruleset}"),
        };
        let [v4, v6, link_local, mac] = self.knows;
        write!(
            f,
            "ingress {}, egress {}, {}; known: IPv4 {v4}, IPv6 {v6}, link-local {link_local}, MAC {mac}",
            side(self.ingress),
            side(self.egress),
            if self.guarded {
                "guarded"
            } else {
                "not guarded"
            },
        )
    }
}
