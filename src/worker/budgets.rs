//! The budgets of servers, as configured: read, handed to the I/O thread, and
//! asked for where work is claimed.

use std::collections::HashMap;

use crm_core::budget::{Budget, Latency};
use crm_core::connectors::Account;
use crm_core::model::Millis;
use crm_io::{Command, Tag};

use crate::pg::store::budgets::{self, BudgetRow};
use crate::pg::tx::{self, SqlError};
use crate::worker::engine::{Engine, Job, Step};

/// How often what is spent, and the windows of the days to come, are read again.
const AGAIN_MS: Millis = 60_000;
/// First and further questions for what an account says of its limits.
const ACCOUNT_FIRST_MS: Millis = 600_000;
const ACCOUNT_MS: Millis = 3_600_000;

/// Budgets as handed over last, by server.
#[derive(Default)]
pub(crate) struct Budgets {
    of: HashMap<u32, Budget>,
    at: Millis,
    account_at: Millis,
}

fn budget(row: BudgetRow) -> Budget {
    Budget {
        calls_per_window: row.calls_per_window,
        share: row.share,
        calls_per_day: row.calls_per_day,
        reserve: row.reserve,
        pause_at: row.pause_at,
        concurrent: row.concurrent,
        class_per_second: row.class_per_second,
        heavy: row.heavy,
        mirrors: row
            .mirrors
            .iter()
            .map(|(m, share, _)| (*m, *share))
            .collect(),
        spent: row.spent,
        mirror_spent: row.mirrors.iter().map(|(m, _, n)| (*m, *n)).collect(),
    }
}

impl Engine {
    /// Reads the budgets and hands those over that changed. `anew` where the I/O
    /// thread may have forgotten them.
    pub(crate) fn load_budgets(&mut self, anew: bool, now: Millis) -> Step<()> {
        let text = tx::in_transaction(|| Ok(budgets::all()?))?;
        let rows: Vec<BudgetRow> = serde_json::from_str(&text)
            .map_err(|e| SqlError::new("XX000", format!("budgets cannot be read: {e}")))?;
        if anew {
            self.budgets.of.clear();
        }
        self.budgets.at = now + AGAIN_MS;
        for row in rows {
            let Some(server) = self
                .servers
                .iter()
                .find(|s| s.name == row.server && s.usable)
            else {
                continue;
            };
            let (id, new) = (server.id, budget(row));
            if self.budgets.of.get(&id) == Some(&new) {
                continue;
            }
            let handed = self.submit(Command::Budget {
                server: id,
                budget: Box::new(new.clone()),
            });
            if handed {
                self.budgets.of.insert(id, new);
            } else {
                // The thread has its fill.
                self.budgets.at = now + 1_000;
            }
        }
        Ok(())
    }

    /// Reads budgets again when it is time, after what was counted meanwhile.
    pub(crate) fn renew_budgets(&mut self, now: Millis) -> Step<()> {
        if now >= self.budgets.at {
            self.store_usage(now)?;
            self.load_budgets(false, now)?;
        }
        if self.budgets.account_at == 0 {
            self.budgets.account_at = now + ACCOUNT_FIRST_MS;
        }
        if now >= self.budgets.account_at {
            self.budgets.account_at = now + ACCOUNT_MS;
            let used: Vec<u32> = (self.servers.iter())
                .filter(|s| self.world.mirrors.values().any(|m| m.server == s.name))
                .filter_map(|s| Some(self.server(&s.name)?.id))
                .collect();
            used.into_iter().for_each(|id| self.ask_account(id));
        }
        Ok(())
    }

    /// Asks an account for its limits.
    fn ask_account(&mut self, id: u32) {
        let Some(server) = self.server_by_id(id) else {
            return;
        };
        let request = server.connector.probe(&server.config);
        self.call(id, Tag::default(), request, Job::Account { server: id });
    }

    /// Takes over what an account says of itself.
    pub(crate) fn know_account(&mut self, id: u32, account: Account) -> Step<()> {
        let Some(name) = self.server_by_id(id).map(|s| s.name.clone()) else {
            return Ok(());
        };
        self.usage.named(id, account.limits);
        if let Some(zone) = account.time_zone {
            tx::in_transaction(|| {
                budgets::store_time_zone(&name, &zone)?;
                Ok(())
            })?;
            // Windows may count from now on.
            self.budgets.at = 0;
        }
        Ok(())
    }

    /// Whose calls those for a mirror are.
    pub(crate) fn tag(&self, mirror: i32) -> Tag {
        Tag {
            mirror,
            latency: (self.world.mirrors.get(&mirror)).map_or(Latency::default(), |m| m.latency),
        }
    }

    /// When heavy work on a server may go on; `None` is now.
    pub(crate) fn heavy_from(&self, server: u32, now: Millis) -> Option<Millis> {
        self.budgets.of.get(&server)?.heavy_from(now)
    }

    /// When what a mirror has may be sent; `None` is now.
    pub(crate) fn sends_from(&self, mirror: i32, now: Millis) -> Option<Millis> {
        let m = self.world.mirrors.get(&mirror)?;
        if m.latency != Latency::OffPeak {
            return None;
        }
        self.heavy_from(self.server(&m.server)?.id, now)
    }
}
