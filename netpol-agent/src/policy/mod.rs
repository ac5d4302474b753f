//! The policy compiler: Kubernetes objects in, edits of tables out. Pure: no I/O, no async, no kernel.

pub mod edit;
pub mod object;
