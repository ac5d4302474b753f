//! The links and endpoints of the dataplane on this kernel: what is pinned is found again, and what has gone is cleared away.

use std::{collections::BTreeSet, fs, net::Ipv4Addr, os::fd::AsFd as _};

use anyhow::{Context as _, ensure};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use netpol_agent::{
    dataplane::{Dataplane, HookChoice, Sizes},
    packet_builder::{Payload, frame},
};
use netpol_common::{Direction, Endpoint, Isolation, map, size};
use netpol_tests::{
    kernel::{Bench, LOOPBACK, PASS},
    lab::Netlink,
};

fn endpoint(slot: u32) -> Endpoint {
    Endpoint {
        slot,
        ingress: Isolation::by(7),
        ..Endpoint::default()
    }
}

/// A device of this thread's namespace, and its index.
fn device(runtime: &tokio::runtime::Runtime, name: &'static str) -> anyhow::Result<u32> {
    Ok(runtime.block_on(async { Netlink::open()?.bridge(name, [2, 0, 0, 0, 0, 1]).await })?)
}

#[test]
fn links_of_devices_that_have_gone_are_collected() -> anyhow::Result<()> {
    for hook in [HookChoice::Tcx, HookChoice::Clsact] {
        let mut bench = Bench::with("links", Sizes::default(), hook)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (gone, stays) = (device(&runtime, "gone0")?, device(&runtime, "stays0")?);
        for (slot, index, name) in [(0, gone, "gone0"), (1, stays, "stays0")] {
            bench.dataplane.set_endpoint(index, &endpoint(slot))?;
            bench.dataplane.attach(index, name)?;
        }
        ensure!(bench.dataplane.attached()? == BTreeSet::from([gone, stays]));
        runtime.block_on(async { Netlink::open()?.remove(gone).await })?;

        let next: Dataplane = bench.open_again(HookChoice::Auto)?;
        ensure!(
            next.attached()? == BTreeSet::from([stays]),
            "{hook:?}: pins of {:?}, and only device {stays} is there",
            next.attached()?
        );
        let endpoints: Vec<u32> = next
            .endpoints()?
            .into_iter()
            .map(|(index, _)| index)
            .collect();
        ensure!(endpoints == [stays], "{hook:?}: endpoints of {endpoints:?}");
    }
    Ok(())
}

/// The kernel gives indexes out again: a pin may name a device that is another one now.
#[test]
fn a_device_that_got_the_index_of_another_is_hooked_anew() -> anyhow::Result<()> {
    for hook in [HookChoice::Tcx, HookChoice::Clsact] {
        let mut bench = Bench::with("index", Sizes::default(), hook)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let here = fs::File::open("/proc/thread-self/ns/net")?;
        let make = |name: &'static str, peer: &'static str| {
            let here = here.as_fd();
            runtime.block_on(async move { Netlink::open()?.veth((name, 50), peer, here).await })
        };
        let index = make("first0", "first1")?;
        bench.dataplane.set_endpoint(index, &endpoint(0))?;
        bench.dataplane.attach(index, "first0")?;
        runtime.block_on(async { Netlink::open()?.remove(index).await })?;
        ensure!(make("second0", "second1")? == index);

        let mut next = bench.open_again(hook)?;
        next.set_endpoint(index, &endpoint(0))?;
        next.attach(index, "second0")?;
        let programs: Vec<usize> = match hook {
            HookChoice::Clsact => runtime
                .block_on(async { Netlink::open()?.filters(index).await })?
                .into(),
            _ => [TcAttachType::Ingress, TcAttachType::Egress]
                .into_iter()
                .map(|hook| Ok(SchedClassifier::query_tcx("second0", hook)?.1.len()))
                .collect::<Result<_, ProgramError>>()?,
        };
        ensure!(
            programs == [1, 1],
            "{hook:?}: programs at ingress and egress of the new device: {programs:?}"
        );
    }
    Ok(())
}

#[test]
fn the_epoch_and_the_endpoints_outlive_the_process() -> anyhow::Result<()> {
    let mut bench = Bench::new("outlive")?;
    let first = bench.dataplane.epoch();
    ensure!(bench.dataplane.raise_epoch()? == first + 1);
    bench.dataplane.set_endpoint(LOOPBACK, &endpoint(5))?;
    let mut next = bench.open_again(HookChoice::Auto)?;
    ensure!(next.epoch() == first + 1, "{}", next.epoch());
    ensure!(next.endpoints()? == [(LOOPBACK, endpoint(5))]);
    ensure!(next.raise_epoch()? == first + 2);

    for index in 2..=size::SLOTS {
        bench.dataplane.set_endpoint(index, &endpoint(index - 1))?;
    }
    let error = bench.dataplane.set_endpoint(size::SLOTS + 1, &endpoint(0));
    let told = error.err().context("there is no place left")?.to_string();
    ensure!(
        told.contains("ENDPOINTS") && told.contains("it is full"),
        "{told}"
    );
    Ok(())
}

#[test]
fn what_was_counted_goes_with_the_endpoint() -> anyhow::Result<()> {
    let mut bench = Bench::new("counted")?;
    bench.dataplane.set_endpoint(
        LOOPBACK,
        &Endpoint {
            slot: 3,
            ..Endpoint::default()
        },
    )?;
    let mut programs = bench.load(netpol_agent::object::NETPOL)?;
    let packet = frame(
        Ipv4Addr::new(10, 0, 0, 1).into(),
        Ipv4Addr::new(10, 0, 0, 2).into(),
        Payload::syn(4000, 80),
    )
    .context("a packet")?;
    for _ in 0..5 {
        let (verdict, _) = programs.execute(map::POD_INGRESS, &packet, 2, 1)?;
        ensure!(verdict == PASS, "an open pod: {verdict}");
    }
    let sum = |bench: &Bench, slot| -> anyhow::Result<u64> {
        Ok(bench.counted(slot, Direction::Ingress)?.iter().sum())
    };
    ensure!(sum(&bench, 3)? == 5, "{} packets counted", sum(&bench, 3)?);
    ensure!(sum(&bench, 4)? == 0, "counted for another slot");
    bench.dataplane.remove_endpoint(LOOPBACK)?;
    ensure!(
        sum(&bench, 3)? == 0,
        "the next pod in slot 3 begins with {} packets",
        sum(&bench, 3)?
    );
    Ok(())
}

/// An agent can be killed before it has pinned its filter, and a bpf file system be unmounted.
#[test]
fn a_filter_whose_pin_is_lost_is_replaced() -> anyhow::Result<()> {
    let mut bench = Bench::with("lost", Sizes::default(), HookChoice::Clsact)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let index = device(&runtime, "lost0")?;
    bench.dataplane.set_endpoint(index, &endpoint(0))?;
    bench.dataplane.attach(index, "lost0")?;
    let pins = bench.pins().join(format!("v{}", map::SCHEMA));
    for direction in Direction::BOTH {
        fs::remove_file(pins.join(format!("clsact-{index}-{direction}")))?;
    }

    let mut next = bench.open_again(HookChoice::Clsact)?;
    next.attach(index, "lost0")
        .context("the next agent must take the filter over")?;
    ensure!(next.attached()? == BTreeSet::from([index]));
    Ok(())
}
