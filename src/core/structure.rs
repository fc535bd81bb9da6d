//! Several columns of one side as one value.
//!
//! Where a map ties several columns (an address of two lines, a first and a
//! last name), the side's value is the list of its columns' values. It is
//! observed, compared, decided and sent as one, so that halves of two edits
//! never meet in one record.

use crate::model::Value;

/// Stands between the cells of a list; no CRM takes it in a value.
const SEPARATOR: char = '\u{1f}';

/// How the cells of one side make up the value of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Structure {
    /// A text with one line per column; further lines share the last column.
    Lines,
    /// Words: the last is the last column's, the first ones are the first's.
    Words,
    /// Column by column; both sides have as many.
    Unit,
}

impl Structure {
    /// The structure that a map names.
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            "lines" => Some(Self::Lines),
            "words" => Some(Self::Words),
            "unit" => Some(Self::Unit),
            _ => None,
        }
    }

    /// The text that a list of cells stands for.
    pub(crate) fn compose(self, list: &str) -> String {
        let cells = list.split(SEPARATOR).map(str::trim);
        let filled: Vec<&str> = cells.filter(|c| !c.is_empty()).collect();
        match self {
            Self::Lines => filled.join("\n"),
            Self::Words => filled.join(" "),
            Self::Unit => list.to_owned(),
        }
    }

    /// The list of `width` cells that a text stands for.
    pub(crate) fn split(self, text: &str, width: usize) -> String {
        let cells = match self {
            Self::Lines => lines(text, width),
            Self::Words => words(text, width),
            Self::Unit => return text.to_owned(),
        };
        let cells: Vec<Value> = cells
            .into_iter()
            .map(|c| (!c.is_empty()).then_some(c))
            .collect();
        pack(&cells).unwrap_or_default()
    }
}

fn lines(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .map(|l| l.trim().to_owned())
        .filter(|l| !l.is_empty())
        .collect();
    if lines.len() > width && width > 0 {
        let rest = lines.split_off(width - 1).join(", ");
        lines.push(rest);
    }
    lines.resize(width, String::new());
    lines
}

fn words(text: &str, width: usize) -> Vec<String> {
    let mut words: Vec<&str> = text.split_whitespace().collect();
    let mut cells = vec![String::new(); width];
    let Some(last) = cells.last_mut() else {
        return cells;
    };
    *last = words.pop().unwrap_or_default().to_owned();
    // Single words for the first columns, what is left for the one before last.
    for (i, cell) in cells.iter_mut().take(width.saturating_sub(1)).enumerate() {
        let take = if i + 2 == width {
            words.len()
        } else {
            1.min(words.len())
        };
        *cell = words.drain(..take).collect::<Vec<_>>().join(" ");
    }
    cells
}

/// One value of several cells: blank if all are.
pub fn pack(cells: &[Value]) -> Value {
    if let [one] = cells {
        return one.clone();
    }
    if cells.iter().all(Option::is_none) {
        return None;
    }
    let mut list = String::new();
    for (i, cell) in cells.iter().enumerate() {
        if i > 0 {
            list.push(SEPARATOR);
        }
        list.extend(
            cell.iter()
                .flat_map(|c| c.chars())
                .filter(|c| *c != SEPARATOR),
        );
    }
    Some(list)
}

/// The cells of a value, always `width` of them.
pub fn unpack(value: &Value, width: usize) -> Vec<Value> {
    if width == 1 {
        return vec![value.clone()];
    }
    let mut cells: Vec<Value> = value
        .iter()
        .flat_map(|list| list.split(SEPARATOR))
        .map(|cell| (!cell.is_empty()).then(|| cell.to_owned()))
        .collect();
    cells.resize(width, None);
    cells
}

/// A value in words for people: its cells with bars between.
pub fn readable(value: &Value) -> Value {
    value.as_ref().map(|list| list.replace(SEPARATOR, " | "))
}

/// Changes each cell of a list.
pub(crate) fn each_cell<E>(
    value: &Value,
    width: usize,
    mut change: impl FnMut(usize, Value) -> Result<Value, E>,
) -> Result<Value, E> {
    let cells: Result<Vec<Value>, E> = unpack(value, width)
        .into_iter()
        .enumerate()
        .map(|(i, cell)| change(i, cell))
        .collect();
    Ok(pack(&cells?))
}
