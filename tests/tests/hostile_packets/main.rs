//! Packets that no honest pod sends, and their honest twins.
//!
//! Raw frames leave a pod, and every pod's `eth0` is watched. For each frame a row says its [`stage::Fate`]: where it is counted,
//! under which reason, and at whom it arrives. What is counted as dropped must arrive nowhere; what passes must arrive.

mod rows;
mod stage;
mod wire;
mod world;

use netpol_tests::{agent::Hook, lab::Shape};
use stage::Stage;

fn play_all(shape: Shape, hook: Hook) -> anyhow::Result<()> {
    let stage = Stage::new(shape, hook)?;
    rows::options::play(&stage);
    rows::truncated::play(&stage);
    rows::extensions::play(&stage);
    rows::fragments::play(&stage);
    rows::envelopes::play(&stage);
    rows::identity::play(&stage);
    rows::places::play(&stage);
    rows::protocols::play(&stage);
    rows::icmp::play(&stage);
    rows::tunnels::play(&stage);
    rows::sockets::play(&stage)?;
    rows::path_mtu::play(&stage)?;
    stage.end()
}

/// On a node with tunnels, beside another one, and with Services.
fn play_abroad(shape: Shape, hook: Hook) -> anyhow::Result<()> {
    let stage = Stage::with_tunnels(shape, hook)?;
    rows::tunnels::vxlan(&stage)?;
    rows::services::play(&stage)?;
    rows::service_fragments::play(&stage)?;
    rows::sockets::play(&stage)?;
    stage.end()
}

#[test]
fn on_a_bridge_with_tcx() -> anyhow::Result<()> {
    play_all(Shape::Bridge { br_netfilter: true }, Hook::Tcx)
}

#[test]
fn on_a_bridge_with_clsact() -> anyhow::Result<()> {
    play_all(Shape::Bridge { br_netfilter: true }, Hook::Clsact)
}

#[test]
fn on_a_bridge_that_does_not_look_into_ip() -> anyhow::Result<()> {
    play_all(
        Shape::Bridge {
            br_netfilter: false,
        },
        Hook::Auto,
    )
}

#[test]
fn routed_with_tcx() -> anyhow::Result<()> {
    play_all(Shape::Routed, Hook::Tcx)
}

#[test]
fn routed_with_clsact() -> anyhow::Result<()> {
    play_all(Shape::Routed, Hook::Clsact)
}

#[test]
fn to_tunnels_and_services_with_tcx() -> anyhow::Result<()> {
    play_abroad(Shape::Bridge { br_netfilter: true }, Hook::Tcx)
}

#[test]
fn to_tunnels_and_services_with_clsact() -> anyhow::Result<()> {
    play_abroad(Shape::Routed, Hook::Clsact)
}
