//! The places of the workers: so many in all, and so many for each origin.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// The places, and who waits for one.
#[derive(Debug)]
pub(crate) struct Slots {
    all: usize,
    per_origin: usize,
    taken: Mutex<Taken>,
    /// Told when a place becomes free.
    freed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_origin: HashMap<String, usize>,
}

/// A place that is taken. Dropping it frees it.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    origin: String,
}

/// How many operations may be claimed now, whatever their origins are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) limit: usize,
    /// The origins that have no place left.
    pub(crate) except: Vec<String>,
}

impl Slots {
    pub(crate) fn new((all, per_origin): (usize, usize), freed: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { all, per_origin, taken: Mutex::default(), freed })
    }

    fn with<T>(&self, call: impl FnOnce(&mut Taken) -> T) -> T {
        call(&mut self.taken.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes a place if one is free.
    pub(crate) fn try_take(self: &Arc<Self>, origin: &str) -> Option<Slot> {
        self.with(|taken| {
            let of_origin = taken.by_origin.get(origin).copied().unwrap_or_default();
            (taken.all < self.all && of_origin < self.per_origin).then(|| taken.add(origin))
        })?;
        Some(Slot { slots: self.clone(), origin: origin.to_owned() })
    }

    /// Takes a place for an operation that was claimed within the [`Room`].
    pub(crate) fn take(self: &Arc<Self>, origin: &str) -> Slot {
        self.with(|taken| taken.add(origin));
        Slot { slots: self.clone(), origin: origin.to_owned() }
    }

    /// Returns the room for claims. No origin gets more than its places, even if all claims are its.
    pub(crate) fn room(&self) -> Room {
        self.with(|taken| {
            let full = |count: &usize| *count >= self.per_origin;
            let except = taken.by_origin.iter().filter(|(_, count)| full(count)).map(|(origin, _)| origin.clone());
            let busiest = taken.by_origin.values().copied().filter(|count| !full(count)).max().unwrap_or_default();
            let limit = (self.all.saturating_sub(taken.all)).min(self.per_origin - busiest);
            Room { limit, except: except.collect() }
        })
    }

    /// Returns how many places are taken.
    pub(crate) fn taken(&self) -> usize {
        self.with(|taken| taken.all)
    }
}

impl Taken {
    fn add(&mut self, origin: &str) {
        self.all += 1;
        match self.by_origin.get_mut(origin) {
            Some(count) => *count += 1,
            None => drop(self.by_origin.insert(origin.to_owned(), 1)),
        }
    }

    fn remove(&mut self, origin: &str) {
        self.all = self.all.saturating_sub(1);
        if let Some(count) = self.by_origin.get_mut(origin) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.by_origin.remove(origin);
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.with(|taken| taken.remove(&self.origin));
        self.slots.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_never_overfills_an_origin() {
        let slots = Slots::new((5, 3), Arc::default());
        assert_eq!(slots.room(), Room { limit: 3, except: Vec::new() });
        let one = slots.try_take("a").unwrap();
        assert_eq!(slots.room().limit, 2);
        let rest = [slots.try_take("a").unwrap(), slots.take("a")];
        assert!(slots.try_take("a").is_none());
        assert_eq!(slots.room(), Room { limit: 2, except: vec!["a".to_owned()] });
        let others = [slots.try_take("b").unwrap(), slots.try_take("b").unwrap()];
        assert!(slots.try_take("c").is_none() && slots.room().limit == 0);
        drop((one, rest, others));
        assert_eq!((slots.taken(), slots.room()), (0, Room { limit: 3, except: Vec::new() }));
    }
}
