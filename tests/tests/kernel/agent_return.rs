//! The agent may die and come back: what it enforces stays in the kernel, and it finds its way back without a gap.

use std::{collections::BTreeSet, os::fd::AsFd as _, time::Duration};

use anyhow::ensure;
use netpol_common::map;
use netpol_tests::{
    agent::{Agent, Hook, hooks},
    lab::{Connection, Lab, Load, Restart, Shape, Side, Traffic},
    manifests::{DocumentId, World},
    story::{
        ALL_DENIED, ALL_OPEN, CLOSED, FRIENDS, FRIENDS_ONLY, Files, THREE_PODS, expect, log_end,
    },
    table::{Destination, Family, Party, Port},
};

const PATIENCE: Duration = Duration::from_secs(2);
/// A revoked connection's segment must not arrive within this.
const SILENCE: Duration = Duration::from_millis(600);

fn friend() -> Party {
    Party::pod("a", "friend")
}

fn other() -> Party {
    Party::pod("a", "other")
}

fn web(port: Port) -> Destination {
    Destination::new(Party::pod("a", "web"), port)
}

fn lab(shape: Shape) -> anyhow::Result<Lab> {
    let lab = Lab::new(shape, World::parse(THREE_PODS))?;
    Files::of(&lab).write("web.yaml", FRIENDS)?;
    Ok(lab)
}

#[test]
fn enforcement_outlives_the_agent() -> anyhow::Result<()> {
    for hook in [Hook::Tcx, Hook::Clsact] {
        let lab = lab(Shape::Bridge {
            br_netfilter: false,
        })?;
        let mut agent = Agent::start(&lab, hook)?;
        agent.wait()?;
        let connection = Connection::open(&lab, &friend(), &web(Port::Tcp(80)), Family::V6)?;

        let status = agent.stop()?;
        ensure!(status.success(), "{hook}: SIGTERM is a good end: {status}");
        ensure!(
            !lab.run_dir().agent().join("agent.sock").exists(),
            "{hook}: its socket goes with it"
        );
        expect(&lab, &format!("{hook}, after SIGTERM"), FRIENDS_ONLY)?;
        ensure!(
            connection.ping_pong(PATIENCE),
            "{hook}: an allowed connection ended with the agent"
        );

        let mut agent = Agent::start(&lab, hook)?;
        agent.wait()?;
        agent.kill()?;
        expect(&lab, &format!("{hook}, after SIGKILL"), FRIENDS_ONLY)?;
        ensure!(
            connection.ping_pong(PATIENCE),
            "{hook}: an allowed connection ended with the agent"
        );
    }
    Ok(())
}

/// Programs that another version has pinned go once those of this one are there: they would go on to forbid what was
/// forbidden then.
#[test]
fn another_version_of_the_programs_is_replaced() -> anyhow::Result<()> {
    for (before, after) in [
        (Hook::Tcx, Hook::Tcx),
        (Hook::Clsact, Hook::Clsact),
        (Hook::Clsact, Hook::Tcx),
    ] {
        let case = format!("{before}, then {after}");
        let lab = lab(Shape::Routed)?;
        Files::of(&lab).write("web.yaml", CLOSED)?;
        let mut agent = Agent::start(&lab, before)?;
        agent.wait()?;
        agent.kill()?;
        let pins = lab.run_dir().bpf();
        let older = pins.join("v0");
        std::fs::rename(pins.join(format!("v{}", map::SCHEMA)), &older)?;
        expect(&lab, &format!("{case}: the older programs"), ALL_DENIED)?;

        Files::of(&lab).write("web.yaml", FRIENDS)?;
        let mut agent = Agent::start(&lab, after)?;
        agent.wait()?;
        expect(&lab, &case, FRIENDS_ONLY)?;
        ensure!(!older.exists(), "{case}: the older pins are still there");
    }
    Ok(())
}

/// Where programs of another version make room one by one, none of the new ones may let pass what is forbidden while others are
/// still being put in their places. Many devices make this last.
#[test]
fn an_upgrade_among_many_devices_leaks_nothing() -> anyhow::Result<()> {
    for hook in [Hook::Tcx, Hook::Clsact] {
        let lab = lab(Shape::Routed)?;
        // None of them is a known pod's; all come after those that are.
        let elsewhere = lab.outside().namespace.open()?;
        lab.node().configure(|netlink| async move {
            for number in 0..80 {
                let name = format!("idle{number}");
                netlink
                    .veth((&name, 900 + number), &name, elsewhere.as_fd())
                    .await?;
            }
            Ok(())
        })?;
        let mut agent = Agent::start(&lab, hook)?;
        agent.wait()?;
        let floods = Floods::forbidden(&lab)?;
        agent.kill()?;
        let pins = lab.run_dir().bpf();
        std::fs::rename(pins.join(format!("v{}", map::SCHEMA)), pins.join("v0"))?;
        floods.check(&format!("{hook}, before the upgrade"), &lab)?;
        let mut agent = Agent::start(&lab, hook)?;
        agent.wait()?;
        floods.check(&format!("{hook}, across the upgrade"), &lab)?;
        floods.end(&lab)?;
        // And the probes can get through.
        Files::of(&lab).delete("web.yaml")?;
        agent.wait()?;
        expect(&lab, &format!("{hook}, without a policy"), ALL_OPEN)?;
        agent.stop()?;
    }
    Ok(())
}

/// Traffic that is allowed and traffic that is forbidden, through everything that a test does meanwhile.
struct Floods {
    allowed: Vec<(Load, Family, Traffic)>,
    forbidden: Vec<(Load, Family, Traffic)>,
}

/// Starts traffic to `a/web`, one request every so many milliseconds, and waits until all of it flows.
fn flow(
    lab: &Lab,
    from: &Party,
    loads: [(Load, Port, Family, u64); 4],
) -> anyhow::Result<Vec<(Load, Family, Traffic)>> {
    let flows = loads
        .into_iter()
        .map(|(load, port, family, pause)| {
            let pause = Duration::from_millis(pause);
            let traffic = Traffic::start(lab, from, &web(port), family, load, pause)?;
            Ok((load, family, traffic))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    for (load, family, traffic) in &flows {
        ensure!(
            traffic.wait_sent(10, Duration::from_secs(5)),
            "{load:?} by {family} does not flow"
        );
    }
    Ok(flows)
}

impl Floods {
    /// What is forbidden, for now.
    fn forbidden(lab: &Lab) -> anyhow::Result<Self> {
        let (dns, http) = (Port::Udp(53), Port::Tcp(80));
        Ok(Self {
            allowed: Vec::new(),
            forbidden: flow(
                lab,
                &other(),
                [
                    (Load::UdpFlow, dns, Family::V4, 1),
                    (Load::UdpFlow, dns, Family::V6, 1),
                    (Load::UdpFresh, dns, Family::V4, 4),
                    (Load::TcpConnections, http, Family::V4, 20),
                ],
            )?,
        })
    }

    /// And what is allowed, from now on.
    fn allowed(&mut self, lab: &Lab) -> anyhow::Result<()> {
        let (dns, http) = (Port::Udp(53), Port::Tcp(80));
        self.allowed = flow(
            lab,
            &friend(),
            [
                (Load::UdpFlow, dns, Family::V4, 2),
                (Load::UdpFresh, dns, Family::V6, 10),
                (Load::TcpStream, http, Family::V4, 2),
                (Load::TcpConnections, http, Family::V6, 20),
            ],
        )?;
        Ok(())
    }

    fn check(&self, moment: &str, lab: &Lab) -> anyhow::Result<()> {
        for (load, family, traffic) in &self.forbidden {
            let counts = traffic.counts();
            ensure!(
                counts.arrived == 0 && counts.answered == 0,
                "{moment}: forbidden {load:?} by {family} leaked: {counts:?}\n{}",
                log_end(lab)
            );
        }
        Ok(())
    }

    fn end(self, lab: &Lab) -> anyhow::Result<()> {
        self.check("at the end", lab)?;
        for (load, family, traffic) in self.allowed {
            let counts = traffic.stop();
            ensure!(
                counts.lost() == 0 && counts.retransmitted == 0 && counts.sent > 20,
                "allowed {load:?} by {family} lost packets: {counts:?}\n{}",
                log_end(lab)
            );
        }
        for (load, family, traffic) in self.forbidden {
            let counts = traffic.stop();
            ensure!(
                counts.arrived == 0,
                "forbidden {load:?} by {family} leaked: {counts:?}"
            );
        }
        Ok(())
    }
}

#[test]
fn restarts_under_traffic_lose_nothing_and_leak_nothing() -> anyhow::Result<()> {
    let lab = lab(Shape::Routed)?;
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    agent.wait()?;
    let connection = Connection::open(&lab, &friend(), &web(Port::Tcp(80)), Family::V4)?;
    let mut floods = Floods::forbidden(&lab)?;
    floods.allowed(&lab)?;
    for round in 0..16 {
        if round % 2 == 0 {
            agent.stop()?;
        } else {
            agent.kill()?;
        }
        agent = Agent::start(&lab, Hook::Auto)?;
        agent.wait()?;
        ensure!(
            connection.ping_pong(PATIENCE),
            "a live allowed connection ended in restart {round}\n{}",
            log_end(&lab)
        );
        floods.check(&format!("in restart {round}"), &lab)?;
    }
    floods.end(&lab)?;
    agent.stop()?;
    Ok(())
}

/// What hangs on each pod's device: both hooks alike, and of one kind.
fn only(lab: &Lab, kind: hooks::Programs) -> anyhow::Result<()> {
    for party in [friend(), other(), web(Port::Icmp).party] {
        let found = hooks::attached(lab, lab.device(&party)?)?;
        ensure!(
            found == [kind; 2],
            "the device of {party} must have {kind:?} at ingress and at egress: {found:?}"
        );
    }
    Ok(())
}

#[test]
fn the_kind_of_hook_is_exchanged_without_a_gap() -> anyhow::Result<()> {
    for shape in [Shape::Routed, Shape::Bridge { br_netfilter: true }] {
        let lab = lab(shape)?;
        let mut agent = Agent::start(&lab, Hook::Tcx)?;
        agent.wait()?;
        only(&lab, hooks::Programs::TCX)?;
        let connection = Connection::open(&lab, &friend(), &web(Port::Tcp(80)), Family::V4)?;
        let mut floods = Floods::forbidden(&lab)?;
        for (round, (hook, kind)) in [
            (Hook::Clsact, hooks::Programs::CLSACT),
            (Hook::Clsact, hooks::Programs::CLSACT),
            (Hook::Tcx, hooks::Programs::TCX),
            (Hook::Clsact, hooks::Programs::CLSACT),
            (Hook::Tcx, hooks::Programs::TCX),
        ]
        .into_iter()
        .enumerate()
        {
            // The first clsact of a device costs what is just being sent: to add any queueing discipline, the kernel takes
            // the device out of service for a moment (`qdisc_graft` in net/sched/sch_api.c calls `dev_deactivate`). It stays,
            // and from then on nothing is lost.
            if round == 1 {
                floods.allowed(&lab)?;
            }
            agent.stop()?;
            agent = Agent::start(&lab, hook)?;
            agent.wait()?;
            only(&lab, kind)?;
            let status = agent.status()?;
            ensure!(status["hook"] == hook.to_string(), "{status:#}");
            floods.check(&format!("{shape}, now with {hook}"), &lab)?;
            ensure!(
                connection.ping_pong(PATIENCE),
                "{shape}: a live allowed connection ended with the change to {hook}"
            );
        }
        floods.end(&lab)?;
        expect(&lab, &format!("{shape}, with tcx again"), FRIENDS_ONLY)?;
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn a_policy_that_changed_meanwhile_is_enforced_at_the_return() -> anyhow::Result<()> {
    for hook in [Hook::Tcx, Hook::Clsact] {
        let lab = lab(Shape::Routed)?;
        let files = Files::of(&lab);
        let mut agent = Agent::start(&lab, hook)?;
        agent.wait()?;
        let connection = Connection::open(&lab, &friend(), &web(Port::Tcp(80)), Family::V4)?;
        ensure!(connection.ping_pong(PATIENCE));

        agent.kill()?;
        files.replace("web.yaml", CLOSED)?;
        expect(&lab, "with nobody who reads the change", FRIENDS_ONLY)?;

        let mut agent = Agent::start(&lab, hook)?;
        agent.wait()?;
        for side in [Side::Client, Side::Server] {
            ensure!(
                !connection.send(side, SILENCE),
                "{hook}: a connection without a permission goes on, sent by the {side:?}\n{}",
                log_end(&lab)
            );
        }
        expect(&lab, &format!("{hook}, after the return"), ALL_DENIED)?;
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn what_went_meanwhile_leaves_nothing_behind() -> anyhow::Result<()> {
    for hook in [Hook::Tcx, Hook::Clsact] {
        let mut lab = lab(Shape::Routed)?;
        let device = |lab: &Lab, party: &Party| lab.device(party);
        let mut agent = Agent::start(&lab, hook)?;
        agent.wait()?;
        let gone = device(&lab, &other())?;
        ensure!(hooks::pinned_devices(&lab).contains(&gone));
        agent.stop()?;

        // One pod goes for good, one comes back with a new interface, one comes anew.
        lab.delete(&DocumentId::pod("a", "other"))?;
        lab.restart_pod("a", "friend", Restart::SameAddress)?;
        lab.apply("{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: late}, spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}}")?;

        let mut agent = Agent::start(&lab, hook)?;
        agent.wait()?;
        expect(
            &lab,
            &format!("{hook}, after the return"),
            "a/web TCP/80\n  open: a/friend\n  denied: a/late\n",
        )?;
        let living: BTreeSet<u32> = ["web", "friend", "late"]
            .iter()
            .map(|name| device(&lab, &Party::pod("a", name)))
            .collect::<Result<_, _>>()?;
        let pinned = hooks::pinned_devices(&lab);
        ensure!(
            pinned.is_superset(&living) && !pinned.contains(&gone),
            "{hook}: pins are there for devices {pinned:?}, and pods for {living:?}; {gone} has gone"
        );
        let status = agent.status()?;
        let endpoints = status["tables"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|table| table["name"] == "ENDPOINTS");
        ensure!(
            endpoints.is_some_and(|table| table["entries"] == 3),
            "{status:#}"
        );

        // A pod that stays but belongs to another node now is released, and open again.
        agent.stop()?;
        let web_device = device(&lab, &Party::pod("a", "web"))?;
        let files = Files::new(&lab)?;
        let mut agent = Agent::start_at(&lab, files.path(), hook, &[])?;
        agent.wait()?;
        expect(
            &lab,
            &format!("{hook}, with no pod of this node any more"),
            "a/web TCP/80\n  open: a/friend a/late\n",
        )?;
        let found = hooks::attached(&lab, web_device)?;
        let kind = match hook {
            Hook::Clsact => hooks::Programs::CLSACT,
            _ => hooks::Programs::TCX,
        };
        ensure!(
            found == [kind; 2],
            "{hook}: the programs judge what other pods send to a pod that is none of this node's any more: {found:?}"
        );
        agent.stop()?;
    }
    Ok(())
}
