//! Mistakes made on purpose, to show that the simulation notices them.
//!
//! Only the feature `broken-variants` can make one. Without it every question
//! here is the constant `false`, and the compiler removes the mistake.

/// A mistake: what the code does instead of the right thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mistake {
    /// Our own writes that come back are taken for edits.
    NoEchoCheck = 1,
    /// What the CRM makes of our writes is taken for an edit.
    NormalFormIsAnEdit,
    /// An event is dropped when another field of the record was shown later.
    StaleByRecord,
    /// What a CRM held before our write is taken for an edit when it comes late.
    OldStateIsNews,
    /// Removed records go on taking part.
    NoTombstone,
    /// Everybody may write what an owner owns.
    OwnerIsAnybody,
    /// Everybody may write a locked field.
    LockIgnored,
    /// What became of a write whose answer was lost is not minded.
    UnknownIgnored,
    /// What a CRM's users wrote is not remembered.
    SeenForgotten,
    /// A value that lost stays in its CRM.
    LoserNotCorrected,
    /// A decision does not say which value lost.
    LoserNotNamed,
    /// A write that became moot stays in the outbox.
    CancelDropped,
    /// A value gets the time of its arrival instead of its own.
    ClockOfArrival,
    /// What is known of a field is forgotten at once.
    SettledTooEarly,
    /// A write that the CRM refused is sent again and again.
    RefusedSentAgain,
    /// Edits made without knowledge of each other are not noticed.
    NoConflictSeen,
    /// Every conflict is left to people.
    AsksAboutEverything,
    /// An edit that is told twice counts twice.
    DuplicatesCount,
    /// An answer of the CRM counts as the time of landing.
    AnswerIsLanding,
    /// A record is made although one is being made already.
    CreatesDoNotWait,
    /// An edit is taken for our write of its value although the CRM names its writer.
    NameIgnored,
    /// Edits that time cannot tell apart are ordered pair by pair, in a circle.
    TieNotTotal,
}

impl Mistake {
    /// All of them.
    pub const ALL: [Self; 22] = [
        Self::NoEchoCheck,
        Self::NormalFormIsAnEdit,
        Self::StaleByRecord,
        Self::OldStateIsNews,
        Self::NoTombstone,
        Self::OwnerIsAnybody,
        Self::LockIgnored,
        Self::UnknownIgnored,
        Self::SeenForgotten,
        Self::LoserNotCorrected,
        Self::LoserNotNamed,
        Self::CancelDropped,
        Self::ClockOfArrival,
        Self::SettledTooEarly,
        Self::RefusedSentAgain,
        Self::NoConflictSeen,
        Self::AsksAboutEverything,
        Self::DuplicatesCount,
        Self::AnswerIsLanding,
        Self::CreatesDoNotWait,
        Self::NameIgnored,
        Self::TieNotTotal,
    ];
}

#[cfg(feature = "broken-variants")]
static CHOSEN: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// From now on every thread makes this mistake; none with `None`.
#[cfg(feature = "broken-variants")]
pub fn choose(mistake: Option<Mistake>) {
    let number = mistake.map_or(0, |m| m as u8);
    CHOSEN.store(number, std::sync::atomic::Ordering::SeqCst);
}

/// Whether this mistake is to be made.
#[cfg(feature = "broken-variants")]
pub(crate) fn made(mistake: Mistake) -> bool {
    CHOSEN.load(std::sync::atomic::Ordering::Relaxed) == mistake as u8
}

/// Whether this mistake is to be made: never.
#[cfg(not(feature = "broken-variants"))]
pub(crate) const fn made(_: Mistake) -> bool {
    false
}
