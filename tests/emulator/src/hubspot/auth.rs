//! Who calls: the service key or an OAuth access token.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use super::error::ApiError;
use crate::{cli::Options, clock};

/// Access tokens remembered at once; the oldest expire first.
const MAX_TOKENS: usize = 10_000;

/// The kinds of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grant {
    ServiceKey,
    OAuth,
    /// By client credentials, for the journal alone.
    Journal,
}

/// Issued tokens and when they end (real milliseconds).
pub(crate) struct Auth {
    service_key: Mutex<String>,
    tokens: Mutex<HashMap<String, (i64, Grant)>>,
}

impl Auth {
    pub(crate) fn new(options: &Options) -> Auth {
        Auth {
            service_key: Mutex::new(options.hubspot_token.clone()),
            tokens: Mutex::default(),
        }
    }

    /// Who an `Authorization` header belongs to.
    pub(crate) fn check(&self, header: Option<&str>) -> Result<Grant, ApiError> {
        let token = header.and_then(|h| {
            let (scheme, token) = h.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then_some(token.trim())
        });
        let Some(token) = token.filter(|t| !t.is_empty()) else {
            return Err(missing());
        };
        if *self
            .service_key
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            == token
        {
            return Ok(Grant::ServiceKey);
        }
        match self.known(token) {
            Some((at, grant)) if at > clock::real_ms() => Ok(grant),
            Some((at, _)) => {
                let ago = (clock::real_ms() - at) / 1_000;
                Err(ApiError::new(
                    401,
                    "EXPIRED_AUTHENTICATION",
                    format!("The OAuth token used to make this call expired {ago} second(s) ago."),
                ))
            }
            None => Err(missing()),
        }
    }

    /// Remembers a token for `life_s` seconds.
    pub(crate) fn issue(&self, token: &str, life_s: u64, grant: Grant) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MAX_TOKENS {
            let oldest = tokens.iter().min_by_key(|t| t.1.0).map(|t| t.0.clone());
            if let Some(oldest) = oldest {
                tokens.remove(&oldest);
            }
        }
        let life_ms = i64::try_from(life_s).unwrap_or(i64::MAX / 1_000) * 1_000;
        tokens.insert(token.to_owned(), (clock::real_ms() + life_ms, grant));
    }

    /// When a token issued here ends.
    pub(crate) fn expires_at(&self, token: &str) -> Option<i64> {
        Some(self.known(token)?.0)
    }

    fn known(&self, token: &str) -> Option<(i64, Grant)> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(token).copied()
    }

    /// Ends every access token now.
    pub(crate) fn expire_all(&self) {
        let now = clock::real_ms();
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens
            .values_mut()
            .for_each(|(at, _)| *at = (*at).min(now - 1));
    }
}

fn missing() -> ApiError {
    ApiError::new(
        401,
        "INVALID_AUTHENTICATION",
        "Authentication credentials not found. This API supports OAuth 2.0 authentication and you can \
         find more details at https://developers.hubspot.com/docs/methods/auth/oauth-overview",
    )
}
