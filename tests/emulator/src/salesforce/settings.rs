//! What an org's administrator, or a test, can set about the Salesforce side while it runs.

use serde_json::{Map, Value, json};

/// Behaviour that real orgs differ in, plus limits.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// API calls per day; 403 beyond when limits are enforced.
    pub(crate) daily: u64,
    /// Whether `daily` is enforced.
    pub(crate) enforce: bool,
    /// Calls that may run for `long_ms` or longer at a time; 403 for others meanwhile when limits are enforced.
    pub(crate) concurrent: u64,
    /// From how long on a call is a long one.
    pub(crate) long_ms: u64,
    /// How long each call is worked on.
    pub(crate) work_ms: u64,
    /// A write that changes nothing moves `LastModifiedDate` and `SystemModstamp` and raises an event whose only changed
    /// field is `LastModifiedDate`. Salesforce does so for API updates; off makes such writes leave no trace.
    pub(crate) touch_on_noop: bool,
    /// A second Contact or Lead with the same address is refused with DUPLICATES_DETECTED.
    pub(crate) duplicate_rule: bool,
    /// Long texts in events may come as unified diffs.
    pub(crate) diffs: bool,
    /// Identical changes of one transaction share an event with several record ids.
    pub(crate) merge_record_ids: bool,
    /// After so many milliseconds without events a subscriber gets an empty answer with a newer replay id.
    pub(crate) keepalive_ms: u64,
    /// How long CometD holds a connect without events.
    pub(crate) connect_ms: u64,
    /// Events delivered to all subscribers together, after which none gets any more.
    pub(crate) deliveries: u64,
    /// Events kept for replay; older ones are gone as if 72 hours had passed.
    pub(crate) retained_events: u64,
    /// A used refresh token is replaced by a new one.
    pub(crate) rotate_refresh_token: bool,
    /// Life of a session (an access token).
    pub(crate) session_life_ms: u64,
    /// Rows per query page at most.
    pub(crate) page_rows: u64,
    /// How long a bulk job waits before it is worked on.
    pub(crate) bulk_queue_ms: u64,
    /// How long a bulk job is worked on.
    pub(crate) bulk_work_ms: u64,
    /// Rows per page of a query job's results at most.
    pub(crate) bulk_page_rows: u64,
    /// Every page of a query job's results starts with the header; off: only the first.
    pub(crate) bulk_header_every_page: bool,
    /// Times in a query job's results end in `Z`; off: in `+0000`, as elsewhere.
    pub(crate) bulk_zulu: bool,
    /// Jobs fail when they are worked on, ingest jobs half way.
    pub(crate) bulk_fail: bool,
    /// Query jobs per day.
    pub(crate) bulk_query_jobs: u64,
    /// Batches of 10,000 rows that ingest jobs may write per day.
    pub(crate) bulk_batches: u64,
    /// Largest upload of an ingest job, counted in base64.
    pub(crate) bulk_upload_bytes: u64,
    /// The org's time zone.
    pub(crate) time_zone: String,
    /// Objects whose changes raise events; none named: all do. An org without the add-on may select [`ENTITIES`].
    pub(crate) selected: Vec<String>,
    /// Objects whose events the app's user may not see: a subscription to one is refused.
    pub(crate) withheld: Vec<String>,
}

/// Objects that may be selected for change events, over all channels.
const ENTITIES: usize = 5;

impl Default for Settings {
    fn default() -> Self {
        Self {
            daily: 100_000,
            enforce: true,
            concurrent: 25,
            long_ms: 20_000,
            work_ms: 0,
            touch_on_noop: true,
            duplicate_rule: false,
            diffs: true,
            merge_record_ids: true,
            keepalive_ms: 270_000,
            connect_ms: 110_000,
            deliveries: u64::MAX,
            retained_events: 500_000,
            rotate_refresh_token: false,
            session_life_ms: 7_200_000,
            page_rows: 2_000,
            bulk_queue_ms: 0,
            bulk_work_ms: 20,
            bulk_page_rows: 50_000,
            bulk_header_every_page: true,
            bulk_zulu: true,
            bulk_fail: false,
            bulk_query_jobs: 10_000,
            bulk_batches: 15_000,
            bulk_upload_bytes: 150_000_000,
            time_zone: "America/Los_Angeles".to_owned(),
            selected: Vec::new(),
            withheld: Vec::new(),
        }
    }
}

impl Settings {
    /// Takes over the given keys; on a mistake nothing changes and the text says what was expected.
    pub(crate) fn merge(&mut self, changes: &Map<String, Value>) -> Result<(), String> {
        let mut next = self.clone();
        for (key, value) in changes {
            next.set(key, value)?;
        }
        *self = next;
        Ok(())
    }

    fn set(&mut self, key: &str, value: &Value) -> Result<(), String> {
        let number = |least: u64| {
            let number = value.as_u64().filter(|number| *number >= least);
            number.ok_or_else(|| format!("{key}: expected a whole number of {least} or more"))
        };
        let truth = || {
            value
                .as_bool()
                .ok_or_else(|| format!("{key}: expected true or false"))
        };
        match key {
            "daily" => self.daily = number(0)?,
            "enforce" => self.enforce = truth()?,
            "concurrent" => self.concurrent = number(1)?,
            "long_ms" => self.long_ms = number(0)?,
            "work_ms" => self.work_ms = number(0)?.min(120_000),
            "touch_on_noop" => self.touch_on_noop = truth()?,
            "duplicate_rule" => self.duplicate_rule = truth()?,
            "diffs" => self.diffs = truth()?,
            "merge_record_ids" => self.merge_record_ids = truth()?,
            "keepalive_ms" => self.keepalive_ms = number(10)?,
            "retained_events" => self.retained_events = number(1)?.min(2_000_000),
            "rotate_refresh_token" => self.rotate_refresh_token = truth()?,
            "session_life_ms" => self.session_life_ms = number(0)?,
            "page_rows" => self.page_rows = number(1)?.min(2_000),
            "bulk_queue_ms" => self.bulk_queue_ms = number(0)?,
            "bulk_work_ms" => self.bulk_work_ms = number(0)?,
            "bulk_page_rows" => self.bulk_page_rows = number(1)?.min(1_000_000),
            "bulk_header_every_page" => self.bulk_header_every_page = truth()?,
            "bulk_zulu" => self.bulk_zulu = truth()?,
            "bulk_fail" => self.bulk_fail = truth()?,
            "bulk_query_jobs" => self.bulk_query_jobs = number(0)?,
            "bulk_batches" => self.bulk_batches = number(0)?,
            "bulk_upload_bytes" => self.bulk_upload_bytes = number(1)?.min(150_000_000),
            "time_zone" => {
                let text = value.as_str();
                self.time_zone = text
                    .ok_or_else(|| format!("{key}: expected text"))?
                    .to_owned();
            }
            "connect_ms" => self.connect_ms = number(1)?,
            "deliveries" => self.deliveries = number(0)?,
            "selected" => self.selected = entities(value)?,
            "withheld" => self.withheld = entities(value)?,
            _ => {
                let known: Vec<String> = self
                    .to_json()
                    .as_object()
                    .into_iter()
                    .flat_map(|map| map.keys().cloned())
                    .collect();
                return Err(format!(
                    "unknown setting `{key}`; known are {}",
                    known.join(", ")
                ));
            }
        }
        Ok(())
    }

    /// All settings.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "daily": self.daily, "enforce": self.enforce, "concurrent": self.concurrent, "long_ms": self.long_ms,
            "work_ms": self.work_ms, "touch_on_noop": self.touch_on_noop,
            "duplicate_rule": self.duplicate_rule, "diffs": self.diffs, "merge_record_ids": self.merge_record_ids,
            "keepalive_ms": self.keepalive_ms, "connect_ms": self.connect_ms, "deliveries": self.deliveries, "retained_events": self.retained_events,
            "rotate_refresh_token": self.rotate_refresh_token, "session_life_ms": self.session_life_ms,
            "page_rows": self.page_rows,
            "bulk_queue_ms": self.bulk_queue_ms, "bulk_work_ms": self.bulk_work_ms,
            "bulk_page_rows": self.bulk_page_rows, "bulk_header_every_page": self.bulk_header_every_page,
            "bulk_zulu": self.bulk_zulu, "bulk_fail": self.bulk_fail, "bulk_query_jobs": self.bulk_query_jobs,
            "bulk_batches": self.bulk_batches, "bulk_upload_bytes": self.bulk_upload_bytes,
            "time_zone": self.time_zone, "selected": self.selected, "withheld": self.withheld,
        })
    }
}

fn entities(value: &Value) -> Result<Vec<String>, String> {
    let list = value.as_array().filter(|list| list.len() <= ENTITIES);
    let names = list.and_then(|list| {
        list.iter()
            .map(|name| Some(name.as_str()?.to_owned()))
            .collect()
    });
    names.ok_or_else(|| format!("expected a list of at most {ENTITIES} names of objects"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_setting_names_the_key_and_changes_nothing() {
        let mut settings = Settings::default();
        let changes = json!({"diffs": false, "daily": "many"});
        let error = settings.merge(changes.as_object().unwrap()).unwrap_err();
        assert!(error.contains("daily"), "{error}");
        assert!(settings.diffs, "nothing of a refused change is kept");
        let unknown = json!({"dialy": 1});
        assert!(
            settings
                .merge(unknown.as_object().unwrap())
                .unwrap_err()
                .contains("known are daily")
        );
    }
}
