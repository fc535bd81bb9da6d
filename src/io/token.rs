//! Access tokens: one log-in at a time, before expiry, and not in a loop.

use std::path::Path;

use crm_core::connectors::{Credential, Token};
use crm_core::model::{Millis, RemoteError};
use crm_core::retry::Backoff;
use crm_core::secret::Secret;
use tokio::sync::Mutex;

use crate::api::Level;
use crate::clock;
use crate::mailbox::Mailbox;
use crate::rotation::{self, replaced, token_of};

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
    /// Newest refresh token known; none while it is the configured one.
    refresh: Option<Secret>,
    /// What the file held when it was looked at last.
    in_file: Option<Secret>,
    failures: u32,
    failed: Option<(Millis, RemoteError)>,
}

/// How to log in, and where a replaced refresh token is kept.
pub(crate) struct Login<'a> {
    pub(crate) credential: &'a Credential,
    pub(crate) file: Option<&'a Path>,
    pub(crate) mailbox: &'a Mailbox,
}

impl Login<'_> {
    /// The credential to use now. A token that somebody put into the file since
    /// it was looked at last (another database, an administrator) is newer than ours.
    fn now(&self, state: &mut State) -> Credential {
        let Some(given) = token_of(self.credential) else {
            return self.credential.clone();
        };
        let before = state.in_file.take().unwrap_or_else(|| given.clone());
        let stands = self.file.and_then(rotation::read);
        if let Some(stands) = &stands
            && *stands != before
        {
            state.refresh = Some(stands.clone());
        }
        state.in_file = Some(stands.unwrap_or(before));
        let newest = state.refresh.as_ref().unwrap_or(given).clone();
        replaced(self.credential, newest)
    }

    /// Keeps the refresh token that came with an access token.
    fn keep(&self, used: &Credential, token: &Token, state: &mut State) {
        let (Some(old), Some(new)) = (token_of(used), &token.refresh_token) else {
            return;
        };
        if old == new {
            return;
        }
        state.refresh = Some(new.clone());
        let why = match self.file {
            None => "its reference is not a file".to_owned(),
            Some(file) => match rotation::write(file, new) {
                Ok(()) => {
                    state.in_file = Some(new.clone());
                    return;
                }
                Err(error) => format!("{} cannot be written: {error}", file.display()),
            },
        };
        self.mailbox.note(
            Level::Warning,
            format!(
                "the CRM replaced a refresh token that cannot be kept, {why}. After a restart the app must be authorized \
                 again. Use a file in a directory that the server's account may write, or switch rotation off in the CRM"
            ),
        );
    }
}

/// The session with one server.
#[derive(Default)]
pub(crate) struct Tokens {
    state: Mutex<State>,
}

impl Tokens {
    /// The token in force, from `send` if there is none. Callers that arrive
    /// during a log-in wait for it and share its outcome; after a failed one
    /// they share the failure until its back-off is over.
    pub(crate) async fn get<F>(
        &self,
        login: Login<'_>,
        send: impl Fn(Credential) -> F,
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
        let mut used = login.now(&mut state);
        let mut outcome = send(used.clone()).await;
        if outcome.is_err() {
            // Another database may have had the token replaced while we asked.
            let newer = login.now(&mut state);
            if newer != used {
                used = newer;
                outcome = send(used.clone()).await;
            }
        }
        match outcome {
            Ok(token) => {
                login.keep(&used, &token, &mut state);
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

    /// Whether a credential read anew is what is used already: its file holds
    /// the token that was put there at a log-in.
    pub(crate) fn knows(&self, configured: &Credential, read: &Credential) -> bool {
        if configured == read {
            return true;
        }
        let (Some(_), Some(token), Ok(state)) =
            (token_of(configured), token_of(read), self.state.try_lock())
        else {
            return false;
        };
        state.refresh.as_ref() == Some(token) && replaced(configured, token.clone()) == *read
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
