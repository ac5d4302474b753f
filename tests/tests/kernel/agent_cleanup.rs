//! `cleanup` takes everything out of the kernel again, and nothing else does.

use std::{fs, path::Path};

use anyhow::ensure;
use netpol_tests::{
    agent::{Agent, Console, Hook, hooks},
    lab::{Lab, Restart, Shape},
    manifests::World,
    story::{ALL_OPEN, FRIENDS, FRIENDS_ONLY, Files, THREE_PODS, expect},
    table::Party,
};

fn devices(lab: &Lab) -> anyhow::Result<Vec<u32>> {
    ["web", "friend", "other"]
        .iter()
        .map(|name| Ok(lab.device(&Party::pod("a", name))?))
        .collect()
}

fn mounted(path: &Path) -> anyhow::Result<bool> {
    let path = path.display().to_string();
    Ok(fs::read_to_string("/proc/self/mountinfo")?
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(path.as_str())))
}

#[test]
fn cleanup_leaves_nothing() -> anyhow::Result<()> {
    for (hook, kind) in [
        (Hook::Tcx, hooks::Programs::TCX),
        (Hook::Clsact, hooks::Programs::CLSACT),
    ] {
        let lab = Lab::new(
            Shape::Bridge { br_netfilter: true },
            World::parse(THREE_PODS),
        )?;
        Files::of(&lab).write("web.yaml", FRIENDS)?;
        let console = Console::new(&lab)?;
        // What an earlier agent left with the other kind of hook goes, too.
        for hook in [Hook::Clsact, Hook::Tcx, hook] {
            let mut agent = Agent::start(&lab, hook)?;
            agent.wait()?;
            agent.stop()?;
        }
        for device in devices(&lab)? {
            let found = hooks::attached(&lab, device)?;
            ensure!(found == [kind; 2], "{hook}: device {device} has {found:?}");
        }
        expect(&lab, &format!("{hook}, before"), FRIENDS_ONLY)?;

        let programs = hooks::pins(&lab)
            .iter()
            .filter(|name| name.starts_with("tcx-") || name.starts_with("clsact-"))
            .count();
        ensure!(
            programs > 6,
            "{hook}: {programs} programs for 3 pods and the uplink"
        );
        let said = console.cleanup()?;
        ensure!(said.code == Some(0), "{said}");
        ensure!(
            said.out.contains(&format!("removed {programs} programs"))
                && said.out.contains("pods are open now"),
            "it must say what it did: {said}"
        );
        for device in devices(&lab)? {
            let found = hooks::attached(&lab, device)?;
            ensure!(
                found == [hooks::Programs::NONE; 2],
                "{hook}: device {device} still has {found:?}"
            );
        }
        let bpf = lab.run_dir().bpf();
        ensure!(
            hooks::pins(&lab).is_empty(),
            "{hook}: pins stay: {:?}",
            hooks::pins(&lab)
        );
        ensure!(
            !mounted(&bpf)? && fs::read_dir(&bpf)?.next().is_none(),
            "{hook}: the bpf file system, mounted for the pins alone, must go"
        );
        expect(&lab, &format!("{hook}, after"), ALL_OPEN)?;

        // Once more is no mistake, and neither is a directory that never was.
        let said = console.cleanup()?;
        ensure!(said.code == Some(0), "{said}");
        let never = lab.run_dir().path().join("never").display().to_string();
        let said = console.run(&["cleanup", "--bpf-dir", &never])?;
        ensure!(
            said.code == Some(0) && said.out.contains("nothing is pinned"),
            "{said}"
        );
        ensure!(!Path::new(&never).exists(), "nor does it make one");

        let mut agent = Agent::start(&lab, hook)?;
        agent.wait()?;
        expect(&lab, &format!("{hook}, with a new agent"), FRIENDS_ONLY)?;
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn cleanup_does_not_pull_the_carpet_from_under_an_agent() -> anyhow::Result<()> {
    let lab = Lab::new(Shape::Routed, World::parse(THREE_PODS))?;
    Files::of(&lab).write("web.yaml", FRIENDS)?;
    let console = Console::new(&lab)?;
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    agent.wait()?;
    let pins = hooks::pins(&lab);
    let said = console.cleanup()?;
    ensure!(
        said.code == Some(1)
            && said.err.contains("an agent is running")
            && said.err.contains("stop it first")
            && said.err.trim_end().lines().count() == 1,
        "a clear sentence: {said}"
    );
    ensure!(hooks::pins(&lab) == pins, "nothing was removed");
    expect(&lab, "after a refused cleanup", FRIENDS_ONLY)?;

    let bpf_dir = lab.run_dir().bpf().display().to_string();
    let said = console.run(&["cleanup", "--force", "--bpf-dir", &bpf_dir])?;
    ensure!(
        said.code == Some(0) && said.out.contains("enforces nothing until it is restarted"),
        "{said}"
    );
    expect(&lab, "after a cleanup by force", ALL_OPEN)?;
    let said = console.wait("1s")?;
    ensure!(
        said.code == Some(1) && said.err.contains("has been removed"),
        "the agent notices: {said}"
    );
    agent.stop()?;
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    agent.wait()?;
    expect(&lab, "after the restart", FRIENDS_ONLY)?;
    agent.stop()?;
    Ok(())
}

/// Devices go while nobody looks: their pins are dead, and no obstacle.
#[test]
fn cleanup_takes_dead_pins_too() -> anyhow::Result<()> {
    for hook in [Hook::Tcx, Hook::Clsact] {
        let mut lab = Lab::new(Shape::Routed, World::parse(THREE_PODS))?;
        Files::of(&lab).write("web.yaml", FRIENDS)?;
        let mut agent = Agent::start(&lab, hook)?;
        agent.wait()?;
        agent.kill()?;
        lab.restart_pod("a", "web", Restart::SameAddress)?;
        let said = Console::new(&lab)?.cleanup()?;
        ensure!(said.code == Some(0), "{hook}: {said}");
        ensure!(
            hooks::pins(&lab).is_empty(),
            "{hook}: {:?}",
            hooks::pins(&lab)
        );
        expect(&lab, &format!("{hook}, cleaned up"), ALL_OPEN)?;
    }
    Ok(())
}

/// Filters are held by their devices: when the bpf file system goes, they stay, and no pin tells of them.
#[test]
fn cleanup_takes_filters_whose_pins_are_lost() -> anyhow::Result<()> {
    for directory in ["its directory is there", "nothing is there"] {
        let lab = Lab::new(Shape::Routed, World::parse(THREE_PODS))?;
        Files::of(&lab).write("web.yaml", FRIENDS)?;
        let mut agent = Agent::start(&lab, Hook::Clsact)?;
        agent.wait()?;
        agent.kill()?;
        let bpf = lab.run_dir().bpf();
        for schema in fs::read_dir(&bpf)?.flatten() {
            if !schema.path().is_dir() {
                continue;
            }
            for pin in fs::read_dir(schema.path())?.flatten() {
                fs::remove_file(pin.path())?;
            }
            fs::remove_dir(schema.path())?;
        }
        expect(&lab, &format!("{directory}: without pins"), FRIENDS_ONLY)?;

        let bpf = match directory {
            "nothing is there" => bpf.join("never"),
            _ => bpf,
        };
        let console = Console::new(&lab)?;
        let cleanup = ["cleanup", "--bpf-dir", &bpf.display().to_string()];
        let said = console.run(&cleanup)?;
        ensure!(
            said.code == Some(0) && said.out.contains("that no pin told of; pods are open now"),
            "{directory}: {said}"
        );
        for device in devices(&lab)? {
            let found = hooks::attached(&lab, device)?;
            ensure!(
                found == [hooks::Programs::NONE; 2],
                "{directory}: device {device} still has {found:?}"
            );
        }
        expect(&lab, &format!("{directory}: cleaned up"), ALL_OPEN)?;
        let said = console.run(&cleanup)?;
        ensure!(
            said.code == Some(0) && !said.out.contains("that no pin told of"),
            "{directory}, once more: {said}"
        );
    }
    Ok(())
}

/// A wrong `--bpf-dir` must not take the filters of an agent that is running.
#[test]
fn cleanup_of_other_pins_leaves_a_running_agent_its_filters() -> anyhow::Result<()> {
    let lab = Lab::new(Shape::Routed, World::parse(THREE_PODS))?;
    Files::of(&lab).write("web.yaml", FRIENDS)?;
    let mut agent = Agent::start(&lab, Hook::Clsact)?;
    agent.wait()?;
    let never = lab.run_dir().path().join("never").display().to_string();
    let said = Console::new(&lab)?.run(&["cleanup", "--bpf-dir", &never])?;
    ensure!(
        said.code == Some(1) && said.err.contains("an agent seems to be running"),
        "{said}"
    );
    expect(&lab, "after a cleanup of other pins", FRIENDS_ONLY)?;
    agent.stop()?;
    Ok(())
}
