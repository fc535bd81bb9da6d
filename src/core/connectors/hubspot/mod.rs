//! HubSpot: the connector, assembled. See README.md for what lives where.

pub mod webhook;

mod association;
mod catalog;
mod errors;
mod journal;
mod push;
mod reference;
mod request;
mod response;

use crate::budget::Exhausted;
use crate::connectors::journal::Journal;
use crate::connectors::{
    Account, ClassLimit, Connector, Credential, ErrorRule, Keyset, LimitHint, OurFields,
    ServerConfig, SignatureError, Token,
};
use crate::http::{Delivery, HttpRequest, HttpResponse, Purpose};
use crate::model::{
    Change, FieldType, Millis, Page, RemoteError, RemoteField, RemoteObject, Value, Write,
    WriteKind, WriteResult,
};
use crate::secret::Secret;

/// Our unique property: the key of our creates.
pub(crate) const OUR_UNIQUE: &str = "pg_crm_sync_id";
/// Our property that says who wrote last.
pub(crate) const OUR_SOURCE: &str = "sync_source";

/// Searches are limited per account, apart from all other calls, and their
/// answers tell nothing of it.
const SEARCH: ClassLimit = ClassLimit {
    name: "search",
    calls: 5,
    window_ms: 1_000,
};

/// The connector for HubSpot.
#[derive(Clone, Copy, Debug)]
pub struct HubSpot;

impl Connector for HubSpot {
    fn name(&self) -> &'static str {
        "hubspot"
    }

    fn vendor_hosts(&self) -> &'static [&'static str] {
        &["api.hubapi.com", ".hubapi.com", "api.hubspot.com"]
    }

    fn base_url(&self, config: &ServerConfig, _token: Option<&Token>) -> String {
        match config.base_url.trim_end_matches('/') {
            "" => request::BASE_URL.to_owned(),
            url => url.to_owned(),
        }
    }

    fn token_request(
        &self,
        config: &ServerConfig,
        credential: &Credential,
        _now: Millis,
    ) -> Result<Option<HttpRequest>, RemoteError> {
        request::token(config, credential)
    }

    fn token(&self, response: &HttpResponse, now: Millis) -> Result<Token, RemoteError> {
        response::token(response, now)
    }

    fn authorize(&self, _config: &ServerConfig, token: &Token, request: &mut HttpRequest) {
        // Files of the journal lie elsewhere; their addresses carry their own permission.
        if !request.target.starts_with('/') {
            return;
        }
        let value = format!("Bearer {}", token.access.expose());
        request.headers.push(("authorization".into(), value));
    }

    fn errors(&self) -> &'static [ErrorRule] {
        errors::RULES
    }

    fn classify(&self, response: &HttpResponse) -> RemoteError {
        errors::classify(response)
    }

    fn limits(&self, response: &HttpResponse) -> LimitHint {
        response::limits(response)
    }

    fn exhausted(&self, error: &RemoteError) -> Exhausted {
        match (error.status, error.code.as_str()) {
            (477, _) => Exhausted::Account,
            (_, "DAILY") => Exhausted::Day,
            (_, "SECONDLY") => Exhausted::Class,
            _ => Exhausted::Window,
        }
    }

    fn class_limit(&self, request: &HttpRequest) -> Option<ClassLimit> {
        request.target.ends_with("/search").then_some(SEARCH)
    }

    fn probe(&self, config: &ServerConfig) -> HttpRequest {
        request::probe(config)
    }

    fn probed(&self, response: &HttpResponse) -> Result<Vec<(String, String)>, RemoteError> {
        response::probed(response)
    }

    fn account(&self, response: &HttpResponse) -> Account {
        response::account(response)
    }

    fn objects_requests(&self, config: &ServerConfig) -> Vec<HttpRequest> {
        vec![request::schemas(config)]
    }

    fn objects(
        &self,
        _index: usize,
        response: &HttpResponse,
    ) -> Result<Vec<RemoteObject>, RemoteError> {
        catalog::objects(response)
    }

    fn fields_request(
        &self,
        config: &ServerConfig,
        object: &str,
        _since: Option<&str>,
    ) -> HttpRequest {
        match reference::of(object) {
            Some(r) => reference::list(config, r, false, None, Purpose::Catalog),
            None if association::of(object).is_some() => association::describe(config, object),
            None => request::properties(config, object),
        }
    }

    fn fields(
        &self,
        object: &str,
        response: &HttpResponse,
    ) -> Result<Vec<RemoteField>, RemoteError> {
        match reference::of(object) {
            Some(r) => reference::fields(r, response),
            None if association::of(object).is_some() => association::fields(object, response),
            None => catalog::fields(object, response),
        }
    }

    fn modified_field(&self, object: &str) -> &'static str {
        catalog::modified_field(object)
    }

    fn time_zone_request(&self, config: &ServerConfig) -> Option<HttpRequest> {
        Some(request::probe(config))
    }

    fn time_zone(&self, response: &HttpResponse) -> Result<Option<String>, RemoteError> {
        response::time_zone(response)
    }

    fn count_request(&self, config: &ServerConfig, object: &str) -> HttpRequest {
        match reference::of(object) {
            // No answer tells a number; one that comes shows that lists will.
            Some(r) => reference::list(config, r, false, None, Purpose::Catalog),
            None => request::count(config, object),
        }
    }

    fn count(&self, response: &HttpResponse) -> Result<u64, RemoteError> {
        response::count(response)
    }

    fn list_request(
        &self,
        config: &ServerConfig,
        object: &str,
        fields: &[(String, FieldType)],
        cursor: Option<&str>,
    ) -> HttpRequest {
        match reference::of(object) {
            Some(r) => reference::list(config, r, false, cursor, Purpose::Backfill),
            None => request::list(config, object, fields, cursor),
        }
    }

    fn poll_request(
        &self,
        config: &ServerConfig,
        object: &str,
        fields: &[(String, FieldType)],
        since: &Keyset,
    ) -> HttpRequest {
        match reference::of(object) {
            Some(r) => reference::poll(config, r, since),
            None => request::poll(config, object, fields, since),
        }
    }

    fn pairs_in_a_read(&self) -> usize {
        association::READ
    }

    fn polls_list_all(&self, object: &str) -> bool {
        reference::of(object).is_some()
    }

    fn next_keyset(&self, object: &str, asked: &Keyset, page: &Page) -> Option<Keyset> {
        match reference::of(object) {
            Some(r) => reference::next_keyset(r, asked, page),
            None => response::next_keyset(asked, page),
        }
    }

    fn highest_request(&self, config: &ServerConfig, object: &str) -> Option<HttpRequest> {
        let searched = reference::of(object).is_none();
        searched.then(|| request::by_id(config, object, "0", "DESCENDING"))
    }

    fn seek_request(&self, config: &ServerConfig, object: &str, id: &str) -> Option<HttpRequest> {
        Some(request::by_id(config, object, id, "ASCENDING"))
    }

    fn removed_request(
        &self,
        config: &ServerConfig,
        object: &str,
        cursor: Option<&str>,
    ) -> Option<HttpRequest> {
        let apart = reference::of(object).is_none();
        apart.then(|| request::removed(config, object, cursor))
    }

    fn read_request(
        &self,
        config: &ServerConfig,
        object: &str,
        fields: &[(String, FieldType)],
        ids: &[String],
    ) -> HttpRequest {
        match association::of(object) {
            Some(_) => association::read(config, object, ids),
            None => request::read(config, object, fields, ids),
        }
    }

    fn find_request(
        &self,
        config: &ServerConfig,
        object: &str,
        fields: &[(String, FieldType)],
        field: &str,
        values: &[String],
    ) -> HttpRequest {
        request::find(config, object, fields, field, values)
    }

    fn names_writer(&self, application: &str) -> bool {
        webhook::names_writer(application)
    }

    fn find_removed_request(
        &self,
        config: &ServerConfig,
        object: &str,
        fields: &[(String, FieldType)],
        field: &str,
        values: &[String],
    ) -> Option<HttpRequest> {
        request::find_removed(config, object, fields, field, values)
    }

    fn page(
        &self,
        object: &str,
        fields: &[(String, FieldType)],
        response: &HttpResponse,
    ) -> Result<Page, RemoteError> {
        match reference::of(object) {
            Some(r) => reference::page(r, fields, response),
            None if association::of(object).is_some() => association::page(fields, response),
            None => response::page(object, fields, response),
        }
    }

    fn read_batch(&self) -> usize {
        request::BATCH
    }

    fn find_batch(
        &self,
        object: &str,
        fields: &[(String, FieldType)],
        field: &str,
        values: &[String],
    ) -> usize {
        request::find_batch(object, fields, field, values)
    }

    fn push_batch(&self, _kind: WriteKind) -> usize {
        request::BATCH
    }

    fn push_request(
        &self,
        config: &ServerConfig,
        object: &str,
        kind: WriteKind,
        unique_field: Option<&str>,
        writes: &[Write],
    ) -> HttpRequest {
        match association::of(object) {
            Some(_) => association::push(config, object, kind, writes),
            None => push::request(config, object, kind, unique_field, writes),
        }
    }

    fn pushed(
        &self,
        kind: WriteKind,
        unique_field: Option<&str>,
        writes: &[Write],
        response: &HttpResponse,
    ) -> Vec<WriteResult> {
        match association::is(writes) {
            true => association::pushed(writes, response),
            false => push::pushed(kind, unique_field, writes, response),
        }
    }

    fn journal(&self) -> Option<&dyn Journal> {
        Some(self)
    }

    fn our_fields(&self) -> OurFields {
        OurFields {
            unique: OUR_UNIQUE,
            source: OUR_SOURCE,
        }
    }

    fn verify(
        &self,
        delivery: &Delivery,
        secret: &Secret,
        now: Millis,
    ) -> Result<(), SignatureError> {
        webhook::verify(delivery, secret, now, webhook::Accept::V3)
    }

    fn decode(&self, delivery: &Delivery) -> Result<Vec<Change>, RemoteError> {
        webhook::decode(&delivery.body)
    }

    fn canonical(&self, field_type: FieldType, raw: &str) -> Result<Value, RemoteError> {
        response::canonical(field_type, raw)
    }
}

#[cfg(test)]
mod tests;
