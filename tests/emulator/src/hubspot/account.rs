//! Owners, pipelines, limits and facts about the account.

use serde_json::{Value, json};

use super::{
    directory,
    error::ApiError,
    http::{Call, Outcome, Reply},
    objects::push_paging,
};

/// `GET …/owners`: `limit` 100, `after`, `email`, `archived`.
pub(crate) fn owners(call: &Call<'_>) -> Outcome {
    let limit = call.query.number("limit", 100)?.clamp(1, 500) as usize;
    let after = call.query.number("after", 0)?;
    let email = call.query.get("email").filter(|e| !e.is_empty());
    let mut found: Vec<(u64, Value)> = directory::owners(call.query.flag("archived"))
        .into_iter()
        .filter(|(id, owner)| *id >= after && email.is_none_or(|e| owner["email"] == e))
        .collect();
    let next = found.get(limit).map(|(id, _)| *id);
    found.truncate(limit);
    let list: Vec<Value> = found.into_iter().map(|(_, owner)| owner).collect();
    let mut out = format!("{{\"results\":{}", json!(list)).into_bytes();
    if let Some(next) = next {
        push_paging(call, next, &mut out);
    }
    out.push(b'}');
    Ok(Reply::json(200, out))
}

/// `GET …/owners/{id}`, `idProperty=id|userId`.
pub(crate) fn owner(call: &Call<'_>) -> Outcome {
    let by_user = call.query.get("idProperty") == Some("userId");
    let found = call
        .param("id")
        .parse()
        .ok()
        .and_then(|id| directory::owner(id, by_user, call.query.flag("archived")));
    match found {
        Some(owner) => Ok(Reply::value(200, &owner)),
        None => Err(ApiError::not_found("Owner not found")),
    }
}

const EPOCH: &str = "1970-01-01T00:00:00Z";
const DEAL_STAGES: [(&str, &str, &str); 7] = [
    ("appointmentscheduled", "Appointment Scheduled", "0.2"),
    ("qualifiedtobuy", "Qualified To Buy", "0.4"),
    ("presentationscheduled", "Presentation Scheduled", "0.6"),
    ("decisionmakerboughtin", "Decision Maker Bought-In", "0.8"),
    ("contractsent", "Contract Sent", "0.9"),
    ("closedwon", "Closed Won", "1.0"),
    ("closedlost", "Closed Lost", "0.0"),
];
const TICKET_STAGES: [(&str, &str, &str); 4] = [
    ("1", "New", "OPEN"),
    ("2", "Waiting on contact", "OPEN"),
    ("3", "Waiting on us", "OPEN"),
    ("4", "Closed", "CLOSED"),
];

fn all_pipelines(call: &Call<'_>) -> Result<Vec<Value>, ApiError> {
    let stage = |i: usize, id: &str, label: &str, metadata: Value| {
        json!({"label": label, "displayOrder": i, "metadata": metadata, "id": id,
            "createdAt": EPOCH, "updatedAt": EPOCH, "archived": false,
            "writePermissions": "CRM_PERMISSIONS_ENFORCEMENT"})
    };
    let (id, label, stages): (&str, &str, Vec<Value>) = match call.table("type")?.facts.plural {
        "deals" => (
            "default",
            "Sales Pipeline",
            DEAL_STAGES
                .iter()
                .enumerate()
                .map(|(i, (id, label, chance))| {
                    let closed = *chance == "1.0" || *chance == "0.0";
                    stage(
                        i,
                        id,
                        label,
                        json!({"isClosed": closed.to_string(), "probability": chance}),
                    )
                })
                .collect(),
        ),
        "tickets" => (
            "0",
            "Support Pipeline",
            TICKET_STAGES
                .iter()
                .enumerate()
                .map(|(i, (id, label, state))| {
                    let closed = *state == "CLOSED";
                    stage(
                        i,
                        id,
                        label,
                        json!({"isClosed": closed.to_string(), "ticketState": state}),
                    )
                })
                .collect(),
        ),
        _ => return Ok(Vec::new()),
    };
    Ok(vec![
        json!({"label": label, "displayOrder": 0, "id": id, "stages": stages,
        "createdAt": EPOCH, "updatedAt": EPOCH, "archived": false}),
    ])
}

/// `GET …/pipelines/{type}`.
pub(crate) fn pipelines(call: &Call<'_>) -> Outcome {
    Ok(Reply::value(200, &json!({"results": all_pipelines(call)?})))
}

fn one_pipeline(call: &Call<'_>) -> Result<Value, ApiError> {
    let id = call.param("id");
    let found = all_pipelines(call)?.into_iter().find(|p| p["id"] == id);
    found.ok_or_else(|| ApiError::not_found(format!("Pipeline {id} not found")))
}

/// `GET …/pipelines/{type}/{id}`.
pub(crate) fn pipeline(call: &Call<'_>) -> Outcome {
    Ok(Reply::value(200, &one_pipeline(call)?))
}

/// `GET …/pipelines/{type}/{id}/stages`.
pub(crate) fn stages(call: &Call<'_>) -> Outcome {
    Ok(Reply::value(
        200,
        &json!({"results": one_pipeline(call)?["stages"]}),
    ))
}

/// `GET …/limits/records`: how many records there are and may be.
pub(crate) fn record_limits(call: &Call<'_>) -> Outcome {
    let rows = |custom: bool| -> Vec<Value> {
        call.state
            .tables
            .iter()
            .filter(|t| t.facts.custom == custom)
            .map(|t| {
                let count = t.read().count;
                json!({"objectTypeId": t.facts.type_id, "singularLabel": t.facts.singular,
                    "pluralLabel": t.facts.plural, "limit": 15_000_000, "usage": count,
                    "percentage": count as f64 / 150_000.0})
            })
            .collect()
    };
    Ok(Reply::value(
        200,
        &json!({"hubspotDefinedObjectTypes": rows(false),
        "customObjectTypes": rows(true)}),
    ))
}

/// `GET …/limits/custom-properties`.
pub(crate) fn property_limits(call: &Call<'_>) -> Outcome {
    let rows: Vec<Value> = call
        .state
        .tables
        .iter()
        .map(|t| {
            let catalog = t.catalog();
            let custom = catalog.ids().filter(|id| catalog.get(*id).custom).count();
            json!({"objectTypeId": t.facts.type_id, "singularLabel": t.facts.singular,
                "pluralLabel": t.facts.plural, "limit": 1_000, "usage": custom,
                "percentage": custom as f64 / 10.0})
        })
        .collect();
    Ok(Reply::value(200, &json!({"byObjectType": rows})))
}

/// `GET /account-info/…/details`.
pub(crate) fn details(call: &Call<'_>) -> Outcome {
    Ok(Reply::value(
        200,
        &json!({"portalId": call.state.portal(), "accountType": "STANDARD",
        "timeZone": "Etc/UTC", "companyCurrency": "USD", "additionalCurrencies": ["EUR", "GBP"],
        "utcOffset": "+00:00", "utcOffsetMilliseconds": 0, "uiDomain": "app.hubspot.com",
        "dataHostingLocation": "na1"}),
    ))
}

/// `GET /account-info/…/api-usage/daily/private-apps`.
pub(crate) fn usage(call: &Call<'_>) -> Outcome {
    let (used, limit) = call.state.limits.today();
    let now = call.state.now_ms();
    let midnight = now - now.rem_euclid(86_400_000);
    let at = super::base::iso_short;
    Ok(Reply::value(
        200,
        &json!({"results": [{"name": "private-apps-api-calls-daily",
        "usageLimit": limit, "currentUsage": used, "collectedAt": at(now), "fetchStatus": "SUCCESS",
        "resetsAt": at(midnight + 86_400_000)}]}),
    ))
}
