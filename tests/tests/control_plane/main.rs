//! The agent against a real kube-apiserver and etcd: pods are the lab's, and everything that the agent hears of them comes
//! from the API.
//!
//! One program of its own, because it needs two binaries that nothing else needs: `cargo xtask test` builds them, and
//! `cargo xtask test --without-control-plane` leaves this program out.

mod addresses;
mod away;
mod cluster;
mod defaults;
mod nodes;
mod permissions;
mod pods;
mod rejections;
mod scenarios;
mod starting;
mod waiting;
