//! A reference that moves again before everybody has told of the move before.

use crm_tests::references::{another_company, people, tied};
use crm_tests::{PATIENCE, Pair};
use serde_json::json;

const REST: &str = "SELECT NOT EXISTS (SELECT FROM crm.reference_due)";

/// A company of HubSpot and its Account.
type Both = (String, String);

/// A contact that both CRMs know, where it belongs, and where else it could.
struct Moving {
    pair: Pair,
    ours: String,
    theirs: String,
    home: Both,
    away: Both,
}

impl Moving {
    /// The contact is at home in both CRMs, and the mirrors show it there alone.
    async fn start() -> Self {
        // Ten to a company.
        let pair = people(100).await;
        let (ours, theirs) = pair.known_to_both().await;
        let home = another_company(&pair, &ours).await;
        set(&pair, &theirs, Some(&home));
        shows(&pair, &ours, &home).await;
        let away = another_company(&pair, &ours).await;
        assert_ne!(home, away);
        Self {
            pair,
            ours,
            theirs,
            home,
            away,
        }
    }

    /// Somebody sets the Contact's Account, and the mirror has it.
    async fn moves(&self, to: Option<&Both>) {
        set(&self.pair, &self.theirs, to);
        let account = to.map_or("IS NULL".to_owned(), |(_, a)| format!("= '{a}'"));
        let sql = format!(
            "SELECT EXISTS (SELECT FROM salesforce.contact WHERE id = '{}' AND accountid {account})",
            self.theirs
        );
        self.pair
            .db
            .wait_true("the mirror has the move", PATIENCE, &sql)
            .await;
    }

    /// HubSpot's main company is this one, or none, the Contact's Account as well, and nobody set that but Salesforce's
    /// people.
    async fn ends(&self, at: Option<&Both>) {
        let pair = &self.pair;
        let main = || -> Vec<String> {
            let ties = pair.ties(&self.ours).into_iter();
            ties.filter_map(|t| t.strip_suffix(":1").map(str::to_owned))
                .collect()
        };
        let field = || {
            pair.emulator
                .field("salesforce", "Contact", &self.theirs, "AccountId")
        };
        pair.db.wait_true("nothing is due", PATIENCE, REST).await;
        pair.quiet().await;
        // Whatever HubSpot did is told at the latest with a tie that comes after.
        let (last, _) = another_company(pair, &self.ours).await;
        let body = json!({"from": self.ours, "to": last, "type": 279});
        pair.emulator.create("hubspot", "contacts/companies", body);
        let sql = format!(
            "SELECT EXISTS (SELECT FROM hubspot.contacts_companies WHERE from_id = '{}' AND to_id = '{last}' AND _deleted_at IS NULL)",
            self.ours
        );
        pair.db.wait_true("HubSpot told", PATIENCE, &sql).await;
        pair.db.wait_true("nothing is due", PATIENCE, REST).await;
        pair.quiet().await;
        let told =
            "SELECT count(*) FROM crm.event WHERE source = 'sql' AND 'AccountId' = ANY (fields)";
        let told: i64 = pair.db.one(told).await;
        assert_eq!(told, 0, "nobody wrote the field but Salesforce's people");
        assert_eq!(main(), Vec::from_iter(at.map(|a| a.0.clone())));
        assert_eq!(field(), at.map(|a| a.1.clone()));
    }
}

fn set(pair: &Pair, contact: &str, to: Option<&Both>) {
    let body = json!({"AccountId": to.map(|t| &t.1)});
    pair.emulator.edit("salesforce", "Contact", contact, body);
}

/// Waits until the mirror shows this company as the only main one, as HubSpot told it.
async fn shows(pair: &Pair, contact: &str, (company, _): &Both) {
    let sql = format!(
        "SELECT count(*) = 1 AND bool_and(to_id = '{company}' AND id IS NOT NULL) FROM hubspot.contacts_companies
         WHERE from_id = '{contact}' AND is_primary AND _deleted_at IS NULL"
    );
    let what = format!("{company} is the main company");
    pair.db.wait_true(&what, PATIENCE, &sql).await;
}

/// The association was found gone and the field set to it again in one turn: the first was taken for the later, and the
/// Contact put back to the company that its people had just moved it from.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_was_set_again_is_not_emptied_for_the_tie_that_went_before() {
    let now = Moving::start().await;
    for back in [true, false] {
        // What changes meanwhile waits, and is carried over in one step.
        let later = "CREATE FUNCTION later() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN new.next_at := 'infinity'; RETURN new; END $$;
                     CREATE TRIGGER later BEFORE INSERT ON crm.reference_due FOR EACH ROW EXECUTE FUNCTION later()";
        now.pair.db.exec(later).await;
        let body = json!({"from": now.ours, "to": now.away.0, "type": 1});
        let pair = &now.pair;
        pair.emulator.create("hubspot", "contacts/companies", body);
        shows(pair, &now.ours, &now.away).await;
        let third = another_company(pair, &now.ours).await;
        assert!(third != now.home && third != now.away);
        now.moves(Some(&third)).await;
        if back {
            now.moves(Some(&now.home)).await;
        }
        let go = "DROP FUNCTION later() CASCADE; UPDATE crm.reference_due SET next_at = clock_timestamp(); SELECT crm._wake()";
        pair.db.exec(go).await;
        let end = if back { &now.home } else { &third };
        tied(pair, "contacts/companies", (&now.ours, &end.0), 1, true).await;
        shows(pair, &now.ours, end).await;
        now.ends(Some(end)).await;
    }
}

/// The company before was still shown as a main one, so that the way back to it was taken for done: the tie that was not
/// sent yet went out after, and the Contact followed it.
#[tokio::test(flavor = "multi_thread")]
async fn a_tie_that_hubspot_has_not_taken_is_not_sent_after_the_way_back() {
    let now = Moving::start().await;
    let pair = &now.pair;
    let pause = "SELECT crm.pause('mirror', 'hubspot.contacts_companies')";
    let resume = "SELECT crm.resume('mirror', 'hubspot.contacts_companies')";
    let waits = format!(
        "SELECT EXISTS (SELECT FROM crm.write WHERE kind = 'create' AND vals ->> 'to_id' = '{}')",
        now.away.0
    );
    for to in [Some(&now.home), None] {
        pair.db.exec(pause).await;
        now.moves(Some(&now.away)).await;
        pair.db.wait_true("the tie waits", PATIENCE, &waits).await;
        now.moves(to).await;
        pair.db.wait_true("nothing is due", PATIENCE, REST).await;
        pair.db.exec(resume).await;
        now.ends(to).await;
    }
}

/// HubSpot takes the mark from the company before and tells of it late: that one was still shown as a main one, and the
/// way back to it was taken for done.
#[tokio::test(flavor = "multi_thread")]
async fn a_way_back_before_hubspot_told_of_the_way_there_is_not_lost() {
    let now = Moving::start().await;
    let pair = &now.pair;
    // A read that fails tells nothing, and neither does a notice that comes later.
    pair.emulator
        .fault(json!({"stream": "webhook", "delay_ms": 3000}));
    pair.emulator.fault(json!({
        "crm": "hubspot", "method": "POST", "path_prefix": "/crm/associations/2026-03/contacts/companies/batch/read",
        "remaining": 100_000, "action": {"reject": {"status": 503}},
    }));
    set(pair, &now.theirs, Some(&now.away));
    tied(
        pair,
        "contacts/companies",
        (&now.ours, &now.away.0),
        1,
        true,
    )
    .await;
    let answered = format!(
        "SELECT EXISTS (SELECT FROM hubspot.contacts_companies WHERE from_id = '{}' AND to_id = '{}' AND is_primary AND id IS NOT NULL)",
        now.ours, now.away.0
    );
    pair.db
        .wait_true("the answer is taken", PATIENCE, &answered)
        .await;
    pair.db.wait_true("nothing is due", PATIENCE, REST).await;
    set(pair, &now.theirs, Some(&now.home));
    tied(
        pair,
        "contacts/companies",
        (&now.ours, &now.home.0),
        1,
        true,
    )
    .await;
    pair.emulator.clear_faults();
    shows(pair, &now.ours, &now.home).await;
    now.ends(Some(&now.home)).await;
}
