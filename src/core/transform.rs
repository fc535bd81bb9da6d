//! The steps of which field maps are made, and why a value may have no image.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::Value;
use crate::structure::Structure;

/// A step of a field map. Blank maps to blank in each of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Transform {
    /// As it is.
    #[default]
    Identity,
    /// One word for another; per choice in multi-choice values. A value that
    /// is not listed has no image.
    ValueMap(Arc<Vec<(String, String)>>),
    /// `https://www.example.com/x` to `example.com`.
    DomainOfUrl,
    /// `example.com` to `https://example.com`.
    UrlOfDomain,
    /// Day of an instant, in UTC.
    DateOf,
    /// Midnight UTC of a day.
    MidnightOf,
    /// At most so many characters.
    Truncate(i32),
    /// Lower case.
    Lower,
    /// A user's function by number; its images are handed in, see [`Images`].
    Function(u32),
    /// Cells of this side to the text that they stand for.
    Compose(Structure),
    /// A text to so many cells of this side.
    Split(Structure, usize),
}

/// Images of values under users' functions, which run outside of this crate:
/// data, gathered before a decision. What was asked for and is not here is
/// noted, so that the caller can evaluate it and decide again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images {
    known: BTreeMap<(u32, String), Result<Value, String>>,
    missing: RefCell<BTreeSet<(u32, String)>>,
}

impl Images {
    /// Takes the image of a value, or why the function has none.
    pub fn put(&mut self, function: u32, value: String, image: Result<Value, String>) {
        self.known.insert((function, value), image);
    }

    /// What was asked for in vain since the last call.
    pub fn take_missing(&self) -> BTreeSet<(u32, String)> {
        self.missing.take()
    }

    /// Whether an image, or the lack of one, is known.
    pub fn knows(&self, function: u32, value: &str) -> bool {
        self.known.contains_key(&(function, value.to_owned()))
    }

    fn image(&self, function: u32, text: &str) -> Result<Value, Unmapped> {
        let key = (function, text.to_owned());
        match self.known.get(&key) {
            Some(Ok(image)) => Ok(image.clone()),
            Some(Err(reason)) => Err(Unmapped::Function(clip(text), reason.clone())),
            None => {
                self.missing.borrow_mut().insert(key);
                Err(Unmapped::NotEvaluated(clip(text)))
            }
        }
    }
}

/// Why a value cannot be shown on a side.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unmapped {
    /// The value map does not list it.
    #[error("no counterpart for '{0}' in the value map")]
    NotListed(String),
    /// It is not a date, URL or domain.
    #[error("'{0}' is not {1}")]
    Malformed(String, &'static str),
    /// The CRM wants a value and there is none.
    #[error("a value is required and no default is set")]
    Required,
    /// It does not fit.
    #[error("longer than {0} characters")]
    TooLong(i32),
    /// The map's function refused it, or took too long.
    #[error("no image of '{0}': {1}")]
    Function(String, String),
    /// The map's function was not called for it.
    #[error("the image of '{0}' is not known yet")]
    NotEvaluated(String),
}

impl Transform {
    /// The image of a value.
    pub fn apply(&self, value: &Value, images: &Images) -> Result<Value, Unmapped> {
        let Some(text) = value else { return Ok(None) };
        Ok(self.image(text, images)?.map(Cow::into_owned))
    }

    /// The image of a text, the text itself where it stays as it is.
    pub(crate) fn image<'t>(
        &self,
        text: &'t str,
        images: &Images,
    ) -> Result<Option<Cow<'t, str>>, Unmapped> {
        let owned = match self {
            Self::Identity => return Ok((!text.is_empty()).then_some(Cow::Borrowed(text))),
            Self::Function(number) => return Ok(images.image(*number, text)?.map(Cow::Owned)),
            Self::Compose(structure) => structure.compose(text),
            Self::Split(structure, width) => structure.split(text, *width),
            Self::ValueMap(pairs) => map_choices(pairs, text)?,
            Self::DomainOfUrl => crate::matching::domain_of_url(text)
                .ok_or_else(|| Unmapped::Malformed(clip(text), "a URL"))?,
            Self::UrlOfDomain if text.contains("://") => text.to_owned(),
            Self::UrlOfDomain => format!("https://{text}"),
            Self::DateOf => day_of(text)?.to_owned(),
            Self::MidnightOf => format!("{}T00:00:00.000Z", day_of(text)?),
            Self::Truncate(length) => cut(text, *length).to_owned(),
            Self::Lower => text.to_lowercase(),
        };
        Ok((!owned.is_empty()).then_some(Cow::Owned(owned)))
    }
}

fn map_choices(pairs: &[(String, String)], text: &str) -> Result<String, Unmapped> {
    let one = |choice: &str| {
        pairs
            .iter()
            .find(|(from, _)| from == choice)
            .map(|(_, to)| to.clone())
    };
    if let Some(image) = one(text) {
        return Ok(image);
    }
    let images: Option<Vec<_>> = text.split(';').map(one).collect();
    images
        .map(|i| i.join(";"))
        .ok_or_else(|| Unmapped::NotListed(clip(text)))
}

fn day_of(text: &str) -> Result<&str, Unmapped> {
    let shape = |day: &str| {
        day.bytes().enumerate().all(|(i, b)| match i {
            4 | 7 => b == b'-',
            _ => b.is_ascii_digit(),
        })
    };
    match text.get(..10) {
        Some(day) if shape(day) => Ok(day),
        _ => Err(Unmapped::Malformed(clip(text), "a date")),
    }
}

/// The first `length` characters.
pub(crate) fn cut(text: &str, length: i32) -> &str {
    let length = usize::try_from(length).unwrap_or(0);
    match text.char_indices().nth(length) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

/// Enough of a value to recognise it in a message.
fn clip(text: &str) -> String {
    cut(text, 60).to_owned()
}
