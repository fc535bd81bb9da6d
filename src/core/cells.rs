//! The values of one record in one piece of memory: a page of a first copy holds
//! thousands of values, and an allocation for each costs more than reading it.

use std::fmt;

/// A value in canonical text.
pub type Value = Option<String>;

/// Where a value stands in the text.
#[derive(Clone, Copy)]
struct Span {
    start: u32,
    len: u32,
}

impl Span {
    /// Stands for null.
    const NULL: Self = Self {
        start: 0,
        len: u32::MAX,
    };
}

/// Values in canonical text, by position. Texts of a record are far below the
/// four gigabytes that positions reach: answers are bounded.
#[derive(Clone, Default)]
pub struct Cells {
    text: String,
    spans: Vec<Span>,
}

impl Cells {
    /// So many nulls, with room for `bytes` of text.
    pub fn nulls(count: usize, bytes: usize) -> Self {
        Self {
            text: String::with_capacity(bytes),
            spans: vec![Span::NULL; count],
        }
    }

    /// How many values, nulls included.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are no values, not even nulls.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Bytes of all texts.
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    /// A value; also null where there is none.
    pub fn get(&self, index: usize) -> Option<&str> {
        self.spans.get(index).and_then(|span| self.text(*span))
    }

    /// A value with memory of its own.
    pub fn value(&self, index: usize) -> Value {
        self.get(index).map(str::to_owned)
    }

    /// All values in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<&str>> + Clone {
        self.spans.iter().map(|span| self.text(*span))
    }

    /// Puts what `write` appends to the text in the place of a value; null if it
    /// appends nothing. Places that do not exist stay so.
    pub fn write<T>(&mut self, index: usize, write: impl FnOnce(&mut String) -> T) -> T {
        let start = self.text.len();
        let result = write(&mut self.text);
        if let Some(span) = self.spans.get_mut(index) {
            let length = self.text.len() - start;
            *span = match (u32::try_from(start), u32::try_from(length)) {
                (Ok(start), Ok(len)) if len > 0 => Span { start, len },
                _ => Span::NULL,
            };
        }
        result
    }

    fn text(&self, span: Span) -> Option<&str> {
        let start = span.start as usize;
        (span.len != Span::NULL.len).then(|| &self.text[start..start + span.len as usize])
    }
}

impl FromIterator<Value> for Cells {
    fn from_iter<I: IntoIterator<Item = Value>>(values: I) -> Self {
        let mut cells = Self::default();
        for value in values {
            cells.spans.push(Span::NULL);
            let last = cells.spans.len() - 1;
            cells.write(last, |text| {
                text.push_str(value.as_deref().unwrap_or_default())
            });
        }
        cells
    }
}

impl PartialEq for Cells {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Cells {}

impl fmt::Debug for Cells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_position_in_whatever_order_they_were_written() {
        let mut cells = Cells::nulls(3, 0);
        cells.write(2, |text| text.push_str("last"));
        cells.write(0, |text| text.push_str("first"));
        assert_eq!(
            cells.iter().collect::<Vec<_>>(),
            [Some("first"), None, Some("last")]
        );
        assert_eq!((cells.len(), cells.bytes(), cells.get(3)), (3, 9, None));
        // A key that an answer has twice: the later counts.
        cells.write(0, |text| text.push_str("again"));
        cells.write(2, |_| ());
        let same: Cells = [Some("again".to_owned()), None, None].into_iter().collect();
        assert_eq!(cells, same);
    }
}
