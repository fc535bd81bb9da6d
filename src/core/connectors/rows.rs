//! From JSON into `Record.values` without a tree in between.
//!
//! Backfill speed is decided here: one pass over the bytes, two allocations per
//! record, none per value or key. Keys of consecutive records come in the same order, so
//! the column of the n-th key is remembered and only compared.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::cells::Cells;
use crate::model::FieldType;
use crate::value::append_canonical;

/// Most unreadable values reported of one page.
const UNREADABLE_MAX: usize = 1_000;
const NO_COLUMN: usize = usize::MAX;
/// Most bytes that are set aside for the text of a record before it is read.
const ROOM_MAX: usize = 4_096;

/// The requested fields, to be found by name.
pub(crate) struct Columns<'a> {
    fields: &'a [(String, FieldType)],
    index: HashMap<&'a str, usize>,
    memo: RefCell<Vec<usize>>,
    unreadable: RefCell<Vec<(String, String, String)>>,
    /// Bytes of the longest record so far.
    room: Cell<usize>,
}

impl<'a> Columns<'a> {
    pub(crate) fn new(fields: &'a [(String, FieldType)]) -> Self {
        Self {
            fields,
            index: fields
                .iter()
                .enumerate()
                .map(|(i, (n, _))| (n.as_str(), i))
                .collect(),
            memo: RefCell::new(Vec::new()),
            unreadable: RefCell::new(Vec::new()),
            room: Cell::new(0),
        }
    }

    /// Nulls for a record, with room for the text of one like those before it.
    pub(crate) fn cells(&self) -> Cells {
        Cells::nulls(self.fields.len(), self.room.get())
    }

    /// Takes note of how long the text of a record is.
    pub(crate) fn filled(&self, cells: &Cells) {
        self.room
            .set(self.room.get().max(cells.bytes()).min(ROOM_MAX));
    }

    pub(crate) fn field_type(&self, column: usize) -> FieldType {
        self.fields[column].1
    }

    /// Column of `key`, which is the `nth` key of its object.
    pub(crate) fn find(&self, nth: usize, key: &str) -> Option<usize> {
        let mut memo = self.memo.borrow_mut();
        if let Some(&column) = memo.get(nth)
            && column != NO_COLUMN
            && self.fields[column].0 == key
        {
            return Some(column);
        }
        let column = self.index.get(key).copied();
        // Hostile objects may have any number of keys; the memo need not.
        if nth < 4_096 {
            if memo.len() <= nth {
                memo.resize(nth + 1, NO_COLUMN);
            }
            memo[nth] = column.unwrap_or(NO_COLUMN);
        }
        column
    }

    /// Requested fields that the last records had no key for. Costs nothing by key:
    /// what the memo holds was found.
    pub(crate) fn absent(&self) -> Vec<String> {
        let found: HashSet<usize> = self.memo.borrow().iter().copied().collect();
        let fields = self.fields.iter().enumerate();
        let absent = fields.filter(|(column, _)| !found.contains(column));
        absent.map(|(_, (name, _))| name.clone()).collect()
    }

    /// Notes a value that its type cannot hold.
    pub(crate) fn note(&self, id: &str, bad: Vec<(usize, String)>) {
        let mut all = self.unreadable.borrow_mut();
        for (column, text) in bad {
            if all.len() < UNREADABLE_MAX {
                all.push((id.to_owned(), self.fields[column].0.clone(), text));
            }
        }
    }

    pub(crate) fn into_unreadable(self) -> Vec<(String, String, String)> {
        self.unreadable.into_inner()
    }
}

/// An object's key, borrowed from the answer unless it has escapes. (Serde's
/// own `Cow` always copies.)
pub(crate) struct Key<'de>(Cow<'de, str>);

impl std::ops::Deref for Key<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(v)))
            }
            fn visit_str<E>(self, v: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(v.to_owned())))
            }
        }
        d.deserialize_str(V)
    }
}

/// Reads one JSON document to its end. Checking the encoding once is faster
/// than string by string.
pub(crate) fn parse<'de, S: DeserializeSeed<'de>>(
    body: &'de [u8],
    seed: S,
) -> Result<S::Value, serde_json::Error> {
    let text = std::str::from_utf8(body).map_err(de::Error::custom)?;
    let mut d = serde_json::Deserializer::from_str(text);
    let value = seed.deserialize(&mut d)?;
    d.end()?;
    Ok(value)
}

/// The text of a value that its type cannot hold.
pub(crate) type Read = Result<(), String>;

/// Reads any JSON value as a value of a type and appends its canonical text;
/// nothing for null, objects and arrays.
pub(crate) struct ValueSeed<'o>(pub(crate) FieldType, pub(crate) &'o mut String);

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Read;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Read, D::Error> {
        if self.0 != FieldType::Number {
            return d.deserialize_any(self);
        }
        // The text of a number must survive: no detour over f64.
        let raw: &'de RawValue = Deserialize::deserialize(d)?;
        let raw = raw.get();
        Ok(match raw.as_bytes().first() {
            None | Some(b'n' | b'{' | b'[') => Ok(()),
            Some(b'"') if !raw.contains('\\') => self.read(&raw[1..raw.len() - 1]),
            Some(b'"') => match serde_json::from_str::<Cow<'_, str>>(raw) {
                Ok(text) => self.read(&text),
                Err(_) => Err(raw.chars().take(100).collect()),
            },
            Some(_) => self.read(raw),
        })
    }
}

impl ValueSeed<'_> {
    fn read(self, text: &str) -> Read {
        append_canonical(self.0, text, self.1).map_err(|e| e.text)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = Read;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_str<E: de::Error>(self, v: &str) -> Result<Read, E> {
        Ok(self.read(v))
    }
    fn visit_unit<E: de::Error>(self) -> Result<Read, E> {
        Ok(Ok(()))
    }
    fn visit_bool<E: de::Error>(self, v: bool) -> Result<Read, E> {
        Ok(self.read(if v { "true" } else { "false" }))
    }
    fn visit_i64<E: de::Error>(self, v: i64) -> Result<Read, E> {
        Ok(self.read(&v.to_string()))
    }
    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Read, E> {
        Ok(self.read(&v.to_string()))
    }
    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Read, E> {
        Ok(self.read(&v.to_string()))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Read, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Ok(()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Read, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Ok(()))
    }
}

/// Reads an id that is a string or an integer.
pub(crate) struct IdSeed;

impl<'de> DeserializeSeed<'de> for IdSeed {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<String, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = String;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an id")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<String, E> {
                Ok(v.to_owned())
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<String, E> {
                Ok(v.to_string())
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<String, E> {
                Ok(v.to_string())
            }
            fn visit_unit<E: de::Error>(self) -> Result<String, E> {
                Ok(String::new())
            }
        }
        d.deserialize_any(V)
    }
}

/// For `#[serde(deserialize_with)]`: an id that is a string, an integer or null.
pub(crate) fn id<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    IdSeed.deserialize(d)
}

/// For `#[serde(deserialize_with)]`: a list of such ids.
pub(crate) fn ids<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    struct Id(#[serde(deserialize_with = "id")] String);
    let list: Option<Vec<Id>> = Deserialize::deserialize(d)?;
    Ok(list.unwrap_or_default().into_iter().map(|i| i.0).collect())
}
