//! `apply.*`: webhook events per second into a live mirror, against a bare UPDATE of as many rows.

use std::time::Instant;

use crm_tests::Pair;
use serde_json::json;

use crate::figures::{Figure, Figures, median, round, rounds};
use crate::process::cpu_seconds;
use crate::{setup, webhook};

/// Rows of the table.
const ROWS: u64 = 200_000;

/// How events come, and what they are compared with.
struct Variant {
    id: &'static str,
    /// Deliveries at once: HubSpot opens up to ten connections.
    connections: usize,
    /// Rows of one statement of the baseline.
    statement: usize,
    /// Events of one round.
    events: usize,
}

const VARIANTS: [Variant; 2] = [
    Variant {
        id: "apply.100",
        connections: 1,
        statement: 100,
        events: 10_000,
    },
    Variant {
        id: "apply.1000",
        connections: 10,
        statement: 1_000,
        events: 40_000,
    },
];

#[derive(Clone, Copy)]
struct Run {
    rate: f64,
    cpu: f64,
    refused: usize,
}

pub(crate) async fn measure(figures: &mut Figures) {
    let pair = setup::start(setup::cluster(), setup::unlimited(ROWS)).await;
    setup::import(&pair.db, "hubspot", "contacts").await;
    setup::copied(&pair.db).await;
    // The same shape and rows, without trigger.
    pair.db
        .exec(
            "SELECT crm.go_live('hubspot.contacts');
             CREATE TABLE public.plain (LIKE hubspot.contacts INCLUDING ALL) WITH (fillfactor = 90);
             INSERT INTO public.plain OVERRIDING SYSTEM VALUE SELECT * FROM hubspot.contacts",
        )
        .await;
    pair.db
        .exec("VACUUM ANALYZE public.plain, hubspot.contacts")
        .await;
    pair.db.exec("CHECKPOINT").await;
    let mut runs: Vec<[Vec<Run>; 2]> = VARIANTS.iter().map(|_| Default::default()).collect();
    let mut event = 1;
    for round in 0..rounds() {
        for (i, variant) in VARIANTS.iter().enumerate() {
            let records = records(round, variant.events);
            let value = format!("Round {round} of {}", variant.id);
            let engine = posted(&pair, variant, &records, &value, event).await;
            event += records.len();
            let bare = bare(&pair, variant, &records, &value).await;
            eprintln!(
                "{} round {round}: {:.0} events/s, bare {:.0} rows/s, {} refused",
                variant.id, engine.rate, bare.rate, engine.refused
            );
            if round > 0 {
                runs[i][0].push(engine);
                runs[i][1].push(bare);
            }
        }
    }
    for (variant, [engine, bare]) in VARIANTS.iter().zip(&runs) {
        report(figures, variant, engine, bare);
    }
}

/// Rows spread over the whole table, others in each round.
fn records(round: usize, count: usize) -> Vec<i64> {
    let rows = ROWS.cast_signed();
    let stride = 7_919;
    let first = 31 * i64::try_from(round).expect("few rounds");
    (0..i64::try_from(count).expect("few events"))
        .map(|i| (first + i * stride) % rows + 1)
        .collect()
}

/// Posts the events and waits until the last of every connection is committed.
async fn posted(
    pair: &Pair,
    variant: &Variant,
    records: &[i64],
    value: &str,
    first_event: usize,
) -> Run {
    let address: String = pair.db.one("SHOW pg_crm_sync.listen").await;
    let requests = webhook::requests(&address, records, "jobtitle", value, first_event);
    let count = format!("SELECT count(*) FROM hubspot.contacts WHERE jobtitle = '{value}'");
    let worker = pair.cluster.session_worker(&pair.db).await;
    let last: Vec<String> = records
        .iter()
        .rev()
        .take(1_000)
        .map(i64::to_string)
        .collect();
    let there = format!(
        "SELECT bool_and(jobtitle = '{value}') FROM hubspot.contacts WHERE id = ANY ('{{{}}}')",
        last.join(",")
    );
    let (cpu, began) = (cpu_seconds(worker), Instant::now());
    let connections = variant.connections;
    let refused =
        tokio::task::spawn_blocking(move || webhook::post(&address, connections, requests))
            .await
            .expect("the deliveries end");
    pair.db
        .wait_true("the last events are rows", setup::PATIENCE, &there)
        .await;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = cpu_seconds(worker) - cpu;
    let rows: i64 = pair.db.one(&count).await;
    assert_eq!(
        rows,
        i64::try_from(records.len()).expect("few"),
        "no event is lost"
    );
    Run {
        rate: records.len() as f64 / seconds,
        cpu,
        refused,
    }
}

/// The same rows by UPDATE … FROM unnest, one transaction per statement.
async fn bare(pair: &Pair, variant: &Variant, records: &[i64], value: &str) -> Run {
    let update = pair
        .db
        .prepare(
            "UPDATE public.plain t SET jobtitle = u.value, _remote_modified_at = now()
             FROM unnest($1::text[], $2::text[]) AS u (id, value) WHERE t.id = u.id",
        )
        .await
        .expect("prepare the bare update");
    let backend: i32 = pair.db.one("SELECT pg_backend_pid()").await;
    let (cpu, began) = (cpu_seconds(backend), Instant::now());
    for chunk in records.chunks(variant.statement) {
        let ids: Vec<String> = chunk.iter().map(i64::to_string).collect();
        let values = vec![value; ids.len()];
        let changed = pair.db.execute(&update, &[&ids, &values]).await;
        assert_eq!(changed.expect("the bare update"), ids.len() as u64);
    }
    Run {
        rate: records.len() as f64 / began.elapsed().as_secs_f64(),
        cpu: cpu_seconds(backend) - cpu,
        refused: 0,
    }
}

fn report(figures: &mut Figures, variant: &Variant, engine: &[Run], bare: &[Run]) {
    let each = |f: fn(&Run) -> f64, runs: &[Run]| median(&runs.iter().map(f).collect::<Vec<_>>()).0;
    let ratios: Vec<f64> = engine
        .iter()
        .zip(bare)
        .map(|(e, b)| e.rate / b.rate)
        .collect();
    let (ratio, range) = median(&ratios);
    let micros = |cpu: f64| round(cpu * 1e6 / variant.events as f64);
    figures.add(Figure {
        id: variant.id,
        value: json!(round(ratio)),
        unit: "x bare UPDATE",
        baseline: format!(
            "{:.0} events/s; UPDATE … FROM unnest of {} rows a transaction {:.0} rows/s",
            each(|r| r.rate, engine),
            variant.statement,
            each(|r| r.rate, bare)
        ),
        goal: ">= 0.3, aim 0.5",
        met: Some(ratio >= 0.3),
        range: Some(range),
        more: json!({
            "cpu_us_per_event": {"worker": micros(each(|r| r.cpu, engine)), "bare": micros(each(|r| r.cpu, bare))},
            "refused": engine.iter().map(|r| r.refused).sum::<usize>(),
        }),
    });
}
