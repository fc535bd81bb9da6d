//! A catalog without a CRM: servers and the objects and fields they offer,
//! written where the worker would write them. For tests of the SQL functions.

use crate::db::Db;

/// Servers whose credential does not exist, so that the worker calls nobody.
const SERVERS: &str = "
CREATE SERVER hubspot TYPE 'hubspot' FOREIGN DATA WRAPPER pg_crm_sync OPTIONS (credentials 'file:none.json', base_url 'http://127.0.0.1:9');
CREATE SERVER salesforce TYPE 'salesforce' FOREIGN DATA WRAPPER pg_crm_sync OPTIONS (credentials 'file:none.json', login_url 'http://127.0.0.1:9')";

const OBJECTS: &str = "
INSERT INTO crm.remote_object (server, object, type_id, label, label_plural, custom, createable, updateable, deletable, streamable)
SELECT s, o, o, initcap(o), initcap(o) || 's', false, true, true, true, true
FROM (VALUES ('hubspot', 'contacts'), ('hubspot', 'companies'), ('hubspot', 'deals'),
             ('salesforce', 'Contact'), ('salesforce', 'Account'), ('salesforce', 'Opportunity')) AS v (s, o)";

/// `name[:type[:ro]]`, types as in the catalog; text is the default.
const FIELDS: [(&str, &str, &str); 6] = [
    (
        "hubspot",
        "contacts",
        "hs_object_id:number:ro email firstname lastname phone city tags:multi_choice score:number subscribed:boolean birthday:date \
         createdate:date_time:ro lastmodifieddate:date_time:ro pg_crm_sync_id xmin Dup dup _odd",
    ),
    (
        "hubspot",
        "companies",
        "hs_object_id:number:ro name domain phone numberofemployees:number hs_lastmodifieddate:date_time:ro",
    ),
    (
        "hubspot",
        "deals",
        "hs_object_id:number:ro dealname amount:number closedate:date_time dealstage hs_lastmodifieddate:date_time:ro",
    ),
    (
        "salesforce",
        "Contact",
        "Id FirstName LastName Email Phone MailingCity CreatedDate:date_time:ro LastModifiedDate:date_time:ro \
         SystemModstamp:date_time:ro IsDeleted:boolean:ro pg_crm_sync_id__c",
    ),
    (
        "salesforce",
        "Account",
        "Id Name Website Phone NumberOfEmployees:number SystemModstamp:date_time:ro",
    ),
    (
        "salesforce",
        "Opportunity",
        "Id Name Amount:number CloseDate:date StageName SystemModstamp:date_time:ro",
    ),
];

/// Makes the servers `hubspot` and `salesforce` with three objects each.
pub async fn catalog(db: &Db) {
    db.exec(SERVERS).await;
    db.exec(OBJECTS).await;
    for (server, object, fields) in FIELDS {
        db.exec(&format!(
            "INSERT INTO crm.remote_field (server, object, field, ordinal, label, description, field_type, remote_type, column_type, max_length,
                    restricted, required, is_unique, external_id, read_only, calculated)
             SELECT '{server}', '{object}', split_part(x, ':', 1), n, 'Label of ' || split_part(x, ':', 1), '', t, t,
                    CASE t WHEN 'number' THEN 'numeric' WHEN 'date' THEN 'date' WHEN 'date_time' THEN 'timestamptz' WHEN 'boolean' THEN 'boolean'
                           WHEN 'multi_choice' THEN 'text[]' ELSE 'text' END, CASE t WHEN 'text' THEN 80 END,
                    false, false, false, false, split_part(x, ':', 3) = 'ro', false
             FROM unnest(string_to_array('{fields}', ' ')) WITH ORDINALITY AS u (x, n), coalesce(nullif(split_part(x, ':', 2), ''), 'text') AS t
             WHERE x <> ''"
        ))
        .await;
    }
}

/// [`catalog`], and all six objects imported into the schemas `hubspot` and `salesforce`.
pub async fn mirrors(db: &Db) {
    catalog(db).await;
    db.exec(
        "SELECT crm.import('hubspot', ARRAY['contacts', 'companies', 'deals'], into_schema => 'hubspot');
         SELECT crm.import('salesforce', ARRAY['Contact', 'Account', 'Opportunity'], into_schema => 'salesforce')",
    )
    .await;
}

/// Runs `sql` as the worker writes: capture does not see it.
pub async fn uncaptured(db: &Db, sql: &str) {
    db.exec(&format!(
        "SET session_replication_role = replica; {sql}; RESET session_replication_role"
    ))
    .await;
}
