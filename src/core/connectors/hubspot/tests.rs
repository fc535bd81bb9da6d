#![allow(clippy::unwrap_used, reason = "a failed test panics")]

use super::*;
use crate::connectors::by_type;
use crate::model::ErrorClass;

mod associations;
mod journal;
mod pages;
mod pushes;
mod references;
mod requests;
mod webhooks;

fn hubspot() -> &'static dyn Connector {
    by_type("hubspot").unwrap()
}

fn answer(status: u16, body: &str) -> HttpResponse {
    HttpResponse {
        status,
        headers: Vec::new(),
        body: body.as_bytes().to_vec(),
    }
}

fn fields(list: &[(&str, FieldType)]) -> Vec<(String, FieldType)> {
    list.iter().map(|(n, t)| ((*n).to_owned(), *t)).collect()
}

fn body(request: &HttpRequest) -> serde_json::Value {
    serde_json::from_slice(&request.body).unwrap()
}

fn class(status: u16, text: &str) -> ErrorClass {
    hubspot().classify(&answer(status, text)).class
}
