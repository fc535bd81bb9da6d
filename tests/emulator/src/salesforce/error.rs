//! Errors in Salesforce's two shapes: `errorCode` in plain REST, `statusCode` in rows of collections.

use super::soql::SoqlError;
use serde_json::{Value, json};

/// A refused request or row.
#[derive(Clone, Debug)]
pub(crate) struct Error {
    /// HTTP status in plain REST.
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) fields: Vec<String>,
    /// Further keys of the error object (`duplicateResut`).
    pub(crate) extra: Option<Box<(&'static str, Value)>>,
}

impl Error {
    /// An error answered with 400.
    pub(crate) fn bad(code: &str, message: impl Into<String>) -> Self {
        Self::new(400, code, message)
    }

    /// An error with its own HTTP status.
    pub(crate) fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.to_owned(),
            message: message.into(),
            fields: Vec::new(),
            extra: None,
        }
    }

    /// Names the fields at fault.
    pub(crate) fn on(mut self, fields: &[&str]) -> Self {
        self.fields = fields.iter().map(|field| (*field).to_owned()).collect();
        self
    }

    /// The path names nothing.
    pub(crate) fn not_found() -> Self {
        Self::new(404, "NOT_FOUND", "The requested resource does not exist")
    }

    /// The record is in the recycle bin.
    pub(crate) fn deleted() -> Self {
        Self::new(404, "ENTITY_IS_DELETED", "entity is deleted")
    }

    /// The path exists, the method does not.
    pub(crate) fn method(method: &str) -> Self {
        Self::new(
            405,
            "METHOD_NOT_ALLOWED",
            format!("HTTP Method '{method}' not allowed. Allowed are see the documentation"),
        )
    }

    /// The body is not the JSON that is expected.
    pub(crate) fn json(message: impl Into<String>) -> Self {
        Self::bad("JSON_PARSER_ERROR", message)
    }

    /// The error as plain REST shows it, inside its array.
    pub(crate) fn to_rest(&self) -> Value {
        let mut body = json!({"message": self.message, "errorCode": self.code});
        if !self.fields.is_empty() {
            body["fields"] = json!(self.fields);
        }
        if let Some((key, value)) = self.extra.as_deref() {
            body[*key] = value.clone();
        }
        json!([body])
    }

    /// The error as a row of a collections call shows it; no `id`.
    pub(crate) fn to_row(&self) -> Value {
        let mut error =
            json!({"statusCode": self.code, "message": self.message, "fields": self.fields});
        if let Some((key, value)) = self.extra.as_deref() {
            error[*key] = value.clone();
        }
        json!({"success": false, "errors": [error]})
    }
}

impl From<SoqlError> for Error {
    fn from(error: SoqlError) -> Self {
        Self::bad(error.code, error.message)
    }
}
