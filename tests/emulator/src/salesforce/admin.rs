//! What a person does in Salesforce's own screens, and the levers of a test that only this side has.

use super::State;
use super::error::Error;
use super::ids::SfId;
use super::schema::{Obj, Object, at};
use super::store::{Hit, Row};
use super::tx::{Tx, Writer};
use super::value::Value;
use crate::admin::{Actor, Crm, Refused};
use crate::clock::mix;
use axum::Router;
use axum::body::Body;
use axum::extract::State as Extract;
use axum::http::{StatusCode, header};
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use serde_json::{Map, Value as Json, json};
use std::sync::Arc;

/// `changeOrigin` of a change made in Lightning.
const UI_ORIGIN: &str = "com/salesforce/api/soap/60.0;client=SfdcInternalAPI/";

/// Admin routes that only Salesforce has.
pub(crate) fn router(state: Arc<State>) -> Router {
    Router::new()
        .route(
            "/_admin/salesforce/settings",
            get(show_settings).post(change_settings),
        )
        .route("/_admin/salesforce/row-faults", post(add_row_fault))
        .route("/_admin/salesforce/gap", post(gap))
        .route("/_admin/salesforce/convert-lead", post(convert_lead))
        .route("/_admin/salesforce/edit-together", post(edit_together))
        .route(
            "/_admin/salesforce/expire-replay-ids",
            post(expire_replay_ids),
        )
        .route("/_admin/salesforce/forget-clients", post(forget_clients))
        .with_state(state)
}

pub(super) type Answer = Result<Json, Refused>;

fn finish(answer: Answer) -> Response {
    let (status, body) = match answer {
        Ok(body) => (StatusCode::OK, body),
        Err(Refused::NotFound(error)) => (StatusCode::NOT_FOUND, json!({"error": error})),
        Err(Refused::Bad(error)) => (StatusCode::BAD_REQUEST, json!({"error": error})),
    };
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}

fn object_body(body: &Bytes) -> Result<Map<String, Json>, Refused> {
    serde_json::from_slice(body)
        .map_err(|error| Refused::Bad(format!("body: expected a JSON object: {error}")))
}

async fn show_settings(Extract(org): Extract<Arc<State>>) -> Response {
    finish(Ok(org.settings().to_json()))
}

async fn change_settings(Extract(org): Extract<Arc<State>>, body: Bytes) -> Response {
    finish(object_body(&body).and_then(|changes| org.change_settings(&changes)))
}

async fn add_row_fault(Extract(org): Extract<Arc<State>>, body: Bytes) -> Response {
    finish(object_body(&body).and_then(|fault| org.add_row_fault(&fault)))
}

async fn gap(Extract(org): Extract<Arc<State>>, body: Bytes) -> Response {
    finish(object_body(&body).and_then(|gap| org.gap(&gap)))
}

async fn convert_lead(Extract(org): Extract<Arc<State>>, body: Bytes) -> Response {
    finish(object_body(&body).and_then(|deed| org.convert_lead(&deed)))
}

async fn edit_together(Extract(org): Extract<Arc<State>>, body: Bytes) -> Response {
    finish(object_body(&body).and_then(|deed| org.edit_together(&deed)))
}

async fn expire_replay_ids(Extract(org): Extract<Arc<State>>) -> Response {
    org.bus.expire();
    finish(Ok(json!({})))
}

async fn forget_clients(Extract(org): Extract<Arc<State>>) -> Response {
    org.comets.forget_all();
    org.bus.wake();
    finish(Ok(json!({})))
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        let text = format!("{}: {}", error.code, error.message);
        if error.status == 404 {
            Self::NotFound(text)
        } else {
            Self::Bad(text)
        }
    }
}

pub(super) fn text<'a>(map: &'a Map<String, Json>, key: &str) -> Result<&'a str, Refused> {
    map.get(key)
        .and_then(Json::as_str)
        .ok_or_else(|| Refused::Bad(format!("{key}: expected text")))
}

impl State {
    pub(super) fn named(&self, object: &str) -> Result<&Object, Refused> {
        // Plurals too, so that one test can name the objects of both CRMs alike.
        let plural = |known: &&Object| known.plural.eq_ignore_ascii_case(object);
        let found = self
            .schema()
            .find(object)
            .or_else(|| self.schema().objects.iter().find(plural));
        found.ok_or_else(|| {
            Refused::NotFound(format!("no object `{object}`; known are {}", known()))
        })
    }

    pub(super) fn id(&self, object: &Object, id: &str) -> Result<SfId, Refused> {
        let parsed = SfId::parse(id).filter(|parsed| parsed.prefix == object.obj.prefix());
        parsed.ok_or_else(|| Refused::NotFound(format!("`{id}` is no id of {}", object.obj.name())))
    }

    pub(super) fn actor(&self, actor: &Actor) -> Result<Writer, Refused> {
        let user = match actor.user.as_deref() {
            None => SfId::new(Obj::User.prefix(), 2),
            Some(name) => self.user(name)?,
        };
        let origin = actor.source.clone().unwrap_or_else(|| UI_ORIGIN.to_owned());
        Ok(Writer {
            user,
            origin,
            system: false,
            allow_duplicates: true,
        })
    }

    fn user(&self, name: &str) -> Result<SfId, Refused> {
        if let Some(id) = SfId::parse(name).filter(|id| id.prefix == Obj::User.prefix()) {
            return Ok(id);
        }
        let object = self.schema().object(Obj::User);
        let field = object.index("Username").unwrap_or_default();
        let found = self.read_store().table(Obj::User).lookup(
            object,
            &self.shared.people,
            field,
            &Value::text(name),
        );
        // Anybody else acts as the first owner: a test may name a person of the other CRM.
        Ok(SfId::new(
            Obj::User.prefix(),
            found.first().map_or(2, Hit::number),
        ))
    }

    pub(super) fn act<T>(
        &self,
        writer: Writer,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, Error>,
    ) -> Result<T, Refused> {
        let mut tx = Tx::begin(self, writer);
        let done = work(&mut tx)?;
        tx.commit();
        Ok(done)
    }

    pub(super) fn shown(&self, object: &Object, hit: &Hit) -> Json {
        let view = hit.view(object, &self.shared.people);
        let fields = object
            .visible()
            .filter(|(_, field)| field.kind != super::schema::Kind::Address);
        Json::Object(
            fields
                .map(|(index, field)| (field.name.to_owned(), view.with(index, Value::to_json)))
                .collect(),
        )
    }
}

fn known() -> String {
    Obj::ALL.map(Obj::name).join(", ")
}

impl Crm for State {
    fn edit(&self, object: &str, id: &str, fields: &Map<String, Json>, actor: &Actor) -> Answer {
        let object = self.named(object)?;
        let id = self.id(object, id)?;
        self.act(self.actor(actor)?, |tx| tx.update(id, fields))?;
        self.record(object.obj.name(), &id.to_string())
    }

    fn create(&self, object: &str, fields: &Map<String, Json>, actor: &Actor) -> Answer {
        let object = self.named(object)?;
        let id = self.act(self.actor(actor)?, |tx| tx.create(object.obj, fields))?;
        self.record(object.obj.name(), &id.to_string())
    }

    fn delete(&self, object: &str, id: &str, actor: &Actor) -> Answer {
        let id = self.id(self.named(object)?, id)?;
        self.act(self.actor(actor)?, |tx| tx.delete(id))?;
        Ok(json!({"id": id.to_string(), "IsDeleted": true}))
    }

    fn restore(&self, object: &str, id: &str, actor: &Actor) -> Answer {
        let object = self.named(object)?;
        let id = self.id(object, id)?;
        self.act(self.actor(actor)?, |tx| tx.undelete(id))?;
        self.record(object.obj.name(), &id.to_string())
    }

    fn merge(&self, object: &str, winner: &str, loser: &str, actor: &Actor) -> Answer {
        let object = self.named(object)?;
        let (winner, loser) = (self.id(object, winner)?, self.id(object, loser)?);
        if winner == loser {
            return Err(Refused::Bad(
                "winner and loser are the same record".to_owned(),
            ));
        }
        self.act(self.actor(actor)?, |tx| {
            self.merge_in(tx, object.obj, winner, loser)
        })?;
        self.record(object.obj.name(), &winner.to_string())
    }

    fn privacy_delete(&self, object: &str, id: &str, actor: &Actor) -> Answer {
        let id = self.id(self.named(object)?, id)?;
        self.act(self.actor(actor)?, |tx| tx.purge(id))?;
        Ok(json!({"id": id.to_string(), "purged": true}))
    }

    fn record(&self, object: &str, id: &str) -> Answer {
        let object = self.named(object)?;
        let id = self.id(object, id)?;
        let hit = self.read_store().table(object.obj).get(id.number);
        let hit = hit.ok_or_else(|| Refused::NotFound(format!("no {} {id}", object.obj.name())))?;
        Ok(self.shown(object, &hit))
    }

    fn overlay(&self, object: &str, after: Option<&str>, limit: usize) -> Answer {
        let object = self.named(object)?;
        let from = match after {
            Some(id) => self.id(object, id)?.number + 1,
            None => 1,
        };
        let written: Vec<(u64, Arc<Row>)> = {
            let store = self.read_store();
            store
                .table(object.obj)
                .written_from(from)
                .filter(|(_, row)| !row.purged)
                .take(limit + 1)
                .map(|(number, row)| (number, Arc::clone(row)))
                .collect()
        };
        let next = (written.len() > limit)
            .then(|| SfId::new(object.obj.prefix(), written[limit - 1].0).to_string());
        let records: Vec<Json> = written
            .into_iter()
            .take(limit)
            .map(|(number, row)| self.shown(object, &Hit::Row(number, row)))
            .collect();
        Ok(json!({"records": records, "next": next}))
    }

    fn digest(&self, object: &str, fields: &[String]) -> Answer {
        let object = self.named(object)?;
        let find = |name: &String| {
            object
                .index(name)
                .ok_or_else(|| Refused::Bad(format!("no field `{name}` in {}", object.obj.name())))
        };
        let indexes: Vec<usize> = fields.iter().map(find).collect::<Result<_, _>>()?;
        let (mut count, mut sum, mut from) = (0u64, 0u64, 1u64);
        loop {
            // In steps, so that writers get their turn.
            let hits: Vec<Hit> = {
                let store = self.read_store();
                let table = store.table(object.obj);
                if from > table.last() {
                    break;
                }
                table.by_number(from, from + 9_999).collect()
            };
            from += 10_000;
            let mut line = Vec::with_capacity(256);
            for hit in hits.iter().filter(|hit| !hit.deleted()) {
                line.clear();
                let view = hit.view(object, &self.shared.people);
                view.with(at::ID, |value| value.push_json(&mut line));
                for index in &indexes {
                    line.push(b',');
                    view.with(*index, |value| value.push_json(&mut line));
                }
                count += 1;
                sum = sum.wrapping_add(hash(&line));
            }
        }
        Ok(json!({"count": count, "hash": format!("{sum:016x}")}))
    }

    fn change_schema(&self, object: &str, change: &Map<String, Json>) -> Answer {
        self.change_field(object, change)
    }

    fn base_id(&self, object: &str, n: u64) -> Result<String, Refused> {
        let object = self.named(object)?;
        let count = super::base::count(object.obj, &self.shared.people);
        if n == 0 || n > count {
            return Err(Refused::NotFound(format!(
                "{} has base records 1 to {count}, not {n}",
                object.obj.name()
            )));
        }
        Ok(SfId::new(object.obj.prefix(), n).to_string())
    }

    fn expire_tokens(&self) {
        self.sessions.expire_all();
        self.bus.wake();
    }

    fn set_rate_limits(&self, limits: &Map<String, Json>) -> Answer {
        self.change_settings(limits)
    }

    fn set_webhooks(&self, _: &Map<String, Json>) -> Answer {
        Err(Refused::Bad(
            "Salesforce pushes no webhooks: subscribe to the Pub/Sub API".to_owned(),
        ))
    }

    /// Events met them when they were made.
    fn pass_events(&self) {}
}

/// FNV-1a, then mixed: the sum over all records does not depend on their order.
fn hash(line: &[u8]) -> u64 {
    mix(line.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    }))
}
