//! The Pub/Sub API: `eventbus.v1.PubSub` over gRPC.

use super::Topic;
use super::bus::{Event, Unusable};
use super::proto::{
    ConsumerEvent, FetchRequest, FetchResponse, ProducerEvent, SchemaInfo, SchemaRequest,
    TopicInfo, TopicRequest, preset,
};
use crate::clock::real_ms;
use crate::salesforce::State;
use crate::salesforce::ids::SfId;
use crate::salesforce::session::ORG;
use crate::tls::H2Service;
use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

/// Events a subscriber may have asked for and not yet received.
const MAX_OUTSTANDING: i32 = 100;
/// Payload bytes per answer: below the 4 MB that clients accept by default.
const MAX_ANSWER: usize = 3 << 20;
/// Answers waiting for a slow client; then the subscription waits.
const QUEUED_ANSWERS: usize = 4;

/// The service, shared by all connections.
#[derive(Clone)]
pub(crate) struct PubSub {
    org: Arc<State>,
    calls: Arc<AtomicU64>,
}

impl PubSub {
    pub(crate) fn new(org: Arc<State>) -> Self {
        Self {
            org,
            calls: Arc::new(AtomicU64::new(1)),
        }
    }

    fn rpc_id(&self) -> String {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        format!(
            "{:08x}-{:04x}-4000-8000-{number:012x}",
            number,
            number & 0xffff
        )
    }

    /// Checks the metadata every call must carry.
    fn authorize(&self, metadata: &MetadataMap, rpc_id: &str) -> Result<String, Status> {
        let text = |name: &str| {
            metadata
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        let token = text("accesstoken");
        let tenant = SfId::parse(text("tenantid")) == Some(ORG);
        if !tenant || text("instanceurl").is_empty() || !self.org.session_valid(token) {
            return Err(unauthenticated(rpc_id));
        }
        Ok(token.to_owned())
    }

    fn topic(&self, name: &str, rpc_id: &str) -> Result<Topic, Status> {
        let topic = Topic::parse(name).ok_or_else(|| {
            failure(
                Code::NotFound,
                "topic.notfound",
                &format!("Topic {name} does not exist or you have no access to it"),
                rpc_id,
            )
        })?;
        match self.org.withholds(topic) {
            true => {
                let message = format!("No permission to subscribe to {name} rpcId: {rpc_id}");
                Err(Status::permission_denied(message))
            }
            false => Ok(topic),
        }
    }
}

/// A status with Salesforce's `error-code` trailer.
fn failure(code: Code, name: &str, message: &str, rpc_id: &str) -> Status {
    let mut trailers = MetadataMap::new();
    let full = format!("sfdc.platform.eventbus.grpc.{name}");
    if let Ok(value) = MetadataValue::try_from(full) {
        trailers.insert("error-code", value);
    }
    Status::with_metadata(code, format!("{message} rpcId: {rpc_id}"), trailers)
}

fn unauthenticated(rpc_id: &str) -> Status {
    failure(
        Code::Unauthenticated,
        "service.auth.error",
        "Authentication exception occurred while authenticating the client.",
        rpc_id,
    )
}

impl H2Service for PubSub {
    async fn call(
        &self,
        request: http::Request<hyper::body::Incoming>,
    ) -> http::Response<tonic::body::Body> {
        let service = self.clone();
        match request.uri().path() {
            "/eventbus.v1.PubSub/Subscribe" => {
                let mut grpc = Grpc::new(ProstCodec::<FetchResponse, FetchRequest>::default());
                grpc.streaming(Subscribe(service), request).await
            }
            "/eventbus.v1.PubSub/GetSchema" => {
                let mut grpc = Grpc::new(ProstCodec::<SchemaInfo, SchemaRequest>::default());
                grpc.unary(GetSchema(service), request).await
            }
            "/eventbus.v1.PubSub/GetTopic" => {
                let mut grpc = Grpc::new(ProstCodec::<TopicInfo, TopicRequest>::default());
                grpc.unary(GetTopic(service), request).await
            }
            path => {
                let message = format!(
                    "{path} is not served by this emulator: only Subscribe, GetSchema and GetTopic are"
                );
                Status::unimplemented(message).into_http()
            }
        }
    }
}

struct GetSchema(PubSub);

impl UnaryService<SchemaRequest> for GetSchema {
    type Response = SchemaInfo;
    type Future = BoxFuture<'static, Result<Response<SchemaInfo>, Status>>;

    fn call(&mut self, request: Request<SchemaRequest>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move {
            let rpc_id = service.rpc_id();
            service.authorize(request.metadata(), &rpc_id)?;
            let id = &request.get_ref().schema_id;
            let codec = service.org.codecs().by_id(id).ok_or_else(|| {
                failure(
                    Code::NotFound,
                    "schema.fetch.failed",
                    &format!("No schema was found with ID {id}."),
                    &rpc_id,
                )
            })?;
            Ok(Response::new(SchemaInfo {
                schema_json: codec.schema_json.clone(),
                schema_id: id.clone(),
                rpc_id,
            }))
        })
    }
}

struct GetTopic(PubSub);

impl UnaryService<TopicRequest> for GetTopic {
    type Response = TopicInfo;
    type Future = BoxFuture<'static, Result<Response<TopicInfo>, Status>>;

    fn call(&mut self, request: Request<TopicRequest>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move {
            let rpc_id = service.rpc_id();
            service.authorize(request.metadata(), &rpc_id)?;
            let topic_name = request.into_inner().topic_name;
            let schema_id = match service.topic(&topic_name, &rpc_id)? {
                Topic::All => String::new(),
                Topic::One(obj) => service.org.codecs().of(obj).schema_id.clone(),
            };
            // Not the org id: clients must not use it as tenantid.
            let tenant_guid = "core/emulator/00Dxx0000000001".to_owned();
            Ok(Response::new(TopicInfo {
                topic_name,
                tenant_guid,
                can_publish: false,
                can_subscribe: true,
                schema_id,
                rpc_id,
            }))
        })
    }
}

struct Subscribe(PubSub);

impl StreamingService<FetchRequest> for Subscribe {
    type Response = FetchResponse;
    type ResponseStream = BoxStream<'static, Result<FetchResponse, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<FetchRequest>>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move {
            let rpc_id = service.rpc_id();
            let token = service.authorize(request.metadata(), &rpc_id)?;
            let (sender, receiver) = mpsc::channel(QUEUED_ANSWERS);
            let inbound = request.into_inner();
            tokio::spawn(async move {
                if let Err(status) = (Subscription {
                    service,
                    rpc_id,
                    token,
                    inbound,
                    sender: &sender,
                })
                .run()
                .await
                {
                    // A client that is gone needs no status.
                    let _ = sender.send(Err(status)).await;
                }
            });
            let stream: Self::ResponseStream = Box::pin(receiving(receiver));
            Ok(Response::new(stream))
        })
    }
}

fn receiving<T>(receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> {
    stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|item| (item, receiver))
    })
}

/// One subscriber.
struct Subscription<'a> {
    service: PubSub,
    rpc_id: String,
    token: String,
    inbound: Streaming<FetchRequest>,
    sender: &'a mpsc::Sender<Result<FetchResponse, Status>>,
}

impl Subscription<'_> {
    /// Serves until the client ends the stream, its session ends, or it breaks a rule.
    async fn run(mut self) -> Result<(), Status> {
        let mut wake = self.service.org.bus.listen();
        let Some(first) = self.inbound.message().await? else {
            return Ok(());
        };
        let topic = self.service.topic(&first.topic_name, &self.rpc_id)?;
        let mut after = self.start(&first)?;
        let mut pending = self.requested(0, &first)?;
        let mut last_answer = tokio::time::Instant::now();
        loop {
            if !self.service.org.session_valid(&self.token) {
                return Err(unauthenticated(&self.rpc_id));
            }
            wake.borrow_and_update();
            let later = match self.deliver(topic, &mut after, &mut pending).await? {
                Progress::Sent => {
                    last_answer = tokio::time::Instant::now();
                    continue;
                }
                Progress::Gone => return Ok(()),
                Progress::Nothing(later) => later,
            };
            let keepalive = Duration::from_millis(self.service.org.settings().keepalive_ms);
            match self
                .pause(&mut wake, last_answer + keepalive, later)
                .await?
            {
                Woken::Asked(request) => pending = self.requested(pending, &request)?,
                Woken::Events => {}
                Woken::Idle => {
                    after = self.service.org.bus.keepalive(after);
                    last_answer = tokio::time::Instant::now();
                    if !self.answer(Vec::new(), after, pending).await {
                        return Ok(());
                    }
                }
                Woken::Ended => return Ok(()),
            }
        }
    }

    async fn pause(
        &mut self,
        wake: &mut watch::Receiver<u64>,
        idle: tokio::time::Instant,
        later: Option<i64>,
    ) -> Result<Woken, Status> {
        let delay =
            later.map(|at| Duration::from_millis(u64::try_from(at - real_ms()).unwrap_or(0) + 1));
        tokio::select! {
            request = self.inbound.message() => Ok(match request? {
                Some(request) => Woken::Asked(request),
                None => Woken::Ended,
            }),
            changed = wake.changed() => Ok(if changed.is_ok() { Woken::Events } else { Woken::Ended }),
            () = tokio::time::sleep(delay.unwrap_or_default()), if delay.is_some() => Ok(Woken::Events),
            () = tokio::time::sleep_until(idle) => Ok(Woken::Idle),
            () = self.sender.closed() => Ok(Woken::Ended),
        }
    }

    fn start(&self, first: &FetchRequest) -> Result<u64, Status> {
        let bus = &self.service.org.bus;
        match first.replay_preset {
            preset::LATEST => Ok(bus.latest()),
            preset::EARLIEST => Ok(bus.earliest()),
            preset::CUSTOM => bus.resume(&first.replay_id).map_err(|problem| {
                let (name, message) = match problem {
                    Unusable::Corrupted => ("subscription.fetch.replayid.corrupted", "The replay ID is corrupted."),
                    Unusable::Expired => (
                        "subscription.fetch.replayid.validation.failed",
                        "The Replay ID validation failed. Ensure that the Replay ID is valid and within the retention window.",
                    ),
                };
                failure(Code::InvalidArgument, name, message, &self.rpc_id)
            }),
            other => {
                let message = format!("Unknown replay preset {other}.");
                Err(failure(Code::InvalidArgument, "subscription.fetch.replayid.validation.failed", &message, &self.rpc_id))
            }
        }
    }

    fn requested(&self, pending: i32, request: &FetchRequest) -> Result<i32, Status> {
        let total = pending.saturating_add(request.num_requested);
        if request.num_requested <= 0 || total > MAX_OUTSTANDING {
            let message = format!(
                "The number of requested events must be positive and at most {MAX_OUTSTANDING} may be outstanding."
            );
            return Err(failure(
                Code::InvalidArgument,
                "subscription.fetch.requested.events.invalid",
                &message,
                &self.rpc_id,
            ));
        }
        Ok(total)
    }

    /// Sends what is there, as far as the client asked.
    async fn deliver(
        &self,
        topic: Topic,
        after: &mut u64,
        pending: &mut i32,
    ) -> Result<Progress, Status> {
        if *pending == 0 {
            return Ok(Progress::Nothing(None));
        }
        let org = &self.service.org;
        if org.bus.delivered() >= org.settings().deliveries {
            let message = "You have exceeded the event delivery limit for your org.";
            return Err(failure(
                Code::ResourceExhausted,
                "subscription.limit.exceeded",
                message,
                &self.rpc_id,
            ));
        }
        if org.bus.missed(*after) {
            let message =
                "The Replay ID validation failed: events were dropped before they were fetched.";
            return Err(failure(
                Code::InvalidArgument,
                "subscription.fetch.replayid.validation.failed",
                message,
                &self.rpc_id,
            ));
        }
        let most = usize::try_from(*pending).unwrap_or(0);
        let batch = org.bus.read(*after, most, |obj| topic.admits(obj));
        if batch.events.is_empty() {
            *after = batch.seen;
            return Ok(Progress::Nothing(batch.later));
        }
        let mut bytes = 0;
        let fits = |event: &&Event| {
            bytes += event.payload.len();
            bytes <= MAX_ANSWER
        };
        let taken = batch.events.iter().take_while(fits).count().max(1);
        *after = if taken == batch.events.len() {
            batch.seen
        } else {
            batch.events[taken - 1].replay
        };
        *pending -= i32::try_from(taken).unwrap_or(0);
        org.bus.count(taken);
        let events = batch.events.into_iter().take(taken).collect();
        Ok(if self.answer(events, *after, *pending).await {
            Progress::Sent
        } else {
            Progress::Gone
        })
    }

    /// Sends one answer; false when the client is gone.
    async fn answer(&self, events: Vec<Event>, latest: u64, pending: i32) -> bool {
        let answer = FetchResponse {
            events: events.into_iter().map(consumer_event).collect(),
            latest_replay_id: replay_bytes(latest),
            rpc_id: self.rpc_id.clone(),
            pending_num_requested: pending,
        };
        self.sender.send(Ok(answer)).await.is_ok()
    }
}

enum Progress {
    Sent,
    /// No event now; perhaps one is held back until this real time (ms).
    Nothing(Option<i64>),
    Gone,
}

enum Woken {
    Asked(FetchRequest),
    Events,
    Idle,
    Ended,
}

fn replay_bytes(replay: u64) -> Bytes {
    Bytes::copy_from_slice(&replay.to_be_bytes())
}

fn consumer_event(event: Event) -> ConsumerEvent {
    let producer = ProducerEvent {
        id: event.id,
        schema_id: event.schema_id.to_string(),
        payload: event.payload,
        headers: Vec::new(),
    };
    ConsumerEvent {
        event: Some(producer),
        replay_id: replay_bytes(event.replay),
    }
}
