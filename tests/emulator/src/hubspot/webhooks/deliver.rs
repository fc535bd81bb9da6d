//! Sending: batches of up to 100, few requests at once, five seconds each, up to ten retries.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use serde_json::Value;

use super::{Batch, Settings, event::Envelope, sign};
use crate::{clock, fault::Stream, hubspot::State};

const MAX_BATCH: usize = 100;
const MAX_RETRIES: u32 = 10;
const TIMEOUT: Duration = Duration::from_secs(5);
/// No wait between retries is longer, ten of them included.
const MAX_WAIT_MS: u64 = 60_000;

/// Starts the task that sends events for as long as the process lives.
pub(crate) fn start(state: Arc<State>) -> Result<(), String> {
    let client = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(16)
        .build()
        .map_err(|e| format!("cannot set up webhooks: {e}"))?;
    tokio::spawn(async move {
        loop {
            while let Some(batch) = next(&state) {
                state.webhooks.in_flight.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(attempt(Arc::clone(&state), client.clone(), batch));
            }
            state.webhooks.wake.notified().await;
        }
    });
    Ok(())
}

/// The next batch, unless enough requests are in flight or nothing waits.
fn next(state: &Arc<State>) -> Option<Batch> {
    let hooks = &state.webhooks;
    let most = {
        let settings = hooks.settings();
        settings.url.as_ref()?;
        settings.max_concurrent
    };
    loop {
        if hooks.in_flight.load(Ordering::Relaxed) >= most {
            return None;
        }
        let Some(mut batch) = hooks.queue().ready.pop_front() else {
            if !pass(state) {
                return None;
            }
            continue;
        };
        let delay = std::mem::take(&mut batch.delay);
        if delay.is_zero() {
            return Some(batch);
        }
        later(state, batch, delay);
    }
}

/// Lets the oldest events meet the faults that hold now; whether there were any.
pub(crate) fn pass(state: &State) -> bool {
    let hooks = &state.webhooks;
    let fresh: Vec<_> = {
        let mut queue = hooks.queue();
        let count = queue.fresh.len().min(MAX_BATCH);
        queue.fresh.drain(..count).collect()
    };
    if fresh.is_empty() {
        return false;
    }
    let taken = fresh.len();
    let (events, delay) = state.shared.faults.on_events(Stream::Webhook, fresh);
    hooks.waiting.fetch_add(events.len(), Ordering::Relaxed);
    hooks.waiting.fetch_sub(taken, Ordering::Relaxed);
    // Doubling can make the batch too long for one request.
    let batches = events.chunks(MAX_BATCH).map(|events| Batch {
        events: events.to_vec(),
        attempt: 0,
        delay,
    });
    hooks.queue().ready.extend(batches);
    true
}

fn later(state: &Arc<State>, batch: Batch, delay: Duration) {
    let state = Arc::clone(state);
    tokio::spawn(async move {
        tokio::time::sleep(delay).await;
        state.webhooks.queue().ready.push_back(batch);
        state.webhooks.wake.notify_one();
    });
}

/// One request; what fails is queued again or given up.
async fn attempt(state: Arc<State>, client: reqwest::Client, batch: Batch) {
    let hooks = &state.webhooks;
    let settings = hooks.settings().clone();
    let delivered = send(&state, &client, &settings, &batch).await;
    hooks.in_flight.fetch_sub(1, Ordering::Relaxed);
    hooks.counters.requests.fetch_add(1, Ordering::Relaxed);
    let count = batch.events.len();
    if delivered {
        hooks.waiting.fetch_sub(count, Ordering::Relaxed);
        hooks
            .counters
            .delivered
            .fetch_add(count as u64, Ordering::Relaxed);
    } else {
        hooks.counters.failed.fetch_add(1, Ordering::Relaxed);
        if batch.attempt >= MAX_RETRIES {
            hooks.waiting.fetch_sub(count, Ordering::Relaxed);
            hooks
                .counters
                .abandoned
                .fetch_add(count as u64, Ordering::Relaxed);
        } else {
            let wait = backoff_ms(settings.retry_ms, batch.attempt);
            // Up to a fifth more, so that batches that failed together come back apart.
            let jitter = clock::mix(batch.events[0].event_id) % (wait / 5 + 1);
            let next = Batch {
                attempt: batch.attempt + 1,
                events: batch.events,
                delay: Duration::ZERO,
            };
            later(&state, next, Duration::from_millis(wait + jitter));
        }
    }
    hooks.wake.notify_one();
}

/// `first`, growing by half with every retry.
fn backoff_ms(first: u64, attempt: u32) -> u64 {
    (0..attempt)
        .fold(first, |wait, _| wait.saturating_add(wait / 2))
        .min(MAX_WAIT_MS)
}

/// Whether the receiver took the batch: any 2xx within the timeout.
async fn send(state: &State, client: &reqwest::Client, settings: &Settings, batch: &Batch) -> bool {
    let Some(url) = &settings.url else {
        return false;
    };
    let options = &state.shared.options;
    let events: Vec<Value> = batch
        .events
        .iter()
        .map(|out| {
            let envelope = Envelope {
                event_id: out.event_id,
                subscription_id: out.subscription_id,
                portal_id: options.hubspot_portal_id,
                app_id: options.hubspot_app_id,
            };
            out.event.json(out.generic, envelope, batch.attempt)
        })
        .collect();
    let body = Value::Array(events).to_string();
    let timestamp = state.now_ms().to_string();
    let uri = settings.public_url.as_ref().unwrap_or(url);
    let signature = sign::v3(&settings.secret, "POST", uri, body.as_bytes(), &timestamp);
    let old = sign::v1(&settings.secret, body.as_bytes());
    let response = client
        .post(url)
        .header("content-type", "application/json")
        .header("user-agent", "HubSpot Connect 2.0 (http://dev.hubspot.com/) (namespace: webhooks-nio-http-client) - WebhooksExecutorDaemon-executor")
        .header("x-hubspot-signature", old)
        .header("x-hubspot-signature-version", "v1")
        .header("x-hubspot-signature-v3", signature)
        .header("x-hubspot-request-timestamp", timestamp)
        .body(body)
        .send()
        .await;
    response.is_ok_and(|r| r.status().is_success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_retries_grow_and_end() {
        let waits: Vec<u64> = (0..10).map(|a| backoff_ms(250, a)).collect();
        assert_eq!(waits[0], 250);
        assert!(waits.is_sorted());
        assert!(waits.iter().sum::<u64>() < 60_000, "{waits:?}");
        assert_eq!(backoff_ms(u64::MAX, 9), MAX_WAIT_MS);
    }
}
