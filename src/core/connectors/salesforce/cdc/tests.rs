#![allow(clippy::unwrap_used, reason = "a failed test panics")]

use super::*;
use crate::model::Mark;
use crate::testing::Random;

mod event;

use event::{
    ACCOUNT, ADDRESS, HEADER_SCHEMA, Header, ORIGIN, Out, account_schema, event, header, put_header,
};

fn only(bytes: &[u8]) -> Change {
    let mut changes = account_schema().decode(bytes).unwrap();
    assert_eq!(changes.len(), 1);
    changes.remove(0)
}

fn pair(name: &str, value: Option<&str>) -> (String, Value) {
    (name.to_owned(), value.map(str::to_owned))
}

#[test]
fn the_documented_bitmaps_name_the_documented_fields() {
    let set = |text: &str| {
        let bits = Bits::parse(&[text.to_owned()]);
        let mut all = vec!["header"];
        all.extend(ACCOUNT);
        (0..all.len())
            .filter(|i| bits.top(*i))
            .map(|i| all[i])
            .collect::<Vec<_>>()
    };
    assert_eq!(set("0x400080"), ["Fax", "LastModifiedDate"]);
    assert_eq!(set("0x410000"), ["Description", "LastModifiedDate"]);
    assert_eq!(set("0x010000"), ["Description"]);
    assert_eq!(set("0x14"), ["Type", "BillingAddress"]);
    let nested = Bits::parse(&["3-0x02".to_owned()]);
    assert!(nested.nested(3, 1) && !nested.nested(3, 0) && !nested.top(1));
    assert!(nested.inside(3) && !nested.inside(1));
    for odd in ["", "0x", "0xzz", "-", "x-0x1", "0xé", "1-"] {
        let bits = Bits::parse(&[odd.to_owned()]);
        assert!((0..64).all(|i| !bits.top(i)), "{odd}");
    }
}

#[test]
fn an_update_carries_what_changed_and_nothing_else() {
    let h = Header {
        changed: &["0x400080"],
        ..header("UPDATE")
    };
    let change = only(&event(&h, |name, out| {
        match name {
            "Fax" => out.some(Some("+44 1")),
            "LastModifiedDate" => out.long(1).long(1_714_156_685_000),
            _ => return false,
        };
        true
    }));
    assert_eq!(change.kind, ChangeKind::Update);
    assert_eq!(
        change.fields,
        [
            pair("Fax", Some("+44 1")),
            pair("LastModifiedDate", Some("2024-04-26T18:38:05.000Z"))
        ]
    );
    assert!(change.reread.is_empty());
    assert_eq!(change.object, "Account");
    assert_eq!(change.record_id, "0015g00000K1a2bAAB");
    assert_eq!(change.mark, ORIGIN);
    assert!(change.by_others, "{ORIGIN} names a client");
    assert_eq!(change.named("client=of_nobody"), Mark::Others);
    assert_eq!(change.named(ORIGIN), Mark::Ours);
    assert_eq!(change.actor, "0055g00000AAAAA");
    assert_eq!(change.transaction.as_deref(), Some("0004c6a2-1"));
    assert_eq!(change.occurred_at, 1_714_156_685_000);
    assert_eq!(
        change.identity,
        "cdc:0004c6a2-1:7:Account:0015g00000K1a2bAAB"
    );
}

#[test]
fn a_null_counts_only_if_the_header_names_it() {
    // Changed: Phone (6), Fax (7). Nulled: Phone.
    let h = Header {
        changed: &["0xC0"],
        nulled: &["0x40"],
        ..header("UPDATE")
    };
    let change = only(&event(&h, |_, _| false));
    assert_eq!(change.fields, [pair("Phone", None)]);
    // Fax is said to have changed, but to what is not said.
    assert_eq!(change.reread, ["Fax"]);
}

#[test]
fn a_diff_is_read_back_and_not_stored() {
    let h = Header {
        changed: &["0x010000"],
        diffs: &["0x010000"],
        ..header("UPDATE")
    };
    let change = only(&event(&h, |name, out| {
        name == "Description" && {
            out.some(Some("--- \n+++ ab\n@@ -2,1 +2,1 @@\n-old\n+new"));
            true
        }
    }));
    assert!(change.fields.is_empty());
    assert_eq!(change.reread, ["Description"]);
}

#[test]
fn an_address_becomes_its_components() {
    let address = |out: &mut Out| {
        out.long(1).some(Some("1 High St")).some(Some("Leeds"));
        out.some(None).some(None).some(None);
        out.long(1);
        out.0.extend_from_slice(&53.5f64.to_le_bytes());
        out.long(0).some(None);
    };
    // Billing (4): City and Latitude changed, State became null.
    let h = Header {
        changed: &["4-0x26"],
        nulled: &["4-0x04"],
        ..header("UPDATE")
    };
    let change = only(&event(&h, |name, out| {
        name == "BillingAddress" && {
            address(out);
            true
        }
    }));
    assert_eq!(
        change.fields,
        [
            pair("BillingCity", Some("Leeds")),
            pair("BillingState", None),
            pair("BillingLatitude", Some("53.5"))
        ]
    );
    // The same type, used by name, in a create.
    let created = only(&event(&header("CREATE"), |name, out| {
        name == "ShippingAddress" && {
            address(out);
            true
        }
    }));
    assert_eq!(created.kind, ChangeKind::Create);
    assert_eq!(
        created.fields,
        [
            pair("ShippingStreet", Some("1 High St")),
            pair("ShippingCity", Some("Leeds")),
            pair("ShippingLatitude", Some("53.5"))
        ]
    );
}

#[test]
fn several_records_of_one_event_are_several_changes() {
    let h = Header {
        ids: &["0015g00000K1a2b", "0015g00000K1a2c"],
        ..header("DELETE")
    };
    let changes = account_schema().decode(&event(&h, |_, _| false)).unwrap();
    assert_eq!(changes.len(), 2);
    assert!(changes.iter().all(|c| c.kind == ChangeKind::Delete));
    assert!(changes.iter().all(|c| c.fields.is_empty()));
    assert_ne!(changes[0].identity, changes[1].identity);
}

#[test]
fn gaps_are_read_again_and_overflows_by_object() {
    for kind in ["GAP_CREATE", "GAP_UPDATE", "GAP_DELETE", "SNAPSHOT"] {
        let change = only(&event(&header(kind), |_, _| false));
        assert_eq!(change.kind, ChangeKind::Reread, "{kind}");
        assert_eq!(change.record_id, "0015g00000K1a2bAAB");
    }
    for (kind, ids) in [
        ("GAP_OVERFLOW", ["000000000000000AAA"]),
        ("UPDATE", ["001*"]),
    ] {
        let h = Header {
            ids: &ids,
            ..header(kind)
        };
        let change = only(&event(&h, |_, _| false));
        assert_eq!(change.kind, ChangeKind::Overflow);
        assert_eq!(change.record_id, "");
    }
}

#[test]
fn identities_without_a_transaction_still_differ_by_commit() {
    let h = Header {
        key: "",
        ..header("GAP_UPDATE")
    };
    let gap = only(&event(&h, |_, _| false));
    assert_eq!(gap.transaction, None);
    assert!(gap.identity.contains("1100670838951@1714156685000"));
}

#[test]
fn a_persons_name_becomes_its_parts() {
    let json = format!(
        r#"{{"name":"ContactChangeEvent","namespace":"e","type":"record","fields":[
        {{"name":"ChangeEventHeader","type":{HEADER_SCHEMA}}},
        {{"name":"Name","type":["null","string",{{"type":"record","name":"Switchable_PersonName","fields":[
          {{"name":"Salutation","type":["null","string"]}},{{"name":"FirstName","type":["null","string"]}},
          {{"name":"LastName","type":["null","string"]}}]}}]}},
        {{"name":"Plant__c","type":["null",{ADDRESS}]}}]}}"#
    );
    let schema = Schema::parse(&json).unwrap();
    let mut out = Out::default();
    let h = Header {
        changed: &["1-0x02", "2-0x02"],
        ..header("UPDATE")
    };
    put_header(&mut out, &h);
    out.long(2).some(None).some(Some("Ada")).some(None);
    out.long(1).some(None).some(Some("Leeds"));
    out.long(0).long(0).long(0).long(0).long(0).long(0);
    let change = schema.decode(&out.0).unwrap().remove(0);
    assert_eq!(
        change.fields,
        [
            pair("FirstName", Some("Ada")),
            pair("Plant__City__s", Some("Leeds"))
        ]
    );
    assert_eq!(change.reread, ["Name"]);
}

#[test]
fn a_company_name_of_a_switchable_type_is_text() {
    let json = format!(
        r#"{{"name":"AccountChangeEvent","namespace":"e","type":"record","fields":[
        {{"name":"ChangeEventHeader","type":{HEADER_SCHEMA}}},
        {{"name":"Name","type":["null","string",{{"type":"record","name":"Switchable_PersonName","fields":[
          {{"name":"FirstName","type":["null","string"]}},{{"name":"LastName","type":["null","string"]}}]}}]}}]}}"#
    );
    let schema = Schema::parse(&json).unwrap();
    let decode = |changed: &[&str], nulled: &[&str], name: Option<&str>| {
        let mut out = Out::default();
        let h = Header {
            changed,
            nulled,
            ..header("UPDATE")
        };
        put_header(&mut out, &h);
        out.some(name);
        schema.decode(&out.0).unwrap().remove(0)
    };
    let renamed = decode(&["0x02"], &[], Some("Acme"));
    assert_eq!(renamed.fields, [pair("Name", Some("Acme"))]);
    assert!(renamed.reread.is_empty());
    let cleared = decode(&["0x02"], &["0x02"], None);
    assert_eq!(cleared.fields, [pair("Name", None)]);
}

#[test]
fn the_bit_of_a_whole_address_adds_nothing_to_the_bits_of_its_parts() {
    let put = |name: &str, out: &mut Out| {
        name == "BillingAddress" && {
            out.long(1).some(Some("1 High St")).some(Some("Leeds"));
            out.long(0).long(0).long(0).long(0).long(0).long(0);
            true
        }
    };
    let both = Header {
        changed: &["0x10", "4-0x02"],
        ..header("UPDATE")
    };
    let change = only(&event(&both, put));
    assert_eq!(change.fields, [pair("BillingCity", Some("Leeds"))]);
    assert!(change.reread.is_empty());
    let whole = Header {
        changed: &["0x10"],
        ..header("UPDATE")
    };
    let change = only(&event(&whole, put));
    assert_eq!(change.fields.len(), 2);
    assert_eq!(change.reread.len(), 6);
}

#[test]
fn hostile_schemas_are_errors() {
    let deep = format!(
        "{}\"null\"{}",
        r#"{"type":"array","items":"#.repeat(60),
        "}".repeat(60)
    );
    let deep = format!(
        r#"{{"type":"record","name":"a","fields":[{{"name":"ChangeEventHeader","type":{deep}}}]}}"#
    );
    for bad in [
        "",
        "[]",
        "{}",
        "\"string\"",
        r#"{"type":"record"}"#,
        r#"{"type":"record","name":"a","fields":[{"name":"x","type":"nope"}]}"#,
        r#"{"type":"record","name":"a","fields":[{"name":"x","type":"string"}]}"#,
        deep.as_str(),
    ] {
        assert!(Schema::parse(bad).is_err(), "{bad:.60}");
    }
}

#[test]
fn a_record_that_contains_itself_ends() {
    let json = r#"{"type":"record","name":"a","fields":[{"name":"ChangeEventHeader","type":"a"}]}"#;
    let schema = Schema::parse(json).unwrap();
    assert!(schema.decode(&[]).is_err());
    let json = r#"{"type":"record","name":"a","fields":[{"name":"ChangeEventHeader","type":{"type":"array","items":"null"}}]}"#;
    let schema = Schema::parse(json).unwrap();
    // A billion nulls take no bytes on the wire; they must take none here.
    let mut out = Out::default();
    out.long(1_000_000_000).long(0);
    assert!(schema.decode(&out.0).is_err());
    let mut out = Out::default();
    out.long(i64::MIN).long(0);
    assert!(schema.decode(&out.0).is_err());
}

#[test]
fn damaged_events_are_errors_or_changes_but_never_panics() {
    let seed = 0x5eed_0003;
    let mut random = Random::new(seed);
    let schema = account_schema();
    let h = Header {
        changed: &["0x400080", "4-0x26"],
        ..header("UPDATE")
    };
    let good = event(&h, |name, out| {
        name == "Fax" && {
            out.some(Some("+44 1"));
            true
        }
    });
    assert_eq!(schema.decode(&good).unwrap().len(), 1);
    for cut in 0..good.len() {
        assert!(schema.decode(&good[..cut]).is_err(), "cut at {cut}");
    }
    let mut longer = good.clone();
    longer.push(0);
    assert!(schema.decode(&longer).is_err());
    let mut decoded = 0;
    for _ in 0..5_000 {
        decoded += usize::from(schema.decode(&random.damage(&good)).is_ok());
    }
    assert!(decoded < 5_000, "seed {seed:#x}");
    let text = format!("{{\"type\":\"record\",\"name\":\"a\",\"fields\":[{HEADER_SCHEMA}]}}");
    for _ in 0..2_000 {
        let bytes = random.damage(text.as_bytes());
        let _ = Schema::parse(&String::from_utf8_lossy(&bytes));
    }
}
