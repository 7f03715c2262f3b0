//! What an outbox tells its program: events, and counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::entry::Entry;

/// Something that has happened to an operation. It is on the disk before you hear of it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct OutboxEvent<'a> {
    /// The operation, as it is stored now.
    pub entry: &'a Entry,
    /// What has happened.
    pub kind: OutboxEventKind<'a>,
}

/// The kinds of events.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum OutboxEventKind<'a> {
    /// It was written down.
    Submitted,
    /// A worker has taken up what another process has left, or an earlier round.
    TakenUp,
    /// A round has failed, and another one follows.
    Postponed {
        /// After this time.
        after: Duration,
        /// Why it has failed.
        error: &'a str,
    },
    /// It waits for a person: its credentials are missing or refused.
    /// [Release](crate::Outbox::release) it once that is mended.
    Held {
        /// Why.
        reason: &'a str,
    },
    /// It was found not to have been carried out, and is sent as if for the first time.
    NotApplied,
    /// It has ended.
    Ended,
    /// Another worker has taken it over, because this one's lease was over.
    Fenced,
}

/// How often each thing has happened since the outbox was started, and how many operations run.
///
/// ```
/// # fn example(metrics: steadfast_outbox::OutboxMetrics) {
/// for (name, value) in metrics.iter() {
///     println!("steadfast_outbox_{name} {value}");
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxMetrics {
    /// Operations that were written down.
    pub submitted: u64,
    /// Claims of operations that were written down before.
    pub taken_up: u64,
    /// Rounds that have failed, and were followed by another.
    pub postponed: u64,
    /// Operations that wait for a person.
    pub held: u64,
    /// Operations that were found not to have been carried out.
    pub not_applied: u64,
    /// Operations that have ended with an answer.
    pub answered: u64,
    /// Operations that have ended as rejected.
    pub rejected: u64,
    /// Operations that have ended as unknown.
    pub unknown: u64,
    /// Rounds that another worker has taken over.
    pub fenced: u64,
    /// Calls of the store that have failed.
    pub store_errors: u64,
    /// Operations that workers carry out now.
    pub running: u64,
}

impl OutboxMetrics {
    /// Returns the name and the value of each.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("submitted", self.submitted),
            ("taken_up", self.taken_up),
            ("postponed", self.postponed),
            ("held", self.held),
            ("not_applied", self.not_applied),
            ("answered", self.answered),
            ("rejected", self.rejected),
            ("unknown", self.unknown),
            ("fenced", self.fenced),
            ("store_errors", self.store_errors),
            ("running", self.running),
        ]
        .into_iter()
    }
}

/// The counts while they are counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    submitted: AtomicU64,
    taken_up: AtomicU64,
    postponed: AtomicU64,
    held: AtomicU64,
    not_applied: AtomicU64,
    answered: AtomicU64,
    rejected: AtomicU64,
    unknown: AtomicU64,
    fenced: AtomicU64,
    pub(crate) store_errors: AtomicU64,
}

impl Counters {
    pub(crate) fn count(&self, event: &OutboxEvent<'_>) {
        let counter = match event.kind {
            OutboxEventKind::Submitted => &self.submitted,
            OutboxEventKind::TakenUp => &self.taken_up,
            OutboxEventKind::Postponed { .. } => &self.postponed,
            OutboxEventKind::Held { .. } => &self.held,
            OutboxEventKind::NotApplied => &self.not_applied,
            OutboxEventKind::Fenced => &self.fenced,
            OutboxEventKind::Ended => match event.entry.end() {
                Some(crate::End::Answer(_)) => &self.answered,
                Some(crate::End::Rejected(_)) => &self.rejected,
                _ => &self.unknown,
            },
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, running: u64) -> OutboxMetrics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        OutboxMetrics {
            submitted: read(&self.submitted),
            taken_up: read(&self.taken_up),
            postponed: read(&self.postponed),
            held: read(&self.held),
            not_applied: read(&self.not_applied),
            answered: read(&self.answered),
            rejected: read(&self.rejected),
            unknown: read(&self.unknown),
            fenced: read(&self.fenced),
            store_errors: read(&self.store_errors),
            running,
        }
    }
}
