//! Associations: which records of two object types belong together. An object
//! of this kind is called `contacts/companies`; a record of it is one type of
//! association of one pair, `101:201:HUBSPOT_DEFINED:279`. They are read by
//! the records that they start from, all of a record at once.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::connectors::ServerConfig;
use crate::connectors::text::encode;
use crate::http::{HttpRequest, HttpResponse, Purpose};
use crate::model::{
    ErrorClass, FieldType, Page, Record, RemoteError, RemoteField, RemoteObject, Value, Write,
    WriteKind, WriteResult,
};
use crate::value;

use super::catalog::standard_object;
use super::errors::{ErrorBody, classify, not_expected, scalar};
use super::push;
use super::request::{get, path, post};

/// Records whose associations one call reads.
pub(crate) const READ: usize = 1_000;
/// Standard objects whose associations are offered in every direction.
const CORE: [&str; 7] = [
    "contacts",
    "companies",
    "deals",
    "tickets",
    "leads",
    "orders",
    "quotes",
];
/// Standard objects that hang on those.
const LEAVES: [&str; 6] = [
    "line_items",
    "tasks",
    "notes",
    "meetings",
    "calls",
    "emails",
];
/// Types that mark the one main company of a record, or their reverse.
const PRIMARY: [&str; 6] = ["1", "2", "5", "6", "25", "26"];
/// Between a record and the cursor of what follows of its associations.
const AFTER: char = '>';

/// The two object types of an object of this kind.
pub(crate) fn of(object: &str) -> Option<(&str, &str)> {
    let named = |name: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        !name.is_empty() && name.bytes().all(plain)
    };
    let pair = object.split_once('/');
    pair.filter(|(from, to)| named(from) && named(to))
}

/// What the catalog offers, given the account's own objects.
pub(crate) fn objects(custom: &[RemoteObject]) -> Vec<RemoteObject> {
    let standard = |names: &[&'static str]| -> Vec<(String, String)> {
        let known = names.iter().filter_map(|n| standard_object(n));
        known
            .map(|s| (s.name.to_owned(), s.type_id.to_owned()))
            .collect()
    };
    let own = custom.iter().map(|o| (o.name.clone(), o.type_id.clone()));
    let hubs: Vec<_> = standard(&CORE).into_iter().chain(own).collect();
    let leaves = standard(&LEAVES);
    let mut found = Vec::new();
    for from in &hubs {
        found.extend(hubs.iter().map(|to| object(from, to)));
        for leaf in &leaves {
            found.extend([object(from, leaf), object(leaf, from)]);
        }
    }
    found
}

fn object(from: &(String, String), to: &(String, String)) -> RemoteObject {
    let label = format!("Association of {} with {}", from.0, to.0);
    RemoteObject {
        name: format!("{}/{}", from.0, to.0),
        type_id: format!("{}/{}", from.1, to.1),
        label_plural: format!("Associations of {} with {}", from.0, to.0),
        label,
        custom: false,
        createable: true,
        updateable: true,
        deletable: true,
        streamable: false,
    }
}

fn target(config: &ServerConfig, object: &str, rest: &str) -> String {
    let (from, to) = of(object).unwrap_or((object, object));
    let rest = format!("/{}/{}/{rest}", encode(from), encode(to));
    // v4 is what belongs to v3 of everything else.
    path(config, "/crm/v4/associations", "/crm/associations", &rest)
}

/// The types of association between the two.
pub(crate) fn describe(config: &ServerConfig, object: &str) -> HttpRequest {
    get(target(config, object, "labels"), Purpose::Catalog)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    #[serde(default)]
    category: String,
    #[serde(default, deserialize_with = "crate::connectors::rows::id")]
    type_id: String,
    #[serde(default)]
    label: Option<String>,
}

/// The fields of an association. The type without a label is the first of its list.
pub(crate) fn fields(
    object: &str,
    response: &HttpResponse,
) -> Result<Vec<RemoteField>, RemoteError> {
    #[derive(Deserialize)]
    struct Answer {
        results: Vec<Kind>,
    }
    if !(200..300).contains(&response.status) {
        return Err(classify(response));
    }
    let answer: Answer =
        serde_json::from_slice(&response.body).map_err(|e| not_expected(response, &e))?;
    let mut kinds = answer.results;
    kinds.sort_by_key(|k| k.label.is_some());
    let types = kinds.iter().map(|k| {
        let label = k.label.clone().unwrap_or_default();
        (k.type_id.clone(), label)
    });
    let categories = kinds
        .iter()
        .map(|k| (k.category.clone(), k.type_id.clone()));
    let main = kinds.iter().filter(|k| is_main(k));
    let main = main.map(|k| (k.type_id.clone(), k.category.clone()));
    let main = main.collect();
    let (from, to) = of(object).unwrap_or_default();
    Ok(vec![
        field("from_id", "Record", FieldType::Reference).refers(from),
        field("to_id", "Associated record", FieldType::Reference).refers(to),
        field("type_id", "Type of the association", FieldType::Number).choices(types.collect()),
        field("category", "Who defined the type", FieldType::Text).choices(categories.collect()),
        field("label", "Label of the type, if it has one", FieldType::Text).optional(),
        field("is_primary", "The main one of several", FieldType::Boolean)
            .choices(main)
            .optional(),
    ]
    .into_iter()
    .map(|f| f.0)
    .collect())
}

struct Field(RemoteField);

impl Field {
    fn refers(mut self, object: &str) -> Self {
        self.0.references.push(object.to_owned());
        self
    }

    fn choices(mut self, options: Vec<(String, String)>) -> Self {
        self.0.options = options;
        self
    }

    fn optional(mut self) -> Self {
        self.0.required = false;
        self
    }
}

fn field(name: &str, label: &str, field_type: FieldType) -> Field {
    Field(RemoteField {
        name: name.to_owned(),
        label: label.to_owned(),
        description: String::new(),
        field_type,
        remote_type: "association".to_owned(),
        max_length: None,
        precision: None,
        scale: None,
        options: Vec::new(),
        restricted: false,
        required: true,
        unique: false,
        external_id: false,
        read_only: false,
        calculated: false,
        references: Vec::new(),
    })
}

/// Reads all associations of records, which may be named by one of these
/// associations, or with the cursor behind which they go on.
pub(crate) fn read(config: &ServerConfig, object: &str, ids: &[String]) -> HttpRequest {
    let mut met = BTreeSet::new();
    let inputs: Vec<Json> = ids
        .iter()
        .filter_map(|id| {
            let (id, after) = match id.split_once(AFTER) {
                Some((id, after)) => (id, Some(after)),
                None => (id.split(':').next().unwrap_or_default(), None),
            };
            met.insert((id, after)).then(|| match after {
                Some(after) => json!({"id": id, "after": after}),
                None => json!({"id": id}),
            })
        })
        .collect();
    let body = json!({ "inputs": inputs }).to_string();
    post(
        target(config, object, "batch/read"),
        body,
        Purpose::ReadBack,
    )
}

#[derive(Deserialize)]
struct ReadAnswer {
    results: Vec<Of>,
    #[serde(default)]
    errors: Option<Vec<ErrorBody>>,
}

#[derive(Deserialize)]
struct Of {
    from: Json,
    #[serde(default)]
    to: Vec<To>,
    #[serde(default)]
    paging: Option<Json>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct To {
    #[serde(deserialize_with = "crate::connectors::rows::id")]
    to_object_id: String,
    #[serde(default)]
    association_types: Vec<Kind>,
}

/// Parses a read. [`Page::next`] lists records of which more follows.
pub(crate) fn page(
    fields: &[(String, FieldType)],
    response: &HttpResponse,
) -> Result<Page, RemoteError> {
    if !(200..300).contains(&response.status) {
        return Err(classify(response));
    }
    let answer: ReadAnswer =
        serde_json::from_slice(&response.body).map_err(|e| not_expected(response, &e))?;
    // Records without associations are named as errors; with any other error
    // nobody could say what a record has.
    for error in answer.errors.iter().flatten() {
        let error = error.remote_error(207);
        if error.class != ErrorClass::Gone {
            return Err(error);
        }
    }
    let mut page = Page::default();
    let mut more = Vec::new();
    for of in answer.results {
        let Some(from) = of.from.get("id").and_then(scalar) else {
            continue;
        };
        let after = of.paging.as_ref().and_then(|p| p.pointer("/next/after"));
        if let Some(after) = after.and_then(scalar).filter(|a| !a.is_empty()) {
            more.push(format!("{from}{AFTER}{after}"));
        }
        for to in &of.to {
            let kinds = to.association_types.iter();
            let records = kinds.map(|k| record(&from, &to.to_object_id, k, fields));
            page.records.extend(records);
        }
    }
    page.next = (!more.is_empty()).then(|| more.join(","));
    Ok(page)
}

fn is_main(kind: &Kind) -> bool {
    kind.category == "HUBSPOT_DEFINED" && PRIMARY.contains(&kind.type_id.as_str())
}

fn record(from: &str, to: &str, kind: &Kind, fields: &[(String, FieldType)]) -> Record {
    let primary = is_main(kind);
    let value = |(name, field_type): &(String, FieldType)| -> Value {
        let raw = match name.as_str() {
            "from_id" => from.to_owned(),
            "to_id" => to.to_owned(),
            "type_id" => kind.type_id.clone(),
            "category" => kind.category.clone(),
            "label" => kind.label.clone()?,
            "is_primary" => primary.to_string(),
            _ => return None,
        };
        value::canonical(*field_type, &raw).ok().flatten()
    };
    Record {
        id: format!("{from}:{to}:{}:{}", kind.category, kind.type_id),
        modified_at: None,
        deleted: false,
        values: fields.iter().map(value).collect(),
    }
}

/// From, to, category and type of a write.
struct Parts<'a>(&'a str, &'a str, &'a str, &'a str);

/// What a write is about: of an update, what the association becomes.
fn parts(write: &Write) -> Option<Parts<'_>> {
    let value = |name: &str| {
        let found = write.values.iter().find(|(n, _, _)| n == name);
        found.and_then(|(_, _, v)| v.as_deref())
    };
    if let Some(id) = &write.record_id {
        let mut of = id.splitn(4, ':');
        let (from, to) = (of.next()?, of.next()?);
        let (category, type_id) = (of.next()?, of.next()?);
        return Some(Parts(
            from,
            to,
            value("category").unwrap_or(category),
            value("type_id").unwrap_or(type_id),
        ));
    }
    Some(Parts(
        value("from_id")?,
        value("to_id")?,
        value("category")?,
        value("type_id")?,
    ))
}

/// Whether these writes are of associations: records have no colon in their ids,
/// and no property of this name.
pub(crate) fn is(writes: &[Write]) -> bool {
    let by_id = |w: &Write| w.record_id.as_ref().is_some_and(|id| id.contains(':'));
    let by_value = |w: &Write| {
        let named = |n: &str| w.values.iter().any(|(name, _, _)| name == n);
        named("from_id") || named("to_id")
    };
    writes.iter().any(|w| by_id(w) || by_value(w))
}

/// One call for a batch: types are added to pairs, or taken from them. An update
/// adds what the association becomes; the worker takes the former type away when
/// that is there.
pub(crate) fn push(
    config: &ServerConfig,
    object: &str,
    kind: WriteKind,
    writes: &[Write],
) -> HttpRequest {
    let input = |write: &Write| {
        let Parts(from, to, category, type_id) = parts(write)?;
        // A number in the API; what is none is refused there.
        let type_id = type_id.parse::<u64>().map_or(json!(type_id), |n| json!(n));
        Some(json!({"from": {"id": from}, "to": {"id": to},
            "types": [{"associationCategory": category, "associationTypeId": type_id}]}))
    };
    let inputs: Vec<Json> = writes.iter().filter_map(input).collect();
    let rest = match kind {
        WriteKind::Delete => "batch/labels/archive",
        WriteKind::Create | WriteKind::Update => "batch/create",
    };
    let body = json!({ "inputs": inputs }).to_string();
    post(target(config, object, rest), body, Purpose::Push)
}

/// What became of each write. Adding what is there and removing what is not
/// succeed, so an unknown outcome may be sent again.
pub(crate) fn pushed(writes: &[Write], response: &HttpResponse) -> Vec<WriteResult> {
    #[derive(Default, Deserialize)]
    struct Answer {
        #[serde(default)]
        errors: Option<Vec<ErrorBody>>,
    }
    if !(200..300).contains(&response.status) {
        return push::refused(WriteKind::Update, writes, classify(response));
    }
    let answer = match response.body.is_empty() {
        true => Answer::default(),
        false => match serde_json::from_slice(&response.body) {
            Ok(answer) => answer,
            Err(e) => return vec![WriteResult::Unknown(not_expected(response, &e)); writes.len()],
        },
    };
    let errors = answer.errors.unwrap_or_default();
    writes.iter().map(|w| result(w, &errors)).collect()
}

fn result(write: &Write, errors: &[ErrorBody]) -> WriteResult {
    let Some(Parts(from, to, category, type_id)) = parts(write) else {
        return WriteResult::Failed(incomplete());
    };
    let about = |error: &&ErrorBody| {
        let names = |key: &str, id: &str| {
            let ids = error.context(key);
            ids.is_empty() || ids.iter().any(|i| i == id)
        };
        names("fromObjectId", from) && names("toObjectId", to)
    };
    if let Some(error) = errors.iter().find(about) {
        return push::failed(WriteKind::Update, error);
    }
    WriteResult::Done {
        id: format!("{from}:{to}:{category}:{type_id}"),
        created: true,
        modified_at: None,
        echoed: Vec::new(),
    }
}

fn incomplete() -> RemoteError {
    RemoteError {
        class: ErrorClass::FixData,
        status: 0,
        code: "incomplete".to_owned(),
        message: "an association needs from_id, to_id, type_id and category".to_owned(),
        fields: Vec::new(),
        advice: "Delete the row and insert it with both record ids; crm.remote_field.options of type_id lists the types.",
        retry_after_ms: None,
        maybe_applied: false,
    }
}
