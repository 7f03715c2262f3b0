//! The queue of claims under which nothing will run, until the store has cancelled them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::store::ClaimRef;

/// Maximum length of the queue; each claim takes 48 bytes. While a store is unavailable, every
/// request adds one.
pub(super) const MOST: usize = 100_000;
/// Maximum number of calls in progress, so that a store that recovers does not get all of them at
/// once.
const AT_ONCE: usize = 16;
/// The queue. One task empties it, and ends when it is empty.
#[derive(Debug, Default)]
pub(super) struct Cancels(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    claims: VecDeque<ClaimRef>,
    /// Whether a task is emptying the queue.
    is_served: bool,
    /// Whether "the queue is full" was logged. It is logged once, until the queue is empty again.
    was_full: bool,
}

pub(super) enum Queued {
    /// The caller has to start the task.
    First,
    Behind,
    Full {
        told: bool,
    },
}

impl Cancels {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, claim: ClaimRef) -> Queued {
        let mut queue = self.lock();
        if queue.claims.len() >= MOST {
            return Queued::Full { told: std::mem::replace(&mut queue.was_full, true) };
        }
        queue.claims.push_back(claim);
        if std::mem::replace(&mut queue.is_served, true) { Queued::Behind } else { Queued::First }
    }

    /// Takes the next claims. If there are none, the calling task is marked as ended.
    pub(super) fn take(&self) -> Vec<ClaimRef> {
        let mut queue = self.lock();
        let most = queue.claims.len().min(AT_ONCE);
        let next: Vec<_> = queue.claims.drain(..most).collect();
        if next.is_empty() {
            queue.is_served = false;
            queue.was_full = false;
        }
        next
    }

    pub(super) fn put_back(&self, claims: Vec<ClaimRef>) {
        self.lock().claims.extend(claims);
    }

    /// Notes that the task which empties the queue was dropped with its runtime.
    pub(super) fn is_abandoned(&self) {
        self.lock().is_served = false;
    }
}
