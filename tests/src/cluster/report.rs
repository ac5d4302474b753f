//! What came of a run, for people: a table for each moment, what differs, and what no cluster can show.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use netpol_agent::policy::object::ObjectKey;

use super::{Options, client::Cluster};
use crate::table::{Differences, Family, MatrixStyle, Table};

/// One set of policies, and what was found under it.
#[derive(Clone, Debug)]
pub struct Moment {
    /// The step's name.
    pub name: String,
    /// The table.
    pub found: Table,
    /// Where it is not as expected.
    pub wrong: Differences,
    /// It was as expected, and a moment later it was not.
    pub unstable: bool,
    /// Families that nobody has an address of.
    pub missing: BTreeSet<Family>,
    /// Cells of the scenario that no cluster has anybody for, by the reason.
    pub left_out: BTreeMap<&'static str, usize>,
    /// When all was as expected for the first time.
    pub settled: Duration,
    /// What was not yet so when it was looked at first.
    pub late: Differences,
}

/// What became of a scenario.
#[derive(Clone, Debug)]
pub struct Report {
    scenario: String,
    enforced: bool,
    /// Which pod was on which node.
    pub placement: BTreeMap<ObjectKey, String>,
    /// Its tables.
    pub moments: Vec<Moment>,
    /// Why it could not be played to its end.
    pub failure: Option<String>,
}

impl Report {
    /// Of a scenario of which nothing is known yet.
    pub fn new(scenario: &str, enforced: bool) -> Self {
        Self {
            scenario: scenario.to_owned(),
            enforced,
            placement: BTreeMap::new(),
            moments: Vec::new(),
            failure: None,
        }
    }

    /// Whether it was played to its end and every table was as expected.
    pub fn is_good(&self) -> bool {
        self.failure.is_none()
            && !self.moments.is_empty()
            && self.moments.iter().all(|moment| moment.wrong.is_empty())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let style = MatrixStyle::for_stdout();
        let agent = if self.enforced {
            "with the agent"
        } else {
            "without the agent"
        };
        writeln!(f, "\n== {}, {agent}", self.scenario)?;
        let mut by_node: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (pod, node) in &self.placement {
            by_node.entry(node).or_default().push(pod.to_string());
        }
        for (node, pods) in by_node {
            writeln!(f, "on {node}: {}", pods.join(", "))?;
        }
        let (mut before, mut last) = (None, None::<&Table>);
        for moment in &self.moments {
            writeln!(
                f,
                "\n-- {}, {}: {}",
                self.scenario,
                moment.name,
                moment.verdict()
            )?;
            if last.is_some_and(|last| last.differences(&moment.found).is_empty()) {
                writeln!(f, "the table as before")?;
            } else {
                write!(f, "{}", moment.found.matrix(before, style))?;
            }
            last = Some(&moment.found);
            if !moment.wrong.is_empty() {
                write!(f, "{}", moment.wrong)?;
            } else if !moment.late.is_empty() {
                write!(f, "at first, {}", moment.late)?;
            }
            for (reason, count) in &moment.left_out {
                writeln!(f, "left out: {count} cells of the scenario: {reason}")?;
            }
            before = before.or(Some(&moment.found));
        }
        if let Some(failure) = &self.failure {
            writeln!(f, "\n{}: not played to its end: {failure}", self.scenario)?;
        }
        Ok(())
    }
}

impl Moment {
    fn verdict(&self) -> String {
        let cells = self.found.len();
        let when = format!("{:.1} s", self.settled.as_secs_f64());
        match (self.wrong.len(), self.unstable) {
            (0, _) if self.late.is_empty() => format!("{cells} cells as expected, twice"),
            (0, _) => format!("{cells} cells as expected, twice, the first time after {when}"),
            (wrong, true) => {
                format!(
                    "{wrong} of {cells} cells WRONG: as expected after {when}, and then no longer"
                )
            }
            (wrong, false) => format!("{wrong} of {cells} cells WRONG, still after {when}"),
        }
    }
}

/// Says what is about to happen, and where.
pub fn introduce(cluster: &Cluster, options: &Options, nodes: &[String]) {
    let expected = match &options.agent {
        Some((namespace, name)) => format!("with the agent (DaemonSet {namespace}/{name})"),
        None => "without an agent: policies exist, and everything must stay open".to_owned(),
    };
    println!(
        "cluster {}, pods on nodes {}; {expected}",
        cluster.url,
        nodes.join(", ")
    );
    if nodes.len() < 2 {
        println!("note: one node only: no connection crosses nodes");
    }
}

/// Everything on one page.
pub fn conclude(reports: &[Report]) {
    let mut cells = 0;
    let mut wrong = 0;
    let mut left_out = BTreeMap::<&str, usize>::new();
    let mut missing: BTreeSet<Family> = BTreeSet::new();
    println!("\n== summary");
    for report in reports {
        for moment in &report.moments {
            cells += moment.found.len();
            wrong += moment.wrong.len();
            missing.extend(&moment.missing);
            for (reason, count) in &moment.left_out {
                *left_out.entry(reason).or_default() += count;
            }
            println!("{}, {}: {}", report.scenario, moment.name, moment.verdict());
        }
        if let Some(failure) = &report.failure {
            println!("{}: NOT PLAYED TO ITS END: {failure}", report.scenario);
        }
    }
    for (reason, count) in left_out {
        println!("left out: {count} cells: {reason}");
    }
    for family in missing {
        println!("not probed: {family}: some pods or Services have no address of it");
    }
    let failed = reports.iter().filter(|report| !report.is_good()).count();
    println!(
        "{} scenarios, {cells} cells, {wrong} wrong; {failed} scenarios failed",
        reports.len()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(expected: &str, found: &str) -> Moment {
        let [expected, found] = [expected, found].map(|text| text.parse::<Table>().unwrap());
        Moment {
            name: "policy".to_owned(),
            wrong: expected.differences(&found),
            found,
            unstable: false,
            missing: BTreeSet::new(),
            left_out: BTreeMap::from([("a host outside the cluster", 3)]),
            settled: Duration::from_secs(2),
            late: expected.differences(&expected),
        }
    }

    #[test]
    fn a_report_is_good_only_with_tables_that_agree() {
        let mut report = Report::new("S01-first-policy", true);
        assert!(!report.is_good(), "nothing was seen");
        report.moments.push(moment(
            "a/b TCP/1\n denied: a/c\n",
            "a/b TCP/1\n denied: a/c\n",
        ));
        assert!(report.is_good());
        assert!(report.to_string().contains("left out: 3 cells"));
        report.moments.push(report.moments[0].clone());
        assert_eq!(report.to_string().matches("from \\ to").count(), 1);
        assert_eq!(report.to_string().matches("as before").count(), 1);
        report.failure = Some("no pods".to_owned());
        assert!(!report.is_good());
        report.failure = None;
        report.moments.push(moment(
            "a/b TCP/1\n denied: a/c\n",
            "a/b TCP/1\n open: a/c\n",
        ));
        assert!(!report.is_good());
        let shown = report.to_string();
        assert!(shown.contains("1 of 1 cells WRONG"), "{shown}");
        assert!(
            shown.contains("a/c  expected denied, found open"),
            "{shown}"
        );
    }
}
