//! Writes. A transaction holds the store, can take back what it did, and raises its change events when it commits.

use super::State;
use super::derive::{defaults, derive};
use super::error::Error;
use super::ids::SfId;
use super::schema::{Obj, Object, at, flag};
use super::store::{Hit, Row, Store};
use super::validate::{self, Mode, Values};
use super::value::Value;
use std::sync::{Arc, RwLockWriteGuard};

/// What happened to a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ChangeKind {
    Create,
    Update,
    Delete,
    Undelete,
}

/// One change, waiting for the commit that makes it an event.
pub(crate) struct Change {
    pub(crate) obj: Obj,
    pub(crate) number: u64,
    pub(crate) kind: ChangeKind,
    pub(crate) row: Arc<Row>,
    /// Before an update.
    pub(crate) old: Option<Arc<Row>>,
    /// Fields that changed, by position; only for updates.
    pub(crate) changed: Vec<usize>,
}

/// Who writes, and how change events name the way.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    pub(crate) user: SfId,
    /// `changeOrigin` of the events.
    pub(crate) origin: String,
    /// Read-only fields may be set too.
    pub(crate) system: bool,
    /// `Sforce-Duplicate-Rule-Header: allowSave=true`.
    pub(crate) allow_duplicates: bool,
}

/// A running transaction. Dropping it without [`Tx::commit`] takes everything back.
pub(crate) struct Tx<'a> {
    org: &'a State,
    pub(crate) store: RwLockWriteGuard<'a, Store>,
    pub(crate) writer: Writer,
    /// Whole seconds, as Salesforce stores its stamps.
    pub(crate) now: i64,
    undo: Vec<(Obj, u64, Option<Arc<Row>>)>,
    changes: Vec<Change>,
    committed: bool,
}

impl<'a> Tx<'a> {
    /// Starts a transaction; other writers wait.
    pub(crate) fn begin(org: &'a State, writer: Writer) -> Self {
        let store = org.write_store();
        let now = org.now().div_euclid(1_000) * 1_000;
        Self {
            org,
            store,
            writer,
            now,
            undo: Vec::new(),
            changes: Vec::new(),
            committed: false,
        }
    }

    /// A point to go back to.
    pub(crate) fn savepoint(&self) -> (usize, usize) {
        (self.undo.len(), self.changes.len())
    }

    /// Takes back everything since `savepoint`.
    pub(crate) fn rollback(&mut self, savepoint: (usize, usize)) {
        while self.undo.len() > savepoint.0 {
            if let Some((obj, number, row)) = self.undo.pop() {
                self.store.table_mut(obj).put(number, row);
            }
        }
        self.changes.truncate(savepoint.1);
    }

    /// Keeps what was done and publishes its events, still in store order.
    pub(crate) fn commit(mut self) {
        self.committed = true;
        let changes = std::mem::take(&mut self.changes);
        self.org.publish(&self.writer, &changes);
    }

    fn object(&self, obj: Obj) -> &'a Object {
        self.org.schema().object(obj)
    }

    fn put(&mut self, obj: Obj, number: u64, row: Arc<Row>) {
        let before = self.store.table(obj).written(number);
        self.undo.push((obj, number, before));
        self.store.table_mut(obj).put(number, Some(row));
    }

    fn checks(&self) -> validate::Org<'_> {
        validate::Org {
            schema: self.org.schema(),
            store: &self.store,
            people: &self.org.shared.people,
        }
    }

    fn mode(&self, create: bool) -> Mode {
        if self.writer.system {
            Mode::System
        } else if create {
            Mode::Create
        } else {
            Mode::Update
        }
    }

    /// Creates a record.
    pub(crate) fn create(
        &mut self,
        obj: Obj,
        fields: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<SfId, Error> {
        let object = self.object(obj);
        self.org.row_fault(obj)?;
        let values = validate::values(object, self.checks(), fields, self.mode(true))?;
        let mut row = defaults(object);
        let number = self.store.table(obj).last() + 1;
        let id = SfId::new(obj.prefix(), number);
        for (index, value) in values {
            row[index] = value;
        }
        row[at::ID] = Value::Id(id);
        self.system_fields(object, &mut row, number);
        validate::required(object, &row)?;
        self.unique(object, &row, None)?;
        self.duplicates(object, &row)?;
        self.store.table_mut(obj).allot();
        let row = Arc::new(Row {
            values: row,
            purged: false,
        });
        self.put(obj, number, Arc::clone(&row));
        self.changes.push(Change {
            obj,
            number,
            kind: ChangeKind::Create,
            row,
            old: None,
            changed: Vec::new(),
        });
        Ok(id)
    }

    fn system_fields(&self, object: &Object, row: &mut [Value], number: u64) {
        for index in [at::CREATED_DATE, at::LAST_MODIFIED, at::STAMP] {
            row[index] = Value::DateTime(self.now);
        }
        for index in [at::CREATED_BY, at::LAST_MODIFIED_BY] {
            row[index] = Value::Id(self.writer.user);
        }
        if let Some(owner) = object.index("OwnerId")
            && row[owner].is_null()
        {
            row[owner] = Value::Id(self.writer.user);
        }
        if let Some(index) = object.index("CaseNumber") {
            row[index] = Value::text(&format!("{number:08}"));
        }
        derive(object, row, self.now, None);
    }

    /// Changes a record. A write that changes nothing still moves the stamps, as in Salesforce (unless set otherwise).
    pub(crate) fn update(
        &mut self,
        id: SfId,
        fields: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<(), Error> {
        let (obj, hit) = self.alive(id)?;
        self.org.row_fault(obj)?;
        let values = validate::values(self.object(obj), self.checks(), fields, self.mode(false))?;
        self.apply(obj, &hit, values)
    }

    /// The record `id` names; an error when it is missing or deleted.
    pub(crate) fn alive(&self, id: SfId) -> Result<(Obj, Hit), Error> {
        let (obj, hit) = self.store.find(id).ok_or_else(Error::not_found)?;
        if hit.deleted() {
            Err(Error::deleted())
        } else {
            Ok((obj, hit))
        }
    }

    /// Writes already validated values.
    pub(crate) fn apply(&mut self, obj: Obj, hit: &Hit, values: Values) -> Result<(), Error> {
        let object = self.object(obj);
        let number = hit.number();
        let old = Arc::new(Row {
            values: hit.view(object, &self.org.shared.people).all(),
            purged: false,
        });
        let mut row = old.values.clone();
        for (index, value) in values {
            row[index] = value;
        }
        derive(object, &mut row, self.now, Some(&old.values));
        let mut changed: Vec<usize> = (0..row.len())
            .filter(|index| row[*index] != old.values[*index])
            .collect();
        if changed.is_empty() && !self.org.settings().touch_on_noop {
            return Ok(());
        }
        validate::required(object, &row)?;
        self.unique(object, &row, Some(number))?;
        row[at::LAST_MODIFIED] = Value::DateTime(self.now);
        row[at::STAMP] = Value::DateTime(self.now);
        row[at::LAST_MODIFIED_BY] = Value::Id(self.writer.user);
        changed.push(at::LAST_MODIFIED);
        if row[at::LAST_MODIFIED_BY] != old.values[at::LAST_MODIFIED_BY] {
            changed.push(at::LAST_MODIFIED_BY);
        }
        let row = Arc::new(Row {
            values: row,
            purged: false,
        });
        self.put(obj, number, Arc::clone(&row));
        self.changes.push(Change {
            obj,
            number,
            kind: ChangeKind::Update,
            row,
            old: Some(old),
            changed,
        });
        Ok(())
    }

    /// Moves a record into the recycle bin.
    pub(crate) fn delete(&mut self, id: SfId) -> Result<(), Error> {
        let (obj, hit) = self.alive(id)?;
        self.org.row_fault(obj)?;
        self.flag(obj, &hit, true, ChangeKind::Delete);
        Ok(())
    }

    /// Takes a record out of the recycle bin.
    pub(crate) fn undelete(&mut self, id: SfId) -> Result<(), Error> {
        let (obj, hit) = self.store.find(id).ok_or_else(Error::not_found)?;
        if !hit.deleted() {
            return Err(Error::bad(
                "UNDELETE_FAILED",
                "entity is not in the recycle bin",
            ));
        }
        let object = self.object(obj);
        let row = hit.view(object, &self.org.shared.people).all();
        self.unique(object, &row, Some(hit.number()))?;
        self.flag(obj, &hit, false, ChangeKind::Undelete);
        Ok(())
    }

    fn flag(&mut self, obj: Obj, hit: &Hit, deleted: bool, kind: ChangeKind) {
        let mut row = hit.view(self.object(obj), &self.org.shared.people).all();
        row[at::IS_DELETED] = Value::Bool(deleted);
        row[at::STAMP] = Value::DateTime(self.now);
        row[at::LAST_MODIFIED] = Value::DateTime(self.now);
        row[at::LAST_MODIFIED_BY] = Value::Id(self.writer.user);
        let row = Arc::new(Row {
            values: row,
            purged: false,
        });
        self.put(obj, hit.number(), Arc::clone(&row));
        self.changes.push(Change {
            obj,
            number: hit.number(),
            kind,
            row,
            old: None,
            changed: Vec::new(),
        });
    }

    /// Marks a record that is about to be deleted as merged into `winner`; raises no event of its own.
    pub(crate) fn point_to_master(&mut self, obj: Obj, hit: &Hit, field: usize, winner: SfId) {
        let mut row = hit.view(self.object(obj), &self.org.shared.people).all();
        row[field] = Value::Id(winner);
        self.put(
            obj,
            hit.number(),
            Arc::new(Row {
                values: row,
                purged: false,
            }),
        );
    }

    /// Removes a record for good.
    pub(crate) fn purge(&mut self, id: SfId) -> Result<(), Error> {
        let (obj, hit) = self.store.find(id).ok_or_else(Error::not_found)?;
        if !hit.deleted() {
            self.flag(obj, &hit, true, ChangeKind::Delete);
        }
        let empty = vec![Value::Null; self.object(obj).fields.len()];
        self.put(
            obj,
            hit.number(),
            Arc::new(Row {
                values: empty,
                purged: true,
            }),
        );
        Ok(())
    }

    /// Refuses a second record with the same value in a unique field. Deleted records do not count.
    fn unique(&self, object: &Object, row: &[Value], own: Option<u64>) -> Result<(), Error> {
        for (index, field) in object
            .visible()
            .filter(|(_, field)| field.has(flag::UNIQUE))
        {
            let found = self.store.table(object.obj).lookup(
                object,
                &self.org.shared.people,
                index,
                &row[index],
            );
            let other = found
                .iter()
                .find(|hit| Some(hit.number()) != own && !hit.deleted());
            if let Some(other) = other {
                let id = SfId::new(object.obj.prefix(), other.number()).to_string();
                let message = format!(
                    "duplicate value found: {} duplicates value on record with id: {}",
                    field.name,
                    &id[..15]
                );
                return Err(Error::bad("DUPLICATE_VALUE", message));
            }
        }
        Ok(())
    }

    /// The org's duplicate rule, when switched on: no second Contact or Lead with the same address.
    fn duplicates(&self, object: &Object, row: &[Value]) -> Result<(), Error> {
        if self.writer.allow_duplicates
            || !self.org.settings().duplicate_rule
            || !matches!(object.obj, Obj::Contact | Obj::Lead)
        {
            return Ok(());
        }
        let Some(email) = object.index("Email") else {
            return Ok(());
        };
        let mut found = self.store.table(object.obj).lookup(
            object,
            &self.org.shared.people,
            email,
            &row[email],
        );
        found.retain(|hit| !hit.deleted());
        if found.is_empty() {
            Ok(())
        } else {
            Err(duplicates_detected(object.obj, &found))
        }
    }
}

impl Drop for Tx<'_> {
    fn drop(&mut self) {
        if !self.committed {
            self.rollback((0, 0));
        }
    }
}

fn duplicates_detected(obj: Obj, found: &[Hit]) -> Error {
    let name = obj.name();
    let matches: Vec<serde_json::Value> = found
        .iter()
        .take(10)
        .map(|hit| {
            let id = SfId::new(obj.prefix(), hit.number()).to_string();
            let url = format!("/services/data/v62.0/sobjects/{name}/{id}");
            serde_json::json!({"additionalInformation": [], "fieldDiffs": [], "matchConfidence": 100.0,
                "record": {"attributes": {"type": name, "url": url}, "Id": id}})
        })
        .collect();
    let result = serde_json::json!({
        "allowSave": true, "duplicateRule": format!("Standard_{name}_Duplicate_Rule"), "duplicateRuleEntityType": name,
        "errorMessage": "Use one of these records?",
        "matchResults": [{"entityType": name, "errors": [], "matchEngine": "FuzzyMatchEngine", "matchRecords": matches,
            "rule": format!("Standard_{name}_Match_Rule"), "size": matches.len(), "success": true}]
    });
    let mut error = Error::bad("DUPLICATES_DETECTED", "Use one of these records?");
    // The misspelling is Salesforce's.
    error.extra = Some(Box::new(("duplicateResut", result)));
    error
}
