//! Salesforce: the connector, assembled. See README.md for what lives where.

pub mod cdc;

mod auth;
mod avro;
mod bulk;
mod catalog;
mod errors;
mod ingest;
mod push;
mod request;
mod response;

pub use request::event_schema;

use crate::budget::Exhausted;
use crate::connectors::bulk::{BulkReader, BulkWriter};
use crate::connectors::{
    Account, Connector, Credential, ErrorRule, Keyset, LimitHint, OurFields, ServerConfig,
    SignatureError, Token, table,
};
use crate::http::{Delivery, HttpRequest, HttpResponse};
use crate::model::{
    Change, FieldType, Millis, Page, RemoteError, RemoteField, RemoteObject, Value, Write,
    WriteKind, WriteResult,
};
use crate::secret::Secret;

/// Our External ID: the key of our creates.
pub(crate) const OUR_UNIQUE: &str = "pg_crm_sync_id__c";
/// Our field that says who wrote last.
pub(crate) const OUR_SOURCE: &str = "sync_source__c";

/// The connector for Salesforce.
#[derive(Clone, Copy, Debug)]
pub struct Salesforce;

/// An id in its 18-character form. What is no 15-character id is left alone.
pub fn id18(id: &str) -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ012345";
    if id.len() != 15 || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return id.to_owned();
    }
    let mut out = id.to_owned();
    for chunk in id.as_bytes().chunks(5) {
        let bits = chunk
            .iter()
            .enumerate()
            .filter(|(_, b)| b.is_ascii_uppercase())
            .fold(0, |bits, (i, _)| bits | 1 << i);
        out.push(char::from(DIGITS[bits]));
    }
    out
}

/// The mark of our calls, which comes back as `changeOrigin` of their events.
pub fn client_mark(installation: &str) -> String {
    let id: String = installation
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
        .collect();
    format!("pg_crm_sync_{id}")
}

impl Connector for Salesforce {
    fn name(&self) -> &'static str {
        "salesforce"
    }

    fn vendor_hosts(&self) -> &'static [&'static str] {
        &[".salesforce.com"]
    }

    fn base_url(&self, config: &ServerConfig, token: Option<&Token>) -> String {
        match config.base_url.trim_end_matches('/') {
            "" => token
                .and_then(|t| t.instance_url.clone())
                .unwrap_or_else(|| auth::login_root(config).to_owned()),
            url => url.to_owned(),
        }
    }

    fn token_request(
        &self,
        config: &ServerConfig,
        credential: &Credential,
        now: Millis,
    ) -> Result<Option<HttpRequest>, RemoteError> {
        auth::request(config, credential, now)
    }

    fn token(&self, response: &HttpResponse, _now: Millis) -> Result<Token, RemoteError> {
        auth::token(response)
    }

    fn authorize(&self, config: &ServerConfig, token: &Token, request: &mut HttpRequest) {
        let value = format!("Bearer {}", token.access.expose());
        request.headers.push(("authorization".into(), value));
        let mark = format!("client={}", client_mark(&config.installation));
        request.headers.push(("sforce-call-options".into(), mark));
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
        match error.code.as_str() {
            "REQUEST_LIMIT_EXCEEDED" if error.message.contains("Concurrent") => {
                Exhausted::Concurrency
            }
            "REQUEST_LIMIT_EXCEEDED" => Exhausted::Day,
            _ => Exhausted::Window,
        }
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
        vec![request::objects(config)]
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
        since: Option<&str>,
    ) -> HttpRequest {
        request::describe(config, object, since)
    }

    fn renames_fields(&self) -> bool {
        true
    }

    fn fields(
        &self,
        _object: &str,
        response: &HttpResponse,
    ) -> Result<Vec<RemoteField>, RemoteError> {
        catalog::fields(response)
    }

    fn modified_field(&self, _object: &str) -> &'static str {
        "SystemModstamp"
    }

    fn time_zone_request(&self, config: &ServerConfig) -> Option<HttpRequest> {
        Some(request::time_zone(config))
    }

    fn time_zone(&self, response: &HttpResponse) -> Result<Option<String>, RemoteError> {
        response::time_zone(response)
    }

    fn list_batch(&self) -> usize {
        usize::try_from(request::QUERY_LIMIT).unwrap_or(1)
    }

    fn count_request(&self, config: &ServerConfig, object: &str) -> HttpRequest {
        request::count(config, object)
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
        match cursor.and_then(bulk::Place::parse) {
            Some(place) => place.results(config),
            None => request::list(config, object, fields, cursor),
        }
    }

    fn bulk(&self) -> Option<&dyn BulkReader> {
        Some(self)
    }

    fn bulk_writer(&self) -> Option<&dyn BulkWriter> {
        Some(self)
    }

    fn poll_request(
        &self,
        config: &ServerConfig,
        object: &str,
        fields: &[(String, FieldType)],
        since: &Keyset,
    ) -> HttpRequest {
        request::poll(config, object, fields, since)
    }

    fn read_request(
        &self,
        config: &ServerConfig,
        object: &str,
        fields: &[(String, FieldType)],
        ids: &[String],
    ) -> HttpRequest {
        request::read(config, object, fields, ids)
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
        cdc::names_writer(application)
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
        _object: &str,
        fields: &[(String, FieldType)],
        response: &HttpResponse,
    ) -> Result<Page, RemoteError> {
        response::page(fields, response)
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

    fn writes_on_condition(&self) -> bool {
        true
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
        push::request(config, object, kind, unique_field, writes)
    }

    fn pushed(
        &self,
        kind: WriteKind,
        unique_field: Option<&str>,
        writes: &[Write],
        response: &HttpResponse,
    ) -> Vec<WriteResult> {
        push::pushed(kind, unique_field, writes, response)
    }

    fn hides_merges(&self, object: &str) -> bool {
        request::MERGEABLE.contains(&object)
    }

    fn fate_request(
        &self,
        config: &ServerConfig,
        object: &str,
        ids: &[String],
    ) -> Option<(HttpRequest, &'static str)> {
        let asks = self.hides_merges(object) && !ids.is_empty();
        asks.then(|| (request::fate(config, object, ids), request::MASTER))
    }

    fn successor_fields(&self, object: &str) -> &'static [(&'static str, &'static str)] {
        match object {
            "Lead" => &[("ConvertedContactId", "Contact")],
            _ => &[],
        }
    }

    fn topic(&self, object: &str) -> Option<String> {
        let name = match object.strip_suffix("__c") {
            Some(custom) => format!("{custom}__ChangeEvent"),
            None => format!("{object}ChangeEvent"),
        };
        Some(format!("/data/{name}"))
    }

    fn our_fields(&self) -> OurFields {
        OurFields {
            unique: OUR_UNIQUE,
            source: OUR_SOURCE,
        }
    }

    fn verify(
        &self,
        _delivery: &Delivery,
        _secret: &Secret,
        _now: Millis,
    ) -> Result<(), SignatureError> {
        // Salesforce signs no webhooks: changes come by stream.
        Err(SignatureError::Missing)
    }

    fn decode(&self, _delivery: &Delivery) -> Result<Vec<Change>, RemoteError> {
        Err(table::unusable(
            "no_webhooks",
            "Salesforce sends no webhooks",
            "Remove the webhook; changes of Salesforce come by Change Data Capture or polling.",
        ))
    }

    fn canonical(&self, field_type: FieldType, raw: &str) -> Result<Value, RemoteError> {
        response::canonical(field_type, raw)
    }
}

#[cfg(test)]
mod tests;
