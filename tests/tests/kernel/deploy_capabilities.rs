//! The agent with the capabilities of its container, as `deploy/` gives them, and with one less each time.

use std::{fs, os::unix::process::CommandExt as _, time::Duration};

use anyhow::{Context as _, bail, ensure};
use netpol_tests::{
    agent::{Agent, Hook},
    deploy,
    lab::{Lab, Shape},
    manifests::World,
    story::{ALL_DENIED, ALL_OPEN, CLOSED, FRIENDS, FRIENDS_ONLY, Files, THREE_PODS, expect},
};

/// The number of a capability (include/uapi/linux/capability.h).
fn number(name: &str) -> anyhow::Result<u32> {
    Ok(match name {
        "DAC_OVERRIDE" => 1,
        "NET_BROADCAST" => 11,
        "NET_ADMIN" => 12,
        "SYS_PTRACE" => 19,
        "SYS_ADMIN" => 21,
        "PERFMON" => 38,
        "BPF" => 39,
        _ => bail!("{name} is no capability that this test knows"),
    })
}

/// Starts the agent as a container runtime does: root with a bounding set, and no way to more.
fn start(lab: &Lab, capabilities: &[u32]) -> anyhow::Result<Agent> {
    let kept = capabilities.to_owned();
    let agent = Agent::start_changed(lab, Hook::Auto, move |command| {
        // SAFETY: between `fork` and `exec` it makes system calls and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                for capability in 0..64 {
                    if !kept.contains(&capability) {
                        // Those that this kernel does not have are refused, and those that are gone stay gone.
                        libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
                    }
                }
                if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
    })?;
    Ok(agent)
}

fn effective(agent: &Agent) -> anyhow::Result<u64> {
    let pid = agent.pid().context("it runs")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    Ok(u64::from_str_radix(line.context("CapEff")?.trim(), 16)?)
}

fn stage() -> anyhow::Result<Lab> {
    let shape = Shape::Bridge { br_netfilter: true };
    let lab = Lab::new(shape, World::parse(THREE_PODS))?;
    Files::of(&lab).write("web.yaml", FRIENDS)?;
    // What the init container does.
    Agent::mount_bpffs(&lab)?;
    Ok(lab)
}

#[test]
fn the_agent_enforces_with_the_capabilities_of_its_container() -> anyhow::Result<()> {
    let names = deploy::capabilities()?;
    let numbers = names
        .iter()
        .map(|n| number(n))
        .collect::<Result<Vec<_>, _>>()?;
    ensure!(
        !names.iter().any(|name| name == "SYS_RESOURCE"),
        "only kernels that are too old for the agent need it"
    );
    let mut lab = stage()?;
    let mut agent = start(&lab, &numbers)?;
    agent.wait()?;
    ensure!(
        effective(&agent)? == numbers.iter().fold(0, |all, n| all | 1 << n),
        "it has these and no others"
    );
    expect(&lab, "with the container's capabilities", FRIENDS_ONLY)?;
    // Changes, also of pods, and what an earlier agent has left.
    Files::of(&lab).write("web.yaml", CLOSED)?;
    agent.wait()?;
    expect(&lab, "after a change", ALL_DENIED)?;
    lab.apply(
        "{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: late, labels: {app: web}}, \
         spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}}",
    )?;
    agent.wait()?;
    expect(
        &lab,
        "with a new pod",
        "a/late TCP/80\n  denied: a/friend a/other\n",
    )?;
    agent.stop()?;
    let mut agent = start(&lab, &numbers)?;
    Files::of(&lab).write("web.yaml", FRIENDS)?;
    agent.wait()?;
    expect(&lab, "after a restart", FRIENDS_ONLY)?;
    ensure!(
        !agent.log().contains("ermission denied") && !agent.log().contains("not permitted"),
        "nothing was refused:\n{}",
        agent.log()
    );
    agent.stop()?;
    Ok(())
}

#[test]
fn the_agent_needs_each_of_its_capabilities() -> anyhow::Result<()> {
    let names = deploy::capabilities()?;
    for missing in &names {
        let kept = names.iter().filter(|name| *name != missing);
        let kept = kept.map(|n| number(n)).collect::<Result<Vec<_>, _>>()?;
        let lab = stage()?;
        let mut agent = start(&lab, &kept)?;
        let Err(error) = agent.wait_for(Duration::from_secs(5)) else {
            bail!("the agent works without {missing}: take it out of deploy/base/daemonset.yaml");
        };
        let log = agent.log();
        ensure!(
            log.contains(&format!("CAP_{missing}")),
            "it says what it lacks, {missing}: {error}\n{log}"
        );
        expect(&lab, &format!("without {missing}"), ALL_OPEN)?;
    }
    Ok(())
}
