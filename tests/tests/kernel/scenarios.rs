//! Every scenario on real packets: a lab, the real agent, and the table of each step, by both families.
//!
//! `cargo xtask test --only s11` runs one of them.

use std::{collections::BTreeSet, fmt::Write, time::Instant};

use anyhow::{Context, ensure};
use netpol_tests::{
    agent::{Agent, Hook},
    lab::{Lab, Shape},
    reference,
    scenario::Scenario,
};

fn run(name: &str, shape: Shape, hook: Hook) -> anyhow::Result<()> {
    let scenario = Scenario::find(name)?;
    play(&scenario, shape, hook).with_context(|| format!("{name}, {shape}, hook {hook}"))
}

fn play(scenario: &Scenario, shape: Shape, hook: Hook) -> anyhow::Result<()> {
    let first = scenario.steps.first().context("a scenario has a step")?;
    let mut lab = Lab::new(shape, first.world.clone())?;
    let mut everything = lab.destinations();
    if lab.has_services() {
        everything.extend(first.world.service_destinations());
    }
    let before = lab.table_of(&everything)?;
    ensure!(
        before.all_open(),
        "without an agent, {}",
        before.opened().differences(&before)
    );
    let mut agent = Agent::start(&lab, hook)?;
    for (nth, step) in scenario.steps.iter().enumerate() {
        if nth > 0 {
            lab.replace_world(step.world.clone())?;
        }
        let started = Instant::now();
        agent.wait()?;
        let enforced = started.elapsed();
        let expected = if lab.has_services() {
            step.expected.clone()
        } else {
            step.expected.without_services()
        };
        let destinations: BTreeSet<_> = expected.destinations().cloned().collect();
        let (naive, refused) = reference::table(&lab, &destinations);
        ensure!(
            refused.is_empty(),
            "{}: refused: {}",
            step.name,
            refused.join("; ")
        );
        let doubt = expected.differences(&naive);
        ensure!(
            doubt.is_empty(),
            "{}: the expected table and the naive evaluator disagree: {doubt}",
            step.name
        );
        let found = lab.table_of(&destinations)?;
        let wrong = expected.differences(&found);
        if !wrong.is_empty() {
            let mut story = format!("{}: {wrong}\nexpected:\n\n{}", step.name, expected);
            write!(story, "\nfound:\n\n{found}")?;
            if let Ok(status) = agent.status_text() {
                write!(story, "\nstatus:\n{status}")?;
            }
            write!(story, "\nlog:\n{}", agent.log())?;
            anyhow::bail!(story);
        }
        println!(
            "{}, {}, {shape}: {} cells as expected, enforced after {:.0} ms",
            scenario.name,
            step.name,
            found.len(),
            enforced.as_secs_f64() * 1000.0
        );
    }
    agent.stop()?;
    Ok(())
}

macro_rules! scenarios {
    ($($scenario:ident: $name:literal,)*) => {
        const NAMES: &[&str] = &[$($name),*];
        $(
            /// In every shape; between them, both hooks.
            mod $scenario {
                use super::*;

                #[test]
                fn bridge_nf() -> anyhow::Result<()> {
                    run($name, Shape::Bridge { br_netfilter: true }, Hook::Auto)
                }

                #[test]
                fn bridge() -> anyhow::Result<()> {
                    run($name, Shape::Bridge { br_netfilter: false }, Hook::Clsact)
                }

                #[test]
                fn routed() -> anyhow::Result<()> {
                    run($name, Shape::Routed, Hook::Auto)
                }
            }
        )*
    };
}

scenarios! {
    s01_first_policy: "S01-first-policy",
    s02_block_testing_trap: "S02-block-testing-trap",
    s03_block_testing_right: "S03-block-testing-right",
    s04_only_own_namespace: "S04-only-own-namespace",
    s05_chaos_monkey: "S05-chaos-monkey",
    s06_missing_namespace: "S06-missing-namespace",
    s07_default_denies: "S07-default-denies",
    s08_allow_dns: "S08-allow-dns",
    s09_frontend_to_api: "S09-frontend-to-api",
    s10_monitoring_scrape: "S10-monitoring-scrape",
    s11_and_or: "S11-and-or",
    s12_external_database: "S12-external-database",
    s13_db_ingress: "S13-db-ingress",
    s14_redis_by_role: "S14-redis-by-role",
    s15_redis_by_project: "S15-redis-by-project",
    s16_order_and_union: "S16-order-and-union",
}

#[test]
fn every_scenario_is_read_and_has_its_test() -> anyhow::Result<()> {
    let names: Vec<String> = Scenario::all()?
        .into_iter()
        .map(|scenario| scenario.name)
        .collect();
    assert_eq!(names, NAMES);
    Ok(())
}

/// The tables were written by hand, and so was the naive evaluator: they must agree before either judges the agent.
#[test]
fn every_expected_table_is_what_the_specification_says() -> anyhow::Result<()> {
    let mut wrong = String::new();
    for scenario in Scenario::all()? {
        let mut lab = Lab::new(Shape::Routed, scenario.world.clone())?;
        for step in &scenario.steps {
            lab.replace_world(step.world.clone())?;
            let destinations: BTreeSet<_> = step.expected.destinations().cloned().collect();
            let (naive, refused) = reference::table(&lab, &destinations);
            let doubt = step.expected.differences(&naive);
            if !doubt.is_empty() || !refused.is_empty() {
                writeln!(
                    wrong,
                    "{}, {}: {doubt}{}",
                    scenario.name,
                    step.name,
                    refused.join("\n")
                )?;
            }
        }
    }
    ensure!(wrong.is_empty(), "{wrong}");
    Ok(())
}
