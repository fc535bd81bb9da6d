//! Access tokens: one log-in at a time, before expiry, and not in a loop.

use crm_core::connectors::{Credential, Token};
use crm_core::model::{Millis, RemoteError};
use crm_core::retry::Backoff;
use tokio::sync::Mutex;

use crate::clock;

/// A token is renewed this long before it ends.
const MARGIN_MS: Millis = 60_000;

/// Between failed log-ins: accounts are locked for less than a log-in per second.
const FAILED: Backoff = Backoff {
    first_ms: 1_000,
    max_ms: 60_000,
    attempts: u32::MAX,
};

#[derive(Default)]
struct State {
    token: Option<Token>,
    rotated: Option<Credential>,
    failures: u32,
    failed: Option<(Millis, RemoteError)>,
}

/// The session with one server.
#[derive(Default)]
pub(crate) struct Tokens {
    state: Mutex<State>,
}

impl Tokens {
    /// The token in force, from `login` if there is none. Callers that arrive
    /// during a log-in wait for it and share its outcome; after a failed one
    /// they share the failure until its back-off is over.
    pub(crate) async fn get<F>(
        &self,
        configured: &Credential,
        login: impl FnOnce(Credential) -> F,
    ) -> Result<Token, RemoteError>
    where
        F: Future<Output = Result<Token, RemoteError>>,
    {
        let mut state = self.state.lock().await;
        let now = clock::wall();
        if let Some(token) = &state.token
            && token.expires_at.is_none_or(|at| at - MARGIN_MS > now)
        {
            return Ok(token.clone());
        }
        if let Some((until, error)) = &state.failed
            && *until > clock::mono()
        {
            let mut error = error.clone();
            error.retry_after_ms = Some(until - clock::mono());
            return Err(error);
        }
        let credential = state.rotated.as_ref().unwrap_or(configured).clone();
        match login(credential.clone()).await {
            Ok(token) => {
                state.rotated = rotate(credential, &token).or(state.rotated.take());
                state.failures = 0;
                state.failed = None;
                state.token = Some(token.clone());
                Ok(token)
            }
            Err(error) => {
                state.token = None;
                state.failures = state.failures.saturating_add(1);
                let now = clock::mono();
                let until = FAILED
                    .next_attempt(now, state.failures, clock::seed(), error.retry_after_ms)
                    .unwrap_or(now);
                state.failed = Some((until, error.clone()));
                Err(error)
            }
        }
    }

    /// The CRM refused this token: the next [`Self::get`] logs in, unless
    /// somebody did meanwhile.
    pub(crate) async fn refused(&self, token: &Token) {
        let mut state = self.state.lock().await;
        if state
            .token
            .as_ref()
            .is_some_and(|t| t.access == token.access)
        {
            state.token = None;
        }
    }
}

fn rotate(credential: Credential, token: &Token) -> Option<Credential> {
    let new = token.refresh_token.clone()?;
    match credential {
        Credential::RefreshToken {
            client_id,
            client_secret,
            ..
        } => Some(Credential::RefreshToken {
            client_id,
            client_secret,
            refresh_token: new,
        }),
        Credential::Token { .. }
        | Credential::ClientCredentials { .. }
        | Credential::Jwt { .. } => None,
    }
}
