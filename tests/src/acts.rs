//! What people and streams do in tests of a whole [`Pair`], and counts of what it caused.

use serde_json::{Value, json};

use crate::truth::theirs;
use crate::wait::PATIENCE;
use crate::{Pair, PairOptions, Person};

impl Pair {
    /// [`Pair::contacts`] with `n` people on each side, and those whom both know.
    pub async fn linked(n: u64, mut options: PairOptions) -> (Self, Vec<Person>) {
        options.emulator = options.emulator.contacts(n);
        let pair = Self::contacts(options).await;
        let people = pair.people().await;
        // Four fifths are shared.
        assert!(
            people.len() as u64 > n / 2,
            "only {} are linked",
            people.len()
        );
        (pair, people)
    }

    /// Makes a record in a CRM as a human would; its id.
    pub fn create(&self, crm: &str, object: &str, fields: Value) -> String {
        let record = self.emulator.create(crm, object, fields);
        let id = record["id"].as_str().or_else(|| record["Id"].as_str());
        id.unwrap_or_else(|| panic!("no id in {record}")).to_owned()
    }

    /// Makes a person of this address in a CRM; the record's id.
    pub fn create_person(&self, crm: &str, email: &str) -> String {
        if crm == "hubspot" {
            let fields = json!({"email": email, "firstname": "Ada", "lastname": "King"});
            self.create(crm, "contacts", fields)
        } else {
            let fields = json!({"Email": email, "FirstName": "Ada", "LastName": "King"});
            self.create(crm, "Contact", fields)
        }
    }

    /// Changes one field of a person in one CRM as a human would; `field` is HubSpot's name.
    pub fn edit(&self, crm: &str, who: &Person, field: &str, value: &str) {
        if crm == "hubspot" {
            let fields = json!({ field: value });
            self.emulator.edit(crm, "contacts", &who.hubspot, fields);
        } else {
            let fields = json!({ theirs(field): value });
            self.emulator.edit(crm, "Contact", &who.salesforce, fields);
        }
    }

    /// SQL that changes one field of a person in the HubSpot mirror.
    #[must_use]
    pub fn update(who: &Person, field: &str, value: &str) -> String {
        format!(
            "UPDATE hubspot.contacts SET {field} = '{value}' WHERE id = '{}'",
            who.hubspot
        )
    }

    /// Runs [`Self::update`].
    pub async fn sql(&self, who: &Person, field: &str, value: &str) {
        self.db.exec(&Self::update(who, field, value)).await;
    }

    /// Waits until a CRM's stream has told of an edit to this value and the ledger has it.
    pub async fn told(&self, crm: &str, value: &str) {
        let told = format!(
            "SELECT count(*) > 0 FROM crm.event WHERE origin = '{crm}' AND source IN ('webhook', 'pubsub') AND '{value}' = ANY (new_values)"
        );
        let what = format!("{crm}'s edit to {value} is in the ledger");
        self.db.wait_true(&what, PATIENCE, &told).await;
    }

    /// Calls that changed records of a CRM since the counts were reset.
    #[must_use]
    pub fn writes(&self, crm: &str) -> u64 {
        let reads = ["search", "batch/read", "token", "query", "oauth"];
        self.emulator.served(|c| {
            let route = c["route"].as_str().unwrap_or_default();
            // Salesforce reads records by their ids so.
            let by_id = route.ends_with("/composite/sobjects/{object}");
            let reads = by_id || reads.iter().any(|r| route.contains(r));
            c["crm"] == crm && c["method"] != "GET" && !reads
        })
    }

    /// What HubSpot ties a contact to, as `to:type`.
    #[must_use]
    pub fn ties(&self, contact: &str) -> Vec<String> {
        let shown = self
            .emulator
            .record("hubspot", "contacts--companies", contact);
        let mut found: Vec<String> = shown
            .as_object()
            .expect("associations by company")
            .iter()
            .flat_map(|(to, types)| {
                let types = types.as_array().expect("types").iter();
                types.map(move |t| format!("{to}:{t}"))
            })
            .collect();
        found.sort();
        found
    }

    /// Fault rules that have not hit yet.
    #[must_use]
    pub fn faults_left(&self) -> u64 {
        let answer = self.emulator.fault(json!({"rules": []}));
        answer["rules"]
            .as_u64()
            .unwrap_or_else(|| panic!("no count of rules: {answer}"))
    }

    /// Calls of any kind to a CRM since the counts were reset.
    #[must_use]
    pub fn calls(&self, crm: &str) -> u64 {
        self.emulator.counts()[crm].as_u64().unwrap_or(0)
    }

    /// Live records of a CRM.
    #[must_use]
    pub fn live(&self, crm: &str, object: &str) -> u64 {
        let count = &self.emulator.digest(crm, object, &[])["count"];
        count
            .as_u64()
            .unwrap_or_else(|| panic!("no count: {count}"))
    }

    /// Events that all streams of a kind (`webhook`, `pubsub`) brought so far.
    pub async fn events(&self, kind: &str) -> i64 {
        let sql = format!(
            "SELECT coalesce(sum(events), 0)::bigint FROM crm.stream WHERE kind = '{kind}'"
        );
        self.db.one(&sql).await
    }

    /// Waits until [`Self::events`] is at least `n`.
    pub async fn events_reach(&self, kind: &str, n: i64) {
        let sql =
            format!("SELECT coalesce(sum(events), 0) >= {n} FROM crm.stream WHERE kind = '{kind}'");
        let what = format!("the {kind} stream has brought {n} events");
        self.db.wait_true(&what, PATIENCE, &sql).await;
    }

    /// One value of a CRM's record of a person; `field` is HubSpot's name; empty counts as absent.
    #[must_use]
    pub fn shows(&self, crm: &str, who: &Person, field: &str) -> Option<String> {
        let value = match crm {
            "hubspot" => self.emulator.field(crm, "contacts", &who.hubspot, field),
            _ => self
                .emulator
                .field(crm, "Contact", &who.salesforce, theirs(field)),
        };
        value.filter(|v| !v.is_empty())
    }

    /// Whether a CRM's record is deleted.
    #[must_use]
    pub fn gone(&self, crm: &str, object: &str, id: &str) -> bool {
        let record = self.emulator.record(crm, object, id);
        ["archived", "IsDeleted", "gone"]
            .iter()
            .any(|k| record[k] == Value::Bool(true))
    }

    /// The state and the tie of a person's rows: HubSpot's and Salesforce's, and whether they are one.
    pub async fn states(&self, who: &Person) -> Vec<String> {
        let sql = format!(
        "SELECT coalesce(h._sync_state, 'live'), coalesce(s._sync_state, 'live'),
                EXISTS (SELECT FROM crm.xref a JOIN crm.xref b ON b.entity = a.entity AND b.mirror <> a.mirror
                        WHERE a.row_id = h._id AND a.mirror = (SELECT id FROM crm.mirror WHERE server = 'hubspot') AND b.row_id = s._id
                          AND a.merged_into IS NULL AND b.merged_into IS NULL)
         FROM hubspot.contacts h, salesforce.contact s WHERE h.id = '{}' AND s.id = '{}'",
        who.hubspot, who.salesforce
    );
        self.db.table(&sql).await.concat()
    }

    /// Waits until [`Self::states`] is this.
    pub async fn become_states(&self, who: &Person, expected: [&str; 3]) {
        self.cluster
            .wait_until(&format!("{who:?} is {expected:?}"), PATIENCE, async || {
                (self.states(who).await == expected).then_some(())
            })
            .await;
    }

    /// Somebody does something to records in a CRM: `merge`, `restore`, `privacy-delete`, `convert-lead`.
    pub fn deed(&self, crm: &str, deed: &str, body: Value) -> Value {
        self.emulator
            .admin("POST", &format!("/_admin/{crm}/{deed}"), Some(&body))
    }

    /// HubSpot takes no updates of contacts until [`crate::Emulator::clear_faults`].
    pub fn hubspot_takes_nothing(&self) {
        self.emulator.fault(json!({
            "crm": "hubspot", "method": "POST", "path_prefix": "/crm/objects/2026-03/contacts/batch/update",
            "remaining": 100_000, "action": {"reject": {"status": 503}},
        }));
    }

    /// Gives people's cities to a steward.
    pub async fn review_cities(&self) {
        self.db
            .exec("INSERT INTO crm.conflict_policy (link, field, strategy) VALUES ('contacts', 'city', 'review')")
            .await;
        self.worker_has_read().await;
    }
}
