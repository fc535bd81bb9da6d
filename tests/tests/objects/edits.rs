//! What people and SQL write to each object of the emulated CRMs.

/// Object, a field to edit with what a person and what SQL write there, and a new record in SQL.
pub(crate) struct Edit {
    pub(crate) object: &'static str,
    pub(crate) field: &'static str,
    pub(crate) by_person: &'static str,
    pub(crate) by_sql: &'static str,
    pub(crate) columns: &'static str,
    pub(crate) row: &'static str,
}

const fn edit(
    object: &'static str,
    (field, by_person, by_sql): (&'static str, &'static str, &'static str),
    columns: &'static str,
    row: &'static str,
) -> Edit {
    Edit {
        object,
        field,
        by_person,
        by_sql,
        columns,
        row,
    }
}

pub(crate) const HUBSPOT_EDITS: [Edit; 13] = [
    edit(
        "contacts",
        ("city", "Bath", "Wells"),
        "email, lastname",
        "'new.person@example.com', 'New'",
    ),
    edit(
        "companies",
        ("annualrevenue", "1250000.5", "7"),
        "name, domain",
        "'New Ltd', 'new-ltd.example'",
    ),
    edit(
        "deals",
        ("amount", "99.95", "100.5"),
        "dealname, pipeline, dealstage, closedate",
        "'New deal', 'default', 'qualifiedtobuy', '2027-01-31 12:00Z'",
    ),
    edit(
        "tickets",
        ("subject", "It arrived", "It arrived late"),
        "subject, hs_pipeline, hs_pipeline_stage",
        "'New ticket', '0', '1'",
    ),
    edit(
        "tasks",
        ("hs_task_status", "COMPLETED", "WAITING"),
        "hs_task_subject, hs_timestamp",
        "'New task', '2027-01-31 12:00Z'",
    ),
    edit(
        "meetings",
        ("hs_meeting_location", "Room 5", "Room 6"),
        "hs_meeting_title, hs_timestamp, hs_meeting_start_time, hs_meeting_outcome",
        "'New meeting', '2027-01-31 12:00Z', '2027-01-31 12:00Z', 'SCHEDULED'",
    ),
    edit(
        "calls",
        ("hs_call_duration", "61000", "62000"),
        "hs_call_title, hs_timestamp, hs_call_direction",
        "'New call', '2027-01-31 12:00Z', 'INBOUND'",
    ),
    edit(
        "notes",
        ("hs_note_body", "Rang twice", "Rang <b>three</b> times"),
        "hs_note_body, hs_timestamp",
        "'New note', '2027-01-31 12:00Z'",
    ),
    edit(
        "emails",
        ("hs_email_subject", "An offer", "A better offer"),
        "hs_email_subject, hs_timestamp, hs_email_direction",
        "'New e-mail', '2027-01-31 12:00Z', 'EMAIL'",
    ),
    edit(
        "products",
        ("price", "99.95", "100.5"),
        "name, hs_sku, price",
        "'New part', 'P-1', 7",
    ),
    edit(
        "line_items",
        ("quantity", "12", "13"),
        "name, quantity, price",
        "'New part', 2, 7.5",
    ),
    edit(
        "leads",
        ("hs_lead_label", "HOT", "COLD"),
        "hs_lead_name, hs_lead_type",
        "'New lead', 'NEW_BUSINESS'",
    ),
    edit(
        "p62515_subscriptions",
        ("seats", "12", "13"),
        "subscription_name, start_date, auto_renew",
        "'New subscription', '2027-01-31', true",
    ),
];

pub(crate) const SALESFORCE_EDITS: [Edit; 11] = [
    edit(
        "Account",
        ("Website", "https://a.example", "https://b.example"),
        "name",
        "'New Ltd'",
    ),
    edit(
        "Contact",
        ("Title", "Poet", "Critic"),
        "lastname, email",
        "'New', 'new.person@example.com'",
    ),
    edit(
        "Lead",
        ("Title", "Poet", "Critic"),
        "lastname, company",
        "'New', 'New Ltd'",
    ),
    edit(
        "Opportunity",
        ("Amount", "99.95", "100.5"),
        "name, stagename, closedate",
        "'New deal', 'Prospecting', '2027-01-31'",
    ),
    edit(
        "Case",
        ("Subject", "It arrived", "It arrived late"),
        "subject",
        "'New case'",
    ),
    edit(
        "Task",
        ("Subject", "Call back", "Call again"),
        "subject, status, priority",
        "'New task', 'Not Started', 'Normal'",
    ),
    edit(
        "Subscription__c",
        ("Name", "Gold", "Silver"),
        "name",
        "'New subscription'",
    ),
    edit(
        "Event",
        ("Location", "Room 5", "Room 6"),
        "subject, startdatetime, enddatetime",
        "'New meeting', '2027-01-31 12:00Z', '2027-01-31 13:00Z'",
    ),
    edit(
        "Product2",
        ("ProductCode", "P-1", "P-2"),
        "name, isactive",
        "'New part', true",
    ),
    edit(
        "PricebookEntry",
        ("UnitPrice", "99.95", "100.5"),
        "product2id, unitprice, isactive",
        "(SELECT min(id) FROM salesforce.product2), 7.5, true",
    ),
    edit(
        "OpportunityLineItem",
        ("Description", "As agreed", "As agreed by phone"),
        "opportunityid, product2id, quantity, unitprice",
        "(SELECT min(id) FROM salesforce.opportunity), (SELECT min(id) FROM salesforce.product2), 2, 7.5",
    ),
];
