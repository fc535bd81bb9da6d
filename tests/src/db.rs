//! A connection to a test cluster.

use std::ops::Deref;
use std::time::Duration;

use tokio_postgres::error::DbError;
use tokio_postgres::types::FromSqlOwned;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::wait::attempt;

/// A client whose helpers panic with the statement when it fails.
pub struct Db {
    client: Client,
}

impl Deref for Db {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Db {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Runs one or more statements.
    pub async fn exec(&self, sql: &str) {
        if let Err(e) = self.client.batch_execute(sql).await {
            panic!("{}\n  in: {sql}", explain(&e));
        }
    }

    /// The one value that `sql` returns.
    pub async fn one<T: FromSqlOwned>(&self, sql: &str) -> T {
        match self.client.query_one(sql, &[]).await {
            Ok(row) => row
                .try_get(0)
                .unwrap_or_else(|e| panic!("{e}\n  in: {sql}")),
            Err(e) => panic!("{}\n  in: {sql}", explain(&e)),
        }
    }

    /// The rows of `sql` as text, without headings; SQL null is `∅`.
    pub async fn table(&self, sql: &str) -> Vec<Vec<String>> {
        let messages = match self.client.simple_query(sql).await {
            Ok(messages) => messages,
            Err(e) => panic!("{}\n  in: {sql}", explain(&e)),
        };
        let cell = |text: Option<&str>| text.unwrap_or("∅").to_owned();
        messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|i| cell(row.get(i))).collect())
                }
                _ => None,
            })
            .collect()
    }

    /// The error that `sql` must raise.
    pub async fn error(&self, sql: &str) -> DbError {
        match self.client.batch_execute(sql).await {
            Ok(()) => panic!("expected an error from: {sql}"),
            Err(e) => e
                .as_db_error()
                .unwrap_or_else(|| panic!("expected an SQL error, got {e}\n  in: {sql}"))
                .clone(),
        }
    }

    /// Waits until the condition `sql` (one boolean) is true; an error counts as not yet.
    pub async fn wait_true(&self, what: &str, patience: Duration, sql: &str) {
        let mut last = String::new();
        let met = attempt(patience, &mut async || {
            match self.client.query_one(sql, &[]).await {
                Ok(row) => row
                    .try_get::<_, Option<bool>>(0)
                    .unwrap_or_else(|e| panic!("{e}\n  in: {sql}")),
                Err(e) => {
                    last = explain(&e);
                    None
                }
            }
            .filter(|met| *met)
        })
        .await;
        assert!(
            met.is_some(),
            "waited {patience:?} in vain until {what}\n  asked: {sql}\n  last error: {last}"
        );
    }
}

/// Message, detail and hint of an error.
fn explain(e: &tokio_postgres::Error) -> String {
    match e.as_db_error() {
        Some(db) => {
            let mut text = format!("{} {}", db.code().code(), db.message());
            for (name, part) in [
                ("detail", db.detail()),
                ("hint", db.hint()),
                ("where", db.where_()),
            ] {
                if let Some(part) = part {
                    text.push_str(&format!("\n  {name}: {part}"));
                }
            }
            text
        }
        None => e.to_string(),
    }
}
