//! A server as configured: where it is, how to log in, what a request to it becomes.

use std::time::Duration;

use crm_core::connectors::{LimitHint, Token};
use crm_core::http::{HttpRequest, HttpResponse};
use crm_core::model::RemoteError;

use crate::api::{Asked, ServerSpec, Settings};
use crate::client::{Client, Opened};
use crate::errors::local;
use crate::mailbox::Ended;
use crate::server::Server;
use crate::token::{Login, Tokens};
use crate::{clock, hosts};

/// A server as configured; requests on the wire keep the one they began with.
pub(crate) struct Target {
    pub(crate) spec: ServerSpec,
    client: Result<Client, RemoteError>,
    pub(crate) tokens: Tokens,
}

impl Target {
    pub(crate) fn new(spec: ServerSpec, settings: &Settings) -> Self {
        Self {
            client: Client::new(settings, spec.ca_pem.as_deref()),
            spec,
            tokens: Tokens::default(),
        }
    }

    pub(crate) fn can_log_in(&self) -> bool {
        !matches!(
            self.spec.credential,
            crm_core::connectors::Credential::Token { .. }
        )
    }

    /// The token in force; logs in if needed.
    pub(crate) async fn token(&self, server: &Server) -> Result<Token, RemoteError> {
        let login = Login {
            credential: &self.spec.credential,
            file: self.spec.credential_file.as_deref(),
            mailbox: &server.mailbox,
        };
        self.tokens
            .get(login, |credential| async move {
                let connector = self.spec.connector;
                let now = clock::wall();
                let request = connector.token_request(&self.spec.config, &credential, now)?;
                let Some(request) = request else {
                    return fixed(&credential);
                };
                let root = match self.spec.config.login_url.as_str() {
                    "" => connector.base_url(&self.spec.config, None),
                    url => url.to_string(),
                };
                let asked = Asked::by(&request);
                let answer = self.send(&root, request).await;
                let bytes = answer.as_ref().map_or(0, |a| a.body.len());
                let ended = match &answer {
                    Ok(a) if (200..300).contains(&a.status) => Ended::Well,
                    _ => Ended::Failed,
                };
                server.mailbox.used(server.id, 0, &asked, ended, bytes);
                connector.token(&answer?, clock::wall())
            })
            .await
    }

    /// Drops a token that the CRM refused.
    pub(crate) async fn token_refused(&self, token: &Token) {
        self.tokens.refused(token).await;
    }

    pub(crate) async fn exchange(
        &self,
        token: &Token,
        mut request: HttpRequest,
    ) -> Result<Opened, RemoteError> {
        let connector = self.spec.connector;
        connector.authorize(&self.spec.config, token, &mut request);
        let base = connector.base_url(&self.spec.config, Some(token));
        self.open(&base, request).await
    }

    /// The same for a request that the CRM may hold for a while; the answer is read whole.
    pub(crate) async fn hold(
        &self,
        token: &Token,
        mut request: HttpRequest,
        patience: Duration,
    ) -> Result<HttpResponse, RemoteError> {
        let connector = self.spec.connector;
        connector.authorize(&self.spec.config, token, &mut request);
        let base = connector.base_url(&self.spec.config, Some(token));
        let client = self.client.as_ref().map_err(Clone::clone)?;
        let url = self.url(&base, &request)?;
        client
            .open_within(url, request, patience)
            .await?
            .whole()
            .await
    }

    async fn send(&self, base: &str, request: HttpRequest) -> Result<HttpResponse, RemoteError> {
        self.open(base, request).await?.whole().await
    }

    async fn open(&self, base: &str, request: HttpRequest) -> Result<Opened, RemoteError> {
        let client = self.client.as_ref().map_err(Clone::clone)?;
        let url = self.url(base, &request)?;
        client.open(url, request).await
    }

    fn url(&self, base: &str, request: &HttpRequest) -> Result<reqwest::Url, RemoteError> {
        let url = if request.target.starts_with('/') {
            format!("{}{}", base.trim_end_matches('/'), request.target)
        } else {
            request.target.clone()
        };
        hosts::checked(&url, &self.spec.allowed_hosts)
    }

    pub(crate) fn hint(&self, answer: &Result<HttpResponse, RemoteError>) -> LimitHint {
        answer
            .as_ref()
            .map_or_else(|_| LimitHint::default(), |a| self.spec.connector.limits(a))
    }
}

fn fixed(credential: &crm_core::connectors::Credential) -> Result<Token, RemoteError> {
    match credential {
        crm_core::connectors::Credential::Token { token } => Ok(Token {
            access: token.clone(),
            expires_at: None,
            instance_url: None,
            tenant: None,
            refresh_token: None,
        }),
        _ => Err(local(
            "credential",
            "this kind of credential does not fit this type of server",
        )),
    }
}
