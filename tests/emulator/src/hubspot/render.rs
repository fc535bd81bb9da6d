//! Records as JSON, written straight into bytes: this is the path every page takes.

use super::{
    model::{Catalog, PropertyId, Table},
    store::{Pushed, View},
};
use crate::people::push_number;

/// Appends `text` as a JSON string with quotes.
pub(crate) fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    push_escaped(out, text.as_bytes());
    out.push(b'"');
}

fn push_escaped(out: &mut Vec<u8>, text: &[u8]) {
    for &byte in text {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..=0x1f => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
            _ => out.push(byte),
        }
    }
}

fn needs_escape(text: &[u8]) -> bool {
    text.iter().any(|b| *b < 0x20 || *b == b'"' || *b == b'\\')
}

/// The properties to show for a read that asks for `names` (undefined ones are dropped): the
/// default set when none are asked, otherwise those plus id and stamps. Sorted by name.
pub(crate) fn wanted<'a>(
    table: &Table,
    catalog: &Catalog,
    names: impl Iterator<Item = &'a str>,
) -> Vec<PropertyId> {
    let mut ids: Vec<PropertyId> = Vec::new();
    let mut asked = false;
    for name in names.filter(|n| !n.is_empty()) {
        asked = true;
        ids.extend(catalog.find(name));
    }
    if asked {
        for name in ["hs_object_id", created_name(table), table.facts.modified] {
            ids.extend(catalog.find(name));
        }
    } else {
        ids.extend(catalog.ids().filter(|id| catalog.get(*id).default));
    }
    by_name(catalog, ids)
}

/// The creation stamp that reads always carry.
fn created_name(table: &Table) -> &'static str {
    if table.facts.custom {
        "hs_createdate"
    } else {
        "createdate"
    }
}

/// The properties a write answers with: the written ones, the defaults and the computed ones.
pub(crate) fn echoed(catalog: &Catalog, written: &[PropertyId]) -> Vec<PropertyId> {
    let mut ids: Vec<PropertyId> = catalog
        .ids()
        .filter(|id| catalog.get(*id).echoed || catalog.get(*id).default)
        .collect();
    ids.extend_from_slice(written);
    by_name(catalog, ids)
}

fn by_name(catalog: &Catalog, mut ids: Vec<PropertyId>) -> Vec<PropertyId> {
    ids.sort_unstable_by(|a, b| catalog.get(*a).name.cmp(&catalog.get(*b).name));
    ids.dedup();
    ids
}

/// What to put into a record besides its properties.
#[derive(Default)]
pub(crate) struct Extras<'a> {
    /// Properties whose history is shown.
    pub(crate) history: &'a [PropertyId],
    /// The finished value of `associations`.
    pub(crate) associations: Option<&'a [u8]>,
    pub(crate) trace: Option<&'a str>,
    /// The value of `new`, for upserts.
    pub(crate) new: Option<bool>,
}

/// Appends one record.
pub(crate) fn record(
    out: &mut Vec<u8>,
    portal: u64,
    table: &Table,
    catalog: &Catalog,
    view: &View<'_>,
    properties: &[PropertyId],
    extras: &Extras<'_>,
) {
    out.extend_from_slice(b"{\"id\":\"");
    push_number(out, view.id, 1);
    out.extend_from_slice(b"\",\"properties\":{");
    push_properties(out, catalog, view, properties);
    out.push(b'}');
    if !extras.history.is_empty() {
        push_history(out, catalog, view, extras.history);
    }
    out.extend_from_slice(b",\"createdAt\":\"");
    super::base::push_iso(out, view.created_ms);
    out.extend_from_slice(b"\",\"updatedAt\":\"");
    super::base::push_iso(out, view.modified_ms);
    out.push(b'"');
    match view.archived_ms() {
        None => out.extend_from_slice(b",\"archived\":false"),
        Some(ms) => {
            out.extend_from_slice(b",\"archived\":true,\"archivedAt\":\"");
            super::base::push_iso(out, ms);
            out.push(b'"');
        }
    }
    push_extras(out, extras);
    push_url(out, portal, table, view.id);
    out.push(b'}');
}

fn push_properties(
    out: &mut Vec<u8>,
    catalog: &Catalog,
    view: &View<'_>,
    properties: &[PropertyId],
) {
    let empty = out.len();
    for &id in properties {
        let property = catalog.get(id);
        if out.len() > empty {
            out.push(b',');
        }
        out.extend_from_slice(&property.key);
        out.push(b'"');
        let start = out.len();
        match view.push(id, property, out) {
            Pushed::Plain => out.push(b'"'),
            Pushed::Empty => {
                out.truncate(start - 1);
                out.extend_from_slice(b"null");
            }
            Pushed::Text => {
                if needs_escape(&out[start..]) {
                    let text = out.split_off(start);
                    push_escaped(out, &text);
                }
                out.push(b'"');
            }
        }
    }
}

fn push_extras(out: &mut Vec<u8>, extras: &Extras<'_>) {
    if let Some(associations) = extras.associations {
        out.extend_from_slice(b",\"associations\":");
        out.extend_from_slice(associations);
    }
    if let Some(trace) = extras.trace {
        out.extend_from_slice(b",\"objectWriteTraceId\":");
        push_string(out, trace);
    }
    if let Some(new) = extras.new {
        out.extend_from_slice(if new {
            b",\"new\":true"
        } else {
            b",\"new\":false"
        });
    }
}

fn push_url(out: &mut Vec<u8>, portal: u64, table: &Table, id: u64) {
    if table.facts.plural == "tasks" {
        out.extend_from_slice(b",\"url\":\"https://app.hubspot.com/tasks/");
        push_number(out, portal, 1);
        out.extend_from_slice(b"/view/all/task/");
    } else {
        out.extend_from_slice(b",\"url\":\"https://app.hubspot.com/contacts/");
        push_number(out, portal, 1);
        out.extend_from_slice(b"/record/");
        out.extend_from_slice(table.facts.type_id.as_bytes());
        out.push(b'/');
    }
    push_number(out, id, 1);
    out.push(b'"');
}

/// Newest first, as in HubSpot; a value never written has one entry of the creation.
fn push_history(out: &mut Vec<u8>, catalog: &Catalog, view: &View<'_>, ids: &[PropertyId]) {
    out.extend_from_slice(b",\"propertiesWithHistory\":{");
    for (i, &id) in ids.iter().enumerate() {
        let property = catalog.get(id);
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&property.key);
        out.push(b'[');
        let start = out.len();
        let past = view.record.map_or(&[][..], |r| &r.history[..]);
        for entry in past.iter().rev().filter(|p| p.property == id) {
            if out.len() > start {
                out.push(b',');
            }
            push_past(
                out,
                entry.value.as_deref().unwrap_or(""),
                entry.at_ms,
                (&entry.source_type, &entry.source_id),
            );
        }
        if out.len() == start
            && let Some(value) = view.text(id, property)
        {
            push_past(out, &value, view.created_ms, ("CRM_UI", "userId:9339234"));
        }
        out.push(b']');
    }
    out.push(b'}');
}

fn push_past(out: &mut Vec<u8>, value: &str, at_ms: i64, source: (&str, &str)) {
    out.extend_from_slice(b"{\"value\":");
    push_string(out, value);
    out.extend_from_slice(b",\"timestamp\":\"");
    super::base::push_iso(out, at_ms);
    out.extend_from_slice(b"\",\"sourceType\":");
    push_string(out, source.0);
    out.extend_from_slice(b",\"sourceId\":");
    push_string(out, source.1);
    if let Some(user) = source.1.strip_prefix("userId:")
        && user.parse::<u64>().is_ok()
    {
        out.extend_from_slice(b",\"updatedByUserId\":");
        out.extend_from_slice(user.as_bytes());
    }
    out.push(b'}');
}
