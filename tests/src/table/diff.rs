//! Where two tables differ, for people.

use std::fmt;

use super::{Cell, Destination, Family, Outcome, Party, Table};

/// One cell that two tables tell apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Who opens the connection.
    pub source: Party,
    /// Its goal.
    pub destination: Destination,
    /// The cell of the first table; `None` when it has none.
    pub before: Option<Cell>,
    /// The cell of the second table; `None` when it has none.
    pub after: Option<Cell>,
}

/// All cells that two tables tell apart. Shows as text, grouped by destination.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Differences {
    cells: Vec<Difference>,
    compared: usize,
    words: (&'static str, &'static str),
}

impl Differences {
    /// Whether the tables are equal.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// How many cells differ.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// The cells, by destination and source.
    pub fn iter(&self) -> impl Iterator<Item = &Difference> {
        self.cells.iter()
    }

    /// Shows "was X, is now Y" in place of "expected X, found Y".
    pub fn as_change(mut self) -> Self {
        self.words = ("was", "is now");
        self
    }
}

impl Table {
    /// What differs between this table (what was expected) and another (what was found). A family that only one of them
    /// tells of is not compared, and the node is open where nothing is said of it.
    pub fn differences(&self, found: &Self) -> Differences {
        let mut cells = Vec::new();
        let mut compared = 0;
        let mut keys: Vec<(&Destination, &Party)> = self
            .iter()
            .chain(found.iter())
            .map(|(source, destination, _)| (destination, source))
            .collect();
        keys.sort();
        keys.dedup();
        for (destination, source) in keys {
            compared += 1;
            let before = self.cell(source, destination);
            let after = found.cell(source, destination);
            let equal = match (before, after) {
                (Some(before), Some(after)) => same(before, after),
                _ => false,
            };
            if !equal {
                cells.push(Difference {
                    source: source.clone(),
                    destination: destination.clone(),
                    before,
                    after,
                });
            }
        }
        Differences {
            cells,
            compared,
            words: ("expected", "found"),
        }
    }
}

fn same(before: Cell, after: Cell) -> bool {
    Family::ALL
        .iter()
        .all(|family| match (before.get(*family), after.get(*family)) {
            (Some(before), Some(after)) => before.agrees_with(after),
            _ => true,
        })
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.compared == 1 { "cell" } else { "cells" };
        if self.cells.is_empty() {
            return writeln!(f, "all {} {plural} agree", self.compared);
        }
        writeln!(
            f,
            "{} of {} {plural} {}:",
            self.cells.len(),
            self.compared,
            if self.cells.len() == 1 {
                "differs"
            } else {
                "differ"
            }
        )?;
        let width = self
            .cells
            .iter()
            .map(|cell| cell.source.to_string().len())
            .max()
            .unwrap_or(0);
        let mut block = None;
        for cell in &self.cells {
            if block != Some(&cell.destination) {
                block = Some(&cell.destination);
                writeln!(f, "-> {}", cell.destination)?;
            }
            let source = cell.source.to_string();
            writeln!(f, "   {source:<width$}  {}", self.sentence(cell))?;
        }
        Ok(())
    }
}

impl Differences {
    fn sentence(&self, cell: &Difference) -> String {
        let (first, second) = self.words;
        let (Some(before), Some(after)) = (cell.before, cell.after) else {
            return match (cell.before, cell.after) {
                (Some(before), None) => format!("{first} {}, {second} nothing", by_family(before)),
                (None, Some(after)) => format!("{first} nothing, {second} {}", by_family(after)),
                _ => String::new(),
            };
        };
        match (before.uniform(), after.uniform()) {
            (Some(before), Some(after)) => {
                format!("{first} {before}, {second} {}", precise(after))
            }
            _ => format!(
                "{first} {}, {second} {}",
                by_family(before),
                by_family(after)
            ),
        }
    }
}

fn by_family(cell: Cell) -> String {
    match (cell.uniform(), cell.v4, cell.v6) {
        (Some(outcome), ..) => outcome.to_string(),
        (None, Some(v4), Some(v6)) => {
            format!(
                "{} by {} and {} by {}",
                precise(v4),
                Family::V4,
                precise(v6),
                Family::V6
            )
        }
        _ => "nothing".to_owned(),
    }
}

/// An outcome, with what it means where its name alone does not say it.
fn precise(outcome: Outcome) -> String {
    match outcome {
        Outcome::Half => "half (it arrived, the answer was lost)".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        text.parse().expect("a complete table")
    }

    #[test]
    fn differences_are_grouped_and_readable() {
        let expected = table(
            "a/b TCP/1\n open: a/c\n denied: a/d\na/c TCP/2\n open: a/b a/d\na/d TCP/3\n open: a/b a/c\n",
        );
        let found = table(
            "a/b TCP/1\n denied: a/c\n half: a/d\na/c TCP/2\n open v4, denied v6: a/d\n open: a/b\na/d TCP/3\n open: a/b a/c\n",
        );
        let shown = expected.differences(&found).to_string();
        assert_eq!(
            shown,
            "3 of 6 cells differ:\n\
             -> a/b TCP/1\n   \
                a/c  expected open, found denied\n   \
                a/d  expected denied, found half (it arrived, the answer was lost)\n\
             -> a/c TCP/2\n   \
                a/d  expected open, found open by IPv4 and denied by IPv6\n"
        );
        assert!(expected.differences(&expected).is_empty());
    }

    #[test]
    fn a_missing_block_and_a_shut_out_node_differ() {
        let expected = table("a/b TCP/1\n open: a/c\n");
        let found = table("a/c TCP/1\n open: a/b\n denied: node\n");
        let shown = expected.differences(&found).to_string();
        assert!(
            shown.contains("-> a/b TCP/1\n   a/c   expected open, found nothing"),
            "{shown}"
        );
        assert!(
            shown.contains("node  expected nothing, found denied"),
            "{shown}"
        );
        let quiet = table("a/b TCP/1\n open: a/c node\n");
        assert!(expected == quiet);
        let shut = table("a/b TCP/1\n open: a/c\n denied: node\n");
        assert!(expected != shut);
    }
}
