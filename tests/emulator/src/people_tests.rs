//! Tests of the invented people.

use super::*;

#[test]
fn every_address_leads_back_to_its_person_and_to_nobody_else() {
    let people = People::new(1, 1_000, 0.8);
    for n in 1..=1_000 {
        for home in [Home::Common, Home::SalesforceOnly] {
            let email = people.person(n, home).email();
            let found = people.find_email(&email.to_uppercase()).unwrap();
            assert_eq!((found.n, found.home), (n, home), "{email}");
        }
    }
    assert!(
        people
            .find_email("ada.lovelace.001001@example.com")
            .is_none()
    );
    assert!(people.find_email("nobody@example.com").is_none());
}

#[test]
fn stamps_never_fall_and_the_search_for_one_finds_the_first() {
    let people = People::new(1, 997, 0.8);
    let stamps: Vec<i64> = (1..=997)
        .map(|n| people.modified_ms(Kind::Person, n))
        .collect();
    assert!(stamps.is_sorted());
    for probe in [
        stamps[0] - 1,
        stamps[0],
        stamps[500],
        stamps[500] + 1,
        i64::MAX,
    ] {
        let expected = stamps.iter().position(|s| *s >= probe).unwrap_or(997) as u64 + 1;
        assert_eq!(people.first_modified_from(Kind::Person, probe), expected);
    }
}

#[test]
fn about_the_asked_share_is_shared() {
    let people = People::new(1, 10_000, 0.8);
    let shared = (1..=10_000)
        .filter(|n| people.is_shared(Kind::Person, *n))
        .count();
    assert!((7_800..8_200).contains(&shared), "{shared}");
    let all = People::new(1, 100, 1.0);
    assert!((1..=100).all(|n| all.is_shared(Kind::Person, n)));
}

#[test]
fn staff_and_employer_agree() {
    for contacts in [9, 10, 57, 1_000] {
        let people = People::new(1, contacts, 0.8);
        for company in 1..=people.count(Kind::Company) {
            for n in people.staff(company) {
                assert_eq!(people.person(n, Home::Common).company, company);
            }
        }
    }
}
