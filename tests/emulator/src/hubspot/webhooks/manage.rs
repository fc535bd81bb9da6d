//! The webhook management API: settings and subscriptions of the app.

use serde_json::{Map, Value, json};

use super::{Settings, Subscription};
use crate::hubspot::{
    base::iso_short,
    error::ApiError,
    http::{Call, Outcome, Reply},
    model::OBJECTS,
};

const MAX_SUBSCRIPTIONS: usize = 1_000;

fn check_app(call: &Call<'_>) -> Result<(), ApiError> {
    let app = call.state.shared.options.hubspot_app_id.to_string();
    if call.param("appId") == app {
        Ok(())
    } else {
        Err(ApiError::not_found(format!(
            "No app {}",
            call.param("appId")
        )))
    }
}

fn settings_json(settings: &Settings) -> Value {
    json!({"targetUrl": settings.url, "throttling": {"maxConcurrentRequests": settings.max_concurrent,
        "period": "SECONDLY"}, "createdAt": iso_short(1), "updatedAt": iso_short(1)})
}

/// `GET /webhooks/v3/{appId}/settings`.
pub(crate) fn settings(call: &Call<'_>) -> Outcome {
    check_app(call)?;
    Ok(Reply::value(
        200,
        &settings_json(&call.state.webhooks.settings()),
    ))
}

/// `PUT /webhooks/v3/{appId}/settings`.
pub(crate) fn put_settings(call: &Call<'_>) -> Outcome {
    check_app(call)?;
    let body = call.json()?;
    let Some(url) = body.get("targetUrl").and_then(Value::as_str) else {
        return Err(ApiError::validation(
            "Some required fields were not set: [targetUrl]",
        ));
    };
    let most = body
        .get("throttling")
        .and_then(|t| t.get("maxConcurrentRequests"))
        .and_then(Value::as_u64)
        .unwrap_or(10);
    if most < 5 {
        return Err(ApiError::validation(
            "maxConcurrentRequests must be at least 5",
        ));
    }
    let mut given = Map::new();
    given.insert("url".to_owned(), json!(url));
    given.insert("max_concurrent".to_owned(), json!(most));
    call.state
        .webhooks
        .set(&given)
        .map_err(|_| ApiError::validation("Invalid settings"))?;
    Ok(Reply::value(
        200,
        &settings_json(&call.state.webhooks.settings()),
    ))
}

/// `DELETE /webhooks/v3/{appId}/settings`.
pub(crate) fn delete_settings(call: &Call<'_>) -> Outcome {
    check_app(call)?;
    let mut given = Map::new();
    given.insert("url".to_owned(), Value::Null);
    call.state
        .webhooks
        .set(&given)
        .map_err(|_| ApiError::validation("Invalid settings"))?;
    Ok(Reply::empty(204))
}

fn json_of(s: &Subscription) -> Value {
    let mut out = json!({"id": s.id.to_string(), "eventType": s.event_type, "active": s.active,
        "createdAt": iso_short(s.created_ms), "updatedAt": iso_short(s.created_ms)});
    if let Some(type_id) = &s.object_type_id {
        out["objectTypeId"] = json!(type_id);
    }
    if let Some(property) = &s.property {
        out["propertyName"] = json!(property);
    }
    out
}

/// `GET /webhooks/v3/{appId}/subscriptions`.
pub(crate) fn list(call: &Call<'_>) -> Outcome {
    check_app(call)?;
    let settings = call.state.webhooks.settings();
    let results: Vec<Value> = settings
        .subscriptions
        .iter()
        .flatten()
        .map(json_of)
        .collect();
    Ok(Reply::value(200, &json!({"results": results})))
}

/// What a subscription body asks for, checked.
struct Wish {
    event_type: String,
    object_type_id: Option<String>,
    property: Option<String>,
}

fn wish(call: &Call<'_>, body: &Map<String, Value>) -> Result<Wish, ApiError> {
    let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
    let event_type = text("eventType").unwrap_or_default();
    let property = text("propertyName");
    let object = check_event(&event_type, property.as_deref())?.to_owned();
    let object_type_id = match text("objectTypeId") {
        Some(name) => Some(call.state.table(&name)?.facts.type_id.to_owned()),
        None if object == "object" => {
            return Err(ApiError::validation(
                "Some required fields were not set: [objectTypeId]",
            ));
        }
        None => None,
    };
    Ok(Wish {
        event_type,
        object_type_id,
        property,
    })
}

/// The object part of an event type that exists and fits the property.
fn check_event<'e>(event_type: &'e str, property: Option<&str>) -> Result<&'e str, ApiError> {
    let (object, what) = event_type.split_once('.').unwrap_or_default();
    let known_object =
        object == "object" || OBJECTS.iter().any(|o| !o.custom && o.singular == object);
    let known_what = [
        "creation",
        "deletion",
        "merge",
        "restore",
        "propertyChange",
        "associationChange",
        "privacyDeletion",
    ]
    .contains(&what);
    if !known_object || !known_what {
        return Err(ApiError::validation(format!(
            "Invalid eventType `{event_type}`"
        )));
    }
    if (what == "propertyChange") != property.is_some() {
        return Err(ApiError::validation(
            "propertyName is for propertyChange subscriptions, and needed there",
        ));
    }
    if property.is_some_and(|p| super::SILENT.contains(&p)) {
        return Err(ApiError::validation(
            "This property cannot be subscribed to",
        ));
    }
    Ok(object)
}

/// `POST /webhooks/v3/{appId}/subscriptions`. From the first one on, only what is subscribed is sent.
pub(crate) fn create(call: &Call<'_>) -> Outcome {
    check_app(call)?;
    let body = call.json()?;
    let wish = wish(call, &body)?;
    let mut settings = call.state.webhooks.settings();
    if settings
        .subscriptions
        .as_ref()
        .is_some_and(|s| s.len() >= MAX_SUBSCRIPTIONS)
    {
        return Err(ApiError::validation(
            "An app has at most 1000 subscriptions",
        ));
    }
    let subscription = Subscription {
        id: settings.next_subscription,
        event_type: wish.event_type,
        object_type_id: wish.object_type_id,
        property: wish.property,
        // New subscriptions start paused.
        active: body.get("active").and_then(Value::as_bool).unwrap_or(false),
        created_ms: call.state.now_ms(),
    };
    settings.next_subscription += 1;
    let answer = json_of(&subscription);
    settings
        .subscriptions
        .get_or_insert_default()
        .push(subscription);
    Ok(Reply::value(201, &answer))
}

fn find<'s>(settings: &'s mut Settings, id: &str) -> Result<&'s mut Subscription, ApiError> {
    settings
        .subscriptions
        .iter_mut()
        .flatten()
        .find(|s| s.id.to_string() == id)
        .ok_or_else(|| ApiError::not_found(format!("No subscription {id}")))
}

/// `GET /webhooks/v3/{appId}/subscriptions/{id}`.
pub(crate) fn get(call: &Call<'_>) -> Outcome {
    check_app(call)?;
    let mut settings = call.state.webhooks.settings();
    Ok(Reply::value(
        200,
        &json_of(find(&mut settings, call.param("id"))?),
    ))
}

/// `PATCH /webhooks/v3/{appId}/subscriptions/{id}`, body `{"active":…}`.
pub(crate) fn patch(call: &Call<'_>) -> Outcome {
    check_app(call)?;
    let body = call.json()?;
    let mut settings = call.state.webhooks.settings();
    let subscription = find(&mut settings, call.param("id"))?;
    if let Some(active) = body.get("active").and_then(Value::as_bool) {
        subscription.active = active;
    }
    Ok(Reply::value(200, &json_of(subscription)))
}

/// `DELETE /webhooks/v3/{appId}/subscriptions/{id}`.
pub(crate) fn delete(call: &Call<'_>) -> Outcome {
    check_app(call)?;
    let mut settings = call.state.webhooks.settings();
    let id = find(&mut settings, call.param("id"))?.id;
    if let Some(list) = &mut settings.subscriptions {
        list.retain(|s| s.id != id);
    }
    Ok(Reply::empty(204))
}

/// `POST /webhooks/v3/{appId}/subscriptions/batch/update`, body `{"inputs":[{"id","active"}]}`.
pub(crate) fn update_many(call: &Call<'_>) -> Outcome {
    check_app(call)?;
    let body = call.json()?;
    let start = call.state.now_ms();
    let mut results = Vec::new();
    {
        let mut settings = call.state.webhooks.settings();
        for input in crate::hubspot::batch::inputs(&body, MAX_SUBSCRIPTIONS)? {
            let id = input.get("id").map(|v| v.to_string()).unwrap_or_default();
            let subscription = find(&mut settings, id.trim_matches('"'))?;
            subscription.active = input
                .get("active")
                .and_then(Value::as_bool)
                .unwrap_or(false);
            results.push(json_of(subscription));
        }
    }
    let out = format!("{{\"status\":\"COMPLETE\",\"results\":{}", json!(results));
    Ok(crate::hubspot::batch::finish(
        call,
        out.into_bytes(),
        start,
        &[],
        200,
    ))
}
