//! Sessions: access tokens issued by the OAuth endpoint, and who they are.

use super::ids::SfId;
use super::schema::Obj;
use crate::clock::Rng;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Sessions kept at once; the oldest goes when one more is issued.
const MAX_SESSIONS: usize = 10_000;

/// Id of the org.
pub(crate) const ORG: SfId = SfId::new(*b"00D", 1);
/// The user the integration runs as.
pub(crate) const SYNC_USER: SfId = SfId::new(Obj::User.prefix(), 1);

struct Inner {
    /// Token to time of issue (ms).
    open: HashMap<String, (u64, i64)>,
    issued: u64,
    rng: Rng,
    refresh_tokens: Vec<String>,
}

/// All sessions and refresh tokens.
pub(crate) struct Sessions(Mutex<Inner>);

impl Sessions {
    /// No sessions yet; `refresh_token` is good from the start.
    pub(crate) fn new(seed: u64, refresh_token: &str) -> Self {
        Self(Mutex::new(Inner {
            open: HashMap::new(),
            issued: 0,
            rng: Rng::new(seed ^ 0x5e55),
            refresh_tokens: vec![refresh_token.to_owned()],
        }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new access token, of the shape `00D…!AQ…`.
    pub(crate) fn issue(&self, now: i64) -> String {
        let mut inner = self.lock();
        let org = ORG.to_string();
        let (a, b) = (inner.rng.next_u64(), inner.rng.next_u64());
        let token = format!(
            "{}!AQ{a:016x}.{b:016X}_{:04}",
            &org[..15],
            inner.issued % 10_000
        );
        inner.issued += 1;
        if inner.open.len() >= MAX_SESSIONS
            && let Some(oldest) = inner
                .open
                .iter()
                .min_by_key(|(_, (number, _))| *number)
                .map(|(token, _)| token.clone())
        {
            inner.open.remove(&oldest);
        }
        let number = inner.issued;
        inner.open.insert(token.clone(), (number, now));
        token
    }

    /// Whether `token` names a session younger than `life_ms`.
    pub(crate) fn valid(&self, token: &str, now: i64, life_ms: u64) -> bool {
        let inner = self.lock();
        let issued = inner.open.get(token).map(|(_, at)| *at);
        issued.is_some_and(|at| now.saturating_sub(at) < i64::try_from(life_ms).unwrap_or(i64::MAX))
    }

    /// Ends one session.
    pub(crate) fn revoke(&self, token: &str) -> bool {
        self.lock().open.remove(token).is_some()
    }

    /// Ends every session.
    pub(crate) fn expire_all(&self) {
        self.lock().open.clear();
    }

    /// Uses a refresh token: `None` when it is not good, else the one to use next time.
    pub(crate) fn refresh(&self, token: &str, rotate: bool) -> Option<String> {
        let mut inner = self.lock();
        let place = inner
            .refresh_tokens
            .iter()
            .position(|known| known == token)?;
        if rotate {
            let next = format!("5Aep861{:016x}", inner.rng.next_u64());
            inner.refresh_tokens[place].clone_from(&next);
            return Some(next);
        }
        Some(token.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_by_age_by_revocation_and_all_at_once() {
        let sessions = Sessions::new(1, "r");
        let (a, b) = (sessions.issue(1_000), sessions.issue(1_000));
        assert!(sessions.valid(&a, 1_500, 1_000) && !sessions.valid(&a, 2_000, 1_000));
        assert!(sessions.revoke(&a) && !sessions.valid(&a, 1_500, 1_000));
        sessions.expire_all();
        assert!(!sessions.valid(&b, 1_500, 1_000));
    }

    #[test]
    fn a_rotated_refresh_token_works_once() {
        let sessions = Sessions::new(1, "first");
        assert_eq!(sessions.refresh("first", false).as_deref(), Some("first"));
        let next = sessions.refresh("first", true).unwrap();
        assert_eq!(sessions.refresh("first", true), None);
        assert!(sessions.refresh(&next, false).is_some());
    }

    #[test]
    fn the_org_id_is_the_documented_one() {
        assert_eq!(ORG.to_string(), "00Dxx0000000001EAA");
    }
}
