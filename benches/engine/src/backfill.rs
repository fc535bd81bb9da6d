//! `backfill.*`: first copies without call limits, against COPY of the same rows.

use std::time::Instant;

use crm_tests::Pair;
use serde_json::json;

use crate::figures::{Figure, Figures, median, round, rounds};
use crate::process::cpu_seconds;
use crate::setup;

/// Records copied in each round.
const ROWS: u64 = 200_000;

/// A timed copy: rows per second, and seconds of CPU of the process that did it.
#[derive(Clone, Copy)]
struct Run {
    rate: f64,
    cpu: f64,
    emulator: f64,
}

pub(crate) async fn measure(figures: &mut Figures) {
    let pair = setup::start(setup::cluster(), setup::unlimited(ROWS)).await;
    let mut runs: [[Vec<Run>; 2]; 3] = Default::default();
    let sides = [
        ("hubspot", "contacts", "hubspot.contacts", false),
        ("salesforce", "Contact", "salesforce.contact", false),
        ("salesforce", "Contact", "salesforce.contact", true),
    ];
    for round in 0..rounds() {
        for (side, (server, object, mirror, bulk)) in sides.iter().enumerate() {
            let least = if *bulk { "1" } else { "0" };
            pair.cluster.set("pg_crm_sync.bulk_read_rows", least);
            pair.cluster.reload();
            pair.worker_has_read().await;
            let engine = mirrored(&pair, server, object, mirror).await;
            let copy = copied(&pair, mirror).await;
            eprintln!(
                "{server} (bulk {bulk}) round {round}: {:.0} rows/s, COPY {:.0} rows/s",
                engine.rate, copy.rate
            );
            pair.db
                .exec(&format!("SELECT crm.mirror_drop('{mirror}')"))
                .await;
            if round > 0 {
                runs[side][0].push(engine);
                runs[side][1].push(copy);
            }
        }
    }
    let ids = [
        ("backfill.hubspot", 0.5, ">= 0.5, aim 0.8"),
        ("backfill.salesforce", 0.5, ">= 0.5, aim 0.8"),
        ("backfill.bulk", 0.7, ">= 0.7"),
    ];
    for (side, (id, least, goal)) in ids.into_iter().enumerate() {
        report(figures, (id, least, goal), &runs[side][0], &runs[side][1]);
    }
}

fn report(
    figures: &mut Figures,
    (id, least, goal): (&'static str, f64, &'static str),
    engine: &[Run],
    copy: &[Run],
) {
    let each = |f: fn(&Run) -> f64, runs: &[Run]| median(&runs.iter().map(f).collect::<Vec<_>>()).0;
    let ratios: Vec<f64> = engine
        .iter()
        .zip(copy)
        .map(|(e, c)| e.rate / c.rate)
        .collect();
    let (ratio, range) = median(&ratios);
    figures.add(Figure {
        id,
        value: json!(round(ratio)),
        unit: "x COPY",
        baseline: format!(
            "{:.0} rows/s; COPY of the same rows from a file {:.0} rows/s",
            each(|r| r.rate, engine),
            each(|r| r.rate, copy)
        ),
        goal,
        met: Some(ratio >= least),
        range: Some(range),
        more: json!({
            "cpu_s": {"worker": round(each(|r| r.cpu, engine)), "copy": round(each(|r| r.cpu, copy))},
            "ceiling": format!("emulator alone {:.0} rows/s per core", ROWS as f64 / each(|r| r.emulator, engine)),
        }),
    });
}

/// Imports the object and waits for its copy.
async fn mirrored(pair: &Pair, server: &str, object: &str, mirror: &str) -> Run {
    let worker = pair.cluster.session_worker(&pair.db).await;
    let emulator = i32::try_from(pair.emulator.pid()).expect("a process id");
    let (cpu, theirs) = (cpu_seconds(worker), cpu_seconds(emulator));
    setup::import(&pair.db, server, object).await;
    setup::copied(&pair.db).await;
    // By the worker's own stamps, which leave out that the wait asks every 100 ms.
    let sql = "SELECT extract(epoch FROM finished_at - started_at)::float8 FROM crm.backfill";
    let seconds: f64 = pair.db.one(sql).await;
    let rows: i64 = pair
        .db
        .one(&format!(
            "SELECT count(*) FROM {mirror} WHERE email IS NOT NULL"
        ))
        .await;
    assert_eq!(rows, ROWS.cast_signed(), "{mirror} is complete");
    Run {
        rate: ROWS as f64 / seconds,
        cpu: cpu_seconds(worker) - cpu,
        emulator: cpu_seconds(emulator) - theirs,
    }
}

/// COPY of the rows of `mirror` into an empty table of the same shape.
async fn copied(pair: &Pair, mirror: &str) -> Run {
    let file = pair.cluster.data().join("bench.copy");
    let file = file.display();
    let columns: String = pair
        .db
        .one(&format!(
            "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
             WHERE attrelid = '{mirror}'::regclass AND attnum > 0 AND NOT attisdropped AND attidentity = ''"
        ))
        .await;
    pair.db
        .exec(&format!(
            "COPY {mirror} ({columns}) TO '{file}';
             DROP TABLE IF EXISTS public.plain;
             CREATE TABLE public.plain (LIKE {mirror} INCLUDING ALL);
             ALTER TABLE public.plain SET (fillfactor = 90)"
        ))
        .await;
    let backend: i32 = pair.db.one("SELECT pg_backend_pid()").await;
    let (cpu, began) = (cpu_seconds(backend), Instant::now());
    pair.db
        .exec(&format!("COPY public.plain ({columns}) FROM '{file}'"))
        .await;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = cpu_seconds(backend) - cpu;
    pair.db.exec("DROP TABLE public.plain").await;
    Run {
        rate: ROWS as f64 / seconds,
        cpu,
        emulator: 0.0,
    }
}
