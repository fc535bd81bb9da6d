//! Values of records nobody has written yet: pure functions of the seed and the record's number.

use super::ids::SfId;
use super::schema::Obj;
use super::value::Value;
use crate::people::{Company, Deal, FIRST_MS, Home, Kind, People, Person};
use std::cell::OnceCell;

/// Users of the org: first name, last name, user name (and address), active. The first is the integration's; the next
/// three own records in HubSpot too, by the same address.
const PEOPLE: [(&str, &str, &str, bool); 6] = [
    ("Sync", "User", "sync@example.com", true),
    ("Olga", "Owner", "olga.owner@example.com", true),
    ("Sam", "Seller", "sam.seller@example.com", true),
    ("Gone", "Goodbye", "gone.goodbye@example.com", false),
    ("Dana", "Director", "dana.director@example.org", true),
    ("Sven", "Service", "sven.service@example.org", true),
];

/// How many users there are.
pub(crate) const USERS: u64 = PEOPLE.len() as u64;

fn user(n: u64) -> &'static (&'static str, &'static str, &'static str, bool) {
    &PEOPLE[(n.max(1) - 1) as usize % PEOPLE.len()]
}

fn kind(obj: Obj) -> Option<Kind> {
    match obj {
        Obj::Account => Some(Kind::Company),
        Obj::Contact => Some(Kind::Person),
        Obj::Opportunity => Some(Kind::Deal),
        Obj::Case | Obj::Lead => Some(Kind::Ticket),
        Obj::Task => Some(Kind::Task),
        Obj::Subscription => Some(Kind::Subscription),
        Obj::Event => Some(Kind::Meeting),
        Obj::Product | Obj::Price => Some(Kind::Product),
        Obj::LineItem => Some(Kind::LineItem),
        Obj::User => None,
    }
}

/// How many base records an object has.
pub(crate) fn count(obj: Obj, people: &People) -> u64 {
    kind(obj).map_or(USERS, |kind| people.count(kind))
}

/// `SystemModstamp` of a base record; never falls as the number rises.
pub(crate) fn stamp(obj: Obj, number: u64, people: &People) -> i64 {
    kind(obj).map_or(FIRST_MS, |kind| people.modified_ms(kind, number))
}

/// The smallest base number whose stamp is `ms` or later; one past the last when there is none.
pub(crate) fn first_with_stamp(obj: Obj, ms: i64, people: &People) -> u64 {
    match kind(obj) {
        Some(kind) => people.first_modified_from(kind, ms),
        None if ms <= FIRST_MS => 1,
        None => USERS + 1,
    }
}

/// One base record: computes each value when it is asked for.
pub(crate) struct Gen<'a> {
    obj: Obj,
    pub(crate) n: u64,
    people: &'a People,
    person: OnceCell<Person>,
    company: OnceCell<Company>,
    deal: OnceCell<Deal>,
}

fn built(write: impl FnOnce(&mut Vec<u8>)) -> Value {
    let mut out = Vec::with_capacity(48);
    write(&mut out);
    String::from_utf8(out).map_or(Value::Null, |text| Value::Text(text.into_boxed_str()))
}

fn day(ms: i64) -> Value {
    Value::Date(i32::try_from(ms.div_euclid(super::stamps::DAY_MS)).unwrap_or_default())
}

fn refer(obj: Obj, number: u64) -> Value {
    if number == 0 {
        Value::Null
    } else {
        Value::Id(SfId::new(obj.prefix(), number))
    }
}

impl<'a> Gen<'a> {
    pub(crate) fn new(obj: Obj, n: u64, people: &'a People) -> Self {
        Self {
            obj,
            n,
            people,
            person: OnceCell::new(),
            company: OnceCell::new(),
            deal: OnceCell::new(),
        }
    }

    /// The base record of `obj` whose indexed field `name` has the (lower-case) `key`, by arithmetic on the key.
    pub(crate) fn find(obj: Obj, name: &str, key: &str, base: u64, people: &People) -> Option<u64> {
        let number = match (obj, name) {
            (Obj::Contact, "Email") => people.find_email(key)?.n,
            (Obj::Lead, "Email") => people.find_email(key.strip_prefix("lead.")?)?.n,
            (Obj::Subscription, "Ext__c") => key.strip_prefix("sub-")?.parse().ok()?,
            (Obj::Case, "CaseNumber") => key.parse().ok()?,
            (Obj::User, "Username") => (1..=USERS).find(|n| user_email(*n) == key)?,
            _ => return None,
        };
        (number >= 1 && number <= base).then_some(number)
    }

    fn person(&self) -> &Person {
        self.person.get_or_init(|| match self.obj {
            Obj::Contact => self
                .people
                .person(self.n, self.people.salesforce_home(Kind::Person, self.n)),
            _ => self.people.person(self.n, Home::SalesforceOnly),
        })
    }

    fn company(&self) -> &Company {
        self.company.get_or_init(|| match self.obj {
            Obj::Account => self
                .people
                .company(self.n, self.people.salesforce_home(Kind::Company, self.n)),
            _ => self.people.company(self.n, Home::SalesforceOnly),
        })
    }

    fn the_deal(&self) -> &Deal {
        self.deal.get_or_init(|| self.people.deal(self.n))
    }

    fn draw(&self, salt: u64, bound: u64) -> u64 {
        self.people
            .draw(kind(self.obj).unwrap_or(Kind::Task), self.n, salt, bound)
    }

    pub(crate) fn id(&self) -> SfId {
        SfId::new(self.obj.prefix(), self.n)
    }

    pub(crate) fn created(&self) -> Value {
        Value::DateTime(
            kind(self.obj).map_or(FIRST_MS, |kind| self.people.created_ms(kind, self.n)),
        )
    }

    pub(crate) fn stamp(&self) -> i64 {
        stamp(self.obj, self.n, self.people)
    }

    pub(crate) fn owner(&self) -> SfId {
        SfId::new(Obj::User.prefix(), 2 + self.n % 2)
    }

    fn names(&self) -> (&'static str, &'static str) {
        if self.obj == Obj::User {
            return (user(self.n).0, user(self.n).1);
        }
        (self.person().first, self.person().last)
    }

    pub(crate) fn first(&self) -> Value {
        Value::text(self.names().0)
    }

    pub(crate) fn last(&self) -> Value {
        Value::text(self.names().1)
    }

    pub(crate) fn full_name(&self) -> Value {
        let (first, last) = self.names();
        built(|out| {
            out.extend_from_slice(first.as_bytes());
            out.push(b' ');
            out.extend_from_slice(last.as_bytes());
        })
    }

    pub(crate) fn active(&self) -> Value {
        Value::Bool(user(self.n).3)
    }

    pub(crate) fn salutation(&self) -> Value {
        self.pick(&["Mr.", "Ms.", "Dr."], 2)
    }

    pub(crate) fn email(&self) -> Value {
        built(|out| self.person().push_email(out))
    }

    pub(crate) fn lead_email(&self) -> Value {
        built(|out| {
            out.extend_from_slice(b"lead.");
            self.person().push_email(out);
        })
    }

    pub(crate) fn user_email(&self) -> Value {
        Value::text(&user_email(self.n))
    }

    pub(crate) fn title(&self) -> Value {
        Value::text(self.person().title)
    }

    pub(crate) fn department(&self) -> Value {
        self.pick(&["Sales", "Engineering", "Finance", "Operations"], 17)
    }

    pub(crate) fn phone(&self) -> Value {
        match self.obj {
            Obj::Account => built(|out| self.company().push_phone(out)),
            _ => built(|out| self.person().push_phone(0, out)),
        }
    }

    pub(crate) fn mobile(&self) -> Value {
        built(|out| self.person().push_phone(1, out))
    }

    fn place(&self) -> (&'static str, &'static str, &'static str, &'static str) {
        if self.obj == Obj::Account {
            self.company().place()
        } else {
            self.person().place()
        }
    }

    pub(crate) fn street(&self) -> Value {
        match self.obj {
            Obj::Account => built(|out| self.company().push_street(out)),
            _ => built(|out| self.person().push_street(out)),
        }
    }

    pub(crate) fn city(&self) -> Value {
        Value::text(self.place().0)
    }

    pub(crate) fn state(&self) -> Value {
        Value::text(self.place().1)
    }

    pub(crate) fn zip(&self) -> Value {
        Value::text(self.place().2)
    }

    pub(crate) fn country(&self) -> Value {
        Value::text(self.place().3)
    }

    /// Name of the company: an account's own, a lead's employer.
    pub(crate) fn company_name(&self) -> Value {
        built(|out| self.company().push_name(out))
    }

    pub(crate) fn website(&self) -> Value {
        built(|out| {
            out.extend_from_slice(b"https://");
            self.company().push_domain(out);
        })
    }

    pub(crate) fn industry(&self, values: &'static [&'static str]) -> Value {
        Value::text(values[self.company().trade() % values.len()])
    }

    pub(crate) fn revenue(&self) -> Value {
        Value::Double(self.company().revenue as f64)
    }

    pub(crate) fn employees(&self) -> Value {
        Value::Int(i64::try_from(self.company().employees).unwrap_or_default())
    }

    /// The account a person or deal belongs to.
    pub(crate) fn account(&self) -> Value {
        let number = match self.obj {
            Obj::Opportunity => self.the_deal().company,
            Obj::Case => self.people.person(self.whom(), Home::Common).company,
            _ => self.person().company,
        };
        refer(Obj::Account, number)
    }

    fn whom(&self) -> u64 {
        ((self.n - 1) * 10 + 1)
            .min(self.people.count(Kind::Person))
            .max(1)
    }

    /// The contact a case, task or subscription is about.
    pub(crate) fn contact(&self) -> Value {
        refer(Obj::Contact, self.whom())
    }

    /// The opportunity that a line item belongs to.
    pub(crate) fn opportunity(&self) -> Value {
        refer(Obj::Opportunity, self.n)
    }

    /// The product of a price, and of a line item.
    pub(crate) fn product(&self) -> Value {
        refer(Obj::Product, self.n)
    }

    /// The price of a line item.
    pub(crate) fn price(&self) -> Value {
        refer(Obj::Price, self.n)
    }

    pub(crate) fn deal_name(&self) -> Value {
        built(|out| self.the_deal().push_name(out))
    }

    pub(crate) fn deal_amount(&self) -> Value {
        Value::Double(self.the_deal().amount_cents as f64 / 100.0)
    }

    pub(crate) fn deal_close(&self) -> Value {
        day(self.the_deal().close_ms)
    }

    /// The deal's stage: seven of the pipeline's nine, the last two closed.
    pub(crate) fn deal_stage(&self) -> &'static str {
        const OF: [usize; 7] = [0, 1, 2, 3, 5, 7, 8];
        super::work_objects::STAGES[OF[self.the_deal().stage % OF.len()]]
    }

    pub(crate) fn subject(&self) -> Value {
        const WHAT: [&str; 5] = [
            "Cannot sign in",
            "Invoice question",
            "Call back",
            "Delivery is late",
            "Send the contract",
        ];
        Value::text(WHAT[self.draw(23, WHAT.len() as u64) as usize])
    }

    pub(crate) fn pick(&self, values: &'static [&'static str], salt: u64) -> Value {
        Value::text(values[self.draw(salt, values.len() as u64) as usize])
    }

    pub(crate) fn languages(&self) -> Value {
        const SETS: [&str; 4] = ["", "English", "English;German", "French;Spanish"];
        Value::text(SETS[self.draw(29, SETS.len() as u64) as usize])
    }

    pub(crate) fn score(&self) -> Value {
        Value::Double(self.draw(31, 100_000) as f64 / 100.0)
    }

    pub(crate) fn amount(&self, bound: u64) -> Value {
        Value::Double(self.draw(37, bound) as f64)
    }

    /// A day between `from` (days since 1970) and `from + span`.
    pub(crate) fn date(&self, from: i32, span: u32) -> Value {
        let offset = i32::try_from(self.draw(41, u64::from(span))).unwrap_or_default();
        Value::Date(from + offset)
    }
}

/// Address and user name of user `n`.
pub(crate) fn user_email(n: u64) -> String {
    user(n).2.to_owned()
}
