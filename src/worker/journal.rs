//! A CRM's journal: the next place is asked for, its file fetched, and what it
//! says applied in one transaction with the offset. What the journal cannot tell
//! (an offset too old, a file that cannot be read, entries that name no record)
//! is found by polls from the last time that is sure.

mod many;

use std::rc::Rc;

use crm_core::catalog::CheckRow;
use crm_core::connectors::journal::{Journal, Place};
use crm_core::http::{HttpRequest, HttpResponse};
use crm_core::model::{ErrorClass, Millis, RemoteError};
use crm_io::Tag;

use crate::pg::store::streams::{self, Advance};
use crate::pg::tx;
use crate::worker::engine::{Engine, Job, Step};
use crate::worker::inbound::{self, Arrival};
use crate::worker::schedule;
use crate::worker::session::Session;

use many::Ahead;

/// Source of its events, and kind of its row in `crm.stream`.
pub(crate) const SOURCE: &str = "journal";
/// Between looks at a journal that has nothing new.
const LOOK_MS: Millis = 1_000;
/// How often it is stored that nothing was new.
const NOTE_MS: Millis = 60_000;
/// First and longest pause after trouble.
const TROUBLE_MS: (Millis, Millis) = (1_000, 60_000);
/// How often a file that cannot be read is asked for.
const TRIES: u32 = 3;
/// How far polls look back before the last time that is sure: events reach the
/// journal late.
const MARGIN_MS: Millis = 600_000;
/// Changes applied in one transaction.
const PORTION: usize = 1_000;
/// An offset is given up so long before the CRM forgets it.
const EXPIRY_MARGIN_MS: Millis = 3_600_000;

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    Next,
    /// Several places at once.
    Many,
    /// Whether anything is newer, after a refusal of the offset.
    Latest,
    File(Place),
}

/// A journal that is being read.
pub(crate) struct Reading {
    /// Row of `crm.stream`.
    row: i32,
    offset: Option<String>,
    /// Up to here nothing was missed.
    sure_at: Option<Millis>,
    asked: Asked,
    at: Millis,
    busy: bool,
    /// The offset was refused, with this status.
    refused: Option<u16>,
    /// Failures since something went well.
    failures: u32,
    /// The last trouble, as it was noted.
    trouble: Option<String>,
    noted_at: Millis,
    /// Places that are known beyond the next.
    ahead: Ahead,
}

/// The journal's own number at the I/O thread: it has a token and a budget of its own.
pub(crate) fn io_id(server: u32) -> u32 {
    server ^ (1 << 31)
}

impl Reading {
    fn later(&mut self, now: Millis, least: Millis) {
        let wait = (TROUBLE_MS.0 << self.failures.min(10)).min(TROUBLE_MS.1);
        self.failures = self.failures.saturating_add(1);
        self.at = now + wait.max(least);
        self.asked = Asked::Next;
        self.ahead.forget();
    }

    /// What `crm.server_check` says of it.
    pub(crate) fn check(&self) -> CheckRow {
        let place = match &self.offset {
            Some(offset) => format!("read up to offset {offset}"),
            None => "nothing read yet".to_owned(),
        };
        match &self.trouble {
            Some(trouble) => CheckRow::new(
                SOURCE,
                Some(false),
                format!("{place}; {trouble}"),
                Some("See the section on the journal in docs/hubspot.md; polls go on meanwhile."),
            ),
            None => CheckRow::new(SOURCE, Some(true), place, None),
        }
    }
}

fn journal_of(engine: &Engine, id: u32) -> Option<&'static dyn Journal> {
    engine.server_by_id(id)?.connector.journal()
}

impl Engine {
    /// Looks at the journals that are due; the time when the next is.
    pub(super) fn read_journals(&mut self, now: Millis) -> Step<Millis> {
        let servers: Vec<(u32, String)> = (self.servers.iter())
            .filter(|s| s.journal.is_some())
            .map(|s| (s.id, s.name.clone()))
            .collect();
        self.journals
            .retain(|id, _| servers.iter().any(|(known, _)| known == id));
        let mut next = Millis::MAX;
        for (id, name) in servers {
            if self.server(&name).is_none() {
                continue;
            }
            if !self.journals.contains_key(&id) {
                self.open_journal(id, &name, now)?;
            }
            // Some CRMs would go on from their earliest without a word.
            let keeps = journal_of(self, id).map_or(0, Journal::keeps_ms);
            let old = |at: Millis| now - at > keeps - EXPIRY_MARGIN_MS;
            let reading = self.journals.get(&id).filter(|r| !r.busy);
            if reading.and_then(|r| r.sure_at).is_some_and(old) {
                self.journal_expired(id, now)?;
            }
            next = next.min(self.look_into(id, now));
        }
        Ok(next)
    }

    fn open_journal(&mut self, id: u32, name: &str, now: Millis) -> Step<()> {
        let Some(row) = tx::in_transaction(|| Ok(streams::stream(name, SOURCE, "")?))? else {
            return Ok(());
        };
        let offset = row.replay_id.and_then(|o| String::from_utf8(o).ok());
        let reading = Reading {
            row: row.id,
            offset,
            sure_at: row.modified_at,
            asked: Asked::Next,
            at: now,
            busy: false,
            refused: None,
            failures: 0,
            trouble: None,
            noted_at: 0,
            ahead: Ahead::default(),
        };
        self.journals.insert(id, reading);
        Ok(())
    }

    fn look_into(&mut self, id: u32, now: Millis) -> Millis {
        let Some(reading) = self.journals.get(&id).filter(|r| !r.busy) else {
            return Millis::MAX;
        };
        if now < reading.at {
            return reading.at;
        }
        let Some(server) = self.server_by_id(id) else {
            return Millis::MAX;
        };
        let (Some(journal), config) = (server.connector.journal(), &server.config) else {
            return Millis::MAX;
        };
        let request: HttpRequest = match &reading.asked {
            Asked::Next => journal.next(config, reading.offset.as_deref()),
            Asked::Many => many::request(journal, config, reading.offset.as_deref()),
            Asked::Latest => journal.latest(config),
            Asked::File(place) => journal.file(place),
        };
        let sent = self.call(
            io_id(id),
            Tag::default(),
            request,
            Job::Journal { server: id },
        );
        if let Some(reading) = self.journals.get_mut(&id) {
            reading.busy = sent;
            reading.at = now + if sent { 0 } else { LOOK_MS };
        }
        if sent { Millis::MAX } else { now + LOOK_MS }
    }

    /// Makes polls look again from the last time that is sure.
    fn poll_from_sure(&mut self, id: u32, now: Millis) -> Step<()> {
        let since = self.journals.get(&id).and_then(|r| r.sure_at);
        let (Some(since), Some(server)) = (since, self.server_by_id(id)) else {
            // Never read anything: the first copies have it all.
            return Ok(());
        };
        let name = server.name.clone();
        let mirrors: Vec<(i32, String)> = (self.world.mirrors.values())
            .filter(|m| m.server == name)
            .map(|m| (m.id, m.object.clone()))
            .collect();
        tx::in_transaction(|| {
            for (_, object) in &mirrors {
                streams::poll_again(&name, object, since - MARGIN_MS)?;
            }
            Ok(())
        })?;
        for (mirror, _) in mirrors {
            let watch = self.watch(mirror);
            watch.poll_at = now;
            // Removals are asked for with the poll after it.
            watch.polls = schedule::REMOVED_EVERY.saturating_sub(2);
        }
        Ok(())
    }

    /// The journal does not know its place any more: it is read from its earliest,
    /// and polls find what it has forgotten.
    fn journal_expired(&mut self, id: u32, now: Millis) -> Step<()> {
        self.poll_from_sure(id, now)?;
        let Some(reading) = self.journals.get_mut(&id) else {
            return Ok(());
        };
        let row = reading.row;
        tx::in_transaction(|| {
            streams::forget_replay(row)?;
            let to = Advance {
                modified_at: Some(now),
                ..Advance::default()
            };
            streams::advance(row, to)?;
            let why =
                "the journal has forgotten the place read up to; polls look for what came after it";
            streams::stream_error(row, "behind", why)?;
            Ok(())
        })?;
        reading.offset = None;
        // The polls have it in their own rows.
        reading.sure_at = Some(now);
        reading.refused = None;
        reading.asked = Asked::Next;
        reading.ahead.forget();
        reading.at = now;
        Ok(())
    }
}

/// The status of an answer that there is no such place.
fn refusal(error: &RemoteError) -> Option<u16> {
    let absent = matches!(error.status, 400 | 404 | 410) && error.class != ErrorClass::Retry;
    absent.then_some(error.status)
}

impl Session {
    /// A question to a journal was answered.
    pub(super) fn journal_told(
        &mut self,
        id: u32,
        result: Result<HttpResponse, RemoteError>,
        now: Millis,
    ) -> Step<()> {
        let journal = journal_of(&self.engine, id);
        let (Some(reading), Some(journal)) = (self.engine.journals.get_mut(&id), journal) else {
            return Ok(());
        };
        reading.busy = false;
        // Whatever fails below, it is asked again.
        reading.at = now + LOOK_MS;
        let asked = std::mem::replace(&mut reading.asked, Asked::Next);
        if let Asked::File(place) = asked {
            let told = result.and_then(|answer| journal.told(&answer, now));
            return match told {
                Ok(told) => self.journal_file(id, &place, told, now),
                Err(error) => self.journal_file_lost(id, &place, &error, now),
            };
        }
        if asked == Asked::Many {
            let places = result.and_then(|answer| journal.places(&answer));
            return self.journal_places(id, places, now);
        }
        let place = result.and_then(|answer| journal.place(&answer));
        match (asked, place) {
            // A file that is there already, or an answer to an older question.
            (_, Ok(Some(place))) if Some(&place.offset) == reading.offset.as_ref() => {
                self.nothing_new(id, now)
            }
            (Asked::Latest, Ok(Some(_))) => {
                // It may have come since the offset was refused: that is asked once more.
                let Some(status) = reading.refused.replace(0).filter(|s| *s != 0) else {
                    return self.engine.journal_expired(id, now);
                };
                if status != 404 {
                    return self.engine.journal_expired(id, now);
                }
                reading.at = now;
                Ok(())
            }
            (_, Ok(Some(place))) => {
                reading.refused = None;
                reading.ahead.one_more();
                reading.asked = Asked::File(place);
                reading.at = now;
                Ok(())
            }
            (Asked::Latest, Ok(None)) => self.journal_empty(id, now),
            (_, Ok(None)) => self.nothing_new(id, now),
            (Asked::Latest, Err(e)) if refusal(&e).is_some() => self.journal_empty(id, now),
            (_, Err(e)) if refusal(&e).is_some() && reading.offset.is_none() => {
                self.nothing_new(id, now)
            }
            // Nothing newer, or the offset is not known: the latest tells which.
            (Asked::Next, Err(e)) if refusal(&e).is_some() => {
                if reading.refused == Some(0) {
                    return self.engine.journal_expired(id, now);
                }
                reading.refused = refusal(&e);
                reading.asked = Asked::Latest;
                reading.at = now;
                Ok(())
            }
            (_, Err(error)) => self.journal_trouble(id, &error, now),
        }
    }

    /// Nothing at all is kept: an offset that was refused for good is forgotten.
    fn journal_empty(&mut self, id: u32, now: Millis) -> Step<()> {
        let refused = self.engine.journals.get(&id).and_then(|r| r.refused);
        match refused {
            Some(400 | 410) => self.engine.journal_expired(id, now),
            _ => self.nothing_new(id, now),
        }
    }

    fn nothing_new(&mut self, id: u32, now: Millis) -> Step<()> {
        let Some(reading) = self.engine.journals.get_mut(&id) else {
            return Ok(());
        };
        let row = reading.row;
        if reading.trouble.is_some() || now - reading.noted_at >= NOTE_MS {
            let to = Advance {
                modified_at: Some(now),
                ..Advance::default()
            };
            tx::in_transaction(|| Ok(streams::advance(row, to)?))?;
            reading.noted_at = now;
        }
        reading.sure_at = Some(now);
        reading.refused = None;
        reading.failures = 0;
        reading.trouble = None;
        reading.ahead.end();
        reading.at = now + LOOK_MS;
        Ok(())
    }

    fn journal_trouble(&mut self, id: u32, error: &RemoteError, now: Millis) -> Step<()> {
        let Some(reading) = self.engine.journals.get_mut(&id) else {
            return Ok(());
        };
        reading.later(now, error.retry_after_ms.unwrap_or(0));
        let text = format!("{error} {}", error.advice);
        // A call that was not made says nothing of the CRM.
        if error.code == "rate_limited" || reading.trouble.as_ref() == Some(&text) {
            return Ok(());
        }
        let row = reading.row;
        tx::in_transaction(|| Ok(streams::stream_error(row, "failed", &text)?))?;
        reading.trouble = Some(text);
        Ok(())
    }

    /// A file could not be had or read. Addresses end: the place is asked for again.
    fn journal_file_lost(
        &mut self,
        id: u32,
        place: &Place,
        error: &RemoteError,
        now: Millis,
    ) -> Step<()> {
        let garbage = matches!(error.code.as_str(), "not_journal" | "body_too_large");
        let passes = matches!(
            error.class,
            ErrorClass::Retry | ErrorClass::Wait | ErrorClass::Reauth | ErrorClass::Stop
        );
        let failures = self.engine.journals.get(&id).map_or(0, |r| r.failures);
        if (passes && !garbage) || failures < TRIES {
            return self.journal_trouble(id, error, now);
        }
        // Skipped: polls find what it would have said.
        self.engine.poll_from_sure(id, now)?;
        let Some(reading) = self.engine.journals.get_mut(&id) else {
            return Ok(());
        };
        let row = reading.row;
        let to = Advance {
            replay_id: Some(place.offset.clone().into_bytes()),
            rejected: 1,
            ..Advance::default()
        };
        let why = format!(
            "file {} is skipped, polls look for what it says: {error}",
            place.offset
        );
        tx::in_transaction(|| {
            streams::advance(row, to)?;
            streams::stream_error(row, "behind", &why)?;
            Ok(())
        })?;
        reading.offset = Some(place.offset.clone());
        reading.failures = 0;
        reading.trouble = Some(why);
        reading.ahead.forget();
        reading.at = now;
        Ok(())
    }

    /// Applies what a file says. Portions before the last leave the offset: an
    /// entry that is read again is known by its identity.
    fn journal_file(
        &mut self,
        id: u32,
        place: &Place,
        told: crm_core::connectors::journal::Told,
        now: Millis,
    ) -> Step<()> {
        if told.unknown > 0 {
            self.engine.poll_from_sure(id, now)?;
        }
        let server = self.engine.server_by_id(id).map(|s| s.name.clone());
        let (Some(reading), Some(server)) = (self.engine.journals.get(&id), server) else {
            return Ok(());
        };
        let row = reading.row;
        let events = i64::try_from(told.changes.len()).unwrap_or_default();
        // As far as the newest of its events, not to now: it may be old.
        let newest = told.changes.iter().map(|c| c.occurred_at.min(now)).max();
        let sure_at = reading.sure_at.max(newest);
        let mut arrivals: Vec<Arrival> = (told.changes.into_iter())
            .map(|change| Arrival {
                server: server.clone(),
                source: SOURCE,
                stream: Some(row),
                change: Rc::new(change),
            })
            .collect();
        while arrivals.len() > PORTION {
            let rest = arrivals.split_off(PORTION);
            let portion = std::mem::replace(&mut arrivals, rest);
            inbound::apply(&mut self.engine, portion, Vec::new(), Vec::new(), now)?;
        }
        let to = Advance {
            replay_id: Some(place.offset.clone().into_bytes()),
            modified_at: sure_at,
            events,
            rejected: i64::try_from(told.unknown).unwrap_or_default(),
            ..Advance::default()
        };
        inbound::apply(&mut self.engine, arrivals, vec![(row, to)], Vec::new(), now)?;
        if let Some(reading) = self.engine.journals.get_mut(&id) {
            reading.offset = Some(place.offset.clone());
            reading.sure_at = sure_at;
            reading.noted_at = now;
            reading.failures = 0;
            reading.trouble = None;
            reading.asked = reading.ahead.next();
            reading.at = now;
        }
        Ok(())
    }
}
