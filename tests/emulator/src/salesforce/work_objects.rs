//! Objects about work: opportunities, cases, tasks, users, and the org's one custom object.

use super::objects::{
    LEAD_SOURCES, NONE, field, flagged, master_record, number, owner, pick, refers, system, text,
};
use super::schema::{Field, Kind, Obj, flag};
use super::value::Value;

/// Opportunity stages in pipeline order.
pub(crate) const STAGES: &[&str] = &[
    "Prospecting",
    "Qualification",
    "Needs Analysis",
    "Value Proposition",
    "Perception Analysis",
    "Proposal/Price Quote",
    "Negotiation/Review",
    "Closed Won",
    "Closed Lost",
];

/// The chance of winning that a stage stands for, in percent.
pub(crate) fn probability(stage: &str) -> Value {
    const PERCENT: [f64; 9] = [10.0, 10.0, 20.0, 50.0, 70.0, 75.0, 90.0, 100.0, 0.0];
    STAGES
        .iter()
        .position(|known| *known == stage)
        .map_or(Value::Null, |at| Value::Double(PERCENT[at]))
}

pub(super) fn opportunity() -> Vec<Field> {
    let mut fields = system(Obj::Opportunity);
    fields.extend([
        refers("AccountId", &[Obj::Account], "Account", |gen_| {
            gen_.account()
        }),
        text("Name", 120, |gen_| gen_.deal_name()).with(flag::REQUIRED | flag::NAME),
        field("Description", Kind::TextArea, 32_000, NONE),
        pick("StageName", STAGES, |gen_| Value::text(gen_.deal_stage()))
            .with(flag::REQUIRED | flag::RESTRICTED),
        number("Amount", Kind::Currency, 18, 2, |gen_| gen_.deal_amount()),
        number("Probability", Kind::Percent, 3, 0, |gen_| {
            probability(gen_.deal_stage())
        })
        .with(flag::DEFAULTED),
        field("CloseDate", Kind::Date, 0, |gen_| gen_.deal_close()).with(flag::REQUIRED),
        pick(
            "Type",
            &["Existing Customer - Upgrade", "New Customer"],
            NONE,
        ),
        text("NextStep", 255, NONE),
        pick("LeadSource", LEAD_SOURCES, |gen_| {
            gen_.pick(LEAD_SOURCES, 7)
        }),
        flagged("IsClosed", |gen_| {
            Value::Bool(gen_.deal_stage().starts_with("Closed"))
        })
        .read_only(),
        flagged("IsWon", |gen_| {
            Value::Bool(gen_.deal_stage() == "Closed Won")
        })
        .read_only(),
        refers("ContactId", &[Obj::Contact], "Contact", NONE).without(flag::UPDATE),
        owner(),
    ]);
    fields
}

pub(super) fn case() -> Vec<Field> {
    let mut fields = system(Obj::Case);
    fields.extend([
        text("CaseNumber", 30, |gen_| {
            Value::text(&format!("{:08}", gen_.n))
        })
        .read_only()
        .with(flag::NAME | flag::AUTO_NUMBER | flag::DEFAULTED | flag::NOT_NULL | flag::ID_LOOKUP),
        refers("ContactId", &[Obj::Contact], "Contact", |gen_| {
            gen_.contact()
        }),
        refers("AccountId", &[Obj::Account], "Account", |gen_| {
            gen_.account()
        }),
        pick(
            "Type",
            &["Mechanical", "Electrical", "Structural", "Other"],
            NONE,
        ),
        pick("Status", &["New", "Working", "Escalated", "Closed"], |_| {
            Value::text("New")
        })
        .with(flag::DEFAULTED),
        pick(
            "Reason",
            &["Installation", "Performance", "Breakdown", "Other"],
            NONE,
        ),
        pick("Origin", &["Phone", "Email", "Web"], |gen_| {
            gen_.pick(&["Phone", "Email", "Web"], 3)
        }),
        text("Subject", 255, |gen_| gen_.subject()),
        pick("Priority", &["High", "Medium", "Low"], |_| {
            Value::text("Medium")
        })
        .with(flag::DEFAULTED),
        field("Description", Kind::TextArea, 32_000, |gen_| gen_.subject()),
        flagged("IsClosed", |_| Value::Bool(false)).read_only(),
        field("ClosedDate", Kind::DateTime, 0, NONE).without(flag::UPDATE),
        owner(),
        master_record(&[Obj::Case]),
    ]);
    fields
}

/// What a task or a meeting is about.
pub(super) fn about() -> [Field; 3] {
    let what = &[Obj::Account, Obj::Opportunity, Obj::Case];
    [
        refers("WhoId", &[Obj::Contact, Obj::Lead], "Who", |gen_| {
            gen_.contact()
        }),
        refers("WhatId", what, "What", NONE),
        text("Subject", 255, |gen_| gen_.subject()).with(flag::NAME),
    ]
}

pub(super) fn task() -> Vec<Field> {
    let mut fields = system(Obj::Task);
    fields.extend(about());
    fields.extend([
        field("ActivityDate", Kind::Date, 0, |gen_| gen_.date(19_800, 400)),
        pick(
            "Status",
            &[
                "Not Started",
                "In Progress",
                "Completed",
                "Waiting on someone else",
                "Deferred",
            ],
            |_| Value::text("Not Started"),
        )
        .with(flag::DEFAULTED | flag::NOT_NULL),
        pick("Priority", &["High", "Normal", "Low"], |_| {
            Value::text("Normal")
        })
        .with(flag::DEFAULTED | flag::NOT_NULL),
        owner(),
        field("Description", Kind::TextArea, 32_000, NONE),
        flagged("IsClosed", |_| Value::Bool(false)).read_only(),
        // Told when a task is made, and the same from then on.
        pick(
            "TaskSubtype",
            &["Task", "Email", "ListEmail", "Cadence", "Call"],
            |_| Value::text("Task"),
        )
        .without(flag::UPDATE)
        .with(flag::RESTRICTED | flag::DEFAULTED),
        pick("Type", &["Call", "Email", "Meeting", "Other"], NONE),
        number("CallDurationInSeconds", Kind::Int, 8, 0, NONE),
        text("CallDisposition", 255, NONE),
        pick("CallType", &["Internal", "Inbound", "Outbound"], NONE).with(flag::RESTRICTED),
    ]);
    fields
}

pub(super) fn user() -> Vec<Field> {
    let mut fields = system(Obj::User);
    fields.extend([
        field("Username", Kind::Text, 80, |gen_| gen_.user_email())
            .with(flag::REQUIRED | flag::UNIQUE | flag::ID_LOOKUP),
        text("LastName", 80, |gen_| gen_.last())
            .with(flag::REQUIRED)
            .part("Name", "LastName"),
        text("FirstName", 40, |gen_| gen_.first()).part("Name", "FirstName"),
        text("Name", 121, |gen_| gen_.full_name())
            .read_only()
            .with(flag::NAME | flag::NO_EVENT | flag::NOT_NULL),
        field("Email", Kind::Email, 128, |gen_| gen_.user_email()).with(flag::REQUIRED),
        text("Alias", 8, |gen_| Value::text(&format!("u{:05}", gen_.n))).with(flag::REQUIRED),
        text("CompanyName", 80, |_| Value::text("Emulator")),
        text("Title", 80, |gen_| gen_.title()),
        flagged("IsActive", |gen_| gen_.active()),
        pick(
            "TimeZoneSidKey",
            &["GMT", "Europe/Berlin", "America/New_York"],
            |_| Value::text("GMT"),
        )
        .with(flag::RESTRICTED),
        pick("LocaleSidKey", &["en_US", "de_DE"], |_| {
            Value::text("en_US")
        })
        .with(flag::RESTRICTED),
    ]);
    fields
}

pub(super) fn subscription() -> Vec<Field> {
    let mut fields = system(Obj::Subscription);
    fields.extend([
        text("Name", 80, |gen_| Value::text(&format!("S-{:06}", gen_.n)))
            .with(flag::NAME | flag::DEFAULTED),
        owner(),
        refers("Contact__c", &[Obj::Contact], "Contact__r", |gen_| {
            gen_.contact()
        })
        .with(flag::CUSTOM),
        text("Ext__c", 64, |gen_| {
            Value::text(&format!("sub-{:06}", gen_.n))
        })
        .with(flag::CUSTOM | flag::UNIQUE | flag::EXTERNAL_ID),
        pick("Plan__c", &["Basic", "Plus", "Enterprise"], |gen_| {
            gen_.pick(&["Basic", "Plus", "Enterprise"], 3)
        })
        .with(flag::CUSTOM | flag::RESTRICTED),
        number("Price__c", Kind::Currency, 16, 2, |gen_| gen_.amount(1_000)).with(flag::CUSTOM),
        flagged("Active__c", |_| Value::Bool(true)).with(flag::CUSTOM),
        field("Started__c", Kind::DateTime, 0, |gen_| {
            Value::DateTime(gen_.stamp())
        })
        .with(flag::CUSTOM),
    ]);
    fields
}
