//! What cannot be used changes nothing: the last good version stays in force, it is told, and everything else goes on.

use anyhow::{Context as _, ensure};
use netpol_tests::{
    agent::{Agent, Console, Hook},
    lab::{Lab, Shape},
    manifests::World,
    story::{self, ALL_DENIED, ALL_OPEN, CLOSED, FRIENDS, FRIENDS_ONLY, Files, THREE_PODS, expect},
};
use serde_json::Value;

/// Ends when the agent has read everything again, and must fail: says what it says is missing.
fn wait_fails(console: &Console) -> anyhow::Result<String> {
    // One second is enough to read a directory and to write what is in it, but not on a machine that does much else.
    for _ in 0..30 {
        let said = console.wait("1s")?;
        ensure!(
            said.code == Some(1),
            "`wait` must fail with exit code 1: {said}"
        );
        let busy = ["no agent at", "still being", "being written", "being put"];
        if !busy.iter().any(|busy| said.err.contains(busy)) {
            return Ok(said.err);
        }
    }
    anyhow::bail!("the agent is still busy")
}

fn problem<'a>(status: &'a Value, key: &str, value: &str) -> anyhow::Result<&'a Value> {
    let problems = status["source"]["problems"].as_array();
    problems
        .and_then(|problems| problems.iter().find(|problem| problem[key] == value))
        .with_context(|| format!("no problem whose {key} is {value}: {status:#}"))
}

#[test]
fn a_file_that_does_not_parse_keeps_its_last_good_objects() -> anyhow::Result<()> {
    let lab = Lab::new(Shape::Routed, World::parse(THREE_PODS))?;
    let (files, console) = (Files::of(&lab), Console::new(&lab)?);
    files.write("web.yaml", FRIENDS)?;
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    agent.wait()?;
    expect(&lab, "with a good file", FRIENDS_ONLY)?;
    let path = files.path().join("web.yaml").display().to_string();

    let half = &FRIENDS[..FRIENDS.len() / 2];
    for (what, broken) in [
        (
            "no YAML",
            "apiVersion: networking.k8s.io/v1\nkind: [NetworkPolicy\n",
        ),
        ("cut off", &format!("{half}\n  x: [")),
        // The first document alone would open what the second one closes: all of a file counts, or nothing.
        (
            "a good document and a bad one",
            &format!("{CLOSED}\n---\nkind: [NetworkPolicy\n"),
        ),
    ] {
        files.write("web.yaml", broken)?;
        let missing = wait_fails(&console).context(what.to_owned())?;
        ensure!(
            missing.contains(&path) && missing.contains("its last good object stays in force"),
            "{what}: `wait` must name the file and what stays: {missing}"
        );
        expect(&lab, &format!("with a file that is {what}"), FRIENDS_ONLY)?;
        let status = agent.status()?;
        let told = problem(&status, "path", &path)?;
        ensure!(
            told["type"] == "unreadable" && told["kept"] == true,
            "{what}: {told:#}"
        );
        ensure!(
            told["line"].as_u64().is_some(),
            "{what}: where in the file? {told:#}"
        );
        let text = agent.status_text()?;
        ensure!(
            text.contains("problem") && text.contains(&path),
            "{what}: `status` must show it:\n{text}"
        );
    }

    // Other files go on, and so does this one once it is good again.
    files.write("also.yaml", "kind: Nonsense")?;
    files.write("broken-from-the-start.yaml", "{")?;
    let missing = wait_fails(&console)?;
    ensure!(
        missing.contains("nothing of it is in force"),
        "a file that never was good: {missing}"
    );
    files.delete("broken-from-the-start.yaml")?;
    files.delete("also.yaml")?;
    files.replace("web.yaml", CLOSED)?;
    agent.wait()?;
    expect(&lab, "with the file corrected", ALL_DENIED)?;
    ensure!(agent.status()?["source"]["problems"] == serde_json::json!([]));

    files.write("web.yaml", "]")?;
    wait_fails(&console)?;
    expect(&lab, "with the file broken again", ALL_DENIED)?;
    files.delete("web.yaml")?;
    agent.wait()?;
    expect(&lab, "with the broken file deleted", ALL_OPEN)?;
    agent.stop()?;
    Ok(())
}

const FOUR_PODS: &str = "
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: web, labels: {app: web}}, spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: api, labels: {app: api}}, spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: db, labels: {app: db}}, spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: friend, labels: {role: friend}}, spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}}
";

/// Policies for `web`, `api` and `db`, of which each says who else may come.
fn policies(web: &str, api: &str, db: &str) -> String {
    let friend = "podSelector: {matchLabels: {role: friend}}";
    format!(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: a, name: web}}
spec: {{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{from: [{{{friend}}}{web}]}}]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: a, name: api}}
spec: {{podSelector: {{matchLabels: {{app: api}}}}, ingress: [{{from: [{{{friend}}}]}}{api}]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: a, name: db}}
spec: {{podSelector: {{matchLabels: {{app: db}}{db}}}, ingress: [{{from: [{{{friend}}}]}}]}}
"
    )
}

const FRIEND_ONLY: &str = "
a/web TCP/80
  open: a/friend
  denied: a/api a/db

a/api TCP/80
  open: a/friend
  denied: a/web a/db

a/db TCP/80
  open: a/friend
  denied: a/web a/api
";
const FRIEND_OPEN: &str = "
a/friend TCP/80
  open: a/web a/api a/db
";
const FRIEND_CLOSED: &str = "
a/friend TCP/80
  denied: a/web a/api a/db
";

#[test]
fn a_bad_object_is_refused_alone_and_its_last_good_version_stays() -> anyhow::Result<()> {
    let lab = Lab::new(Shape::Routed, World::parse(FOUR_PODS))?;
    let (files, console) = (Files::of(&lab), Console::new(&lab)?);
    files.write("policies.yaml", &policies("", "", ""))?;
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    agent.wait()?;
    expect(
        &lab,
        "with good policies",
        &format!("{FRIEND_ONLY}\n{FRIEND_OPEN}"),
    )?;

    // Each of them would open its pod if what is wrong were skipped; a good one in the same file closes `friend`.
    let name = "a".repeat(40);
    let bad = policies(
        ", {ipBlock: {cidr: 10.244.1.0/33}}, {podSelector: {}}",
        &format!(", {{ports: [{{port: {name}}}, {{port: 80}}]}}"),
        ", matchExpressions: [{key: app, operator: Like, values: [d]}]",
    );
    let good = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: a, name: friend}
spec: {podSelector: {matchLabels: {role: friend}}, policyTypes: [Ingress]}
";
    files.write("policies.yaml", &format!("{bad}{good}"))?;
    let missing = wait_fails(&console)?;
    let status = agent.status()?;
    let text = agent.status_text()?;
    let expected = [
        (
            "a/web",
            "spec.ingress[0].from[1].ipBlock.cidr",
            "10.244.1.0/33",
        ),
        ("a/api", "spec.ingress[1].ports[0].port", name.as_str()),
        (
            "a/db",
            "spec.podSelector.matchExpressions[0].operator",
            "Like",
        ),
    ];
    for (object, field, reason) in expected {
        let told = problem(&status, "object", object)?;
        ensure!(
            told["type"] == "refused" && told["kind"] == "NetworkPolicy" && told["kept"] == true,
            "{told:#}"
        );
        ensure!(told["field"] == field, "{object}: not at {field}: {told:#}");
        ensure!(
            told["reason"]
                .as_str()
                .is_some_and(|told| told.contains(reason)),
            "{object}: the reason does not say `{reason}`: {told:#}"
        );
        for (who, words) in [("status", &text), ("wait", &missing)] {
            ensure!(
                words.lines().any(|line| line.contains(object)
                    && line.contains(field)
                    && line.contains("last good version stays in force")),
                "`{who}` must name {object} and {field}:\n{words}"
            );
        }
    }
    ensure!(
        status["source"]["problems"].as_array().map(Vec::len) == Some(3),
        "only the bad ones are refused: {status:#}"
    );
    expect(
        &lab,
        "with three bad versions and a good new policy",
        &format!("{FRIEND_ONLY}\n{FRIEND_CLOSED}"),
    )?;
    ensure!(
        story::policy(&status, "a", "db")?["pods"] == serde_json::json!(["db"]),
        "{status:#}"
    );

    // Deleting a refused object deletes its last good version, too.
    files.write("policies.yaml", good)?;
    agent.wait()?;
    expect(
        &lab,
        "with the bad ones deleted",
        &format!(
            "{}\n{FRIEND_CLOSED}",
            "a/web TCP/80\n  open: a/friend a/api a/db\n\na/db TCP/80\n  open: a/friend a/api a/web\n"
        ),
    )?;
    agent.stop()?;
    Ok(())
}

/// A policy that was never good isolates its pods, and allows what can be read of it.
#[test]
fn a_new_policy_with_a_bad_item_closes_its_pod_but_for_the_rest() -> anyhow::Result<()> {
    let lab = Lab::new(Shape::Routed, World::parse(FOUR_PODS))?;
    let (files, console) = (Files::of(&lab), Console::new(&lab)?);
    let name = "a".repeat(40);
    files.write(
        "policies.yaml",
        &policies(
            ", {ipBlock: {cidr: \"::ffff:10.244.1.0/120\"}}",
            &format!(", {{ports: [{{port: {name}}}]}}"),
            "",
        ),
    )?;
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    let missing = wait_fails(&console)?;
    for object in ["a/web", "a/api"] {
        ensure!(
            missing
                .lines()
                .any(|line| line.contains(object) && line.contains("in force without this")),
            "{object}: {missing}"
        );
    }
    expect(
        &lab,
        "with two policies in part",
        &format!("{FRIEND_ONLY}\n{FRIEND_OPEN}"),
    )?;
    files.write("policies.yaml", &policies("", ", {}", ""))?;
    agent.wait()?;
    expect(
        &lab,
        "with all of it",
        "a/web TCP/80\n  open: a/friend\n  denied: a/api a/db\n\na/api TCP/80\n  open: a/friend a/web a/db\n",
    )?;
    agent.stop()?;
    Ok(())
}
