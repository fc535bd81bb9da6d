//! Two HubSpot portals and one Salesforce org: one thing on three sides, decided as one.

use crm_tests::{Emulator, EmulatorOptions, PATIENCE, Pair, PairOptions, Person, wait_until};
use serde_json::json;

/// The second portal's people are those of the first: the same seed makes both.
struct Portals {
    pair: Pair,
    second: Emulator,
    people: Vec<Person>,
}

impl Portals {
    async fn start() -> Self {
        let (pair, people) = Pair::linked(10, PairOptions::default()).await;
        let hooks: String = pair
            .db
            .one("SELECT current_setting('pg_crm_sync.listen')")
            .await;
        let hook = format!("http://{hooks}/webhook/portal2");
        let options = EmulatorOptions::default().contacts(10);
        let second = Emulator::start(&options.arg("--webhook-url", &hook));
        pair.db
            .exec(&format!(
                "CREATE SERVER portal2 TYPE 'hubspot' FOREIGN DATA WRAPPER pg_crm_sync
                     OPTIONS (credentials 'file:hubspot.json', base_url '{}')",
                second.http
            ))
            .await;
        pair.db
            .exec("SELECT crm.import('portal2', ARRAY['contacts'], into_schema => 'portal2')")
            .await;
        pair.backfilled().await;
        pair.db
            .exec("SELECT crm.link('portal2.contacts', 'salesforce.contact', name => 'second')")
            .await;
        pair.db.exec("SELECT crm.go_live('second')").await;
        pair.worker_has_read().await;
        Self {
            pair,
            second,
            people,
        }
    }

    fn shows(&self, who: &Person, field: &str) -> [Option<String>; 3] {
        [
            self.pair.shows("hubspot", who, field),
            self.second
                .field("hubspot", "contacts", &who.hubspot, field)
                .filter(|v| !v.is_empty()),
            self.pair.shows("salesforce", who, field),
        ]
    }

    /// Waits until all three show one value that is `good`.
    async fn agree(&self, who: &Person, field: &str, good: impl Fn(&str) -> bool) -> String {
        let what = format!("all three show one {field} of {who:?}");
        wait_until(&what, PATIENCE, async || {
            let [a, b, c] = self.shows(who, field);
            let value = a.clone().filter(|v| good(v))?;
            (a == b && b == c).then_some(value)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_portals_and_an_org_are_decided_as_one() {
    let portals = Portals::start().await;
    let pair = &portals.pair;
    let who = &portals.people[0];
    let sides: i64 = pair
        .db
        .one("SELECT max(n) FROM (SELECT count(*) AS n FROM crm.xref GROUP BY entity) x")
        .await;
    assert_eq!(sides, 3, "one thing on three sides");
    pair.edit("hubspot", who, "jobtitle", "From the first");
    portals
        .agree(who, "jobtitle", |v| v == "From the first")
        .await;
    let fields = json!({"zip": "P2"});
    portals
        .second
        .edit("hubspot", "contacts", &who.hubspot, fields);
    portals.agree(who, "zip", |v| v == "P2").await;
    // One row is enough for the group, and a second that says otherwise is refused.
    pair.db
        .exec("INSERT INTO crm.conflict_policy (link, field, strategy, winner) VALUES ('contacts', 'phone', 'owner', 'salesforce')")
        .await;
    let other = "INSERT INTO crm.conflict_policy (link, field, strategy) VALUES ('second', 'phone', 'review')";
    assert_eq!(pair.db.error(other).await.code().code(), "23505");
    pair.worker_has_read().await;
    pair.edit("salesforce", who, "phone", "+1 555 0199");
    portals.agree(who, "phone", |v| v == "+1 555 0199").await;
    let fields = json!({"phone": "usurped"});
    portals
        .second
        .edit("hubspot", "contacts", &who.hubspot, fields);
    let refused = "SELECT count(*) > 0 FROM crm.conflict WHERE field = 'phone' AND strategy = 'owner' AND lost::text LIKE '%usurped%'";
    pair.db
        .wait_true("the owner's rule decided", PATIENCE, refused)
        .await;
    portals.agree(who, "phone", |v| v == "+1 555 0199").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_writers_of_a_group_within_200_ms_converge_and_their_additions_all_count() {
    let portals = Portals::start().await;
    let pair = &portals.pair;
    pair.db
        .exec(
            "INSERT INTO crm.field_map (link, left_field, right_field) VALUES
                 ('contacts', 'loyalty_points', 'Score__c'), ('second', 'loyalty_points', 'Score__c');
             INSERT INTO crm.conflict_policy (link, field, strategy) VALUES ('contacts', 'loyalty_points', 'delta')",
        )
        .await;
    pair.worker_has_read().await;
    let people = &portals.people[..3];
    let points = |who: &Person| {
        let whole = |v: Option<String>| v.and_then(|v| v.parse::<f64>().ok());
        let score = pair
            .emulator
            .field("salesforce", "Contact", &who.salesforce, "Score__c");
        let of = |emulator: &Emulator| {
            emulator.field("hubspot", "contacts", &who.hubspot, "loyalty_points")
        };
        [
            whole(of(&pair.emulator)),
            whole(of(&portals.second)),
            whole(score),
        ]
    };
    for who in people {
        pair.sql(who, "loyalty_points", "100").await;
    }
    for who in people {
        wait_until("all start with 100", PATIENCE, async || {
            (points(who) == [Some(100.0); 3]).then_some(())
        })
        .await;
    }
    pair.quiet().await;
    for emulator in [&pair.emulator, &portals.second] {
        for stream in ["webhook", "cdc"] {
            emulator.fault(json!({"stream": stream, "delay_ms": 1_500, "duplicate": 1000}));
        }
    }
    for who in people {
        let edit = |emulator: &Emulator, points: &str, city: &str| {
            let fields = json!({"loyalty_points": points, "city": city});
            emulator.edit("hubspot", "contacts", &who.hubspot, fields);
        };
        edit(&pair.emulator, "101", "First");
        edit(&portals.second, "102", "Second");
        let fields = json!({"Score__c": 104, "MailingCity": "Org"});
        pair.emulator
            .edit("salesforce", "Contact", &who.salesforce, fields);
        let sql = "UPDATE hubspot.contacts SET loyalty_points = loyalty_points + 8, city = 'Sql'";
        pair.db
            .exec(&format!("{sql} WHERE id = '{}'", who.hubspot))
            .await;
    }
    for who in people {
        let what = format!("all additions of {who:?} are counted once");
        wait_until(&what, PATIENCE, async || {
            (points(who) == [Some(115.0); 3]).then_some(())
        })
        .await;
        let named = |v: &str| ["First", "Second", "Org", "Sql"].contains(&v);
        portals.agree(who, "city", named).await;
    }
}

/// Mirrors are numbered as they are imported: the second portal's came before the organisation's and found nothing to join.
#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_imports_does_not_leave_a_portal_out() {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(10),
        ..PairOptions::default()
    })
    .await;
    let second = Emulator::start(&EmulatorOptions::default().contacts(10));
    pair.db
        .exec(&format!(
            "CREATE SERVER portal2 TYPE 'hubspot' FOREIGN DATA WRAPPER pg_crm_sync
                 OPTIONS (credentials 'file:hubspot.json', base_url '{}')",
            second.http
        ))
        .await;
    for (server, object) in [
        ("hubspot", "contacts"),
        ("portal2", "contacts"),
        ("salesforce", "Contact"),
    ] {
        pair.import(server, &[object]).await;
    }
    pair.backfilled().await;
    pair.db
        .exec(
            "SELECT crm.link('hubspot.contacts', 'salesforce.contact', name => 'first');
             SELECT crm.link('portal2.contacts', 'salesforce.contact', name => 'second');
             SELECT crm.go_live('first'); SELECT crm.go_live('second')",
        )
        .await;
    pair.worker_has_read().await;
    let (ours, theirs) = pair.known_to_both().await;
    pair.db
        .exec(&format!(
            "UPDATE portal2.contacts SET jobtitle = 'From the second' WHERE id = '{ours}'"
        ))
        .await;
    pair.reaches("salesforce", "Contact", &theirs, "Title", "From the second")
        .await;
    pair.reaches("hubspot", "contacts", &ours, "jobtitle", "From the second")
        .await;
}
