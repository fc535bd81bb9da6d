//! `GET /limits`: what is left of the org's allowances.

use super::Reply;
use crate::salesforce::State;
use serde_json::{Map, Value, json};
use std::sync::atomic::Ordering;

/// Allowances that nothing here uses up.
const UNTOUCHED: [(&str, u64); 16] = [
    ("AnalyticsExternalDataSizeMB", 40_960),
    ("ConcurrentAsyncGetReportInstances", 200),
    ("ConcurrentSyncReportRuns", 20),
    ("DailyAnalyticsDataflowJobExecutions", 60),
    ("DailyAsyncApexExecutions", 250_000),
    ("DailyBulkV2QueryFileStorageMB", 976_562),
    ("DailyDeliveredPlatformEvents", 10_000),
    ("DailyDurableGenericStreamingApiEvents", 10_000),
    ("DailyDurableStreamingApiEvents", 10_000),
    ("DailyStreamingApiEvents", 10_000),
    ("DataStorageMB", 5_120),
    ("FileStorageMB", 5_120),
    ("HourlyPublishedPlatformEvents", 50_000),
    ("HourlySyncReportRuns", 500),
    ("SingleEmail", 5_000),
    ("StreamingApiConcurrentClients", 20),
];

/// All limits; `DailyApiRequests` and delivered events are counted for real.
pub(crate) fn limits(org: &State) -> Reply {
    let mut all: Map<String, Value> = UNTOUCHED
        .iter()
        .map(|(name, max)| ((*name).to_owned(), json!({"Max": max, "Remaining": max})))
        .collect();
    let (daily, jobs, batches) = {
        let settings = org.settings();
        (
            settings.daily,
            settings.bulk_query_jobs,
            settings.bulk_batches,
        )
    };
    for (name, max, used) in [
        ("DailyBulkV2QueryJobs", jobs, &org.bulk.query_jobs),
        ("DailyBulkApiBatches", batches, &org.bulk.batches),
    ] {
        let left = max.saturating_sub(used.load(Ordering::Relaxed));
        all.insert(name.to_owned(), json!({"Max": max, "Remaining": left}));
    }
    let used = org.calls.load(Ordering::Relaxed);
    all.insert(
        "DailyApiRequests".to_owned(),
        json!({"Max": daily, "Remaining": daily.saturating_sub(used)}),
    );
    let delivered = org.bus.delivered();
    let allowed = 1_000_000_u64;
    all.insert(
        "DailyDeliveredPlatformEvents".to_owned(),
        json!({"Max": allowed, "Remaining": allowed.saturating_sub(delivered)}),
    );
    // One of the recorded keys is nested.
    all.insert("PermissionSets".to_owned(), json!({"Max": 1_500, "Remaining": 1_500, "CreateCustom": {"Max": 1_000, "Remaining": 1_000}}));
    all.sort_keys();
    Reply::json(200, &Value::Object(all))
}
