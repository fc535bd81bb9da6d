//! Maps that do more than copy: functions, value maps with a chosen way back,
//! several columns as one value. Named by what they prevent.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{A, B, World, only, policy, text, writes};
use crm_core::group::{Part, SideField};
use crm_core::mapping::{Images, Transform, Unmapped, between};
use crm_core::model::Value;
use crm_core::strategy::Strategy::LastWriteWins;
use crm_core::structure::{Structure, pack, unpack};

const T: i64 = 1_000_000;

fn lww(value: &str) -> World {
    World::at_rest(policy(LastWriteWins, &["alpha", "beta", "local"]), value)
}

fn parts(names: &[&str]) -> Vec<Part> {
    names
        .iter()
        .map(|name| Part {
            field: (*name).to_owned(),
            max_length: Some(40),
            required: false,
            default: None,
        })
        .collect()
}

/// `alpha` has an address in two columns, `beta` a street with line breaks.
fn address(list: &[&str], street: &str) -> World {
    let mut w = lww("");
    let mut column = SideField::text("address");
    column.from_side = Transform::Compose(Structure::Lines);
    column.to_side = Transform::Split(Structure::Lines, 2);
    column.parts = parts(&["address", "address2"]);
    w.group.fields[0].sides[A] = Some(column);
    w.entity.records[A].values[0] = cells(list);
    w.entity.records[B].values[0] = text(street);
    w
}

fn cells(list: &[&str]) -> Value {
    let cells: Vec<Value> = list.iter().map(|c| text(c)).collect();
    pack(&cells)
}

#[test]
fn halves_of_two_edits_of_an_address_never_meet_in_one_record() {
    let mut w = address(&["1 High St", "Flat 2"], "1 High St\nFlat 2");
    // Somebody moves the person in one CRM, another one in the other, at once.
    w.remote(A, &cells(&["9 Low Rd", "Flat 2"]).unwrap(), T);
    let outcome = w.remote(B, "7 Mill Ln\nUnit 3", T + 400);
    assert!(only(&outcome).conflict, "both changed the address");
    let (a, b) = (w.row(A), w.row(B));
    let agreed = between(
        w.group.column(0, A).unwrap(),
        w.group.column(0, B).unwrap(),
        &a,
        &Images::default(),
    );
    assert_eq!(agreed.unwrap(), b, "both hold one whole address");
    assert!(
        b == text("9 Low Rd\nFlat 2") || b == text("7 Mill Ln\nUnit 3"),
        "and it is somebody's: {b:?}"
    );
}

#[test]
fn an_address_of_two_columns_reaches_one_with_line_breaks_and_back() {
    let mut w = address(&["1 High St", ""], "1 High St");
    let outcome = w.remote(A, &cells(&["1 High St", "Floor 3"]).unwrap(), T);
    assert_eq!(writes(&outcome), [(B, text("1 High St\nFloor 3"))]);
    w.send(B, "1 High St\nFloor 3", T + 100);
    let outcome = w.remote(B, "2 Park Ave\r\nSuite 9\r\nRear", T + 60_000);
    assert_eq!(
        writes(&outcome),
        [(A, cells(&["2 Park Ave", "Suite 9, Rear"]))]
    );
    // The third line has no column of its own; where it has one it stays.
    assert_eq!(w.row(B), text("2 Park Ave\r\nSuite 9\r\nRear"));
}

#[test]
fn names_split_at_the_last_word_and_join_again() {
    let name = |full: &str| {
        let split = Transform::Split(Structure::Words, 2);
        unpack(&split.apply(&text(full), &Images::default()).unwrap(), 2)
    };
    assert_eq!(
        name("Ada King Lovelace"),
        [text("Ada King"), text("Lovelace")]
    );
    assert_eq!(name("  Plato "), [None, text("Plato")]);
    let three = Transform::Split(Structure::Words, 3);
    let image = three.apply(&text("Ada B. C. King"), &Images::default());
    assert_eq!(
        unpack(&image.unwrap(), 3),
        [text("Ada"), text("B. C."), text("King")]
    );
    let compose = Transform::Compose(Structure::Words);
    let full = compose.apply(&cells(&["Ada", "King"]), &Images::default());
    assert_eq!(full, Ok(text("Ada King")));
}

#[test]
fn what_split_makes_is_taken_for_the_same_when_it_comes_back() {
    let seed = std::env::var("SEED").map_or(7, |s| s.parse().unwrap());
    println!("SEED={seed}");
    let mut state: u64 = seed;
    let mut below = |n: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let alphabet: Vec<char> = "ab \n\r,é".chars().collect();
    let none = Images::default();
    for structure in [Structure::Lines, Structure::Words] {
        for width in 2..5 {
            for _ in 0..2_000 {
                let length = below(14);
                let any: String = (0..length)
                    .map(|_| alphabet[below(alphabet.len())])
                    .collect();
                let split = Transform::Split(structure, width);
                let compose = Transform::Compose(structure);
                let list = split.apply(&text(&any), &none).unwrap();
                assert_eq!(unpack(&list, width).len(), width);
                let joined = compose.apply(&list, &none).unwrap();
                let again = split.apply(&joined, &none).unwrap();
                assert_eq!(
                    compose.apply(&again, &none).unwrap(),
                    joined,
                    "{structure:?} {width} {any:?}"
                );
            }
        }
    }
}

#[test]
fn a_required_half_of_a_list_gets_the_default_or_is_refused() {
    let mut to = SideField::text("FirstName");
    to.to_side = Transform::Split(Structure::Words, 2);
    to.parts = parts(&["FirstName", "LastName"]);
    to.parts[1].required = true;
    let from = SideField::text("fullname");
    let none = Images::default();
    assert_eq!(between(&from, &to, &None, &none), Err(Unmapped::Required));
    to.parts[1].default = Some("(unknown)".to_owned());
    assert_eq!(
        between(&from, &to, &None, &none),
        Ok(cells(&["", "(unknown)"]))
    );
}

#[test]
fn a_default_stands_in_for_blank_also_where_the_catalog_does_not_demand_it() {
    let mut to = SideField::text("Company");
    to.default = Some("(private)".to_owned());
    let from = SideField::text("company");
    let none = Images::default();
    assert_eq!(between(&from, &to, &None, &none), Ok(text("(private)")));
    assert_eq!(between(&from, &to, &text("Acme"), &none), Ok(text("Acme")));
}

/// `alpha` calls two stages what `beta` calls one; back goes the chosen one.
fn stages() -> World {
    let mut w = lww("");
    let pairs = |list: &[(&str, &str)]| {
        let own = list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
        Transform::ValueMap(Arc::new(own.collect()))
    };
    let column = w.group.fields[0].sides[B].as_mut().unwrap();
    column.to_side = pairs(&[("new", "Open"), ("attempted", "Open"), ("won", "Closed")]);
    column.from_side = pairs(&[
        ("Open", "new"),
        ("Open", "new"),
        ("Open", "attempted"),
        ("Closed", "won"),
    ]);
    w.entity.records[A].values[0] = text("attempted");
    w.entity.records[B].values[0] = text("Open");
    w
}

#[test]
fn one_of_several_values_that_share_a_counterpart_is_not_overwritten_by_the_chosen_one() {
    let mut w = stages();
    // The same again is no news, and what comes back is not bounced.
    assert!(w.page(B, "Open", T).writes.is_empty());
    let outcome = w.remote(A, "new", T + 1_000);
    assert!(
        writes(&outcome).is_empty(),
        "the other side says so already"
    );
    w.remote(A, "attempted", T + 2_000);
    assert_eq!((w.row(A), w.row(B)), (text("attempted"), text("Open")));
    let outcome = w.remote(B, "Closed", T + 60_000);
    assert_eq!(writes(&outcome), [(A, text("won"))]);
    w.send(A, "won", T + 60_100);
    let outcome = w.remote(B, "Open", T + 120_000);
    assert_eq!(
        writes(&outcome),
        [(A, text("new"))],
        "back goes the chosen one"
    );
}

/// `beta` shows upper case.
fn shouting() -> World {
    let mut w = lww("base");
    let column = w.group.fields[0].sides[B].as_mut().unwrap();
    column.to_side = Transform::Function(3);
    column.from_side = Transform::Function(4);
    w.entity.records[B].values[0] = text("BASE");
    w
}

#[test]
fn an_image_that_is_missing_is_asked_for_and_then_used() {
    let mut w = shouting();
    let observed = w.event(A, crm_core::decide::Source::Remote, "calm", T);
    let before = w.entity.clone();
    let mut outcome = w.observe(&observed);
    let first = w.entity.images.take_missing();
    assert!(first.contains(&(3, "calm".to_owned())), "{first:?}");
    let (mut missing, mut images) = (first, Images::default());
    for _ in 0..6 {
        for (function, value) in std::mem::take(&mut missing) {
            let image = match function {
                3 => value.to_uppercase(),
                _ => value.to_lowercase(),
            };
            images.put(function, value, Ok(Some(image)));
        }
        // Decided again with what was asked for.
        w.entity = before.clone();
        w.entity.images = images.clone();
        outcome = w.observe(&observed);
        missing = w.entity.images.take_missing();
        if missing.is_empty() {
            break;
        }
    }
    assert!(missing.is_empty(), "asks for ever: {missing:?}");
    assert_eq!(writes(&outcome), [(B, text("CALM"))]);
}

#[test]
fn a_function_that_fails_holds_its_value_back_and_says_why() {
    let mut w = shouting();
    let no = Err("division by zero (22012)".to_owned());
    w.entity.images.put(3, "bad".to_owned(), no);
    w.entity.images.put(4, "BASE".to_owned(), Ok(text("base")));
    let outcome = w.remote(A, "bad", T);
    let held = only(&outcome).held.clone().unwrap();
    assert!(
        held.contains("beta.Phone") && held.contains("division by zero"),
        "{held}"
    );
    assert!(writes(&outcome).is_empty());
    assert_eq!((w.row(A), w.row(B)), (text("bad"), text("BASE")));
}
