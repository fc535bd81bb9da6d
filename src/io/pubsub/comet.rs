//! The same streams over CometD, for networks that gRPC cannot pass.
//!
//! The server forgets an event once it has put it into an answer. So an answer
//! that breaks off, or any other trouble, ends the client: the next one is
//! introduced anew and subscribes behind the last event that was delivered.

use std::sync::Arc;
use std::time::Duration;

use crm_core::connectors::Token;
use crm_core::connectors::salesforce::cdc::cometd::{
    Answer, Client, EARLIEST, LATEST, replay_number,
};
use crm_core::http::HttpRequest;
use crm_core::transport::error;
use tokio::time::sleep;

use crate::api::{Event, Level, Replay, StreamItem};
use crate::clock;
use crate::target::Target;

use super::rpc::{Failure, by_class};
use super::{Subscription, unreadable};

/// How long a connect is held where the server says nothing.
const HOLD: Duration = Duration::from_secs(110);

impl Subscription {
    /// One client, from its handshake to the error that ends it.
    pub(super) async fn comet(
        &mut self,
        target: &Arc<Target>,
        token: &Token,
        failures: &mut u32,
    ) -> Result<(), Failure> {
        let mut client = Client::new(&target.spec.config, &self.topic);
        let result = self.speak(&mut client, target, token, failures).await;
        if let Err(Failure::Again(error)) = &result
            && error.code == "body_too_large"
        {
            // The same answer would come again for ever: what is in it is read
            // from the object instead, once a client that begins now is there.
            self.skipped = Some(error.to_string());
            self.parting.say().await;
        }
        self.parting.prepare(target, token, None);
        result
    }

    async fn speak(
        &mut self,
        client: &mut Client,
        target: &Arc<Target>,
        token: &Token,
        failures: &mut u32,
    ) -> Result<(), Failure> {
        // Beyond what the server says, before the connection counts as dead.
        let grace = Duration::from_millis(self.settings.request_timeout_ms);
        let request = client.handshake();
        ask(target, token, client, request, grace).await?;
        self.parting.prepare(target, token, client.disconnect());
        let request = client.subscribe(self.after());
        ask(target, token, client, request, grace).await?;
        self.server.mailbox.post(Event::StreamUp {
            stream: self.stream,
        });
        self.tell_skipped();
        let mut hold = HOLD;
        loop {
            // Nobody can tell the server how many events there is room for: it is
            // asked for more when what it sent before has settled.
            self.wait_for_credit().await;
            let request = client.connect();
            let answer = ask(target, token, client, request, hold + grace).await?;
            *failures = 0;
            let told = answer.hold_ms.and_then(|ms| u64::try_from(ms).ok());
            hold = told.map_or(HOLD, Duration::from_millis);
            let pause = u64::try_from(answer.pause_ms).unwrap_or(0);
            let (greet, over) = (answer.greet, answer.over);
            self.deliver_plain(answer);
            if greet {
                let text = "the server wants a new handshake";
                return Err(Failure::Again(error("unknown_client", "stream", text)));
            }
            if over {
                let text = "the server wants no further connect";
                return Err(Failure::Final(error("conversation_over", "stream", text)));
            }
            sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Has the object read again for the events that were skipped. From here on
    /// all that is new arrives, so the reading misses nothing.
    fn tell_skipped(&mut self) {
        let Some(why) = self.skipped.take() else {
            return;
        };
        let text = format!("events are skipped, their object is read again: {why}");
        self.note(Level::Warning, &text);
        let replay_id = match &self.replay {
            Replay::After(id) => id.clone(),
            Replay::Latest | Replay::Earliest => Vec::new(),
        };
        self.replay = Replay::Latest;
        self.credit.delivered(1);
        let change = unreadable(&self.topic, &format!("{replay_id:?}:{}", clock::wall()));
        self.server.mailbox.post(Event::Stream {
            stream: self.stream,
            batch: vec![StreamItem { change, replay_id }],
            latest_replay_id: None,
        });
    }

    fn after(&self) -> i64 {
        match &self.replay {
            _ if self.skipped.is_some() => LATEST,
            Replay::Latest => LATEST,
            Replay::Earliest => EARLIEST,
            Replay::After(id) => replay_number(id).unwrap_or(EARLIEST),
        }
    }

    fn deliver_plain(&mut self, answer: Answer) {
        let mut batch = Vec::new();
        let mut room = 0;
        for event in answer.events {
            let changes = event.changes.unwrap_or_else(|e| {
                self.note(Level::Warning, &format!("an event cannot be read: {e}"));
                let number = replay_number(&event.replay_id).unwrap_or_default();
                vec![unreadable(&self.topic, &number.to_string())]
            });
            // The session cannot give credit for what it never sees.
            room += u32::from(!changes.is_empty());
            batch.extend(changes.into_iter().map(|change| StreamItem {
                change,
                replay_id: event.replay_id.clone(),
            }));
            self.replay = Replay::After(event.replay_id);
        }
        self.credit.delivered(room);
        // A quiet answer is a sign of life all the same.
        let latest_replay_id = match &self.replay {
            Replay::After(id) => Some(id.clone()),
            Replay::Latest | Replay::Earliest => None,
        };
        self.server.mailbox.post(Event::Stream {
            stream: self.stream,
            batch,
            latest_replay_id,
        });
    }
}

/// Says something and takes the answer.
async fn ask(
    target: &Target,
    token: &Token,
    client: &mut Client,
    request: HttpRequest,
    patience: Duration,
) -> Result<Answer, Failure> {
    let response = target
        .hold(token, request, patience)
        .await
        .map_err(by_class)?;
    if response.status != 200 {
        return Err(by_class(target.spec.connector.classify(&response)));
    }
    client.hear(&response).map_err(by_class)
}
