//! How fast answers become rows: records per second of processor time for 20 fields,
//! beside parsing the same bytes into a `serde_json` tree.
//!
//! `cargo bench -p crm-core --bench pages`
#![allow(clippy::unwrap_used, reason = "a bench may panic")]

use std::hint::black_box;
use std::time::Duration;

use crm_core::connectors::by_type;
use crm_core::http::HttpResponse;
use crm_core::model::FieldType;

const ROUNDS: usize = 7;

fn fields() -> Vec<(String, FieldType)> {
    (0..20)
        .map(|i| {
            let field_type = match i {
                0..12 => FieldType::Text,
                12..15 => FieldType::Number,
                15 | 16 => FieldType::DateTime,
                17 => FieldType::Date,
                18 => FieldType::Boolean,
                _ => FieldType::MultiChoice,
            };
            (format!("some_field_{i:02}"), field_type)
        })
        .collect()
}

fn value(field: usize, record: usize, quoted_numbers: bool) -> String {
    match field {
        12..15 if quoted_numbers => format!("\"{record}.50\""),
        12..15 => format!("{record}.50"),
        15 if quoted_numbers => "\"2026-05-01T07:25:37.123Z\"".into(),
        16 if quoted_numbers => "\"2026-05-01T07:25:37Z\"".into(),
        15 | 16 => "\"2026-05-01T07:25:37.000+0000\"".into(),
        17 => "\"2026-05-01\"".into(),
        18 if quoted_numbers => "\"true\"".into(),
        18 => "true".into(),
        19 => "\"german;english\"".into(),
        5 | 9 => "null".into(),
        _ => format!("\"value {field} of record {record}\""),
    }
}

fn members(record: usize, quoted: bool) -> String {
    let list: Vec<String> = (0..20)
        .map(|f| format!("\"some_field_{f:02}\":{}", value(f, record, quoted)))
        .collect();
    list.join(",")
}

fn hubspot_page() -> Vec<u8> {
    let records: Vec<String> = (0..100)
        .map(|i| {
            format!(
                "{{\"id\":\"{}\",\"properties\":{{\"createdate\":\"2026-03-12T07:33:46.615Z\",\"hs_lastmodifieddate\":\"2026-03-12T07:33:46.615Z\",\"hs_object_id\":\"{0}\",{}}},\"createdAt\":\"2026-03-12T07:33:46.615Z\",\"updatedAt\":\"2026-03-12T07:33:46.615Z\",\"archived\":false,\"url\":\"https://app-eu1.hubspot.com/contacts/147893286/record/0-2/{0}\"}}",
                734_931_097_788u64 + i,
                members(usize::try_from(i).unwrap(), true)
            )
        })
        .collect();
    let list = records.join(",");
    format!("{{\"results\":[{list}],\"paging\":{{\"next\":{{\"after\":\"5\",\"link\":\"x\"}}}}}}")
        .into_bytes()
}

fn salesforce_page() -> Vec<u8> {
    let records: Vec<String> = (0..2_000)
        .map(|i| {
            format!(
                "{{\"attributes\":{{\"type\":\"Account\",\"url\":\"/services/data/v62.0/sobjects/Account/0015g00000{i:05}AAA\"}},\"Id\":\"0015g00000{i:05}AAA\",\"SystemModstamp\":\"2026-05-01T07:25:37.000+0000\",{}}}",
                members(i, false)
            )
        })
        .collect();
    let list = records.join(",");
    format!("{{\"totalSize\":2000,\"done\":true,\"records\":[{list}]}}").into_bytes()
}

/// Time that this thread spent on a processor, so that neighbours do not count.
fn on_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let first = stat.split_ascii_whitespace().next().unwrap();
    Duration::from_nanos(first.parse().unwrap())
}

/// Median time of one call, first round dropped.
fn time(calls: usize, mut call: impl FnMut()) -> Duration {
    let mut rounds: Vec<Duration> = (0..=ROUNDS)
        .map(|_| {
            let start = on_cpu();
            for _ in 0..calls {
                call();
            }
            on_cpu() - start
        })
        .skip(1)
        .collect();
    rounds.sort_unstable();
    rounds[ROUNDS / 2] / u32::try_from(calls).unwrap()
}

fn main() {
    let fields = fields();
    println!(
        "{:<12} {:>10} {:>14} {:>14} {:>8}",
        "page", "bytes", "rows/s", "tree rows/s", "MB/s"
    );
    for (name, object, body, calls) in [
        ("hubspot", "companies", hubspot_page(), 1_000),
        ("salesforce", "Account", salesforce_page(), 50),
    ] {
        let connector = by_type(name).unwrap();
        let response = HttpResponse {
            status: 200,
            headers: Vec::new(),
            body,
        };
        let page = connector.page(object, &fields, &response).unwrap();
        assert!(page.unreadable.is_empty() && page.records[0].values.get(0).is_some());
        let rows = page.records.len() as f64;
        let ours = time(calls, || {
            black_box(
                connector
                    .page(object, &fields, black_box(&response))
                    .unwrap(),
            );
        });
        let tree = time(calls, || {
            let body = black_box(&response.body);
            black_box(serde_json::from_slice::<serde_json::Value>(body).unwrap());
        });
        println!(
            "{name:<12} {:>10} {:>14.0} {:>14.0} {:>8.0}",
            response.body.len(),
            rows / ours.as_secs_f64(),
            rows / tree.as_secs_f64(),
            response.body.len() as f64 / ours.as_secs_f64() / 1e6
        );
    }
}
