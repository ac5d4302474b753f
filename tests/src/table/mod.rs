//! The truth table: who reaches whom, on what port, by which address family.
//!
//! A table is probed ([`crate::lab::Lab::probe`]), read from a scenario's `expected.txt`, compared, and shown.

mod diff;
mod matrix;
mod outcome;
mod party;
mod text;

use std::collections::{BTreeMap, BTreeSet};

pub use diff::{Difference, Differences};
pub use matrix::MatrixStyle;
pub use outcome::{Failure, Outcome};
pub use party::{Destination, Family, Party, Port, Via};
pub use text::ParseError;

/// One source at one destination. A family that either of them has no address of stays `None`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cell {
    /// By IPv4.
    pub v4: Option<Outcome>,
    /// By IPv6.
    pub v6: Option<Outcome>,
}

impl Cell {
    /// The same by both families.
    pub const fn both(outcome: Outcome) -> Self {
        Self {
            v4: Some(outcome),
            v6: Some(outcome),
        }
    }

    /// The outcome by one family.
    pub const fn get(self, family: Family) -> Option<Outcome> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// The outcome by one family, to be set.
    pub const fn get_mut(&mut self, family: Family) -> &mut Option<Outcome> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// The one outcome, when the families agree or only one was probed.
    pub fn uniform(self) -> Option<Outcome> {
        match (self.v4, self.v6) {
            (Some(v4), Some(v6)) => v4.agrees_with(v6).then_some(v4),
            (v4, v6) => v4.or(v6),
        }
    }
}

/// The truth table. Two tables are equal when no cell that both families can tell apart differs.
#[derive(Clone, Debug, Default)]
pub struct Table {
    cells: BTreeMap<Destination, BTreeMap<Party, Cell>>,
}

impl Table {
    /// A table with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every source (but not itself) at every destination, with one outcome.
    pub fn uniform<'a>(
        sources: impl IntoIterator<Item = &'a Party> + Clone,
        destinations: impl IntoIterator<Item = &'a Destination>,
        outcome: Outcome,
    ) -> Self {
        let mut table = Self::new();
        for destination in destinations {
            for source in sources.clone() {
                for family in Family::ALL {
                    if *source != destination.party && destination.party.is_there_for(source) {
                        table.set(source, destination, family, outcome);
                    }
                }
            }
        }
        table
    }

    /// Notes an outcome.
    pub fn set(
        &mut self,
        source: &Party,
        destination: &Destination,
        family: Family,
        outcome: Outcome,
    ) {
        let row = self.cells.entry(destination.clone()).or_default();
        *row.entry(source.clone()).or_default().get_mut(family) = Some(outcome);
    }

    /// Takes every outcome of another table in the place of the own one.
    pub fn overlay(&mut self, other: &Self) {
        for (source, destination, cell) in other.iter() {
            for family in Family::ALL {
                if let Some(outcome) = cell.get(family) {
                    self.set(source, destination, family, outcome);
                }
            }
        }
    }

    /// The cell of a source at a destination. The node is open where the table does not say otherwise.
    pub fn cell(&self, source: &Party, destination: &Destination) -> Option<Cell> {
        let row = self.cells.get(destination)?;
        match row.get(source) {
            None if *source == Party::Node => Some(Cell::both(Outcome::Open)),
            cell => cell.copied(),
        }
    }

    /// The outcome by one family.
    pub fn get(
        &self,
        source: &Party,
        destination: &Destination,
        family: Family,
    ) -> Option<Outcome> {
        self.cell(source, destination)?.get(family)
    }

    /// The destinations, in order.
    pub fn destinations(&self) -> impl Iterator<Item = &Destination> {
        self.cells.keys()
    }

    /// Everybody who is a source somewhere, in order.
    pub fn sources(&self) -> BTreeSet<&Party> {
        self.cells.values().flat_map(BTreeMap::keys).collect()
    }

    /// Every cell: source, destination, outcomes.
    pub fn iter(&self) -> impl Iterator<Item = (&Party, &Destination, Cell)> {
        self.cells.iter().flat_map(|(destination, row)| {
            row.iter()
                .map(move |(source, cell)| (source, destination, *cell))
        })
    }

    /// How many cells there are.
    pub fn len(&self) -> usize {
        self.cells.values().map(BTreeMap::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// Whether every cell is open by every family.
    pub fn all_open(&self) -> bool {
        self.iter().all(|(_, _, cell)| {
            Family::ALL
                .iter()
                .filter_map(|family| cell.get(*family))
                .all(Outcome::is_open)
        })
    }

    /// The table without what is reached through Services.
    pub fn without_services(&self) -> Self {
        let mut table = self.clone();
        table.cells.retain(|goal, _| !goal.party.is_service());
        table
    }

    /// The same cells, all open: what a cluster without enforcement must show.
    pub fn opened(&self) -> Self {
        let mut table = self.clone();
        for cell in table.cells.values_mut().flat_map(BTreeMap::values_mut) {
            cell.v4 = cell.v4.map(|_| Outcome::Open);
            cell.v6 = cell.v6.map(|_| Outcome::Open);
        }
        table
    }
}

impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        self.differences(other).is_empty()
    }
}
