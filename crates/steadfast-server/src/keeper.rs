//! Renewal of leases while their handlers run.
//!
//! The lease of a claim is short, so that a crash does not block a key for long; a handler may run
//! for long, and may block its thread. Then nothing in that runtime can be relied on. A task that
//! the handler's task has spawned or woken sits in a slot of the worker's queue that no other
//! worker steals from. And if the blocked worker was the one that waits for I/O and timers, no
//! timer fires, although other workers are idle: they sleep until somebody wakes them.
//!
//! So a thread of our own keeps the time, and starts the renewals from outside of the runtime. That
//! wakes a worker, which then waits for I/O and timers as well.
//!
//! Where every thread of the runtime is blocked, nothing can renew. `held.rs` keeps this process
//! from running such an operation twice; other processes see a lease that ran out.

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

/// A renewal is due after a third of the lease, and looked for at every sixth: it begins before
/// half of the lease is over.
const LOOKS: u32 = 6;
/// The shortest pause between two looks.
const SHORTEST: Duration = Duration::from_millis(1);
/// How long the thread stays when nothing is held, so that short operations do not start a thread each.
const LINGERS: Duration = Duration::from_secs(10);
/// At most this many renewals of one charge are under way, so that they leave the store's connections to others.
const AT_ONCE: usize = 16;

impl<S: Store> SharedStore<S> {
    /// Makes sure that a claim of this charge, which is listed already, is renewed from now on,
    /// whatever its handler does.
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
        // Held until the thread is known, so that nobody looks for it in vain.
        let mut thread = keepers.thread();
        match thread::Builder::new().name("steadfast-leases".to_owned()).spawn(move || keep_time(store)) {
            Ok(started) => *thread = Some(started.thread().clone()),
            Err(error) => {
                keepers.runs.store(false, Ordering::Release);
                tracing::error!(target: "steadfast", %error, "leases are not renewed: the thread for it could not be started");
            }
        }
    }
}

/// Looks after the leases until none is held for a while, or the store is gone. It keeps neither
/// store nor runtime alive.
fn keep_time<S: Store>(store: Weak<Parts<S>>) {
    let mut idle = Duration::ZERO;
    // The claim that this thread was started for is young: the first look is a pause away.
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
            // A claim that was listed before that may rely on this thread.
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
    /// Has the runtime look for what is due, by its own clock, and renew it. A worker wakes up for that in any case.
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

/// Renewals are under way, until this is dropped: by their end, or with their runtime.
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
    // A renewal that panics was reported by the panic hook; the next look tries it again.
    while renewals.join_next().await.is_some() {}
}

async fn renew_one<S: Store>(store: SharedStore<S>, claim: ClaimRef, lease: Duration) {
    let asked = clock::now();
    // A store without a limit of its own must not hold up the renewals of all others.
    let answer = clock::until(asked.checked_add(lease / 3), store.renew(claim, lease)).await;
    let claims = &store.parts().claims;
    let news = match answer {
        Ok(Ok(true)) => {
            claims.renewed(claim, asked);
            return;
        }
        Ok(Ok(false)) => claims.refused(claim),
        Ok(Err(error)) => {
            tracing::debug!(target: "steadfast", id = ?claim.id, %error, "a lease could not be renewed; it is tried again");
            claims.unanswered(claim, asked, clock::now())
        }
        Err(clock::TimedOut) => claims.unanswered(claim, asked, clock::now()),
    };
    match news {
        News::Nothing => {}
        News::Lost => {
            tracing::warn!(target: "steadfast", id = ?claim.id, "a claim was lost while its handler runs: another process may run the operation");
        }
        News::RanOut => {
            tracing::warn!(target: "steadfast", id = ?claim.id, "a lease ran out while its handler runs: the store cannot be reached");
        }
    }
}
