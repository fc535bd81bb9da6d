//! Invented people, companies and deals: pure functions of seed and number, so that a million of
//! them cost no memory. Both CRMs draw from here; record n of one side is record n of the other
//! where [`People::is_shared`] says so, and somebody else (of domain `example.org`) where not.

mod names;

use names::{FIRST, LAST, PLACES, STREETS, TITLES, TRADES};

use crate::clock::mix;

/// Milliseconds since 1970 of 2025-01-01T00:00:00Z: the oldest base record.
pub(crate) const FIRST_MS: i64 = 1_735_689_600_000;
/// Base records are spread over a year from [`FIRST_MS`].
const SPAN_MS: i64 = 365 * 86_400_000;
/// So many neighbours share one stamp, as after a bulk edit.
const SAME_STAMP: u64 = 4;

/// Where a base record lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// In HubSpot, and in Salesforce too if [`People::is_shared`].
    Common,
    /// In Salesforce only.
    SalesforceOnly,
}

impl Home {
    fn salt(self) -> u64 {
        match self {
            Home::Common => 0,
            Home::SalesforceOnly => 0x5f_5f5f,
        }
    }

    fn top_domain(self) -> &'static str {
        match self {
            Home::Common => "example.com",
            Home::SalesforceOnly => "example.org",
        }
    }
}

/// The kinds of base record, for counts and for who is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Person,
    Company,
    Deal,
    Ticket,
    Task,
    Subscription,
    Meeting,
    Call,
    Note,
    Email,
    Product,
    LineItem,
    SalesLead,
}

/// Parameters of the base data.
#[derive(Clone, Debug)]
pub(crate) struct People {
    seed: u64,
    contacts: u64,
    shared_of_65536: u64,
}

/// A person; numbered from 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Person {
    pub(crate) n: u64,
    pub(crate) home: Home,
    pub(crate) first: &'static str,
    pub(crate) last: &'static str,
    pub(crate) title: &'static str,
    /// Number of the company this person works for; 0 for none.
    pub(crate) company: u64,
    hash: u64,
}

/// A company; numbered from 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Company {
    pub(crate) n: u64,
    pub(crate) home: Home,
    pub(crate) employees: u64,
    /// In whole currency units.
    pub(crate) revenue: u64,
    hash: u64,
}

/// A deal; numbered from 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deal {
    pub(crate) n: u64,
    /// In cents.
    pub(crate) amount_cents: u64,
    /// Position in the pipeline, 0..=6.
    pub(crate) stage: usize,
    /// Day of closing, midnight UTC, milliseconds since 1970.
    pub(crate) close_ms: i64,
    /// Number of the person; 0 for none.
    pub(crate) person: u64,
    /// Number of that person's company; 0 for none.
    pub(crate) company: u64,
}

/// Appends `value` in decimal, at least `width` digits.
pub(crate) fn push_number(out: &mut Vec<u8>, mut value: u64, width: usize) {
    let mut digits = [b'0'; 20];
    let mut at = digits.len();
    while value > 0 {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
    }
    let at = at.min(digits.len() - width.min(digits.len()));
    out.extend_from_slice(&digits[at..]);
}

fn push_lower(out: &mut Vec<u8>, text: &str) {
    out.extend(text.bytes().map(|b| b.to_ascii_lowercase()));
}

impl People {
    /// `shared` is the share of people that both CRMs know.
    pub(crate) fn new(seed: u64, contacts: u64, shared: f64) -> People {
        People {
            seed,
            contacts,
            shared_of_65536: (shared.clamp(0.0, 1.0) * 65_536.0) as u64,
        }
    }

    /// How many base records of `kind` there are on each side.
    pub(crate) fn count(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Person => self.contacts,
            Kind::Deal => self.contacts / 5,
            _ => self.contacts / 10,
        }
    }

    fn hash(&self, kind: Kind, n: u64, home: Home) -> u64 {
        let salt = (kind as u64 + 1) * 0x1_0000_0001 + home.salt();
        mix(self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ mix(n ^ (salt << 24)))
    }

    /// Whether record `n` of both CRMs is the same.
    pub(crate) fn is_shared(&self, kind: Kind, n: u64) -> bool {
        (self.hash(kind, n, Home::Common) >> 48) < self.shared_of_65536
    }

    /// Who record `n` of Salesforce is.
    pub(crate) fn salesforce_home(&self, kind: Kind, n: u64) -> Home {
        if self.is_shared(kind, n) {
            Home::Common
        } else {
            Home::SalesforceOnly
        }
    }

    /// Creation stamp of record `n` (1..=count): whole seconds, never falling with `n`.
    pub(crate) fn created_ms(&self, kind: Kind, n: u64) -> i64 {
        let count = self.count(kind).max(1);
        let step = (SPAN_MS / 1_000 / count as i64).max(1) * 1_000;
        FIRST_MS + (n / SAME_STAMP * SAME_STAMP) as i64 * step
    }

    /// Last modification of base record `n`: one hour after creation.
    pub(crate) fn modified_ms(&self, kind: Kind, n: u64) -> i64 {
        self.created_ms(kind, n) + 3_600_000
    }

    /// The smallest n in 1..=count+1 whose modification stamp is at least `ms`.
    pub(crate) fn first_modified_from(&self, kind: Kind, ms: i64) -> u64 {
        let (mut low, mut high) = (1, self.count(kind) + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.modified_ms(kind, middle) >= ms {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }

    /// Person `n`.
    pub(crate) fn person(&self, n: u64, home: Home) -> Person {
        let hash = self.hash(Kind::Person, n, home);
        let companies = self.count(Kind::Company);
        Person {
            n,
            home,
            first: FIRST[(hash & 31) as usize],
            last: LAST[(hash >> 5 & 63) as usize],
            title: TITLES[(hash >> 11 & 7) as usize],
            company: if companies == 0 {
                0
            } else {
                ((n - 1) / 10 + 1).min(companies)
            },
            hash,
        }
    }

    /// The numbers of the people who work for company `n`.
    pub(crate) fn staff(&self, n: u64) -> std::ops::RangeInclusive<u64> {
        let companies = self.count(Kind::Company);
        let last = if n == companies {
            self.contacts
        } else {
            n * 10
        };
        (n - 1) * 10 + 1..=last
    }

    /// Company `n`.
    pub(crate) fn company(&self, n: u64, home: Home) -> Company {
        let hash = self.hash(Kind::Company, n, home);
        Company {
            n,
            home,
            employees: 5 + (hash >> 20) % 5_000,
            revenue: 100_000 + (hash >> 33) % 90_000 * 1_000,
            hash,
        }
    }

    /// Deal `n`.
    pub(crate) fn deal(&self, n: u64) -> Deal {
        let hash = self.hash(Kind::Deal, n, Home::Common);
        let person = ((n - 1) * 5 + 1).min(self.contacts);
        Deal {
            n,
            amount_cents: 100 + hash % 5_000_000,
            stage: (hash >> 24) as usize % 7,
            close_ms: FIRST_MS + SPAN_MS + (hash >> 32) as i64 % 365 * 86_400_000,
            person,
            company: if person == 0 {
                0
            } else {
                self.person(person, Home::Common).company
            },
        }
    }

    /// A number below `bound` that belongs to record `n` of `kind` and property `salt`.
    pub(crate) fn draw(&self, kind: Kind, n: u64, salt: u64, bound: u64) -> u64 {
        mix(self.hash(kind, n, Home::Common) ^ salt) % bound.max(1)
    }

    /// The person with this address (any case), if it is a base record's.
    pub(crate) fn find_email(&self, email: &str) -> Option<Person> {
        let lower = email.trim().to_ascii_lowercase();
        let (name, domain) = lower.split_once('@')?;
        let home = [Home::Common, Home::SalesforceOnly]
            .into_iter()
            .find(|h| h.top_domain() == domain)?;
        let n: u64 = name.rsplit('.').next()?.parse().ok()?;
        if n == 0 || n > self.contacts {
            return None;
        }
        let person = self.person(n, home);
        (person.email() == lower).then_some(person)
    }
}

fn string(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::with_capacity(48);
    write(&mut out);
    String::from_utf8(out).unwrap_or_default()
}

impl Person {
    /// `ada.lovelace.000123@example.com`.
    pub(crate) fn push_email(&self, out: &mut Vec<u8>) {
        push_lower(out, self.first);
        out.push(b'.');
        push_lower(out, self.last);
        out.push(b'.');
        push_number(out, self.n, 6);
        out.push(b'@');
        out.extend_from_slice(self.home.top_domain().as_bytes());
    }

    pub(crate) fn email(&self) -> String {
        string(|out| self.push_email(out))
    }

    /// `+1 555 0123456`; `line` 0 is the desk, 1 the mobile.
    pub(crate) fn push_phone(&self, line: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(if line == 0 { b"+1 555 " } else { b"+1 777 " });
        push_number(out, (self.hash >> 14) % 10_000_000, 7);
    }

    /// `12 Main Street`.
    pub(crate) fn push_street(&self, out: &mut Vec<u8>) {
        push_number(out, 1 + (self.hash >> 40) % 200, 1);
        out.push(b' ');
        out.extend_from_slice(STREETS[(self.hash >> 30) as usize % STREETS.len()].as_bytes());
    }

    /// City, state, postal code, country.
    pub(crate) fn place(&self) -> (&'static str, &'static str, &'static str, &'static str) {
        PLACES[(self.hash >> 50) as usize % PLACES.len()]
    }
}

impl Company {
    fn stem(&self) -> (&'static str, &'static str) {
        (
            LAST[(self.hash & 63) as usize],
            TRADES[(self.hash >> 6 & 15) as usize],
        )
    }

    /// `Hopper Systems 12`.
    pub(crate) fn push_name(&self, out: &mut Vec<u8>) {
        let (last, trade) = self.stem();
        out.extend_from_slice(last.as_bytes());
        out.push(b' ');
        out.extend_from_slice(trade.as_bytes());
        out.push(b' ');
        push_number(out, self.n, 1);
    }

    /// `hopper-systems-000012.example.com`.
    pub(crate) fn push_domain(&self, out: &mut Vec<u8>) {
        let (last, trade) = self.stem();
        push_lower(out, last);
        out.push(b'-');
        push_lower(out, trade);
        out.push(b'-');
        push_number(out, self.n, 6);
        out.push(b'.');
        out.extend_from_slice(self.home.top_domain().as_bytes());
    }

    /// `+1 555 0123456`.
    pub(crate) fn push_phone(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"+1 555 ");
        push_number(out, (self.hash >> 14) % 10_000_000, 7);
    }

    /// `12 Main Street`.
    pub(crate) fn push_street(&self, out: &mut Vec<u8>) {
        push_number(out, 1 + (self.hash >> 40) % 200, 1);
        out.push(b' ');
        out.extend_from_slice(STREETS[(self.hash >> 30) as usize % STREETS.len()].as_bytes());
    }

    /// City, state, postal code, country.
    pub(crate) fn place(&self) -> (&'static str, &'static str, &'static str, &'static str) {
        PLACES[(self.hash >> 50) as usize % PLACES.len()]
    }

    /// Index of the trade, 0..16: the same company has the same industry on both sides.
    pub(crate) fn trade(&self) -> usize {
        (self.hash >> 6 & 15) as usize
    }
}

impl Deal {
    /// `Order 000012`.
    pub(crate) fn push_name(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"Order ");
        push_number(out, self.n, 6);
    }

    /// `1234.50`.
    pub(crate) fn push_amount(&self, out: &mut Vec<u8>) {
        push_number(out, self.amount_cents / 100, 1);
        out.push(b'.');
        push_number(out, self.amount_cents % 100, 2);
    }
}

#[cfg(test)]
#[path = "people_tests.rs"]
mod tests;
