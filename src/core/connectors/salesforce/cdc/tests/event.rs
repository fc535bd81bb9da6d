//! Change events, written byte by byte.

use super::Schema;

/// Writes Avro; the only encoder there is, so that it shares no code with the decoder.
#[derive(Default)]
pub(super) struct Out(pub(super) Vec<u8>);

impl Out {
    pub(super) fn long(&mut self, n: i64) -> &mut Self {
        let mut z = (n.wrapping_shl(1) ^ (n >> 63)).cast_unsigned();
        while z >= 0x80 {
            self.0.push(u8::try_from(z & 0x7f).unwrap() | 0x80);
            z >>= 7;
        }
        self.0.push(u8::try_from(z).unwrap());
        self
    }

    pub(super) fn text(&mut self, s: &str) -> &mut Self {
        self.long(i64::try_from(s.len()).unwrap());
        self.0.extend_from_slice(s.as_bytes());
        self
    }

    pub(super) fn texts(&mut self, list: &[&str]) -> &mut Self {
        if !list.is_empty() {
            self.long(i64::try_from(list.len()).unwrap());
            for s in list {
                self.text(s);
            }
        }
        self.long(0)
    }

    /// The branch of `["null", T]`.
    pub(super) fn some(&mut self, s: Option<&str>) -> &mut Self {
        match s {
            None => self.long(0),
            Some(s) => self.long(1).text(s),
        }
    }
}

pub(super) const TYPES: [&str; 10] = [
    "CREATE",
    "UPDATE",
    "DELETE",
    "UNDELETE",
    "GAP_CREATE",
    "GAP_UPDATE",
    "GAP_DELETE",
    "GAP_UNDELETE",
    "GAP_OVERFLOW",
    "SNAPSHOT",
];

#[derive(Clone)]
pub(super) struct Header<'a> {
    pub(super) kind: &'a str,
    pub(super) ids: &'a [&'a str],
    pub(super) key: &'a str,
    pub(super) nulled: &'a [&'a str],
    pub(super) diffs: &'a [&'a str],
    pub(super) changed: &'a [&'a str],
}

pub(super) const ONE: &[&str] = &["0015g00000K1a2b"];

pub(super) fn header(kind: &str) -> Header<'_> {
    Header {
        kind,
        ids: ONE,
        key: "0004c6a2-1",
        nulled: &[],
        diffs: &[],
        changed: &[],
    }
}

pub(super) const ORIGIN: &str = "com/salesforce/api/rest/62.0;client=pg_crm_sync_abc";

pub(super) fn put_header(out: &mut Out, h: &Header<'_>) {
    let kind = TYPES.iter().position(|t| *t == h.kind).unwrap();
    out.text("Account").texts(h.ids);
    out.long(i64::try_from(kind).unwrap()).text(ORIGIN);
    out.text(h.key).long(7).long(1_714_156_685_000);
    out.long(1_100_670_838_951).text("0055g00000AAAAA");
    out.texts(h.nulled).texts(h.diffs).texts(h.changed);
}

pub(super) const HEADER_SCHEMA: &str = r#"{"type":"record","name":"ChangeEventHeader","fields":[
 {"name":"entityName","type":"string"},
 {"name":"recordIds","type":{"type":"array","items":"string"}},
 {"name":"changeType","type":{"type":"enum","name":"ChangeType","symbols":["CREATE","UPDATE","DELETE","UNDELETE","GAP_CREATE","GAP_UPDATE","GAP_DELETE","GAP_UNDELETE","GAP_OVERFLOW","SNAPSHOT"]}},
 {"name":"changeOrigin","type":"string"},{"name":"transactionKey","type":"string"},
 {"name":"sequenceNumber","type":"int"},{"name":"commitTimestamp","type":"long"},
 {"name":"commitNumber","type":"long"},{"name":"commitUser","type":"string"},
 {"name":"nulledFields","type":{"type":"array","items":"string"}},
 {"name":"diffFields","type":{"type":"array","items":"string"}},
 {"name":"changedFields","type":{"type":"array","items":"string"}}]}"#;

pub(super) const ADDRESS: &str = r#"{"type":"record","name":"Address","fields":[
 {"name":"Street","type":["null","string"]},{"name":"City","type":["null","string"]},
 {"name":"State","type":["null","string"]},{"name":"PostalCode","type":["null","string"]},
 {"name":"Country","type":["null","string"]},{"name":"Latitude","type":["null","double"]},
 {"name":"Longitude","type":["null","double"]},{"name":"GeocodeAccuracy","type":["null","string"]}]}"#;

/// Names after the header, in the documented order of Account.
pub(super) const ACCOUNT: [&str; 22] = [
    "Name",
    "Type",
    "ParentId",
    "BillingAddress",
    "ShippingAddress",
    "Phone",
    "Fax",
    "AccountNumber",
    "Website",
    "Sic",
    "Industry",
    "AnnualRevenue",
    "NumberOfEmployees",
    "Ownership",
    "TickerSymbol",
    "Description",
    "Rating",
    "Site",
    "OwnerId",
    "CreatedDate",
    "CreatedById",
    "LastModifiedDate",
];

pub(super) fn account_schema() -> Schema {
    let mut fields = vec![format!(
        r#"{{"name":"ChangeEventHeader","type":{HEADER_SCHEMA}}}"#
    )];
    for name in ACCOUNT {
        let node = match name {
            "BillingAddress" => format!(r#"["null",{ADDRESS}]"#),
            // The second use of a named type is by name.
            "ShippingAddress" => r#"["null","com.sforce.eventbus.Address"]"#.to_owned(),
            "AnnualRevenue" => r#"["null","double"]"#.to_owned(),
            "NumberOfEmployees" => r#"["null","int"]"#.to_owned(),
            "CreatedDate" | "LastModifiedDate" => r#"["null","long"]"#.to_owned(),
            _ => r#"["null","string"]"#.to_owned(),
        };
        let doc = match name {
            "LastModifiedDate" => r#","doc":"LastModifiedDate:DateTime""#,
            _ => "",
        };
        fields.push(format!(
            r#"{{"name":"{name}","type":{node}{doc},"default":null}}"#
        ));
    }
    let json = format!(
        r#"{{"name":"AccountChangeEvent","namespace":"com.sforce.eventbus","type":"record","fields":[{}],"uuid":"x"}}"#,
        fields.join(",")
    );
    Schema::parse(&json).unwrap()
}

pub(super) fn event(h: &Header<'_>, put: impl Fn(&str, &mut Out) -> bool) -> Vec<u8> {
    let mut out = Out::default();
    put_header(&mut out, h);
    for name in ACCOUNT {
        if !put(name, &mut out) {
            out.long(0);
        }
    }
    out.0
}
