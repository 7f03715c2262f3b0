//! When each record is looked at, to be forgotten.
//!
//! A record is memory, which an allocator takes back best from the thread that it gave it to. With glibc's, threads that give back each
//! other's wait for each other, and two cores do hardly more than one. So each thread lists what it claims, and forgets what it has listed.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::server::apart::{Stripe, Striped};
use crate::server::store::RecordId;

/// The lists. Nothing else is locked under the lock of one.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    /// An instant may be shared, so the record is part of the key.
    lists: Striped<Mutex<BTreeSet<(Instant, RecordId)>>>,
}

/// Where a record is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) looked_at: Instant,
    list: Stripe,
}

impl Expiry {
    /// Puts a record on this thread's list.
    pub(super) fn add(&self, id: RecordId, looked_at: Instant) -> Place {
        let list = Stripe::of_this_thread();
        self.lock(list).insert((looked_at, id));
        Place { looked_at, list }
    }

    pub(super) fn remove(&self, place: Place, id: RecordId) {
        self.lock(place.list).remove(&(place.looked_at, id));
    }

    /// Takes the first record from a list whose time has come.
    pub(super) fn pop(&self, list: Stripe, now: Instant) -> Option<(RecordId, Place)> {
        let mut records = self.lock(list);
        records.first().filter(|(looked_at, _)| *looked_at <= now)?;
        let (looked_at, id) = records.pop_first()?;
        Some((id, Place { looked_at, list }))
    }

    fn lock(&self, list: Stripe) -> MutexGuard<'_, BTreeSet<(Instant, RecordId)>> {
        self.lists.at(list).lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        Stripe::all().map(|list| self.lock(list).len()).sum()
    }
}
