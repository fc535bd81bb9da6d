//! One field of one observation: what the steps of a decision look at, and what they
//! and their effects say.

use crate::broken::{Mistake, made};
use crate::echo::{self, Order};
use crate::evaluate::{Evaluation, Question};
use crate::group::{Group, SideField};
use crate::mapping::between;
use crate::model::{Mark, Millis, Value};
use crate::policy::{FieldLock, Policy, Rule};
use crate::stamps::Quality;
use crate::state::{Claim, Clock, Entity, FieldState, Interval, Sent, SentWrite, SideState};
use crate::strategy::{Candidate, Contest, Strategy};
use crate::timeline;
use crate::value::same;

/// Where an observation comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// An event of a CRM about this field.
    #[default]
    Remote,
    /// SQL on this side's mirror.
    Local,
    /// A page of records (backfill, poll, re-read): the time is the record's.
    Page,
}

/// What was observed of one record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Side of the group.
    pub side: usize,
    /// Kind.
    pub source: Source,
    /// Who wrote: the server's name, `local`, or an application.
    pub origin: String,
    /// Field of the group, new value, and for SQL the value before, where known.
    pub values: Vec<(usize, Value, Option<Value>)>,
    /// Fields of which SQL made an earlier edit that was decided just now: their rows
    /// show what came of that.
    pub decided: Vec<usize>,
    /// When, by the source's clock.
    pub at: Interval,
    /// How exact that is.
    pub quality: Quality,
    /// Engine sequence.
    pub seq: i64,
    /// Whom the CRM names as the writer.
    pub mark: Mark,
    /// How sure the writer is of the values, in thousandths; SQL says it.
    pub score: Option<u16>,
    /// What it causes waits for a person's approval.
    pub held: bool,
    /// SQL wrote it as a new record, without knowing that its CRM has it already.
    pub anew: bool,
    /// For a page whose records were asked for by id: when. It shows what the CRM
    /// held at that time or later.
    pub asked_at: Option<Millis>,
    /// What functions of users said, where the event was put to them.
    pub evaluations: Vec<Evaluation>,
}

/// The step that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The record is removed.
    Tombstone,
    /// Older than any order can be known for: the record is read again.
    TooLate,
    /// Our own write came back.
    Echo,
    /// The CRM stored our write in another form.
    NormalForm,
    /// The value is held already.
    Equal,
    /// The CRM's state from before our write, known already.
    Known,
    /// Older than what this side showed before.
    Stale,
    /// A page read while our write is on its way.
    Unsettled,
    /// A page shows that our write did not land.
    NotLanded,
    /// The map takes no values from this side.
    OneWay,
    /// A person is being asked about this field.
    Held,
    /// The value keeps coming back against our writes: stopped.
    Flapping,
    /// Who may write.
    Owner,
    /// Whether there was a value.
    FillBlank,
    /// Only this side changed.
    OneSide,
    /// Two sides changed.
    Conflict,
    /// Only some origins may write the field.
    Locked,
    /// The writer was not sure enough.
    Score,
    /// The edit waits until it is known whether it was made before or after a
    /// write of ours.
    Waiting,
    /// An edit was put on top of another.
    Merge,
    /// A person or a request set the value.
    Resolved,
    /// Decided again because the policy changed.
    Policy,
}

/// What was decided about one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Field of the group.
    pub field: usize,
    /// Step that decided.
    pub step: Step,
    /// Policy row, where one decided.
    pub rule: Option<i64>,
    /// Its strategy.
    pub strategy: Option<Strategy>,
    /// Origin of the value that stands; empty if nobody remembers.
    pub winner: String,
    /// The value that stands, in the observed side's type.
    pub value: Value,
    /// Values that went into the one that stands, with their origins, where it is
    /// none of them.
    pub merged: Vec<(String, Value)>,
    /// What a user's function said; boxed, because it is rare and ten times the rest.
    pub evaluation: Option<Box<Evaluation>>,
    /// Values that do not stand, with their origins.
    pub losers: Vec<(String, Value)>,
    /// Two sides had changed.
    pub conflict: bool,
    /// Why something waits or could not be carried, in words.
    pub held: Option<String>,
}

/// What follows from an observation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// One per field that was looked at; a page's known values are left out.
    pub decisions: Vec<Decision>,
    /// Mirror cells to set: side, field, value.
    pub rows: Vec<(usize, usize, Value)>,
    /// Writes for the outbox; each replaces an unclaimed one of the same cell.
    /// For a side in shadow: what it would get.
    pub writes: Vec<(usize, usize, Value)>,
    /// Unclaimed writes made moot.
    pub cancel: Vec<(usize, usize)>,
    /// Sides whose record should be read again.
    pub reread: Vec<usize>,
    /// Field states to store; `None` removes.
    pub states: Vec<(usize, Option<FieldState>)>,
    /// Questions to functions of users. Where there are any, nothing of this
    /// outcome counts: the event is decided again with the answers.
    pub questions: Vec<Question>,
}

/// What a step wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Nothing changes; the side is only checked against what it should hold.
    Nothing,
    /// As `Nothing`, and the observation is older or foreign: not even that.
    Ignore,
    /// The mirror shows this value from now on, other sides do not.
    RowOnly,
    /// The value that came stands.
    Challenger,
    /// The value held stands; whoever wrote the other is corrected.
    Incumbent,
    /// Both stand until a person decides.
    Review(String),
    /// Another value, made of both, stands.
    Merged(Value),
    /// An earlier edit stands, which time cannot tell from this one.
    Rival(Claim),
    /// It is not known yet what the edit was made on top of.
    Wait,
    /// A user's function is to be asked first.
    Ask(Box<Question>),
}

/// What steps tell each other and the effects.
#[derive(Default)]
pub(crate) struct Notes<'a> {
    /// Lock that put the value back.
    pub(crate) lock: Option<&'a FieldLock>,
    /// Why the field stops after this decision.
    pub(crate) freeze: Option<String>,
    /// What a user's function said.
    pub(crate) evaluation: Option<Box<Evaluation>>,
    /// What a page shows is no edit as far as can be told.
    pub(crate) no_edit: bool,
}

/// What all fields of an observation have in common.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) group: &'a Group,
    pub(crate) policy: &'a Policy,
    pub(crate) entity: &'a Entity,
    pub(crate) observed: &'a Observed,
    pub(crate) now: Millis,
    pub(crate) horizon_ms: i64,
}

impl<'a> Frame<'a> {
    /// One of its fields, if the side has it, with the value that came and the one held.
    pub(crate) fn case(
        self,
        field: usize,
        value: &'a Value,
        held: &Value,
        clock: Clock,
        state: FieldState,
    ) -> Option<Case<'a>> {
        Some(Case {
            frame: self,
            field,
            column: self.group.column(field, self.observed.side)?,
            value,
            old: None,
            held: held.clone(),
            clock,
            state,
            rule: self.policy.rule(&self.group.fields[field].name),
            conflict: false,
            claims: Vec::new(),
            notes: Notes::default(),
        })
    }
}

/// One field of one observation on its way through the steps.
pub(crate) struct Case<'a> {
    pub(crate) frame: Frame<'a>,
    pub(crate) field: usize,
    pub(crate) column: &'a SideField,
    /// The value that came.
    pub(crate) value: &'a Value,
    /// The value before, as SQL saw it.
    pub(crate) old: Option<&'a Value>,
    /// The value held on this side.
    pub(crate) held: Value,
    pub(crate) clock: Clock,
    pub(crate) state: FieldState,
    pub(crate) rule: Option<&'a Rule>,
    pub(crate) conflict: bool,
    /// What a question would be about; empty for the value held and this one.
    pub(crate) claims: Vec<Claim>,
    pub(crate) notes: Notes<'a>,
}

impl<'a> std::ops::Deref for Case<'a> {
    type Target = Frame<'a>;

    fn deref(&self) -> &Frame<'a> {
        &self.frame
    }
}

impl<'a> Case<'a> {
    pub(crate) fn here(&self) -> &SideState {
        &self.state.sides[self.observed.side]
    }

    pub(crate) fn here_mut(&mut self) -> &mut SideState {
        let side = self.observed.side;
        &mut self.state.sides[side]
    }

    pub(crate) fn is(&self, other: &Value) -> bool {
        same(self.column.field_type, self.value, other)
    }

    pub(crate) fn order(&self) -> Order {
        echo::order(self.here(), self.observed.at, self.policy.tolerance_ms())
    }

    pub(crate) fn record_seen(&mut self) {
        let (value, clock) = (self.value, self.clock.clone());
        if self.observed.source == Source::Local {
            return;
        }
        // By itself, or by what waited for it.
        let page = self.observed.source == Source::Page || self.observed.asked_at.is_some();
        let paged = page && self.is_new_in_its_second();
        if self.merges() {
            timeline::record(self.here_mut(), value, &clock);
        } else {
            echo::record_seen(self.here_mut(), value, &clock);
        }
        let here = self.here_mut();
        if here.seen.as_ref().is_some_and(|(_, c)| *c == clock) {
            here.paged = paged;
        }
    }

    /// Whether a page tells first that this was written. What stood there before
    /// is older than the page's stamp.
    fn is_new_in_its_second(&self) -> bool {
        let here = self.here();
        match &here.seen {
            Some((v, c)) if self.is(v) => here.paged && c.at.overlaps(self.observed.at),
            _ => !echo::known(here).is_some_and(|k| self.is(k)),
        }
    }

    /// Whether the event is of the same second as what a page showed, and another;
    /// or of the same millisecond as another.
    pub(crate) fn beside_page(&self) -> bool {
        let (here, at) = (self.here(), self.observed.at);
        let beside = |(v, c): &(Value, Clock)| {
            let paged = here.paged && at.from < at.to && c.at.overlaps(at);
            !self.is(v) && (paged || (at.from == at.to && c.at == at))
        };
        here.seen.as_ref().is_some_and(beside)
    }

    /// Whether every edit of the field counts.
    pub(crate) fn merges(&self) -> bool {
        self.rule
            .is_some_and(|r| r.strategy.entry().merge.is_some())
    }

    pub(crate) fn contest<'b>(&'b self, rule: &'b Rule) -> Contest<'b> {
        let clock = self.state.clock.as_ref();
        Contest {
            rule,
            incumbent: Candidate {
                origin: clock.map_or("", |c| c.origin.as_str()),
                value: &self.held,
                clock,
            },
            challenger: Candidate {
                origin: &self.observed.origin,
                value: self.value,
                clock: Some(&self.clock),
            },
            conflict: self.conflict,
            named_present: self.named_present(rule),
            skew_ms: self.policy.skew_ms,
        }
    }

    /// Whether the two values were written without knowledge of each other.
    pub(crate) fn concurrent(&self) -> bool {
        if made(Mistake::NoConflictSeen) {
            return false;
        }
        if self.observed.source == Source::Local {
            return self
                .old
                .is_some_and(|old| !same(self.column.field_type, old, &self.held));
        }
        let here = self.here();
        let Some(clock) = &self.state.clock else {
            return false;
        };
        if clock.origin == self.observed.origin {
            return false;
        }
        let skew = self.policy.tolerance_ms();
        // An edit from before the value that is held was written cannot have known it,
        // where nothing was sent because this side showed the same value.
        let early = clock.at.to.saturating_add(skew) >= self.observed.at.from;
        let last = here.sent.last().filter(|w| w.clock == *clock || !early);
        let Some(last) = last else {
            return early || self.unseen_origin(clock).is_some();
        };
        // It stood there before, though it may have been sent again since, in the
        // form that the CRM made of it. The same value written anew, after another
        // one, is another edit.
        let stood = |(place, w): (usize, &SentWrite)| {
            let there = matches!(w.sent, Sent::Answered { .. }) || w.landed.is_some();
            let same = w.value == last.value || w.result() == last.result();
            let window = w.window(skew).filter(|_| there && same);
            window.is_some_and(|window| {
                window.before(self.observed.at)
                    && (w.clock == last.clock || !self.written_over(place, window, last))
            })
        };
        !here.sent.iter().enumerate().any(stood)
    }

    /// The side that holds what was written last and could not be shown here: nothing was
    /// sent, and who writes here has not seen it.
    pub(crate) fn unseen_origin(&self, clock: &Clock) -> Option<usize> {
        let here = self.observed.side;
        let is_server = |s: usize| self.group.origin(s) == clock.origin;
        let sides = || (0..self.group.sides.len()).filter(|s| *s != here);
        let by_sql = !sides().any(is_server) && self.group.origin(here) != clock.origin;
        let unseen = |side: usize| {
            let there = self.group.column(self.field, side);
            let values = &self.entity.records[side].values;
            let (Some(there), Some(value)) = (there, values.get(self.field)) else {
                return false;
            };
            let images = &self.entity.images;
            let forth = || between(there, self.column, value, images);
            let back = || between(self.column, there, &self.held, images);
            there.inbound
                && self.entity.alive(side)
                && !forth().is_ok_and(|v| same(self.column.field_type, &v, &self.held))
                && !back().is_ok_and(|v| same(there.field_type, &v, value))
        };
        sides().find(|s| (by_sql || is_server(*s)) && unseen(*s))
    }

    /// Whether another value than the newest may have stood on this side since one
    /// of our writes landed there.
    fn written_over(&self, place: usize, landed: Interval, newest: &SentWrite) -> bool {
        let here = self.here();
        let edited = here.seen.as_ref();
        let sent = |w: &SentWrite| !matches!(w.sent, Sent::Queued | Sent::Failed);
        edited.is_some_and(|(v, c)| landed.before(c.at) && v != newest.result())
            || here.sent[place + 1..]
                .iter()
                .any(|w| sent(w) && w.value != newest.value && w.result() != newest.result())
    }

    /// Whether an origin that the rule names can speak for this entity: SQL and
    /// applications always, a server where it has a record.
    fn named_present(&self, rule: &Rule) -> bool {
        rule.winner.iter().any(|name| {
            match self.group.sides.iter().position(|s| s.origin == *name) {
                Some(side) => {
                    self.entity.alive(side) && self.group.column(self.field, side).is_some()
                }
                None => true,
            }
        })
    }
}
