//! The list of renewed leases, which every operation reads without a lock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;

use tokio::runtime::Handle;

use super::held::Charge;

/// One keeper for each length of lease in each runtime. The list only grows.
#[derive(Debug, Default)]
pub(super) struct Keepers {
    first: Next,
    pub(super) runs: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

#[derive(Debug, Default)]
struct Next(OnceLock<Box<Keeper>>);

#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) charge: Charge,
    pub(super) runtime: Handle,
    /// Whether renewals are in progress.
    pub(super) renews: Arc<AtomicBool>,
    next: Next,
}

impl Keepers {
    /// Returns whether a keeper of this charge exists. Takes no lock, because every operation calls
    /// it.
    pub(super) fn has(&self, charge: Charge) -> bool {
        self.iter().any(|keeper| keeper.charge == charge)
    }

    pub(super) fn add(&self, charge: Charge, runtime: &Handle) {
        let mut next = &self.first;
        loop {
            let new =
                || Box::new(Keeper { charge, runtime: runtime.clone(), renews: Arc::default(), next: Next::default() });
            let keeper = next.0.get_or_init(new);
            if keeper.charge == charge {
                return;
            }
            next = &keeper.next;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Keeper> {
        std::iter::successors(self.first.0.get(), |keeper| keeper.next.0.get()).map(|keeper| &**keeper)
    }

    pub(super) fn thread(&self) -> MutexGuard<'_, Option<Thread>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the caller has to start the thread.
    pub(super) fn begins(&self) -> bool {
        !self.runs.load(Ordering::Acquire) && !self.runs.swap(true, Ordering::AcqRel)
    }
}
