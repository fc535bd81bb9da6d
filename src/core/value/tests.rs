#![allow(clippy::unwrap_used, reason = "a failed test panics")]

use super::*;

fn v(text: &str) -> Value {
    Some(text.to_owned())
}

fn canon(t: FieldType, text: &str) -> Value {
    canonical(t, text).unwrap()
}

#[test]
fn instants_in_every_spelling_of_both_crms_become_one() {
    for raw in [
        "2026-05-01T07:25:37.000+0000",
        "2026-05-01T07:25:37.000Z",
        "2026-05-01T07:25:37Z",
        "2026-05-01T09:25:37+02:00",
        "2026-05-01 07:25:37+00",
        "2026-05-01 12:55:37.000499+05:30",
        "1777620337000",
    ] {
        assert_eq!(
            canon(FieldType::DateTime, raw),
            v("2026-05-01T07:25:37.000Z"),
            "{raw}"
        );
    }
    assert_eq!(
        canon(FieldType::DateTime, "2026-12-31"),
        v("2026-12-31T00:00:00.000Z")
    );
    assert_eq!(
        canon(FieldType::DateTime, "-1"),
        v("1969-12-31T23:59:59.999Z")
    );
}

#[test]
fn dates_come_as_text_days_or_milliseconds() {
    for raw in [
        "2026-12-31",
        "2026-12-31T00:00:00Z",
        "20818",
        "1798675200000",
    ] {
        assert_eq!(canon(FieldType::Date, raw), v("2026-12-31"), "{raw}");
    }
}

#[test]
fn what_is_not_of_the_type_is_refused_with_its_text() {
    for (t, raw) in [
        (FieldType::Number, "abc"),
        (FieldType::Number, "NaN"),
        (FieldType::Number, "1e99999999"),
        (FieldType::Number, "."),
        (FieldType::Boolean, "maybe"),
        (FieldType::Date, "2026-02-30"),
        (FieldType::Date, "31.12.2026"),
        (FieldType::DateTime, "2026-01-01T25:00:00Z"),
        (FieldType::DateTime, "infinity"),
        (FieldType::Time, "7 o'clock"),
    ] {
        let error = canonical(t, raw).unwrap_err();
        assert_eq!(error.text, raw);
    }
}

#[test]
fn the_empty_string_is_null_in_every_type() {
    for t in ALL {
        assert_eq!(canon(t, ""), None);
        assert!(same(t, &None, &v("")));
    }
}

const ALL: [FieldType; 8] = [
    FieldType::Text,
    FieldType::Number,
    FieldType::Boolean,
    FieldType::Date,
    FieldType::DateTime,
    FieldType::Time,
    FieldType::MultiChoice,
    FieldType::Reference,
];

#[test]
fn numbers_are_compared_by_value_without_float_loss() {
    let same = |a: &str, b: &str| same(FieldType::Number, &v(a), &v(b));
    assert!(same("5000.00", "5000"));
    assert!(same("5e3", "5000"));
    assert!(same("-0", "0.00"));
    assert!(same("0.10", ".1"));
    assert!(same("1.0E7", "10000000"));
    assert!(!same("123456789012345678", "123456789012345679"));
    assert!(!same("9007199254740993", "9007199254740992"));
    assert!(!same("0.4", "0.40000000000000002"));
    assert!(!same("1", "-1"));
    assert!(!same("1", "10"));
}

#[test]
fn a_number_written_out_in_binary_is_the_number_that_was_sent() {
    let long = v("0.40000000000000002220446049250313080847263336181640625");
    assert!(same(FieldType::Number, &long, &v("0.4")));
    assert!(same(FieldType::Number, &v("0.4"), &long));
    assert!(!same(FieldType::Number, &long, &v("0.41")));
    let integers = ["100000000000000000000001", "100000000000000000000002"];
    assert!(!same(FieldType::Number, &v(integers[0]), &v(integers[1])));
}

#[test]
fn equality_follows_the_type() {
    let instant = FieldType::DateTime;
    assert!(same(
        instant,
        &v("2026-05-01T07:25:37.000Z"),
        &v("2026-05-01 09:25:37+02")
    ));
    assert!(!same(
        instant,
        &v("2026-05-01T07:25:37.000Z"),
        &v("2026-05-01T07:25:37.001Z")
    ));
    assert!(same(FieldType::Boolean, &v("t"), &v("true")));
    assert!(same(FieldType::MultiChoice, &v("a;b"), &v("b;a;a")));
    assert!(same(FieldType::MultiChoice, &v(";"), &None));
    assert!(!same(FieldType::MultiChoice, &v("a;b"), &v("a")));
    assert!(!same(FieldType::Text, &v("a"), &v("A")));
    assert!(!same(FieldType::Text, &v("a"), &v("a ")));
    assert!(!same(FieldType::Text, &v("a"), &None));
}

#[test]
fn postgres_output_becomes_canonical_text_and_goes_back() {
    let from = |t, s| from_postgres(t, s).unwrap();
    assert_eq!(
        from(FieldType::DateTime, "2026-12-31 00:00:00+00"),
        v("2026-12-31T00:00:00.000Z")
    );
    assert_eq!(from(FieldType::Boolean, "t"), v("true"));
    assert_eq!(from(FieldType::Date, "2026-12-31"), v("2026-12-31"));
    assert_eq!(from(FieldType::Time, "10:30:00"), v("10:30:00.000"));
    assert_eq!(from(FieldType::Number, "5000.00"), v("5000.00"));
    assert_eq!(
        from(FieldType::MultiChoice, r#"{a,"b c","d\"e",NULL}"#),
        v("a;b c;d\"e")
    );
    assert_eq!(from(FieldType::MultiChoice, "{}"), None);
    assert_eq!(
        to_postgres(FieldType::MultiChoice, "a;b c;d\"e"),
        r#"{"a","b c","d\"e"}"#
    );
    assert_eq!(to_postgres(FieldType::Text, "a;b"), "a;b");
    for (t, bad) in [
        (FieldType::DateTime, "infinity"),
        (FieldType::Date, "0044-03-15 BC"),
        (FieldType::Number, "NaN"),
        (FieldType::MultiChoice, "{a,{b}}"),
        (FieldType::MultiChoice, r#"{"a"#),
    ] {
        assert!(from_postgres(t, bad).is_err(), "{bad}");
    }
}

#[test]
fn nul_never_reaches_postgres() {
    assert_eq!(canon(FieldType::Text, "a\0b"), v("ab"));
    assert_eq!(canon(FieldType::Text, "\0"), None);
}

#[test]
fn canonical_text_stays_as_it_is_and_any_text_is_survived() {
    let seed = 0x5eed_0001;
    let mut random = crate::testing::Random::new(seed);
    for round in 0..20_000 {
        let text = random.text(40);
        for t in ALL {
            let Ok(Some(once)) = canonical(t, &text) else {
                continue;
            };
            let again = canonical(t, &once).unwrap();
            let at = format!("seed {seed:#x} round {round} {t:?} {text:?}");
            assert_eq!(again.as_deref(), Some(once.as_str()), "{at}");
            let clean = text.replace('\0', "");
            assert!(same(t, &v(&once), &v(&clean)), "{at}");
            let pg = to_postgres(t, &once).into_owned();
            assert_eq!(from_postgres(t, &pg).unwrap(), v(&once), "{at}");
        }
        let _ = parse_instant(&text);
    }
}
