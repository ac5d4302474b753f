//! `wait` is a promise: exit code 0 means that what was written before is enforced. And what the command line says of
//! mistakes.

use std::{fs, thread, time::Duration};

use anyhow::ensure;
use netpol_tests::{
    agent::{Agent, Console, Hook, Said},
    lab::{Lab, Shape},
    manifests::World,
    story::{ALL_DENIED, CLOSED, FRIENDS, Files, THREE_PODS, expect, log_end},
    table::{Destination, Family, Party, Port},
};

const AT_ONCE: Duration = Duration::from_millis(60);

fn lab() -> anyhow::Result<Lab> {
    Ok(Lab::new(Shape::Routed, World::parse(THREE_PODS))?)
}

#[test]
fn what_was_written_before_a_wait_is_enforced_after_it() -> anyhow::Result<()> {
    let lab = lab()?;
    let (files, console) = (Files::of(&lab), Console::new(&lab)?);
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    agent.wait()?;
    let (friend, dns) = (
        Party::pod("a", "friend"),
        Destination::new(Party::pod("a", "web"), Port::Udp(53)),
    );
    for round in 0..60 {
        let (text, allowed) = if round % 2 == 0 {
            (CLOSED, false)
        } else {
            (FRIENDS, true)
        };
        match round % 3 {
            0 => files.write("web.yaml", text)?,
            _ => files.replace("web.yaml", text)?,
        }
        let said = console.wait("10s")?;
        ensure!(said.code == Some(0), "round {round}: {said}");
        let family = Family::ALL[round / 2 % 2];
        let patience = if allowed {
            Duration::from_secs(2)
        } else {
            AT_ONCE
        };
        let arrived = lab.knock(&friend, &dns, family, patience)?;
        ensure!(
            arrived == allowed,
            "round {round}: `wait` ended with 0 after a policy that {}, and the next datagram ({family}) {}\n{}",
            if allowed { "allows" } else { "denies" },
            if arrived { "arrived" } else { "did not arrive" },
            log_end(&lab)
        );
    }
    agent.stop()?;
    Ok(())
}

/// Exit code 1, in no less than the timeout and not much more.
fn timed_out(said: &Said, timeout: Duration) -> anyhow::Result<()> {
    ensure!(
        said.code == Some(1),
        "a timeout must be exit code 1: {said}"
    );
    ensure!(
        said.took >= timeout && said.took < timeout + Duration::from_secs(2),
        "the timeout was {timeout:?}: {said}"
    );
    ensure!(said.out.is_empty(), "errors go to standard error: {said}");
    Ok(())
}

#[test]
fn a_wait_without_an_agent_says_so_after_its_time() -> anyhow::Result<()> {
    let lab = lab()?;
    let console = Console::new(&lab)?;
    let said = console.wait("500ms")?;
    timed_out(&said, Duration::from_millis(500))?;
    ensure!(
        said.err.contains("no agent at") && said.err.contains("agent.sock"),
        "it must say that nobody is there, and where: {said}"
    );

    // A socket that a killed agent left is nobody, too.
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    agent.wait()?;
    agent.kill()?;
    let said = console.wait("500ms")?;
    timed_out(&said, Duration::from_millis(500))?;
    ensure!(said.err.contains("no agent at"), "{said}");
    let status = console.run(&[
        "status",
        "--run-dir",
        &lab.run_dir().agent().display().to_string(),
    ])?;
    ensure!(
        status.code == Some(1) && status.err.contains("no agent at"),
        "{status}"
    );
    Ok(())
}

#[test]
fn a_wait_that_begins_before_the_agent_succeeds_when_it_comes() -> anyhow::Result<()> {
    let lab = lab()?;
    Files::of(&lab).write("web.yaml", CLOSED)?;
    let console = Console::new(&lab)?;
    let waiting = console.begin_wait("20s")?;
    thread::sleep(Duration::from_millis(700));
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    let said = waiting.end()?;
    ensure!(said.code == Some(0), "{said}\n{}", log_end(&lab));
    expect(&lab, "as soon as `wait` ended", ALL_DENIED)?;

    // And across an agent that goes and comes back.
    agent.kill()?;
    let waiting = console.begin_wait("20s")?;
    thread::sleep(Duration::from_millis(300));
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    let said = waiting.end()?;
    ensure!(said.code == Some(0), "{said}\n{}", log_end(&lab));
    agent.stop()?;
    Ok(())
}

/// One sentence that contains these words, and an exit code that is not 0.
fn refuses(said: &Said, words: &[&str]) -> anyhow::Result<()> {
    ensure!(
        said.code.is_some_and(|code| code != 0),
        "this must fail: {said}"
    );
    for word in words {
        ensure!(said.err.contains(word), "it must say `{word}`: {said}");
    }
    ensure!(
        !said.err.contains("panicked") && !said.err.contains("Error {"),
        "a sentence for people: {said}"
    );
    Ok(())
}

fn sentence(said: &Said, words: &[&str]) -> anyhow::Result<()> {
    refuses(said, words)?;
    ensure!(
        said.err.trim_end().lines().count() == 1,
        "one sentence is enough: {said}"
    );
    Ok(())
}

#[test]
fn mistakes_on_the_command_line_are_told_in_a_sentence() -> anyhow::Result<()> {
    let lab = lab()?;
    let console = Console::new(&lab)?;
    let usual = console.run_arguments();
    let with = |option: &str, value: &str| -> Vec<String> {
        let mut arguments = usual.clone();
        match arguments.iter().position(|argument| argument == option) {
            Some(at) => arguments[at + 1] = value.to_owned(),
            None => arguments.extend([option.to_owned(), value.to_owned()]),
        }
        arguments
    };
    let run = |arguments: &[String]| {
        console.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };

    let nowhere = lab.run_dir().path().join("nowhere").display().to_string();
    sentence(
        &run(&with("--manifests", &nowhere))?,
        &[
            "cannot read manifests from",
            &nowhere,
            "create the directory",
        ],
    )?;
    let file = lab.run_dir().path().join("file");
    fs::write(&file, "")?;
    let file = file.display().to_string();
    sentence(
        &run(&with("--manifests", &file))?,
        &["cannot read manifests from", &file],
    )?;

    let at = usual
        .iter()
        .position(|argument| argument == "--node-name")
        .unwrap_or_default();
    let mut nameless = usual.clone();
    nameless.drain(at..at + 2);
    refuses(&run(&nameless)?, &["--node-name <NODE>"])?;
    refuses(&run(&with("--node-name", ""))?, &["--node-name"])?;
    refuses(
        &run(&with("--hook", "xdp"))?,
        &["'xdp'", "--hook", "auto, tcx, clsact"],
    )?;
    refuses(
        &run(&with("--trace-pod", "web"))?,
        &["'web'", "--trace-pod"],
    )?;
    refuses(&console.wait("soon")?, &["'soon'", "500ms"])?;
    Ok(())
}

#[test]
fn a_second_agent_is_refused() -> anyhow::Result<()> {
    let lab = lab()?;
    Files::of(&lab).write("web.yaml", CLOSED)?;
    let console = Console::new(&lab)?;
    let mut agent = Agent::start(&lab, Hook::Auto)?;
    agent.wait()?;
    let usual = console.run_arguments();
    let second = console.run(&usual.iter().map(String::as_str).collect::<Vec<_>>())?;
    sentence(
        &second,
        &[
            "already running",
            &lab.run_dir().agent().display().to_string(),
            "--run-dir",
        ],
    )?;

    // Another run directory, but the same pins.
    let other = lab.run_dir().path().join("other").display().to_string();
    let arguments: Vec<&str> = usual
        .iter()
        .map(|argument| {
            if *argument == lab.run_dir().agent().display().to_string() {
                &other
            } else {
                argument.as_str()
            }
        })
        .collect();
    let third = console.run(&arguments)?;
    sentence(&third, &["another agent has the pins", "--bpf-dir"])?;

    let said = console.wait("5s")?;
    ensure!(said.code == Some(0), "the first one goes on: {said}");
    expect(&lab, "after two agents that were refused", ALL_DENIED)?;
    agent.stop()?;
    Ok(())
}
