//! Objects beside the pipeline: meetings, products, their prices, and what an opportunity sells.

use super::base::Gen;
use super::objects::{Base, NONE, field, flagged, number, owner, pick, refers, system, text};
use super::schema::{Field, Kind, Obj, flag};
use super::stamps::DAY_MS;
use super::value::Value;
use super::work_objects::about;

/// Length of a meeting that nobody has written.
const HOUR_MS: i64 = 3_600_000;

/// When a meeting nobody has written begins: nine o'clock, a week after it was entered.
fn begins(gen_: &Gen<'_>) -> i64 {
    gen_.stamp().div_euclid(DAY_MS) * DAY_MS + 7 * DAY_MS + 9 * HOUR_MS
}

fn day(ms: i64) -> Value {
    Value::Date(i32::try_from(ms.div_euclid(DAY_MS)).unwrap_or_default())
}

pub(super) fn event() -> Vec<Field> {
    let mut fields = system(Obj::Event);
    fields.extend(about());
    fields.extend([
        text("Location", 255, NONE),
        flagged("IsAllDayEvent", |_| Value::Bool(false)),
        field("ActivityDateTime", Kind::DateTime, 0, |gen_| {
            Value::DateTime(begins(gen_))
        }),
        field("ActivityDate", Kind::Date, 0, |gen_| day(begins(gen_))),
        number("DurationInMinutes", Kind::Int, 8, 0, |_| Value::Int(60)),
        field("StartDateTime", Kind::DateTime, 0, |gen_| {
            Value::DateTime(begins(gen_))
        }),
        field("EndDateTime", Kind::DateTime, 0, |gen_| {
            Value::DateTime(begins(gen_) + HOUR_MS)
        }),
        field("Description", Kind::TextArea, 32_000, NONE),
        owner(),
        flagged("IsPrivate", |_| Value::Bool(false)),
        pick("ShowAs", &["Busy", "OutOfOffice", "Free"], |_| {
            Value::text("Busy")
        })
        .with(flag::RESTRICTED),
    ]);
    fields
}

const PRICE: Base = |gen_| gen_.amount(5_000);

pub(super) fn product() -> Vec<Field> {
    let mut fields = system(Obj::Product);
    fields.extend([
        text("Name", 255, |gen_| {
            Value::text(&format!("Part {:06}", gen_.n))
        })
        .with(flag::REQUIRED | flag::NAME),
        text("ProductCode", 255, |gen_| {
            Value::text(&format!("S-{:06}", gen_.n))
        }),
        field("Description", Kind::TextArea, 4_000, NONE),
        flagged("IsActive", |_| Value::Bool(true)),
        pick("Family", &["None", "Hardware", "Software"], NONE),
        text("StockKeepingUnit", 180, NONE),
        field("DisplayUrl", Kind::Url, 1_000, NONE),
    ]);
    fields
}

/// Prices of the standard price book, one per product.
pub(super) fn price() -> Vec<Field> {
    let mut fields = system(Obj::Price);
    fields.extend([
        text("Name", 255, |gen_| {
            Value::text(&format!("Part {:06}", gen_.n))
        })
        .read_only()
        .with(flag::NAME),
        refers("Product2Id", &[Obj::Product], "Product2", |gen_| {
            gen_.product()
        })
        .without(flag::UPDATE)
        .with(flag::REQUIRED),
        number("UnitPrice", Kind::Currency, 18, 2, PRICE).with(flag::REQUIRED),
        flagged("IsActive", |_| Value::Bool(true)),
        flagged("UseStandardPrice", |_| Value::Bool(false)),
    ]);
    fields
}

pub(super) fn line_item() -> Vec<Field> {
    let mut fields = system(Obj::LineItem);
    fields.extend([
        refers(
            "OpportunityId",
            &[Obj::Opportunity],
            "Opportunity",
            |gen_| gen_.opportunity(),
        )
        .without(flag::UPDATE)
        .with(flag::REQUIRED),
        refers(
            "PricebookEntryId",
            &[Obj::Price],
            "PricebookEntry",
            |gen_| gen_.price(),
        )
        .without(flag::UPDATE),
        refers("Product2Id", &[Obj::Product], "Product2", |gen_| {
            gen_.product()
        })
        .without(flag::UPDATE),
        text("Name", 376, |gen_| {
            Value::text(&format!("Part {:06}", gen_.n))
        })
        .read_only()
        .with(flag::NAME),
        number("Quantity", Kind::Double, 12, 2, |_| Value::Double(1.0)).with(flag::REQUIRED),
        number("UnitPrice", Kind::Currency, 18, 2, PRICE),
        number("Discount", Kind::Percent, 3, 2, NONE),
        number("TotalPrice", Kind::Currency, 18, 2, PRICE).read_only(),
        field("ServiceDate", Kind::Date, 0, NONE),
        text("Description", 255, NONE),
    ]);
    fields
}
