//! Benchmarks.

pub mod datapath;
mod world;
