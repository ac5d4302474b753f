//! An address goes from one pod to another within a moment. Nobody inherits what the other one was allowed to.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use netpol_tests::{
    agent::Hook,
    lab::Caller,
    manifests::{DocumentId, World},
    story::{CLOSED, FRIENDS},
    table::{Destination, Family, Party, Port},
};

use crate::cluster::{Cluster, PATIENCE, SILENCE, friend, web};

/// A pod with this address, of which the world has no other.
fn pod(name: &str, labels: &str, index: u16) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{namespace: a, name: {name}, labels: {{{labels}}}, annotations: {{lab.netpol-agent/address-index: '{index}'}}}}
spec: {{containers: [{{name: c, ports: [{{containerPort: 80}}, {{containerPort: 53, protocol: UDP}}]}}]}}
"
    )
}

/// The index of a pod's addresses: of `10.244.1.3` it is 3.
fn index(cluster: &Cluster, party: &Party) -> anyhow::Result<u16> {
    match cluster.lab.address(party, Family::V4)? {
        std::net::IpAddr::V4(address) => Ok(address.octets()[3].into()),
        std::net::IpAddr::V6(_) => anyhow::bail!("{party} has no IPv4 address"),
    }
}

/// `a/friend` goes, and a stranger has its address within a second, and talks from the same port. Both before and after the
/// server knows the stranger's address, it is not the friend.
#[test]
fn a_stranger_does_not_inherit_what_the_friend_was_allowed() -> anyhow::Result<()> {
    for family in Family::ALL {
        let mut cluster = Cluster::of_three_pods()?;
        cluster.put(FRIENDS)?;
        let mut agent = cluster.agent(Hook::Auto)?;
        agent.wait()?;
        let dns = web(Port::Udp(53));
        let caller = Caller::open(&cluster.lab, &friend(), &dns, family)?;
        let heard = caller.send(&cluster.lab, PATIENCE)?;
        ensure!(heard.answered, "the friend is allowed: {heard:?}");
        let (port, address) = (caller.port()?, cluster.lab.address(&friend(), family)?);
        let index = index(&cluster, &friend())?;
        drop(caller);

        let gone = Instant::now();
        cluster.delete(&DocumentId::pod("a", "friend"))?;
        agent.wait()?;
        cluster.lab.apply(&pod("stranger", "", index))?;
        let stranger = Party::pod("a", "stranger");
        ensure!(cluster.lab.address(&stranger, family)? == address);
        let caller = Caller::open_at(&cluster.lab, &stranger, &dns, family, port)?;
        println!("the address was given again after {:?}", gone.elapsed());
        let heard = caller.send(&cluster.lab, SILENCE)?;
        ensure!(
            heard.by.is_none(),
            "before anybody knows who that is: {heard:?}"
        );
        cluster.control_plane.apply(&cluster.lab)?;
        let heard = caller.send(&cluster.lab, SILENCE)?;
        ensure!(heard.by.is_none(), "as soon as the server knows: {heard:?}");
        agent.wait()?;
        let heard = caller.send(&cluster.lab, SILENCE)?;
        ensure!(heard.by.is_none(), "when the agent knows: {heard:?}");

        // The twin: a friend at that address is one.
        cluster.change(|world| {
            world.label(
                &DocumentId::pod("a", "stranger"),
                &[("role", Some("friend"))],
            )
        })?;
        agent.wait()?;
        let heard = caller.send(&cluster.lab, PATIENCE)?;
        ensure!(heard.answered, "with the label it is a friend: {heard:?}");
        agent.stop()?;
    }
    Ok(())
}

/// The old pod's sandbox has gone, its object has not, and the server does not know the address of the new one yet: nobody can
/// tell by the address who that is.
#[test]
fn a_stranger_is_not_taken_for_a_pod_whose_object_has_not_gone_yet() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    cluster.put(FRIENDS)?;
    let mut agent = cluster.agent(Hook::Auto)?;
    agent.wait()?;
    let dns = web(Port::Udp(53));
    let caller = Caller::open(&cluster.lab, &friend(), &dns, Family::V4)?;
    let heard = caller.send(&cluster.lab, PATIENCE)?;
    ensure!(heard.answered, "the friend is allowed: {heard:?}");
    let index = index(&cluster, &friend())?;
    drop(caller);
    let old = DocumentId::pod("a", "friend");
    cluster.control_plane.terminate(&old)?;
    agent.wait()?;
    // While it ends, it is who it is.
    let caller = Caller::open(&cluster.lab, &friend(), &dns, Family::V4)?;
    let heard = caller.send(&cluster.lab, PATIENCE)?;
    ensure!(heard.answered, "the friend, while it ends: {heard:?}");
    drop(caller);
    cluster.lab.delete(&old)?;
    cluster.lab.apply(&pod("stranger", "role: friend", index))?;
    let stranger = Party::pod("a", "stranger");
    // The agent hears of a new interface from the kernel, and not from whoever waits for it.
    let end = Instant::now() + PATIENCE;
    while !agent.log().contains("has the address of a/friend") {
        ensure!(
            Instant::now() < end,
            "nothing is told of its interface\n{}\n{}",
            agent.log(),
            agent.status_text()?
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let caller = Caller::open(&cluster.lab, &stranger, &dns, Family::V4)?;
    let heard = caller.send(&cluster.lab, SILENCE)?;
    ensure!(heard.by.is_none(), "before it is known: {heard:?}");
    // As soon as the server says who has the address, it is who it is.
    cluster.control_plane.apply(&cluster.lab)?;
    ensure!(cluster.control_plane.get(&old)?.is_none());
    agent.wait()?;
    let heard = caller.send(&cluster.lab, PATIENCE)?;
    ensure!(heard.answered, "a friend itself: {heard:?}");
    agent.stop()?;
    Ok(())
}

/// The object of the old pod is still there, terminating, when the new one reports the same address: the new one has it.
#[test]
fn of_two_pods_with_one_address_the_living_one_has_it() -> anyhow::Result<()> {
    let mut cluster = Cluster::of_three_pods()?;
    cluster.put(FRIENDS)?;
    let mut agent = cluster.agent(Hook::Auto)?;
    agent.wait()?;
    let index = index(&cluster, &friend())?;
    let old = DocumentId::pod("a", "friend");
    cluster.control_plane.terminate(&old)?;
    // Its sandbox has gone, its object has not.
    cluster.lab.delete(&old)?;
    cluster.lab.apply(&pod("stranger", "", index))?;
    let documents = cluster.lab.documents("Pod");
    let mut strangers = documents.iter();
    let stranger = strangers.find(|pod| pod["metadata"]["name"] == "stranger");
    cluster
        .control_plane
        .put(stranger.context("the lab has the stranger")?)?;
    agent.wait()?;
    ensure!(
        cluster.control_plane.get(&old)?.is_some(),
        "the old one is still there"
    );
    cluster.expect(
        "while the old pod's object is there",
        "a/web TCP/80\n  denied: a/stranger a/other\n",
    )?;
    cluster.control_plane.apply(&cluster.lab)?;
    ensure!(
        cluster.control_plane.get(&old)?.is_none(),
        "the old one has gone"
    );
    cluster.change(|world| {
        world.label(
            &DocumentId::pod("a", "stranger"),
            &[("role", Some("friend"))],
        )
    })?;
    agent.wait()?;
    cluster.expect(
        "as a friend itself",
        "a/web TCP/80\n  open: a/stranger\n  denied: a/other\n",
    )?;
    agent.stop()?;
    Ok(())
}

/// The addresses of an isolated pod and of an open one, both of this node, change hands: what is enforced goes with the pod,
/// and not with the address.
#[test]
fn isolation_goes_with_the_pod_and_not_with_its_address() -> anyhow::Result<()> {
    let mut world = World::new();
    world.apply("{apiVersion: v1, kind: Namespace, metadata: {name: a}}");
    world.apply(&pod("web", "app: web", 50));
    world.apply(&pod("plain", "app: plain", 51));
    world.apply(&pod("friend", "role: friend", 52));
    world.apply(&pod("other", "", 53));
    let mut cluster = Cluster::new(
        netpol_tests::lab::Shape::Bridge { br_netfilter: true },
        world,
    )?;
    cluster.put(CLOSED)?;
    let mut agent = cluster.agent(Hook::Auto)?;
    agent.wait()?;
    let table = "
a/web TCP/80
  denied: a/friend a/other a/plain
a/plain TCP/80
  open: a/friend a/other a/web
";
    cluster.expect("at first", table)?;
    let allowed = Caller::open(
        &cluster.lab,
        &friend(),
        &Destination::new(Party::pod("a", "plain"), Port::Udp(53)),
        Family::V4,
    )?;
    ensure!(allowed.send(&cluster.lab, PATIENCE)?.answered);
    let port = allowed.port()?;
    drop(allowed);

    for id in ["web", "plain"] {
        cluster.delete(&DocumentId::pod("a", id))?;
    }
    cluster.lab.apply(&format!(
        "{}---{}",
        pod("web", "app: web", 51),
        pod("plain", "app: plain", 50)
    ))?;
    cluster.control_plane.apply(&cluster.lab)?;
    agent.wait()?;
    cluster.expect("after the addresses have changed hands", table)?;
    // The very ports of a flow that was allowed to this address.
    let caller = Caller::open_at(
        &cluster.lab,
        &friend(),
        &web(Port::Udp(53)),
        Family::V4,
        port,
    )?;
    let heard = caller.send(&cluster.lab, SILENCE)?;
    ensure!(
        heard.by.is_none(),
        "the flow of another pod lives on: {heard:?}"
    );
    agent.stop()?;
    Ok(())
}
