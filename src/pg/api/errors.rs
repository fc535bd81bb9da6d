//! The tables of errors, as rows.

use crm_core::connectors::{self, ErrorRule};
use crm_core::transport;
use pgrx::prelude::*;

/// What the worker goes by, in its order: within a CRM the first line that fits
/// decides. CRM (`any` for the way there), status (`429`, `5xx`, null for any),
/// code (null for any), class and what it means, least wait in seconds, may a
/// write have landed, advice.
#[expect(
    clippy::type_complexity,
    reason = "pgrx reads the columns from the signature"
)]
#[pg_extern(name = "_error_rules", immutable, parallel_safe)]
fn error_rules() -> TableIterator<
    'static,
    (
        name!(crm, &'static str),
        name!(status, Option<String>),
        name!(code, Option<&'static str>),
        name!(class, &'static str),
        name!(meaning, &'static str),
        name!(wait, Option<f64>),
        name!(maybe_applied, bool),
        name!(advice, &'static str),
    ),
> {
    let crms = connectors::TYPES.into_iter().filter_map(|name| {
        let connector = connectors::by_type(name)?;
        Some((name, connector.errors()))
    });
    let all = crms.chain([("any", transport::RULES)]);
    TableIterator::new(all.flat_map(|(crm, rules)| {
        rules.iter().map(move |rule| {
            (
                crm,
                status(rule),
                Some(rule.code).filter(|c| !c.is_empty()),
                rule.class.name(),
                rule.class.meaning(),
                wait(rule),
                rule.maybe_applied,
                rule.advice,
            )
        })
    }))
}

fn status(rule: &ErrorRule) -> Option<String> {
    match rule.status {
        0 => None,
        hundred @ 1..10 => Some(format!("{hundred}xx")),
        status => Some(status.to_string()),
    }
}

#[expect(clippy::cast_precision_loss, reason = "waits are minutes")]
fn wait(rule: &ErrorRule) -> Option<f64> {
    rule.wait_ms.map(|ms| ms as f64 / 1_000.0)
}
