//! Records straight into JSON bytes: no tree in between, because pages are what clients measure.

use super::schema::{Obj, Object, Schema};
use super::soql::ast::Column;
use super::store::{Hit, View};
use super::value::{Value, push_int, push_json_text};
use crate::people::People;

/// A record to render with the parents its columns need, in the order of the parent columns.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) hit: Hit,
    pub(crate) parents: Vec<Option<Hit>>,
}

/// A column list made ready for many records: keys are rendered once.
pub(crate) struct Renderer<'a> {
    schema: &'a Schema,
    people: &'a People,
    object: &'a Object,
    head: Vec<u8>,
    columns: Vec<Prepared>,
}

enum Prepared {
    Field(Vec<u8>, usize),
    Compound(Vec<u8>, Vec<(Vec<u8>, usize)>),
    Parent(Vec<u8>, Obj, Vec<Column>),
}

fn key(name: &str) -> Vec<u8> {
    format!(",\"{name}\":").into_bytes()
}

fn lower_first(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(chars).collect()
    })
}

impl<'a> Renderer<'a> {
    /// Prepares `columns` of `obj` for answers under `/services/data/v{version}`.
    pub(crate) fn new(
        schema: &'a Schema,
        people: &'a People,
        obj: Obj,
        columns: &[Column],
        version: &str,
    ) -> Self {
        let object = schema.object(obj);
        let name = obj.name();
        let head = format!("{{\"attributes\":{{\"type\":\"{name}\",\"url\":\"/services/data/v{version}/sobjects/{name}/").into_bytes();
        let prepare = |column: &Column| match column {
            Column::Field(field) => Prepared::Field(key(object.fields[*field].name), *field),
            Column::Compound(field) => {
                let compound = object.fields[*field].name;
                let parts = object.components(compound).into_iter();
                Prepared::Compound(
                    key(compound),
                    parts
                        .map(|(at, part)| (key(&lower_first(part)), at))
                        .collect(),
                )
            }
            Column::Parent {
                reference,
                obj,
                fields,
            } => {
                let relation = object.fields[*reference].relationship.unwrap_or_default();
                Prepared::Parent(
                    key(relation),
                    *obj,
                    fields.iter().map(|field| Column::Field(*field)).collect(),
                )
            }
        };
        Self {
            schema,
            people,
            object,
            head,
            columns: columns.iter().map(prepare).collect(),
        }
    }

    /// Appends one record.
    pub(crate) fn record(&self, out: &mut Vec<u8>, line: &Line, version: &str) {
        out.extend_from_slice(&self.head);
        let id = super::ids::SfId::new(self.object.obj.prefix(), line.hit.number());
        out.extend_from_slice(&id.bytes());
        out.extend_from_slice(b"\"}");
        let view = line.hit.view(self.object, self.people);
        let mut parents = line.parents.iter();
        for column in &self.columns {
            match column {
                Prepared::Field(key, field) => {
                    out.extend_from_slice(key);
                    view.with(*field, |value| value.push_json(out));
                }
                Prepared::Compound(key, parts) => {
                    out.extend_from_slice(key);
                    push_compound(out, &view, parts);
                }
                Prepared::Parent(key, obj, fields) => {
                    out.extend_from_slice(key);
                    match parents.next() {
                        Some(Some(parent)) => {
                            let line = Line {
                                hit: parent.clone(),
                                parents: Vec::new(),
                            };
                            Self::new(self.schema, self.people, *obj, fields, version)
                                .record(out, &line, version);
                        }
                        _ => out.extend_from_slice(b"null"),
                    }
                }
            }
        }
        out.push(b'}');
    }
}

/// Appends a compound value; null when every component is.
fn push_compound(out: &mut Vec<u8>, view: &View<'_>, parts: &[(Vec<u8>, usize)]) {
    let values: Vec<Value> = parts.iter().map(|(_, field)| view.get(*field)).collect();
    if values.iter().all(Value::is_null) {
        out.extend_from_slice(b"null");
        return;
    }
    out.push(b'{');
    for (at, ((key, _), value)) in parts.iter().zip(&values).enumerate() {
        out.extend_from_slice(&key[usize::from(at == 0)..]);
        value.push_json(out);
    }
    out.push(b'}');
}

/// Appends a query answer around already chosen lines.
pub(crate) fn push_page(
    out: &mut Vec<u8>,
    renderer: &Renderer<'_>,
    lines: &[Line],
    total: u64,
    next: Option<&str>,
    version: &str,
) {
    out.extend_from_slice(b"{\"totalSize\":");
    push_int(out, i64::try_from(total).unwrap_or(i64::MAX));
    match next {
        Some(url) => {
            out.extend_from_slice(b",\"done\":false,\"nextRecordsUrl\":");
            push_json_text(out, url);
        }
        None => out.extend_from_slice(b",\"done\":true"),
    }
    out.extend_from_slice(b",\"records\":[");
    for (at, line) in lines.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        renderer.record(out, line, version);
    }
    out.extend_from_slice(b"]}");
}
