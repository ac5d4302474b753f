//! `netpol-lab` itself, with a stand-in for the agent that enforces nothing.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{ChildStdout, Command, Stdio},
};

use netpol_tests::agent::BINARY_VARIABLE;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: web, labels: {app: web}}
spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: a, name: client}
spec: {containers: [{name: c}]}
";

const DENY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: a, name: deny}
spec: {podSelector: {}}
";

/// Says yes to everything.
const STAND_IN: &str = "#!/bin/sh
case $1 in
  run) trap 'exit 0' TERM; while :; do sleep 0.1; done ;;
  status) echo '{\"source\": {\"problems\": [{\"message\": \"NetworkPolicy a/bad: no\"}]}}' ;;
esac
";

fn directory(policies: &[&str]) -> anyhow::Result<(TempDir, Command)> {
    let home = TempDir::new()?;
    let agent = home.path().join("stand-in");
    fs::write(&agent, STAND_IN)?;
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755))?;
    let manifests = home.path().join("manifests");
    fs::create_dir(&manifests)?;
    fs::write(manifests.join("pods.yaml"), PODS)?;
    for (nth, policy) in policies.iter().enumerate() {
        fs::write(manifests.join(format!("policy{nth}.yaml")), policy)?;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_netpol-lab"));
    command
        .arg("run")
        .arg(&manifests)
        .env(BINARY_VARIABLE, agent)
        .stdout(Stdio::piped());
    Ok((home, command))
}

#[test]
fn once_succeeds_only_if_the_table_is_right() -> anyhow::Result<()> {
    let (_home, mut open) = directory(&[])?;
    let output = open.arg("--once").output()?;
    let said = String::from_utf8(output.stdout)?;
    assert!(output.status.success(), "{said}");
    assert!(said.contains("as Flannel leaves it"), "{said}");
    assert!(said.contains("As expected"), "{said}");

    let (_home, mut denied) = directory(&[DENY])?;
    let output = denied.arg("--once").output()?;
    let said = String::from_utf8(output.stdout)?;
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("-> a/web TCP/80\n   a/client  expected denied, found open"),
        "{said}"
    );
    Ok(())
}

#[test]
fn it_follows_edits_and_ends_on_ctrl_c() -> anyhow::Result<()> {
    let (home, mut command) = directory(&[])?;
    let mut lab = command.spawn()?;
    let mut output = BufReader::new(lab.stdout.take().expect("its output is a pipe"));
    let mut story = || -> anyhow::Result<String> {
        let introduction = until(&mut output, "End with Ctrl-C")?;
        fs::write(home.path().join("manifests/deny.yaml"), DENY)?;
        until(&mut output, "The specification says otherwise")?;
        fs::write(home.path().join("manifests/deny.yaml"), "kind: [")?;
        let broken = until(&mut output, "No cell has changed")?;
        assert!(broken.contains("! deny.yaml: "), "{broken}");
        assert!(broken.contains("! NetworkPolicy a/bad: no"), "{broken}");
        Ok(introduction)
    };
    let introduction = story();
    kill(Pid::from_raw(i32::try_from(lab.id())?), Signal::SIGINT)?;
    let mut rest = String::new();
    output.read_to_string(&mut rest)?;
    let status = lab.wait()?;
    let introduction = introduction?;
    assert!(status.success(), "{introduction}{rest}");
    // The names that it printed for nsenter are gone.
    let name = introduction
        .split_whitespace()
        .find(|word| word.starts_with("npl-"))
        .expect("it prints the names of namespaces");
    assert!(
        !Path::new("/run/netns").join(name).exists(),
        "{name} is still there"
    );
    Ok(())
}

fn until(output: &mut BufReader<ChildStdout>, sign: &str) -> anyhow::Result<String> {
    let mut said = String::new();
    loop {
        let mut line = String::new();
        if output.read_line(&mut line)? == 0 {
            anyhow::bail!("it ended before it said `{sign}`:\n{said}");
        }
        said.push_str(&line);
        if line.contains(sign) {
            return Ok(said);
        }
    }
}
