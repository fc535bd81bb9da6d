//! The Pub/Sub contract over a real connection without TLS: flow control, presets, keepalive, session end, error codes.

use super::{org, send};
use crate::salesforce::State;
use crate::salesforce::cdc::proto::{FetchRequest, FetchResponse, TopicInfo, TopicRequest, preset};
use crate::salesforce::cdc::server::PubSub;
use futures_util::stream;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

const WAIT: Duration = Duration::from_secs(10);

/// A served org, a connection to it, and a session.
struct Service {
    org: Arc<State>,
    channel: Channel,
    token: String,
}

/// One subscription: what it asks for goes into `ask`.
struct Stream {
    ask: mpsc::Sender<FetchRequest>,
    answers: Streaming<FetchResponse>,
}

async fn service() -> Service {
    let org = org(50);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(crate::tls::serve_h2(
        listener,
        None,
        PubSub::new(Arc::clone(&org)),
    ));
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let token = org.sessions.issue(org.now());
    Service {
        org,
        channel,
        token,
    }
}

impl Service {
    fn request<T>(&self, message: T, token: &str) -> Request<T> {
        let mut request = Request::new(message);
        for (name, value) in [
            ("accesstoken", token),
            ("instanceurl", "http://127.0.0.1"),
            ("tenantid", "00Dxx0000000001EAA"),
        ] {
            request.metadata_mut().insert(name, value.parse().unwrap());
        }
        request
    }

    async fn subscribe_as(&self, token: &str, first: FetchRequest) -> Result<Stream, Status> {
        let (ask, receiver) = mpsc::channel(16);
        ask.send(first).await.unwrap();
        let requests = stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|item| (item, receiver))
        });
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/eventbus.v1.PubSub/Subscribe");
        let codec = ProstCodec::<FetchRequest, FetchResponse>::default();
        let reply = client
            .streaming(self.request(requests, token), path, codec)
            .await?;
        Ok(Stream {
            ask,
            answers: reply.into_inner(),
        })
    }

    async fn subscribe(&self, preset: i32, replay: &[u8], count: i32) -> Stream {
        self.subscribe_as(
            &self.token,
            fetch("/data/ContactChangeEvent", preset, replay, count),
        )
        .await
        .unwrap()
    }

    fn edit(&self, number: u64, fax: &str) {
        use crate::admin::Crm;
        let id = self.org.base_id("Contact", number).unwrap();
        assert_eq!(
            send(
                &self.org,
                "PATCH",
                &format!("sobjects/Contact/{id}"),
                json!({"Fax": fax})
            )
            .0,
            204
        );
    }
}

fn fetch(topic: &str, preset: i32, replay: &[u8], count: i32) -> FetchRequest {
    FetchRequest {
        topic_name: topic.to_owned(),
        replay_preset: preset,
        replay_id: bytes::Bytes::copy_from_slice(replay),
        num_requested: count,
        auth_refresh: String::new(),
    }
}

impl Stream {
    async fn next(&mut self) -> Result<FetchResponse, Status> {
        let answer = tokio::time::timeout(WAIT, self.answers.message())
            .await
            .expect("an answer within 10 s");
        Ok(answer?.expect("the stream goes on"))
    }

    async fn error(mut self) -> (Code, String) {
        let status = loop {
            if let Err(status) = self.next().await {
                break status;
            }
        };
        let code = status
            .metadata()
            .get("error-code")
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        assert!(status.message().contains("rpcId: "), "{}", status.message());
        (
            status.code(),
            code.trim_start_matches("sfdc.platform.eventbus.grpc.")
                .to_owned(),
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_events_come_than_were_asked_for() {
    let service = service().await;
    let mut stream = service.subscribe(preset::EARLIEST, b"", 3).await;
    for number in 1..=5 {
        service.edit(number, &number.to_string());
    }
    let (mut got, mut pending) = (0, 3);
    while got < 3 {
        let answer = stream.next().await.unwrap();
        got += answer.events.len();
        pending = answer.pending_num_requested;
    }
    assert_eq!((got, pending), (3, 0));
    stream.ask.send(fetch("", 0, b"", 10)).await.unwrap();
    let answer = stream.next().await.unwrap();
    assert_eq!((answer.events.len(), answer.pending_num_requested), (2, 8));
    assert_eq!(answer.latest_replay_id, answer.events[1].replay_id);
    // A later subscriber resumes after the third.
    let third = service
        .subscribe(preset::CUSTOM, &answer.events[0].replay_id, 5)
        .await
        .next()
        .await
        .unwrap();
    assert_eq!(third.events.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_for_nothing_or_for_too_much_is_refused() {
    let service = service().await;
    for count in [0, -1, 101] {
        let (code, name) = service
            .subscribe(preset::LATEST, b"", count)
            .await
            .error()
            .await;
        assert_eq!(
            (code, name.as_str()),
            (
                Code::InvalidArgument,
                "subscription.fetch.requested.events.invalid"
            ),
            "{count}"
        );
    }
    let stream = service.subscribe(preset::LATEST, b"", 60).await;
    stream.ask.send(fetch("", 0, b"", 60)).await.unwrap();
    assert_eq!(
        stream.error().await.1,
        "subscription.fetch.requested.events.invalid",
        "120 would be outstanding"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_stream_gets_newer_ids_that_can_be_resumed_from() {
    let service = service().await;
    let quick = json!({"keepalive_ms": 50});
    service
        .org
        .settings
        .write()
        .unwrap()
        .merge(quick.as_object().unwrap())
        .unwrap();
    let mut stream = service.subscribe(preset::LATEST, b"", 5).await;
    let first = stream.next().await.unwrap();
    let second = stream.next().await.unwrap();
    assert!(first.events.is_empty() && second.events.is_empty());
    assert!(first.latest_replay_id < second.latest_replay_id);
    drop(stream);
    service.edit(1, "after");
    let answer = service
        .subscribe(preset::CUSTOM, &second.latest_replay_id, 5)
        .await
        .next()
        .await
        .unwrap();
    assert_eq!(
        answer.events.len(),
        1,
        "nothing was lost between the keepalive and the resumption"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unusable_ids_topics_and_sessions_have_their_codes() {
    let service = service().await;
    let stream = service.subscribe(preset::CUSTOM, b"short", 1).await;
    assert_eq!(
        stream.error().await.1,
        "subscription.fetch.replayid.corrupted"
    );
    let old = service.org.bus.latest().to_be_bytes();
    service.org.bus.expire();
    let stream = service.subscribe(preset::CUSTOM, &old, 1).await;
    assert_eq!(
        stream.error().await.1,
        "subscription.fetch.replayid.validation.failed"
    );
    let unknown = service
        .subscribe_as(&service.token, fetch("/data/NopeChangeEvent", 0, b"", 1))
        .await
        .unwrap();
    assert_eq!(
        unknown.error().await,
        (Code::NotFound, "topic.notfound".to_owned())
    );
    let denied = service
        .subscribe_as("00D!nobody", fetch("/data/ChangeEvents", 0, b"", 1))
        .await;
    let status = denied.err().expect("refused at once");
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn expiry_of_ids_does_not_touch_a_reader_that_is_up_to_date() {
    let service = service().await;
    let mut stream = service.subscribe(preset::EARLIEST, b"", 5).await;
    service.edit(1, "before");
    assert_eq!(stream.next().await.unwrap().events.len(), 1);
    service.org.bus.expire();
    service.edit(2, "after");
    assert_eq!(stream.next().await.unwrap().events.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_session_does() {
    use crate::admin::Crm;
    let service = service().await;
    let stream = service.subscribe(preset::LATEST, b"", 5).await;
    service.org.expire_tokens();
    assert_eq!(
        stream.error().await,
        (Code::Unauthenticated, "service.auth.error".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_names_its_schema() {
    let service = service().await;
    let mut client = tonic::client::Grpc::new(service.channel.clone());
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/eventbus.v1.PubSub/GetTopic");
    let codec = ProstCodec::<TopicRequest, TopicInfo>::default();
    let topic_name = "/data/Subscription__ChangeEvent".to_owned();
    let request = service.request(TopicRequest { topic_name }, &service.token);
    let topic = client
        .unary(request, path, codec)
        .await
        .unwrap()
        .into_inner();
    assert!(topic.can_subscribe && !topic.can_publish);
    assert!(service.org.codecs().by_id(&topic.schema_id).is_some());
    let mut client = tonic::client::Grpc::new(service.channel.clone());
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/eventbus.v1.PubSub/Publish");
    let codec = ProstCodec::<TopicRequest, TopicInfo>::default();
    let status = client
        .unary(
            service.request(TopicRequest::default(), &service.token),
            path,
            codec,
        )
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}
