//! Streams of changes, one per mirror: opened, ended, and left alone where the CRM
//! has none.

use crm_core::model::{Millis, RemoteError};
use crm_core::transport;
use crm_io::Replay;

use crate::pg::store::{streams, topics};
use crate::pg::tx;
use crate::worker::engine::{Engine, Server, Step, Stream};

/// How often it is looked whether a stream that the CRM refused is to be asked for again.
const LOOK_AGAIN_MS: Millis = 60_000;

impl Engine {
    /// Opens the stream of a mirror's changes where there is one to open; when to look again.
    pub(super) fn open_stream(&mut self, id: i32, now: Millis) -> Step<Millis> {
        let Some(mirror) = self.world.mirrors.get(&id) else {
            return Ok(Millis::MAX);
        };
        let (name, object, paused) = (mirror.server.clone(), mirror.object.clone(), mirror.paused);
        if paused {
            self.unsubscribe(|s| s.server == name && s.object == object);
            self.watch(id).streaming = false;
            return Ok(Millis::MAX);
        }
        let open = self
            .streams
            .values()
            .any(|s| s.server == name && s.object == object);
        let at = self.watch(id).stream_at;
        if open || now < at {
            return Ok(if open { Millis::MAX } else { at });
        }
        let Some(server) = self.server(&name) else {
            return Ok(Millis::MAX);
        };
        let Some(topic) = server.connector.topic(&object) else {
            return Ok(Millis::MAX);
        };
        let (server, source) = (server.id, server.stream());
        let row = tx::in_transaction(|| Ok(topics::to_open(&name, source, &object)?))?;
        let Some(row) = row else {
            self.watch(id).stream_at = now + LOOK_AGAIN_MS;
            return Ok(now + LOOK_AGAIN_MS);
        };
        // Before its first event a stream starts at what is kept: the copy
        // may be older than the subscription.
        let replay = row.replay_id.map_or(Replay::Earliest, Replay::After);
        self.watch(id).stream_at = now + 5_000;
        let stream = Stream {
            row: row.id,
            source,
            server: name,
            object,
        };
        self.subscribe(server, topic, replay, stream);
        Ok(Millis::MAX)
    }

    /// A stream came to its end: opened again after a pause, or given up for
    /// polling where the CRM refused it.
    pub(super) fn close_stream(
        &mut self,
        stream: u64,
        error: &RemoteError,
        expired: bool,
        now: Millis,
    ) -> Step<()> {
        let Some(ended) = self.streams.remove(&stream) else {
            return Ok(());
        };
        let mirror = self.world.mirror_of(&ended.server, &ended.object);
        let mirror = mirror.map(|m| m.id);
        let refused = !expired && transport::refuses_topic(error);
        tx::in_transaction(|| {
            match refused {
                true => topics::refuse(ended.row, &error.message)?,
                false => streams::stream_error(ended.row, "failed", &error.to_string())?,
            };
            if expired {
                // What was missed is found by a poll from before the gap and by
                // reading everything again.
                streams::forget_replay(ended.row)?;
                if let Some(id) = mirror {
                    streams::backfill_restart(id)?;
                }
            }
            Ok(())
        })?;
        if let Some(id) = mirror {
            let watch = self.watch(id);
            watch.streaming = false;
            watch.failures += 1;
            watch.poll_at = now;
            watch.stream_at = match refused {
                true => now + LOOK_AGAIN_MS,
                false => now + (1_000_i64 << watch.failures.min(8)),
            };
        }
        Ok(())
    }

    /// There is reason to believe that the CRM streams now what it had refused: of
    /// a server, or of one of its objects.
    pub(super) fn ask_for_streams(&mut self, server: &str, object: Option<&str>) -> Step<()> {
        let asked = tx::in_transaction(|| Ok(topics::ask_again(server, object)?))?;
        if asked == 0 {
            return Ok(());
        }
        let of = |m: &&crate::worker::world::Mirror| {
            m.server == server && object.is_none_or(|object| m.object == object)
        };
        let ids: Vec<i32> = self
            .world
            .mirrors
            .values()
            .filter(of)
            .map(|m| m.id)
            .collect();
        for id in ids {
            let watch = self.watch(id);
            (watch.stream_at, watch.failures) = (0, 0);
        }
        Ok(())
    }
}

impl Server {
    /// How its change events come: the kind of its rows of `crm.stream`.
    pub(crate) fn stream(&self) -> &'static str {
        match self.config.cometd {
            true => "cometd",
            false => "pubsub",
        }
    }
}
