//! Replays: events of the ledger are observed again, in their order and by the
//! present policy, as if their CRM had delivered them late.
//!
//! A value that something later was decided about, on any side, is overtaken and
//! left out; a record without row is read. So a replay can be run twice.

use std::rc::Rc;

use crm_core::decide::{Decision, Observed, Step};
use crm_core::model::{Change, ChangeKind, Millis};

use crate::pg::store::config;
use crate::pg::store::replays::{self, Counts, Replayed, Run};
use crate::pg::store::streams::{self, Poison};
use crate::pg::tx::{self, SqlError};
use crate::worker::cases::Case;
use crate::worker::engine::{self, Engine};
use crate::worker::ingest::{self, Inbound};
use crate::worker::world::World;

/// The source of what a replay changes, in `crm.event`.
pub(crate) const SOURCE: &str = "replay";
/// Events decided in one transaction.
pub(crate) const BATCH: i32 = 500;
/// Numbers looked through for them.
const WINDOW: i64 = 20_000;

impl Engine {
    /// Takes the next batch of a replay; whether there may be more.
    pub(crate) fn replay(&mut self, now: Millis) -> engine::Step<bool> {
        let Some(run) = tx::in_transaction(|| Ok(replays::running()?))? else {
            self.may_replay = false;
            return Ok(false);
        };
        let (world, limit) = (&self.world, self.replay_limit);
        match tx::in_transaction(|| Ok(batch(world, &run, limit, now)?)) {
            Ok(_) => {
                self.replay_limit = (limit * 2).min(BATCH);
            }
            Err(error) if config::is_passing(&error) => return Err(error),
            Err(error) => {
                if limit == 1 {
                    tx::in_transaction(|| Ok(park(world, &run, &error)?))?;
                }
                self.replay_limit = (limit / 8).max(1);
            }
        }
        self.may_send = true;
        Ok(true)
    }
}

fn batch(
    world: &World,
    run: &Run,
    limit: i32,
    now: Millis,
) -> crate::pg::store::spi::Result<Counts> {
    let end = run.to_seq.min(run.next_seq.saturating_add(WINDOW - 1));
    let events = replays::batch(run, end, limit)?;
    let full = i64::try_from(events.len()).unwrap_or_default() >= i64::from(limit);
    let next = match events.last() {
        Some(last) if full => last.seq + 1,
        _ => end + 1,
    };
    let mut counts = Counts {
        events: i64::try_from(events.len()).unwrap_or_default(),
        ..Counts::default()
    };
    let mut inbound = Vec::with_capacity(events.len());
    for event in events {
        match again(world, &event) {
            Some(change) => inbound.push(Inbound {
                waited: None,
                mirror: event.mirror,
                source: SOURCE,
                stream: Some(run.stream),
                change: Rc::new(change),
                identity: None,
            }),
            None => counts.unchanged += 1,
        }
    }
    let applied = ingest::apply(world, inbound, now)?;
    counts.unchanged += i64::try_from(applied.unchanged).unwrap_or_default();
    counts.put_off = i64::try_from(applied.locked + applied.to_read).unwrap_or_default();
    replays::advance(run, next, counts)?;
    Ok(counts)
}

/// Replayed events without consequence, and those whose record is read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) unchanged: usize,
    pub(crate) too_late: usize,
}

/// What came of an event that was observed again.
pub(crate) enum Heard {
    /// A row or the outbox changed.
    Changed(Vec<Decision>),
    /// All is as it was.
    Nothing,
    /// Older than any order is known for: the record is read.
    TooLate,
}

/// Lets an event be decided as if its side had not shown the value before.
pub(crate) fn observe(world: &World, case: &mut Case, observed: &Observed, now: Millis) -> Heard {
    for (field, value, _) in &observed.values {
        if let Some(state) = case.entity.fields.get_mut(field) {
            let side = &mut state.sides[observed.side];
            side.seen
                .take_if(|(seen, clock)| seen == value && clock.at.overlaps(observed.at));
        }
    }
    let before = (case.cells.clone(), case.writes.clone(), case.cancels.len());
    let decisions = case.observe(world, observed, now);
    let after = (&case.cells, &case.writes, case.cancels.len());
    if (&before.0, &before.1, before.2) != after {
        Heard::Changed(decisions)
    } else if decisions.iter().any(|d| d.step == Step::TooLate) {
        Heard::TooLate
    } else {
        Heard::Nothing
    }
}

/// The event as its CRM would tell it now; none if nothing is left to tell.
fn again(world: &World, event: &Replayed) -> Option<Change> {
    let server = &world.mirrors.get(&event.mirror)?.server;
    let connector = world.connectors.get(server);
    let kind = match event.kind.as_str() {
        _ if event.record_id.is_empty() => return None,
        "create" | "update" if !event.fields.is_empty() => ChangeKind::Update,
        // A page that brought a new record: its values were not listed.
        "create" if event.carried == 0 => ChangeKind::Reread,
        // Whether the record is there says the CRM.
        "delete" | "restore" => ChangeKind::Reread,
        _ => return None,
    };
    Some(Change {
        object: String::new(),
        record_id: event.record_id.clone(),
        kind,
        fields: event.fields.clone(),
        reread: Vec::new(),
        occurred_at: event.occurred_at,
        identity: String::new(),
        actor: event.actor.clone(),
        mark: event.application.clone(),
        by_others: connector.is_some_and(|c| c.names_writer(&event.application)),
        transaction: None,
    })
}

/// Parks the event that comes next: the database refuses it.
fn park(world: &World, run: &Run, error: &SqlError) -> crate::pg::store::spi::Result<()> {
    let end = run.to_seq.min(run.next_seq.saturating_add(WINDOW - 1));
    let Some(event) = replays::batch(run, end, 1)?.into_iter().next() else {
        return Ok(());
    };
    streams::park(&Poison {
        mirror: Some(event.mirror),
        server: world
            .mirrors
            .get(&event.mirror)
            .map_or("", |m| m.server.as_str()),
        source: SOURCE,
        record_id: &event.record_id,
        change: Some(serde_json::json!({"replayed": event.seq}).to_string()),
        sqlstate: &error.sqlstate,
        error: &error.message,
        advice: "Mend what the error names (a CHECK, a trigger, a column type), then call crm.dead_letter_retry.",
    })?;
    let counts = Counts {
        events: 1,
        failed: 1,
        ..Counts::default()
    };
    replays::advance(run, event.seq + 1, counts)?;
    Ok(())
}
