//! Recursive-descent parser of SOQL; resolves names and types literals as it goes.

use super::ast::{Column, Expr, Op, Order, Query};
use super::lexer::{Spanned, Token, tokens};
use super::{SoqlError, literal};
use crate::salesforce::schema::{Field, Kind, Object, Schema};
use crate::salesforce::value::Value;

/// Longest query accepted, as in Salesforce.
const MAX_QUERY: usize = 100_000;
/// Deepest nesting of parentheses and NOT; bounds the recursion.
const MAX_DEPTH: usize = 64;

/// Parses `query` against the org's objects. `now` (ms) resolves date literals such as `TODAY`.
pub(crate) fn parse(schema: &Schema, query: &str, now: i64) -> Result<Query, SoqlError> {
    if query.len() > MAX_QUERY {
        return Err(SoqlError::new(
            "QUERY_TOO_COMPLICATED",
            "SOQL statements cannot be longer than 100,000 characters.".into(),
        ));
    }
    let tokens = tokens(query)?;
    let object = find_object(schema, query, &tokens)?;
    let mut parser = Parser {
        schema,
        query,
        tokens,
        next: 0,
        object,
        depth: 0,
        now,
    };
    let parsed = parser.query()?;
    parser.end()?;
    Ok(parsed)
}

/// Finds the object before the columns are read: they need it.
fn find_object<'a>(
    schema: &'a Schema,
    query: &str,
    tokens: &[Spanned],
) -> Result<&'a Object, SoqlError> {
    let is_from = |spanned: &Spanned| matches!(&spanned.token, Token::Word(word) if word.eq_ignore_ascii_case("from"));
    let name = tokens
        .iter()
        .position(is_from)
        .and_then(|at| tokens.get(at + 1));
    match name {
        Some(Spanned { token: Token::Word(name), at }) => schema.find(name).ok_or_else(|| {
            let what = format!(
                "sObject type '{name}' is not supported. If you are attempting to use a custom object, be sure to append the '__c' \
                 after the entity name. Please reference your WSDL or the describe call for the appropriate names."
            );
            SoqlError::at("INVALID_TYPE", query, *at, &what)
        }),
        _ => Err(SoqlError::at("MALFORMED_QUERY", query, query.len(), "unexpected token: <EOF>, expecting 'from'")),
    }
}

struct Parser<'a> {
    schema: &'a Schema,
    query: &'a str,
    tokens: Vec<Spanned>,
    next: usize,
    object: &'a Object,
    depth: usize,
    now: i64,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> &Spanned {
        &self.tokens[self.next.min(self.tokens.len() - 1)]
    }

    fn take(&mut self) -> Spanned {
        let spanned = self.peek().clone();
        self.next += 1;
        spanned
    }

    fn keyword(&mut self, word: &str) -> bool {
        let found =
            matches!(&self.peek().token, Token::Word(found) if found.eq_ignore_ascii_case(word));
        self.next += usize::from(found);
        found
    }

    fn sign(&mut self, sign: &str) -> bool {
        let found = matches!(&self.peek().token, Token::Sign(found) if *found == sign);
        self.next += usize::from(found);
        found
    }

    fn unexpected(&self) -> SoqlError {
        let spanned = self.peek();
        let what = match &spanned.token {
            Token::Word(text) | Token::Literal(text) => format!("unexpected token: '{text}'"),
            Token::Text(text) => format!("unexpected token: '{text}'"),
            Token::Sign(sign) => format!("unexpected token: '{sign}'"),
            Token::End => "unexpected token: '<EOF>'".to_owned(),
        };
        SoqlError::at("MALFORMED_QUERY", self.query, spanned.at, &what)
    }

    fn expect(&mut self, found: bool) -> Result<(), SoqlError> {
        if found {
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    fn end(&mut self) -> Result<(), SoqlError> {
        let ended = matches!(self.peek().token, Token::End);
        self.expect(ended)
    }

    fn query(&mut self) -> Result<Query, SoqlError> {
        let found = self.keyword("select");
        self.expect(found)?;
        let (count, columns) = self.columns()?;
        let found = self.keyword("from");
        self.expect(found)?;
        self.take();
        let filter = if self.keyword("where") {
            Some(self.or()?)
        } else {
            None
        };
        let order = self.order()?;
        let limit = if self.keyword("limit") {
            Some(self.whole()?)
        } else {
            None
        };
        let offset = if self.keyword("offset") {
            self.whole()?
        } else {
            0
        };
        if offset > 2_000 {
            let message = "Maximum SOQL offset allowed is 2000".to_owned();
            return Err(SoqlError::new("NUMBER_OUTSIDE_VALID_RANGE", message));
        }
        Ok(Query {
            obj: self.object.obj,
            columns,
            count,
            filter,
            order,
            limit,
            offset,
        })
    }

    fn columns(&mut self) -> Result<(bool, Vec<Column>), SoqlError> {
        if self.keyword("count") {
            let found = self.sign("(") && self.sign(")");
            self.expect(found)?;
            return Ok((true, Vec::new()));
        }
        let mut columns: Vec<Column> = Vec::new();
        loop {
            let spanned = self.take();
            let Token::Word(name) = &spanned.token else {
                self.next -= 1;
                return Err(self.unexpected());
            };
            let column = self.column(name, spanned.at)?;
            if columns.contains(&column) {
                return Err(SoqlError::at(
                    "INVALID_FIELD",
                    self.query,
                    spanned.at,
                    &format!("duplicate field selected: {name}"),
                ));
            }
            match (
                columns.iter_mut().find(|known| same_parent(known, &column)),
                column,
            ) {
                (Some(Column::Parent { fields, .. }), Column::Parent { fields: more, .. }) => {
                    fields.extend(more)
                }
                (_, column) => columns.push(column),
            }
            if !self.sign(",") {
                return Ok((false, columns));
            }
        }
    }

    fn column(&self, name: &str, at: usize) -> Result<Column, SoqlError> {
        if let Some((relation, field)) = name.split_once('.') {
            return self.parent(relation, field, at);
        }
        let index = self.index(name, at)?;
        Ok(if self.object.fields[index].kind == Kind::Address {
            Column::Compound(index)
        } else {
            Column::Field(index)
        })
    }

    fn parent(&self, relation: &str, field: &str, at: usize) -> Result<Column, SoqlError> {
        let wrong = |what: String| SoqlError::at("INVALID_FIELD", self.query, at, &what);
        let is_it = |candidate: &Field| {
            candidate
                .relationship
                .is_some_and(|name| name.eq_ignore_ascii_case(relation))
        };
        let reference = self.object.fields.iter().position(is_it).ok_or_else(|| {
            wrong(format!(
                "Didn't understand relationship '{relation}' in field path. If you are attempting to use a custom relationship, be sure \
                 to append the '__r' after the custom relationship name. Please reference your WSDL or the describe call for the \
                 appropriate names."
            ))
        })?;
        let obj = self.object.fields[reference].refers[0];
        let index = self
            .schema
            .object(obj)
            .index(field)
            .ok_or_else(|| wrong(no_column(field, obj.name())))?;
        Ok(Column::Parent {
            reference,
            obj,
            fields: vec![index],
        })
    }

    fn index(&self, name: &str, at: usize) -> Result<usize, SoqlError> {
        self.object.index(name).ok_or_else(|| {
            SoqlError::at(
                "INVALID_FIELD",
                self.query,
                at,
                &no_column(name, self.object.obj.name()),
            )
        })
    }

    fn or(&mut self) -> Result<Expr, SoqlError> {
        self.chain("or", Self::and, Expr::Or)
    }

    fn and(&mut self) -> Result<Expr, SoqlError> {
        self.chain("and", Self::not, Expr::And)
    }

    fn chain(
        &mut self,
        word: &str,
        part: fn(&mut Self) -> Result<Expr, SoqlError>,
        join: fn(Vec<Expr>) -> Expr,
    ) -> Result<Expr, SoqlError> {
        let mut parts = vec![part(self)?];
        while self.keyword(word) {
            parts.push(part(self)?);
        }
        let first = if parts.len() == 1 { parts.pop() } else { None };
        Ok(first.unwrap_or_else(|| join(parts)))
    }

    fn not(&mut self) -> Result<Expr, SoqlError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            let message = "The query's condition is nested too deeply.".to_owned();
            return Err(SoqlError::new("QUERY_TOO_COMPLICATED", message));
        }
        let parsed = if self.keyword("not") {
            Ok(Expr::Not(Box::new(self.not()?)))
        } else if self.sign("(") {
            let inner = self.or()?;
            let found = self.sign(")");
            self.expect(found).map(|()| inner)
        } else {
            self.condition()
        };
        self.depth -= 1;
        parsed
    }

    fn condition(&mut self) -> Result<Expr, SoqlError> {
        let spanned = self.take();
        let Token::Word(name) = &spanned.token else {
            self.next -= 1;
            return Err(self.unexpected());
        };
        let field = self.index(name, spanned.at)?;
        if self.keyword("like") {
            return self.like(field);
        }
        let negated = self.keyword("not");
        if self.keyword("in") {
            let values = self.list(field)?;
            return Ok(Expr::In {
                field,
                negated,
                values,
            });
        }
        self.expect(!negated)?;
        for (word, negated) in [("includes", false), ("excludes", true)] {
            if self.keyword(word) {
                return self.includes(field, negated);
            }
        }
        let Token::Sign(sign) = self.peek().token else {
            return Err(self.unexpected());
        };
        let op = match sign {
            "=" => Op::Eq,
            "!=" | "<>" => Op::Ne,
            "<" => Op::Lt,
            "<=" => Op::Le,
            ">" => Op::Gt,
            ">=" => Op::Ge,
            _ => return Err(self.unexpected()),
        };
        self.take();
        let value = self.literal(field)?;
        let orders =
            matches!(op, Op::Eq | Op::Ne) || self.object.fields[field].kind != Kind::Boolean;
        if !orders {
            let message = format!(
                "The '{sign}' operator is not valid for the field '{name}' of type boolean"
            );
            return Err(SoqlError::at(
                "INVALID_QUERY_FILTER_OPERATOR",
                self.query,
                spanned.at,
                &message,
            ));
        }
        Ok(Expr::Compare { field, op, value })
    }

    fn like(&mut self, field: usize) -> Result<Expr, SoqlError> {
        let spanned = self.take();
        let kind = self.object.fields[field].kind;
        match spanned.token {
            Token::Text(pattern) if kind.is_text() => Ok(Expr::Like {
                field,
                pattern: pattern.to_lowercase(),
            }),
            _ => Err(SoqlError::at(
                "INVALID_QUERY_FILTER_OPERATOR",
                self.query,
                spanned.at,
                "invalid operator on id field or value of LIKE is not text",
            )),
        }
    }

    fn includes(&mut self, field: usize, negated: bool) -> Result<Expr, SoqlError> {
        if self.object.fields[field].kind != Kind::MultiPicklist {
            return Err(self.unexpected());
        }
        let values = self.list(field)?;
        let split = |value: &Value| {
            value
                .as_text()
                .unwrap_or("")
                .split(';')
                .map(str::to_lowercase)
                .collect()
        };
        Ok(Expr::Includes {
            field,
            negated,
            sets: values.iter().map(split).collect(),
        })
    }

    fn list(&mut self, field: usize) -> Result<Vec<Value>, SoqlError> {
        let found = self.sign("(");
        self.expect(found)?;
        let mut values = vec![self.literal(field)?];
        while self.sign(",") {
            values.push(self.literal(field)?);
        }
        let found = self.sign(")");
        self.expect(found)?;
        Ok(values)
    }

    fn literal(&mut self, index: usize) -> Result<Value, SoqlError> {
        let spanned = self.take();
        let field = &self.object.fields[index];
        let typed = match &spanned.token {
            Token::Word(word) if word.eq_ignore_ascii_case("null") => Some(Value::Null),
            Token::Word(word) => literal::word(field, word, self.now),
            Token::Text(text) => literal::quoted(field, text),
            Token::Literal(text) => literal::bare(field, text),
            Token::Sign(_) | Token::End => {
                self.next -= 1;
                return Err(self.unexpected());
            }
        };
        if let Some(value) = typed {
            return Ok(value);
        }
        if matches!(field.kind, Kind::Id | Kind::Reference) {
            let Token::Text(text) = &spanned.token else {
                return Err(self.mistyped(field, spanned.at));
            };
            let what = format!("invalid ID field: {text}");
            return Err(SoqlError::at(
                "INVALID_QUERY_FILTER_OPERATOR",
                self.query,
                spanned.at,
                &what,
            ));
        }
        Err(self.mistyped(field, spanned.at))
    }

    fn mistyped(&self, field: &Field, at: usize) -> SoqlError {
        let (kind, quotes) = match field.kind {
            Kind::DateTime => ("dateTime", "should not be"),
            kind if kind.is_text() => ("string", "should be"),
            kind => (kind.name(), "should not be"),
        };
        let what = format!(
            "value of filter criterion for field '{}' must be of type {kind} and {quotes} enclosed in quotes",
            field.name
        );
        SoqlError::at("INVALID_FIELD", self.query, at, &what)
    }

    fn order(&mut self) -> Result<Vec<Order>, SoqlError> {
        let mut keys = Vec::new();
        if !self.keyword("order") {
            return Ok(keys);
        }
        let found = self.keyword("by");
        self.expect(found)?;
        loop {
            let spanned = self.take();
            let Token::Word(name) = &spanned.token else {
                self.next -= 1;
                return Err(self.unexpected());
            };
            let field = self.index(name, spanned.at)?;
            let kind = &self.object.fields[field];
            if kind.is_long_text() || matches!(kind.kind, Kind::Address | Kind::MultiPicklist) {
                let what = format!("field '{name}' can not be sorted in a query call");
                return Err(SoqlError::at(
                    "INVALID_FIELD",
                    self.query,
                    spanned.at,
                    &what,
                ));
            }
            let descending = self.keyword("desc");
            if !descending {
                self.keyword("asc");
            }
            let mut nulls_last = false;
            if self.keyword("nulls") {
                nulls_last = self.keyword("last");
                let found = nulls_last || self.keyword("first");
                self.expect(found)?;
            }
            keys.push(Order {
                field,
                descending,
                nulls_last,
            });
            if !self.sign(",") {
                return Ok(keys);
            }
        }
    }

    fn whole(&mut self) -> Result<u64, SoqlError> {
        match &self.peek().token {
            Token::Literal(text) => {
                let number = text.parse().map_err(|_| self.unexpected())?;
                self.next += 1;
                Ok(number)
            }
            _ => Err(self.unexpected()),
        }
    }
}

fn no_column(name: &str, entity: &str) -> String {
    format!(
        "No such column '{name}' on entity '{entity}'. If you are attempting to use a custom field, be sure to append the '__c' after the \
         custom field name. Please reference your WSDL or the describe call for the appropriate names."
    )
}

fn same_parent(a: &Column, b: &Column) -> bool {
    matches!((a, b), (Column::Parent { reference: a, .. }, Column::Parent { reference: b, .. }) if a == b)
}
