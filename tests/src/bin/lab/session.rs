//! One session: the table without the agent, the table with it, and then every edit.

use std::{
    collections::BTreeSet,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use netpol_tests::{
    agent::{Agent, AgentError, Hook, patience},
    lab::{Lab, Shape},
    reference,
    table::{Destination, MatrixStyle, Table},
};

use crate::{
    events::{Events, Next},
    source::{Source, Stage},
};

/// How long the agent may take to enforce an edit. What it refuses it never enforces.
const EDIT_PATIENCE: Duration = Duration::from_secs(2);

/// Runs a session to its end.
pub fn run(
    source: &Source,
    mut events: Events,
    once: bool,
    shape: Shape,
    hook: Hook,
) -> Result<ExitCode> {
    let stages = source.stages()?;
    let Some(first) = stages.first() else {
        bail!("there is nothing to run");
    };
    let started = Instant::now();
    let mut lab = Lab::new(shape, first.world.clone())?;
    if lab.parties().is_empty() {
        // A file that cannot be read may hold them.
        problems(&lab)?;
        bail!(
            "there is no pod: a directory of manifests needs at least one Pod that declares a port"
        );
    }
    say!(
        "Built a node of shape {shape} with {} in {:.1} s.",
        count(lab.parties().len(), "pod or host", "pods and hosts"),
        started.elapsed().as_secs_f64()
    );
    problems(&lab)?;
    let before = lab.table()?;
    heading(&format!(
        "{}: as Flannel leaves it ({}, and nothing enforces)",
        first.title,
        count(
            lab.world().ids("NetworkPolicy").len(),
            "policy exists",
            "policies exist"
        ),
    ))?;
    say!(
        "{}",
        before.matrix(None, MatrixStyle::for_stdout()).trim_end()
    );
    if !before.all_open() {
        bail!(
            "not everything is open without an agent, so the lab itself is broken here:\n{}",
            before.opened().differences(&before)
        );
    }
    if events.ended() {
        return Ok(ExitCode::SUCCESS);
    }

    let mut agent = Agent::start(&lab, hook)?;
    let mut shown = before;
    let mut good = true;
    for (nth, stage) in stages.iter().enumerate() {
        if nth > 0 {
            lab.replace_world(stage.world.clone())?;
        }
        let started = Instant::now();
        let in_force = enforced(&lab, &mut agent, patience())?;
        let passed = match in_force {
            true => format!(
                "enforced after {:.0} ms",
                started.elapsed().as_secs_f64() * 1000.0
            ),
            false => "not all of it is in force".to_owned(),
        };
        good &= in_force;
        let now = probe(&lab, stage.expected.as_ref())?;
        heading(&format!("{}: with netpol-agent ({passed})", stage.title))?;
        say!(
            "{}",
            now.matrix(Some(&shown), MatrixStyle::for_stdout())
                .trim_end()
        );
        good &= judge(&lab, &now, stage)?;
        shown = now;
        if events.ended() {
            return Ok(ExitCode::SUCCESS);
        }
    }
    if once {
        return Ok(if good {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    let watched = source.watched();
    events.watch(
        &watched
            .iter()
            .map(|path| path.as_path())
            .collect::<Vec<_>>(),
    )?;
    directions(&lab, &agent, watched.last().map(|path| path.as_path()))?;
    while events.next() == Next::Reload {
        // A mistake in a file must not end the session: it is said, and the next edit may mend it.
        if let Err(error) = follow(&mut lab, &mut agent, source, &mut shown) {
            say!("{error:#}");
        }
    }
    say!("\nTaking the lab down.");
    Ok(ExitCode::SUCCESS)
}

/// Waits until everything is in force. What is refused never will be: it is said after a short while, and `false` returned.
fn enforced(lab: &Lab, agent: &mut Agent, patience: Duration) -> Result<bool> {
    let (_, refused) = reference::table(lab, &BTreeSet::new());
    let hopeless = !refused.is_empty() || !lab.world().problems().is_empty();
    let patience = if hopeless { EDIT_PATIENCE } else { patience };
    match agent.wait_for(patience) {
        Ok(()) => Ok(true),
        Err(AgentError::Command { output, .. }) => {
            // The agent reads copies of the files; their names are those of the originals.
            let copies = format!("{}/", lab.manifests().display());
            say!("! {}", output.replace(&copies, ""));
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Takes an edit over and shows what it changed.
fn follow(lab: &mut Lab, agent: &mut Agent, source: &Source, shown: &mut Table) -> Result<()> {
    let world = source.reload()?;
    lab.replace_world(world)?;
    heading("the manifests have changed")?;
    problems(lab)?;
    let in_force = enforced(lab, agent, EDIT_PATIENCE)?;
    if in_force {
        warnings(agent)?;
    }
    let now = probe(lab, None)?;
    let changes = shown.differences(&now).as_change();
    if changes.is_empty() {
        say!("No cell has changed.");
    } else {
        say!(
            "{}",
            now.matrix(Some(shown), MatrixStyle::for_stdout())
                .trim_end()
        );
        say!("{}", changes.to_string().trim_end());
    }
    // Of what is refused, the last good version is in force, which only the agent knows.
    let (expected, refused) = reference::table(lab, &destinations(lab, None));
    let wrong = expected.differences(&now);
    if in_force && refused.is_empty() && lab.world().problems().is_empty() && !wrong.is_empty() {
        say!(
            "The specification says otherwise: {}",
            wrong.to_string().trim_end()
        );
    }
    *shown = now;
    Ok(())
}

/// Compares with the scenario's table or, where there is none, with the naive evaluator's.
fn judge(lab: &Lab, found: &Table, stage: &Stage) -> Result<bool> {
    let (by, expected) = match &stage.expected {
        Some(expected) => ("the scenario's expected table", expected.clone()),
        None => (
            "the specification, read naively",
            reference::table(lab, &destinations(lab, None)).0,
        ),
    };
    let wrong = expected.differences(found);
    if wrong.is_empty() {
        say!("As expected by {by}.");
    } else {
        say!("Not what {by} says: {}", wrong.to_string().trim_end());
    }
    Ok(wrong.is_empty())
}

fn probe(lab: &Lab, expected: Option<&Table>) -> Result<Table> {
    Ok(lab.table_of(&destinations(lab, expected))?)
}

/// Every declared port, and what the expected table asks for beyond that.
fn destinations(lab: &Lab, expected: Option<&Table>) -> BTreeSet<Destination> {
    let mut destinations = lab.destinations();
    destinations.extend(expected.into_iter().flat_map(Table::destinations).cloned());
    destinations
}

fn problems(lab: &Lab) -> Result<()> {
    for problem in lab.world().problems() {
        say!("! {problem}");
    }
    Ok(())
}

/// What the agent does not like, in its own words.
fn warnings(agent: &Agent) -> Result<()> {
    let Ok(status) = agent.status() else {
        return Ok(());
    };
    for problem in status["source"]["problems"]
        .as_array()
        .into_iter()
        .flatten()
    {
        say!("! {}", problem["message"].as_str().unwrap_or("?"));
    }
    Ok(())
}

fn directions(lab: &Lab, agent: &Agent, directory: Option<&Path>) -> Result<()> {
    heading("the lab stays")?;
    if let Some(directory) = directory {
        say!("Edit the policies in   {}", directory.display());
    }
    say!(
        "Ask the agent with     {} status --run-dir {}",
        agent.binary().display(),
        lab.run_dir().agent().display()
    );
    say!(
        "Read its log with      less {}",
        lab.run_dir().agent_log().display()
    );
    say!("A shell inside         nsenter --net=/run/netns/NAME, where NAME is");
    for party in lab.parties() {
        if let (Ok(station), Ok(addresses)) = (lab.station(&party), lab.addresses(&party)) {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            say!(
                "  {:<40} {party}, {}",
                station.namespace.name(),
                addresses.join(", ")
            );
        }
    }
    say!("  {:<40} the node", lab.node().namespace.name());
    say!("End with Ctrl-C; it all goes away.");
    Ok(())
}

fn heading(text: &str) -> Result<()> {
    say!("\n== {text}");
    Ok(())
}

fn count(number: usize, one: &str, more: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { more })
}
