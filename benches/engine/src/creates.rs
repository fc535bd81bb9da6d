//! `calls.create.*`: API calls per 1,000 records that one INSERT makes in both CRMs.

use crm_tests::Pair;
use serde_json::json;

use crate::calls::{Called, called, echoed};
use crate::figures::{Figure, Figures, rounds};
use crate::setup;

/// Contacts on each side before.
const CONTACTS: u64 = 2_000;
/// Rows of one INSERT, of which each is made in both CRMs.
const CREATED: u64 = 1_000;

pub(crate) async fn measure(figures: &mut Figures) {
    let pair = setup::linked(setup::cluster(), setup::unlimited(CONTACTS)).await;
    setup::calm(&pair.db).await;
    let mut kept = Vec::new();
    for round in 0..rounds() {
        let run = created(&pair, round).await;
        eprintln!("round {round}: {:?}, {:?}", run.0.routes, run.1.routes);
        if round > 0 {
            kept.push(run);
        }
    }
    let (hubspot, salesforce): (Vec<_>, Vec<_>) = kept.into_iter().unzip();
    figure(figures, ("calls.create.hubspot", "10; 0", 10), &hubspot);
    figure(figures, ("calls.create.salesforce", "5; 0", 5), &salesforce);
}

fn figure(
    figures: &mut Figures,
    (id, goal, most): (&'static str, &'static str, u64),
    kept: &[Called],
) {
    let most_of = |f: fn(&Called) -> u64| kept.iter().map(f).max().unwrap_or(0);
    let (writes, others) = (most_of(|c| c.writes), most_of(|c| c.others));
    figures.add(Figure {
        id,
        value: json!([writes, others]),
        unit: "calls/1,000",
        baseline: format!("the least is {most} calls of as many records as one takes; reads before it and because of its echoes"),
        goal,
        met: Some(writes <= most && others == 0 && most_of(|c| c.failed) == 0),
        range: None,
        more: json!({"failed": most_of(|c| c.failed), "routes": kept.first().map(|c| &c.routes)}),
    });
}

/// Calls to HubSpot and to Salesforce for one INSERT.
async fn created(pair: &Pair, round: usize) -> (Called, Called) {
    echoed(pair).await;
    pair.emulator.reset_counts();
    pair.db
        .exec(&format!(
            "INSERT INTO hubspot.contacts (email, firstname, lastname, jobtitle, city)
             SELECT 'new-{round}-' || n || '@example.net', 'First ' || n, 'Last ' || n, 'Made in round {round}', 'Leeds'
             FROM generate_series(1, {CREATED}) n"
        ))
        .await;
    setup::calm(&pair.db).await;
    echoed(pair).await;
    for (table, field) in [
        ("hubspot.contacts", "jobtitle"),
        ("salesforce.contact", "title"),
    ] {
        let sql = format!(
            "SELECT count(DISTINCT id) FROM {table} WHERE {field} = 'Made in round {round}'"
        );
        let there: i64 = pair.db.one(&sql).await;
        assert_eq!(there, CREATED.cast_signed(), "every record is in {table}");
    }
    (called(pair, "hubspot"), called(pair, "salesforce"))
}
