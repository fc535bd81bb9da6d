//! SPI as the engine uses it: plans kept, values owned, errors as values.

use std::cell::RefCell;
use std::collections::HashMap;

use pgrx::datum::DatumWithOid;
use pgrx::spi::{OwnedPreparedStatement, Spi, SpiClient};

use super::cells::{self, Cells};

/// An SPI status or conversion error. SQL errors are caught around the
/// transaction, see [`crate::pg::tx`].
pub(crate) type Result<T> = std::result::Result<T, pgrx::spi::Error>;

/// One argument of a statement.
pub(crate) type Arg<'a> = DatumWithOid<'a>;

/// Most plans kept; past it all are dropped, since statements on mirrors
/// change with their columns.
const PLANS: usize = 400;

thread_local! {
    static KEPT: RefCell<HashMap<String, OwnedPreparedStatement>> = RefCell::new(HashMap::new());
    /// Plans of statements that only read.
    static READING: RefCell<HashMap<String, OwnedPreparedStatement>> = RefCell::new(HashMap::new());
}

/// Drops every kept plan; for when the configuration changed.
pub(crate) fn forget_plans() {
    KEPT.with_borrow_mut(HashMap::clear);
}

fn kept<T>(
    client: &mut SpiClient<'_>,
    sql: &str,
    args: &[Arg<'_>],
    run: impl FnOnce(&mut SpiClient<'_>, &OwnedPreparedStatement) -> Result<T>,
) -> Result<T> {
    let plan = KEPT.with_borrow_mut(|plans| plans.remove(sql));
    let plan = match plan {
        Some(plan) => plan,
        None => {
            let types: Vec<_> = args.iter().map(|a| pgrx::PgOid::from(a.oid())).collect();
            client.prepare_mut(sql, &types)?.keep()
        }
    };
    let result = run(client, &plan);
    KEPT.with_borrow_mut(|plans| {
        if plans.len() >= PLANS {
            plans.clear();
        }
        plans.insert(sql.to_owned(), plan);
    });
    result
}

/// Runs a statement that writes (or must see what this transaction's earlier
/// statements and other sessions' commits wrote) and maps its rows.
pub(crate) fn write_rows<T>(
    sql: &str,
    args: &[Arg<'_>],
    map: impl FnMut(&Cells) -> Result<T>,
) -> Result<Vec<T>> {
    Spi::connect_mut(|client| {
        kept(client, sql, args, |client, plan| {
            client.update(plan, None, args)?;
            cells::map(map)
        })
    })
}

/// Runs a statement that writes; the number of rows it touched.
pub(crate) fn write(sql: &str, args: &[Arg<'_>]) -> Result<usize> {
    Spi::connect_mut(|client| {
        kept(client, sql, args, |client, plan| {
            Ok(client.update(plan, None, args)?.len())
        })
    })
}

/// Runs a statement that only reads, without taking a transaction id, and maps
/// its rows.
pub(crate) fn read_rows<T>(
    sql: &str,
    args: &[Arg<'_>],
    map: impl FnMut(&Cells) -> Result<T>,
) -> Result<Vec<T>> {
    Spi::connect(|client| {
        let plan = READING.with_borrow_mut(|plans| plans.remove(sql));
        let plan = match plan {
            Some(plan) => plan,
            None => {
                let types: Vec<_> = args.iter().map(|a| pgrx::PgOid::from(a.oid())).collect();
                client.prepare(sql, &types)?.keep()
            }
        };
        client.select(&plan, None, args)?;
        let out = cells::map(map)?;
        READING.with_borrow_mut(|plans| {
            if plans.len() >= PLANS {
                plans.clear();
            }
            plans.insert(sql.to_owned(), plan);
        });
        Ok(out)
    })
}

/// Reads without taking a transaction id; sees the transaction's first snapshot.
pub(crate) fn read_text(sql: &str) -> Result<Option<String>> {
    Spi::connect(|client| {
        let table = client.select(sql, Some(1), &[])?;
        if table.is_empty() {
            return Ok(None);
        }
        table.first().get_one::<String>()
    })
}

/// Runs a statement that writes and returns the text of its first row and column.
pub(crate) fn write_text(sql: &str, args: &[Arg<'_>]) -> Result<Option<String>> {
    let rows = write_rows(sql, args, |row| row.get::<String>(1))?;
    Ok(rows.into_iter().next().flatten())
}
