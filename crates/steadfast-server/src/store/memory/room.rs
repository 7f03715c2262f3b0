//! The bounds of a store in memory, and the room that is taken: by all, and by each scope.

use std::collections::HashMap;
use std::ops::Add;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::apart::Apart;
use crate::store::{ScopeId, StoreLimit};

/// Number of parts of the table of scopes. Each has a lock of its own.
const PARTS: usize = 64;

/// The bounds, and the room taken within them.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) max_records: usize,
    pub(super) max_bytes: usize,
    pub(super) shares: Option<Shares>,
    taken: Apart<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    records: AtomicUsize,
    bytes: AtomicUsize,
}

/// Records, and the bytes that are reserved or used for them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Usage {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

impl Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { records: self.records + other.records, bytes: self.bytes + other.bytes }
    }
}

/// The room that a claim needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    /// Bytes that are taken now.
    pub(super) bytes: usize,
    /// Bytes that must be free besides, and are not taken: the operation may need them at its end.
    pub(super) spare: usize,
}

impl Room {
    pub(super) fn new(max_records: usize, max_bytes: usize) -> Self {
        Self { max_records, max_bytes, shares: None, taken: Apart::default() }
    }

    pub(super) fn taken(&self) -> Usage {
        let Apart(taken) = &self.taken;
        Usage { records: taken.records.load(Ordering::Relaxed), bytes: taken.bytes.load(Ordering::Relaxed) }
    }

    /// Takes room for a record that replaces another. Changes nothing if there is no room.
    pub(super) fn replace(
        &self,
        scope: Option<ScopeId>,
        (replaced_scope, replaced): (Option<ScopeId>, Usage),
        need: Need,
    ) -> Result<(), StoreLimit> {
        let Some(shares) = &self.shares else { return self.replace_in_all(replaced, need) };
        let one = Usage { records: 1, bytes: need.bytes };
        // A claim that was made without a layer may have named no scope.
        let gone = if replaced_scope == scope { replaced } else { Usage::default() };
        shares.trade(scope, gone, one, need.spare, self)?;
        self.replace_in_all(replaced, need).inspect_err(|_| shares.set(scope, one, gone))?;
        if replaced_scope != scope {
            shares.set(replaced_scope, replaced, Usage::default());
        }
        Ok(())
    }

    fn replace_in_all(&self, replaced: Usage, Need { bytes, spare }: Need) -> Result<(), StoreLimit> {
        let Apart(taken) = &self.taken;
        if !trade(&taken.records, replaced.records, 1, self.max_records) {
            return Err(self.records_limit());
        }
        if !trade(&taken.bytes, replaced.bytes, bytes, self.max_bytes.saturating_sub(spare)) {
            let _fits = trade(&taken.records, 1, replaced.records, usize::MAX);
            return Err(self.bytes_limit());
        }
        Ok(())
    }

    /// Changes the size of a record, within the bounds. Returns whether there is room.
    pub(super) fn fits(&self, scope: Option<ScopeId>, bytes: usize, now_bytes: usize) -> Result<(), StoreLimit> {
        let one = |bytes| Usage { records: 1, bytes };
        if let Some(shares) = &self.shares {
            shares.trade(scope, one(bytes), one(now_bytes), 0, self)?;
        }
        if trade(&self.taken.0.bytes, bytes, now_bytes, self.max_bytes) {
            return Ok(());
        }
        if let Some(shares) = &self.shares {
            shares.set(scope, one(now_bytes), one(bytes));
        }
        Err(self.bytes_limit())
    }

    /// Changes the size of a record, within the bounds or not.
    pub(super) fn resize(&self, scope: Option<ScopeId>, bytes: usize, now_bytes: usize) {
        let _fits = trade(&self.taken.0.bytes, bytes, now_bytes, usize::MAX);
        if let Some(shares) = &self.shares {
            shares.set(scope, Usage { records: 0, bytes }, Usage { records: 0, bytes: now_bytes });
        }
    }

    /// Takes room, within the bounds or not.
    pub(super) fn overrun(&self, held: Usage) {
        let Apart(taken) = &self.taken;
        taken.records.fetch_add(held.records, Ordering::Relaxed);
        taken.bytes.fetch_add(held.bytes, Ordering::Relaxed);
    }

    /// Gives back the room of a record.
    pub(super) fn give_back(&self, scope: Option<ScopeId>, held: Usage) {
        self.give_back_to_all(held);
        self.give_back_to(scope, held);
    }

    pub(super) fn give_back_to_all(&self, held: Usage) {
        let Apart(taken) = &self.taken;
        taken.records.fetch_sub(held.records, Ordering::Relaxed);
        taken.bytes.fetch_sub(held.bytes, Ordering::Relaxed);
    }

    /// Gives back room of a scope alone.
    pub(super) fn give_back_to(&self, scope: Option<ScopeId>, held: Usage) {
        if let Some(shares) = &self.shares {
            shares.set(scope, held, Usage::default());
        }
    }

    fn records_limit(&self) -> StoreLimit {
        StoreLimit::new("max_records", "raise it with MemoryStore::max_records").max(self.max_records)
    }

    pub(super) fn bytes_limit(&self) -> StoreLimit {
        StoreLimit::new("max_bytes", "raise it with MemoryStore::max_bytes").max(self.max_bytes)
    }
}

/// The share of the room that one scope may take, and what each scope has taken.
#[derive(Debug)]
pub(super) struct Shares {
    most: f64,
    taken: Box<[Mutex<HashMap<ScopeId, Usage>>]>,
}

impl Shares {
    pub(super) fn new(most: f64) -> Self {
        Self { most, taken: (0..PARTS).map(|_| Mutex::default()).collect() }
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a share")]
    fn of(&self, whole: usize) -> usize {
        (whole as f64 * self.most) as usize
    }

    fn part(&self, scope: ScopeId) -> MutexGuard<'_, HashMap<ScopeId, Usage>> {
        let part = usize::try_from(scope.get() % 64).unwrap_or(0) % PARTS;
        // Every index exists. Nothing between lock and unlock panics.
        self.taken.get(part).unwrap_or(&self.taken[0]).lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces `gone` by `comes`, unless the scope then has more than its share.
    fn trade(
        &self,
        scope: Option<ScopeId>,
        gone: Usage,
        comes: Usage,
        spare: usize,
        room: &Room,
    ) -> Result<(), StoreLimit> {
        let Some(scope) = scope else { return Ok(()) };
        let mut part = self.part(scope);
        let after = after(part.get(&scope).copied().unwrap_or_default(), gone, comes);
        let (records, bytes) = (self.of(room.max_records), self.of(room.max_bytes));
        let grows = comes.records > gone.records || comes.bytes > gone.bytes;
        if grows && (after.records > records || after.bytes.saturating_add(spare) > bytes) {
            let limit = StoreLimit::new(
                "max_share_per_scope",
                "this scope has its share of the store: raise MemoryStore::max_share_per_scope or the whole",
            );
            return Err(limit.max(if after.records > records { records } else { bytes }));
        }
        put(&mut part, scope, after);
        Ok(())
    }

    /// Replaces `gone` by `comes`, within the share or not.
    fn set(&self, scope: Option<ScopeId>, gone: Usage, comes: Usage) {
        let Some(scope) = scope else { return };
        let mut part = self.part(scope);
        let after = after(part.get(&scope).copied().unwrap_or_default(), gone, comes);
        put(&mut part, scope, after);
    }

    /// Returns what all scopes have taken.
    #[cfg(test)]
    pub(super) fn taken(&self) -> Usage {
        let sum = |part: &Mutex<HashMap<ScopeId, Usage>>| {
            part.lock().unwrap().values().fold(Usage::default(), |sum, held| sum + *held)
        };
        self.taken.iter().map(sum).fold(Usage::default(), Add::add)
    }
}

fn after(held: Usage, gone: Usage, comes: Usage) -> Usage {
    Usage {
        records: (held.records + comes.records).saturating_sub(gone.records),
        bytes: (held.bytes + comes.bytes).saturating_sub(gone.bytes),
    }
}

/// A scope without records takes no memory.
fn put(part: &mut HashMap<ScopeId, Usage>, scope: ScopeId, held: Usage) {
    if held == Usage::default() {
        part.remove(&scope);
    } else {
        part.insert(scope, held);
    }
}

/// Replaces `gone` by `comes` in a counter, within `most`. Returns whether it fits.
fn trade(counter: &AtomicUsize, gone: usize, comes: usize, most: usize) -> bool {
    let more = comes.saturating_sub(gone);
    if more > 0 {
        let add = |now: usize| now.checked_add(more).filter(|sum| *sum <= most);
        return counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok();
    }
    if gone > comes {
        counter.fetch_sub(gone - comes, Ordering::Relaxed);
    }
    true
}
