//! Tests of the comparison of two catalogs, and of every policy.

use super::*;

fn shape(name: &str, field_type: FieldType) -> Shape {
    Shape {
        name: name.to_owned(),
        label: format!("The {name}"),
        field_type,
        remote_type: format!("{field_type:?}"),
        max_length: None,
        read_only: false,
        choices: Vec::new(),
    }
}

fn text(name: &str) -> Shape {
    shape(name, FieldType::Text)
}

fn mirrored(field: &str, gone: bool, mapped: bool) -> Mirrored {
    Mirrored {
        field: field.to_owned(),
        gone,
        mapped,
    }
}

fn told(changes: &[SchemaChange]) -> Vec<(&str, &str)> {
    changes
        .iter()
        .map(|c| (c.drift.name(), c.field.as_str()))
        .collect()
}

#[test]
fn a_catalog_that_is_the_same_tells_nothing() {
    let fields = [text("email"), shape("amount", FieldType::Number)];
    let ours = [mirrored("email", false, true)];
    assert_eq!(compare(&fields, &ours, &fields, true), Vec::new());
}

#[test]
fn the_first_description_of_an_object_has_no_new_fields() {
    assert_eq!(compare(&[], &[], &[text("email")], true), Vec::new());
}

#[test]
fn an_object_that_was_not_described_loses_no_field() {
    let ours = [mirrored("email", false, true)];
    assert_eq!(compare(&[text("email")], &ours, &[], true), Vec::new());
}

#[test]
fn a_field_comes_another_goes_and_comes_back() {
    let before = [text("email"), text("fax")];
    let ours = [
        mirrored("email", false, false),
        mirrored("fax", false, false),
    ];
    let mut now = vec![text("email"), shape("score", FieldType::Number)];
    let changes = compare(&before, &ours, &now, false);
    assert_eq!(told(&changes), [("removed", "fax"), ("added", "score")]);
    // Read again after it was noted: the same is not told twice.
    let ours = [
        mirrored("email", false, false),
        mirrored("fax", true, false),
    ];
    assert_eq!(compare(&now, &ours, &now, false), Vec::new());
    let before = now.clone();
    now.push(text("fax"));
    let changes = compare(&before, &ours, &now, false);
    assert_eq!(told(&changes), [("restored", "fax")]);
}

#[test]
fn a_mirrored_field_that_no_catalog_knows_any_more_is_missed_all_the_same() {
    let now = [text("email")];
    let ours = [
        mirrored("email", false, false),
        mirrored("fax", false, false),
    ];
    assert_eq!(
        told(&compare(&now, &ours, &now, true)),
        [("removed", "fax")]
    );
}

#[test]
fn a_rename_is_known_by_label_and_type_and_only_when_no_other_fits() {
    let mut to = text("Level_New__c");
    to.label = "The Level__c".to_owned();
    let before = [text("Level__c"), text("Name")];
    let ours = [mirrored("Level__c", false, true)];
    let now = [to.clone(), text("Name")];
    let changes = compare(&before, &ours, &now, true);
    assert_eq!(told(&changes), [("renamed", "Level_New__c")]);
    assert_eq!(changes[0].drift.rests(&changes[0].field), Some("Level__c"));
    // A CRM whose names never change: two fields that look alike.
    let changes = compare(&before, &ours, &now, false);
    assert_eq!(
        told(&changes),
        [("removed", "Level__c"), ("added", "Level_New__c")]
    );
    // Two fields could be it.
    let mut twin = text("Level_Other__c");
    twin.label.clone_from(&to.label);
    let changes = compare(&before, &ours, &[to.clone(), twin], true);
    assert!(
        changes.iter().all(|c| c.drift.name() != "renamed"),
        "{changes:?}"
    );
    // Another type is another field.
    to.field_type = FieldType::Number;
    let changes = compare(&before, &ours, &[to], true);
    assert!(
        changes.iter().all(|c| c.drift.name() != "renamed"),
        "{changes:?}"
    );
}

#[test]
fn a_new_type_is_judged_by_the_column_that_holds_it() {
    let fit = |from: Shape, to: Shape| match &compare(&[from], &[], &[to], true)[..] {
        [
            SchemaChange {
                drift: Drift::Retyped { fit, .. },
                ..
            },
        ] => *fit,
        other => panic!("{other:?}"),
    };
    let mut longer = text("a");
    longer.max_length = Some(32_000);
    let mut locked = text("a");
    locked.read_only = true;
    assert_eq!(fit(text("a"), longer), Fit::Same);
    assert_eq!(fit(text("a"), locked), Fit::Same);
    assert_eq!(fit(text("a"), shape("a", FieldType::Reference)), Fit::Same);
    assert_eq!(fit(shape("a", FieldType::Number), text("a")), Fit::ToText);
    assert_eq!(
        fit(shape("a", FieldType::MultiChoice), text("a")),
        Fit::ToText
    );
    assert_eq!(fit(text("a"), shape("a", FieldType::Number)), Fit::Other);
    assert_eq!(
        fit(shape("a", FieldType::Date), shape("a", FieldType::DateTime)),
        Fit::Other
    );
}

#[test]
fn choices_are_told_by_what_came_and_went_and_not_by_their_order() {
    let with = |choices: &[&str]| {
        let mut s = text("stage");
        s.choices = choices.iter().map(|c| (*c).to_owned()).collect();
        s
    };
    assert_eq!(
        compare(&[with(&["a", "b"])], &[], &[with(&["b", "a"])], true),
        Vec::new()
    );
    let changes = compare(&[with(&["a", "b"])], &[], &[with(&["b", "c"])], true);
    let drift = Drift::Choices {
        added: vec!["c".to_owned()],
        removed: vec!["a".to_owned()],
    };
    assert_eq!(changes, [change("stage", drift)]);
}

#[test]
fn each_policy_does_what_its_name_says() {
    use Action::{Apply, Ask, Done, Note, Pause};
    let retyped = |fit| Drift::Retyped {
        from: text("f"),
        to: text("f"),
        fit,
    };
    let choices = || Drift::Choices {
        added: vec!["x".to_owned()],
        removed: Vec::new(),
    };
    let (plain, mapped) = (mirrored("f", false, false), mirrored("f", false, true));
    let rows: [(Drift, Option<&Mirrored>, [Action; 4]); 10] = [
        (
            Drift::Added { to: text("f") },
            None,
            [Note, Apply, Ask, Pause],
        ),
        (
            Drift::Renamed {
                was: "g".to_owned(),
                to: text("f"),
            },
            Some(&plain),
            [Note, Apply, Ask, Pause],
        ),
        (
            Drift::Renamed {
                was: "g".to_owned(),
                to: text("f"),
            },
            None,
            [Note; 4],
        ),
        (
            Drift::Restored { to: text("f") },
            Some(&plain),
            [Note, Apply, Ask, Pause],
        ),
        (
            Drift::Removed { from: None },
            Some(&plain),
            [Done, Done, Done, Pause],
        ),
        (
            retyped(Fit::Same),
            Some(&plain),
            [Apply, Apply, Apply, Pause],
        ),
        (
            retyped(Fit::ToText),
            Some(&plain),
            [Note, Apply, Ask, Pause],
        ),
        (retyped(Fit::Other), Some(&plain), [Note, Ask, Ask, Pause]),
        (choices(), Some(&plain), [Note; 4]),
        (choices(), Some(&mapped), [Note, Note, Ask, Pause]),
    ];
    for (drift, mirrored, expected) in rows {
        let change = change("f", drift);
        let policies = ["ignore", "add", "ask", "pause"].map(DriftPolicy::by_name);
        let found = policies.map(|p| action(p, &change, mirrored));
        assert_eq!(found, expected, "{change:?}");
    }
}
