//! One connection to the Pub/Sub endpoint: trust, metadata, calls, errors.

use std::time::Duration;

use crm_core::connectors::Token;
use crm_core::model::{ErrorClass, RemoteError};
use crm_core::transport;
use futures_util::stream::poll_fn;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::api::Settings;
use crate::client::use_ring;
use crate::errors::{chain, is_tls, local, timeout as timed_out};
use crate::hosts;
use crate::target::Target;

use super::messages::{FetchRequest, FetchResponse, SchemaInfo, SchemaRequest};

const VENDOR: &str = "https://api.pubsub.salesforce.com:7443";
/// Events are up to 1 MB, and come in bundles.
const MAX_MESSAGE: usize = 32 << 20;
/// For calls with one answer.
const CALL: Duration = Duration::from_secs(30);
/// Lets the system notice a dead peer without waking this process.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// A connection with the metadata of a session.
pub(crate) struct Rpc {
    grpc: Grpc<Channel>,
    metadata: MetadataMap,
}

impl Rpc {
    /// Connects; hosts and certificates are checked as for HTTP.
    pub(crate) async fn connect(
        target: &Target,
        token: &Token,
        settings: &Settings,
    ) -> Result<Self, RemoteError> {
        let metadata = metadata(target, token)?;
        let endpoint = endpoint(target, settings)?;
        let limit = Duration::from_millis(settings.connect_timeout_ms);
        let channel = match timeout(limit, endpoint.connect()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(e)) => return Err(no_connection(&e)),
            Err(_) => return Err(timed_out("no connection to the event stream in time")),
        };
        Ok(Self {
            grpc: Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE),
            metadata,
        })
    }

    /// Opens the stream; what `requests` yields are the subscriber's messages.
    pub(crate) async fn subscribe(
        &self,
        mut requests: mpsc::Receiver<FetchRequest>,
    ) -> Result<Streaming<FetchResponse>, Status> {
        let mut grpc = self.ready().await?;
        let requests = poll_fn(move |cx| requests.poll_recv(cx));
        let path = PathAndQuery::from_static("/eventbus.v1.PubSub/Subscribe");
        let codec = ProstCodec::<FetchRequest, FetchResponse>::default();
        let answer = grpc.streaming(self.with(requests), path, codec).await?;
        Ok(answer.into_inner())
    }

    /// The text of a schema.
    pub(crate) async fn schema(&self, id: &str) -> Result<String, Status> {
        let mut grpc = self.ready().await?;
        let request = SchemaRequest {
            schema_id: id.to_string(),
        };
        let path = PathAndQuery::from_static("/eventbus.v1.PubSub/GetSchema");
        let codec = ProstCodec::<SchemaRequest, SchemaInfo>::default();
        match timeout(CALL, grpc.unary(self.with(request), path, codec)).await {
            Ok(answer) => Ok(answer?.into_inner().schema_json),
            Err(_) => Err(Status::deadline_exceeded("no schema in time")),
        }
    }

    async fn ready(&self) -> Result<Grpc<Channel>, Status> {
        let mut grpc = self.grpc.clone();
        match grpc.ready().await {
            Ok(()) => Ok(grpc),
            Err(e) => Err(Status::unavailable(e.to_string())),
        }
    }

    fn with<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        request
    }
}

fn endpoint(target: &Target, settings: &Settings) -> Result<Endpoint, RemoteError> {
    let url = match target.spec.config.pubsub_endpoint.trim() {
        "" => VENDOR.to_string(),
        url if url.contains("://") => url.to_string(),
        host => format!("https://{host}"),
    };
    let url = hosts::checked(&url, &target.spec.allowed_hosts)?;
    let endpoint = Endpoint::from_shared(url.to_string())
        .map_err(|e| no_connection(&e))?
        .connect_timeout(Duration::from_millis(settings.connect_timeout_ms))
        .tcp_nodelay(true)
        .tcp_keepalive(Some(TCP_KEEPALIVE));
    if url.scheme() == "http" {
        return Ok(endpoint);
    }
    use_ring();
    let mut tls = ClientTlsConfig::new().with_native_roots();
    if let Some(pem) = &target.spec.ca_pem {
        tls = tls.ca_certificate(Certificate::from_pem(pem));
    }
    endpoint
        .tls_config(tls)
        .map_err(|e| local("ca_file", chain(&e)))
}

fn metadata(target: &Target, token: &Token) -> Result<MetadataMap, RemoteError> {
    let spec = &target.spec;
    let instance = token
        .instance_url
        .clone()
        .unwrap_or_else(|| spec.connector.base_url(&spec.config, Some(token)));
    let tenant = token.tenant.as_deref().unwrap_or("");
    let mut map = MetadataMap::new();
    for (key, value) in [
        ("accesstoken", token.access.expose()),
        ("instanceurl", instance.as_str()),
        ("tenantid", tenant),
    ] {
        let mut value: MetadataValue<Ascii> = value.parse().map_err(|_| {
            local(
                "bad_credential",
                format!("{key} has characters that cannot be sent"),
            )
        })?;
        value.set_sensitive(key == "accesstoken");
        map.insert(key, value);
    }
    Ok(map)
}

fn no_connection(error: &tonic::transport::Error) -> RemoteError {
    let text = chain(error);
    if is_tls(error) {
        local("tls", text)
    } else if text.contains("dns error") || text.contains("failed to lookup address") {
        local("dns", text)
    } else {
        local("connect", text)
    }
}

/// What a failed call asks for.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Connect again after a while.
    Again(RemoteError),
    /// Log in, then connect again.
    Reauth(RemoteError),
    /// The replay id is not kept any more.
    Expired(RemoteError),
    /// Connecting again does not help.
    Final(RemoteError),
}

/// Reads a status and its `error-code` trailer.
pub(crate) fn failure(status: &Status) -> Failure {
    let trailer = status
        .metadata()
        .get("error-code")
        .and_then(|v| v.to_str().ok())
        .unwrap_or("");
    let code = trailer.rsplit("eventbus.grpc.").next().unwrap_or("");
    let grpc = format!("grpc_{:?}", status.code()).to_ascii_lowercase();
    // Something on the way answered, not the event bus: it says nothing of the topic.
    let stranger = status.message().contains("mapped from HTTP status");
    let code = match code {
        "" if stranger => "stream",
        "" => grpc.as_str(),
        code => code,
    };
    let known = transport::RULES.iter().any(|r| r.code == grpc);
    let like = if known && !stranger {
        grpc.as_str()
    } else {
        "stream"
    };
    by_class(transport::error(code, like, status.message()))
}

/// What an error of a stream asks for.
pub(crate) fn by_class(error: RemoteError) -> Failure {
    match error.class {
        _ if error.code.starts_with("subscription.fetch.replayid.") => Failure::Expired(error),
        ErrorClass::Reauth => Failure::Reauth(error),
        ErrorClass::Retry => Failure::Again(error),
        _ => Failure::Final(error),
    }
}
