//! Enforces Kubernetes NetworkPolicy on the pods of one node with eBPF.
//!
//! Data flows one way: [`cluster`] (objects) and [`node`] (interfaces) feed [`policy`] (the compiler), whose edits go to
//! [`dataplane`] (maps and links). [`agent`] is the one loop that joins them.

pub mod agent;
pub mod cli;
pub mod cluster;
pub mod conntrack;
pub mod dataplane;
mod netlink;
pub mod node;
pub mod object;
pub mod packet_builder;
pub mod policy;
