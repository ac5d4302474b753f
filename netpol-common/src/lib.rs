//! What the kernel programs and the agent both know.
//!
//! This crate is `no_std` and free of Kubernetes: it holds the layout of every eBPF map, how a packet is parsed, and the
//! decision procedure that judges it. The classifiers in `netpol-ebpf` run it on socket buffers and kernel maps; the agent
//! runs the very same functions on byte slices and tables in memory, so that what is tested, explained and enforced is
//! one thing.
//!
//! # Vocabulary
//!
//! | word | meaning | type |
//! |---|---|---|
//! | address | an IPv4 or IPv6 address in sixteen bytes | [`Address`] |
//! | direction | ingress or egress, always seen from the pod | [`Direction`] |
//! | endpoint | a pod of this node as the kernel knows it: its host interface and its rulesets | [`Endpoint`] |
//! | isolation | open, or isolated by a ruleset, in one direction | [`Isolation`] |
//! | peer | the other end of a packet, seen from the pod | [`Peer`] |
//! | term | one thing a rule can say about a peer: a pair of selectors, or an `ipBlock` | `netpol_agent::policy` |
//! | class | all addresses that match exactly the same terms | [`ClassId`] |
//! | ruleset | the port sets that each class may use, in one direction | [`RulesetId`] |
//! | port set | protocols and ports that a rule allows | [`PortSetId`] |
//! | flow | both directions of one conversation of one endpoint | [`FlowKey`], [`Flow`] |
//! | epoch | the number of the last change of any table | `u32` |
//! | deferral | the verdict on a packet to a Service or the node, put off until it has its real destination; the packet carries a mark | [`Deferral`], [`MarkField`] |
//! | ticket | where the hook that defers leaves the flow's key for the hook that judges | [`FlowKey::ticket`] |
//! | guard | a pod speaks only for itself, and hears only what is meant for it | [`Endpoint::GUARD`] |
//! | slot | a small number for an endpoint, the index of its statistics | `u32` |
//! | verdict | pass or drop, with the reason | [`Reason`] |
#![no_std]

mod address;
mod flow;
mod guard;
mod judge;
mod packet;
mod parse;
mod tables;
mod verdict;

pub use address::Address;
pub use flow::{Flow, FlowKey, FlowRef, Phase, TICK_SHIFT, Tick, is_stream, lifetime};
pub use judge::{Tables, host_egress, judge};
pub use packet::{
    Dropped, FRAGMENT_LIFETIME, Found, Frame, Kind, Packet, Parsed, Piece, Scratch, chunk, icmp,
    is_group, is_loopback, protocol, tcp,
};
pub use parse::parse;
pub use tables::{
    ALL_PORTS, Budget, ClassId, Deferral, Endpoint, Event, Fragment, FragmentKey, Isolation,
    MarkField, NO_CLASS, NO_PORTS, Peer, PortKey, PortSetId, RuleKey, RulesetId, SLOT_OF_NOBODY,
    Tally, TunnelKey, lost, map, size,
};
pub use verdict::{Direction, Reason};
