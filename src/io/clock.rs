//! The only place that reads clocks.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crm_core::model::Millis;

fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(Instant::now)
}

/// Wall clock: for what the CRM compares with its own.
pub(crate) fn wall() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| {
        Millis::try_from(d.as_millis()).unwrap_or(Millis::MAX)
    })
}

/// Milliseconds since this library's first look at the clock; never steps.
pub(crate) fn mono() -> Millis {
    Millis::try_from(origin().elapsed().as_millis()).unwrap_or(Millis::MAX)
}

/// The instant of a [`mono`] time, rounded up so that it is not early.
pub(crate) fn instant(at: Millis) -> tokio::time::Instant {
    let ms = u64::try_from(at).unwrap_or(0).min(1 << 40);
    (origin() + Duration::from_millis(ms)).into()
}

/// A seed for jitter.
pub(crate) fn seed() -> u64 {
    u64::from(origin().elapsed().subsec_nanos()) ^ u64::from(std::process::id()).rotate_left(32)
}
