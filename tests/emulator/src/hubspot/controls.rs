//! What the admin interface can do with HubSpot.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::State as Extract,
    http::StatusCode,
    response::Response,
    routing::{get, post},
};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{
    State, associations,
    directory::Deed,
    error::ApiError,
    merge,
    model::{Catalog, PropertyId, Table},
    properties,
    render::{self, Extras},
    store::{Live, View},
    write::{self, Origin},
};
use crate::{
    admin::{Actor, Crm, Refused},
    clock::mix,
};

const DEFAULT_USER: &str = "userId:9339234";

/// Admin routes that only HubSpot has.
pub(crate) fn admin(state: Arc<State>) -> Router {
    Router::new()
        .route("/_admin/webhooks", get(webhooks))
        .route("/_admin/journal", post(journal))
        .with_state(state)
}

/// `GET /_admin/webhooks`: how delivery stands.
async fn webhooks(Extract(state): Extract<Arc<State>>) -> Response {
    Response::new(Body::from(state.webhooks.report().to_string()))
}

/// `POST /_admin/journal`: sets how the journal answers.
async fn journal(Extract(state): Extract<Arc<State>>, body: Bytes) -> Response {
    let given = serde_json::from_slice::<Map<String, Value>>(&body);
    let set = given
        .map_err(|e| Refused::Bad(format!("body: {e}")))
        .and_then(|given| state.webhooks.journal.set(&given));
    let (status, body) = match set {
        Ok(shown) => (200, shown),
        Err(Refused::Bad(error) | Refused::NotFound(error)) => (400, json!({"error": error})),
    };
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    response
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Refused {
        match error.status {
            404 => Refused::NotFound(error.message().to_owned()),
            _ => Refused::Bad(error.message().to_owned()),
        }
    }
}

fn origin(actor: &Actor) -> Origin {
    let user = actor.user.as_deref().unwrap_or(DEFAULT_USER);
    Origin {
        source: actor.source.as_deref().unwrap_or("CRM_UI").into(),
        id: user.into(),
    }
}

fn number(id: &str) -> Result<u64, Refused> {
    id.parse()
        .map_err(|_| Refused::Bad(format!("id `{id}`: expected a number")))
}

/// The record with all its properties, and whether it was merged or archived.
fn whole(state: &State, table: &Table, catalog: &Catalog, view: &View<'_>) -> Value {
    let names = catalog.ids().map(|id| catalog.get(id).name.as_str());
    let wanted = render::wanted(table, catalog, names);
    let mut out = Vec::new();
    let portal = state.portal();
    render::record(
        &mut out,
        portal,
        table,
        catalog,
        view,
        &wanted,
        &Extras::default(),
    );
    serde_json::from_slice(&out).unwrap_or_default()
}

fn no_record(table: &Table, id: &str) -> Refused {
    Refused::NotFound(format!("no {} {id}", table.facts.singular))
}

fn shown(
    state: &State,
    table: &Table,
    catalog: &Catalog,
    live: &Live,
    id: u64,
) -> Result<Value, Refused> {
    match live.view(live.resolve(id)) {
        Some(view) => Ok(whole(state, table, catalog, &view)),
        None => Err(no_record(table, &id.to_string())),
    }
}

impl State {
    fn in_directory(
        &self,
        object: &str,
        id: &str,
        deed: &Deed<'_>,
    ) -> Option<Result<Value, Refused>> {
        let at = super::base::iso_short(self.now_ms());
        self.directory.act(object, id, deed, &at)
    }
}

impl Crm for State {
    fn edit(
        &self,
        object: &str,
        id: &str,
        fields: &Map<String, Value>,
        actor: &Actor,
    ) -> Result<Value, Refused> {
        if let Some(done) = self.in_directory(object, id, &Deed::Edit(fields)) {
            return done;
        }
        let table = self.table(object)?;
        let catalog = table.catalog();
        let changes = write::check(self, table, &catalog, fields)?;
        let mut live = table.write();
        let id = number(id)?;
        let id = live
            .live_view(id)
            .map(|v| v.id)
            .ok_or_else(|| no_record(table, &id.to_string()))?;
        write::update(
            self,
            table,
            &catalog,
            &mut live,
            id,
            &changes,
            &origin(actor),
        )?;
        let stamp = live.view(id).map_or(0, |v| v.modified_ms);
        Ok(json!({"id": id.to_string(), "modified_ms": stamp}))
    }

    fn create(
        &self,
        object: &str,
        fields: &Map<String, Value>,
        actor: &Actor,
    ) -> Result<Value, Refused> {
        if object.contains('/') {
            return associations::by_admin(self, object, fields, false, &origin(actor));
        }
        let table = self.table(object)?;
        let catalog = table.catalog();
        let changes = write::check(self, table, &catalog, fields)?;
        let mut live = table.write();
        write::conflict(self, table, &catalog, &live, None, &changes)?;
        let (id, _) = write::create(self, table, &catalog, &mut live, changes, &origin(actor));
        shown(self, table, &catalog, &live, id)
    }

    fn delete(&self, object: &str, id: &str, actor: &Actor) -> Result<Value, Refused> {
        if let Some(done) = self.in_directory(object, id, &Deed::Delete) {
            return done;
        }
        if let (true, Some((from, to))) = (object.contains('/'), id.split_once(':')) {
            let mut ends = Map::new();
            ends.insert("from".to_owned(), json!(from));
            ends.insert("to".to_owned(), json!(to));
            return associations::by_admin(self, object, &ends, true, &origin(actor));
        }
        let table = self.table(object)?;
        let catalog = table.catalog();
        let mut live = table.write();
        if write::archive(
            self,
            table,
            &catalog,
            &mut live,
            number(id)?,
            &origin(actor),
        ) {
            Ok(json!({"id": id}))
        } else {
            Err(no_record(table, id))
        }
    }

    fn restore(&self, object: &str, id: &str, actor: &Actor) -> Result<Value, Refused> {
        let table = self.table(object)?;
        let catalog = table.catalog();
        let mut live = table.write();
        if write::restore(
            self,
            table,
            &catalog,
            &mut live,
            number(id)?,
            &origin(actor),
        ) {
            shown(self, table, &catalog, &live, number(id)?)
        } else {
            Err(no_record(table, id))
        }
    }

    fn merge(
        &self,
        object: &str,
        winner: &str,
        loser: &str,
        actor: &Actor,
    ) -> Result<Value, Refused> {
        let table = self.table(object)?;
        let catalog = table.catalog();
        let mut live = table.write();
        let (winner, loser) = (number(winner)?, number(loser)?);
        let id = merge::merge(
            self,
            table,
            &catalog,
            &mut live,
            winner,
            loser,
            &origin(actor),
        )?;
        shown(self, table, &catalog, &live, id)
    }

    fn privacy_delete(&self, object: &str, id: &str, actor: &Actor) -> Result<Value, Refused> {
        let table = self.table(object)?;
        let catalog = table.catalog();
        let mut live = table.write();
        if merge::forget(
            self,
            table,
            &catalog,
            &mut live,
            number(id)?,
            &origin(actor),
        ) {
            Ok(json!({"id": id}))
        } else {
            Err(no_record(table, id))
        }
    }

    fn record(&self, object: &str, id: &str) -> Result<Value, Refused> {
        if let Some((from, to)) = object.split_once("--") {
            let (from, to) = (self.table(from)?.index, self.table(to)?.index);
            return Ok(associations::shown(&self.links(from, number(id)?, to)));
        }
        let table = self.table(object)?;
        let catalog = table.catalog();
        let live = table.read();
        shown(self, table, &catalog, &live, number(id)?)
    }

    fn overlay(&self, object: &str, after: Option<&str>, limit: usize) -> Result<Value, Refused> {
        let table = self.table(object)?;
        let catalog = table.catalog();
        let live = table.read();
        let from = match after {
            Some(after) => number(after)?,
            None => 0,
        };
        let mut ids = live.overlay.range(from..).map(|(id, _)| *id);
        let mut records = Vec::new();
        for id in ids.by_ref().take(limit) {
            records.push(match live.view(id) {
                Some(view) => whole(self, table, &catalog, &view),
                None => json!({"id": id.to_string(), "gone": true}),
            });
        }
        let next = ids.next().map(|id| id.to_string());
        Ok(json!({"records": records, "next": next}))
    }

    fn digest(&self, object: &str, fields: &[String]) -> Result<Value, Refused> {
        let table = self.table(object)?;
        let catalog = table.catalog();
        let mut ids: Vec<PropertyId> = Vec::new();
        for name in fields {
            let found = catalog.find(name);
            ids.push(found.ok_or_else(|| Refused::Bad(format!("fields: no property {name}")))?);
        }
        if fields.is_empty() {
            ids = catalog
                .ids()
                .filter(|id| !catalog.get(*id).read_only)
                .collect();
        }
        let live = table.read();
        let (mut count, mut sum) = (0_u64, 0_u64);
        let mut text = Vec::new();
        for id in live.ids_from(0) {
            let Some(view) = live.view(id) else {
                continue;
            };
            text.clear();
            for property in &ids {
                view.push(*property, catalog.get(*property), &mut text);
                text.push(0x1f);
            }
            let hash = text.chunks(8).fold(mix(id), |h, chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                mix(h ^ u64::from_le_bytes(word))
            });
            sum = sum.wrapping_add(hash);
            count += 1;
        }
        Ok(json!({"count": count, "hash": format!("{sum:016x}")}))
    }

    fn base_id(&self, object: &str, n: u64) -> Result<String, Refused> {
        let table = self.table(object)?;
        let live = table.read();
        if n == 0 || n > live.ground.count {
            return Err(Refused::NotFound(format!(
                "{object} {n}: there are {} base records",
                live.ground.count
            )));
        }
        Ok(live.ground.id(n).to_string())
    }

    fn expire_tokens(&self) {
        self.auth.expire_all();
    }

    fn set_rate_limits(&self, limits: &Map<String, Value>) -> Result<Value, Refused> {
        self.limits.set(limits)
    }

    fn change_schema(&self, object: &str, change: &Map<String, Value>) -> Result<Value, Refused> {
        Ok(properties::administer(
            self.table(object)?,
            change,
            self.now_ms(),
        )?)
    }

    fn set_webhooks(&self, settings: &Map<String, Value>) -> Result<Value, Refused> {
        self.webhooks.set(settings)
    }

    fn pass_events(&self) {
        while super::webhooks::pass(self) {}
    }
}
