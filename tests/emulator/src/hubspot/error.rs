//! HubSpot's error answers.

use serde_json::{Map, Value, json};

/// An error answer; the correlation id is added when it is sent.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: u16,
    pub(crate) body: Map<String, Value>,
}

impl ApiError {
    pub(crate) fn new(status: u16, category: &str, message: impl Into<String>) -> ApiError {
        let mut body = Map::new();
        body.insert("status".to_owned(), json!("error"));
        body.insert("message".to_owned(), json!(message.into()));
        body.insert("category".to_owned(), json!(category));
        ApiError { status, body }
    }

    pub(crate) fn validation(message: impl Into<String>) -> ApiError {
        ApiError::new(400, "VALIDATION_ERROR", message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(404, "OBJECT_NOT_FOUND", message)
    }

    /// Adds or replaces a key.
    pub(crate) fn with(mut self, key: &str, value: Value) -> ApiError {
        self.body.insert(key.to_owned(), value);
        self
    }

    pub(crate) fn message(&self) -> &str {
        self.body
            .get("message")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// As an item of a batch answer's `errors`.
    pub(crate) fn item(&self, context: Value) -> Value {
        let mut item = self.body.clone();
        item.insert("context".to_owned(), context);
        Value::Object(item)
    }
}

/// One refused property value.
pub(crate) fn invalid_value(portal: u64, name: &str, code: &str, message: &str) -> Value {
    json!({"isValid": false, "message": message, "error": code, "name": name,
        "localizedErrorMessage": message, "portalId": portal})
}

/// The 400 for refused property values: the details are JSON inside the message.
pub(crate) fn invalid_values(values: Vec<Value>) -> ApiError {
    let errors: Vec<Value> = values
        .iter()
        .map(|v| {
            json!({"message": v["message"], "code": v["error"],
                "context": {"propertyName": [v["name"]]}})
        })
        .collect();
    ApiError::validation(format!(
        "Property values were not valid: {}",
        Value::Array(values)
    ))
    .with("errors", json!(errors))
}
