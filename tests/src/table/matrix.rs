//! The table as a matrix for terminals: rows are sources, columns destinations.

use std::io::IsTerminal;

use comfy_table::{Attribute, Cell as Field, CellAlignment, Color, Table as Grid};

use super::{Cell, Destination, Outcome, Party, Table};

/// How a matrix is drawn.
#[derive(Clone, Copy, Debug)]
pub struct MatrixStyle {
    /// Colours and bold type.
    pub color: bool,
    /// Columns of the terminal; wider matrices are shown in parts.
    pub width: usize,
}

impl MatrixStyle {
    /// What fits standard output: no colour when it is no terminal or `NO_COLOR` is set.
    pub fn for_stdout() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let columns = std::env::var("COLUMNS")
            .ok()
            .and_then(|columns| columns.parse().ok());
        Self {
            color: terminal && std::env::var_os("NO_COLOR").is_none(),
            width: columns
                .or_else(|| Grid::new().width().map(usize::from))
                // A serial console does not know its width.
                .filter(|columns| *columns > 0)
                .unwrap_or(120),
        }
    }
}

impl Table {
    /// Draws the matrix. Cells that differ from `previous` show both outcomes and are marked.
    pub fn matrix(&self, previous: Option<&Self>, style: MatrixStyle) -> String {
        let sources = self.sources();
        let sources: Vec<&Party> = sources
            .into_iter()
            .filter(|source| self.shows(source))
            .collect();
        let label = sources.iter().map(|source| source.to_string().len()).max();
        let room = style.width.saturating_sub(label.unwrap_or(0) + 4);
        let mut drawn = String::new();
        for columns in parts(&self.destinations().collect::<Vec<_>>(), room) {
            let mut grid = Grid::new();
            grid.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
            if style.color {
                grid.enforce_styling();
            } else {
                grid.force_no_tty();
            }
            let mut header = vec![Field::new("from \\ to")];
            header.extend(columns.iter().map(|destination| {
                Field::new(heading(destination)).set_alignment(CellAlignment::Center)
            }));
            grid.set_header(header);
            for source in &sources {
                let mut row = vec![Field::new(source.to_string())];
                row.extend(
                    columns
                        .iter()
                        .map(|destination| self.field(source, destination, previous, style.color)),
                );
                grid.add_row(row);
            }
            drawn.push_str(&grid.to_string());
            drawn.push('\n');
        }
        drawn.push_str(&self.legend(previous));
        drawn
    }

    /// The node has a row only where something is wrong with it.
    fn shows(&self, source: &Party) -> bool {
        *source != Party::Node
            || self.iter().any(|(party, _, cell)| {
                party == source && cell.uniform().is_none_or(|outcome| !outcome.is_open())
            })
    }

    fn field(
        &self,
        source: &Party,
        destination: &Destination,
        previous: Option<&Self>,
        color: bool,
    ) -> Field {
        let Some(cell) = self.cell(source, destination) else {
            return Field::new("·").set_alignment(CellAlignment::Center);
        };
        let was = previous
            .and_then(|previous| previous.cell(source, destination))
            .map(signs)
            .filter(|was| *was != signs(cell));
        let text = match &was {
            Some(was) => format!("{was} → {}", signs(cell)),
            None => signs(cell),
        };
        let mut field = Field::new(text).set_alignment(CellAlignment::Center);
        if color {
            field = field.fg(match cell.uniform() {
                Some(outcome) if outcome.is_open() => Color::Green,
                Some(Outcome::Denied) => Color::Red,
                _ => Color::Yellow,
            });
            if was.is_some() {
                field = field.add_attributes(vec![Attribute::Bold, Attribute::Reverse]);
            }
        }
        field
    }

    fn legend(&self, previous: Option<&Self>) -> String {
        let all: String = self.iter().map(|(_, _, cell)| signs(cell)).collect();
        let mut words = vec!["✓ open", "✗ denied"];
        if all.contains('½') {
            words.push("½ arrived, but the answer was lost");
        }
        if all.contains('!') {
            words.push("! error");
        }
        if all.contains('/') {
            words.push("v4/v6 where they differ");
        }
        if previous.is_some() {
            words.push("→ changed");
        }
        format!("{}\n", words.join("   "))
    }
}

/// As many columns together as fit, at least one.
fn parts<'a>(destinations: &[&'a Destination], room: usize) -> Vec<Vec<&'a Destination>> {
    let mut parts: Vec<Vec<&Destination>> = Vec::new();
    let mut used = usize::MAX;
    for destination in destinations {
        let width = heading(destination)
            .lines()
            .map(|line| line.chars().count())
            .max()
            .unwrap_or(0)
            // A changed cell is five characters; then two of padding and a line.
            .max(5)
            + 3;
        match parts.last_mut() {
            Some(part) if used.saturating_add(width) <= room => {
                used += width;
                part.push(destination);
            }
            _ => {
                used = width;
                parts.push(vec![destination]);
            }
        }
    }
    parts
}

fn heading(destination: &Destination) -> String {
    format!(
        "{}\n{}",
        destination.party.to_string().replacen('/', "/\n", 1),
        destination.port
    )
}

fn signs(cell: Cell) -> String {
    match (cell.uniform(), cell.v4, cell.v6) {
        (Some(outcome), ..) => sign(outcome).to_string(),
        (None, Some(v4), Some(v6)) => format!("{}/{}", sign(v4), sign(v6)),
        _ => "?".to_owned(),
    }
}

const fn sign(outcome: Outcome) -> char {
    match outcome {
        Outcome::Open | Outcome::Refused => '✓',
        Outcome::Denied => '✗',
        Outcome::Half => '½',
        Outcome::Error(_) => '!',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_marks_what_changed() {
        let before: Table = "a/b TCP/80\n open: a/c host/h\na/c UDP/53\n open: a/b host/h\n"
            .parse()
            .expect("complete");
        let after: Table =
            "a/b TCP/80\n open: a/c\n denied: host/h\na/c UDP/53\n open: a/b host/h\n"
                .parse()
                .expect("complete");
        let style = MatrixStyle {
            color: false,
            width: 80,
        };
        let drawn = after.matrix(Some(&before), style);
        assert!(drawn.contains("✓ → ✗"), "{drawn}");
        assert!(drawn.contains("host/h"), "{drawn}");
        assert!(!drawn.contains('\u{1b}'), "{drawn}");
        let narrow = after.matrix(None, MatrixStyle { width: 20, ..style });
        assert_eq!(narrow.matches("from \\ to").count(), 2, "{narrow}");
    }
}
