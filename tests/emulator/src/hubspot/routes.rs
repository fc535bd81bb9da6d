//! Which path leads to which handler, in every version served.

use std::sync::Arc;

use axum::{
    Router,
    routing::{MethodFilter as M, MethodRouter},
};

use super::{
    State, account, associations, batch,
    http::{Access, guarded, method},
    journal, oauth, objects, properties, schemas, search,
    webhooks::manage,
};

type Route = (String, MethodRouter<Arc<State>>);

/// Everything HubSpot serves.
pub(crate) fn router(state: Arc<State>) -> Router {
    let mut routes: Vec<Route> = Vec::new();
    for prefix in [
        "/crm/v3/objects",
        "/crm/objects/2026-03",
        "/crm/objects/2026-09",
    ] {
        objects_under(prefix, &mut routes);
    }
    for prefix in [
        "/crm/v3/properties",
        "/crm/properties/2026-03",
        "/crm/properties/2026-09",
    ] {
        properties_under(prefix, &mut routes);
    }
    for prefix in [
        "/crm/v3/schemas",
        "/crm-object-schemas/v3/schemas",
        "/crm-object-schemas/2026-03/schemas",
        "/crm-object-schemas/2026-09/schemas",
    ] {
        routes.push((prefix.to_owned(), method(M::GET, schemas::list)));
        routes.push((format!("{prefix}/{{type}}"), method(M::GET, schemas::get)));
        routes.push((
            format!("{prefix}/batch/read"),
            method(M::POST, schemas::read),
        ));
    }
    for prefix in [
        "/crm/v4/objects",
        "/crm/objects/2026-03",
        "/crm/objects/2026-09",
    ] {
        record_links_under(prefix, &mut routes);
    }
    for prefix in [
        "/crm/v4/associations",
        "/crm/associations/2026-03",
        "/crm/associations/2026-09",
    ] {
        links_under(prefix, &mut routes);
    }
    other_links(&mut routes);
    account_routes(&mut routes);
    oauth_routes(&mut routes);
    for prefix in [
        "/webhooks/v3/{appId}",
        "/webhooks/2026-03/{appId}",
        "/app-webhooks/2026-09/{appId}",
    ] {
        webhooks_under(prefix, &mut routes);
    }
    journal_routes(&mut routes);
    let mut router = Router::new();
    for (path, handler) in routes {
        router = router.route(&path, handler);
    }
    router.with_state(state)
}

fn journal_routes(routes: &mut Vec<Route>) {
    for prefix in [
        "/webhooks-journal/journal/2026-03",
        "/webhooks-journal/journal-local/2026-03",
        "/webhooks/v4/journal",
        "/webhooks/v4/journal-local",
    ] {
        journal::add_to(prefix, routes);
    }
    routes.push((
        "/webhooks-journal-data/{file}".to_owned(),
        guarded(M::GET, Access::Open, journal::data),
    ));
}

fn objects_under(prefix: &str, routes: &mut Vec<Route>) {
    let mut add = |path: &str, handler| routes.push((format!("{prefix}/{{type}}{path}"), handler));
    add(
        "",
        method(M::GET, objects::list).merge(method(M::POST, objects::create)),
    );
    add(
        "/{id}",
        method(M::GET, objects::get)
            .merge(method(M::PATCH, objects::update))
            .merge(method(M::DELETE, objects::archive)),
    );
    add("/batch/read", method(M::POST, batch::read));
    add("/batch/create", method(M::POST, batch::create));
    add("/batch/update", method(M::POST, batch::update));
    add("/batch/upsert", method(M::POST, batch::upsert));
    add("/batch/archive", method(M::POST, batch::archive));
    add("/search", guarded(M::POST, Access::Search, search::search));
    add("/merge", method(M::POST, objects::merge));
    add("/gdpr-delete", method(M::POST, objects::gdpr_delete));
}

fn properties_under(prefix: &str, routes: &mut Vec<Route>) {
    let mut add = |path: &str, handler| routes.push((format!("{prefix}/{{type}}{path}"), handler));
    add(
        "",
        method(M::GET, properties::list).merge(method(M::POST, properties::create)),
    );
    add(
        "/{name}",
        method(M::GET, properties::get)
            .merge(method(M::PATCH, properties::update))
            .merge(method(M::DELETE, properties::archive)),
    );
    add("/batch/read", method(M::POST, properties::read));
    add("/batch/create", method(M::POST, properties::create_many));
    add("/batch/archive", method(M::POST, properties::archive_many));
    add("/groups", method(M::GET, properties::groups));
}

fn record_links_under(prefix: &str, routes: &mut Vec<Route>) {
    let base = format!("{prefix}/{{type}}/{{id}}/associations");
    routes.push((
        format!("{base}/{{to}}"),
        method(M::GET, associations::of_record),
    ));
    routes.push((
        format!("{base}/{{to}}/{{toId}}"),
        method(M::PUT, associations::put).merge(method(M::DELETE, associations::delete)),
    ));
    routes.push((
        format!("{base}/default/{{to}}/{{toId}}"),
        method(M::PUT, associations::put_default),
    ));
}

fn links_under(prefix: &str, routes: &mut Vec<Route>) {
    let mut add =
        |path: &str, handler| routes.push((format!("{prefix}/{{from}}/{{to}}{path}"), handler));
    add("/batch/read", method(M::POST, associations::read));
    add("/batch/create", method(M::POST, associations::create));
    add(
        "/batch/associate/default",
        method(M::POST, associations::create_default),
    );
    add("/batch/archive", method(M::POST, associations::archive));
    add(
        "/batch/labels/archive",
        method(M::POST, associations::archive_labels),
    );
    add(
        "/labels",
        method(M::GET, associations::labels).merge(method(M::POST, associations::create_label)),
    );
}

fn other_links(routes: &mut Vec<Route>) {
    routes.push((
        "/crm/v3/associations/{from}/{to}/batch/create".to_owned(),
        method(M::POST, associations::create_v3),
    ));
    routes.push((
        "/crm/associations/v4/{from}/{to}/labels".to_owned(),
        method(M::GET, associations::labels).merge(method(M::POST, associations::create_label)),
    ));
}

fn account_routes(routes: &mut Vec<Route>) {
    for prefix in [
        "/crm/v3/owners",
        "/crm/owners/2026-03",
        "/crm/owners/2026-09",
    ] {
        // The Python SDK adds a slash.
        for path in [prefix.to_owned(), format!("{prefix}/")] {
            routes.push((path, method(M::GET, account::owners)));
        }
        routes.push((format!("{prefix}/{{id}}"), method(M::GET, account::owner)));
    }
    for prefix in [
        "/crm/v3/pipelines",
        "/crm/pipelines/2026-03",
        "/crm/pipelines/2026-09",
    ] {
        routes.push((
            format!("{prefix}/{{type}}"),
            method(M::GET, account::pipelines),
        ));
        routes.push((
            format!("{prefix}/{{type}}/{{id}}"),
            method(M::GET, account::pipeline),
        ));
        routes.push((
            format!("{prefix}/{{type}}/{{id}}/stages"),
            method(M::GET, account::stages),
        ));
    }
    for prefix in [
        "/crm/v3/limits",
        "/crm/limits/2026-03",
        "/crm/limits/2026-09",
    ] {
        routes.push((
            format!("{prefix}/records"),
            method(M::GET, account::record_limits),
        ));
        routes.push((
            format!("{prefix}/custom-properties"),
            method(M::GET, account::property_limits),
        ));
    }
    for prefix in [
        "/account-info/v3",
        "/account-info/2026-03",
        "/account-info/2026-09",
    ] {
        routes.push((
            format!("{prefix}/details"),
            method(M::GET, account::details),
        ));
        routes.push((
            format!("{prefix}/api-usage/daily/private-apps"),
            method(M::GET, account::usage),
        ));
    }
}

fn oauth_routes(routes: &mut Vec<Route>) {
    let mut add = |path: &str, filter, handler| {
        routes.push((path.to_owned(), guarded(filter, Access::Open, handler)));
    };
    add("/oauth/v1/token", M::POST, oauth::token);
    for version in ["v3", "2026-03", "2026-09"] {
        add(&format!("/oauth/{version}/token"), M::POST, oauth::token);
        add(
            &format!("/oauth/{version}/token/introspect"),
            M::POST,
            oauth::introspect,
        );
        add(
            &format!("/oauth/{version}/token/revoke"),
            M::POST,
            oauth::revoke,
        );
    }
    add(
        "/oauth/v1/access-tokens/{token}",
        M::GET,
        oauth::access_token,
    );
    add(
        "/oauth/v1/refresh-tokens/{token}",
        M::GET,
        oauth::refresh_token,
    );
    add(
        "/oauth/v2/private-apps/get/access-token-info",
        M::POST,
        oauth::key_info,
    );
}

fn webhooks_under(prefix: &str, routes: &mut Vec<Route>) {
    let mut add = |path: &str, handler| routes.push((format!("{prefix}{path}"), handler));
    add(
        "/settings",
        method(M::GET, manage::settings)
            .merge(method(M::PUT, manage::put_settings))
            .merge(method(M::DELETE, manage::delete_settings)),
    );
    add(
        "/subscriptions",
        method(M::GET, manage::list).merge(method(M::POST, manage::create)),
    );
    add(
        "/subscriptions/{id}",
        method(M::GET, manage::get)
            .merge(method(M::PATCH, manage::patch))
            .merge(method(M::DELETE, manage::delete)),
    );
    add(
        "/subscriptions/batch/update",
        method(M::POST, manage::update_many),
    );
}
