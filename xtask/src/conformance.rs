//! `cargo xtask conformance`: what others test of NetworkPolicy, against a cluster with the agent.
//!
//! - Kubernetes' own end-to-end suite, `[sig-network] Netpol`
//! - cyclonus, which generates policies and compares a simulation with what pods really reach
//!
//! Both are Go programs, built from the versions that `tests/conformance/*/go.mod` pin. Their JUnit reports are counted.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    kind::{need, program},
    shell::{house, run, say},
};

/// Which of the end-to-end tests; all of NetworkPolicy, by every protocol.
const FOCUS: &str = r"\[sig-network\] Netpol";

#[derive(Args)]
pub struct Conformance {
    /// The context of the kubeconfig; else its current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Which suites
    #[arg(long, value_enum, value_name = "SUITE", default_values_t = [Suite::E2e, Suite::Cyclonus])]
    suite: Vec<Suite>,
    /// Only end-to-end tests that match this regular expression
    #[arg(long, value_name = "REGEX", default_value = FOCUS)]
    focus: String,
    /// None of the end-to-end tests that match this regular expression
    #[arg(long, value_name = "REGEX")]
    skip: Option<String>,
    /// How many end-to-end tests run side by side
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    procs: u32,
    /// Only cyclonus' cases of these kinds, as its --include takes them; may be given several times
    #[arg(long, value_name = "TAG")]
    include: Vec<String>,
    /// For cyclonus: protocols that pods serve; may be given several times
    #[arg(long, value_name = "PROTOCOL", default_values_t = ["TCP", "UDP", "SCTP"].map(str::to_owned))]
    protocol: Vec<String>,
    /// Build the suites, and run nothing
    #[arg(long)]
    build_only: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// Kubernetes' own end-to-end tests of NetworkPolicy
    E2e,
    /// cyclonus
    Cyclonus,
}

pub fn perform(options: &Conformance) -> Result<()> {
    need("go")?;
    let built = house().join("target/conformance");
    fs::create_dir_all(&built).with_context(|| format!("make {}", built.display()))?;
    let wants = |suite| options.suite.contains(&suite);
    if wants(Suite::E2e) {
        say("building the end-to-end suite and ginkgo");
        run(go("e2e")
            .args(["test", "-c", "-o"])
            .arg(built.join("e2e.test"))
            .arg("k8s.io/kubernetes/test/e2e"))?;
        build_tool("e2e", &built, "github.com/onsi/ginkgo/v2/ginkgo")?;
    }
    if wants(Suite::Cyclonus) {
        say("building cyclonus");
        build_tool(
            "cyclonus",
            &built,
            "github.com/mattfenwick/cyclonus/cmd/cyclonus",
        )?;
    }
    if options.build_only {
        return Ok(());
    }
    let mut results = Vec::new();
    if wants(Suite::E2e) {
        results.push(("end-to-end", options.run_e2e(&built)?));
    }
    if wants(Suite::Cyclonus) {
        results.push(("cyclonus", options.run_cyclonus(&built)?));
    }
    let mut good = true;
    for (suite, (ended, counts)) in &results {
        for name in &counts.failures {
            println!("{suite}: FAILED: {name}");
        }
        println!(
            "{suite}: {} passed, {} failed, {} skipped",
            counts.passed,
            counts.failures.len(),
            counts.skipped
        );
        if let Err(error) = ended {
            println!("{suite}: {error:#}");
        }
        good &= ended.is_ok() && counts.failures.is_empty() && counts.passed > 0;
    }
    if !good {
        bail!("not all passed");
    }
    Ok(())
}

impl Conformance {
    /// Whether the program said that all is well, and what its report counts.
    fn run_e2e(&self, built: &Path) -> Result<(Result<()>, Counts)> {
        say("the end-to-end suite");
        let report = fresh(built.join("e2e.xml"))?;
        let mut ginkgo = Command::new(built.join("ginkgo"));
        ginkgo
            .arg(format!("--procs={}", self.procs))
            .arg(format!("--focus={}", self.focus))
            .args(self.skip.iter().map(|skip| format!("--skip={skip}")))
            .args(["--no-color", "--timeout=6h", "--poll-progress-after=10m"])
            .arg(format!("--output-dir={}", built.display()))
            .arg("--junit-report=e2e.xml")
            .arg(built.join("e2e.test"))
            .arg("--")
            .args(self.context.iter().map(|name| format!("--context={name}")))
            .args(["--provider=local", "--dump-logs-on-failure=false"])
            .args(kubeconfig().map(|file| format!("--kubeconfig={}", file.display())));
        let ended = run(&mut ginkgo);
        // Thousands of tests of other subjects are in the report too, as skipped.
        Ok((
            ended,
            Counts::read(&report, |name| name.contains("Netpol"))?,
        ))
    }

    fn run_cyclonus(&self, built: &Path) -> Result<(Result<()>, Counts)> {
        say("cyclonus");
        let report = fresh(built.join("cyclonus.xml"))?;
        // By itself it leaves out some kinds, also when they are asked for by name.
        let exclude = (!self.include.is_empty()).then_some("--exclude=");
        let mut cyclonus = Command::new(built.join("cyclonus"));
        cyclonus
            .args(["generate", "--cleanup-namespaces", "--retries=2"])
            // It expects that a policy keeps a pod from itself, which the documentation says none can.
            .arg("--ignore-loopback")
            .args([
                "--pod-creation-timeout-seconds=300",
                "--job-timeout-seconds=2",
            ])
            .args(["--server-protocol", &self.protocol.join(",")])
            .args(self.context.iter().map(|name| format!("--context={name}")))
            .args(self.include.iter().map(|tag| format!("--include={tag}")))
            .args(exclude)
            .arg(format!("--junit-results-file={}", report.display()));
        let ended = run(&mut cyclonus);
        Ok((ended, Counts::read(&report, |_| true)?))
    }
}

/// `go`, in the folder of one suite's module.
fn go(suite: &str) -> Command {
    let mut go = program("go");
    go.current_dir(house().join("tests/conformance").join(suite))
        // The workspace's version control says nothing about these programs.
        .env("GOFLAGS", "-buildvcs=false -mod=mod")
        .env("CGO_ENABLED", "0");
    go
}

fn build_tool(suite: &str, built: &Path, package: &str) -> Result<()> {
    run(go(suite).args(["build", "-o"]).arg(built).arg(package))
}

/// The one kubeconfig that `KUBECONFIG` or kubectl's habit names: the end-to-end suite does not look by itself.
fn kubeconfig() -> Option<PathBuf> {
    match std::env::var_os("KUBECONFIG") {
        Some(files) => std::env::split_paths(&files).next(),
        None => Some(Path::new(&std::env::var_os("HOME")?).join(".kube/config")),
    }
}

/// A report's place, without the report of an earlier run.
fn fresh(report: PathBuf) -> Result<PathBuf> {
    match fs::remove_file(&report) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", report.display()))
        }
        _ => Ok(report),
    }
}

/// What a JUnit report says.
#[derive(Default, PartialEq, Eq, Debug)]
struct Counts {
    passed: usize,
    skipped: usize,
    failures: Vec<String>,
}

impl Counts {
    fn read(report: &Path, wanted: impl Fn(&str) -> bool) -> Result<Self> {
        let text = fs::read_to_string(report)
            .with_context(|| format!("the suite left no report {}", report.display()))?;
        Ok(Self::of(&text, wanted))
    }

    /// Counts the test cases whose name is wanted.
    fn of(report: &str, wanted: impl Fn(&str) -> bool) -> Self {
        let mut counts = Self::default();
        for case in report.split("<testcase ").skip(1) {
            let name = attribute(&format!(" {case}"), " name").unwrap_or_default();
            // Setting up and reporting are cases of ginkgo's too; they count when they fail.
            let internal = name.starts_with("[Synchronized") || name.starts_with("[Report");
            let failed = case.contains("<failure") || case.contains("<error");
            if (internal || !wanted(&name)) && !failed {
                continue;
            }
            match (failed, case.contains("<skipped")) {
                (true, _) => counts.failures.push(name),
                (false, true) => counts.skipped += 1,
                (false, false) => counts.passed += 1,
            }
        }
        counts
    }
}

/// An attribute's value, at the beginning of an element.
fn attribute(element: &str, name: &str) -> Option<String> {
    let tag = element.split('>').next()?;
    let start = tag.find(&format!("{name}=\""))? + name.len() + 2;
    let value = tag[start..].split('"').next()?;
    let plain = [
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&amp;", "&"),
    ];
    Some(plain.iter().fold(value.to_owned(), |text, (code, sign)| {
        text.replace(code, sign)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="5" failures="1"><testsuite name="e2e">
<testcase name="[SynchronizedBeforeSuite]" classname="e2e" status="passed" time="1"></testcase>
<testcase name="[It] [sig-network] Netpol a &#39;deny&#39; policy" status="passed" time="9"><system-err>x</system-err></testcase>
<testcase name="[It] [sig-network] Netpol SCTP" status="failed" time="9"><failure message="no" type="failed">no</failure></testcase>
<testcase name="[It] [sig-network] Netpol windows" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
<testcase name="[It] [sig-storage] other" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
</testsuite></testsuites>"#;

    #[test]
    fn cases_are_counted_by_what_became_of_them() {
        let counts = Counts::of(REPORT, |name| name.contains("Netpol"));
        assert_eq!(
            counts,
            Counts {
                passed: 1,
                skipped: 1,
                failures: vec!["[It] [sig-network] Netpol SCTP".to_owned()],
            }
        );
    }

    #[test]
    fn a_suite_that_could_not_be_set_up_has_failed() {
        let report = r#"<testcase name="[SynchronizedBeforeSuite]" status="failed"><failure>no nodes</failure></testcase>"#;
        let counts = Counts::of(report, |name| name.contains("Netpol"));
        assert_eq!(counts.failures, ["[SynchronizedBeforeSuite]"]);
    }

    #[test]
    fn names_are_shown_as_they_were_written() {
        assert_eq!(
            attribute(
                "classname=\"c\" name=\"a &amp; &#39;b&#39;\" x=\"y\">",
                " name"
            )
            .as_deref(),
            Some("a & 'b'")
        );
    }
}
