//! `query` and `queryAll`: first pages, and cursors for the rest.

use super::{Answer, Call, Reply, with_store};
use crate::salesforce::State;
use crate::salesforce::error::Error;
use crate::salesforce::render::{Line, Renderer, push_page};
use crate::salesforce::soql::ast::{Column, Query};
use crate::salesforce::soql::parser::parse;
use crate::salesforce::soql::run::{self, Page, Rest, Source};
use crate::salesforce::store::{Hit, Store};
use crate::salesforce::tx::Tx;
use serde_json::json;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// Cursors kept at once; the oldest goes when one more is opened.
const MAX_CURSORS: usize = 100;
/// Remaining places kept per cursor, so that a page can be fetched again after its answer was lost.
const KEPT_PLACES: usize = 3;
/// Life of a cursor.
const CURSOR_LIFE_MS: i64 = 2 * 86_400_000;

struct Cursor {
    query: Arc<Query>,
    with_deleted: bool,
    total: u64,
    size: usize,
    opened: i64,
    /// What remains from a given offset on.
    places: BTreeMap<u64, Rest>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    open: HashMap<String, Cursor>,
    order: VecDeque<String>,
}

/// All open cursors.
#[derive(Default)]
pub(crate) struct Cursors(Mutex<Inner>);

impl Cursors {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, cursor: Cursor) -> String {
        let mut inner = self.lock();
        inner.next += 1;
        let name = format!("0r8xx{:010x}AAA", inner.next);
        if inner.order.len() >= MAX_CURSORS
            && let Some(oldest) = inner.order.pop_front()
        {
            inner.open.remove(&oldest);
        }
        inner.order.push_back(name.clone());
        inner.open.insert(name.clone(), cursor);
        name
    }
}

/// `GET /query?q=…`
pub(crate) fn start(
    org: &State,
    call: &Call<'_>,
    tx: Option<&mut Tx<'_>>,
    with_deleted: bool,
) -> Answer {
    let text = call
        .parameter("q")
        .ok_or_else(|| Error::bad("MALFORMED_QUERY", "A query string has to be specified"))?;
    if let Some(answer) = organization(org, call, text) {
        return answer;
    }
    let query = parse(org.schema(), text, org.now())?;
    let object = org.schema().object(query.obj);
    let people = &org.shared.people;
    if query.count {
        let total = with_store(org, tx, |store| {
            let table = store.table(query.obj);
            run::count(
                Source {
                    table,
                    object,
                    people,
                    with_deleted,
                },
                &query,
            )
        });
        let body = json!({"totalSize": total, "done": true, "records": []});
        return Ok(Reply::json(200, &body));
    }
    let size = page_size(org, call, &query);
    let (page, lines) = with_store(org, tx, |store| {
        let table = store.table(query.obj);
        let page = run::first(
            Source {
                table,
                object,
                people,
                with_deleted,
            },
            &query,
            size,
        );
        let lines = lines(store, &query, &page, org);
        (page, lines)
    });
    let total = page.total;
    let next = opened(org, call, &query, with_deleted, size, page);
    Ok(rendered(org, call, &query, &lines, total, next.as_deref()))
}

/// The org itself, of which there is one row: its name and time zone can be asked for.
fn organization(org: &State, call: &Call<'_>, text: &str) -> Option<Answer> {
    let mut words = text.split_whitespace();
    let mut word = || words.next().map(str::to_lowercase);
    let (select, columns, from, object) = (word()?, word()?, word()?, word()?);
    if (select.as_str(), from.as_str(), object.as_str()) != ("select", "from", "organization") {
        return None;
    }
    let id = "00Dxx0000000001EAA";
    let mut row = json!({"attributes": {"type": "Organization", "url": format!("{}/sobjects/Organization/{id}", call.root())}});
    for column in columns.split(',') {
        let (name, value) = match column {
            "id" => ("Id", id.to_owned()),
            "name" => ("Name", "Emulator".to_owned()),
            "timezonesidkey" => ("TimeZoneSidKey", org.settings().time_zone.clone()),
            other => {
                let message = format!("No such column '{other}' on entity 'Organization'");
                return Some(Err(Error::bad("INVALID_FIELD", &message)));
            }
        };
        row[name] = value.into();
    }
    let body = json!({"totalSize": 1, "done": true, "records": [row]});
    Some(Ok(Reply::json(200, &body)))
}

/// Opens a cursor for what a first page left; the URL of the next page.
fn opened(
    org: &State,
    call: &Call<'_>,
    query: &Query,
    with_deleted: bool,
    size: usize,
    page: Page,
) -> Option<String> {
    if matches!(page.rest, Rest::Done) {
        return None;
    }
    let sent = page.hits.len() as u64;
    let name = org.cursors.open(Cursor {
        query: Arc::new(query.clone()),
        with_deleted,
        total: page.total,
        size,
        opened: org.now(),
        places: BTreeMap::from([(sent, page.rest)]),
    });
    Some(format!("{}/query/{name}-{sent}", call.root()))
}

/// `GET /query/{cursor}-{offset}`
pub(crate) fn more(org: &State, call: &Call<'_>, name: &str, tx: Option<&mut Tx<'_>>) -> Answer {
    let invalid = || Error::bad("INVALID_QUERY_LOCATOR", "invalid query locator");
    let (cursor, offset) = name.rsplit_once('-').ok_or_else(invalid)?;
    let offset: u64 = offset.parse().map_err(|_| invalid())?;
    let (query, with_deleted, total, size, rest) = {
        let mut inner = org.cursors.lock();
        let found = inner.open.get(cursor).ok_or_else(invalid)?;
        if org.now() - found.opened > CURSOR_LIFE_MS {
            inner.open.remove(cursor);
            return Err(invalid());
        }
        let rest = found.places.get(&offset).cloned().ok_or_else(invalid)?;
        (
            Arc::clone(&found.query),
            found.with_deleted,
            found.total,
            found.size,
            rest,
        )
    };
    let given = match &rest {
        Rest::Listed(numbers, from) => (numbers.len() - from).min(size) as u64,
        Rest::Along { remaining, .. } => (*remaining).min(size as u64),
        Rest::Done => 0,
    };
    let (page, lines) = with_store(org, tx, |store| {
        let table = store.table(query.obj);
        let source = Source {
            table,
            object: org.schema().object(query.obj),
            people: &org.shared.people,
            with_deleted,
        };
        let page = run::next(source, &query, total, rest, size);
        let lines = lines(store, &query, &page, org);
        (page, lines)
    });
    let next = match page.rest {
        Rest::Done => None,
        rest => {
            let at = offset + given;
            org.cursors.advance(cursor, at, rest);
            Some(format!("{}/query/{cursor}-{at}", call.root()))
        }
    };
    Ok(rendered(org, call, &query, &lines, total, next.as_deref()))
}

impl Cursors {
    fn advance(&self, cursor: &str, offset: u64, rest: Rest) {
        if let Some(found) = self.lock().open.get_mut(cursor) {
            found.places.insert(offset, rest);
            while found.places.len() > KEPT_PLACES {
                found.places.pop_first();
            }
        }
    }
}

/// Rows per page: what the caller asks for (200 to 2,000), halved when a long text is selected.
fn page_size(org: &State, call: &Call<'_>, query: &Query) -> usize {
    let most = usize::try_from(org.settings().page_rows).unwrap_or(2_000);
    let asked = call
        .option("sforce-query-options", "batchSize")
        .and_then(|text| text.parse::<usize>().ok());
    let size = asked.map_or(most, |asked| asked.clamp(200.min(most), most));
    let object = org.schema().object(query.obj);
    let long = query.columns.iter().any(
        |column| matches!(column, Column::Field(field) if object.fields[*field].is_long_text()),
    );
    if long {
        size.min(most.div_ceil(2))
    } else {
        size
    }
}

/// The page's rows with the parents their columns need; cheap copies, so that rendering holds no lock.
pub(super) fn lines(store: &Store, query: &Query, page: &Page, org: &State) -> Vec<Line> {
    let object = org.schema().object(query.obj);
    let parents_of = |hit: &Hit| {
        let view = hit.view(object, &org.shared.people);
        let parent = |column: &Column| match column {
            Column::Parent { reference, .. } => Some(
                view.get(*reference)
                    .as_id()
                    .and_then(|id| store.find(id))
                    .map(|(_, hit)| hit),
            ),
            _ => None,
        };
        query.columns.iter().filter_map(parent).collect()
    };
    page.hits
        .iter()
        .map(|hit| Line {
            parents: parents_of(hit),
            hit: hit.clone(),
        })
        .collect()
}

fn rendered(
    org: &State,
    call: &Call<'_>,
    query: &Query,
    lines: &[Line],
    total: u64,
    next: Option<&str>,
) -> Reply {
    let renderer = Renderer::new(
        org.schema(),
        &org.shared.people,
        query.obj,
        &query.columns,
        &call.version,
    );
    let mut out = Vec::with_capacity(256 + lines.len() * (160 + 40 * query.columns.len()));
    push_page(&mut out, &renderer, lines, total, next, &call.version);
    Reply::bytes(out)
}
