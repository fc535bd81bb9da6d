//! The connector of the made-up CRM.

use crm_core::connectors::{
    ClassLimit, Connector, Credential, ErrorRule, Keyset, LimitHint, OurFields, ServerConfig,
    SignatureError, Token,
};
use crm_core::http::{Delivery, HttpRequest, HttpResponse, Method, Purpose};
use crm_core::model::{
    Change, ErrorClass, FieldType, Millis, Page, Record, RemoteError, RemoteField, RemoteObject,
    Value, Write, WriteKind, WriteResult,
};
use crm_core::secret::Secret;
use serde_json::Value as Json;

/// Speaks JSON: a token is `{"access", "ttl_ms"?}`, a page `["id", ...]`, the
/// results of a push `["id" | null, ...]`.
pub struct Fake;

fn error(class: ErrorClass, status: u16, code: &str) -> RemoteError {
    RemoteError {
        class,
        status,
        code: code.into(),
        message: String::new(),
        fields: Vec::new(),
        advice: "",
        retry_after_ms: None,
        maybe_applied: false,
    }
}

fn json(response: &HttpResponse) -> Result<Json, RemoteError> {
    serde_json::from_slice(&response.body)
        .map_err(|_| error(ErrorClass::Retry, response.status, "not_json"))
}

fn request(target: &str, purpose: Purpose) -> HttpRequest {
    HttpRequest {
        method: Method::Post,
        target: target.into(),
        headers: Vec::new(),
        body: Vec::new(),
        purpose,
    }
}

impl Connector for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn vendor_hosts(&self) -> &'static [&'static str] {
        &[]
    }

    fn base_url(&self, config: &ServerConfig, token: Option<&Token>) -> String {
        token
            .and_then(|t| t.instance_url.clone())
            .unwrap_or_else(|| config.base_url.clone())
    }

    fn token_request(
        &self,
        _: &ServerConfig,
        credential: &Credential,
        _: Millis,
    ) -> Result<Option<HttpRequest>, RemoteError> {
        match credential {
            Credential::Token { .. } => Ok(None),
            Credential::RefreshToken { refresh_token, .. } => {
                let mut login = request("/token", Purpose::Auth);
                login.body = refresh_token.expose().into();
                Ok(Some(login))
            }
            _ => Ok(Some(request("/token", Purpose::Auth))),
        }
    }

    fn token(&self, response: &HttpResponse, now: Millis) -> Result<Token, RemoteError> {
        if response.status != 200 {
            return Err(error(ErrorClass::Stop, response.status, "invalid_grant"));
        }
        let body = json(response)?;
        Ok(Token {
            access: Secret::new(body["access"].as_str().unwrap_or("")),
            expires_at: body["ttl_ms"].as_i64().map(|ms| now + ms),
            instance_url: body["instance_url"].as_str().map(Into::into),
            tenant: Some("00D000000000001AAA".into()),
            refresh_token: body["refresh"].as_str().map(Secret::new),
        })
    }

    fn authorize(&self, _: &ServerConfig, token: &Token, request: &mut HttpRequest) {
        let value = format!("Bearer {}", token.access.expose());
        request.headers.push(("authorization".into(), value));
    }

    fn errors(&self) -> &'static [ErrorRule] {
        &[]
    }

    fn classify(&self, response: &HttpResponse) -> RemoteError {
        let class = match response.status {
            401 => ErrorClass::Reauth,
            423 | 429 => ErrorClass::Wait,
            500.. => ErrorClass::Retry,
            _ => ErrorClass::FixData,
        };
        let mut e = error(class, response.status, "http");
        e.retry_after_ms = response
            .header("retry-after-ms")
            .and_then(|v| v.parse().ok());
        e
    }

    fn limits(&self, response: &HttpResponse) -> LimitHint {
        let number = |name| response.header(name).and_then(|v| v.parse().ok());
        LimitHint {
            window_max: number("x-max"),
            window_remaining: number("x-left"),
            window_ms: number("x-window-ms"),
            ..LimitHint::default()
        }
    }

    fn class_limit(&self, request: &HttpRequest) -> Option<ClassLimit> {
        request.target.starts_with("/search").then_some(ClassLimit {
            name: "search",
            calls: 5,
            window_ms: 1_000,
        })
    }

    fn probe(&self, _: &ServerConfig) -> HttpRequest {
        request("/probe", Purpose::Catalog)
    }

    fn probed(&self, _: &HttpResponse) -> Result<Vec<(String, String)>, RemoteError> {
        Ok(Vec::new())
    }

    fn objects_requests(&self, _: &ServerConfig) -> Vec<HttpRequest> {
        Vec::new()
    }

    fn objects(&self, _: usize, _: &HttpResponse) -> Result<Vec<RemoteObject>, RemoteError> {
        Ok(Vec::new())
    }

    fn fields_request(&self, _: &ServerConfig, _: &str, _: Option<&str>) -> HttpRequest {
        request("/fields", Purpose::Catalog)
    }

    fn fields(&self, _: &str, _: &HttpResponse) -> Result<Vec<RemoteField>, RemoteError> {
        Ok(Vec::new())
    }

    fn modified_field(&self, _: &str) -> &'static str {
        "modified"
    }

    fn count_request(&self, _: &ServerConfig, _: &str) -> HttpRequest {
        request("/count", Purpose::Backfill)
    }

    fn count(&self, _: &HttpResponse) -> Result<u64, RemoteError> {
        Ok(0)
    }

    fn list_request(
        &self,
        _: &ServerConfig,
        _: &str,
        _: &[(String, FieldType)],
        cursor: Option<&str>,
    ) -> HttpRequest {
        let target = format!("/list?after={}", cursor.unwrap_or(""));
        request(&target, Purpose::Backfill)
    }

    fn poll_request(
        &self,
        _: &ServerConfig,
        _: &str,
        _: &[(String, FieldType)],
        _: &Keyset,
    ) -> HttpRequest {
        request("/poll", Purpose::Poll)
    }

    fn read_request(
        &self,
        _: &ServerConfig,
        _: &str,
        _: &[(String, FieldType)],
        _: &[String],
    ) -> HttpRequest {
        request("/read", Purpose::ReadBack)
    }

    fn find_request(
        &self,
        _: &ServerConfig,
        _: &str,
        _: &[(String, FieldType)],
        _: &str,
        _: &[String],
    ) -> HttpRequest {
        request("/search", Purpose::Match)
    }

    fn page(
        &self,
        _: &str,
        fields: &[(String, FieldType)],
        response: &HttpResponse,
    ) -> Result<Page, RemoteError> {
        let body = json(response)?;
        assert!(body != "panic", "the parser of the made-up CRM was told to");
        let record = |id: &Json| Record {
            id: id.as_str().unwrap_or("").into(),
            values: crm_core::cells::Cells::nulls(fields.len(), 0),
            ..Record::default()
        };
        let ids = body
            .as_array()
            .ok_or_else(|| error(ErrorClass::Retry, response.status, "not_a_page"))?;
        Ok(Page {
            records: ids.iter().map(record).collect(),
            next: response.header("x-next").map(str::to_owned),
            ..Page::default()
        })
    }

    fn read_batch(&self) -> usize {
        100
    }

    fn find_batch(&self, _: &str, _: &[(String, FieldType)], _: &str, values: &[String]) -> usize {
        values.len().max(1)
    }

    fn push_batch(&self, _: WriteKind) -> usize {
        100
    }

    fn push_request(
        &self,
        _: &ServerConfig,
        object: &str,
        _: WriteKind,
        _: Option<&str>,
        writes: &[Write],
    ) -> HttpRequest {
        let keys: Vec<_> = writes.iter().map(|w| w.key.as_str()).collect();
        HttpRequest {
            body: serde_json::to_vec(&keys).unwrap_or_default(),
            ..request(&format!("/push/{object}"), Purpose::Push)
        }
    }

    fn pushed(
        &self,
        _: WriteKind,
        _: Option<&str>,
        writes: &[Write],
        response: &HttpResponse,
    ) -> Vec<WriteResult> {
        if response.status != 200 {
            return vec![WriteResult::Failed(self.classify(response)); writes.len()];
        }
        let body = json(response).unwrap_or_default();
        let result = |n: usize| match body[n].as_str() {
            Some(id) => WriteResult::Done {
                id: id.into(),
                created: false,
                modified_at: None,
                echoed: Vec::new(),
            },
            None => WriteResult::Unknown(error(ErrorClass::Retry, 200, "not_mentioned")),
        };
        (0..writes.len()).map(result).collect()
    }

    fn our_fields(&self) -> OurFields {
        OurFields {
            unique: "key",
            source: "source",
        }
    }

    fn verify(&self, _: &Delivery, _: &Secret, _: Millis) -> Result<(), SignatureError> {
        Ok(())
    }

    fn decode(&self, _: &Delivery) -> Result<Vec<Change>, RemoteError> {
        Ok(Vec::new())
    }

    fn canonical(&self, _: FieldType, raw: &str) -> Result<Value, RemoteError> {
        Ok(Some(raw.into()))
    }
}
