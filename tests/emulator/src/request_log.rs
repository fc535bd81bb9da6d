//! What the CRMs were asked: counts for ever, the last requests in full.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use serde_json::{Value, json};

use crate::shared::Side;

/// Requests kept in full.
const KEPT: usize = 1_000;

/// One finished request.
pub(crate) struct Entry {
    pub(crate) side: Side,
    pub(crate) at_ms: i64,
    pub(crate) method: String,
    /// Path and query as received.
    pub(crate) path: String,
    /// Path with placeholders, such as `/crm/v3/objects/{type}/{id}`; the path itself if none fits.
    pub(crate) route: String,
    pub(crate) status: u16,
    /// Bytes of the request body, when the client declared them.
    pub(crate) request_bytes: Option<u64>,
    /// Bytes of the answer, when known before sending.
    pub(crate) answer_bytes: Option<u64>,
    /// Selected request headers.
    pub(crate) headers: Vec<(&'static str, String)>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    last: VecDeque<(u64, Entry)>,
    counts: BTreeMap<(Side, String, String, u16), u64>,
}

/// Bounded log; the counts have one row per route, method and status.
pub(crate) struct RequestLog {
    inner: Mutex<Inner>,
    echo: bool,
}

impl RequestLog {
    /// `echo` also prints each request on stderr.
    pub(crate) fn new(echo: bool) -> RequestLog {
        RequestLog {
            inner: Mutex::default(),
            echo,
        }
    }

    pub(crate) fn add(&self, entry: Entry) {
        if self.echo {
            eprintln!(
                "{} {} {} {}",
                entry.side.name(),
                entry.status,
                entry.method,
                entry.path
            );
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (
            entry.side,
            entry.method.clone(),
            entry.route.clone(),
            entry.status,
        );
        *inner.counts.entry(key).or_insert(0) += 1;
        let number = inner.next;
        inner.next += 1;
        if inner.last.len() == KEPT {
            inner.last.pop_front();
        }
        inner.last.push_back((number, entry));
    }

    /// The kept requests from number `since` on, and the number to ask from next time.
    pub(crate) fn since(&self, since: u64) -> Value {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let requests: Vec<Value> = inner
            .last
            .iter()
            .filter(|(number, _)| *number >= since)
            .map(|(number, e)| {
                let headers: serde_json::Map<String, Value> = e
                    .headers
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), json!(v)))
                    .collect();
                json!({"n": number, "crm": e.side.name(), "at_ms": e.at_ms, "method": e.method,
                    "path": e.path, "route": e.route, "status": e.status,
                    "request_bytes": e.request_bytes, "answer_bytes": e.answer_bytes,
                    "headers": headers})
            })
            .collect();
        json!({"next": inner.next, "requests": requests})
    }

    /// All counts, with totals per CRM.
    pub(crate) fn counts(&self) -> Value {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut totals = [0_u64, 0];
        let rows: Vec<Value> = inner
            .counts
            .iter()
            .map(|((side, method, route, status), count)| {
                totals[usize::from(*side == Side::Salesforce)] += count;
                json!({"crm": side.name(), "method": method, "route": route,
                    "status": status, "count": count})
            })
            .collect();
        json!({"hubspot": totals[0], "salesforce": totals[1], "counts": rows})
    }

    /// Starts counting from nothing; numbering goes on.
    pub(crate) fn reset(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.counts.clear();
        inner.last.clear();
    }
}
