//! A pod is found by its address, wherever its network namespace is and whenever it comes; and no other pod is taken for it.

use anyhow::{Context as _, ensure};
use ipnet::IpNet;
use netpol_tests::{
    agent::{Agent, Console, Hook, hooks},
    lab::{Hop, Lab, PREFIX, Restart, Shape, Station},
    manifests::World,
    story::{
        self, ALL_OPEN, CLOSED, FRIENDS, FRIENDS_ONLY, Files, THREE_PODS, expect, status_until,
    },
    table::Party,
};
use serde_json::{Value, json};

/// The lab's pods and a policy, in a directory that the lab does not write.
fn stage() -> anyhow::Result<(Lab, Files, Agent)> {
    let lab = Lab::new(Shape::Routed, World::parse(THREE_PODS))?;
    let files = Files::new(&lab)?;
    let pods = json!({"apiVersion": "v1", "kind": "List", "items": lab.documents("Pod")});
    files.write("pods.json", &pods.to_string())?;
    files.write("web.yaml", FRIENDS)?;
    let mut agent = Agent::start_at(&lab, files.path(), Hook::Auto, &[])?;
    agent.wait()?;
    Ok((lab, files, agent))
}

/// What the lab needs to make the pod `a/NAME`, which the policy selects, with the address 10.244.1.50.
fn sandbox(name: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{namespace: a, name: {name}, labels: {{app: web}}, \
         annotations: {{lab.netpol-agent/address-index: '50'}}}}, spec: {{containers: [{{name: c, ports: [{{containerPort: 80}}]}}]}}}}"
    )
}

/// What the agent needs to know of it.
fn manifest(name: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{namespace: a, name: {name}, labels: {{app: web}}}}, \
         spec: {{nodeName: node, containers: []}}, \
         status: {{phase: Running, podIPs: [{{ip: 10.244.1.50}}, {{ip: 'fd00:10:244:1::32'}}]}}}}"
    )
}

fn enforced(name: &'static str, device: u32) -> impl Fn(&Value) -> bool {
    move |status| {
        story::pod(status, "a", name)
            .is_ok_and(|pod| pod["enforced"] == true && pod["interface"]["index"] == device)
    }
}

fn late(name: &str) -> Party {
    Party::pod("a", name)
}

fn missing(agent: &Agent, name: &str, why: &str) -> anyhow::Result<()> {
    status_until(agent, &format!("a/{name} is missed, and why"), |status| {
        story::pod(status, "a", name).is_ok_and(|pod| {
            pod["interface"].is_null()
                && pod["missing"]
                    .as_str()
                    .is_some_and(|told| told.contains(why))
        })
    })?;
    Ok(())
}

const LATE: &str = "
a/late TCP/80
  open: a/friend
  denied: a/other a/web
";

#[test]
fn a_pod_is_found_whichever_comes_first() -> anyhow::Result<()> {
    let (mut lab, files, mut agent) = stage()?;
    files.write("late.yaml", &manifest("late"))?;
    agent
        .wait()
        .context("a pod without an interface holds nothing up")?;
    missing(&agent, "late", "no network namespace that is connected")?;
    lab.apply(&sandbox("late"))?;
    let device = lab.device(&late("late"))?;
    status_until(
        &agent,
        "the interface that came after the manifest is found",
        enforced("late", device),
    )?;
    expect(&lab, "with the interface after the manifest", LATE)?;

    files.delete("late.yaml")?;
    agent.wait()?;
    expect(
        &lab,
        "with an interface and no manifest",
        "a/late TCP/80\n  open: a/friend a/other a/web\n",
    )?;
    ensure!(
        hooks::attached(&lab, device)? == [hooks::Programs::TCX; 2],
        "its programs stay: what other pods send to it is judged there"
    );
    files.write("late.yaml", &manifest("late"))?;
    agent.wait()?;
    expect(&lab, "with the manifest after the interface", LATE)?;
    agent.stop()?;
    Ok(())
}

#[test]
fn an_address_that_comes_late_is_enough() -> anyhow::Result<()> {
    let (mut lab, files, mut agent) = stage()?;
    lab.apply(&sandbox("late"))?;
    let device = lab.device(&late("late"))?;
    let addresses: Vec<IpNet> = lab
        .addresses(&late("late"))?
        .iter()
        .copied()
        .map(IpNet::from)
        .collect();
    let take_away = |lab: &Lab| {
        let addresses = addresses.clone();
        lab.station(&late("late"))?.configure(|netlink| async move {
            let eth0 = netlink.index("eth0").await?;
            for address in addresses {
                netlink.remove_address(eth0, address).await?;
            }
            Ok(eth0)
        })
    };
    let eth0 = take_away(&lab)?;
    files.write("late.yaml", &manifest("late"))?;
    agent.wait()?;
    missing(&agent, "late", "no network namespace that is connected")?;

    let routers: [IpNet; 2] = ["10.244.1.1/32".parse()?, "fd00:10:244:1::1/128".parse()?];
    let everything: [IpNet; 2] = ["0.0.0.0/0".parse()?, "::/0".parse()?];
    let mut routes: Vec<_> = routers.map(|router| (router, Hop::Direct)).into();
    routes.extend(
        everything
            .into_iter()
            .zip(routers)
            .map(|(all, router)| (all, Hop::Via(router.addr()))),
    );
    // The kernel kept the routes of IPv6.
    routes.retain(|(to, _)| to.addr().is_ipv4());
    lab.station(&late("late"))?
        .address(eth0, addresses.clone(), routes)?;
    status_until(
        &agent,
        "the interface is found by the address that came last",
        enforced("late", device),
    )?;
    expect(&lab, "with the address at last", LATE)?;

    // A pod does not get rid of its policies by taking its address away.
    take_away(&lab)?;
    agent.wait()?;
    let status = agent.status()?;
    ensure!(enforced("late", device)(&status), "{status:#}");
    agent.stop()?;
    Ok(())
}

#[test]
fn a_restarted_pod_is_found_on_its_new_interface() -> anyhow::Result<()> {
    for hook in [Hook::Tcx, Hook::Clsact] {
        let mut lab = Lab::new(
            Shape::Bridge { br_netfilter: true },
            World::parse(THREE_PODS),
        )?;
        Files::of(&lab).write("web.yaml", FRIENDS)?;
        let mut agent = Agent::start(&lab, hook)?;
        agent.wait()?;
        for round in 0..4 {
            let old = lab.device(&late("web"))?;
            let restart = if round % 2 == 0 {
                Restart::SameAddress
            } else {
                Restart::NewAddress
            };
            lab.restart_pod("a", "web", restart)?;
            let new = lab.device(&late("web"))?;
            ensure!(old != new, "the lab gives every veth an index of its own");
            agent.wait()?;
            let status = agent.status()?;
            ensure!(
                enforced("web", new)(&status),
                "{hook}, {restart:?}: not on device {new}: {status:#}"
            );
            expect(&lab, &format!("{hook}, after {restart:?}"), FRIENDS_ONLY)?;
            ensure!(
                !hooks::pinned_devices(&lab).contains(&old),
                "{hook}, {restart:?}: a pin of device {old}, which has gone, stays: {:?}",
                hooks::pins(&lab)
            );
        }
        // And by itself, without anybody who waits.
        lab.restart_pod("a", "web", Restart::SameAddress)?;
        let device = lab.device(&late("web"))?;
        status_until(&agent, "it is found unasked", enforced("web", device))?;
        expect(&lab, &format!("{hook}, unasked"), FRIENDS_ONLY)?;
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn the_same_address_behind_another_node_is_not_taken() -> anyhow::Result<()> {
    let (mut lab, files, mut agent) = stage()?;
    // A pod of another node: a namespace on this machine whose peer is not on the lab's node.
    let stranger = Station::create(format!("{PREFIX}{}-stranger", lab.run_dir().id()))?;
    lab.outside().connect_routed(
        ("stranger0", 900),
        &stranger,
        &["10.244.1.50".parse()?, "fd00:10:244:1::32".parse()?],
        ["100.64.0.1".parse()?, "fd00:100:64::1".parse()?],
    )?;
    // It has a leg on the lab's node, too; but the address is not on that one.
    lab.node().connect(("leg0", 901), &stranger, "eth1")?;
    files.write("late.yaml", &manifest("late"))?;
    agent.wait()?;
    missing(&agent, "late", "no network namespace that is connected")?;

    lab.apply(&sandbox("late"))?;
    let device = lab.device(&late("late"))?;
    let status = status_until(&agent, "the right one is found", enforced("late", device))?;
    ensure!(
        story::pod(&status, "a", "late")?["interface"]["index"] == device,
        "{status:#}"
    );
    let pinned = hooks::pinned_devices(&lab);
    ensure!(
        !pinned.contains(&900) && pinned.contains(&901),
        "devices of this node, and no others, have pins: {pinned:?}"
    );
    agent.stop()?;
    Ok(())
}

#[test]
fn a_namespace_without_a_name_and_without_a_process_is_found() -> anyhow::Result<()> {
    let (mut lab, files, mut agent) = stage()?;
    lab.apply(&sandbox("late"))?;
    let device = lab.device(&late("late"))?;
    // Its name goes; the lab's thread keeps it, which is no process of its own.
    lab.station(&late("late"))?.namespace.unname();
    files.write("late.yaml", &manifest("late"))?;
    agent.wait()?;
    status_until(&agent, "it is found", enforced("late", device))?;
    expect(&lab, "with neither a process nor a name", LATE)?;
    agent.kill()?;

    let mut agent = Agent::start_at(&lab, files.path(), Hook::Auto, &[])?;
    agent.wait()?;
    let status = agent.status()?;
    ensure!(enforced("late", device)(&status), "{status:#}");
    expect(&lab, "after a restart", LATE)?;
    agent.stop()?;
    Ok(())
}

const ONE_FAMILY: &str = "
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: web, labels: {app: web}}, spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: four, labels: {app: web}, annotations: {lab.netpol-agent/family: IPv4}}, spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: six, labels: {app: web}, annotations: {lab.netpol-agent/family: IPv6}}, spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: friend, labels: {role: friend}}, spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: friend-four, labels: {role: friend}, annotations: {lab.netpol-agent/family: IPv4}}, spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: friend-six, labels: {role: friend}, annotations: {lab.netpol-agent/family: IPv6}}, spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}}
";

#[test]
fn pods_of_one_family_and_of_both_are_enforced_alike() -> anyhow::Result<()> {
    for shape in [
        Shape::Routed,
        Shape::Bridge {
            br_netfilter: false,
        },
    ] {
        let lab = Lab::new(shape, World::parse(ONE_FAMILY))?;
        Files::of(&lab).write("web.yaml", FRIENDS)?;
        let mut agent = Agent::start(&lab, Hook::Auto)?;
        agent.wait()?;
        for table in [
            "a/web TCP/80\n  open: a/friend a/friend-four a/friend-six\n  denied: a/four a/six\n",
            "a/four TCP/80\n  open: a/friend a/friend-four\n  denied: a/web\n",
            "a/six TCP/80\n  open: a/friend a/friend-six\n  denied: a/web\n",
        ] {
            expect(
                &lab,
                &format!("{shape}, each by the families it has"),
                table,
            )?;
        }
        let status = agent.status()?;
        for (name, count) in [("web", 2), ("four", 1), ("six", 1)] {
            let pod = story::pod(&status, "a", name)?;
            ensure!(
                pod["addresses"].as_array().map(Vec::len) == Some(count) && pod["enforced"] == true,
                "{pod:#}"
            );
        }
        agent.stop()?;
    }
    Ok(())
}

/// Two nodes on one machine, with the same pods at the same addresses, the same device indexes and the same names.
#[test]
fn two_agents_on_one_machine_do_not_disturb_each_other() -> anyhow::Result<()> {
    let mut first = Lab::new(Shape::Routed, World::parse(THREE_PODS))?;
    let mut second = Lab::new(Shape::Routed, World::parse(THREE_PODS))?;
    let mut agent = Agent::start(&first, Hook::Auto)?;
    let mut neighbour = Agent::start(&second, Hook::Clsact)?;
    Files::of(&first).write("web.yaml", FRIENDS)?;
    agent.wait()?;
    neighbour.wait()?;
    expect(&first, "on the node with a policy", FRIENDS_ONLY)?;
    expect(&second, "on the node without one", ALL_OPEN)?;

    Files::of(&second).write("web.yaml", CLOSED)?;
    neighbour.wait()?;
    expect(
        &second,
        "on the second node, closed",
        "a/web TCP/80\n  denied: a/friend a/other\n",
    )?;
    expect(
        &first,
        "on the first node, after the second closed",
        FRIENDS_ONLY,
    )?;

    second.restart_pod("a", "web", Restart::SameAddress)?;
    first.restart_pod("a", "web", Restart::SameAddress)?;
    agent.wait()?;
    neighbour.wait()?;
    for (lab, agent) in [(&first, &agent), (&second, &neighbour)] {
        let status = agent.status()?;
        let device = lab.device(&late("web"))?;
        ensure!(enforced("web", device)(&status), "{status:#}");
        ensure!(
            status["pods"].as_array().map(Vec::len) == Some(3),
            "{status:#}"
        );
    }
    expect(
        &first,
        "on the first node, after both restarts",
        FRIENDS_ONLY,
    )?;

    neighbour.stop()?;
    let said = Console::new(&second)?.cleanup()?;
    ensure!(said.code == Some(0), "{said}");
    expect(&second, "on the second node, cleaned up", ALL_OPEN)?;
    expect(
        &first,
        "on the first node, the second cleaned up",
        FRIENDS_ONLY,
    )?;
    agent.stop()?;
    Ok(())
}
