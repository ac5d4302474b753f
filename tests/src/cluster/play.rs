//! The story of a scenario on a cluster: open without policies, then one table after the other.

use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep};

use super::{
    Options,
    client::Cluster,
    probes::Plan,
    report::{Moment, Report},
    stage::Stage,
};
use crate::{
    scenario::Scenario,
    table::{Differences, Table},
};

/// How long after its pods are ready the network of a fresh world may need: kube-proxy and the CNI are not done by then.
const OPEN_PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks at cells that are not yet as expected.
const PAUSE: Duration = Duration::from_millis(500);

/// Plays a scenario from its first pod to its last policy. What goes wrong is part of the report.
pub async fn play(
    cluster: &Cluster,
    options: &Options,
    scenario: &Scenario,
    nodes: &[String],
    start: usize,
) -> Report {
    let mut report = Report::new(&scenario.name, options.agent.is_some());
    if let Err(error) = tell(cluster, options, scenario, nodes, start, &mut report).await {
        report.failure = Some(format!("{error:#}"));
    }
    report
}

async fn tell(
    cluster: &Cluster,
    options: &Options,
    scenario: &Scenario,
    nodes: &[String],
    start: usize,
    report: &mut Report,
) -> Result<()> {
    let mut stage = Stage::set(cluster, options, scenario, nodes, start).await?;
    report.placement = stage.placement.clone();
    if let Some(first) = scenario.steps.first() {
        let open = Plan::of(&first.expected).expected.opened();
        let moment = settle(&stage, "no policy", &open, OPEN_PATIENCE).await?;
        report.moments.push(moment);
    }
    for step in &scenario.steps {
        stage.become_world(&step.world).await?;
        let plan = Plan::of(&step.expected);
        let expected = match options.agent {
            Some(_) => plan.expected,
            None => plan.expected.opened(),
        };
        let mut moment = settle(&stage, &step.name, &expected, options.patience).await?;
        moment.left_out = plan.left_out;
        report.moments.push(moment);
    }
    if !options.keep {
        stage.strike().await?;
    }
    Ok(())
}

/// Probes until everything is as expected, or the time is up: the suite cannot ask an agent on every node whether it has
/// seen a change. Only cells that differ are probed again. Then the whole table once more: it must stay so.
async fn settle(
    stage: &Stage<'_>,
    name: &str,
    expected: &Table,
    patience: Duration,
) -> Result<Moment> {
    let started = Instant::now();
    let (mut found, missing) = stage.probe(expected).await?;
    let mut settled = started.elapsed();
    let mut wrong = expected.differences(&found);
    let late = wrong.clone();
    while !wrong.is_empty() && started.elapsed() < patience {
        sleep(PAUSE).await;
        let (part, _) = stage.probe(&cells_of(expected, &wrong)).await?;
        found.overlay(&part);
        settled = started.elapsed();
        wrong = expected.differences(&found);
    }
    let stayed = wrong.is_empty();
    if stayed {
        found = stage.probe(expected).await?.0;
        wrong = expected.differences(&found);
    }
    Ok(Moment {
        name: name.to_owned(),
        found,
        unstable: stayed && !wrong.is_empty(),
        wrong,
        missing,
        left_out: Default::default(),
        settled,
        late,
    })
}

/// The expected cells that differ.
fn cells_of(expected: &Table, wrong: &Differences) -> Table {
    let mut cells = Table::new();
    for difference in wrong.iter() {
        if let Some(cell) = expected.cell(&difference.source, &difference.destination) {
            for family in crate::table::Family::ALL {
                if let Some(outcome) = cell.get(family) {
                    cells.set(&difference.source, &difference.destination, family, outcome);
                }
            }
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_probed_again_and_takes_the_place_of_the_old() {
        let expected: Table = "a/b TCP/1\n open: a/c\n denied: a/d\na/c TCP/2\n open: a/b a/d\n"
            .parse()
            .unwrap();
        let mut found: Table = "a/b TCP/1\n open: a/c a/d\na/c TCP/2\n open: a/b a/d\n"
            .parse()
            .unwrap();
        let again = cells_of(&expected, &expected.differences(&found));
        assert_eq!(again.to_string(), "a/b TCP/1\n  denied: a/d\n");
        found.overlay(&again);
        assert!(expected.differences(&found).is_empty());
    }
}
