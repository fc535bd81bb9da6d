//! The admin routes, the same for both CRMs through [`Crm`](super::Crm).

use std::{collections::HashMap, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::{StatusCode, header},
    middleware::Next,
    response::Response,
    routing::{get, post},
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Actor, Admin, Refused};
use crate::{
    fault::{EventFault, Rule, Stream},
    shared::Side,
};

type Answer = Result<Value, Refused>;

/// All of `/_admin` that is not special to one CRM.
pub(crate) fn router(admin: Admin) -> Router {
    Router::new()
        .route(
            "/_admin",
            get(|| async { "crm-emulator admin; see docs/emulator.md\n" }),
        )
        .route("/_admin/requests", get(requests))
        .route("/_admin/counts", get(counts))
        .route("/_admin/counts/reset", post(reset_counts))
        .route("/_admin/faults", post(add_faults).delete(clear_faults))
        .route("/_admin/clock", post(set_clock))
        .route("/_admin/rate-limits", post(set_rate_limits))
        .route("/_admin/webhooks", post(set_webhooks))
        .route("/_admin/edit-many", post(edit_many))
        .route("/_admin/stop", post(stop))
        .route("/_admin/{crm}/{action}", post(act))
        .route("/_admin/{crm}/record/{object}/{id}", get(record))
        .route("/_admin/{crm}/objects/{object}", get(overlay))
        .route("/_admin/{crm}/digest/{object}", get(digest))
        .layer(axum::middleware::from_fn_with_state(
            admin.clone(),
            authorize,
        ))
        .with_state(admin)
}

/// Asks for `--admin-token`, if one is set.
async fn authorize(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let Some(token) = &admin.shared.options.admin_token else {
        return next.run(request).await;
    };
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
    if given == Some(token.as_str()) {
        next.run(request).await
    } else {
        respond(
            StatusCode::UNAUTHORIZED,
            &json!({"error": "this emulator was started with --admin-token: send it as a bearer token"}),
        )
    }
}

fn respond(status: StatusCode, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}

fn finish(answer: Answer) -> Response {
    match answer {
        Ok(body) => respond(StatusCode::OK, &body),
        Err(Refused::NotFound(error)) => respond(StatusCode::NOT_FOUND, &json!({"error": error})),
        Err(Refused::Bad(error)) => respond(StatusCode::BAD_REQUEST, &json!({"error": error})),
    }
}

fn side(name: &str) -> Result<Side, Refused> {
    Side::parse(name)
        .ok_or_else(|| Refused::NotFound(format!("crm `{name}`: expected hubspot or salesforce")))
}

fn parse<T: serde::de::DeserializeOwned>(body: &Bytes) -> Result<T, Refused> {
    let body: &[u8] = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|e| Refused::Bad(format!("body: {e}")))
}

fn query(request: &axum::http::Uri) -> HashMap<String, String> {
    request
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.replace("%2C", ",").replace("%2c", ",")))
        .collect()
}

async fn requests(State(admin): State<Admin>, uri: axum::http::Uri) -> Response {
    let since = query(&uri)
        .get("since")
        .and_then(|s| s.parse().ok())
        .unwrap_or(0);
    finish(Ok(admin.shared.log.since(since)))
}

async fn counts(State(admin): State<Admin>) -> Response {
    finish(Ok(admin.shared.log.counts()))
}

async fn reset_counts(State(admin): State<Admin>) -> Response {
    admin.shared.log.reset();
    finish(Ok(json!({})))
}

/// One rule, `{"rules":[…]}`, or `{"stream":"webhook","lose":1,…}`.
async fn add_faults(State(admin): State<Admin>, body: Bytes) -> Response {
    let add = || -> Answer {
        let value: Value = parse(&body)?;
        let bad = |e: serde_json::Error| Refused::Bad(format!("fault: {e}"));
        if let Some(name) = value.get("stream").and_then(Value::as_str) {
            let stream = match name {
                "webhook" => Stream::Webhook,
                "cdc" => Stream::Cdc,
                _ => return Err(Refused::Bad("stream: expected webhook or cdc".to_owned())),
            };
            let mut value = value.clone();
            if let Some(map) = value.as_object_mut() {
                map.remove("stream");
            }
            let fault: EventFault = serde_json::from_value(value).map_err(bad)?;
            admin.hubspot.pass_events();
            admin.shared.faults.set_events(stream, fault);
            return Ok(json!({}));
        }
        let rules: Vec<Rule> = match value.get("rules") {
            Some(rules) => serde_json::from_value(rules.clone()).map_err(bad)?,
            None => vec![serde_json::from_value(value).map_err(bad)?],
        };
        let rules = admin.shared.faults.add(rules).map_err(Refused::Bad)?;
        Ok(json!({"rules": rules}))
    };
    finish(add())
}

async fn clear_faults(State(admin): State<Admin>) -> Response {
    admin.hubspot.pass_events();
    admin.shared.faults.clear();
    finish(Ok(json!({})))
}

async fn set_clock(State(admin): State<Admin>, body: Bytes) -> Response {
    #[derive(Deserialize)]
    struct Skew {
        crm: String,
        skew_ms: Option<i64>,
        stop: Option<bool>,
    }
    let set = || -> Answer {
        let skew: Skew = parse(&body)?;
        let side = side(&skew.crm)?;
        if let Some(skew_ms) = skew.skew_ms {
            admin.shared.clock.set_skew_ms(side, skew_ms);
        }
        if let Some(stop) = skew.stop {
            admin.shared.clock.stop(stop);
        }
        Ok(json!({"now_ms": admin.shared.clock.now_ms(side)}))
    };
    finish(set())
}

async fn set_rate_limits(State(admin): State<Admin>, body: Bytes) -> Response {
    let set = || -> Answer {
        let mut limits: Map<String, Value> = parse(&body)?;
        let name = limits.remove("crm");
        let side = side(name.as_ref().and_then(Value::as_str).unwrap_or("hubspot"))?;
        admin.crm(side).set_rate_limits(&limits)
    };
    finish(set())
}

async fn set_webhooks(State(admin): State<Admin>, body: Bytes) -> Response {
    let set = || admin.hubspot.set_webhooks(&parse(&body)?);
    finish(set())
}

async fn stop(State(admin): State<Admin>) -> Response {
    admin.shared.stop();
    finish(Ok(json!({"stopping": true})))
}

#[derive(Deserialize)]
struct Deed {
    #[serde(default)]
    object: String,
    #[serde(default)]
    id: String,
    #[serde(default)]
    fields: Map<String, Value>,
    #[serde(default)]
    winner: String,
    #[serde(default)]
    loser: String,
    user: Option<String>,
    source: Option<String>,
}

/// `edit`, `create`, `delete`, `restore`, `merge`, `privacy-delete`, `schema`, `expire-tokens`.
async fn act(
    State(admin): State<Admin>,
    Path((crm, action)): Path<(String, String)>,
    body: Bytes,
) -> Response {
    let act = || -> Answer {
        let crm = admin.crm(side(&crm)?);
        let deed: Deed = parse(&body)?;
        let actor = Actor {
            user: deed.user,
            source: deed.source,
        };
        let (object, id) = (deed.object.as_str(), deed.id.as_str());
        match action.as_str() {
            "edit" => crm.edit(object, id, &deed.fields, &actor),
            "create" => crm.create(object, &deed.fields, &actor),
            "delete" => crm.delete(object, id, &actor),
            "restore" => crm.restore(object, id, &actor),
            "merge" => crm.merge(object, &deed.winner, &deed.loser, &actor),
            "schema" => crm.change_schema(object, &deed.fields),
            "privacy-delete" => crm.privacy_delete(object, id, &actor),
            "expire-tokens" => {
                crm.expire_tokens();
                Ok(json!({}))
            }
            other => Err(Refused::NotFound(format!("no action `{other}`"))),
        }
    };
    finish(act())
}

async fn record(
    State(admin): State<Admin>,
    Path((crm, object, id)): Path<(String, String, String)>,
) -> Response {
    finish(side(&crm).and_then(|s| admin.crm(s).record(&object, &id)))
}

async fn overlay(
    State(admin): State<Admin>,
    Path((crm, object)): Path<(String, String)>,
    uri: axum::http::Uri,
) -> Response {
    let query = query(&uri);
    let limit = query
        .get("limit")
        .and_then(|l| l.parse().ok())
        .unwrap_or(1_000);
    let after = query.get("after").map(String::as_str);
    finish(side(&crm).and_then(|s| admin.crm(s).overlay(&object, after, limit.clamp(1, 10_000))))
}

async fn digest(
    State(admin): State<Admin>,
    Path((crm, object)): Path<(String, String)>,
    uri: axum::http::Uri,
) -> Response {
    let fields: Vec<String> = query(&uri)
        .get("fields")
        .map(|f| {
            f.split(',')
                .filter(|f| !f.is_empty())
                .map(str::to_owned)
                .collect()
        })
        .unwrap_or_default();
    // Walks every record: off the threads that serve requests.
    let answer = tokio::task::spawn_blocking(move || {
        side(&crm).and_then(|s| admin.crm(s).digest(&object, &fields))
    })
    .await;
    finish(answer.unwrap_or_else(|e| Err(Refused::Bad(format!("digest failed: {e}")))))
}

#[derive(Deserialize)]
struct Many {
    crm: String,
    object: String,
    /// Number of the first base record, from 1.
    from: u64,
    count: u64,
    /// 0 or absent: as fast as possible.
    #[serde(default)]
    rate_per_s: u64,
    field: String,
    /// The value is this text followed by a running number; the field name if absent.
    prefix: Option<String>,
    user: Option<String>,
    source: Option<String>,
}

/// Edits `count` base records one after the other; answers when all are done.
async fn edit_many(State(admin): State<Admin>, body: Bytes) -> Response {
    finish(edit_at_rate(&admin, &body).await)
}

async fn edit_at_rate(admin: &Admin, body: &Bytes) -> Answer {
    let many: Many = parse(body)?;
    let side = side(&many.crm)?;
    let actor = Actor {
        user: many.user,
        source: many.source,
    };
    let prefix = many.prefix.unwrap_or_else(|| many.field.clone());
    let start = tokio::time::Instant::now();
    let mut fields = Map::new();
    for i in 0..many.count {
        if let Some(micros) = (i * 1_000_000).checked_div(many.rate_per_s) {
            tokio::time::sleep_until(start + Duration::from_micros(micros)).await;
        } else if i % 1_000 == 0 {
            tokio::task::yield_now().await;
        }
        let crm = admin.crm(side);
        let id = crm.base_id(&many.object, many.from + i)?;
        fields.insert(
            many.field.clone(),
            json!(format!("{prefix} {}", many.from + i)),
        );
        crm.edit(&many.object, &id, &fields, &actor)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(json!({"edited": many.count, "seconds": seconds}))
}
