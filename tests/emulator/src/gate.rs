//! The one door every CRM request passes: latency, faults and the log.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody},
    extract::{MatchedPath, Request, State},
    http::{StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::{
    clock,
    fault::{self, Verdict},
    request_log::Entry,
    shared::{Shared, Side},
};

/// Largest body read only to be thrown away.
const MAX_BODY: usize = 16 << 20;

/// Request headers worth showing in the log.
const LOGGED: [&str; 4] = [
    "sforce-call-options",
    "if-unmodified-since",
    "content-encoding",
    "user-agent",
];

/// Middleware around both CRMs' routers.
pub(crate) async fn pass(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let side = Side::of_path(request.uri().path());
    let mut entry = Entry {
        side,
        at_ms: clock::real_ms(),
        method: request.method().to_string(),
        path: request.uri().to_string(),
        route: request
            .extensions()
            .get::<MatchedPath>()
            .map_or_else(|| "(unknown)".to_owned(), |m| m.as_str().to_owned()),
        status: 0,
        request_bytes: request
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok()?.parse().ok()),
        answer_bytes: None,
        headers: LOGGED
            .iter()
            .filter_map(|name| {
                let value = request.headers().get(*name)?.to_str().ok()?;
                Some((*name, value.to_owned()))
            })
            .collect(),
    };
    if shared.options.latency_ms > 0 {
        tokio::time::sleep(Duration::from_millis(shared.options.latency_ms)).await;
    }
    let verdict = shared
        .faults
        .on_request(side, request.method().as_str(), request.uri().path());
    let response = match verdict {
        Verdict::Pass => next.run(request).await,
        Verdict::Answer(answer) => {
            // A body left unread would cost the client its connection.
            let _unused = axum::body::to_bytes(request.into_body(), MAX_BODY).await;
            tokio::time::sleep(answer.delay()).await;
            answer.into_response()
        }
        Verdict::After(answer) => {
            let _performed = next.run(request).await;
            answer.into_response()
        }
        Verdict::Hold(ms) => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            next.run(request).await
        }
        Verdict::Slow(bytes_per_s) => fault::slow(next.run(request).await, bytes_per_s),
    };
    entry.status = response.status().as_u16();
    entry.answer_bytes = response.body().size_hint().exact();
    shared.log.add(entry);
    response
}

/// Answer for paths that neither CRM nor the admin interface has.
pub(crate) async fn not_found() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}
