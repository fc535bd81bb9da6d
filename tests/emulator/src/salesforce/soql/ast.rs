//! A parsed query, names already resolved to positions in the schema.

use crate::salesforce::schema::Obj;
use crate::salesforce::value::Value;

/// A selected column.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Column {
    /// A field of the queried object.
    Field(usize),
    /// A compound field (an address), by its position.
    Compound(usize),
    /// Fields of a parent: the reference field, the parent's object, the parent's fields.
    Parent {
        reference: usize,
        obj: Obj,
        fields: Vec<usize>,
    },
}

/// Comparison operators.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// A condition.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expr {
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Not(Box<Expr>),
    Compare {
        field: usize,
        op: Op,
        value: Value,
    },
    In {
        field: usize,
        negated: bool,
        values: Vec<Value>,
    },
    Like {
        field: usize,
        pattern: String,
    },
    /// INCLUDES / EXCLUDES on a multi-select: any of these sets of values.
    Includes {
        field: usize,
        negated: bool,
        sets: Vec<Vec<String>>,
    },
}

/// One key of ORDER BY.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Order {
    pub(crate) field: usize,
    pub(crate) descending: bool,
    pub(crate) nulls_last: bool,
}

/// A query.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Query {
    pub(crate) obj: Obj,
    pub(crate) columns: Vec<Column>,
    /// `SELECT COUNT()`: no rows, only their number.
    pub(crate) count: bool,
    pub(crate) filter: Option<Expr>,
    pub(crate) order: Vec<Order>,
    pub(crate) limit: Option<u64>,
    pub(crate) offset: u64,
}
