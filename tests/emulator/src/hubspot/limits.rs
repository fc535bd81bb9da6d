//! Call limits: a rolling 10-second window, a day, and searches per second.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::{Map, Value, json};

use super::auth::Grant;
use crate::{admin::Refused, cli::Options, clock};

const WINDOW_MS: i64 = 10_000;
const JOURNAL_PER_SECOND: usize = 100;

struct Inner {
    enforce: bool,
    /// Calls per window: service key, OAuth.
    burst: [u64; 2],
    daily: u64,
    per_second: u64,
    /// Stamps of the calls of the last window: service key, OAuth.
    calls: [VecDeque<i64>; 2],
    searches: VecDeque<i64>,
    journal: VecDeque<i64>,
    day: i64,
    today: u64,
}

/// The account's limits.
pub(crate) struct Limits(Mutex<Inner>);

/// What to put into the headers of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    pub(crate) max: u64,
    pub(crate) remaining: u64,
    /// Limit and rest of the day; OAuth answers have none.
    pub(crate) daily: Option<(u64, u64)>,
}

/// Why a call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exceeded {
    TenSecondlyRolling,
    Secondly,
    Daily,
}

impl Exceeded {
    /// `policyName` and message.
    pub(crate) fn words(self) -> (&'static str, &'static str) {
        match self {
            Exceeded::TenSecondlyRolling => (
                "TEN_SECONDLY_ROLLING",
                "You have reached your ten_secondly_rolling limit.",
            ),
            Exceeded::Secondly => ("SECONDLY", "You have reached your secondly limit."),
            Exceeded::Daily => ("DAILY", "You have reached your daily limit."),
        }
    }
}

fn forget(stamps: &mut VecDeque<i64>, before: i64) {
    while stamps.front().is_some_and(|s| *s <= before) {
        stamps.pop_front();
    }
}

impl Limits {
    pub(crate) fn new(options: &Options) -> Limits {
        let burst = match options.hubspot_burst {
            0 => [190, 110],
            n => [n, n],
        };
        Limits(Mutex::new(Inner {
            enforce: options.rate_limits,
            burst,
            daily: options.hubspot_daily,
            per_second: options.hubspot_search_rate,
            calls: [VecDeque::new(), VecDeque::new()],
            searches: VecDeque::new(),
            journal: VecDeque::new(),
            day: 0,
            today: 0,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call, or refuses it. Refused calls do not count.
    pub(crate) fn take(&self, grant: Grant) -> Result<Standing, (Exceeded, Standing)> {
        let now = clock::real_ms();
        let mut inner = self.lock();
        inner.turn(now);
        let who = usize::from(grant == Grant::OAuth);
        forget(&mut inner.calls[who], now - WINDOW_MS);
        let used = inner.calls[who].len() as u64;
        if inner.enforce {
            let refusal = if used >= inner.burst[who] {
                Some(Exceeded::TenSecondlyRolling)
            } else if grant == Grant::ServiceKey && inner.today >= inner.daily {
                Some(Exceeded::Daily)
            } else {
                None
            };
            if let Some(refusal) = refusal {
                return Err((refusal, inner.standing(who)));
            }
            inner.calls[who].push_back(now);
        }
        inner.today += 1;
        Ok(inner.standing(who))
    }

    /// Counts a search, or refuses it.
    pub(crate) fn take_search(&self) -> Result<(), Exceeded> {
        let now = clock::real_ms();
        let mut inner = self.lock();
        inner.turn(now);
        forget(&mut inner.searches, now - 1_000);
        if inner.enforce {
            if inner.searches.len() as u64 >= inner.per_second {
                return Err(Exceeded::Secondly);
            }
            inner.searches.push_back(now);
        }
        inner.today += 1;
        Ok(())
    }

    /// Counts a look into the journal, or refuses it: apart from all other calls.
    pub(crate) fn take_journal(&self) -> Result<(), Exceeded> {
        let now = clock::real_ms();
        let mut inner = self.lock();
        forget(&mut inner.journal, now - 1_000);
        if inner.enforce && inner.journal.len() >= JOURNAL_PER_SECOND {
            return Err(Exceeded::Secondly);
        }
        inner.journal.push_back(now);
        Ok(())
    }

    /// Calls of the day and the day's limit.
    pub(crate) fn today(&self) -> (u64, u64) {
        let mut inner = self.lock();
        inner.turn(clock::real_ms());
        (inner.today, inner.daily)
    }

    /// Changes what `limits` names and answers what is in force.
    pub(crate) fn set(&self, limits: &Map<String, Value>) -> Result<Value, Refused> {
        let mut inner = self.lock();
        for (key, value) in limits {
            let number = || {
                value
                    .as_u64()
                    .ok_or_else(|| Refused::Bad(format!("{key}: expected a whole number")))
            };
            match key.as_str() {
                "enforce" => {
                    inner.enforce = value.as_bool().ok_or_else(|| {
                        Refused::Bad("enforce: expected true or false".to_owned())
                    })?;
                }
                "burst" => inner.burst = [number()?; 2],
                "daily" => inner.daily = number()?,
                "search_per_second" => inner.per_second = number()?,
                "used_today" => inner.today = number()?,
                _ => {
                    return Err(Refused::Bad(format!(
                        "{key}: expected enforce, burst, daily, search_per_second or used_today"
                    )));
                }
            }
        }
        Ok(
            json!({"enforce": inner.enforce, "burst": inner.burst[0], "burst_oauth": inner.burst[1],
            "daily": inner.daily, "used_today": inner.today, "search_per_second": inner.per_second}),
        )
    }
}

impl Inner {
    /// Starts a new day at midnight UTC, the account's time zone.
    fn turn(&mut self, now: i64) {
        let day = now / 86_400_000;
        if day != self.day {
            self.day = day;
            self.today = 0;
        }
    }

    fn standing(&self, who: usize) -> Standing {
        Standing {
            max: self.burst[who],
            remaining: self.burst[who].saturating_sub(self.calls[who].len() as u64),
            daily: (who == 0).then(|| (self.daily, self.daily.saturating_sub(self.today))),
        }
    }
}
