//! Describe: the org's objects and fields in the recorded shape, every key included.

use super::{Answer, Call, Reply, rows};
use crate::salesforce::State;
use crate::salesforce::error::Error;
use crate::salesforce::schema::{Field, Kind, Obj, Object, Schema, at, flag};
use crate::salesforce::stamps;
use serde_json::{Map, Value, json};

fn yes_no(map: &mut Map<String, Value>, names: &[&str], truth: bool) {
    map.extend(names.iter().map(|name| ((*name).to_owned(), json!(truth))));
}

fn nothing(map: &mut Map<String, Value>, names: &[&str]) {
    map.extend(names.iter().map(|name| ((*name).to_owned(), Value::Null)));
}

/// An entry of the global describe, also the head of a full one.
fn summary(object: &Object, root: &str) -> Map<String, Value> {
    let name = object.obj.name();
    let user = object.obj == Obj::User;
    let mergeable = matches!(
        object.obj,
        Obj::Account | Obj::Contact | Obj::Lead | Obj::Case
    );
    let mut map = Map::new();
    yes_no(
        &mut map,
        &[
            "activateable",
            "customSetting",
            "deprecatedAndHidden",
            "hasSubtypes",
            "isInterface",
            "isSubtype",
        ],
        false,
    );
    yes_no(
        &mut map,
        &[
            "createable",
            "layoutable",
            "queryable",
            "replicateable",
            "retrieveable",
            "searchable",
            "triggerable",
            "updateable",
        ],
        true,
    );
    yes_no(
        &mut map,
        &["deletable", "undeletable", "deepCloneable"],
        !user,
    );
    yes_no(&mut map, &["feedEnabled", "mruEnabled"], true);
    nothing(&mut map, &["associateEntityType", "associateParentEntity"]);
    map.insert("custom".into(), json!(object.obj.custom()));
    map.insert(
        "keyPrefix".into(),
        json!(String::from_utf8_lossy(&object.obj.prefix())),
    );
    map.insert("label".into(), json!(object.label));
    map.insert("labelPlural".into(), json!(object.plural));
    map.insert("mergeable".into(), json!(mergeable));
    map.insert("name".into(), json!(name));
    let base = format!("{root}/sobjects/{name}");
    let urls = json!({"rowTemplate": format!("{base}/{{ID}}"), "describe": format!("{base}/describe"), "sobject": base});
    map.insert("urls".into(), urls);
    map.sort_keys();
    map
}

/// A change event as the global describe lists it.
fn change_event(object: &Object, root: &str) -> Map<String, Value> {
    let mut map = summary(object, root);
    let name = object.obj.change_event();
    let off = [
        "createable",
        "layoutable",
        "queryable",
        "replicateable",
        "retrieveable",
        "searchable",
        "updateable",
        "deletable",
        "undeletable",
        "deepCloneable",
        "feedEnabled",
        "mruEnabled",
        "mergeable",
        "custom",
    ];
    yes_no(&mut map, &off, false);
    nothing(&mut map, &["keyPrefix"]);
    map.insert("associateEntityType".into(), json!("ChangeEvent"));
    map.insert("associateParentEntity".into(), json!(object.obj.name()));
    map.insert(
        "label".into(),
        json!(format!("{} Change Event", object.label)),
    );
    map.insert(
        "labelPlural".into(),
        json!(format!("{} Change Event", object.label)),
    );
    let base = format!("{root}/sobjects/{name}");
    map.insert("name".into(), json!(name));
    map.insert("urls".into(), json!({"rowTemplate": format!("{base}/{{ID}}"), "eventSchema": format!("{base}/eventSchema"), "describe": format!("{base}/describe"), "sobject": base}));
    map
}

/// `GET /sobjects`
pub(crate) fn global(org: &State, call: &Call<'_>) -> Reply {
    let root = call.root();
    let mut list: Vec<Value> = Vec::new();
    for object in &org.schema().objects {
        list.push(Value::Object(summary(object, &root)));
        if object.obj.streams() {
            list.push(Value::Object(change_event(object, &root)));
        }
    }
    dated(
        org,
        call,
        &json!({"encoding": "UTF-8", "maxBatchSize": 200, "sobjects": list}),
    )
}

/// `GET /sobjects/X`
pub(crate) fn basic(org: &State, call: &Call<'_>, name: &str) -> Answer {
    let object = rows::object(org, name)?;
    Ok(Reply::json(
        200,
        &json!({"objectDescribe": summary(object, &call.root()), "recentItems": []}),
    ))
}

/// `GET /sobjects/X/describe`; 304 when the caller's copy is not older than the schema.
pub(crate) fn full(org: &State, call: &Call<'_>, name: &str) -> Answer {
    let object = rows::object(org, name)?;
    if rows::date_header(call, "if-modified-since")?
        .is_some_and(|since| since >= org.schema_changed_ms() / 1_000 * 1_000)
    {
        return Ok(Reply::empty(304));
    }
    let mut map = summary(object, &call.root());
    for name in ["actionOverrides", "namedLayoutInfos"] {
        map.insert(name.into(), json!([]));
    }
    nothing(
        &mut map,
        &[
            "defaultImplementation",
            "extendedBy",
            "extendsInterfaces",
            "implementedBy",
            "implementsInterfaces",
            "listviewable",
            "lookupLayoutable",
            "networkScopeFieldName",
            "sobjectDescribeOption",
        ],
    );
    yes_no(&mut map, &["compactLayoutable", "searchLayoutable"], true);
    map.insert(
        "childRelationships".into(),
        children(org.schema(), object.obj),
    );
    map.insert("recordTypeInfos".into(), json!([{"active": true, "available": true, "defaultRecordTypeMapping": true,
        "developerName": "Master", "master": true, "name": "Master", "recordTypeId": "012000000000000AAA", "urls": {"layout": format!("{}/sobjects/{}/describe/layouts/012000000000000AAA", call.root(), object.obj.name())}}]));
    map.insert("supportedScopes".into(), json!([{"label": format!("All {}", object.plural), "name": "everything"}, {"label": format!("My {}", object.plural), "name": "mine"}]));
    map.insert("fields".into(), Value::Array(fields(object)));
    map.sort_keys();
    Ok(dated(org, call, &Value::Object(map)))
}

fn dated(org: &State, call: &Call<'_>, body: &Value) -> Reply {
    let reply = Reply::json(200, body);
    let tag = format!(
        "\"{:x}\"",
        reply.body.len() as u64
            ^ u64::from(call.version.as_bytes().first().copied().unwrap_or(0)) << 32
    );
    reply
        .with("last-modified", stamps::http_date(org.schema_changed_ms()))
        .with("etag", tag)
}

/// `GET /event/eventSchema/{id}`: the Avro schema of a change event.
pub(crate) fn schema_by_id(org: &State, id: &str) -> Answer {
    let codec = org.codecs().by_id(id).ok_or_else(Error::not_found)?;
    Ok(Reply::bytes(codec.schema_json.clone().into_bytes()))
}

/// `GET /sobjects/XChangeEvent/eventSchema`
pub(crate) fn schema_of(org: &State, event: &str) -> Answer {
    let found = Obj::ALL
        .into_iter()
        .find(|obj| obj.streams() && obj.change_event() == event);
    let codec = org.codecs().of(found.ok_or_else(Error::not_found)?);
    Ok(Reply::bytes(codec.schema_json.clone().into_bytes()))
}

/// Objects that refer to this one.
fn children(schema: &Schema, obj: Obj) -> Value {
    let mut list = Vec::new();
    for child in &schema.objects {
        for (_, field) in child
            .visible()
            .filter(|(_, field)| field.refers.contains(&obj))
        {
            list.push(json!({"cascadeDelete": false, "childSObject": child.obj.name(), "deprecatedAndHidden": false, "field": field.name,
                "junctionIdListNames": [], "junctionReferenceTo": [], "relationshipName": null, "restrictedDelete": false}));
        }
    }
    Value::Array(list)
}

/// Id, IsDeleted, the object's own fields, then the other system fields, as real orgs list them.
fn fields(object: &Object) -> Vec<Value> {
    let visible: Vec<(usize, &Field)> = object.visible().collect();
    let head = visible.iter().filter(|(index, _)| *index <= at::IS_DELETED);
    let own = visible
        .iter()
        .filter(|(index, field)| *index > at::STAMP && !field.has(flag::CUSTOM));
    let system = visible
        .iter()
        .filter(|(index, _)| (at::CREATED_DATE..=at::STAMP).contains(index));
    let custom = visible
        .iter()
        .filter(|(index, field)| *index > at::STAMP && field.has(flag::CUSTOM));
    head.chain(own)
        .chain(system)
        .chain(custom)
        .map(|(_, field)| describe(field))
        .collect()
}

impl Field {
    /// `FirstName` → `First Name`; `pg_crm_sync_id__c` → `pg crm sync id`.
    pub(crate) fn label(&self) -> String {
        self.label.map_or_else(|| label(self), str::to_owned)
    }
}

fn label(field: &Field) -> String {
    let name = field.name.strip_suffix("__c").unwrap_or(field.name);
    let name = if field.kind == Kind::Reference && !field.has(flag::CUSTOM) {
        name.to_owned()
    } else {
        name.replace('_', " ")
    };
    let mut out = String::new();
    let mut last_lower = false;
    for symbol in name.chars() {
        if symbol.is_uppercase() && last_lower {
            out.push(' ');
        }
        last_lower = symbol.is_lowercase();
        out.push(symbol);
    }
    match out.strip_suffix(" Id") {
        Some(stem) if field.kind == Kind::Reference => format!("{stem} ID"),
        _ => out,
    }
}

/// A field in full: what depends on its type, then what every field has.
fn describe(field: &Field) -> Value {
    let (kind, compound) = (field.kind, field.kind == Kind::Address);
    let sortable = !field.is_long_text() && !compound && kind != Kind::MultiPicklist;
    let int = kind == Kind::Int;
    let polymorphic = field.refers.len() > 1;
    let mut body = json!({
        "aggregatable": sortable && kind != Kind::Boolean,
        "autoNumber": field.has(flag::AUTO_NUMBER),
        // Three bytes of UTF-8 per character.
        "byteLength": if kind.is_text() { field.length * 3 } else { field.length },
        "calculated": field.has(flag::CALCULATED),
        "caseSensitive": false,
        "compoundFieldName": field.compound.map(|(owner, _)| owner),
        "createable": field.has(flag::CREATE) && !compound,
        "custom": field.has(flag::CUSTOM),
        "defaultValue": (kind == Kind::Boolean).then_some(false),
        "defaultedOnCreate": field.has(flag::DEFAULTED),
        "digits": if int { field.precision } else { 0 },
        "externalId": field.has(flag::EXTERNAL_ID),
        "filterable": !compound && !field.is_long_text(),
        "groupable": sortable && !kind.is_number() && kind != Kind::DateTime,
        "idLookup": field.is_key(),
        "label": field.label(),
        "length": field.length,
        "name": field.name,
        "nameField": field.has(flag::NAME),
        "namePointing": polymorphic,
        "nillable": field.nillable(),
        "permissionable": field.nillable() && kind != Kind::Id,
        "picklistValues": picklist(field),
        "polymorphicForeignKey": polymorphic,
        "precision": if int { 0 } else { field.precision },
        "referenceTo": field.refers.iter().map(|obj| obj.name()).collect::<Vec<_>>(),
        "relationshipName": field.relationship,
        "restrictedPicklist": field.has(flag::RESTRICTED),
        "scale": field.scale,
        "searchPrefilterable": kind == Kind::Reference,
        "soapType": kind.soap(),
        "sortable": sortable,
        "type": kind.name(),
        "unique": field.has(flag::UNIQUE),
        "updateable": field.has(flag::UPDATE) && !compound,
    });
    if let Value::Object(map) = &mut body {
        yes_no(map, &NEVER, false);
        nothing(map, &EMPTY);
        map.sort_keys();
    }
    body
}

/// Properties no field here has.
const NEVER: [&str; 12] = [
    "aiPredictionField",
    "cascadeDelete",
    "dependentPicklist",
    "deprecatedAndHidden",
    "displayLocationInDecimal",
    "encrypted",
    "formulaTreatNullNumberAsZero",
    "highScaleNumber",
    "htmlFormatted",
    "queryByDistance",
    "restrictedDelete",
    "writeRequiresMasterRead",
];

/// Properties that are null for every field here.
const EMPTY: [&str; 10] = [
    "calculatedFormula",
    "controllerName",
    "defaultValueFormula",
    "extraTypeInfo",
    "filteredLookupInfo",
    "inlineHelpText",
    "mask",
    "maskType",
    "referenceTargetField",
    "relationshipOrder",
];

fn picklist(field: &Field) -> Value {
    let entry = |value: &&str| json!({"active": true, "defaultValue": false, "label": value, "validFor": null, "value": value});
    Value::Array(field.picklist.iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_the_57_recorded_keys() {
        const KEYS: &str = "aggregatable aiPredictionField autoNumber byteLength calculated calculatedFormula cascadeDelete caseSensitive \
            compoundFieldName controllerName createable custom defaultValue defaultValueFormula defaultedOnCreate dependentPicklist \
            deprecatedAndHidden digits displayLocationInDecimal encrypted externalId extraTypeInfo filterable filteredLookupInfo \
            formulaTreatNullNumberAsZero groupable highScaleNumber htmlFormatted idLookup inlineHelpText label length mask maskType name \
            nameField namePointing nillable permissionable picklistValues polymorphicForeignKey precision queryByDistance \
            referenceTargetField referenceTo relationshipName relationshipOrder restrictedDelete restrictedPicklist scale \
            searchPrefilterable soapType sortable type unique updateable writeRequiresMasterRead";
        let mut expected: Vec<&str> = KEYS.split_whitespace().collect();
        expected.sort_unstable();
        for object in &crate::salesforce::objects::schema(true).objects {
            for field in fields(object) {
                let mut found: Vec<&str> = field
                    .as_object()
                    .unwrap()
                    .keys()
                    .map(String::as_str)
                    .collect();
                found.sort_unstable();
                assert_eq!(found, expected, "{}", object.obj.name());
            }
        }
    }

    #[test]
    fn labels_read_like_words() {
        let schema = crate::salesforce::objects::schema(true);
        let object = schema.object(Obj::Contact);
        let of = |name: &str| label(&object.fields[object.index(name).unwrap()]);
        assert_eq!(
            (of("FirstName"), of("AccountId"), of("Level__c")),
            ("First Name".into(), "Account ID".into(), "Level".into())
        );
    }
}
