//! The eBPF objects that the build script compiled, embedded in the agent.
//!
//! Both are empty when the tools were missing at build time (see `build.rs`): whoever loads one says so and names
//! `cargo xtask setup`, so that everything that needs no kernel still builds and runs.

/// The classifiers of the agent, as an ELF object; empty when it was built without the eBPF tools.
pub static NETPOL: &[u8] = aya::include_bytes_aligned!(env!("NETPOL_EBPF_OBJECT"));

/// The programs that benchmarks compare the classifiers with; empty when it was built without the eBPF tools.
pub static YARDSTICK: &[u8] = aya::include_bytes_aligned!(env!("YARDSTICK_EBPF_OBJECT"));
