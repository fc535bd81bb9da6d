//! `outage.recover`: a CRM comes back with many changes waiting for it. With
//! `OUTAGE_SECONDS` in the environment it stays away at least so long.

use std::time::{Duration, Instant};

use crm_tests::Pair;
use serde_json::json;

use crate::figures::{Figure, Figures, round};
use crate::setup;

/// Changes that wait.
const ROWS: u64 = 50_000;
/// Seconds that their calls take by the contract: 100 records a call, 190 calls in 10 s.
const LEAST: f64 = ROWS as f64 / 100.0 / 19.0;
/// Tries in vain after which the pause between them grows no longer: an hour of outage ends like a minute of it.
const TRIES: u64 = 7;

pub(crate) async fn measure(figures: &mut Figures) {
    let emulator = crm_tests::EmulatorOptions::default()
        .contacts(ROWS)
        .arg("--latency-ms", "100")
        .arg("--hubspot-burst", "190");
    let pair = setup::start(setup::cluster(), emulator).await;
    setup::import(&pair.db, "hubspot", "contacts").await;
    setup::copied(&pair.db).await;
    pair.db.exec("SELECT crm.go_live('hubspot.contacts')").await;
    let away = Instant::now();
    pair.emulator.fault(json!({
        "crm": "hubspot", "path_prefix": "/crm/objects/", "remaining": 1_000_000,
        "action": {"reject": {"status": 503, "body": null}},
    }));
    pair.db
        .exec("UPDATE hubspot.contacts SET jobtitle = 'Away'")
        .await;
    let told = "SELECT last_error IS NOT NULL FROM crm.server_state WHERE server = 'hubspot'";
    pair.db
        .wait_true("the outage is noticed", setup::PATIENCE, told)
        .await;
    pair.emulator.reset_counts();
    stay_away(&pair, away).await;
    let away = away.elapsed().as_secs();
    let waited = setup::total(&pair, "hubspot");
    pair.emulator.reset_counts();
    pair.emulator.clear_faults();
    let began = Instant::now();
    let first = "SELECT count(*) < 50000 FROM crm.write";
    pair.db
        .wait_true("a try is answered", setup::PATIENCE, first)
        .await;
    let noticed = began.elapsed().as_secs_f64();
    let done = "SELECT NOT EXISTS (SELECT FROM crm.write)";
    pair.db
        .wait_true("all have arrived", setup::PATIENCE, done)
        .await;
    let seconds = began.elapsed().as_secs_f64();
    let calls = setup::calls(&pair, "hubspot");
    let refused: u64 = calls.iter().filter(|c| c.1 == "429").map(|c| c.2).sum();
    let landed = pair.emulator.digest("hubspot", "contacts", &["jobtitle"]);
    assert_eq!(landed["count"], json!(ROWS), "every change arrived");
    figures.add(Figure {
        id: "outage.recover",
        value: json!([round(seconds), round(noticed), refused]),
        unit: "s: all there, of it until a try is answered; 429s",
        baseline: format!(
            "{ROWS} changes of HubSpot contacts wait, 190 calls in 10 s and 100 ms latency; the contract takes {LEAST:.1} s from the first call"
        ),
        goal: "state it",
        met: None,
        range: None,
        more: json!({
            "calls": calls.iter().map(|c| c.2).sum::<u64>(), "calls_while_away": waited, "seconds_away": away,
            "of_the_contract": round(LEAST / (seconds - noticed)),
        }),
    });
}

/// Until tries are as rare as they get, and as long as was asked for.
async fn stay_away(pair: &Pair, since: Instant) {
    let tries = || {
        let of = |c: &(String, String, u64)| c.0.contains("/batch/update").then_some(c.2);
        setup::calls(pair, "hubspot")
            .iter()
            .filter_map(of)
            .sum::<u64>()
    };
    pair.cluster
        .wait_until(
            "pauses are as long as they get",
            setup::PATIENCE,
            async || (tries() >= TRIES).then_some(()),
        )
        .await;
    let least = std::env::var("OUTAGE_SECONDS").map_or(0, |s| s.parse().expect("seconds"));
    let rest = Duration::from_secs(least).saturating_sub(since.elapsed());
    tokio::time::sleep(rest).await;
}
