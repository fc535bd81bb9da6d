//! What Salesforce fills in: values of a new record that its maker left out, and fields that follow from others.

use super::schema::{Field, Kind, Obj, Object, at};
use super::stamps::DAY_MS;
use super::value::Value;
use super::work_objects;

const MINUTE_MS: i64 = 60_000;

/// A new record before the caller's values.
pub(super) fn defaults(object: &Object) -> Vec<Value> {
    let value = |field: &Field| match (field.kind, field.name) {
        (Kind::Boolean, _) => Value::Bool(false),
        (_, "Status" | "ShowAs" | "TaskSubtype") => {
            Value::text(field.picklist.first().copied().unwrap_or_default())
        }
        (_, "Priority") => Value::text(field.picklist.get(1).copied().unwrap_or_default()),
        _ => Value::Null,
    };
    object.fields.iter().map(value).collect()
}

/// A row with its fields by name.
struct Named<'a> {
    object: &'a Object,
    row: &'a mut [Value],
}

impl Named<'_> {
    fn text(&self, name: &str) -> String {
        let value = self.object.index(name).map(|at| &self.row[at]);
        value
            .and_then(|v| v.as_text().map(str::to_owned))
            .unwrap_or_default()
    }

    fn get(&self, name: &str) -> Value {
        let at = self.object.index(name);
        at.map_or(Value::Null, |at| self.row[at].clone())
    }

    fn set(&mut self, name: &str, value: Value) {
        if let Some(at) = self.object.index(name) {
            self.row[at] = value;
        }
    }

    /// Whether the field differs from before.
    fn moved(&self, name: &str, old: Option<&[Value]>) -> bool {
        let at = self.object.index(name);
        at.is_some_and(|at| old.is_none_or(|old| old[at] != self.row[at]))
    }
}

/// Fields that follow from others.
pub(super) fn derive(object: &Object, row: &mut [Value], now: i64, old: Option<&[Value]>) {
    let mut named = Named { object, row };
    match object.obj {
        Obj::Contact | Obj::Lead | Obj::User => {
            let full = format!("{} {}", named.text("FirstName"), named.text("LastName"));
            named.set("Name", Value::text(full.trim()));
        }
        Obj::Opportunity => opportunity(&mut named, old),
        Obj::Case => {
            let closed = named.text("Status") == "Closed";
            named.set("IsClosed", Value::Bool(closed));
            if closed == named.get("ClosedDate").is_null() {
                let at = if closed {
                    Value::DateTime(now)
                } else {
                    Value::Null
                };
                named.set("ClosedDate", at);
            }
        }
        Obj::Task => {
            let done = named.text("Status") == "Completed";
            named.set("IsClosed", Value::Bool(done));
        }
        Obj::Event => event(&mut named, old),
        Obj::LineItem => {
            let number = |value: Value| match value {
                Value::Double(number) => number,
                _ => 0.0,
            };
            let total = number(named.get("Quantity"))
                * number(named.get("UnitPrice"))
                * (1.0 - number(named.get("Discount")) / 100.0);
            named.set("TotalPrice", Value::Double((total * 100.0).round() / 100.0));
        }
        Obj::Subscription => {
            if named.text("Name").is_empty()
                && let Some(id) = named.row[at::ID].as_id()
            {
                named.set("Name", Value::text(&id.to_string()));
            }
        }
        Obj::Account | Obj::Product | Obj::Price => {}
    }
}

fn opportunity(named: &mut Named<'_>, old: Option<&[Value]>) {
    let stage = named.text("StageName");
    named.set("IsClosed", Value::Bool(stage.starts_with("Closed")));
    named.set("IsWon", Value::Bool(stage == "Closed Won"));
    let moved = old.is_some() && named.moved("StageName", old) && !named.moved("Probability", old);
    if moved || named.get("Probability").is_null() {
        named.set("Probability", work_objects::probability(&stage));
    }
}

/// Start, end and length of a meeting follow one another: the end or the length, whichever was written.
fn event(named: &mut Named<'_>, old: Option<&[Value]>) {
    let instant = |value: Value| match value {
        Value::DateTime(ms) => Some(ms),
        _ => None,
    };
    let moved =
        |named: &Named<'_>, name: &str| named.moved(name, old) && !named.get(name).is_null();
    let start = if moved(named, "ActivityDateTime") && !moved(named, "StartDateTime") {
        instant(named.get("ActivityDateTime"))
    } else {
        instant(named.get("StartDateTime"))
    };
    let Some(start) = start else { return };
    let minutes = match (
        instant(named.get("EndDateTime")),
        named.get("DurationInMinutes"),
    ) {
        (Some(end), minutes)
            if moved(named, "EndDateTime") || !matches!(minutes, Value::Int(_)) =>
        {
            (end - start).div_euclid(MINUTE_MS)
        }
        (_, Value::Int(minutes)) => minutes,
        _ => return,
    };
    named.set("StartDateTime", Value::DateTime(start));
    named.set("ActivityDateTime", Value::DateTime(start));
    let day = i32::try_from(start.div_euclid(DAY_MS)).unwrap_or_default();
    named.set("ActivityDate", Value::Date(day));
    named.set("DurationInMinutes", Value::Int(minutes));
    named.set("EndDateTime", Value::DateTime(start + minutes * MINUTE_MS));
}
