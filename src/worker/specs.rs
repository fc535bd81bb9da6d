//! What the options and the credential of a server come to, in the form in which
//! the I/O thread wants it.

use crm_core::catalog::CheckRow;
use crm_core::connectors::{self, Credential, ServerConfig};
use crm_core::credential::{self, Loaded};
use crm_core::secret::Secret;
use crm_io::{ServerSpec, WebhookSpec};

use crate::pg::guc;
use crate::pg::store::catalog::ServerRow;
use crate::worker::credential::{
    credential_file, load_ca_file, load_credential, load_webhook_secret,
};
use crate::worker::engine::{Engine, Server};
use crate::worker::journal;

/// How a server's options say where and how it is called.
pub(super) fn config(row: &ServerRow, installation: &str) -> ServerConfig {
    let url = |name: &str| row.option(name).trim_end_matches('/').to_owned();
    ServerConfig {
        base_url: url("base_url"),
        login_url: url("login_url"),
        pubsub_endpoint: row.option("pubsub_endpoint").to_owned(),
        cometd: row.option("stream") == "cometd",
        api_version: row.option("api_version").to_owned(),
        installation: installation.to_owned(),
    }
}

/// Client id and secret of an app.
pub(super) type App = (String, Secret);

/// The same server as the I/O thread reads its journal: by a token of the app's own.
pub(super) fn journal_spec(
    row: &ServerRow,
    spec: &ServerSpec,
    app: Option<App>,
) -> Option<ServerSpec> {
    spec.connector
        .journal()
        .filter(|_| row.option("events") == journal::SOURCE)?;
    let (client_id, client_secret) = app?;
    Some(ServerSpec {
        id: journal::io_id(spec.id),
        credential: Credential::ClientCredentials {
            client_id,
            client_secret,
        },
        credential_file: None,
        webhook: None,
        ..spec.clone()
    })
}

/// What is to be said of events in a check.
pub(super) fn check_events(engine: &Engine, row: &ServerRow) -> Option<CheckRow> {
    let connector = connectors::by_type(&row.server_type)?;
    if row.option("events") != journal::SOURCE {
        return None;
    }
    let wrong = |detail: &str, advice| CheckRow::new("journal", Some(false), detail, Some(advice));
    if connector.journal().is_none() {
        return Some(wrong(
            "this CRM keeps no journal",
            "Take the option events away.",
        ));
    }
    let server = engine.server_by_id(row.oid)?;
    if server.journal.is_none() {
        return Some(wrong(
            "there is no client_id and client_secret of the app",
            "Put both into the credential file: the journal is read by a token of the app's own.",
        ));
    }
    Some(match engine.journals.get(&row.oid) {
        Some(reading) => reading.check(),
        None => CheckRow::new("journal", None, "is not read yet", None),
    })
}

/// All that the I/O thread needs, with the app's own credential if there is one,
/// or what is wrong in words without secrets.
pub(super) fn spec(row: &ServerRow, server: &Server) -> Result<(ServerSpec, Option<App>), String> {
    let dir = guc::secrets_dir();
    let reference = row.option("credentials");
    if reference.is_empty() {
        return Err("The server has no option credentials.".to_owned());
    }
    let loaded: Loaded = load_credential(reference, dir.as_deref())?;
    if !loaded.roles.is_empty() && !loaded.roles.contains(&row.owner) {
        return Err(format!(
            "{reference} may not be used by servers of {}. Its list of roles says who may.",
            row.owner
        ));
    }
    let webhook_secret = match row.option("webhook_secret") {
        "" => loaded.webhook_secret,
        reference => Some(load_webhook_secret(reference, dir.as_deref())?),
    };
    let ca_pem = match row.option("ca_file") {
        "" => None,
        path => Some(load_ca_file(path)?),
    };
    let own: Vec<String> = row
        .option("allowed_hosts")
        .split(',')
        .map(str::to_owned)
        .filter(|h| !h.trim().is_empty())
        .collect();
    let app = loaded.app;
    let spec = ServerSpec {
        id: row.oid,
        connector: server.connector,
        config: server.config.clone(),
        credential: loaded.credential,
        credential_file: credential_file(reference, dir.as_deref()),
        allowed_hosts: credential::allowed_hosts(&guc::allowed_hosts(), [&loaded.hosts, &own]),
        ca_pem,
        webhook: webhook_secret.map(|secret| WebhookSpec {
            name: server.name.clone(),
            secret,
            url: server.webhook_url.clone(),
        }),
    };
    Ok((spec, app))
}
