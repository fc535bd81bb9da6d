//! HubSpot answers: pages, counts, tokens, limits.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::cells::Cells;
use crate::connectors::rows::{Columns, IdSeed, Key, ValueSeed, parse};
use crate::connectors::table::{self, Rule};
use crate::connectors::{Account, Keyset, LimitHint, Token, oauth};
use crate::http::HttpResponse;
use crate::model::{ErrorClass, FieldType, Millis, Page, Record, RemoteError, Value};
use crate::secret::Secret;
use crate::value::{self, parse_instant};

use super::catalog::modified_field;
use super::errors::{self, ErrorBody, classify, not_expected};
use super::request::{list_fits, search_fits};

/// Parses a list page, a search page or a batch read; which one it is shows in its keys.
pub(crate) fn page(
    object: &str,
    fields: &[(String, FieldType)],
    response: &HttpResponse,
) -> Result<Page, RemoteError> {
    if !(200..300).contains(&response.status) {
        return Err(classify(response));
    }
    let columns = Columns::new(fields);
    let seed = AnswerSeed {
        columns: &columns,
        modified: modified_field(object),
    };
    let answer = parse(&response.body, seed).map_err(|e| not_expected(response, &e))?;
    let Some(records) = answer.records else {
        return Err(classify(response));
    };
    let is_search = answer.total.is_some();
    let ids_only = match (is_search, answer.is_batch) {
        (true, _) => !search_fits(fields),
        (false, false) => !list_fits(fields),
        (false, true) => false,
    };
    let mut page = Page {
        // A property that is gone is left out silently; an empty one is null.
        absent: match ids_only || records.is_empty() {
            true => Vec::new(),
            false => columns.absent(),
        },
        records,
        next: answer.next,
        total: answer.total,
        missing: Vec::new(),
        merged: answer.merged,
        ids_only,
        unreadable: columns.into_unreadable(),
    };
    if is_search {
        order_ties(&mut page);
    }
    for error in &answer.errors {
        page.missing.extend(error.context("ids"));
        page.missing.extend(error.context("id"));
    }
    Ok(page)
}

/// Puts a search page into keyset order. The sort is by stamp alone, so when
/// more follows, the last stamp may be incomplete: its records are left to the
/// next page, unless they are all there is.
fn order_ties(page: &mut Page) {
    let ascending = page
        .records
        .windows(2)
        .all(|w| w[0].modified_at <= w[1].modified_at);
    if !ascending {
        return;
    }
    page.records
        .sort_by_cached_key(|r| (r.modified_at, r.id.len(), r.id.clone()));
    let last = page.records.last().and_then(|r| r.modified_at);
    let first = page.records.first().and_then(|r| r.modified_at);
    if page.next.is_some() && first != last {
        page.records.retain(|r| r.modified_at != last);
    }
}

/// Where a poll goes on. A page of one stamp alone may be any part of the
/// records of that stamp: they are walked in the order of ids first.
pub(crate) fn next_keyset(asked: &Keyset, page: &Page) -> Option<Keyset> {
    let more = page.next.is_some();
    let last = page.records.last();
    if asked.ties {
        return Some(Keyset {
            modified_at: asked.modified_at,
            id: last.map_or_else(|| asked.id.clone(), |r| r.id.clone()),
            ties: more,
        });
    }
    let last = last.filter(|_| more)?;
    let modified_at = last.modified_at?;
    let ties = page.records.first()?.modified_at == Some(modified_at);
    let id = match (ties, asked.modified_at == modified_at) {
        (false, _) => last.id.clone(),
        (true, true) if !asked.id.is_empty() => asked.id.clone(),
        (true, _) => "0".to_owned(),
    };
    Some(Keyset {
        modified_at,
        id,
        ties,
    })
}

#[derive(Default)]
struct Answer {
    records: Option<Vec<Record>>,
    next: Option<String>,
    total: Option<u64>,
    is_batch: bool,
    merged: Vec<(String, String)>,
    errors: Vec<ErrorBody>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Paging {
    next: Option<Next>,
}

#[derive(Deserialize)]
struct Next {
    #[serde(default, deserialize_with = "crate::connectors::rows::id")]
    after: String,
}

struct AnswerSeed<'c, 'a> {
    columns: &'c Columns<'a>,
    modified: &'static str,
}

impl<'de> DeserializeSeed<'de> for AnswerSeed<'_, '_> {
    type Value = Answer;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Answer, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for AnswerSeed<'_, '_> {
    type Value = Answer;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with results")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Answer, A::Error> {
        let mut answer = Answer::default();
        while let Some(key) = map.next_key::<Key<'de>>()? {
            match &*key {
                "results" => {
                    let seed = RecordsSeed {
                        columns: self.columns,
                        modified: self.modified,
                        merged: &mut answer.merged,
                    };
                    answer.records = Some(map.next_value_seed(seed)?);
                }
                "paging" => {
                    let paging: Option<Paging> = map.next_value()?;
                    answer.next = paging
                        .and_then(|p| p.next)
                        .map(|n| n.after)
                        .filter(|after| !after.is_empty());
                }
                "total" => answer.total = map.next_value()?,
                "errors" => {
                    answer.errors = map.next_value::<Option<_>>()?.unwrap_or_default();
                }
                "completedAt" | "startedAt" => {
                    answer.is_batch = true;
                    map.next_value::<IgnoredAny>()?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(answer)
    }
}

struct RecordsSeed<'c, 'a> {
    columns: &'c Columns<'a>,
    modified: &'static str,
    merged: &'c mut Vec<(String, String)>,
}

impl<'de> DeserializeSeed<'de> for RecordsSeed<'_, '_> {
    type Value = Vec<Record>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Vec<Record>, D::Error> {
        d.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for RecordsSeed<'_, '_> {
    type Value = Vec<Record>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of records")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Record>, A::Error> {
        let mut records = Vec::with_capacity(100);
        while let Some(record) = seq.next_element_seed(RecordSeed {
            columns: self.columns,
            modified: self.modified,
            merged: &mut *self.merged,
        })? {
            records.push(record);
        }
        Ok(records)
    }
}

struct RecordSeed<'c, 'a> {
    columns: &'c Columns<'a>,
    modified: &'static str,
    merged: &'c mut Vec<(String, String)>,
}

impl<'de> DeserializeSeed<'de> for RecordSeed<'_, '_> {
    type Value = Record;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Record, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for RecordSeed<'_, '_> {
    type Value = Record;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a record")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Record, A::Error> {
        let mut record = Record {
            values: self.columns.cells(),
            ..Record::default()
        };
        let mut updated_at = String::new();
        let mut properties = Properties {
            columns: self.columns,
            modified: self.modified,
            values: &mut record.values,
            other: String::new(),
            modified_at: None,
            losers: Vec::new(),
            bad: Vec::new(),
        };
        while let Some(key) = map.next_key::<Key<'de>>()? {
            match &*key {
                "id" => record.id = map.next_value_seed(IdSeed)?,
                "archived" => record.deleted = map.next_value::<Option<bool>>()? == Some(true),
                "updatedAt" => {
                    updated_at.clear();
                    // Text reads whatever it is.
                    let _ = map.next_value_seed(ValueSeed(FieldType::Text, &mut updated_at))?;
                }
                "properties" => map.next_value_seed(&mut properties)?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let Properties {
            modified_at,
            losers,
            bad,
            ..
        } = properties;
        record.modified_at = modified_at.or_else(|| parse_instant(&updated_at));
        self.columns.filled(&record.values);
        if !bad.is_empty() {
            self.columns.note(&record.id, bad);
        }
        for loser in losers {
            self.merged.push((loser, record.id.clone()));
        }
        Ok(record)
    }
}

struct Properties<'c, 'a, 'v> {
    columns: &'c Columns<'a>,
    modified: &'static str,
    values: &'v mut Cells,
    /// For values that are no columns.
    other: String,
    modified_at: Option<Millis>,
    losers: Vec<String>,
    bad: Vec<(usize, String)>,
}

impl<'de> DeserializeSeed<'de> for &mut Properties<'_, '_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Properties<'_, '_, '_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("properties")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut nth = 0;
        while let Some(key) = map.next_key::<Key<'de>>()? {
            let column = self.columns.find(nth, &key);
            nth += 1;
            let is_stamp = &*key == self.modified;
            let is_losers = &*key == "hs_merged_object_ids";
            if column.is_none() && !is_stamp && !is_losers {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let text = match column {
                Some(i) => {
                    let field_type = self.columns.field_type(i);
                    let seed = |out: &mut String| map.next_value_seed(ValueSeed(field_type, out));
                    if let Err(text) = self.values.write(i, seed)? {
                        self.bad.push((i, text));
                    }
                    self.values.get(i)
                }
                None => {
                    self.other.clear();
                    // Text reads whatever it is.
                    let _ = map.next_value_seed(ValueSeed(FieldType::Text, &mut self.other))?;
                    Some(self.other.as_str())
                }
            };
            if is_stamp {
                self.modified_at = text.and_then(parse_instant);
            }
            if is_losers && let Some(list) = text {
                let ids = list.split(';').map(str::trim).filter(|id| !id.is_empty());
                self.losers.extend(ids.map(str::to_owned));
            }
        }
        Ok(())
    }
}

/// Parses the `total` of a search.
pub(crate) fn count(response: &HttpResponse) -> Result<u64, RemoteError> {
    #[derive(Deserialize)]
    struct Total {
        total: u64,
    }
    if !(200..300).contains(&response.status) {
        return Err(classify(response));
    }
    serde_json::from_slice::<Total>(&response.body)
        .map(|t| t.total)
        .map_err(|e| not_expected(response, &e))
}

pub(crate) fn token(response: &HttpResponse, now: Millis) -> Result<Token, RemoteError> {
    #[derive(Deserialize)]
    struct Answer {
        access_token: String,
        #[serde(default)]
        refresh_token: Option<String>,
        #[serde(default)]
        expires_in: Option<i64>,
        #[serde(default)]
        hub_id: serde_json::Value,
    }
    if !(200..300).contains(&response.status) {
        return Err(classify(response));
    }
    let advice = "Check login_url; the server there is not HubSpot.";
    let answer: Answer = oauth::answer(response, advice)?;
    Ok(Token {
        access: Secret::new(answer.access_token),
        expires_at: answer
            .expires_in
            .filter(|s| *s > 0)
            .map(|s| now.saturating_add(s.saturating_mul(1_000))),
        instance_url: None,
        tenant: errors::scalar(&answer.hub_id),
        refresh_token: answer.refresh_token.map(Secret::new),
    })
}

fn header<T: std::str::FromStr>(response: &HttpResponse, name: &str) -> Option<T> {
    response.header(name)?.trim().parse().ok()
}

pub(crate) fn limits(response: &HttpResponse) -> LimitHint {
    LimitHint {
        window_max: header(response, "x-hubspot-ratelimit-max"),
        window_remaining: header(response, "x-hubspot-ratelimit-remaining"),
        window_ms: header(response, "x-hubspot-ratelimit-interval-milliseconds"),
        daily_max: header(response, "x-hubspot-ratelimit-daily"),
        daily_remaining: header(response, "x-hubspot-ratelimit-daily-remaining"),
    }
}

pub(crate) fn time_zone(response: &HttpResponse) -> Result<Option<String>, RemoteError> {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Account {
        time_zone: Option<String>,
    }
    if !(200..300).contains(&response.status) {
        return Err(classify(response));
    }
    serde_json::from_slice::<Account>(&response.body)
        .map(|a| a.time_zone)
        .map_err(|e| not_expected(response, &e))
}

/// What the account's details say besides.
pub(crate) fn account(response: &HttpResponse) -> Account {
    Account {
        time_zone: time_zone(response).ok().flatten(),
        ..Account::default()
    }
}

pub(crate) fn probed(response: &HttpResponse) -> Result<Vec<(String, String)>, RemoteError> {
    if !(200..300).contains(&response.status) {
        return Err(classify(response));
    }
    let json: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&response.body).map_err(|e| not_expected(response, &e))?;
    let known = [
        ("portalId", "portal id"),
        ("accountType", "account type"),
        ("timeZone", "time zone"),
        ("companyCurrency", "currency"),
        ("uiDomain", "user interface"),
        ("dataHostingLocation", "data hosting location"),
    ];
    let mut found: Vec<(String, String)> = known
        .iter()
        .filter_map(|(key, what)| {
            let text = errors::scalar(json.get(*key)?)?;
            Some(((*what).to_owned(), table::clean(&text, 100)))
        })
        .collect();
    if found.is_empty() {
        return Err(classify(response));
    }
    let hint = limits(response);
    if let (Some(max), Some(ms)) = (hint.window_max, hint.window_ms) {
        found.push(("call limit".into(), format!("{max} per {} s", ms / 1_000)));
    }
    if let (Some(left), Some(max)) = (hint.daily_remaining, hint.daily_max) {
        found.push(("calls left today".into(), format!("{left} of {max}")));
    }
    Ok(found)
}

/// Canonical text of a property value, as an error of this CRM's data.
pub(crate) fn canonical(field_type: FieldType, raw: &str) -> Result<Value, RemoteError> {
    value::canonical(field_type, raw).map_err(|e| {
        let rule = Rule::new(
            0,
            "",
            ErrorClass::FixData,
            "Correct the value in HubSpot, or refresh the catalog if the property's type has changed.",
        );
        table::error(&rule, 0, "unreadable_value", &e.to_string())
    })
}
