//! Links of companies and deals with their standard maps: values that are spelled differently on each side, values
//! that one side cannot hold, and what a DBA sees of it.

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions};
use serde_json::json;

/// Companies, deals and their counterparts imported and linked; live only where `live` names the link.
async fn linked(live: &[&str]) -> Pair {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(60),
        ..PairOptions::default()
    })
    .await;
    pair.import("hubspot", &["companies", "deals"]).await;
    pair.import("salesforce", &["Account", "Opportunity"]).await;
    pair.backfilled().await;
    pair.db
        .exec(
            "SELECT crm.link('hubspot.companies', 'salesforce.account');
             SELECT crm.link('hubspot.deals', 'salesforce.opportunity')",
        )
        .await;
    for link in live {
        pair.db.exec(&format!("SELECT crm.go_live('{link}')")).await;
    }
    pair.worker_has_read().await;
    pair
}

/// Ids of the first tied pair of a link.
async fn tied(pair: &Pair, left: &str, right: &str) -> (String, String) {
    let sql = format!(
        "SELECT l.id, r.id FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity AND b.mirror <> a.mirror
         JOIN {left} l ON l._id = a.row_id AND a.mirror = (SELECT id FROM crm.mirror WHERE schema_name || '.' || table_name = '{left}')
         JOIN {right} r ON r._id = b.row_id AND b.mirror = (SELECT id FROM crm.mirror WHERE schema_name || '.' || table_name = '{right}')
         ORDER BY l._id LIMIT 1"
    );
    let row = pair
        .db
        .query_one(&sql, &[])
        .await
        .expect("a record known to both");
    (row.get(0), row.get(1))
}

/// Waits until a field of a record is as given in its CRM.
async fn reaches(pair: &Pair, (crm, object, id): (&str, &str, &str), field: &str, wanted: &str) {
    pair.cluster
        .wait_until(
            &format!("{crm} {object} {id}: {field} = {wanted}"),
            PATIENCE,
            async || {
                let there = pair
                    .emulator
                    .field(crm, object, id, field)
                    .unwrap_or_default();
                let number = |t: &str| t.parse::<f64>().ok();
                let equal = there == wanted
                    || (number(&there).is_some() && number(&there) == number(wanted));
                equal.then_some(())
            },
        )
        .await;
}

/// Calls that change something, over both CRMs.
fn writes(pair: &Pair) -> u64 {
    pair.writes("hubspot") + pair.writes("salesforce")
}

/// Waits until nothing is on its way and every event that was raised so far was taken.
async fn quiet(pair: &Pair) {
    let settled = "SELECT NOT EXISTS (SELECT FROM crm.write WHERE state IN ('queued', 'in_flight', 'unknown'))
        AND NOT EXISTS (SELECT FROM crm.deferred) AND NOT EXISTS (SELECT FROM crm.change_0) AND NOT EXISTS (SELECT FROM crm.change_1)";
    let mut last = (0, 0);
    let mut same = 0;
    pair.cluster
        .wait_until("nothing is on its way", PATIENCE, async || {
            let idle: bool = pair.db.one(settled).await;
            let events: i64 = pair
                .db
                .one("SELECT coalesce(sum(events + duplicates), 0)::bigint FROM crm.stream")
                .await;
            let now = (events, writes(pair));
            same = if idle && now == last { same + 1 } else { 0 };
            last = now;
            (same >= 8).then_some(())
        })
        .await;
}

fn said(rows: &[Vec<String>], what: &str) -> String {
    let rows: Vec<_> = rows.iter().filter(|r| r[0] == what).collect();
    format!("{rows:?}")
}

/// A domain and a website are one thing in two spellings: neither side may be rewritten in the other's.
#[tokio::test(flavor = "multi_thread")]
async fn a_domain_and_a_website_do_not_rewrite_each_other() {
    let pair = linked(&["companies"]).await;
    let (company, account) = tied(&pair, "hubspot.companies", "salesforce.account").await;
    let hubspot = ("hubspot", "companies", company.as_str());
    let salesforce = ("salesforce", "Account", account.as_str());

    pair.emulator.edit(
        hubspot.0,
        hubspot.1,
        hubspot.2,
        json!({"domain": "poets.example"}),
    );
    reaches(&pair, salesforce, "Website", "https://poets.example").await;
    pair.emulator.edit(
        salesforce.0,
        salesforce.1,
        salesforce.2,
        json!({"Website": "https://www.critics.example/about"}),
    );
    reaches(&pair, hubspot, "domain", "critics.example").await;
    quiet(&pair).await;
    assert_eq!(
        pair.emulator
            .field("salesforce", "Account", &account, "Website"),
        Some("https://www.critics.example/about".to_owned()),
        "the longer spelling is the same domain and stays"
    );

    // Numbers are spelled differently too: 1250000.50 is 1250000.5.
    pair.db
        .exec(&format!("UPDATE salesforce.account SET annualrevenue = 1250000.50, numberofemployees = 12 WHERE id = '{account}'"))
        .await;
    reaches(&pair, hubspot, "annualrevenue", "1250000.5").await;
    reaches(&pair, hubspot, "numberofemployees", "12").await;
    quiet(&pair).await;
    assert!(writes(&pair) > 0, "the counts see writes");
    pair.emulator.reset_counts();
    pair.emulator.edit(
        "hubspot",
        "companies",
        &company,
        json!({"numberofemployees": "12.0"}),
    );
    pair.db
        .exec(&format!(
            "UPDATE hubspot.companies SET annualrevenue = 1250000.500 WHERE id = '{company}'"
        ))
        .await;
    quiet(&pair).await;
    assert_eq!(
        writes(&pair),
        0,
        "another spelling of the same is no change: {}",
        pair.emulator.counts()
    );
}

/// Stages have other names on the other side, and a close time loses its hour on the way to a date and back.
#[tokio::test(flavor = "multi_thread")]
async fn stages_are_translated_and_a_date_does_not_cut_the_hour_of_a_time() {
    let pair = linked(&["deals"]).await;
    let (deal, opportunity) = tied(&pair, "hubspot.deals", "salesforce.opportunity").await;
    let hubspot = ("hubspot", "deals", deal.as_str());
    let salesforce = ("salesforce", "Opportunity", opportunity.as_str());

    pair.emulator.edit(
        "hubspot",
        "deals",
        &deal,
        json!({"dealstage": "closedwon", "closedate": "2027-03-04T15:30:00Z"}),
    );
    reaches(&pair, salesforce, "StageName", "Closed Won").await;
    reaches(&pair, salesforce, "CloseDate", "2027-03-04").await;
    quiet(&pair).await;
    let kept = "SELECT closedate = '2027-03-04 15:30Z' FROM hubspot.deals WHERE id = ";
    assert!(
        pair.db.one::<bool>(&format!("{kept}'{deal}'")).await,
        "the hour stays"
    );

    pair.emulator.edit(
        "salesforce",
        "Opportunity",
        &opportunity,
        json!({"StageName": "Qualification", "CloseDate": "2027-05-06", "Amount": 77.5}),
    );
    reaches(&pair, hubspot, "dealstage", "qualifiedtobuy").await;
    reaches(&pair, hubspot, "amount", "77.5").await;
    pair.db
        .wait_true(
            "the day is a time of HubSpot",
            PATIENCE,
            &format!(
                "SELECT closedate = '2027-05-06 00:00Z' FROM hubspot.deals WHERE id = '{deal}'"
            ),
        )
        .await;
    quiet(&pair).await;
}

/// A stage that the other pipeline lacks used to vanish without a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_without_a_counterpart_stays_and_is_shown() {
    let pair = linked(&["deals"]).await;
    let (deal, opportunity) = tied(&pair, "hubspot.deals", "salesforce.opportunity").await;
    pair.emulator.edit(
        "salesforce",
        "Opportunity",
        &opportunity,
        json!({"StageName": "Perception Analysis", "Amount": 4242}),
    );
    let before = pair.emulator.field("hubspot", "deals", &deal, "dealstage");
    reaches(&pair, ("hubspot", "deals", &deal), "amount", "4242").await;
    quiet(&pair).await;
    assert_eq!(
        pair.emulator.field("hubspot", "deals", &deal, "dealstage"),
        before
    );
    let shown = pair
        .db
        .table(&format!(
            "SELECT field, held FROM crm.conflict WHERE record_id = '{opportunity}'"
        ))
        .await;
    let text = format!("{shown:?}");
    assert!(
        text.contains("dealstage") && text.contains("Perception Analysis"),
        "{text}"
    );
    let preview = pair
        .db
        .table("SELECT what, field, count, sample FROM crm.preview('deals') WHERE what = 'no counterpart'")
        .await;
    assert!(
        said(&preview, "no counterpart").contains("StageName"),
        "{preview:?}"
    );
}

/// New records need the other side's required fields in its own words.
#[tokio::test(flavor = "multi_thread")]
async fn companies_and_deals_are_made_on_the_other_side_once() {
    let pair = linked(&["companies", "deals"]).await;
    let made = async |crm: &str, object: &str, field: &str, value: &str| {
        pair.db
            .wait_true(
                &format!("{crm} has {value}"),
                PATIENCE,
                &format!("SELECT count(*) = 1 AND bool_and(id IS NOT NULL) FROM {crm}.{object} WHERE {field} = '{value}'"),
            )
            .await;
    };
    let counts = || {
        [
            ("hubspot", "companies"),
            ("hubspot", "deals"),
            ("salesforce", "Account"),
            ("salesforce", "Opportunity"),
        ]
        .map(|(crm, object)| {
            pair.emulator.digest(crm, object, &[])["count"]
                .as_i64()
                .unwrap_or_default()
        })
    };
    let before = counts();
    pair.emulator.create(
        "hubspot",
        "companies",
        json!({"name": "Left Ltd", "domain": "left.example"}),
    );
    pair.emulator.create(
        "salesforce",
        "Account",
        json!({"Name": "Right Ltd", "Website": "https://right.example"}),
    );
    pair.emulator.create(
        "hubspot",
        "deals",
        json!({"dealname": "Left deal", "pipeline": "default", "dealstage": "contractsent", "closedate": "2027-03-04T15:30:00Z", "amount": "5"}),
    );
    pair.emulator.create(
        "salesforce",
        "Opportunity",
        json!({"Name": "Right deal", "StageName": "Closed Lost", "CloseDate": "2027-03-04"}),
    );
    made("salesforce", "account", "website", "https://left.example").await;
    made("hubspot", "companies", "domain", "right.example").await;
    made("salesforce", "opportunity", "name", "Left deal").await;
    made("hubspot", "deals", "dealname", "Right deal").await;
    quiet(&pair).await;
    assert_eq!(counts(), before.map(|n| n + 2), "each once on each side");
    let stages = pair
        .db
        .table(
            "SELECT (SELECT stagename || ' ' || closedate FROM salesforce.opportunity WHERE name = 'Left deal'),
                    (SELECT dealstage FROM hubspot.deals WHERE dealname = 'Right deal')",
        )
        .await;
    assert_eq!(stages, [["Negotiation/Review 2027-03-04", "closedlost"]]);
}
