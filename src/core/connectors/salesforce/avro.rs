//! Avro's binary form, as far as change events use it.
//!
//! A decoder of our own: a schema with no names but its own, no files, no
//! codecs, no writing. Every length is checked against the bytes that are
//! left before anything is allocated.

use std::collections::HashMap;

use serde_json::Value as Json;

/// Deepest nesting of types and of data.
const DEPTH_MAX: usize = 16;
/// Most fields and types of a schema, together.
const NODES_MAX: usize = 20_000;
/// Most items of all arrays and maps of one datum.
const ITEMS_MAX: usize = 200_000;

/// Why a schema or a datum cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AvroError {
    /// The schema is not one, or uses what change events never use.
    #[error("schema: {0}")]
    Schema(String),
    /// The bytes end too early.
    #[error("the data ends too early")]
    Short,
    /// Bytes follow after the end of the datum.
    #[error("{0} bytes after the end of the data")]
    Trailing(usize),
    /// A number, length, index or text that cannot be.
    #[error("bad {0}")]
    Bad(&'static str),
}

/// A type.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    Null,
    Boolean,
    /// `int` and `long`, which are the same bytes.
    Integer,
    Float,
    Double,
    Bytes,
    Text,
    Enum(Vec<String>),
    Fixed(usize),
    Array(Box<Node>),
    Map(Box<Node>),
    Union(Vec<Node>),
    /// Index into [`Types::records`].
    Record(usize),
}

/// A field of a record.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Field {
    pub(crate) name: String,
    /// Salesforce notes its own type here (`CreatedDate:DateTime`).
    pub(crate) doc: String,
    pub(crate) node: Node,
}

/// The records of a schema, by index.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Types {
    pub(crate) records: Vec<Vec<Field>>,
    names: HashMap<String, Node>,
    nodes: usize,
}

/// A decoded value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Datum {
    Null,
    Boolean(bool),
    Integer(i64),
    Real(f64),
    Bytes,
    Text(String),
    List(Vec<Datum>),
    Record(usize, Vec<Datum>),
}

fn schema_error<T>(what: impl Into<String>) -> Result<T, AvroError> {
    Err(AvroError::Schema(what.into()))
}

impl Types {
    /// Parses a schema whose root is a record; gives its index.
    pub(crate) fn parse(json: &Json) -> Result<(Self, usize), AvroError> {
        let mut types = Self::default();
        match types.node(json, "", 0)? {
            Node::Record(root) => Ok((types, root)),
            _ => schema_error("the root is not a record"),
        }
    }

    fn node(&mut self, json: &Json, space: &str, depth: usize) -> Result<Node, AvroError> {
        self.nodes += 1;
        if depth > DEPTH_MAX || self.nodes > NODES_MAX {
            return schema_error("too deep or too large");
        }
        match json {
            Json::String(name) => self.named(name, space),
            Json::Array(branches) => {
                let branches: Result<Vec<Node>, AvroError> = branches
                    .iter()
                    .map(|b| self.node(b, space, depth + 1))
                    .collect();
                Ok(Node::Union(branches?))
            }
            Json::Object(object) => match object.get("type") {
                Some(Json::String(kind)) => self.complex(kind, json, space, depth),
                // `{"type": {…}}` only wraps.
                Some(inner) => self.node(inner, space, depth + 1),
                None => schema_error("an object without a type"),
            },
            _ => schema_error("neither name, union nor object"),
        }
    }

    fn named(&self, name: &str, space: &str) -> Result<Node, AvroError> {
        Ok(match name {
            "null" => Node::Null,
            "boolean" => Node::Boolean,
            "int" | "long" => Node::Integer,
            "float" => Node::Float,
            "double" => Node::Double,
            "bytes" => Node::Bytes,
            "string" => Node::Text,
            _ => {
                let full = format!("{space}.{name}");
                match self.names.get(name).or_else(|| self.names.get(&full)) {
                    Some(node) => node.clone(),
                    None => return schema_error(format!("unknown type {name:.80}")),
                }
            }
        })
    }

    fn complex(
        &mut self,
        kind: &str,
        json: &Json,
        space: &str,
        depth: usize,
    ) -> Result<Node, AvroError> {
        let name = json.get("name").and_then(Json::as_str).unwrap_or_default();
        let space = json
            .get("namespace")
            .and_then(Json::as_str)
            .unwrap_or(space);
        let part = |key: &str| match json.get(key) {
            Some(part) => Ok(part),
            None => schema_error(format!("{kind:.40} without {key}")),
        };
        match kind {
            "record" | "error" => self.record(name, part("fields")?, space, depth),
            "enum" => {
                let Some(symbols) = part("symbols")?.as_array() else {
                    return schema_error("symbols are no list");
                };
                let symbols = symbols
                    .iter()
                    .map(|s| s.as_str().unwrap_or_default().to_owned())
                    .collect();
                Ok(self.define(name, space, Node::Enum(symbols)))
            }
            "fixed" => {
                let size = part("size")?.as_u64().and_then(|n| usize::try_from(n).ok());
                let Some(size) = size else {
                    return schema_error("size is no number");
                };
                Ok(self.define(name, space, Node::Fixed(size)))
            }
            "array" => {
                let items = self.node(part("items")?, space, depth + 1)?;
                Ok(Node::Array(Box::new(items)))
            }
            "map" => {
                let values = self.node(part("values")?, space, depth + 1)?;
                Ok(Node::Map(Box::new(values)))
            }
            primitive => self.named(primitive, space),
        }
    }

    fn define(&mut self, name: &str, space: &str, node: Node) -> Node {
        if !name.is_empty() {
            self.names.insert(format!("{space}.{name}"), node.clone());
            self.names.insert(name.to_owned(), node.clone());
        }
        node
    }

    fn record(
        &mut self,
        name: &str,
        fields: &Json,
        space: &str,
        depth: usize,
    ) -> Result<Node, AvroError> {
        let Some(fields) = fields.as_array() else {
            return schema_error("fields are no list");
        };
        // Defined first: a record may name itself.
        let index = self.records.len();
        self.records.push(Vec::new());
        self.define(name, space, Node::Record(index));
        let mut list = Vec::with_capacity(fields.len().min(1_024));
        for field in fields {
            let text = |key: &str| field.get(key).and_then(Json::as_str).unwrap_or_default();
            let Some(node) = field.get("type") else {
                return schema_error("a field without a type");
            };
            list.push(Field {
                name: text("name").to_owned(),
                doc: text("doc").to_owned(),
                node: self.node(node, space, depth + 1)?,
            });
        }
        self.records[index] = list;
        Ok(Node::Record(index))
    }

    /// Decodes one record that fills the bytes to the end.
    pub(crate) fn decode(&self, root: usize, bytes: &[u8]) -> Result<Vec<Datum>, AvroError> {
        let mut reader = Reader {
            types: self,
            rest: bytes,
            items: 0,
        };
        let values = reader.record(root, 0)?;
        match reader.rest.len() {
            0 => Ok(values),
            n => Err(AvroError::Trailing(n)),
        }
    }
}

struct Reader<'a> {
    types: &'a Types,
    rest: &'a [u8],
    items: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], AvroError> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or(AvroError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    /// A zigzag varint.
    fn long(&mut self) -> Result<i64, AvroError> {
        let mut raw = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = *self.take(1)?.first().ok_or(AvroError::Short)?;
            if shift == 63 && byte > 1 {
                return Err(AvroError::Bad("number"));
            }
            raw |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok((raw >> 1).cast_signed() ^ -((raw & 1).cast_signed()));
            }
        }
        Err(AvroError::Bad("number"))
    }

    fn blob(&mut self) -> Result<&'a [u8], AvroError> {
        let len = usize::try_from(self.long()?).map_err(|_| AvroError::Bad("length"))?;
        self.take(len)
    }

    fn text(&mut self) -> Result<String, AvroError> {
        let text = std::str::from_utf8(self.blob()?).map_err(|_| AvroError::Bad("text"))?;
        Ok(text.to_owned())
    }

    fn index<'n, T>(&mut self, list: &'n [T]) -> Result<&'n T, AvroError> {
        let index = usize::try_from(self.long()?).map_err(|_| AvroError::Bad("index"))?;
        list.get(index).ok_or(AvroError::Bad("index"))
    }

    fn record(&mut self, index: usize, depth: usize) -> Result<Vec<Datum>, AvroError> {
        let types = self.types;
        let fields = types
            .records
            .get(index)
            .ok_or(AvroError::Bad("record index"))?;
        // Recursive records without data between are possible in a hostile schema.
        self.items += fields.len();
        if depth > DEPTH_MAX || self.items > ITEMS_MAX {
            return Err(AvroError::Bad("nesting"));
        }
        fields
            .iter()
            .map(|f| self.datum(&f.node, depth + 1))
            .collect()
    }

    fn datum(&mut self, node: &Node, depth: usize) -> Result<Datum, AvroError> {
        if depth > DEPTH_MAX {
            return Err(AvroError::Bad("nesting"));
        }
        Ok(match node {
            Node::Null => Datum::Null,
            Node::Boolean => match self.take(1)? {
                [0] => Datum::Boolean(false),
                [1] => Datum::Boolean(true),
                _ => return Err(AvroError::Bad("boolean")),
            },
            Node::Integer => Datum::Integer(self.long()?),
            Node::Float => {
                let bytes = self.take(4)?.try_into().map_err(|_| AvroError::Short)?;
                Datum::Real(f64::from(f32::from_le_bytes(bytes)))
            }
            Node::Double => {
                let bytes = self.take(8)?.try_into().map_err(|_| AvroError::Short)?;
                Datum::Real(f64::from_le_bytes(bytes))
            }
            Node::Bytes => {
                self.blob()?;
                Datum::Bytes
            }
            Node::Fixed(size) => {
                self.take(*size)?;
                Datum::Bytes
            }
            Node::Text => Datum::Text(self.text()?),
            Node::Enum(symbols) => Datum::Text(self.index(symbols)?.clone()),
            Node::Union(branches) => {
                let branch = self.index(branches)?;
                self.datum(branch, depth + 1)?
            }
            Node::Record(index) => Datum::Record(*index, self.record(*index, depth)?),
            Node::Array(items) => Datum::List(self.blocks(items, false, depth)?),
            Node::Map(values) => Datum::List(self.blocks(values, true, depth)?),
        })
    }

    /// Blocks of items until one of length 0; a negative length is followed by
    /// the block's size in bytes.
    fn blocks(&mut self, node: &Node, keyed: bool, depth: usize) -> Result<Vec<Datum>, AvroError> {
        let mut list = Vec::new();
        loop {
            let mut count = self.long()?;
            if count == 0 {
                return Ok(list);
            }
            if count < 0 {
                self.long()?;
                count = count.checked_neg().ok_or(AvroError::Bad("length"))?;
            }
            let count = usize::try_from(count).map_err(|_| AvroError::Bad("length"))?;
            if count > ITEMS_MAX.saturating_sub(self.items) {
                return Err(AvroError::Bad("length"));
            }
            self.items += count;
            for _ in 0..count {
                if keyed {
                    self.blob()?;
                }
                list.push(self.datum(node, depth + 1)?);
            }
        }
    }
}
