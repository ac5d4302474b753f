//! Every device of the node carries programs, whatever it is and whenever it comes; and the agent knows what the node opens and
//! who its pods are.

use std::{collections::BTreeSet, fs, os::fd::AsFd as _};

use anyhow::{Context as _, ensure};
use aya::maps::{HashMap, Map, MapData};
use netpol_common::{Endpoint, TunnelKey, map};
use netpol_tests::{
    agent::{Agent, Console, Hook, hooks},
    lab::{Lab, PREFIX, Shape, Station, Vxlan},
    manifests::World,
    story::{FRIENDS, FRIENDS_ONLY, Files, THREE_PODS, expect, status_until},
    table::Party,
};

const SHAPE: Shape = Shape::Bridge {
    br_netfilter: false,
};

fn world() -> anyhow::Result<Lab> {
    let lab = Lab::new(SHAPE, World::parse(THREE_PODS))?;
    Files::of(&lab).write("web.yaml", FRIENDS)?;
    Ok(lab)
}

fn one(hook: Hook) -> hooks::Programs {
    match hook {
        Hook::Clsact => hooks::Programs::CLSACT,
        _ => hooks::Programs::TCX,
    }
}

fn devices(lab: &Lab) -> anyhow::Result<BTreeSet<u32>> {
    let all = lab
        .node()
        .configure(|netlink| async move { netlink.indexes().await })?;
    Ok(all.into_iter().collect())
}

/// Every device has the programs of its kind: those in `pods` both, any other one at egress.
fn hooked(lab: &Lab, hook: Hook, pods: &BTreeSet<u32>) -> anyhow::Result<()> {
    for device in devices(lab)? {
        let found = hooks::attached(lab, device)?;
        let wanted = if pods.contains(&device) {
            [one(hook); 2]
        } else {
            [hooks::Programs::NONE, one(hook)]
        };
        ensure!(found == wanted, "{hook}: device {device} has {found:?}");
    }
    Ok(())
}

/// The veths of the node that lead to another namespace.
fn veths(lab: &Lab) -> anyhow::Result<BTreeSet<u32>> {
    let mut veths = BTreeSet::new();
    for name in ["web", "friend", "other"] {
        veths.insert(lab.device(&Party::pod("a", name))?);
    }
    // The lab's uplink is a veth, too.
    veths.insert(100);
    Ok(veths)
}

#[test]
fn every_device_carries_programs_as_soon_as_it_is_there() -> anyhow::Result<()> {
    for hook in [Hook::Tcx, Hook::Clsact] {
        let lab = world()?;
        let mut agent = Agent::start(&lab, hook)?;
        agent.wait()?;
        let mut pods = veths(&lab)?;
        hooked(&lab, hook, &pods)?;

        // A bridge, a pair of veths that is nobody's, and one that is half a pod's before there is a pod.
        let stranger = Station::create(format!("{PREFIX}{}-stranger", lab.run_dir().id()))?;
        lab.node().connect(("leg0", 901), &stranger, "eth1")?;
        let own = lab.node().namespace.open()?;
        let (bridge, peer) = lab.node().configure(move |netlink| async move {
            let bridge = netlink.bridge("late0", [2, 0, 0, 0, 9, 1]).await?;
            netlink.veth(("pair0", 902), "pair1", own.as_fd()).await?;
            Ok((bridge, netlink.index("pair1").await?))
        })?;
        pods.insert(901);
        let count = |status: &serde_json::Value, key: &str| status["devices"][key].as_u64();
        let others = devices(&lab)?.len() - pods.len();
        status_until(&agent, "the new devices are hooked unasked", |status| {
            count(status, "pods") == Some(pods.len() as u64)
                && count(status, "others") == Some(others as u64)
        })?;
        hooked(&lab, hook, &pods)?;

        // The other end of the pair goes away: what is left leads to a pod.
        let theirs = stranger.namespace.open()?;
        lab.node().configure(move |netlink| async move {
            netlink.give(peer, theirs.as_fd()).await?;
            netlink.remove(bridge).await
        })?;
        pods.insert(902);
        status_until(&agent, "a veth has become a pod's", |status| {
            count(status, "pods") == Some(pods.len() as u64)
        })?;
        agent.wait()?;
        hooked(&lab, hook, &pods)?;
        for gone in [bridge, peer] {
            ensure!(
                !hooks::pinned_devices(&lab).contains(&gone),
                "{hook}: pins of device {gone}, which has gone: {:?}",
                hooks::pins(&lab)
            );
        }
        expect(&lab, &format!("{hook}, with all that"), FRIENDS_ONLY)?;

        // The next agent finds all of it, also with the other kind of hook.
        agent.kill()?;
        let next = match hook {
            Hook::Clsact => Hook::Tcx,
            _ => Hook::Clsact,
        };
        let mut agent = Agent::start(&lab, next)?;
        agent.wait()?;
        hooked(&lab, next, &pods)?;
        agent.stop()?;
        let said = Console::new(&lab)?.cleanup()?;
        ensure!(said.code == Some(0), "{said}");
        for device in devices(&lab)? {
            let found = hooks::attached(&lab, device)?;
            ensure!(found == [hooks::Programs::NONE; 2], "{device}: {found:?}");
        }
    }
    Ok(())
}

fn pinned<K: aya::Pod, V: aya::Pod>(
    lab: &Lab,
    table: &str,
) -> anyhow::Result<HashMap<MapData, K, V>> {
    let schema = lab.run_dir().bpf().join(format!("v{}", map::SCHEMA));
    Ok(Map::HashMap(MapData::from_pin(schema.join(table))?).try_into()?)
}

fn tunnels(lab: &Lab) -> anyhow::Result<Vec<(u16, u16)>> {
    let keys = pinned::<TunnelKey, u32>(lab, map::TUNNELS)?
        .keys()
        .collect::<Result<BTreeSet<_>, _>>()?;
    Ok(keys.into_iter().map(|k| (k.protocol, k.port)).collect())
}

#[test]
fn what_the_node_takes_out_of_its_envelope_is_known() -> anyhow::Result<()> {
    let lab = world()?;
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    agent.wait()?;
    ensure!(tunnels(&lab)?.is_empty(), "{:?}", tunnels(&lab)?);
    let device = lab.node().configure(|netlink| async move {
        let below = netlink.bridge("below0", [2, 0, 0, 0, 9, 3]).await?;
        let vxlan = Vxlan {
            vni: 1,
            below,
            port: 8472,
            local: "192.0.2.1".parse().unwrap_or([0; 4].into()),
            mtu: 1400,
            mac: [2, 0, 0, 0, 9, 4],
        };
        netlink.vxlan("flannel.1", vxlan).await
    })?;
    agent.wait()?;
    ensure!(tunnels(&lab)? == [(17, 8472)], "{:?}", tunnels(&lab)?);
    lab.node()
        .configure(move |netlink| async move { netlink.remove(device).await })?;
    agent.wait()?;
    ensure!(tunnels(&lab)?.is_empty(), "{:?}", tunnels(&lab)?);
    agent.stop()?;
    Ok(())
}

#[test]
fn an_endpoint_knows_who_its_pod_is() -> anyhow::Result<()> {
    let lab = world()?;
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    agent.wait()?;
    let web = Party::pod("a", "web");
    let device = lab.device(&web)?;
    let endpoint = || -> anyhow::Result<Endpoint> {
        Ok(pinned::<u32, Endpoint>(&lab, map::ENDPOINTS)?.get(&device, 0)?)
    };
    let (eth0, mac) = lab.station(&web)?.configure(|netlink| async move {
        let eth0 = netlink.index("eth0").await?;
        Ok((eth0, netlink.mac(eth0).await?))
    })?;
    let first = endpoint()?;
    ensure!(first.guarded() && first.mac[..6] == mac, "{first:?}");
    let link_local = first.link_local.0;
    ensure!(link_local[..2] == [0xfe, 0x80], "{first:?}");

    let other = [2, 0, 0, 0, 9, 5];
    lab.station(&web)?
        .configure(move |netlink| async move { netlink.set_mac(eth0, other).await })?;
    agent.wait()?;
    let second = endpoint()?;
    ensure!(second.mac[..6] == other, "{second:?}");
    let unguarded = Endpoint { flags: 0, ..second };
    agent.stop()?;

    let mut agent = Agent::start_at(&lab, &lab.manifests(), Hook::Auto, &["--allow-spoofing"])?;
    agent.wait()?;
    ensure!(endpoint()? == unguarded, "{:?}", endpoint()?);
    agent.stop()?;
    Ok(())
}

/// The older `ingress` qdisc has no egress; the kernel would put an egress filter at ingress without a word.
#[test]
fn a_device_that_cannot_be_hooked_is_told_and_nothing_else_waits_for_it() -> anyhow::Result<()> {
    for hook in [Hook::Clsact, Hook::Tcx] {
        let lab = world()?;
        let odd = lab.node().configure(|netlink| async move {
            let odd = netlink.bridge("odd0", [2, 0, 0, 0, 9, 6]).await?;
            netlink.ingress_qdisc(odd).await?;
            Ok(odd)
        })?;
        let mut agent = Agent::start(&lab, hook)?;
        if hook == Hook::Clsact {
            let said = Console::new(&lab)?.wait("3s")?;
            ensure!(said.code == Some(1), "{said}");
            let told = said.to_string();
            for part in ["odd0", "`ingress`", "tc qdisc del dev odd0 ingress"] {
                ensure!(told.contains(part), "no {part} in: {told}");
            }
            expect(&lab, "beside a device without programs", FRIENDS_ONLY)?;
            ensure!(hooks::attached(&lab, odd)? == [hooks::Programs::NONE; 2]);
            lab.node()
                .configure(move |netlink| async move { netlink.remove_ingress_qdisc(odd).await })?;
        }
        // It is tried again; and TCX does not mind.
        agent.wait()?;
        expect(&lab, "with all its programs", FRIENDS_ONLY)?;
        hooked(&lab, hook, &veths(&lab)?)?;
        agent.stop()?;
    }
    Ok(())
}

/// Filters can be taken off only where their devices are.
#[test]
fn cleanup_elsewhere_does_not_say_that_filters_are_gone() -> anyhow::Result<()> {
    let lab = world()?;
    let mut agent = Agent::start(&lab, Hook::Clsact)?;
    agent.wait()?;
    agent.stop()?;
    let elsewhere = std::thread::spawn({
        let bpf = lab.run_dir().bpf();
        move || -> anyhow::Result<String> {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
            let refused = netpol_agent::dataplane::cleanup(&bpf, false);
            Ok(refused.err().context("is refused")?.to_string())
        }
    });
    let told = elsewhere.join().map_err(|_| anyhow::anyhow!("a panic"))??;
    ensure!(told.contains("another network namespace"), "{told}");
    expect(&lab, "after a cleanup elsewhere", FRIENDS_ONLY)?;
    let said = Console::new(&lab)?.cleanup()?;
    ensure!(said.code == Some(0), "{said}");
    ensure!(fs::exists(lab.run_dir().bpf())? && hooks::pins(&lab).is_empty());
    Ok(())
}
