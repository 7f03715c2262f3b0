//! Renewal of leases while their handlers run.
//!
//! The lease of a claim is short, so that a crash does not block a key for long. But a handler may
//! run for long, and may block its thread, and then its runtime is unreliable in two ways. A task
//! that the handler's task has spawned or woken sits in a slot of the worker's queue from which no
//! other worker steals. And if the blocked worker was the one that waits for I/O and timers, no
//! timer fires: the other workers sleep until they are woken.
//!
//! So a thread of our own keeps the time, and starts the renewals from outside the runtime. That
//! wakes a worker, which then waits for I/O and timers as well.
//!
//! If every thread of the runtime is blocked, nothing can be renewed. `held.rs` keeps this process
//! from running such an operation twice; other processes see an expired lease.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use steadfast_core::clock;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::held::{Charge, News};
use super::keepers::Keeper;
use super::shared_store::{Parts, SharedStore};
use super::store::{ClaimRef, Store};

/// Checks per lease. A renewal is due after a third of the lease and checked at every sixth, so it
/// begins before half of the lease is over.
const LOOKS: u32 = 6;
/// The shortest pause between two checks.
const SHORTEST: Duration = Duration::from_millis(1);
/// How long the thread stays when no claim is held, so that not every short operation starts a
/// thread.
const LINGERS: Duration = Duration::from_secs(10);
/// Maximum number of renewals of one charge in progress, so that they leave the store's connections
/// to other calls.
const AT_ONCE: usize = 16;

impl<S: Store> SharedStore<S> {
    /// Makes sure that listed claims of this charge are renewed from now on, even if their handlers
    /// block.
    pub(super) fn keep(&self, charge: Charge, runtime: &Handle) {
        let keepers = &self.parts().keepers;
        if !keepers.has(charge) {
            keepers.add(charge, runtime);
            // The thread may be asleep for a longer lease.
            if let Some(thread) = &*keepers.thread() {
                thread.unpark();
            }
        }
        if keepers.begins() {
            self.start_thread();
        }
    }

    fn start_thread(&self) {
        let (store, keepers) = (self.downgrade(), &self.parts().keepers);
        // Locked until the thread is known, so that no other caller misses it.
        let mut thread = keepers.thread();
        match thread::Builder::new().name("steadfast-leases".to_owned()).spawn(move || keep_time(store)) {
            Ok(started) => *thread = Some(started.thread().clone()),
            Err(error) => {
                keepers.runs.store(false, Ordering::Release);
                tracing::error!(target: "steadfast", %error, "leases are not renewed, because their thread could not be started");
            }
        }
    }
}

/// Renews leases until no claim is held for a while, or the store is gone. It keeps neither store
/// nor runtime alive.
fn keep_time<S: Store>(store: Weak<Parts<S>>) {
    let mut idle = Duration::ZERO;
    // The claim that started this thread is young: the first check is one pause away.
    let mut pause = SHORTEST;
    while let Some(parts) = store.upgrade() {
        let keepers = &parts.keepers;
        let mut is_idle = true;
        let shortest = keepers.iter().map(|keeper| keeper.charge.lease / LOOKS).min().unwrap_or(LINGERS);
        for keeper in keepers.iter().filter(|keeper| parts.claims.has(keeper.charge)) {
            is_idle = false;
            keeper.get(&store);
        }
        idle = if is_idle { idle + pause } else { Duration::ZERO };
        if idle > LINGERS {
            keepers.runs.store(false, Ordering::Release);
            // A claim that was listed before that store may rely on this thread.
            let is_needed = keepers.iter().any(|keeper| parts.claims.has(keeper.charge));
            if !is_needed || !keepers.begins() {
                return;
            }
        }
        drop(parts);
        pause = shortest.max(SHORTEST);
        thread::park_timeout(pause);
    }
}

impl Keeper {
    /// Makes the runtime look for due claims and renew them. Wakes a worker in any case.
    fn get<S: Store>(&self, store: &Weak<Parts<S>>) {
        if self.renews.swap(true, Ordering::AcqRel) {
            self.runtime.spawn(std::future::ready(()));
            return;
        }
        let (store, charge, renewing) = (store.clone(), self.charge, Renewing(self.renews.clone()));
        self.runtime.spawn(async move {
            let _renewing = renewing;
            let Some(store) = store.upgrade().map(SharedStore::from_parts) else { return };
            let due = store.parts().claims.due(charge, clock::now());
            renew(&store, charge.lease, due).await;
        });
    }
}

/// Marks that renewals are in progress. Dropped at their end, or with their runtime.
struct Renewing(Arc<AtomicBool>);

impl Drop for Renewing {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

async fn renew<S: Store>(store: &SharedStore<S>, lease: Duration, due: Vec<ClaimRef>) {
    let mut renewals = JoinSet::new();
    for claim in due {
        if renewals.len() >= AT_ONCE {
            renewals.join_next().await;
        }
        renewals.spawn(renew_one(store.clone(), claim, lease));
    }
    // The panic hook has reported a renewal that panicked; the next check repeats it.
    while renewals.join_next().await.is_some() {}
}

async fn renew_one<S: Store>(store: SharedStore<S>, claim: ClaimRef, lease: Duration) {
    let asked = clock::now();
    // A store without a timeout of its own must not delay the renewals of all other claims.
    let answer = clock::until(asked.checked_add(lease / 3), store.renew(claim, lease)).await;
    let claims = &store.parts().claims;
    let news = match answer {
        Ok(Ok(true)) => {
            claims.renewed(claim, asked);
            return;
        }
        Ok(Ok(false)) => claims.refused(claim),
        Ok(Err(error)) => {
            tracing::debug!(target: "steadfast", id = ?claim.id, %error, "a lease could not be renewed; the call is repeated");
            claims.unanswered(claim, asked, clock::now())
        }
        Err(clock::TimedOut) => claims.unanswered(claim, asked, clock::now()),
    };
    match news {
        News::Nothing => {}
        News::Lost => {
            tracing::warn!(target: "steadfast", id = ?claim.id, "a claim was lost while its handler runs; another process may run the operation");
        }
        News::RanOut => {
            tracing::warn!(target: "steadfast", id = ?claim.id, "a lease expired while its handler runs, because the store cannot be reached");
        }
    }
}
