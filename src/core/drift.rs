//! What changed between two readings of an object's fields, and what a mirror's
//! policy says about it. Pure: the worker stores what comes out.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::model::{FieldType, RemoteField};

/// A field as the catalog describes it, as far as its changes matter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// API name.
    pub name: String,
    /// Label.
    pub label: String,
    /// Our type.
    pub field_type: FieldType,
    /// The CRM's own name of the type.
    pub remote_type: String,
    /// Longest text in characters.
    pub max_length: Option<i32>,
    /// Cannot be written.
    pub read_only: bool,
    /// Values of its choices.
    pub choices: Vec<String>,
}

impl From<&RemoteField> for Shape {
    fn from(field: &RemoteField) -> Self {
        Self {
            name: field.name.clone(),
            label: field.label.clone(),
            field_type: field.field_type,
            remote_type: field.remote_type.clone(),
            max_length: field.max_length,
            read_only: field.read_only || field.calculated,
            choices: field
                .options
                .iter()
                .map(|(value, _)| value.clone())
                .collect(),
        }
    }
}

/// A field that a mirror has a column for, or whose name its requests carry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirrored {
    /// API name.
    pub field: String,
    /// It was gone at the last reading: its column rests.
    pub gone: bool,
    /// A link maps it.
    pub mapped: bool,
}

/// How a field's description became another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// The column holds the new values as it is: another length, another name of
    /// the same type, writable or not.
    Same,
    /// Text now: every old value has a place, in a column of another type.
    ToText,
    /// Another type, into which an old value may have no way.
    Other,
}

/// What happened to a field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Drift {
    /// A field that was not there before.
    Added {
        /// What it is.
        to: Shape,
    },
    /// A field of the same label and type in the place of one that is gone.
    Renamed {
        /// What it was called.
        was: String,
        /// What it is.
        to: Shape,
    },
    /// The same name, described otherwise.
    Retyped {
        /// Before.
        from: Shape,
        /// Now.
        to: Shape,
        /// What that means for a column.
        fit: Fit,
    },
    /// A field that is not there, or not shown to us, any more.
    Removed {
        /// What it was, where that is known.
        from: Option<Shape>,
    },
    /// A field that was gone is there again.
    Restored {
        /// What it is.
        to: Shape,
    },
    /// Other choices.
    Choices {
        /// Values that are new.
        added: Vec<String>,
        /// Values that are no choices any more.
        removed: Vec<String>,
    },
}

impl Drift {
    /// As it stands in tables: `retyped`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Added { .. } => "added",
            Self::Renamed { .. } => "renamed",
            Self::Retyped { .. } => "retyped",
            Self::Removed { .. } => "removed",
            Self::Restored { .. } => "restored",
            Self::Choices { .. } => "choices",
        }
    }

    /// The field that stops being asked for and written, if one does.
    pub fn rests<'a>(&'a self, field: &'a str) -> Option<&'a str> {
        match self {
            Self::Removed { .. } => Some(field),
            Self::Renamed { was, .. } => Some(was),
            Self::Added { .. }
            | Self::Retyped { .. }
            | Self::Restored { .. }
            | Self::Choices { .. } => None,
        }
    }
}

/// A change of one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaChange {
    /// Its name now; for a removed field, its last one.
    pub field: String,
    /// What happened.
    #[serde(flatten)]
    pub drift: Drift,
}

/// What a mirror does about changes of its object: `crm.mirror.on_schema_change`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftPolicy {
    /// Note it, leave the table alone.
    Ignore,
    /// Take it over where no value can be lost by that, else ask.
    Add,
    /// Ask a person; the mirror goes on without it.
    Ask,
    /// Ask a person, and rest until the answer.
    Pause,
}

impl DriftPolicy {
    /// Parses the name in the table; anything else asks.
    pub fn by_name(name: &str) -> Self {
        match name {
            "ignore" => Self::Ignore,
            "add" => Self::Add,
            "pause" => Self::Pause,
            _ => Self::Ask,
        }
    }
}

/// What follows from a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is told, nothing else.
    Note,
    /// The mirror takes it over.
    Apply,
    /// It is told and done with: what it asks for happened when it was noticed.
    Done,
    /// A person decides.
    Ask,
    /// A person decides, and the mirror rests until then.
    Pause,
}

/// The changes between what was `known` of an object's fields and what they are
/// `now`. `renames`: fields of this CRM can change their API name, so one gone
/// and one new of the same label and type are one, if no other fits either.
///
/// An object of which nothing was known has no new fields: it was just described
/// for the first time. An object without any field now was not described.
pub fn compare(
    known: &[Shape],
    mirrored: &[Mirrored],
    now: &[Shape],
    renames: bool,
) -> Vec<SchemaChange> {
    if now.is_empty() {
        return Vec::new();
    }
    let before: BTreeMap<&str, &Shape> = known.iter().map(|s| (s.name.as_str(), s)).collect();
    let after: BTreeMap<&str, &Shape> = now.iter().map(|s| (s.name.as_str(), s)).collect();
    let ours: BTreeMap<&str, &Mirrored> = mirrored.iter().map(|m| (m.field.as_str(), m)).collect();
    let mut removed: BTreeSet<&str> = before.keys().copied().collect();
    removed.extend(ours.values().filter(|m| !m.gone).map(|m| m.field.as_str()));
    removed.retain(|name| !after.contains_key(name));
    let is_new = |s: &&&Shape| {
        !before.is_empty()
            && !before.contains_key(s.name.as_str())
            && !ours.contains_key(s.name.as_str())
    };
    let mut added: Vec<&Shape> = after.values().filter(is_new).copied().collect();
    let mut changes = Vec::new();
    if renames {
        let pairs = renamed(&before, &removed, &added);
        for (was, to) in pairs {
            removed.remove(was);
            added.retain(|s| s.name != to.name);
            changes.push(change(
                &to.name,
                Drift::Renamed {
                    was: was.to_owned(),
                    to: to.clone(),
                },
            ));
        }
    }
    changes.extend(removed.into_iter().map(|name| {
        change(
            name,
            Drift::Removed {
                from: before.get(name).map(|s| (*s).clone()),
            },
        )
    }));
    changes.extend(
        added
            .into_iter()
            .map(|s| change(&s.name, Drift::Added { to: s.clone() })),
    );
    for (name, to) in after {
        if ours.get(name).is_some_and(|m| m.gone) {
            changes.push(change(name, Drift::Restored { to: to.clone() }));
        } else if let Some(from) = before.get(name) {
            changes.extend(described_otherwise(from, to));
        }
    }
    changes
}

fn change(field: &str, drift: Drift) -> SchemaChange {
    SchemaChange {
        field: field.to_owned(),
        drift,
    }
}

/// Pairs of a removed and a new field that only each other's description fits.
fn renamed<'a>(
    before: &BTreeMap<&'a str, &'a Shape>,
    removed: &BTreeSet<&'a str>,
    added: &[&'a Shape],
) -> Vec<(&'a str, &'a Shape)> {
    let alike = |a: &Shape, b: &Shape| {
        !a.label.is_empty()
            && a.label == b.label
            && a.field_type == b.field_type
            && a.remote_type == b.remote_type
    };
    let gone: Vec<&Shape> = removed
        .iter()
        .filter_map(|n| before.get(n).copied())
        .collect();
    gone.iter()
        .filter_map(|was| {
            let mut fits = added.iter().filter(|to| alike(was, to));
            let (to, other) = (fits.next()?, fits.next());
            let alone = gone.iter().filter(|w| alike(w, to)).count() == 1;
            (other.is_none() && alone).then_some((was.name.as_str(), *to))
        })
        .collect()
}

fn described_otherwise(from: &Shape, to: &Shape) -> Vec<SchemaChange> {
    let mut changes = Vec::new();
    let typed = |s: &Shape| {
        (
            s.field_type,
            s.remote_type.clone(),
            s.max_length,
            s.read_only,
        )
    };
    if typed(from) != typed(to) {
        let fit = match (from.field_type.column_type(), to.field_type.column_type()) {
            (a, b) if a == b => Fit::Same,
            (_, "text") => Fit::ToText,
            _ => Fit::Other,
        };
        let (from, to) = (from.clone(), to.clone());
        changes.push(change(&to.name.clone(), Drift::Retyped { from, to, fit }));
    }
    let without = |a: &[String], b: &[String]| -> Vec<String> {
        a.iter().filter(|v| !b.contains(v)).cloned().collect()
    };
    let added = without(&to.choices, &from.choices);
    let removed = without(&from.choices, &to.choices);
    if !(added.is_empty() && removed.is_empty()) {
        changes.push(change(&to.name, Drift::Choices { added, removed }));
    }
    changes
}

/// What follows from a change under a policy; `mirrored` is the column that the
/// change concerns (for a rename, the old name's), if the mirror has it.
///
/// A field that is gone always rests: to name it in a request is an error in one
/// CRM and reads as null in the other. A description that the column fits is
/// always taken over, or values would be judged by a length that is not true.
pub fn action(policy: DriftPolicy, change: &SchemaChange, mirrored: Option<&Mirrored>) -> Action {
    let asked = match policy {
        DriftPolicy::Ignore => Action::Note,
        DriftPolicy::Add => Action::Apply,
        DriftPolicy::Ask => Action::Ask,
        DriftPolicy::Pause => Action::Pause,
    };
    let unless_paused = |otherwise: Action| match policy {
        DriftPolicy::Pause => Action::Pause,
        DriftPolicy::Ignore | DriftPolicy::Add | DriftPolicy::Ask => otherwise,
    };
    match (&change.drift, mirrored) {
        (Drift::Added { .. }, _) => asked,
        // Not imported: nobody misses it.
        (_, None) => Action::Note,
        (Drift::Renamed { .. } | Drift::Restored { .. }, Some(_)) => asked,
        (Drift::Removed { .. }, Some(_)) => unless_paused(Action::Done),
        (Drift::Retyped { fit: Fit::Same, .. }, Some(_)) => unless_paused(Action::Apply),
        (
            Drift::Retyped {
                fit: Fit::ToText, ..
            },
            Some(_),
        ) => asked,
        (
            Drift::Retyped {
                fit: Fit::Other, ..
            },
            Some(_),
        ) if policy == DriftPolicy::Add => Action::Ask,
        (
            Drift::Retyped {
                fit: Fit::Other, ..
            },
            Some(_),
        ) => asked,
        // The column holds any text; a map may have no counterpart for it.
        (Drift::Choices { .. }, Some(m)) if m.mapped && policy != DriftPolicy::Add => asked,
        (Drift::Choices { .. }, Some(_)) => Action::Note,
    }
}

#[cfg(test)]
#[path = "drift_tests.rs"]
mod tests;
