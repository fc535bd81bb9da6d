//! What a deal sells: line items of HubSpot and those of a Salesforce Opportunity, made with the deal and the product that they belong to.

use crm_tests::{EmulatorOptions, PATIENCE, Pair, PairOptions};
use serde_json::{Value, json};

/// Deals, products and line items of both sides, linked and live, with what ties them.
async fn shop() -> Pair {
    let pair = Pair::start(PairOptions {
        emulator: EmulatorOptions::default().contacts(30),
        ..PairOptions::default()
    })
    .await;
    pair.import(
        "hubspot",
        &["deals", "products", "line_items", "line_items_deals"],
    )
    .await;
    pair.import(
        "salesforce",
        &["Opportunity", "Product2", "OpportunityLineItem"],
    )
    .await;
    pair.backfilled().await;
    pair.db
        .exec(
            "SELECT crm.link('hubspot.deals', 'salesforce.opportunity'), crm.link('hubspot.products', 'salesforce.product2'),
                    crm.link('hubspot.line_items', 'salesforce.opportunitylineitem')",
        )
        .await;
    let tied = pair
        .db
        .table("SELECT association, field, parent FROM crm.link_references('line_items')")
        .await;
    assert_eq!(
        tied,
        [
            ["hs_product_id", "Product2Id", "products"],
            ["hubspot.line_items_deals", "OpportunityId", "deals"]
        ]
    );
    for what in [
        "deals",
        "products",
        "line_items",
        "hubspot.line_items_deals",
    ] {
        pair.db.exec(&format!("SELECT crm.go_live('{what}')")).await;
    }
    pair.worker_has_read().await;
    pair
}

fn id(record: &Value) -> String {
    let id = record["id"].as_str().or_else(|| record["Id"].as_str());
    id.unwrap_or_else(|| panic!("no id in {record}")).to_owned()
}

/// A deal and a product that only HubSpot has.
fn offer(pair: &Pair, n: u32) -> (String, String) {
    let deal = pair.emulator.create(
        "hubspot",
        "deals",
        json!({"dealname": format!("Offer {n}"), "dealstage": "appointmentscheduled", "pipeline": "default",
               "closedate": "2027-03-31T00:00:00Z", "amount": "100"}),
    );
    let product = pair.emulator.create(
        "hubspot",
        "products",
        json!({"name": format!("Thing {n}"), "hs_sku": format!("THING-{n}")}),
    );
    (id(&deal), id(&product))
}

/// A line item that HubSpot's people made.
fn sold(pair: &Pair, name: &str, product: Option<&str>) -> String {
    id(&pair.emulator.create(
        "hubspot",
        "line_items",
        json!({"name": name, "quantity": "3", "price": "12.50", "hs_product_id": product}),
    ))
}

/// The one record that a query finds, once it does.
async fn found(pair: &Pair, what: &str, sql: &str) -> String {
    let there = format!("SELECT count(*) = 1 FROM ({sql}) q");
    pair.db.wait_true(what, PATIENCE, &there).await;
    pair.db.one(sql).await
}

/// Waits until a field holds a value; of numbers, however they are spelled.
async fn holds(pair: &Pair, (crm, object): (&str, &str), id: &str, field: &str, value: &str) {
    let number = |text: &str| text.parse::<f64>().ok();
    let same = |is: &str| is == value || number(is).is_some_and(|n| Some(n) == number(value));
    let what = format!("{crm} {object} {id} has {field} = {value}");
    crm_tests::wait_until(&what, PATIENCE, async || {
        let is = pair.emulator.field(crm, object, id, field);
        is.is_some_and(|is| same(&is)).then_some(())
    })
    .await;
}

/// The line item of Salesforce that one of HubSpot became.
async fn counterpart(pair: &Pair, item: &str) -> String {
    let sql = format!(
        "SELECT s.id FROM hubspot.line_items h JOIN crm.xref a ON a.row_id = h._id AND a.mirror = (SELECT left_mirror FROM crm.link WHERE name = 'line_items')
         JOIN crm.xref b ON b.entity = a.entity AND b.mirror = (SELECT right_mirror FROM crm.link WHERE name = 'line_items')
         JOIN salesforce.opportunitylineitem s ON s._id = b.row_id WHERE h.id = '{item}' AND s.id IS NOT NULL"
    );
    found(pair, "the line item is in Salesforce", &sql).await
}

/// The record of Salesforce that has this value, once it is there.
async fn there(pair: &Pair, table: &str, column: &str, value: &str) -> String {
    let sql =
        format!("SELECT id FROM salesforce.{table} WHERE {column} = '{value}' AND id IS NOT NULL");
    found(pair, &format!("{value} is in Salesforce"), &sql).await
}

/// A product that Salesforce gives to line items without one.
async fn stock(pair: &Pair) -> String {
    let sql = "SELECT min(id) FROM salesforce.product2";
    let stock: String = pair.db.one(sql).await;
    pair.db
        .exec(&format!(
            "INSERT INTO crm.field_default (link, side, field, value) VALUES ('line_items', 'right', 'Product2Id', '{stock}')"
        ))
        .await;
    pair.worker_has_read().await;
    stock
}

/// Says of which deal a line item is, as HubSpot's people do.
fn tie(pair: &Pair, item: &str, deal: &str) {
    let ends = json!({"from": item, "to": deal});
    pair.emulator.create("hubspot", "line_items/deals", ends);
}

const SOLD: (&str, &str) = ("salesforce", "OpportunityLineItem");

/// A line item was refused for the lack of its Opportunity and product, which came a moment later.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_item_of_hubspot_is_made_with_its_new_deal_and_product() {
    let pair = shop().await;
    // What others get that have no product: not this one.
    let stock = stock(&pair).await;
    let (deal, product) = offer(&pair, 1);
    let item = sold(&pair, "Three things", Some(&product));
    let waiting = format!(
        "SELECT w.row_id::text FROM crm.write w JOIN crm.mirror m ON m.id = w.mirror AND m.object = 'OpportunityLineItem'
         WHERE w.kind = 'create' AND w.vals ->> 'Product2Id' <> '{stock}'"
    );
    let row = found(&pair, "it waits to be made", &waiting).await;
    let why = format!(
        "SELECT EXISTS (SELECT FROM crm.why('salesforce.opportunitylineitem', '{row}') WHERE item = 'reference' AND detail LIKE '%OpportunityId%')"
    );
    pair.db.wait_true("crm.why says so", PATIENCE, &why).await;
    tie(&pair, &item, &deal);
    let made = counterpart(&pair, &item).await;
    let opportunity = there(&pair, "opportunity", "name", "Offer 1").await;
    let part = there(&pair, "product2", "productcode", "THING-1").await;
    for (field, value) in [
        ("OpportunityId", opportunity.as_str()),
        ("Product2Id", &part),
        ("Quantity", "3"),
        ("UnitPrice", "12.5"),
    ] {
        holds(&pair, SOLD, &made, field, value).await;
    }
    // And one that has none gets what is for those.
    let item = sold(&pair, "Work by the hour", None);
    tie(&pair, &item, &deal);
    let made = counterpart(&pair, &item).await;
    holds(&pair, SOLD, &made, "Product2Id", &stock).await;
}

/// Another product was sent to Salesforce, which takes no such change, and the whole record waited as a dead letter.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_item_follows_in_what_can_change_and_in_nothing_else() {
    let pair = shop().await;
    let (deal, product) = offer(&pair, 1);
    let item = sold(&pair, "Three things", Some(&product));
    tie(&pair, &item, &deal);
    let made = counterpart(&pair, &item).await;
    let edit = |fields: Value| pair.emulator.edit("hubspot", "line_items", &item, fields);
    edit(json!({"quantity": "4"}));
    holds(&pair, SOLD, &made, "Quantity", "4").await;
    let price = json!({"UnitPrice": 11});
    pair.emulator.edit(SOLD.0, SOLD.1, &made, price);
    pair.db
        .exec("SELECT crm.refresh('salesforce.opportunitylineitem')")
        .await;
    holds(&pair, ("hubspot", "line_items"), &item, "price", "11").await;
    let (_, other) = offer(&pair, 2);
    edit(json!({"hs_product_id": other}));
    there(&pair, "product2", "productcode", "THING-2").await;
    let came = format!(
        "SELECT hs_product_id::text = '{other}' FROM hubspot.line_items WHERE id = '{item}'"
    );
    pair.db
        .wait_true("the other product came", PATIENCE, &came)
        .await;
    let due = "SELECT NOT EXISTS (SELECT FROM crm.reference_due)";
    pair.db.wait_true("nothing is due", PATIENCE, due).await;
    pair.quiet().await;
    let dead: i64 = pair.db.one("SELECT count(*) FROM crm.dead_letter").await;
    assert_eq!(dead, 0);
    let part = there(&pair, "product2", "productcode", "THING-1").await;
    holds(&pair, SOLD, &made, "Product2Id", &part).await;
    let kept = pair
        .emulator
        .field("hubspot", "line_items", &item, "hs_product_id");
    assert_eq!(
        kept,
        Some(other),
        "what HubSpot says of its line item stays"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_item_of_salesforce_is_tied_to_its_deal_and_product() {
    let pair = shop().await;
    let (_, _) = offer(&pair, 1);
    let opportunity = there(&pair, "opportunity", "name", "Offer 1").await;
    // One that HubSpot does not know yet.
    let part = id(&pair.emulator.create(
        "salesforce",
        "Product2",
        json!({"Name": "New part", "ProductCode": "NEW-1", "IsActive": true}),
    ));
    pair.emulator.create(
        "salesforce",
        "OpportunityLineItem",
        json!({"OpportunityId": opportunity, "Product2Id": part, "Quantity": 7, "UnitPrice": 9.5, "Description": "In green"}),
    );
    pair.db
        .exec("SELECT crm.refresh('salesforce.opportunitylineitem')")
        .await;
    let item = found(
        &pair,
        "the line item is in HubSpot",
        "SELECT id FROM hubspot.line_items WHERE description = 'In green' AND id IS NOT NULL",
    )
    .await;
    let product = found(
        &pair,
        "the product is in HubSpot",
        "SELECT id FROM hubspot.products WHERE hs_sku = 'NEW-1' AND id IS NOT NULL",
    )
    .await;
    let deal = found(
        &pair,
        "the deal is there",
        "SELECT id FROM hubspot.deals WHERE dealname = 'Offer 1'",
    )
    .await;
    for (field, value) in [
        ("quantity", "7"),
        ("price", "9.5"),
        ("hs_product_id", &product),
    ] {
        holds(&pair, ("hubspot", "line_items"), &item, field, value).await;
    }
    crm_tests::wait_until("it is tied to the deal", PATIENCE, async || {
        let all = pair.emulator.record("hubspot", "line_items--deals", &item);
        all[&deal].is_array().then_some(())
    })
    .await;
    pair.quiet().await;
    let dead: i64 = pair.db.one("SELECT count(*) FROM crm.dead_letter").await;
    assert_eq!(dead, 0);
}

/// A line item that is of no product has no place in Salesforce: said at once, not after a day.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_item_without_a_product_is_a_dead_letter_with_advice() {
    let pair = shop().await;
    let (deal, _) = offer(&pair, 1);
    let item = sold(&pair, "Work by the hour", None);
    pair.emulator.create(
        "hubspot",
        "line_items/deals",
        json!({"from": item, "to": deal}),
    );
    let dead = "SELECT count(*) = 1 FROM crm.dead_letter WHERE mirror = 'salesforce.opportunitylineitem' AND advice <> '' AND change ? 'OpportunityId'";
    pair.db
        .wait_true("it is a dead letter", PATIENCE, dead)
        .await;
    // A product for all that have none repairs it.
    let (_, product) = offer(&pair, 2);
    let part = there(&pair, "product2", "productcode", "THING-2").await;
    assert!(!product.is_empty());
    pair.db
        .exec(&format!(
            "UPDATE salesforce.opportunitylineitem SET product2id = '{part}' WHERE id IS NULL"
        ))
        .await;
    let there = counterpart(&pair, &item).await;
    holds(
        &pair,
        ("salesforce", "OpportunityLineItem"),
        &there,
        "Product2Id",
        &part,
    )
    .await;
}

/// Nobody waits a day to learn what is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_item_whose_deal_never_comes_says_what_it_waits_for_and_until_when() {
    let pair = shop().await;
    let (deal, product) = offer(&pair, 1);
    there(&pair, "product2", "productcode", "THING-1").await;
    let item = sold(&pair, "Three things", Some(&product));
    let row = "SELECT '#' || w.row_id FROM crm.write w JOIN crm.mirror m ON m.id = w.mirror AND m.object = 'OpportunityLineItem'
               WHERE w.kind = 'create' AND w.state = 'queued' AND w.vals ? 'Product2Id'";
    let row = found(&pair, "its create waits", row).await;
    let ends: String = pair
        .db
        .one("SELECT date_trunc('seconds', queued_at + interval '1 day')::text FROM crm.write WHERE kind = 'create' AND vals ? 'Product2Id'")
        .await;
    for (table, id) in [
        ("hubspot.line_items", &item),
        ("salesforce.opportunitylineitem", &row),
    ] {
        let why = format!(
            "SELECT verdict, detail, advice FROM crm.why('{table}', '{id}') WHERE item = 'reference'"
        );
        let told = pair.db.table(&why).await;
        assert!(
            matches!(&told[..], [t] if t[0] == "waits" && t[1].contains("OpportunityId") && t[1].contains("hubspot.line_items_deals")
                && t[1].contains("\"deals\"") && t[2].contains(&ends) && t[2].contains("dead letter")),
            "{table}: {told:?}"
        );
    }
    tie(&pair, &item, &deal);
    counterpart(&pair, &item).await;
}

/// The product was carried into the row, and the create that was sent had not read the row since: Salesforce refused it. The
/// moment in between is made here while nothing is sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_has_not_taken_up_the_product_of_its_row_waits_for_it() {
    let pair = shop().await;
    let (deal, product) = offer(&pair, 1);
    let part = there(&pair, "product2", "productcode", "THING-1").await;
    there(&pair, "opportunity", "name", "Offer 1").await;
    pair.db
        .exec("SELECT crm.pause('mirror', 'salesforce.opportunitylineitem')")
        .await;
    pair.worker_has_read().await;
    let item = sold(&pair, "Three things", Some(&product));
    tie(&pair, &item, &deal);
    let mirror = "(SELECT m.id FROM crm.mirror m WHERE m.server = 'salesforce' AND m.object = 'OpportunityLineItem')";
    let write = format!(
        "FROM crm.write w WHERE w.mirror = {mirror} AND w.kind = 'create' AND w.state = 'queued'"
    );
    let whole = format!(
        "SELECT count(*) = 1 AND bool_and(w.vals ? 'OpportunityId' AND w.vals ->> 'Product2Id' = '{part}') {write}"
    );
    pair.db
        .wait_true("the create is whole", PATIENCE, &whole)
        .await;
    pair.db
        .wait_true(
            "nothing is to be carried over",
            PATIENCE,
            "SELECT NOT EXISTS (SELECT FROM crm.reference_due)",
        )
        .await;
    let put_off = async |vals: &str| -> bool {
        pair.db
            .exec(&format!(
                "BEGIN; UPDATE crm.write SET not_before = NULL, vals = {vals} WHERE id IN (SELECT w.id {write});
                 SELECT crm._references_awaited({mirror}, 100); COMMIT"
            ))
            .await;
        let waits = format!("SELECT w.not_before > w.queued_at {write}");
        pair.db.one::<Option<bool>>(&waits).await == Some(true)
    };
    assert!(put_off("vals - 'Product2Id'").await, "it waits");
    let taken = format!("vals || jsonb_build_object('Product2Id', '{part}')");
    assert!(!put_off(&taken).await, "what is whole does not");
    pair.db
        .exec("SELECT crm.resume('mirror', 'salesforce.opportunitylineitem')")
        .await;
    let made = counterpart(&pair, &item).await;
    holds(&pair, SOLD, &made, "Product2Id", &part).await;
    pair.quiet().await;
    let dead: i64 = pair.db.one("SELECT count(*) FROM crm.dead_letter").await;
    assert_eq!(dead, 0);
}
