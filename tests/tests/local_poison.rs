//! SQL changes that the linked table refuses.

use crm_tests::{PATIENCE, Pair, PairOptions};

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_the_linked_table_refuses_does_not_hold_up_the_others() {
    let pair = Pair::contacts(PairOptions::default()).await;
    pair.db
        .exec("ALTER TABLE salesforce.contact ADD CONSTRAINT no_bad CHECK (phone <> 'bad')")
        .await;
    let linked = "SELECT x.row_id FROM crm.xref x JOIN crm.mirror m ON m.id = x.mirror
                  WHERE m.object = 'contacts' ORDER BY x.row_id";
    pair.db
        .exec(&format!(
            "UPDATE hubspot.contacts SET phone = CASE WHEN _id = (SELECT min(row_id) FROM ({linked}) l) THEN 'bad' ELSE '+1 good' END
             WHERE _id IN ({linked} LIMIT 20)"
        ))
        .await;
    pair.db
        .wait_true(
            "the other nineteen reach the linked table",
            PATIENCE,
            "SELECT count(*) = 19 FROM salesforce.contact WHERE phone = '+1 good'",
        )
        .await;
    pair.db
        .wait_true(
            "the refused one is parked with the reason",
            PATIENCE,
            "SELECT count(*) = 1 FROM crm.dead_letter WHERE direction = 'in' AND error LIKE '%no_bad%'",
        )
        .await;
}
