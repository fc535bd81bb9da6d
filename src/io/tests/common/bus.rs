//! An event bus that speaks the Pub/Sub contract, with its own idea of the
//! messages, and does what a test tells it.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_util::Stream;
use tokio::sync::{mpsc, oneshot};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request as HttpRequest, Response as HttpResponse};
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
pub struct FetchRequest {
    #[prost(string, tag = "1")]
    pub topic_name: String,
    #[prost(int32, tag = "2")]
    pub replay_preset: i32,
    #[prost(bytes = "vec", tag = "3")]
    pub replay_id: Vec<u8>,
    #[prost(int32, tag = "4")]
    pub num_requested: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ProducerEvent {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub schema_id: String,
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ConsumerEvent {
    #[prost(message, optional, tag = "1")]
    pub event: Option<ProducerEvent>,
    #[prost(bytes = "vec", tag = "2")]
    pub replay_id: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct FetchResponse {
    #[prost(message, repeated, tag = "1")]
    pub events: Vec<ConsumerEvent>,
    #[prost(bytes = "vec", tag = "2")]
    pub latest_replay_id: Vec<u8>,
    #[prost(string, tag = "3")]
    pub rpc_id: String,
    #[prost(int32, tag = "4")]
    pub pending_num_requested: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SchemaRequest {
    #[prost(string, tag = "1")]
    pub schema_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SchemaInfo {
    #[prost(string, tag = "1")]
    pub schema_json: String,
    #[prost(string, tag = "2")]
    pub schema_id: String,
}

/// One subscription as the bus sees it.
pub struct Subscriber {
    pub metadata: MetadataMap,
    pub requests: Streaming<FetchRequest>,
    pub responses: mpsc::UnboundedSender<Result<FetchResponse, Status>>,
}

type Script = dyn Fn(Subscriber) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

#[derive(Clone)]
struct PubSub {
    script: Arc<Script>,
    schemas: Arc<Mutex<Vec<String>>>,
}

/// A running bus; ends when dropped.
pub struct Bus {
    pub url: String,
    /// Schema ids asked for.
    pub schemas: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Bus {
    /// Runs `script` for each subscription.
    pub fn start<F>(script: impl Fn(Subscriber) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::with_tls(None, script)
    }

    /// The same over TLS, with certificate and key in PEM.
    pub fn with_tls<F>(
        identity: Option<(String, String)>,
        script: impl Fn(Subscriber) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let scheme = if identity.is_some() { "https" } else { "http" };
        let schemas = Arc::new(Mutex::new(Vec::new()));
        let service = PubSub {
            script: Arc::new(move |s| Box::pin(script(s))),
            schemas: Arc::clone(&schemas),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let any = "127.0.0.1:0".parse().unwrap();
                let incoming = tonic::transport::server::TcpIncoming::bind(any).unwrap();
                tell.send(incoming.local_addr().unwrap()).unwrap();
                let mut builder = tonic::transport::Server::builder();
                if let Some((cert, key)) = identity {
                    let identity = tonic::transport::Identity::from_pem(cert, key);
                    let tls = tonic::transport::ServerTlsConfig::new().identity(identity);
                    builder = builder.tls_config(tls).unwrap();
                }
                let server = builder.serve_with_incoming(service, incoming);
                tokio::select! {
                    r = server => r.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self {
            url: format!("{scheme}://{}", told.recv().unwrap()),
            schemas,
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

impl Service<HttpRequest<Body>> for PubSub {
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let codec = ProstCodec::default();
            Ok(match request.uri().path() {
                "/eventbus.v1.PubSub/Subscribe" => Grpc::new(codec).streaming(this, request).await,
                "/eventbus.v1.PubSub/GetSchema" => {
                    let codec = ProstCodec::default();
                    Grpc::new(codec).unary(this, request).await
                }
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

type Responses = Pin<Box<dyn Stream<Item = Result<FetchResponse, Status>> + Send>>;

impl StreamingService<FetchRequest> for PubSub {
    type Response = FetchResponse;
    type ResponseStream = Responses;
    type Future = Answer<Responses>;

    fn call(&mut self, request: Request<Streaming<FetchRequest>>) -> Self::Future {
        let (responses, mut receiver) = mpsc::unbounded_channel();
        let (metadata, _, requests) = request.into_parts();
        tokio::spawn((self.script)(Subscriber {
            metadata,
            requests,
            responses,
        }));
        let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        Box::pin(async move { Ok(Response::new(Box::pin(stream) as Responses)) })
    }
}

impl UnaryService<SchemaRequest> for PubSub {
    type Response = SchemaInfo;
    type Future = Answer<SchemaInfo>;

    fn call(&mut self, request: Request<SchemaRequest>) -> Self::Future {
        let schema_id = request.into_inner().schema_id;
        self.schemas.lock().unwrap().push(schema_id.clone());
        Box::pin(async move {
            Ok(Response::new(SchemaInfo {
                schema_json: SCHEMA.into(),
                schema_id,
            }))
        })
    }
}

/// A change event with one field of its own.
const SCHEMA: &str = r#"{"type":"record","name":"ContactChangeEvent","namespace":"com.sforce.eventbus","fields":[
{"name":"ChangeEventHeader","type":{"type":"record","name":"ChangeEventHeader","fields":[
{"name":"entityName","type":"string"},{"name":"recordIds","type":{"type":"array","items":"string"}},
{"name":"changeType","type":{"type":"enum","name":"ChangeType","symbols":["CREATE","UPDATE","DELETE","UNDELETE","GAP_CREATE","GAP_UPDATE","GAP_DELETE","GAP_UNDELETE","GAP_OVERFLOW","SNAPSHOT"]}},
{"name":"changeOrigin","type":"string"},{"name":"transactionKey","type":"string"},{"name":"sequenceNumber","type":"int"},
{"name":"commitTimestamp","type":"long"},{"name":"commitNumber","type":"long"},{"name":"commitUser","type":"string"},
{"name":"nulledFields","type":{"type":"array","items":"string"}},{"name":"diffFields","type":{"type":"array","items":"string"}},
{"name":"changedFields","type":{"type":"array","items":"string"}}]}},
{"name":"Phone","type":["null","string"],"default":null}]}"#;

fn long(out: &mut Vec<u8>, n: i64) {
    let mut z = ((n << 1) ^ (n >> 63)).cast_unsigned();
    while z >= 0x80 {
        out.push((z & 0x7f) as u8 | 0x80);
        z >>= 7;
    }
    out.push(z as u8);
}

fn text(out: &mut Vec<u8>, s: &str) {
    long(out, s.len() as i64);
    out.extend(s.as_bytes());
}

fn list(out: &mut Vec<u8>, items: &[&str]) {
    if !items.is_empty() {
        long(out, items.len() as i64);
        for item in items {
            text(out, item);
        }
    }
    long(out, 0);
}

/// Event number `n`: an update of `Phone` of the given records.
pub fn event(n: u64, ids: &[&str]) -> ConsumerEvent {
    let mut p = Vec::new();
    text(&mut p, "Contact");
    list(&mut p, ids);
    long(&mut p, 1);
    text(&mut p, "");
    text(&mut p, "key");
    long(&mut p, 1);
    long(&mut p, 1_700_000_000_000);
    long(&mut p, 1);
    text(&mut p, "005000000000001AAA");
    list(&mut p, &[]);
    list(&mut p, &[]);
    list(&mut p, &["0x02"]);
    long(&mut p, 1);
    text(&mut p, &n.to_string());
    ConsumerEvent {
        event: Some(ProducerEvent {
            id: format!("event-{n}"),
            schema_id: "schema-1".into(),
            payload: p,
        }),
        replay_id: n.to_be_bytes().to_vec(),
    }
}

/// An error with the trailer of the real service.
pub fn failed(code: tonic::Code, trailer: &str) -> Status {
    let mut status = Status::new(code, format!("it failed. rpcId: 1 {trailer}"));
    if !trailer.is_empty() {
        let full = format!("sfdc.platform.eventbus.grpc.{trailer}");
        status
            .metadata_mut()
            .insert("error-code", full.parse().unwrap());
    }
    status
}
