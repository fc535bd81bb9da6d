//! Waiting for what must become true, never for a fixed time.

use std::time::{Duration, Instant};

/// How long tests wait by default. Generous: only a failing test uses it up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks `probe` until it answers `Some`; panics with `what` when `patience` is over.
///
/// The probe is asked again after a pause that grows from 2 ms to 100 ms, and always once more at the end.
pub async fn wait_until<T>(
    what: &str,
    patience: Duration,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    match attempt(patience, &mut probe).await {
        Some(value) => value,
        None => panic!("waited {patience:?} in vain until {what}"),
    }
}

/// [`wait_until`] that answers `None` instead of panicking.
pub(crate) async fn attempt<T>(
    patience: Duration,
    probe: &mut impl AsyncFnMut() -> Option<T>,
) -> Option<T> {
    let end = Instant::now() + patience;
    let mut pause = Duration::from_millis(2);
    loop {
        let last = Instant::now() >= end;
        if let Some(value) = probe().await {
            return Some(value);
        }
        if last {
            return None;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(100));
    }
}
