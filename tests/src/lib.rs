//! The lab: a node and its pods as network namespaces, probers for every pair of them, and the real agent in the middle.
//!
//! - [`manifests`]: the world as ordinary Kubernetes manifests
//! - [`lab`]: that world as network namespaces with servers and probers
//! - [`table`]: who reaches whom, as text, matrix and difference
//! - [`agent`]: the real agent as a child process on the lab's node
//! - [`cluster`]: the scenarios as real pods of a real cluster
//! - [`control_plane`]: a real kube-apiserver and etcd for the lab's pods
//! - [`mod@bench`]: what the datapath costs
//! - [`deploy`]: the manifests of `deploy/`
//! - [`kernel`]: the programs, fed with single packets
//! - [`mod@reference`]: the table that the naive evaluator expects
//! - [`scenario`]: directories with a world, its policies and the expected tables
//! - [`story`]: what tests of the agent's contract share

pub mod agent;
pub mod bench;
pub mod cluster;
pub mod control_plane;
pub mod deploy;
pub mod kernel;
pub mod lab;
pub mod manifests;
pub mod reference;
pub mod scenario;
pub mod story;
pub mod table;
