//! Several places of a journal at once: whoever is behind spares a call for each file.
//! The call for it is documented and its answer is not, so that single places do
//! wherever it leads to nothing.

use std::collections::VecDeque;

use crm_core::connectors::ServerConfig;
use crm_core::connectors::journal::{Journal, Place};
use crm_core::http::HttpRequest;
use crm_core::model::{Millis, RemoteError};

use super::Asked;
use crate::worker::engine::Step;
use crate::worker::session::Session;

/// Places asked for at once: their addresses work for a while only.
const MOST: usize = 20;
/// So many single places one after the other, and more are likely to follow.
const BEHIND: u32 = 2;
/// So often may the call be refused where there is a next place, before it is not made any more.
const REFUSALS: u32 = 2;

/// Places beyond the next, and what is known of the call for them.
#[derive(Default)]
pub(super) struct Ahead {
    places: VecDeque<Place>,
    /// Places that were there when they were asked for, since the end was seen.
    in_a_row: u32,
    /// The last call for several was refused: the end may have been the reason.
    refused: bool,
    /// Refusals for which it was not.
    refusals: u32,
}

impl Ahead {
    /// There was one more place.
    pub(super) fn one_more(&mut self) {
        self.in_a_row += 1;
        if std::mem::take(&mut self.refused) {
            self.refusals += 1;
        }
    }

    /// Nothing is newer.
    pub(super) fn end(&mut self) {
        (self.in_a_row, self.refused) = (0, false);
        self.places.clear();
    }

    /// The places are asked for again: their addresses may have ended.
    pub(super) fn forget(&mut self) {
        self.places.clear();
        self.in_a_row = 0;
    }

    /// What follows a file.
    pub(super) fn next(&mut self) -> Asked {
        match self.places.pop_front() {
            Some(place) => Asked::File(place),
            None if self.in_a_row >= BEHIND && self.refusals < REFUSALS => Asked::Many,
            None => Asked::Next,
        }
    }
}

/// Asks for several places, or for one where there is no such call.
pub(super) fn request(
    journal: &dyn Journal,
    config: &ServerConfig,
    after: Option<&str>,
) -> HttpRequest {
    after
        .and_then(|offset| journal.next_many(config, offset, MOST))
        .unwrap_or_else(|| journal.next(config, after))
}

impl Session {
    /// The call for several places was answered.
    pub(super) fn journal_places(
        &mut self,
        id: u32,
        places: Result<Vec<Place>, RemoteError>,
        now: Millis,
    ) -> Step<()> {
        let Some(reading) = self.engine.journals.get_mut(&id) else {
            return Ok(());
        };
        let places = match places {
            Ok(places) => places,
            // Not what was asked for, or no such call, or nothing newer: the call for one tells.
            Err(e)
                if e.code == "not_journal" || matches!(e.status, 400 | 404 | 405 | 410 | 501) =>
            {
                reading.ahead.refused = true;
                reading.at = now;
                return Ok(());
            }
            Err(error) => return self.journal_trouble(id, &error, now),
        };
        let new = places.into_iter();
        let new = new.filter(|p| Some(&p.offset) != reading.offset.as_ref());
        reading.ahead.places.extend(new.take(MOST));
        let Some(first) = reading.ahead.places.pop_front() else {
            return self.nothing_new(id, now);
        };
        reading.refused = None;
        reading.asked = Asked::File(first);
        reading.at = now;
        Ok(())
    }
}
