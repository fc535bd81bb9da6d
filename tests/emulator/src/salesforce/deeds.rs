//! Deeds behind the admin routes that only Salesforce has: settings, faults of rows, gap events, edits in one transaction,
//! lead conversion, merge.

use super::State;
use super::admin::{Answer, text};
use super::error::Error;
use super::ids::SfId;
use super::schema::{Obj, flag};
use super::session::SYNC_USER;
use super::stamps;
use super::store::Hit;
use super::tx::{Tx, Writer};
use crate::admin::{Actor, Refused};
use serde_json::{Map, Value as Json, json};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

impl State {
    pub(super) fn change_settings(&self, changes: &Map<String, Json>) -> Answer {
        let mut changes = changes.clone();
        // No setting but a count: the calls of the last 24 hours.
        let used = match changes.remove("used") {
            None => None,
            Some(used) => Some(
                used.as_u64()
                    .ok_or_else(|| Refused::Bad("used: expected a whole number".to_owned()))?,
            ),
        };
        let mut settings = self
            .settings
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        settings.merge(&changes).map_err(Refused::Bad)?;
        if let Some(used) = used {
            self.calls.store(used, Ordering::Relaxed);
        }
        Ok(settings.to_json())
    }

    /// `{"statusCode":"UNABLE_TO_LOCK_ROW","remaining":3,"object":"Contact","message":"…","status":500,"skip":0}`
    pub(super) fn add_row_fault(&self, fault: &Map<String, Json>) -> Answer {
        let number = |key: &str, default: u64| {
            fault
                .get(key)
                .map_or(Some(default), Json::as_u64)
                .ok_or_else(|| Refused::Bad(format!("{key}: expected a number")))
        };
        let code = fault
            .get("statusCode")
            .and_then(Json::as_str)
            .unwrap_or("UNABLE_TO_LOCK_ROW");
        let lock =
            "unable to obtain exclusive access to this record or 1 records: 003xx0000000001AAA";
        let message = fault.get("message").and_then(Json::as_str).unwrap_or(
            if code == "UNABLE_TO_LOCK_ROW" {
                lock
            } else {
                code
            },
        );
        let status = number(
            "status",
            if code == "UNABLE_TO_LOCK_ROW" {
                500
            } else {
                400
            },
        )?;
        let obj = fault
            .get("object")
            .and_then(Json::as_str)
            .map(|name| self.named(name).map(|object| object.obj))
            .transpose()?;
        let error = Error::new(u16::try_from(status).unwrap_or(400), code, message);
        let (skip, remaining) = (number("skip", 0)?, number("remaining", 1)?.max(1));
        let mut faults = self
            .row_faults
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if faults.len() >= 1_000 {
            return Err(Refused::Bad("more than 1000 row faults".to_owned()));
        }
        faults.push(super::RowFault {
            error,
            obj,
            skip,
            remaining,
        });
        Ok(json!({"row_faults": faults.len()}))
    }

    /// `{"object":"Contact","ids":["…"],"changeType":"GAP_UPDATE"}`; `GAP_OVERFLOW` needs no ids.
    pub(super) fn gap(&self, gap: &Map<String, Json>) -> Answer {
        let object = self.named(text(gap, "object")?)?;
        let kind = text(gap, "changeType")?;
        if ![
            "GAP_CREATE",
            "GAP_UPDATE",
            "GAP_DELETE",
            "GAP_UNDELETE",
            "GAP_OVERFLOW",
        ]
        .contains(&kind)
        {
            return Err(Refused::Bad(format!(
                "changeType `{kind}`: expected GAP_CREATE, GAP_UPDATE, GAP_DELETE, GAP_UNDELETE or GAP_OVERFLOW"
            )));
        }
        let ids: Vec<String> = if kind == "GAP_OVERFLOW" {
            vec!["000000000000000AAA".to_owned()]
        } else {
            let ids = gap
                .get("ids")
                .and_then(Json::as_array)
                .ok_or_else(|| Refused::Bad("ids: expected a list".to_owned()))?;
            ids.iter()
                .filter_map(Json::as_str)
                .map(str::to_owned)
                .collect()
        };
        let writer = Writer {
            user: SYNC_USER,
            origin: String::new(),
            system: true,
            allow_duplicates: true,
        };
        self.publish_gap(object.obj, ids, kind, &writer);
        Ok(json!({}))
    }

    /// `{"edits":[{"object","id","fields"}],"user"?}`: several edits in one transaction, as a trigger or a flow makes them.
    pub(super) fn edit_together(&self, deed: &Map<String, Json>) -> Answer {
        let edits = deed
            .get("edits")
            .and_then(Json::as_array)
            .ok_or_else(|| Refused::Bad("edits: expected a list".to_owned()))?;
        let user = deed.get("user").and_then(Json::as_str).map(str::to_owned);
        let mut work = Vec::new();
        for edit in edits {
            let edit = edit
                .as_object()
                .ok_or_else(|| Refused::Bad("edits: expected objects".to_owned()))?;
            let object = self.named(text(edit, "object")?)?;
            let fields = edit
                .get("fields")
                .and_then(Json::as_object)
                .cloned()
                .unwrap_or_default();
            work.push((self.id(object, text(edit, "id")?)?, fields));
        }
        let writer = self.actor(&Actor { user, source: None })?;
        self.act(writer, |tx| {
            work.iter()
                .try_for_each(|(id, fields)| tx.update(*id, fields))
        })?;
        Ok(json!({"edited": work.len()}))
    }

    /// `{"id":"00Q…","opportunity":true}`: a lead becomes an Account, a Contact and an Opportunity in one transaction.
    pub(super) fn convert_lead(&self, deed: &Map<String, Json>) -> Answer {
        let lead = self.schema().object(Obj::Lead);
        let id = self.id(lead, text(deed, "id")?)?;
        let with_deal = deed
            .get("opportunity")
            .and_then(Json::as_bool)
            .unwrap_or(true);
        let hit = self
            .read_store()
            .table(Obj::Lead)
            .get(id.number)
            .ok_or_else(Error::not_found)?;
        let Json::Object(row) = self.shown(lead, &hit) else {
            return Err(Refused::Bad("no record".to_owned()));
        };
        if row["IsConverted"] == json!(true) {
            return Err(Refused::Bad(
                "CANNOT_UPDATE_CONVERTED_LEAD: the lead is converted already".to_owned(),
            ));
        }
        let take = |pairs: &[(&str, &str)]| -> Map<String, Json> {
            let pick =
                |(to, from): &(&str, &str)| Some(((*to).to_owned(), row.get(*from)?.clone()));
            pairs
                .iter()
                .filter_map(pick)
                .filter(|(_, value)| !value.is_null())
                .collect()
        };
        let writer = Writer {
            system: true,
            ..self.actor(&Actor::default())?
        };
        let now = self.now();
        let made = self.act(writer, |tx| {
            let account = tx.create(Obj::Account, &take(&[("Name", "Company"), ("Phone", "Phone"), ("Industry", "Industry"), ("BillingCity", "City")]))?;
            let mut person = take(&[("FirstName", "FirstName"), ("LastName", "LastName"), ("Email", "Email"), ("Phone", "Phone"), ("MobilePhone", "MobilePhone"), ("Title", "Title"), ("MailingCity", "City"), ("MailingStreet", "Street")]);
            person.insert("AccountId".to_owned(), json!(account.to_string()));
            let contact = tx.create(Obj::Contact, &person)?;
            let mut change = json!({"IsConverted": true, "Status": "Closed - Converted", "ConvertedDate": stamps::datetime(now)[..10],
                "ConvertedAccountId": account.to_string(), "ConvertedContactId": contact.to_string()});
            let mut deal = None;
            if with_deal {
                let close = stamps::datetime(now + 30 * stamps::DAY_MS);
                let fields = json!({"Name": format!("{}-", row["Company"].as_str().unwrap_or_default()), "StageName": "Prospecting",
                    "CloseDate": close[..10], "AccountId": account.to_string()});
                let id = tx.create(Obj::Opportunity, fields.as_object().unwrap_or(&Map::new()))?;
                change["ConvertedOpportunityId"] = json!(id.to_string());
                deal = Some(id.to_string());
            }
            tx.update(id, change.as_object().unwrap_or(&Map::new()))?;
            Ok((account, contact, deal))
        })?;
        Ok(
            json!({"accountId": made.0.to_string(), "contactId": made.1.to_string(), "opportunityId": made.2}),
        )
    }

    /// Children of `loser` move to `winner`, then the loser is deleted with a pointer to the winner.
    pub(super) fn merge_in(
        &self,
        tx: &mut Tx<'_>,
        obj: Obj,
        winner: SfId,
        loser: SfId,
    ) -> Result<(), Error> {
        tx.alive(winner)?;
        let (_, lost) = tx.alive(loser)?;
        for child in &self.schema().objects {
            for (index, field) in child
                .visible()
                .filter(|(_, field)| field.refers.contains(&obj) && field.has(flag::UPDATE))
            {
                let pointing = |hit: &Hit| {
                    hit.view(child, &self.shared.people)
                        .with(index, |value| value.as_id() == Some(loser))
                };
                let last = tx.store.table(child.obj).last();
                let hits: Vec<Hit> = tx
                    .store
                    .table(child.obj)
                    .by_number(1, last)
                    .filter(|hit| !hit.deleted() && pointing(hit))
                    .collect();
                let fields = Map::from_iter([(field.name.to_owned(), json!(winner.to_string()))]);
                for hit in hits {
                    tx.update(SfId::new(child.obj.prefix(), hit.number()), &fields)?;
                }
            }
        }
        let object = self.schema().object(obj);
        if let Some(master) = object.index("MasterRecordId") {
            tx.point_to_master(obj, &lost, master, winner);
        }
        tx.delete(loser)?;
        tx.update(winner, &Map::new())
    }
}
