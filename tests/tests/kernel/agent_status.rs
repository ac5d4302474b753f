//! `status` tells all there is to know, to people and to programs; `--trace-pod` tells the way of packets.

use anyhow::{Context as _, ensure};
use netpol_tests::{
    agent::{Agent, Hook},
    lab::{Lab, Shape},
    manifests::World,
    story::{self, CLOSED, FRIENDS, FRIENDS_ONLY, Files, THREE_PODS, expect},
    table::{Destination, Family, Party, Port},
};
use serde_json::{Value, json};

/// Pods of this node that have no interface: one whose address nobody has, one without any address. And one of another
/// node, which is nobody's business here.
const HOMELESS: &str = "
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: ghost, labels: {app: web}}, spec: {nodeName: node, containers: []}, status: {phase: Running, podIPs: [{ip: 10.244.1.200}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: fresh}, spec: {nodeName: node, containers: []}, status: {phase: Pending}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: abroad, labels: {app: web}}, spec: {nodeName: elsewhere, containers: []}, status: {phase: Running, podIPs: [{ip: 10.244.9.9}]}}
";

const MORE_POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: a, name: other-sends-nothing}
spec: {podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}, {key: role, operator: DoesNotExist}]}, policyTypes: [Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: elsewhere, name: selects-nobody}
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: 1, endPort: 1000}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: a, name: bad}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0}}]}]}
";

#[test]
fn status_tells_everything() -> anyhow::Result<()> {
    let lab = Lab::new(Shape::Routed, World::parse(THREE_PODS))?;
    let files = Files::of(&lab);
    files.write("web.yaml", FRIENDS)?;
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    agent.wait()?;
    let before = agent.status()?;
    expect(&lab, "with one policy", FRIENDS_ONLY)?;

    files.write("homeless.yaml", HOMELESS)?;
    agent
        .wait()
        .context("pods without an interface are never fatal")?;
    files.write("more.yaml", MORE_POLICIES)?;
    ensure!(agent.wait().is_err(), "one policy is refused");
    expect(
        &lab,
        "beside homeless pods",
        "a/web TCP/80\n  open: a/friend\n  denied: a/other\n",
    )?;
    let status = agent.status()?;

    ensure!(status["node"] == "node", "{status:#}");
    ensure!(status["enforcing"] == true, "{status:#}");
    ensure!(
        status["hook"] == "tcx",
        "auto means tcx on this kernel: {status:#}"
    );
    ensure!(
        status["source"]["description"]
            .as_str()
            .is_some_and(|told| told.contains(&lab.manifests().display().to_string())),
        "{status:#}"
    );
    ensure!(status["source"]["complete"] == true, "{status:#}");
    ensure!(
        status["source"]["revision"] != before["source"]["revision"],
        "the revision names the content: {status:#}"
    );
    ensure!(
        status["epoch"].as_u64() > before["epoch"].as_u64(),
        "every change raises the epoch: {status:#}"
    );
    pods(&lab, &status)?;
    policies(&status)?;
    tables(&status)?;
    text(&lab, &agent.status_text()?)?;

    // The same content has the same revision, and a change is counted in no other way.
    files.delete("more.yaml")?;
    files.delete("homeless.yaml")?;
    agent.wait()?;
    ensure!(agent.status()?["source"]["revision"] == before["source"]["revision"]);
    agent.stop()?;
    Ok(())
}

fn pods(lab: &Lab, status: &Value) -> anyhow::Result<()> {
    let names: Vec<_> = status["pods"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|pod| pod["name"].as_str().unwrap_or_default())
        .collect();
    ensure!(
        names == ["fresh", "friend", "ghost", "other", "web"],
        "local pods and no others: {names:?}"
    );
    for name in ["friend", "other", "web"] {
        let pod = story::pod(status, "a", name)?;
        let party = Party::pod("a", name);
        ensure!(
            pod["interface"]["index"] == lab.device(&party)?,
            "the host side of its veth: {pod:#}"
        );
        ensure!(
            pod["interface"]["name"]
                .as_str()
                .is_some_and(|device| device.ends_with(name)),
            "{pod:#}"
        );
        ensure!(
            pod["enforced"] == true && pod["missing"].is_null() && pod["error"].is_null(),
            "{pod:#}"
        );
        ensure!(pod["addresses"] == json!(lab.addresses(&party)?), "{pod:#}");
    }
    let web = story::pod(status, "a", "web")?;
    let open = json!({"isolated": false, "ruleset": null, "policies": []});
    ensure!(
        web["ingress"]["isolated"] == true
            && web["ingress"]["policies"] == json!(["bad", "web"])
            && web["ingress"]["ruleset"]
                .as_str()
                .is_some_and(|id| id.len() == 16)
            && web["egress"] == open,
        "web is isolated for ingress by one policy: {web:#}"
    );
    let other = story::pod(status, "a", "other")?;
    ensure!(
        other["egress"]["policies"] == json!(["other-sends-nothing"]) && other["ingress"] == open,
        "{other:#}"
    );
    let counted = |direction: &str, dropped: bool| {
        web["packets"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|count| count["direction"] == direction && count["dropped"] == dropped)
            .filter_map(|count| count["packets"].as_u64())
            .sum::<u64>()
    };
    ensure!(
        counted("ingress", true) > 0 && counted("ingress", false) > 0,
        "what was dropped and what passed: {web:#}"
    );
    ensure!(counted("egress", true) == 0, "web may send: {web:#}");

    for (name, why) in [
        (
            "ghost",
            "no network namespace that is connected to this node",
        ),
        ("fresh", "no address in status.podIPs"),
    ] {
        let pod = story::pod(status, "a", name)?;
        ensure!(
            pod["interface"].is_null() && pod["enforced"] == false,
            "{pod:#}"
        );
        ensure!(
            pod["missing"]
                .as_str()
                .is_some_and(|told| told.contains(why)),
            "why it has no interface: {pod:#}"
        );
    }
    Ok(())
}

fn policies(status: &Value) -> anyhow::Result<()> {
    let selected =
        |namespace, name| anyhow::Ok(story::policy(status, namespace, name)?["pods"].clone());
    ensure!(
        selected("a", "web")? == json!(["ghost", "web"]),
        "the pods of this node that it selects: {:#}",
        status["policies"]
    );
    ensure!(selected("a", "other-sends-nothing")? == json!(["fresh", "other"]));
    ensure!(selected("elsewhere", "selects-nobody")? == json!([]));
    let problems = status["source"]["problems"].as_array();
    let refused = problems.and_then(|problems| problems.first());
    ensure!(
        problems.map(Vec::len) == Some(1)
            && refused.is_some_and(|refused| refused["object"] == "a/bad"
                && refused["kept"] == false
                && refused["inPart"] == true
                && refused["field"] == "spec.ingress[0].from[0].ipBlock.cidr"),
        "the refused object: {:#}",
        status["source"]["problems"]
    );
    Ok(())
}

fn tables(status: &Value) -> anyhow::Result<()> {
    for name in [
        "ENDPOINTS",
        "PEER_HOSTS",
        "PEER_NETS",
        "RULES",
        "PORTS",
        "FLOWS",
    ] {
        let tables = status["tables"].as_array();
        let table = tables
            .and_then(|tables| tables.iter().find(|table| table["name"] == name))
            .with_context(|| format!("no fill of {name}: {:#}", status["tables"]))?;
        let entries = table["entries"].as_u64().context("entries")?;
        ensure!(
            table["capacity"].as_u64() > Some(entries),
            "{name}: {table:#}"
        );
        let expected = match name {
            "ENDPOINTS" => entries == 3,
            // Where IPv4 begins, always: no rule of a local pod has a block, or a port.
            "PEER_NETS" => entries == 1,
            "PORTS" => entries == 0,
            _ => entries > 0,
        };
        ensure!(expected, "{name}: {table:#}");
    }
    Ok(())
}

fn text(lab: &Lab, text: &str) -> anyhow::Result<()> {
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let web = lab.device(&Party::pod("a", "web"))?.to_string();
    for words in [
        vec!["node", "node"],
        vec!["source", "manifests", "in", "revision"],
        vec!["hook", "tcx,", "epoch"],
        vec!["devices", "programs", "on", "pods", "others"],
        vec!["enforcing", "everything", "is", "written"],
        vec!["problem", "NetworkPolicy", "a/bad", "refused:"],
        vec!["a/web", &format!("({web})"), "open"],
        vec!["a/ghost", "none"],
        vec!["a/ghost:", "no", "network", "namespace"],
        vec!["a/web", "ghost", "web"],
        vec!["elsewhere/selects-nobody", "no", "pod"],
        vec!["a/web", "ingress", "dropped"],
        vec!["RULES", "262144"],
    ] {
        ensure!(
            lines
                .iter()
                .any(|line| words.iter().all(|word| line.contains(word))),
            "no line has the words `{}`:\n{text}",
            words.join(" ")
        );
    }
    Ok(())
}

/// The lines of the log that tell the way of a packet through the hook of a device, and of any device.
fn traced(log: &str, device: u32) -> (Vec<&str>, Vec<&str>) {
    let all: Vec<&str> = log
        .lines()
        .filter(|line| {
            line.split_once("if ").is_some_and(|(_, rest)| {
                rest.starts_with(|c: char| c.is_ascii_digit())
                    && ["protocol", "known flow", "judged", "verdict"]
                        .iter()
                        .any(|step| rest.contains(step))
            })
        })
        .collect();
    let ours = all
        .iter()
        .copied()
        .filter(|line| {
            line.contains(&format!("if {device} ")) || line.contains(&format!("if {device}:"))
        })
        .collect();
    (ours, all)
}

#[test]
fn a_traced_pod_shows_the_way_of_its_packets_and_no_other_pods() -> anyhow::Result<()> {
    for hook in [Hook::Tcx, Hook::Clsact] {
        let lab = Lab::new(Shape::Routed, World::parse(THREE_PODS))?;
        Files::of(&lab).write("web.yaml", FRIENDS)?;
        let device = lab.device(&Party::pod("a", "web"))?;
        let at_friend = Destination::new(Party::pod("a", "friend"), Port::Tcp(80));
        let everything = format!("{FRIENDS_ONLY}\na/friend TCP/80\n  open: a/other a/web\n");

        let mut agent = Agent::start(&lab, hook)?;
        agent.wait()?;
        expect(&lab, "without a trace", &everything)?;
        agent.stop()?;
        let quiet = agent.log();
        let (_, all) = traced(&quiet, device);
        ensure!(all.is_empty(), "{hook}: nobody asked for a trace: {all:#?}");

        let mut agent = Agent::start_with(&lab, hook, &["--trace-pod", "a/web"])?;
        agent.wait()?;
        expect(&lab, "with a trace", &everything)?;
        lab.try_once(&Party::pod("a", "other"), &at_friend, Family::V4)?;
        let address = lab
            .address(&Party::pod("a", "web"), Family::V4)?
            .to_string();
        story::status_until(&agent, "the way of a packet is logged", |_| {
            let log = agent.log();
            let (ours, _) = traced(&log, device);
            let tells = |what: &str| ours.iter().any(|line| line.contains(what));
            tells("protocol 6")
                && tells(&address)
                && tells("judged")
                && tells("known flow")
                && tells("verdict")
        })
        .with_context(|| agent.log())?;
        agent.stop()?;
        let log = agent.log();
        let (ours, all) = traced(&log, device);
        ensure!(
            ours.len() == all.len(),
            "{hook}: only packets of device {device} are traced: {:#?}",
            all.iter()
                .filter(|line| !ours.contains(line))
                .collect::<Vec<_>>()
        );

        // The programs that stay, and those of the next agent, are quiet again.
        let mut agent = Agent::start(&lab, hook)?;
        agent.wait()?;
        let before = traced(&agent.log(), device).1.len();
        Files::of(&lab).write("web.yaml", CLOSED)?;
        agent.wait()?;
        expect(
            &lab,
            "after the trace",
            "a/web TCP/80\n  denied: a/friend a/other\n",
        )?;
        agent.stop()?;
        let after = traced(&agent.log(), device).1.len();
        ensure!(
            before == after,
            "{hook}: {} lines after the trace had ended",
            after - before
        );
    }
    Ok(())
}
