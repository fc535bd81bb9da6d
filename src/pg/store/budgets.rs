//! Calls: what was counted and told goes in, what is configured comes out.

use serde::Deserialize;

use super::spi::{self, Result};

/// The budget of a server, as `crm._budgets()` says it; see `crm_core::budget`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct BudgetRow {
    pub(crate) server: String,
    pub(crate) calls_per_window: Option<u32>,
    pub(crate) share: u32,
    pub(crate) calls_per_day: Option<u64>,
    pub(crate) reserve: u32,
    pub(crate) pause_at: u32,
    pub(crate) concurrent: Option<u32>,
    pub(crate) class_per_second: Option<u32>,
    /// From and until, in milliseconds since 1970.
    pub(crate) heavy: Option<Vec<(i64, i64)>>,
    /// Number, share in thousandths, calls of the last 24 hours.
    pub(crate) mirrors: Vec<(i32, u32, u64)>,
    pub(crate) spent: u64,
}

/// The budgets of all servers, as JSON text.
pub(crate) fn all() -> Result<String> {
    Ok(spi::read_text("SELECT crm._budgets()::text")?.unwrap_or_default())
}

/// Adds to this hour's counts.
pub(crate) fn add_counts(counts: &str) -> Result<usize> {
    spi::write("SELECT crm._api_count_add($1::jsonb)", &[counts.into()])
}

/// Takes over what CRMs said of their limits.
pub(crate) fn add_limits(told: &str) -> Result<usize> {
    spi::write("SELECT crm._api_limit_told($1::jsonb)", &[told.into()])
}

/// Puts old hours together to days, and removes old days.
pub(crate) fn fold() -> Result<usize> {
    spi::write("SELECT crm._api_count_fold()", &[])
}

/// Notes the time zone that a CRM told for its account.
pub(crate) fn store_time_zone(server: &str, zone: &str) -> Result<usize> {
    spi::write(
        "UPDATE crm.server_state SET time_zone = $2 WHERE server = $1 AND time_zone IS DISTINCT FROM $2 \
         AND EXISTS (SELECT FROM pg_catalog.pg_timezone_names n WHERE n.name = $2)",
        &[server.into(), zone.into()],
    )
}
