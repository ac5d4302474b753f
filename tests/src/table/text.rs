//! The table as text, the form of `expected.txt`: one block for each destination, its sources grouped by outcome.
//!
//! ```text
//! # a comment
//! prod/backend TCP/8080
//!   open:   prod/frontend
//!   denied: dev/frontend prod/database
//! ```
//!
//! A family that differs is named: `open v4, denied v6: prod/frontend`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use super::{Cell, Destination, Outcome, Party, Table};

/// Why a text is no complete table.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ParseError {
    /// Counted from 1. For an incomplete block, the line that opens it.
    pub line: usize,
    /// What is wrong, naming the party.
    pub reason: String,
}

impl ParseError {
    fn at(line: usize, reason: impl Into<String>) -> Self {
        Self {
            line,
            reason: reason.into(),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, (destination, row)) in self.cells.iter().enumerate() {
            if nth > 0 {
                writeln!(f)?;
            }
            writeln!(f, "{destination}")?;
            let mut groups: BTreeMap<(u8, String), Vec<&Party>> = BTreeMap::new();
            for (source, cell) in row {
                let rank = cell.uniform().map_or(9, rank);
                if *source == Party::Node && rank == 0 {
                    continue;
                }
                groups
                    .entry((rank, key_of(*cell)))
                    .or_default()
                    .push(source);
            }
            for ((_, key), sources) in groups {
                write!(f, "  {:<7}", format!("{key}:"))?;
                for source in sources {
                    write!(f, " {source}")?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

/// Open first, then denied, then what should not be.
const fn rank(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Open | Outcome::Refused => 0,
        Outcome::Denied => 1,
        Outcome::Half => 2,
        Outcome::Error(_) => 3,
    }
}

fn key_of(cell: Cell) -> String {
    match (cell.uniform(), cell.v4, cell.v6) {
        (Some(outcome), ..) => outcome.to_string(),
        (None, Some(v4), Some(v6)) => format!("{v4} v4, {v6} v6"),
        // `uniform` is `None` only for two outcomes or for none at all.
        (None, ..) => "not probed".to_owned(),
    }
}

fn cell_of(key: &str) -> Result<Cell, String> {
    let Some((v4, v6)) = key.split_once(',') else {
        return key.parse().map(Cell::both);
    };
    match (v4.trim().strip_suffix(" v4"), v6.trim().strip_suffix(" v6")) {
        (Some(v4), Some(v6)) => Ok(Cell {
            v4: Some(v4.trim().parse()?),
            v6: Some(v6.trim().parse()?),
        }),
        _ => Err(format!(
            "`{key}` is no outcome of two families: write for example `open v4, denied v6:`"
        )),
    }
}

impl FromStr for Table {
    type Err = ParseError;

    /// Reads a table whose parties are all those that it names; every block must tell of each of them but its own.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text, &BTreeSet::new())
    }
}

impl Table {
    /// Reads a table; every block must tell of all these parties, and of all that the text names, but its own.
    pub fn parse(text: &str, parties: &BTreeSet<Party>) -> Result<Self, ParseError> {
        let mut table = Self::new();
        let mut blocks: Vec<(usize, Destination)> = Vec::new();
        for (line, content) in text.lines().enumerate().map(|(nth, line)| (nth + 1, line)) {
            let content = content.split('#').next().unwrap_or_default().trim_end();
            let at = |reason: String| ParseError::at(line, reason);
            if content.is_empty() {
                continue;
            }
            if !content.starts_with([' ', '\t']) {
                let destination = parse_destination(content).map_err(at)?;
                if let Some((first, _)) = blocks.iter().find(|(_, other)| *other == destination) {
                    return Err(at(format!(
                        "{destination} already has a block, at line {first}"
                    )));
                }
                table.cells.insert(destination.clone(), BTreeMap::new());
                blocks.push((line, destination));
                continue;
            }
            let Some((_, destination)) = blocks.last() else {
                return Err(at("an indented line before any destination".to_owned()));
            };
            let (key, sources) = content.trim().split_once(':').ok_or_else(|| {
                at("expected `open: PARTY ...` or `denied: PARTY ...`".to_owned())
            })?;
            let cell = cell_of(key.trim()).map_err(at)?;
            let row = table.cells.entry(destination.clone()).or_default();
            for word in sources.split_whitespace() {
                let source: Party = word.parse().map_err(at)?;
                if source.is_service() {
                    return Err(at(format!("{source} opens no connections")));
                }
                if source == destination.party {
                    return Err(at(format!(
                        "{source} is the destination of this block itself"
                    )));
                }
                if row.insert(source.clone(), cell).is_some() {
                    return Err(at(format!(
                        "{source} is named twice in the block of {destination}"
                    )));
                }
            }
        }
        complete(&table, &blocks, parties)?;
        Ok(table)
    }
}

fn parse_destination(content: &str) -> Result<Destination, String> {
    let mut words = content.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(party), Some(port), None) => Ok(Destination::new(party.parse()?, port.parse()?)),
        _ => Err(format!(
            "`{content}` is no destination: write for example `prod/backend TCP/8080`"
        )),
    }
}

fn complete(
    table: &Table,
    blocks: &[(usize, Destination)],
    parties: &BTreeSet<Party>,
) -> Result<(), ParseError> {
    let mut everybody = parties.clone();
    everybody.extend(table.sources().into_iter().cloned());
    everybody.extend(
        table
            .destinations()
            .map(|destination| destination.party.clone()),
    );
    everybody.retain(|party| *party != Party::Node && !party.is_service());
    for (line, destination) in blocks {
        let row = &table.cells[destination];
        let missing: Vec<String> = everybody
            .iter()
            .filter(|party| **party != destination.party && !row.contains_key(*party))
            .filter(|party| destination.party.is_there_for(party))
            .map(Party::to_string)
            .collect();
        if !missing.is_empty() {
            return Err(ParseError::at(
                *line,
                format!(
                    "the block of {destination} does not tell of {}",
                    missing.join(", ")
                ),
            ));
        }
        if !parties.is_empty()
            && let Some(stranger) = row.keys().chain([&destination.party]).find(|party| {
                **party != Party::Node && !party.is_service() && !parties.contains(*party)
            })
        {
            return Err(ParseError::at(
                *line,
                format!(
                    "the block of {destination} names {stranger}, whom the world does not have"
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Failure, Family, Port};

    const TEXT: &str = "\
# first policy
dev/frontend TCP/80
  open:   prod/backend prod/frontend host/web

prod/backend TCP/8080
  open:   prod/frontend
  denied: dev/frontend host/web

prod/frontend ICMP
  open v4, denied v6: host/web
  half: dev/frontend
  error not-permitted: prod/backend
";

    #[test]
    fn text_round_trips() {
        let table: Table = TEXT.parse().expect("the text is complete");
        let shown = table.to_string();
        let again: Table = shown.parse().expect("what is shown can be read");
        assert_eq!(shown, again.to_string());
        assert!(table == again);
        let ping = Destination::new(Party::pod("prod", "frontend"), Port::Icmp);
        let web = Party::host("web");
        assert_eq!(table.get(&web, &ping, Family::V6), Some(Outcome::Denied));
        assert_eq!(
            table.get(&Party::pod("prod", "backend"), &ping, Family::V4),
            Some(Outcome::Error(Failure::NotPermitted))
        );
    }

    #[test]
    fn refusal_reads_as_open() {
        let to = Destination::new(Party::pod("a", "b"), Port::Tcp(80));
        let from = Party::pod("a", "c");
        let table = Table::uniform([&from], [&to], Outcome::Refused);
        assert_eq!(table.to_string(), "a/b TCP/80\n  open:   a/c\n");
        assert!(table == Table::uniform([&from], [&to], Outcome::Open));
    }

    #[test]
    fn an_incomplete_block_names_line_and_party() {
        let text = "a/b TCP/80\n  open: a/c a/d\n\na/c UDP/53\n  denied: a/b\n";
        let error = text.parse::<Table>().expect_err("a/d is missing");
        assert_eq!(
            error.to_string(),
            "line 4: the block of a/c UDP/53 does not tell of a/d"
        );
    }

    #[test]
    fn mistakes_name_their_line() {
        for (text, message) in [
            (
                "a/b\n",
                "line 1: `a/b` is no destination: write for example `prod/backend TCP/8080`",
            ),
            (
                "a/b TCP/x\n",
                "line 1: `TCP/x` has no port number from 0 to 65535",
            ),
            (
                "  open: a/b\n",
                "line 1: an indented line before any destination",
            ),
            (
                "a/b TCP/1\n  open: a/b\n",
                "line 2: a/b is the destination of this block itself",
            ),
            (
                "a/b TCP/1\n  open: a/c\n  denied: a/c\n",
                "line 3: a/c is named twice in the block of a/b TCP/1",
            ),
            (
                "a/b TCP/1\n  shut: a/c\n",
                "line 2: `shut` is no outcome: write open, denied, half or error KIND",
            ),
            (
                "a/b TCP/1\n  open: c\n",
                "line 2: `c` is no party: write NAMESPACE/POD, host/NAME, node or node/NAME",
            ),
            (
                "a/b TCP/1\na/b TCP/1\n",
                "line 2: a/b TCP/1 already has a block, at line 1",
            ),
        ] {
            let error = text.parse::<Table>().expect_err(text);
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn a_world_may_demand_more_parties() {
        let world = BTreeSet::from([Party::pod("a", "b"), Party::pod("a", "c"), Party::host("h")]);
        let error =
            Table::parse("a/b TCP/1\n  open: a/c\n", &world).expect_err("host/h is missing");
        assert_eq!(
            error.to_string(),
            "line 1: the block of a/b TCP/1 does not tell of host/h"
        );
        let error = Table::parse("a/b TCP/1\n  open: a/c a/x host/h\n", &world).expect_err("a/x");
        assert_eq!(
            error.to_string(),
            "line 1: the block of a/b TCP/1 names a/x, whom the world does not have"
        );
    }

    #[test]
    fn the_block_of_a_service_names_every_pod_and_no_host() {
        let world = BTreeSet::from([Party::pod("a", "b"), Party::pod("a", "c"), Party::host("h")]);
        let text = "service/a/web TCP/80\n  open: a/b\n  denied: a/c\n";
        let table = Table::parse(text, &world).expect("it is complete");
        assert_eq!(
            table.to_string(),
            "service/a/web TCP/80\n  open:   a/b\n  denied: a/c\n"
        );
        assert!(table.without_services().is_empty());
        let error = Table::parse("nodeport/a/web TCP/80\n  open: a/b a/c\n", &world);
        assert!(error.is_err(), "a host has a way to a node port");
        let error = text.replace("denied: a/c", "denied: a/c service/a/web");
        let error = Table::parse(&error, &world).expect_err("it opens nothing");
        assert_eq!(
            error.to_string(),
            "line 3: service/a/web opens no connections"
        );
        for wrong in ["servant/a/web", "service/a/b/c", "service//web"] {
            assert!(wrong.parse::<Party>().is_err(), "{wrong}");
        }
    }
}
