//! Streams of single objects: which the CRM has, and which it refused.

use super::spi::{self, Result};
use super::streams::{self, StreamRow};

/// What is noted of an object that the catalog shows without change events.
const NONE: &str = "the CRM has no change events of this object";

/// The row of an object's stream if one is to be opened; `None` where the object
/// is polled, because there is none or it was refused less than a day ago.
pub(crate) fn to_open(server: &str, kind: &str, object: &str) -> Result<Option<StreamRow>> {
    let Some(row) = streams::stream(server, kind, object)? else {
        return Ok(None);
    };
    let standing = spi::write_rows(
        "SELECT coalesce(o.streamable, true), coalesce(s.refused_at > now() - interval '1 day', false) FROM crm.stream s \
         LEFT JOIN crm.remote_object o ON o.server = s.server AND o.object = s.object WHERE s.id = $1",
        &[row.id.into()],
        |found| {
            Ok((
                found.get::<bool>(1)?.unwrap_or(true),
                found.get::<bool>(2)?.unwrap_or_default(),
            ))
        },
    )?;
    let (there, refused) = standing.first().copied().unwrap_or((true, false));
    if !there {
        refuse(row.id, NONE)?;
    }
    Ok((there && !refused).then_some(row))
}

/// Notes that the CRM does not stream this object's changes. That is no trouble,
/// and none of before is shown any more.
pub(crate) fn refuse(id: i32, why: &str) -> Result<usize> {
    spi::write(
        "UPDATE crm.stream SET state = 'polls', refused = $2, refused_at = now(), last_error = NULL, last_error_at = NULL \
         WHERE id = $1",
        &[id.into(), why.into()],
    )
}

/// Lets the refused streams of a server, or of one of its objects, be asked for again.
pub(crate) fn ask_again(server: &str, object: Option<&str>) -> Result<usize> {
    spi::write(
        "UPDATE crm.stream SET state = 'new', refused = NULL, refused_at = NULL WHERE server = $1 AND refused IS NOT NULL \
         AND ($2 IS NULL OR object = $2)",
        &[server.into(), object.into()],
    )
}

/// Whether a stream of this object's changes has ever brought one.
pub(crate) fn has_brought(server: &str, object: &str) -> Result<bool> {
    let rows = spi::write_rows(
        "SELECT EXISTS (SELECT FROM crm.stream WHERE server = $1 AND object = $2 AND kind IN ('pubsub', 'cometd') \
         AND last_event_at IS NOT NULL)",
        &[server.into(), object.into()],
        |row| Ok(row.get::<bool>(1)?.unwrap_or_default()),
    )?;
    Ok(rows.first().copied().unwrap_or_default())
}
