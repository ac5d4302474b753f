//! The page keeps the rules of the format and of its names, and the documentation lists what is on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use super::*;
use crate::dataplane::TableFill;

fn page() -> String {
    let mut counted = Counted {
        lost: [3, 4],
        tables: vec![TableFill {
            name: "RULES",
            entries: 5,
            capacity: 10,
        }],
        ..Counted::default()
    };
    let denied = &mut counted.packets[Direction::Ingress as usize][Reason::Denied as usize];
    (denied.packets, denied.bytes) = (11, 1100);
    let durations = Histogram::new([0.1, 1.0]);
    durations.observe(0.5);
    text(Exposition {
        vitals: Vitals {
            unready: vec!["something".into()],
            failed: 7,
            isolated: [2, 1],
            away_since: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1000)),
            waiting: Duration::from_millis(1500),
            ..Vitals::default()
        },
        counted,
        process: Process::now(SystemTime::now()),
        durations,
    })
    .expect("text")
}

/// Name, labels and value.
type Sample = (String, Vec<(String, String)>, f64);

/// A metric as it is served.
#[derive(Default, Debug)]
struct Family {
    kind: String,
    help: String,
    unit: Option<String>,
    samples: Vec<Sample>,
}

impl Family {
    fn labels(&self) -> BTreeSet<&str> {
        let all = self.samples.iter().flat_map(|(_, labels, _)| labels);
        all.map(|(name, _)| name.as_str())
            .filter(|name| *name != "le")
            .collect()
    }
}

fn sample(line: &str) -> Sample {
    let (name, value) = line.rsplit_once(' ').expect("a value");
    let value = value.parse().expect("a number");
    let Some((name, labels)) = name.split_once('{') else {
        return (name.to_owned(), vec![], value);
    };
    let labels = labels.strip_suffix('}').expect("an end");
    let labels = labels.split(',').map(|label| {
        let (name, value) = label.split_once('=').expect("a value");
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
        (name.to_owned(), value.expect("quotes").to_owned())
    });
    (name.to_owned(), labels.collect(), value)
}

/// The families by name, each once, with all that belongs to it side by side.
fn parse(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    let body = text.strip_suffix("# EOF\n").expect("it ends as it has to");
    for line in body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let mut word = || words.next().expect("three words").to_owned();
            let (what, name, rest) = (word(), word(), word());
            if what == "HELP" {
                assert!(!families.contains_key(&name), "{name} is there twice");
                current.clone_from(&name);
            }
            assert_eq!(name, current, "{line}");
            let family = families.entry(name).or_default();
            match what.as_str() {
                "HELP" => family.help = rest,
                "TYPE" => family.kind = rest,
                "UNIT" => family.unit = Some(rest),
                _ => panic!("{line}"),
            }
        } else {
            let sample = sample(line);
            let family = families.get_mut(&current).expect("a family");
            assert!(sample.0.starts_with(&current), "{line}");
            family.samples.push(sample);
        }
    }
    families
}

/// What `promtool check metrics` and the naming conventions of Prometheus want.
#[test]
fn names_types_and_units_keep_to_the_conventions() {
    for (name, family) in parse(&page()) {
        assert!(
            name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
            "{name}"
        );
        assert!(
            name.starts_with("netpol_agent_") || name.starts_with("process_"),
            "{name}"
        );
        assert!(
            family.help.len() > 15 && family.help.ends_with('.'),
            "{name}: {}",
            family.help
        );
        for word in name.split('_') {
            let no = [
                "gauge",
                "counter",
                "histogram",
                "summary",
                "ms",
                "millis",
                "milliseconds",
                "minutes",
                "hours",
                "kb",
                "kib",
                "mib",
                "percent",
                "total",
                "count",
                "sum",
                "bucket",
                "info",
            ];
            assert!(!no.contains(&word), "{name}: {word}");
        }
        for unit in ["seconds", "bytes"] {
            let named = name.ends_with(&format!("_{unit}"));
            let told = family.unit.as_deref() == Some(unit);
            // Packets and bytes are a pair of counters; only what is measured has a unit of its own.
            assert!(named == told || name == "netpol_agent_bytes", "{name}");
        }
        let suffixes: BTreeSet<&str> = family
            .samples
            .iter()
            .map(|(sample, ..)| &sample[name.len()..])
            .collect();
        let wanted: &[&str] = match family.kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_count", "_sum"],
            other => panic!("{name}: {other}"),
        };
        assert!(suffixes.iter().eq(wanted), "{name}: {suffixes:?}");
        let mut seen = BTreeSet::new();
        for (sample, labels, value) in &family.samples {
            assert!(seen.insert((sample, labels)), "{sample}{labels:?} twice");
            assert!(value.is_finite() && *value >= 0.0, "{sample}: {value}");
        }
    }
}

#[test]
fn the_number_of_series_does_not_depend_on_the_cluster() {
    let all: usize = parse(&page()).values().map(|f| f.samples.len()).sum();
    // One table of six is in the example.
    assert!(all < 200, "{all} series");
    let labels = parse(&page());
    let labels: BTreeSet<_> = labels.values().flat_map(Family::labels).collect();
    assert!(
        labels.is_disjoint(&["pod", "namespace", "policy", "interface", "node"].into()),
        "{labels:?}"
    );
}

#[test]
fn values_are_where_they_belong() {
    let page = page();
    for line in [
        "netpol_agent_packets_total{direction=\"ingress\",verdict=\"drop\",reason=\"denied\"} 11",
        "netpol_agent_packets_total{direction=\"egress\",verdict=\"drop\",reason=\"denied\"} 0",
        "netpol_agent_packets_total{direction=\"ingress\",verdict=\"pass\",reason=\"rule\"} 0",
        "netpol_agent_bytes_total{direction=\"ingress\",verdict=\"drop\",reason=\"denied\"} 1100",
        "netpol_agent_drop_records_lost_total{cause=\"over_budget\"} 3",
        "netpol_agent_drop_records_lost_total{cause=\"buffer_full\"} 4",
        "netpol_agent_endpoints_failed 7",
        "netpol_agent_endpoints_isolated{direction=\"ingress\"} 2",
        "netpol_agent_endpoints_isolated{direction=\"egress\"} 1",
        "netpol_agent_table_capacity{table=\"RULES\"} 10",
        "netpol_agent_enforcement_delay_seconds 1.5",
        "netpol_agent_enforcement_duration_seconds_bucket{le=\"1.0\"} 1",
        "netpol_agent_enforcement_duration_seconds_bucket{le=\"+Inf\"} 1",
        "netpol_agent_ready 0",
        "netpol_agent_source_connected 0",
        "netpol_agent_source_away_since_timestamp_seconds 1000.0",
    ] {
        assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
    }
}

/// Rows such as `` | `netpol_agent_packets_total` | counter | `direction`, `verdict` | what it means | ``.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let text = fs::read_to_string(path).expect("docs/metrics.md");
    let quoted = |cell: &str| {
        let parts: Vec<String> = cell.split('`').map(str::to_owned).collect();
        parts.into_iter().skip(1).step_by(2).collect::<Vec<_>>()
    };
    text.lines()
        .filter(|line| line.starts_with("| `netpol_agent_") || line.starts_with("| `process_"))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [name, kind, labels, meaning] = cells[..] else {
                panic!("four cells: {line}");
            };
            assert!(meaning.len() > 15, "what does it mean? {line}");
            let name = quoted(name).remove(0);
            (
                name,
                (kind.to_owned(), quoted(labels).into_iter().collect()),
            )
        })
        .collect()
}

#[test]
fn the_documentation_lists_what_is_served() {
    let served: BTreeMap<String, (String, BTreeSet<String>)> = parse(&page())
        .into_iter()
        .map(|(name, family)| {
            let suffix = match family.kind.as_str() {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            let labels = family.labels().into_iter().map(str::to_owned).collect();
            (name + suffix, (family.kind, labels))
        })
        .collect();
    let documented = documented();
    for (name, what) in &served {
        assert_eq!(
            documented.get(name),
            Some(what),
            "{name} in docs/metrics.md"
        );
    }
    for name in documented.keys() {
        assert!(served.contains_key(name), "{name} is not served any more");
    }
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md"))
        .expect("docs/metrics.md");
    for reason in Reason::ALL {
        let row = format!("| `{}` |", reason.name());
        assert!(text.contains(&row), "the reason {reason} is explained");
    }
}
