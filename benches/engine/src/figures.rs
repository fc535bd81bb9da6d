//! Figures: medians of rounds, written to one file of JSON.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

/// Rounds that are run, the first of which is dropped.
pub(crate) fn rounds() -> usize {
    std::env::var("CRM_BENCH_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .filter(|n| *n >= 2)
        .unwrap_or(6)
}

/// One row of the table.
pub(crate) struct Figure {
    /// As in `apply.100`.
    pub(crate) id: &'static str,
    pub(crate) value: Value,
    pub(crate) unit: &'static str,
    /// What was measured beside it, in words.
    pub(crate) baseline: String,
    pub(crate) goal: &'static str,
    /// Whether the goal that must be reached is reached; `None` for figures that are only stated.
    pub(crate) met: Option<bool>,
    /// Lowest and highest of the rounds.
    pub(crate) range: Option<(f64, f64)>,
    /// Further facts, such as seconds of CPU.
    pub(crate) more: Value,
}

/// All figures so far; the file is written anew with each of them, so that an interrupted run leaves what it found.
pub(crate) struct Figures {
    path: PathBuf,
    rows: Map<String, Value>,
}

impl Figures {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            rows: Map::new(),
        }
    }

    pub(crate) fn add(&mut self, figure: Figure) {
        let mut row = Map::new();
        row.insert("value".into(), figure.value);
        row.insert("unit".into(), json!(figure.unit));
        row.insert("baseline".into(), json!(figure.baseline));
        row.insert("goal".into(), json!(figure.goal));
        row.insert("met".into(), json!(figure.met));
        if let Some((low, high)) = figure.range {
            row.insert("range".into(), json!([round(low), round(high)]));
        }
        if let Value::Object(more) = figure.more {
            row.extend(more);
        }
        eprintln!("{} {}", figure.id, Value::Object(row.clone()));
        self.rows.insert(figure.id.to_owned(), Value::Object(row));
        let text = serde_json::to_string_pretty(&self.rows).expect("figures are JSON");
        std::fs::write(&self.path, text + "\n")
            .unwrap_or_else(|e| panic!("cannot write {}: {e}", self.path.display()));
    }
}

/// Three significant places are more than the machine is worth.
pub(crate) fn round(value: f64) -> f64 {
    if value.abs() >= 100.0 {
        value.round()
    } else {
        (value * 1_000.0).round() / 1_000.0
    }
}

/// The middle of `values`, with the lowest and the highest.
pub(crate) fn median(values: &[f64]) -> (f64, (f64, f64)) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    assert!(!sorted.is_empty(), "a median of no rounds");
    let (low, high) = (sorted[0], sorted[sorted.len() - 1]);
    let half = sorted.len() / 2;
    let middle = if sorted.len() % 2 == 1 {
        sorted[half]
    } else {
        f64::midpoint(sorted[half - 1], sorted[half])
    };
    (middle, (low, high))
}

/// The value below which `share` (0..1) of `sorted` lie.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    assert!(!sorted.is_empty(), "a quantile of no samples");
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}
