//! `idle`: what the worker does when nothing happens.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::figures::{Figure, Figures, round};
use crate::process::cpu_seconds;
use crate::setup;

/// How long nothing happens.
const SPAN: Duration = Duration::from_secs(30);
/// Objects that are mirrored.
const OBJECTS: f64 = 2.0;

pub(crate) async fn measure(figures: &mut Figures) {
    let pair = setup::linked(setup::cluster(), setup::unlimited(10_000)).await;
    // As people have it, not as the other pieces need it.
    pair.db
        .exec("SELECT crm.import('hubspot', ARRAY['contacts'], into_schema => 'hubspot'), crm.import('salesforce', ARRAY['Contact'], into_schema => 'salesforce')")
        .await;
    setup::calm(&pair.db).await;
    setup::copied(&pair.db).await;
    // The first poll after the copy belongs to the copy.
    tokio::time::sleep(Duration::from_secs(3)).await;
    pair.emulator.reset_counts();
    let worker = pair.cluster.session_worker(&pair.db).await;
    let (cpu, began) = (cpu_seconds(worker), Instant::now());
    tokio::time::sleep(SPAN).await;
    let seconds = began.elapsed().as_secs_f64();
    let share = 100.0 * (cpu_seconds(worker) - cpu) / seconds;
    let calls = setup::total(&pair, "hubspot") + setup::total(&pair, "salesforce");
    let a_minute = calls as f64 / OBJECTS * 60.0 / seconds;
    figures.add(Figure {
        id: "idle",
        value: json!([round(share), round(a_minute)]),
        unit: "% of a core, calls/min per object",
        baseline: format!("{calls} calls in {seconds:.0} s, two objects, both streams open"),
        goal: "<= 0.5 and <= 1",
        // A poll a minute can fall into the span or not: one call more than the rate allows is chance.
        met: Some(share <= 0.5 && (calls as f64) <= OBJECTS),
        range: None,
        more: json!({"routes": [setup::calls(&pair, "hubspot"), setup::calls(&pair, "salesforce")]}),
    });
}
