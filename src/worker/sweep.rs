//! A change of a link's scope, carried out over the rows that there are: some
//! thousands are looked at per transaction, and of those that leave or enter
//! some hundreds treated as if an edit had made them.

use std::collections::HashSet;

use crm_core::model::Millis;

use crate::pg::store::changes;
use crate::pg::store::ledger::EventRow;
use crate::pg::store::scopes::{self, SweepRow};
use crate::pg::store::spi::Result;
use crate::worker::cases;
use crate::worker::creates::{self, Cause};
use crate::worker::flush;
use crate::worker::repolicy::Turn;
use crate::worker::scope::{self, End};
use crate::worker::world::{GroupInfo, Mirror, World};

/// Rows looked at per transaction.
const WINDOW: i64 = 20_000;
/// Rows that leave or enter per transaction.
const BATCH: i64 = 500;

/// A sweep with the side of the link that it goes over.
struct Sweep<'w> {
    world: &'w World,
    info: &'w GroupInfo,
    mirror: &'w Mirror,
    end: End,
    cause: Cause,
    now: Millis,
}

/// Carries on with the first sweep, in the transaction of the caller.
pub(crate) fn step(world: &World, now: Millis) -> Result<Turn> {
    let Some(mut row) = scopes::first_sweep()? else {
        return Ok(Turn::Idle);
    };
    let group = world.groups.iter().find_map(|g| {
        let link = g.links.iter().position(|l| l.name == row.link)?;
        Some((g, link))
    });
    let Some((info, place)) = group else {
        return Ok(Turn::Locked);
    };
    let link = &info.links[place];
    let (id, scope) = match row.right {
        true => (link.right_mirror, &link.right_scope),
        false => (link.left_mirror, &link.left_scope),
    };
    // Decided under what the worker has read: the change itself is on its way.
    let Some(mirror) = world.mirrors.get(&id).filter(|_| *scope == row.now) else {
        return Ok(Turn::Locked);
    };
    if row.rejected || link.mode != "live" {
        note(world, mirror, &row)?;
        scopes::finish(row.id)?;
        return Ok(Turn::More);
    }
    let sweep = Sweep {
        world,
        info,
        mirror,
        end: End {
            link: place,
            side: mirror.side,
        },
        cause: Cause {
            origin: "local".to_owned(),
            txs: row.tx.into_iter().collect(),
            held: row.held,
        },
        now,
    };
    sweep.batch(&mut row)
}

/// The sweep's line in the ledger, once it is over.
fn note(world: &World, mirror: &Mirror, row: &SweepRow) -> Result<()> {
    let field = if row.right {
        "right_scope"
    } else {
        "left_scope"
    };
    let decision = serde_json::json!([{
        "step": if row.rejected { "rejected" } else { "scope" },
        "looked_at": row.looked_at, "left_out": row.left_out, "let_in": row.let_in,
    }]);
    let event = EventRow {
        mirror: mirror.id,
        kind: "policy",
        origin: "local".to_owned(),
        source: "sql".to_owned(),
        occurred_at: row.asked_at,
        actor: Some(row.asked_by.clone()),
        reason: row.reason.clone(),
        fields: vec![format!("{}.{field}", row.link)],
        old_values: vec![row.before.clone()],
        new_values: vec![row.now.clone()],
        decision: Some(decision.to_string()),
        ..EventRow::default()
    };
    flush::append(world, vec![event])
}

impl Sweep<'_> {
    fn batch(&self, row: &mut SweepRow) -> Result<Turn> {
        let conditions = [&row.before, &row.now].map(|c| c.as_deref().unwrap_or("true"));
        let table = &self.mirror.table;
        let found = scopes::stretch(
            table,
            (conditions[0], conditions[1]),
            row.cursor,
            (WINDOW, BATCH),
        )?;
        if found.rows == 0 {
            note(self.world, self.mirror, row)?;
            scopes::finish(row.id)?;
            return Ok(Turn::More);
        }
        let full = i64::try_from(found.differ.len()).unwrap_or(BATCH) >= BATCH;
        let end = match found.differ.last() {
            Some(last) if full => *last,
            _ => found.last,
        };
        let (missing, leaving, entering) = self.carry_out(&conditions, found.differ)?;
        let until = missing.map_or(end, |first| first - 1);
        // Ids run on without many gaps: near enough for a figure of progress.
        row.looked_at += if until == found.last {
            found.rows
        } else {
            (until - row.cursor).clamp(0, found.rows)
        };
        row.cursor = until;
        row.left_out += leaving;
        row.let_in += entering;
        scopes::advance(row)?;
        Ok(match missing {
            Some(_) if leaving + entering == 0 => Turn::Locked,
            _ => Turn::More,
        })
    }

    /// Treats rows that differ, up to the first that somebody holds: that one,
    /// and how many left and entered.
    fn carry_out(&self, conditions: &[&str], rows: Vec<i64>) -> Result<(Option<i64>, i64, i64)> {
        if rows.is_empty() {
            return Ok((None, 0, 0));
        }
        let all: Vec<usize> = (0..self.mirror.columns.len()).collect();
        let locked = cases::lock(self.mirror, &all, rows.clone())?;
        let waiting: HashSet<i64> = changes::undrained(self.mirror.id, rows.clone())?
            .into_iter()
            .collect();
        let locked = locked
            .into_iter()
            .filter(|r| !waiting.contains(&r.row_id))
            .collect();
        let (loaded, _) =
            cases::load_drained(self.world, self.mirror, &all, locked, &HashSet::new())?;
        let side = self.mirror.side;
        let of = |c: &cases::Case| c.rows[side].as_ref().map(|r| r.row_id);
        let done: HashSet<i64> = loaded.iter().filter_map(of).collect();
        let gone = crate::pg::store::rows::present_rows(&self.mirror.table, rows.clone())?;
        let missing = gone.into_iter().filter(|r| !done.contains(r)).min();
        // As they are now that nobody else can change them.
        let none = vec![None; rows.len()];
        let told = scopes::holds(&self.mirror.table, conditions, rows, none)?;
        let converted = scope::converted(self.info, &loaded)?;
        let stays = |c: &cases::Case| {
            let sides = c.entity_id.and_then(|e| converted.get(&e));
            sides.is_some_and(|s| scope::is_settled(self.info, self.end, s))
        };
        let (mut leaving, mut entering) = (0, Vec::new());
        for case in loaded.iter().filter(|c| !stays(c)) {
            let Some(row) = of(case).filter(|r| missing.is_none_or(|m| *r < m)) else {
                continue;
            };
            match told.get(&row).map(Vec::as_slice) {
                Some([Some(true), Some(false)]) => {
                    scope::leave(self.world, self.info, self.end, &case.rows, &self.cause)?;
                    leaving += 1;
                }
                Some([None | Some(false), Some(true)]) => entering.push(row),
                _ => {}
            }
        }
        let entered = i64::try_from(entering.len()).unwrap_or(i64::MAX);
        let link = &self.info.links[self.end.link];
        creates::spread_link(
            self.world,
            link,
            self.mirror,
            entering,
            &self.cause,
            self.now,
        )?;
        Ok((missing, leaving, entered))
    }
}
