//! A field gets another type in a CRM, into which not all of its values fit.

use crm_tests::Options;
use crm_tests::schema::{
    administer, answer, is_column, mirror, new_property, policy, refresh, true_soon,
};
use serde_json::json;

/// A value that the new type cannot hold was nowhere any more, or kept the others from coming.
#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_not_all_values_fit_is_answered_without_losing_one() {
    let pair = mirror(12, Options::default()).await;
    policy(&pair, "hubspot.contacts", "add").await;
    for name in ["points", "grade"] {
        administer(&pair, "hubspot", "contacts", new_property(name));
    }
    refresh(&pair, "hubspot").await;
    let filled =
        "SELECT count(*) = 0 FROM hubspot.contacts WHERE (points, grade) IS DISTINCT FROM (id, id)";
    true_soon(&pair, "both are filled", filled).await;
    let odd: String = pair.db.one("SELECT max(id) FROM hubspot.contacts").await;
    let words = json!({"points": "a lot", "grade": "good"});
    pair.emulator.edit("hubspot", "contacts", &odd, words);
    let told = format!(
        "SELECT points = 'a lot' AND grade = 'good' FROM hubspot.contacts WHERE id = '{odd}'"
    );
    true_soon(&pair, "the words came", &told).await;
    for name in ["points", "grade"] {
        administer(
            &pair,
            "hubspot",
            "contacts",
            json!({"do": "retype", "name": name, "type": "number", "fieldType": "number"}),
        );
    }
    refresh(&pair, "hubspot").await;
    let advice: String = pair
        .db
        .one("SELECT string_agg(DISTINCT advice, ' ') FROM crm.schema_change WHERE state = 'asked'")
        .await;
    for word in ["_was_", "crm.dead_letter", "ignore"] {
        assert!(advice.contains(word), "{word}: {advice}");
    }
    answer(&pair, "retyped", "grade", "ignore").await;
    answer(&pair, "retyped", "points", "apply").await;
    let fits = format!(
        "SELECT {} AND {} AND {} AND bool_and(points_was_text = points::text OR id = '{odd}' AND points IS NULL AND points_was_text = 'a lot')
         FROM hubspot.contacts",
        is_column("points", "numeric"),
        is_column("points_was_text", "text"),
        is_column("grade", "text")
    );
    true_soon(&pair, "what fits is a number, nothing is lost", &fits).await;
    let dead = format!(
        "SELECT count(*) > 0 FROM crm.dead_letter WHERE direction = 'in' AND record_id = '{odd}'"
    );
    true_soon(&pair, "what does not fit is told", &dead).await;
    // What stays text goes on as text, whatever the CRM calls it.
    let other: String = pair.db.one("SELECT min(id) FROM hubspot.contacts").await;
    pair.emulator
        .edit("hubspot", "contacts", &other, json!({"grade": "7"}));
    let goes_on = format!("SELECT grade = '7' FROM hubspot.contacts WHERE id = '{other}'");
    true_soon(&pair, "the text goes on", &goes_on).await;
}
