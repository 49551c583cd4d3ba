//! Tables for people: aligned columns, colour on terminals only.

use super::units::plain;

/// How something is, for the eye.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// As it should be.
    Good,
    /// It is not settled yet.
    Open,
    /// Somebody should look.
    Bad,
}

impl Tone {
    fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Open => "33",
            Self::Bad => "31",
        }
    }
}

/// A cell: its text, and how that is to be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    tone: Option<Tone>,
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: plain(text.as_ref()).into_owned(),
            tone: None,
        }
    }
}

impl Cell {
    pub(super) fn toned(text: &str, tone: Tone) -> Self {
        Self {
            tone: Some(tone),
            ..Self::from(text)
        }
    }

    /// In the middle of a line: padded to a width, on the left for numbers.
    fn write(&self, out: &mut String, width: usize, right: bool, colour: bool) {
        let space = " ".repeat(width.saturating_sub(self.text.chars().count()));
        if right {
            out.push_str(&space);
        }
        match self.tone.filter(|_| colour) {
            Some(tone) => out.push_str(&format!("\x1b[{}m{}\x1b[0m", tone.code(), self.text)),
            None => out.push_str(&self.text),
        }
        if !right {
            out.push_str(&space);
        }
    }
}

/// Rows below a head. Columns whose head begins with `>` are aligned to the right.
#[derive(Debug)]
pub(super) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(head: impl IntoIterator<Item = &'static str>) -> Self {
        Self {
            head: head.into_iter().collect(),
            rows: Vec::new(),
        }
    }

    /// Rows have as many cells as the head.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Lines, each with its newline.
    pub(super) fn render(&self, colour: bool) -> String {
        let right: Vec<bool> = self.head.iter().map(|h| h.starts_with('>')).collect();
        let head: Vec<Cell> = self
            .head
            .iter()
            .map(|h| h.trim_start_matches('>').into())
            .collect();
        let widths: Vec<usize> = (0..head.len())
            .map(|column| {
                let cells = self
                    .rows
                    .iter()
                    .chain([&head])
                    .filter_map(|row| row.get(column));
                cells
                    .map(|cell| cell.text.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut out = String::new();
        for row in [&head].into_iter().chain(&self.rows) {
            let mut line = String::new();
            for ((cell, width), right) in row.iter().zip(&widths).zip(&right) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                cell.write(&mut line, *width, *right, colour);
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Names and values below each other, each line with its newline.
pub(super) fn pairs<V: Into<Cell>>(
    pairs: impl IntoIterator<Item = (&'static str, V)>,
    colour: bool,
) -> String {
    let pairs: Vec<(&str, Cell)> = pairs.into_iter().map(|(n, v)| (n, v.into())).collect();
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for (name, value) in pairs {
        out.push_str(&format!("{name:<width$}  "));
        value.write(&mut out, 0, false, colour);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_to_the_right() {
        let mut table = Table::new(["NAME", ">RAM", "WHY"]);
        table.row(["a".into(), "4 GiB".into(), "".into()]);
        table.row([
            Cell::toned("größer", Tone::Bad),
            "512 MiB".into(),
            "x\ny".into(),
        ]);
        assert_eq!(
            table.render(false),
            "NAME        RAM  WHY\n\
             a         4 GiB\n\
             größer  512 MiB  x y\n"
        );
        let coloured = table.render(true);
        assert!(
            coloured.contains("\x1b[31mgrößer\x1b[0m  512 MiB"),
            "{coloured:?}"
        );
    }

    #[test]
    fn pairs_stand_below_each_other() {
        assert_eq!(
            pairs([("a", "1"), ("long", "2")], false),
            "a     1\nlong  2\n"
        );
    }
}
