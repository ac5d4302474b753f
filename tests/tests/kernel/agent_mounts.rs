//! An agent in a mount namespace of its own, as `ip netns exec` starts it: what it pins outlives it all the same.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::ensure;
use netpol_tests::{
    agent::{Agent, Hook},
    lab::{self, Lab, Shape},
    manifests::World,
    story::{ALL_OPEN, FRIENDS, FRIENDS_ONLY, Files, THREE_PODS, expect},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{SigSet, Signal, kill},
    unistd::Pid,
};

/// The agent's binary in the node's network namespace and in a mount namespace that only it has.
fn secluded(lab: &Lab, binary: &Path) -> anyhow::Result<Command> {
    let node = lab.node().namespace.open()?;
    let mut command = Command::new(binary);
    // SAFETY: between `fork` and `exec` it makes system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            lab::enter(&node)?;
            unshare(CloneFlags::CLONE_NEWNS)?;
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            SigSet::empty().thread_set_mask()?;
            Ok(())
        });
    }
    command.stdin(Stdio::null());
    Ok(command)
}

#[test]
fn pins_outlive_a_mount_namespace_of_the_agent_alone() -> anyhow::Result<()> {
    let lab = Lab::new(
        Shape::Bridge { br_netfilter: true },
        World::parse(THREE_PODS),
    )?;
    Files::of(&lab).write("web.yaml", FRIENDS)?;
    // For its path only: the agent under test is started by hand.
    let mut usual = Agent::start(&lab, Hook::Auto)?;
    let binary = usual.binary().to_owned();
    usual.stop()?;
    Agent::cleanup(&lab)?;
    expect(&lab, "before", ALL_OPEN)?;

    let home = lab.run_dir().path();
    let (run_dir, pins) = (home.join("secluded"), home.join("secluded-bpf"));
    let mut agent = secluded(&lab, &binary)?
        .arg("run")
        .args(["--node-name", lab::NODE_NAME])
        .arg("--manifests")
        .arg(lab.manifests())
        .arg("--run-dir")
        .arg(&run_dir)
        .arg("--bpf-dir")
        .arg(&pins)
        .stderr(fs::File::create(home.join("secluded.log"))?)
        .spawn()?;
    let waited = secluded(&lab, &binary)?
        .args(["wait", "--timeout", "20s", "--run-dir"])
        .arg(&run_dir)
        .status();
    let enforced = expect(&lab, "with the agent", FRIENDS_ONLY);
    kill(Pid::from_raw(agent.id().try_into()?), Signal::SIGTERM)?;
    agent.wait()?;
    ensure!(waited?.success(), "the agent must come up");
    enforced?;
    expect(&lab, "after the agent has ended", FRIENDS_ONLY)?;

    let cleaned = secluded(&lab, &binary)?
        .args(["cleanup", "--bpf-dir"])
        .arg(&pins)
        .output()?;
    let said = String::from_utf8_lossy(&cleaned.stdout).into_owned();
    ensure!(
        cleaned.status.success() && said.contains("removed 9 programs"),
        "cleanup from another such namespace finds the pins: {said}"
    );
    expect(&lab, "after cleanup", ALL_OPEN)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(
        !mounts.contains(&pins.display().to_string()),
        "the bpf file system must be gone"
    );
    Ok(())
}
