//! Everything that needs root and this kernel: programs on single packets, the lab by itself, and the agent in the lab.
//!
//! One program, so that it is linked once; built with the feature `kernel`, so that a plain `cargo test` needs no root.
//! `cargo xtask test` runs it; `cargo xtask test --only NAME` a part of it.

mod agent_cleanup;
mod agent_events;
mod agent_host_hooks;
mod agent_http;
mod agent_interfaces;
mod agent_manifests;
mod agent_mounts;
mod agent_refusals;
mod agent_return;
mod agent_status;
mod agent_wait;
mod dataplane_links;
mod dataplane_tables;
mod deploy_capabilities;
mod flow_repair;
mod flow_table;
mod judge;
mod lab_agent;
mod lab_cleanup;
mod lab_denies;
mod lab_open;
mod lab_program;
mod lab_services;
mod lab_world;
mod nodes;
mod nodes_wire;
mod scenarios;
mod services;
mod services_egress;
mod tcp_openings;
