//! Salesforce answers: query pages, collection reads, counts, limits.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::connectors::rows::{Columns, Key, ValueSeed, parse};
use crate::connectors::table::{self, Rule};
use crate::connectors::{Account, LimitHint};
use crate::http::HttpResponse;
use crate::model::{ErrorClass, FieldType, Page, Record, RemoteError, Value};
use crate::value::{self, parse_instant};

use super::errors::{classify, not_expected};
use super::id18;
use super::request::{QUERY_LIMIT, query_fits};

/// Parses a query page or the array of a collection read.
pub(crate) fn page(
    fields: &[(String, FieldType)],
    response: &HttpResponse,
) -> Result<Page, RemoteError> {
    if !(200..300).contains(&response.status) {
        return Err(classify(response));
    }
    let columns = Columns::new(fields);
    let answer =
        parse(&response.body, AnswerSeed(&columns)).map_err(|e| not_expected(response, &e))?;
    let Some(records) = answer.records else {
        return Err(classify(response));
    };
    // Our queries end at QUERY_LIMIT rows, or earlier when the server shrinks
    // the page: in both cases the last id is where the next one starts.
    let more = answer.done == Some(false) || answer.total.is_some_and(|t| t >= QUERY_LIMIT);
    Ok(Page {
        next: records.last().filter(|_| more).map(|r| r.id.clone()),
        records,
        // A query with a limit counts no further than that.
        total: None,
        missing: Vec::new(),
        merged: Vec::new(),
        ids_only: answer.is_query && !query_fits(fields),
        unreadable: columns.into_unreadable(),
        // A query that names a column which is gone is refused.
        absent: Vec::new(),
    })
}

#[derive(Default)]
struct Answer {
    records: Option<Vec<Record>>,
    done: Option<bool>,
    total: Option<u64>,
    is_query: bool,
}

struct AnswerSeed<'c, 'a>(&'c Columns<'a>);

impl<'de> DeserializeSeed<'de> for AnswerSeed<'_, '_> {
    type Value = Answer;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Answer, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnswerSeed<'_, '_> {
    type Value = Answer;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with records, or a list of records")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Answer, A::Error> {
        let mut answer = Answer {
            is_query: true,
            ..Answer::default()
        };
        while let Some(key) = map.next_key::<Key<'de>>()? {
            match &*key {
                "records" => answer.records = Some(map.next_value_seed(RecordsSeed(self.0))?),
                "done" => answer.done = map.next_value()?,
                "totalSize" => answer.total = map.next_value()?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(answer)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Answer, A::Error> {
        Ok(Answer {
            records: Some(RecordsSeed(self.0).visit_seq(seq)?),
            ..Answer::default()
        })
    }
}

struct RecordsSeed<'c, 'a>(&'c Columns<'a>);

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
        let mut records = Vec::with_capacity(256);
        while let Some(record) = seq.next_element_seed(RecordSeed(self.0))? {
            // A collection read answers null for a record that is not there.
            records.extend(record);
        }
        Ok(records)
    }
}

struct RecordSeed<'c, 'a>(&'c Columns<'a>);

impl<'de> DeserializeSeed<'de> for RecordSeed<'_, '_> {
    type Value = Option<Record>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for RecordSeed<'_, '_> {
    type Value = Option<Record>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a record or null")
    }
    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_map(self)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let columns = self.0;
        let mut record = Record {
            values: columns.cells(),
            ..Record::default()
        };
        let mut bad = Vec::new();
        let mut other = String::new();
        let mut nth = 0;
        while let Some(key) = map.next_key::<Key<'de>>()? {
            let column = columns.find(nth, &key);
            nth += 1;
            let system = matches!(&*key, "Id" | "SystemModstamp" | "IsDeleted");
            if column.is_none() && !system {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let text = match column {
                Some(i) => {
                    let field_type = columns.field_type(i);
                    let seed = |out: &mut String| map.next_value_seed(ValueSeed(field_type, out));
                    if let Err(text) = record.values.write(i, seed)? {
                        bad.push((i, text));
                    }
                    record.values.get(i)
                }
                None => {
                    other.clear();
                    // Text reads whatever it is.
                    let _ = map.next_value_seed(ValueSeed(FieldType::Text, &mut other))?;
                    Some(other.as_str()).filter(|text| !text.is_empty())
                }
            };
            match (&*key, text) {
                ("Id", Some(id)) => record.id = id18(id),
                ("SystemModstamp", Some(at)) => record.modified_at = parse_instant(at),
                ("IsDeleted", Some(flag)) => record.deleted = flag == "true",
                _ => {}
            }
        }
        columns.filled(&record.values);
        if !bad.is_empty() {
            columns.note(&record.id, bad);
        }
        Ok(Some(record))
    }
}

pub(crate) fn time_zone(response: &HttpResponse) -> Result<Option<String>, RemoteError> {
    #[derive(Deserialize)]
    struct Answer {
        records: Vec<Organization>,
    }
    #[derive(Deserialize)]
    struct Organization {
        #[serde(rename = "TimeZoneSidKey")]
        time_zone: Option<String>,
    }
    if !(200..300).contains(&response.status) {
        return Err(classify(response));
    }
    serde_json::from_slice::<Answer>(&response.body)
        .map(|a| a.records.into_iter().find_map(|o| o.time_zone))
        .map_err(|e| not_expected(response, &e))
}

pub(crate) fn count(response: &HttpResponse) -> Result<u64, RemoteError> {
    #[derive(Deserialize)]
    struct Total {
        #[serde(rename = "totalSize")]
        total_size: u64,
    }
    if !(200..300).contains(&response.status) {
        return Err(classify(response));
    }
    serde_json::from_slice::<Total>(&response.body)
        .map(|t| t.total_size)
        .map_err(|e| not_expected(response, &e))
}

/// `Sforce-Limit-Info: api-usage=22/15000`, rolling over 24 hours.
pub(crate) fn limits(response: &HttpResponse) -> LimitHint {
    let usage = response
        .header("sforce-limit-info")
        .into_iter()
        .flat_map(|v| v.split([';', ',']))
        .find_map(|part| part.trim().strip_prefix("api-usage="))
        .and_then(|u| {
            let (used, max) = u.split_once('/')?;
            let used: u64 = used.trim().parse().ok()?;
            let max: u64 = max.trim().parse().ok()?;
            Some((max.saturating_sub(used), max))
        });
    LimitHint {
        daily_max: usage.map(|(_, max)| max),
        daily_remaining: usage.map(|(left, _)| left),
        ..LimitHint::default()
    }
}

/// Most limits of an organisation that are taken over; 71 were seen.
const MAX_LIMITS: usize = 200;

/// The limits of the organisation. One of the known ones is nested; its own numbers count.
pub(crate) fn account(response: &HttpResponse) -> Account {
    let json: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&response.body).unwrap_or_default();
    let limits = json.iter().filter(|(name, _)| name.len() <= 100);
    let limits = limits.filter_map(|(name, limit)| {
        let (max, left) = (limit.get("Max")?, limit.get("Remaining")?);
        // Some may be overdrawn, and then say so with a number below zero.
        let left = left.as_u64().or_else(|| left.as_i64().map(|_| 0))?;
        Some((name.clone(), max.as_u64()?, left))
    });
    Account {
        time_zone: None,
        limits: limits.take(MAX_LIMITS).collect(),
    }
}

pub(crate) fn probed(response: &HttpResponse) -> Result<Vec<(String, String)>, RemoteError> {
    if !(200..300).contains(&response.status) {
        return Err(classify(response));
    }
    let json: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&response.body).map_err(|e| not_expected(response, &e))?;
    let known = [
        ("DailyApiRequests", "API calls left in 24 hours"),
        (
            "DailyDeliveredPlatformEvents",
            "change events left in 24 hours",
        ),
        ("DailyBulkV2QueryJobs", "bulk queries left in 24 hours"),
        ("DataStorageMB", "data storage left, MB"),
    ];
    let found: Vec<(String, String)> = known
        .iter()
        .filter_map(|(key, what)| {
            let limit = json.get(*key)?;
            let left = limit.get("Remaining")?.as_u64()?;
            let max = limit.get("Max")?.as_u64()?;
            Some(((*what).to_owned(), format!("{left} of {max}")))
        })
        .collect();
    if found.is_empty() {
        return Err(classify(response));
    }
    Ok(found)
}

/// Canonical text of a field's value, as an error of this CRM's data.
pub(crate) fn canonical(field_type: FieldType, raw: &str) -> Result<Value, RemoteError> {
    let value = value::canonical(field_type, raw).map_err(|e| {
        let rule = Rule::new(
            0,
            "",
            ErrorClass::FixData,
            "Correct the value in Salesforce, or refresh the catalog if the field's type has changed.",
        );
        table::error(&rule, 0, "unreadable_value", &e.to_string())
    })?;
    Ok(match field_type {
        FieldType::Reference => value.map(|id| id18(&id)),
        _ => value,
    })
}
