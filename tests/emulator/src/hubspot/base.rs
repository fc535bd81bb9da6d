//! Values of records that nobody has written yet, straight from the invented people, and the
//! reading of the built-in property tables.

use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat};

use super::model::{Catalog, Choice, Facts, Property, Type};
use crate::people::{Company, Deal, FIRST_MS, Home, Kind, People, Person, push_number};

/// Where a never-written value comes from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Source {
    Empty,
    Constant(&'static str),
    /// A stamp or id kept beside the properties: the same for base and new records.
    Meta(Meta),
    /// A number below the bound.
    Number(u64),
    /// The number of the record, from 1.
    Serial,
    Bool,
    Choice,
    Date,
    DateTime,
    /// The same instant for all such properties of a record, or an hour later.
    Starts,
    Ends,
    Owner,
    /// A field of the person, company or deal.
    Field(Field),
}

/// Facts about the record itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Meta {
    Id,
    Created,
    CreatedEpoch,
    Modified,
    AppId,
}

#[rustfmt::skip]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Field {
    First, Last, Email, EmailDomain, FullName, Title, Phone, PhoneDigits, Mobile, Street, City, State,
    Zip, Country, Employer, EmployerDomain, CompanyId, Name, Domain, Revenue, Employees, Amount, Stage,
    Close, Subject, Number, Year,
}

impl Source {
    fn parse(text: &'static str) -> Source {
        if let Some(value) = text.strip_prefix('=') {
            return Source::Constant(value);
        }
        if let Some(bound) = text.strip_prefix("num:") {
            return Source::Number(bound.parse().unwrap_or(0));
        }
        Source::Field(match text {
            "id" => return Source::Meta(Meta::Id),
            "created" => return Source::Meta(Meta::Created),
            "created_epoch" => return Source::Meta(Meta::CreatedEpoch),
            "modified" => return Source::Meta(Meta::Modified),
            "app_id" => return Source::Meta(Meta::AppId),
            "bool" => return Source::Bool,
            "pick" => return Source::Choice,
            "date" => return Source::Date,
            "datetime" => return Source::DateTime,
            "starts" => return Source::Starts,
            "ends" => return Source::Ends,
            "owner" => return Source::Owner,
            "first" => Field::First,
            "last" => Field::Last,
            "email" => Field::Email,
            "email_domain" => Field::EmailDomain,
            "full_name" => Field::FullName,
            "title" => Field::Title,
            "phone" => Field::Phone,
            "phone_digits" => Field::PhoneDigits,
            "mobile" => Field::Mobile,
            "street" => Field::Street,
            "city" => Field::City,
            "state" => Field::State,
            "zip" => Field::Zip,
            "country" => Field::Country,
            "employer" => Field::Employer,
            "employer_domain" => Field::EmployerDomain,
            "company_id" => Field::CompanyId,
            "name" => Field::Name,
            "domain" => Field::Domain,
            "revenue" => Field::Revenue,
            "employees" => Field::Employees,
            "amount" => Field::Amount,
            "stage" => Field::Stage,
            "close" => Field::Close,
            "subject" => Field::Subject,
            "number" => Field::Number,
            "year" => Field::Year,
            _ => return Source::Empty,
        })
    }
}

/// What a base record is about.
pub(crate) enum Subject {
    Person(Person, Company),
    Company(Company),
    Deal(Deal),
    Other,
}

impl Subject {
    pub(crate) fn of(people: &People, kind: Kind, n: u64) -> Subject {
        match kind {
            Kind::Person => {
                let person = people.person(n, Home::Common);
                let company = people.company(person.company.max(1), Home::Common);
                Subject::Person(person, company)
            }
            Kind::Company => Subject::Company(people.company(n, Home::Common)),
            Kind::Deal => Subject::Deal(people.deal(n)),
            _ => Subject::Other,
        }
    }
}

/// Appends the ISO form of `ms`, with milliseconds.
pub(crate) fn push_iso(out: &mut Vec<u8>, ms: i64) {
    let days = ms.div_euclid(86_400_000);
    let rest = ms.rem_euclid(86_400_000) as u64;
    // Civil date from day number, after the proleptic Gregorian calendar.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    push_number(out, year.max(0) as u64, 4);
    out.push(b'-');
    push_number(out, month as u64, 2);
    out.push(b'-');
    push_number(out, day as u64, 2);
    out.push(b'T');
    push_number(out, rest / 3_600_000, 2);
    out.push(b':');
    push_number(out, rest / 60_000 % 60, 2);
    out.push(b':');
    push_number(out, rest / 1_000 % 60, 2);
    out.push(b'.');
    push_number(out, rest % 1_000, 3);
    out.push(b'Z');
}

/// The ISO form of `ms`; milliseconds only when there are some.
pub(crate) fn iso_short(ms: i64) -> String {
    let format = if ms % 1_000 == 0 {
        SecondsFormat::Secs
    } else {
        SecondsFormat::Millis
    };
    DateTime::from_timestamp_millis(ms)
        .map(|t| t.to_rfc3339_opts(format, true))
        .unwrap_or_default()
}

/// Appends the base value of a property of record `n`; false when it is empty. What is appended
/// needs no escaping in JSON. `salt` tells properties apart.
pub(crate) fn push_base(
    people: &People,
    kind: Kind,
    n: u64,
    subject: &Subject,
    property: &Property,
    salt: u64,
    out: &mut Vec<u8>,
) -> bool {
    let draw = |bound| people.draw(kind, n, salt, bound);
    match &property.source {
        Source::Empty | Source::Meta(_) => return false,
        Source::Constant(text) => out.extend_from_slice(text.as_bytes()),
        Source::Number(bound) => push_number(out, draw(*bound), 1),
        Source::Serial => push_number(out, n, 1),
        Source::Bool => out.extend_from_slice(if draw(2) == 0 { b"false" } else { b"true" }),
        Source::Choice => {
            let at = draw(property.choices.len() as u64) as usize;
            match property.choices.get(at) {
                Some(choice) => out.extend_from_slice(choice.value.as_bytes()),
                None => return false,
            }
        }
        Source::Date => {
            push_iso(out, FIRST_MS + draw(1_000) as i64 * 86_400_000);
            out.truncate(out.len() - "T00:00:00.000Z".len());
        }
        Source::DateTime => {
            push_iso(out, FIRST_MS + draw(31_000_000) as i64 * 1_000);
            // Whole seconds are shown without milliseconds.
            out.truncate(out.len() - ".000Z".len());
            out.push(b'Z');
        }
        Source::Starts | Source::Ends => {
            let hour = people.draw(kind, n, 0, 8_000) + u64::from(property.source == Source::Ends);
            push_iso(out, FIRST_MS + hour as i64 * 3_600_000);
            out.truncate(out.len() - ".000Z".len());
            out.push(b'Z');
        }
        Source::Owner => push_number(out, super::directory::owner_id(draw(3)), 1),
        Source::Field(field) => return push_field(*field, n, subject, property, out),
    }
    true
}

fn push_field(
    field: Field,
    n: u64,
    subject: &Subject,
    property: &Property,
    out: &mut Vec<u8>,
) -> bool {
    match subject {
        Subject::Person(person, company) => push_person(field, person, company, out),
        Subject::Company(company) => push_company(field, company, out),
        Subject::Deal(deal) => push_deal(field, deal, property, out),
        Subject::Other => {
            let text: &[u8] = match field {
                Field::Subject => b"About order ",
                Field::Number => b"S-",
                Field::Name => b"Part ",
                _ => return false,
            };
            out.extend_from_slice(text);
            push_number(out, n, 6);
            true
        }
    }
}

fn push_person(field: Field, person: &Person, company: &Company, out: &mut Vec<u8>) -> bool {
    let employed = person.company != 0;
    let (city, state, zip, country) = person.place();
    match field {
        Field::First => out.extend_from_slice(person.first.as_bytes()),
        Field::Last => out.extend_from_slice(person.last.as_bytes()),
        Field::Email => person.push_email(out),
        Field::EmailDomain => out.extend_from_slice(b"example.com"),
        Field::FullName => {
            out.extend_from_slice(person.first.as_bytes());
            out.push(b' ');
            out.extend_from_slice(person.last.as_bytes());
        }
        Field::Title => out.extend_from_slice(person.title.as_bytes()),
        Field::Phone => person.push_phone(0, out),
        Field::PhoneDigits => {
            let start = out.len();
            person.push_phone(0, out);
            let digits: Vec<u8> = out[start..]
                .iter()
                .copied()
                .filter(u8::is_ascii_digit)
                .collect();
            out.truncate(start);
            out.extend_from_slice(&digits);
        }
        Field::Mobile => person.push_phone(1, out),
        Field::Street => person.push_street(out),
        Field::City => out.extend_from_slice(city.as_bytes()),
        Field::State => out.extend_from_slice(state.as_bytes()),
        Field::Zip => out.extend_from_slice(zip.as_bytes()),
        Field::Country => out.extend_from_slice(country.as_bytes()),
        Field::Employer if employed => company.push_name(out),
        Field::EmployerDomain if employed => company.push_domain(out),
        Field::CompanyId if employed => push_number(out, person.company, 1),
        _ => return false,
    }
    true
}

fn push_company(field: Field, company: &Company, out: &mut Vec<u8>) -> bool {
    let (city, state, zip, country) = company.place();
    match field {
        Field::Name => company.push_name(out),
        Field::Domain => company.push_domain(out),
        Field::Revenue => push_number(out, company.revenue, 1),
        Field::Employees => push_number(out, company.employees, 1),
        Field::Phone => company.push_phone(out),
        Field::Street => company.push_street(out),
        Field::City => out.extend_from_slice(city.as_bytes()),
        Field::State => out.extend_from_slice(state.as_bytes()),
        Field::Zip => out.extend_from_slice(zip.as_bytes()),
        Field::Country => out.extend_from_slice(country.as_bytes()),
        Field::Year => push_number(out, 1950 + company.trade() as u64 * 4, 4),
        _ => return false,
    }
    true
}

fn push_deal(field: Field, deal: &Deal, property: &Property, out: &mut Vec<u8>) -> bool {
    match field {
        Field::Name => deal.push_name(out),
        Field::Amount => deal.push_amount(out),
        Field::Stage => match property.choices.get(deal.stage) {
            Some(choice) => out.extend_from_slice(choice.value.as_bytes()),
            None => return false,
        },
        Field::Close => {
            push_iso(out, deal.close_ms);
            out.truncate(out.len() - ".000Z".len());
            out.push(b'Z');
        }
        _ => return false,
    }
    true
}

/// Reads a property table; `sync` says whether the properties marked `P` exist.
pub(crate) fn catalog(facts: &Facts, sync: bool) -> Catalog {
    let mut catalog = Catalog::default();
    for line in facts.catalog.lines().filter(|l| !l.starts_with('#')) {
        let columns: Vec<&'static str> = line.split('|').collect();
        let [name, label, kind, field, group, flags, source, ..] = columns[..] else {
            continue;
        };
        let has = |flag| flags.contains(flag);
        if has('P') && !sync {
            continue;
        }
        let choices = columns
            .get(7)
            .map(|c| c.split(';').filter(|v| !v.is_empty()).map(choice).collect())
            .unwrap_or_default();
        catalog.add(Property {
            name: name.to_owned(),
            label: label.to_owned(),
            description: String::new(),
            kind: Type::parse(kind).unwrap_or(Type::Text),
            field_type: field.to_owned(),
            group: group.to_owned(),
            choices,
            read_only: has('R'),
            calculated: has('K'),
            unique: has('U'),
            hidden: has('H'),
            custom: has('C'),
            echoed: has('W'),
            default: has('D'),
            owner: has('O'),
            archived: false,
            created_ms: FIRST_MS - 86_400_000,
            updated_ms: FIRST_MS - 86_400_000,
            source: Source::parse(source),
            key: format!("\"{name}\":").into_bytes(),
        });
    }
    catalog
}

/// A choice whose label is made from its value.
fn choice(value: &str) -> Choice {
    let mut label = String::new();
    for (i, word) in value.split('_').enumerate() {
        let mut letters = word.chars();
        if let Some(first) = letters.next() {
            let space = if i > 0 { " " } else { "" };
            let rest = letters.as_str().to_lowercase();
            let _ = write!(label, "{space}{}{rest}", first.to_uppercase());
        }
    }
    Choice {
        value: value.to_owned(),
        label,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hubspot::model::OBJECTS;

    #[test]
    fn stamps_are_written_as_chrono_writes_them() {
        for ms in [
            0,
            951_782_400_000,
            1_735_689_600_123,
            1_772_323_199_999,
            4_102_444_800_000,
        ] {
            let mut out = Vec::new();
            push_iso(&mut out, ms);
            let expected = DateTime::from_timestamp_millis(ms)
                .unwrap()
                .to_rfc3339_opts(SecondsFormat::Millis, true);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn every_table_reads_whole_and_has_id_and_stamps() {
        for facts in &OBJECTS {
            let lines = facts
                .catalog
                .lines()
                .filter(|l| !l.starts_with('#'))
                .count();
            let catalog = catalog(facts, true);
            assert_eq!(catalog.properties.len(), lines, "{}", facts.plural);
            for name in ["hs_object_id", "createdate", facts.modified] {
                assert!(catalog.find(name).is_some(), "{} {name}", facts.plural);
            }
        }
    }

    #[test]
    fn contacts_echo_at_least_twenty_computed_properties() {
        let catalog = catalog(&OBJECTS[0], true);
        let echoed = catalog
            .properties
            .iter()
            .filter(|p| p.echoed && p.read_only)
            .count();
        assert!(echoed >= 20, "{echoed}");
    }
}
