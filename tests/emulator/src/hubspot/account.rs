//! Owners, pipelines, limits and facts about the account.

use serde_json::{Value, json};

use super::{
    error::ApiError,
    http::{Call, Outcome, Reply},
    objects::push_paging,
};

/// `GET …/owners`: `limit` 100, `after`, `email`, `archived`.
pub(crate) fn owners(call: &Call<'_>) -> Outcome {
    let limit = call.query.number("limit", 100)?.clamp(1, 500) as usize;
    let after = call.query.number("after", 0)?;
    let email = call.query.get("email").filter(|e| !e.is_empty());
    let mut found: Vec<(u64, Value)> = call
        .state
        .directory
        .owners(call.query.flag("archived"))
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
    let found = call.param("id").parse().ok().and_then(|id| {
        call.state
            .directory
            .owner(id, by_user, call.query.flag("archived"))
    });
    match found {
        Some(owner) => Ok(Reply::value(200, &owner)),
        None => Err(ApiError::not_found("Owner not found")),
    }
}

fn all_pipelines(call: &Call<'_>) -> Result<Vec<Value>, ApiError> {
    let plural = call.table("type")?.facts.plural;
    Ok(call.state.directory.pipelines(plural))
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
