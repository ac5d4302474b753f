//! Every scenario by way of the API: its world and the policies of each step are written to the server, and the agent hears
//! of them from there.

use std::{collections::BTreeSet, fmt::Write as _, time::Instant};

use anyhow::{Context as _, bail, ensure};
use netpol_tests::{
    agent::{Agent, Hook},
    lab::Shape,
    scenario::{Scenario, Step},
};

use crate::cluster::Cluster;

fn run(name: &str, shape: Shape, hook: Hook) -> anyhow::Result<()> {
    let scenario = Scenario::find(name)?;
    play(&scenario, shape, hook).with_context(|| format!("{name}, {shape}, hook {hook}"))
}

fn play(scenario: &Scenario, shape: Shape, hook: Hook) -> anyhow::Result<()> {
    let mut cluster = Cluster::new(shape, scenario.world.clone())?;
    let mut everything = cluster.lab.destinations();
    if cluster.lab.has_services() {
        everything.extend(scenario.world.service_destinations());
    }
    let mut agent = cluster.agent(hook)?;
    agent.wait()?;
    let before = cluster.lab.table_of(&everything)?;
    ensure!(
        before.all_open(),
        "without a policy, {}",
        before.opened().differences(&before)
    );
    for step in &scenario.steps {
        let step_world = step.world.clone();
        cluster.change(|world| {
            *world = step_world;
            Ok(())
        })?;
        let started = Instant::now();
        agent.wait()?;
        let enforced = started.elapsed();
        check(&cluster, &agent, step).with_context(|| step.name.clone())?;
        println!(
            "{}, {}, {shape}: as expected, enforced after {:.0} ms",
            scenario.name,
            step.name,
            enforced.as_secs_f64() * 1000.0
        );
    }
    agent.stop()?;
    Ok(())
}

fn check(cluster: &Cluster, agent: &Agent, step: &Step) -> anyhow::Result<()> {
    let expected = if cluster.lab.has_services() {
        step.expected.clone()
    } else {
        step.expected.without_services()
    };
    let destinations: BTreeSet<_> = expected.destinations().cloned().collect();
    let found = cluster.lab.table_of(&destinations)?;
    let wrong = expected.differences(&found);
    if !wrong.is_empty() {
        let mut story = format!("{wrong}\nexpected:\n\n{expected}\nfound:\n\n{found}");
        write!(story, "\nstatus:\n{}", agent.status_text()?)?;
        write!(story, "\nlog:\n{}", agent.log())?;
        bail!(story);
    }
    Ok(())
}

const NF: Shape = Shape::Bridge { br_netfilter: true };
const BRIDGE: Shape = Shape::Bridge {
    br_netfilter: false,
};
const ROUTED: Shape = Shape::Routed;

macro_rules! scenarios {
    ($($scenario:ident: $name:literal $shape:ident $hook:ident,)*) => {
        const NAMES: &[&str] = &[$($name),*];
        $(
            #[test]
            fn $scenario() -> anyhow::Result<()> {
                run($name, $shape, Hook::$hook)
            }
        )*
    };
}

// What comes from the API does not depend on shape or hook: each scenario has one, and all of them occur.
scenarios! {
    s01_first_policy: "S01-first-policy" NF Tcx,
    s02_block_testing_trap: "S02-block-testing-trap" BRIDGE Clsact,
    s03_block_testing_right: "S03-block-testing-right" ROUTED Tcx,
    s04_only_own_namespace: "S04-only-own-namespace" NF Clsact,
    s05_chaos_monkey: "S05-chaos-monkey" BRIDGE Tcx,
    s06_missing_namespace: "S06-missing-namespace" ROUTED Clsact,
    s07_default_denies: "S07-default-denies" NF Tcx,
    s08_allow_dns: "S08-allow-dns" ROUTED Clsact,
    s09_frontend_to_api: "S09-frontend-to-api" NF Clsact,
    s10_monitoring_scrape: "S10-monitoring-scrape" ROUTED Tcx,
    s11_and_or: "S11-and-or" NF Tcx,
    s12_external_database: "S12-external-database" ROUTED Clsact,
    s13_db_ingress: "S13-db-ingress" BRIDGE Tcx,
    s14_redis_by_role: "S14-redis-by-role" ROUTED Tcx,
    s15_redis_by_project: "S15-redis-by-project" BRIDGE Clsact,
    s16_order_and_union: "S16-order-and-union" NF Tcx,
}

#[test]
fn every_scenario_has_its_test() -> anyhow::Result<()> {
    let all = Scenario::all()?;
    let names: Vec<&str> = all.iter().map(|scenario| scenario.name.as_str()).collect();
    assert_eq!(names, NAMES);
    Ok(())
}
