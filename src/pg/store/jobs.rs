//! Writes that a bulk job carries.

use super::spi::{self, Result};
use super::writes::{COLUMNS, WriteRow, row};
use crate::pg::wal;

/// How many writes of a mirror are ready to be sent, counted no further than `most`.
pub(crate) fn waiting(mirror: i32, most: u64) -> Result<u64> {
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let rows = spi::read_rows(
        "SELECT count(*) FROM (SELECT FROM crm.write WHERE mirror = $1 AND state = 'queued' \
           AND (not_before IS NULL OR not_before <= now()) LIMIT $2) w",
        &[mirror.into(), most.into()],
        |row| Ok(row.get::<i64>(1)?.unwrap_or_default()),
    )?;
    Ok(rows.first().map_or(0, |n| n.unsigned_abs()))
}

/// Notes the job that carries these writes: must be on disk before the job may begin.
pub(crate) fn carry(ids: Vec<i64>, job: &str) -> Result<usize> {
    wal::await_disk();
    spi::write(
        "UPDATE crm.write SET job = $2 WHERE id = ANY($1)",
        &[ids.into(), job.into()],
    )
}

/// Writes in flight that jobs carry, with their jobs.
pub(crate) fn carried() -> Result<Vec<(String, WriteRow)>> {
    let sql = format!(
        "SELECT {COLUMNS}, w.job FROM crm.write w WHERE w.state = 'in_flight' AND w.job IS NOT NULL ORDER BY w.id"
    );
    spi::write_rows(&sql, &[], |r| Ok((r.get(12)?.unwrap_or_default(), row(r)?)))
}
