//! What is left to say when a stream is given up: over CometD the server keeps a
//! client, and counts it among those it allows, until it hears that it is gone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crm_core::connectors::Token;
use crm_core::http::HttpRequest;

use crate::target::Target;

/// Longest that anybody waits for the answer, which is of no use: well below what
/// the thread has for its own end.
const PATIENCE: Duration = Duration::from_millis(400);

/// The last words of a stream, while it has any.
#[derive(Default)]
pub(crate) struct Parting(Mutex<Option<Words>>);

struct Words {
    target: Arc<Target>,
    token: Token,
    request: HttpRequest,
}

impl Parting {
    /// What is to be said from now on; nothing if there is no request.
    pub(super) fn prepare(
        &self,
        target: &Arc<Target>,
        token: &Token,
        request: Option<HttpRequest>,
    ) {
        let words = request.map(|request| Words {
            target: Arc::clone(target),
            token: token.clone(),
            request,
        });
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = words;
    }

    /// Says it, once; whether anybody hears is not looked at.
    pub(crate) async fn say(&self) {
        let words = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(words) = words {
            let said = words.target.hold(&words.token, words.request, PATIENCE);
            // The client is forgotten after a while in any case.
            let _ = tokio::time::timeout(PATIENCE, said).await;
        }
    }
}
