use super::*;
use crate::model::ErrorClass;
use crate::testing::Random;

const TOPIC: &str = "/data/ContactChangeEvent";

fn client() -> Client {
    Client::new(&ServerConfig::default(), TOPIC)
}

fn answer(body: &str) -> HttpResponse {
    HttpResponse {
        status: 200,
        headers: vec![(
            "set-cookie".into(),
            "BAYEUX_BROWSER=abc;Path=/;HttpOnly".into(),
        )],
        body: body.as_bytes().to_vec(),
    }
}

fn greeted() -> Client {
    let mut client = client();
    client.handshake();
    let body = r#"[{"ext":{"replay":true,"payload.format":true},"minimumVersion":"1.0","clientId":"2t80","supportedConnectionTypes":["long-polling"],"channel":"/meta/handshake","id":"1","version":"1.0","successful":true}]"#;
    assert_eq!(client.hear(&answer(body)), Ok(Answer::default()));
    client
}

fn json(request: &HttpRequest) -> serde_json::Value {
    serde_json::from_slice(&request.body).unwrap()
}

#[test]
fn a_conversation_goes_as_documented_with_the_cookie_and_the_replay_id() {
    let mut client = greeted();
    let request = client.subscribe(1_565);
    assert_eq!(request.target, "/cometd/62.0/subscribe");
    let cookie = request.headers.iter().find(|(n, _)| n == "cookie");
    assert_eq!(cookie.unwrap().1, "BAYEUX_BROWSER=abc");
    let said = &json(&request)[0];
    assert_eq!(said["ext"]["replay"][TOPIC], 1_565);
    assert_eq!(
        (&said["clientId"], &said["id"]),
        (&"2t80".into(), &"2".into())
    );
    let body = r#"[{"clientId":"2t80","channel":"/meta/subscribe","id":"2","subscription":"/data/ContactChangeEvent","successful":true}]"#;
    client.hear(&answer(body)).unwrap();

    let request = client.connect();
    assert_eq!(json(&request)[0]["connectionType"], "long-polling");
    let body = r#"[{"data":{"schema":"s","payload":{"ChangeEventHeader":{"entityName":"Contact","recordIds":["003900K0001pPuO"],"changeType":"UPDATE","changeOrigin":"com/salesforce/api/rest/62.0;client=pg_crm_sync",
        "transactionKey":"t-1","sequenceNumber":1,"commitTimestamp":1714156685000,"commitUser":"005","commitNumber":1100670838951,"changedFields":["Phone","LastModifiedDate"]},
        "Phone":"1","LastModifiedDate":"2024-04-26T18:38:05Z"},"event":{"replayId":1565}},"channel":"/data/ContactChangeEvent"},
        {"clientId":"2t80","advice":{"interval":0,"timeout":110000,"reconnect":"retry"},"channel":"/meta/connect","id":"3","successful":true}]"#;
    let heard = client.hear(&answer(body)).unwrap();
    assert_eq!((heard.hold_ms, heard.greet), (Some(110_000), false));
    let [event] = heard.events.as_slice() else {
        panic!("{heard:?}");
    };
    assert_eq!(replay_number(&event.replay_id), Some(1_565));
    let changes = event.changes.as_ref().unwrap();
    // The same identity as over the other stream: a change told by both is one.
    assert_eq!(changes[0].identity, "cdc:t-1:1:Contact:003900K0001pPuOACU");
    assert_eq!(changes[0].occurred_at, 1_714_156_685_000);
    let phone = ("Phone".to_owned(), Some("1".to_owned()));
    assert!(changes[0].fields.contains(&phone));
}

#[test]
fn each_refusal_says_what_follows() {
    let of = |error: &str, ext: &str| {
        let mut client = greeted();
        client.connect();
        let body = format!(
            r#"[{{"channel":"/meta/connect","id":"2","successful":false,"error":"{error}"{ext}}}]"#
        );
        let error = client.hear(&answer(&body)).unwrap_err();
        assert!(!error.advice.is_empty());
        (error.code, error.class)
    };
    let code = |text: &str, class| (text.to_owned(), class);
    assert_eq!(
        of("401::Authentication invalid", ""),
        code("service.auth.error", ErrorClass::Reauth)
    );
    assert_eq!(
        of("403::Unknown client", ""),
        code("unknown_client", ErrorClass::Retry)
    );
    assert_eq!(
        of("403::Organization total events daily limit exceeded", ""),
        code("subscription.limit.exceeded", ErrorClass::Wait)
    );
    assert_eq!(
        of(
            "400::The replayId {5} you provided was invalid.  Please provide a valid ID, -2 to replay all events, or -1 to replay only new events.",
            ""
        ),
        code(
            "subscription.fetch.replayid.validation.failed",
            ErrorClass::Retry
        )
    );
    assert_eq!(
        of("400::no such channel", ""),
        code("channel_refused", ErrorClass::FixMapping)
    );
    let ext = r#","ext":{"sfdc":{"failureReason":"403::Concurrent client limit exceeded"}}"#;
    assert_eq!(
        of("403::Handshake denied", ext),
        code("concurrent.client.limit.exceeded", ErrorClass::Retry)
    );
    assert_eq!(of("", ""), code("stream", ErrorClass::Retry));
}

fn event(kind: &str, changed: &str, fields: &str) -> Change {
    let payload = format!(
        r#"{{"ChangeEventHeader":{{"entityName":"Contact","recordIds":["003900K0001pPuO"],"changeType":"{kind}","transactionKey":"t","sequenceNumber":1,"commitTimestamp":5,"commitNumber":1,"changedFields":{changed}}}{fields}}}"#
    );
    decode(&payload).unwrap().remove(0)
}

fn pairs(change: &Change) -> Vec<(&str, Option<&str>)> {
    change
        .fields
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_deref()))
        .collect()
}

#[test]
fn an_update_is_what_it_names_nulls_and_parts_included() {
    let change = event(
        "UPDATE",
        r#"["Phone","Amount__c","Active__c","MailingAddress.City","Name.FirstName","Description","Gone__c","Fax"]"#,
        r#","Phone":null,"Amount__c":12345678901234567890.10,"Active__c":false,"MailingAddress":{"City":"Leeds","Street":null},"Name":{"FirstName":"Ada","LastName":null},
           "Description":{"diff":"--- x"},"Fax":"","Title":"not named: not changed""#,
    );
    assert_eq!(
        pairs(&change),
        [
            ("Phone", None),
            ("Amount__c", Some("12345678901234567890.10")),
            ("Active__c", Some("false")),
            ("MailingCity", Some("Leeds")),
            ("FirstName", Some("Ada")),
            ("Fax", None),
        ]
    );
    // A difference, and what is named but not shown, is read.
    assert_eq!(change.reread, ["Name", "Description", "Gone__c"]);
}

#[test]
fn a_create_is_what_it_shows() {
    let change = event(
        "CREATE",
        "[]",
        r#","LastName":"King","Phone":null,"MailingAddress":{"City":"York","Street":null}"#,
    );
    assert_eq!(
        pairs(&change),
        [("LastName", Some("King")), ("MailingCity", Some("York"))]
    );
    let gap = event("GAP_UPDATE", "[]", "");
    assert_eq!(gap.kind, ChangeKind::Reread);
    let deleted = event("DELETE", "[]", "");
    assert!(deleted.kind == ChangeKind::Delete && deleted.fields.is_empty());
    let overflow = r#"{"ChangeEventHeader":{"entityName":"Contact","recordIds":["000000000000000AAA"],"changeType":"GAP_OVERFLOW"}}"#;
    assert_eq!(decode(overflow).unwrap()[0].kind, ChangeKind::Overflow);
}

#[test]
fn damaged_answers_are_errors_and_never_panics() {
    let whole = r#"[{"data":{"payload":{"ChangeEventHeader":{"entityName":"Contact","recordIds":["003900K0001pPuO"],"changeType":"UPDATE","changedFields":["A.B","Name"]},"A":{"B":1},"Name":{"FirstName":"x"}},"event":{"replayId":7}},"channel":"/data/ContactChangeEvent"},{"channel":"/meta/connect","id":"2","successful":true}]"#;
    let mut random = Random::new(11);
    for _ in 0..4_000 {
        let bytes = random.damage(whole.as_bytes());
        let mut client = greeted();
        client.connect();
        let response = HttpResponse {
            status: 200,
            headers: Vec::new(),
            body: bytes,
        };
        let _ = client.hear(&response);
    }
    let mut client = greeted();
    client.connect();
    for body in [
        "",
        "<html>",
        "{}",
        "[]",
        "[{}]",
        r#"[{"channel":"/meta/connect","id":"77","successful":true}]"#,
    ] {
        let error = client.hear(&answer(body)).unwrap_err();
        assert_eq!(error.class, ErrorClass::Retry, "{body}");
    }
}
