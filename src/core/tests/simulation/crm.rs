//! A CRM as the outside world sees it: one record, one field, its own clock.

use crm_core::model::Value;
use crm_core::state::Interval;

/// What differs between CRMs.
#[derive(Clone, Debug)]
pub struct Habits {
    /// Its clock minus ours.
    pub offset: i64,
    /// Stamps show whole seconds.
    pub seconds: bool,
    /// Stores text in lower case.
    pub lower: bool,
    /// Refuses this value for good.
    pub refuses: Option<&'static str>,
    /// Its answers show the stored value.
    pub echoes: bool,
    /// Its events say which client wrote.
    pub marks: bool,
    /// Length of its field.
    pub length: usize,
}

/// One CRM.
#[derive(Clone, Debug)]
pub struct Crm {
    pub habits: Habits,
    pub value: Value,
    /// Record stamp, by its own clock.
    pub stamp: i64,
    /// Earlier states, for readers that lag: our time, value, stamp.
    pub history: Vec<(i64, Value, i64)>,
}

impl Crm {
    /// What it makes of a value.
    pub fn stored(&self, value: &Value) -> Value {
        value.as_ref().map(|v| {
            let cut: String = v.chars().take(self.habits.length).collect();
            if self.habits.lower {
                cut.to_lowercase()
            } else {
                cut
            }
        })
    }

    /// Stores a value; whether anything changed.
    pub fn set(&mut self, value: &Value, now: i64) -> bool {
        let stored = self.stored(value);
        let changed = stored != self.value;
        if changed {
            self.value = stored;
            self.touch(now);
        }
        changed
    }

    /// Another field of the record changed.
    pub fn touch(&mut self, now: i64) {
        self.stamp = now + self.habits.offset;
        self.history.push((now, self.value.clone(), self.stamp));
    }

    /// A stamp as precise as this CRM shows it.
    pub fn shown(&self, stamp: i64) -> Interval {
        if self.habits.seconds {
            Interval::second(stamp)
        } else {
            Interval::instant(stamp)
        }
    }

    /// What a reader sees whose index is as old as `at`.
    pub fn as_of(&self, at: i64) -> (Value, i64) {
        self.history
            .iter()
            .rev()
            .find(|(time, _, _)| *time <= at)
            .or(self.history.first())
            .map_or((self.value.clone(), self.stamp), |(_, v, s)| {
                (v.clone(), *s)
            })
    }
}
