//! Waiting for the first request under a key, without a poll for each waiting request.
//!
//! However many repeats wait for one key in this process, one task checks the store for all of
//! them. It checks less and less often, and at once when the first request ends in this process.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use steadfast_core::clock;
use tokio::sync::{Notify, watch};

use super::poll::{Panicked, caught};
use super::shared_store::SharedStore;
use super::store::{RecordId, RecordState, Store};

const FIRST_LOOK: Duration = Duration::from_millis(10);
const SLOWEST_LOOK: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
pub(super) struct Waits {
    keys: Arc<Keys>,
}

#[derive(Debug, Default)]
struct Keys {
    /// Whether any key has waiters. Without any, the common case, an operation ends without taking
    /// the lock.
    any: AtomicBool,
    waiting: Mutex<HashMap<RecordId, Waiters>>,
}

#[derive(Debug)]
struct Waiters {
    ended: watch::Receiver<bool>,
    look_now: Arc<Notify>,
}

impl Keys {
    fn lock(&self) -> MutexGuard<'_, HashMap<RecordId, Waiters>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, waiting: &mut HashMap<RecordId, Waiters>, id: &RecordId) {
        waiting.remove(id);
        self.any.store(!waiting.is_empty(), Ordering::Release);
    }
}

impl Waits {
    /// Waits until the key is no longer in progress, or until `until`.
    pub(super) async fn wait<S: Store>(&self, store: &SharedStore<S>, id: RecordId, until: Instant) {
        let mut ended = self.join(store, id);
        // The checking task always notifies its waiters, whatever ends that task.
        let _timed_out = clock::until(Some(until), ended.wait_for(|ended| *ended)).await;
    }

    /// Notes that the first request under this key has ended here.
    pub(super) fn ended(&self, id: &RecordId) {
        // A repeat that starts to wait at this moment is checked soon anyway.
        if self.keys.any.load(Ordering::Acquire)
            && let Some(waiting) = self.keys.lock().get(id)
        {
            waiting.look_now.notify_one();
        }
    }

    fn join<S: Store>(&self, store: &SharedStore<S>, id: RecordId) -> watch::Receiver<bool> {
        match self.keys.lock().entry(id) {
            Entry::Occupied(waiting) => waiting.get().ended.clone(),
            Entry::Vacant(place) => {
                let (tell, ended) = watch::channel(false);
                let look_now = Arc::new(Notify::new());
                place.insert(Waiters { ended: ended.clone(), look_now: look_now.clone() });
                self.keys.any.store(true, Ordering::Release);
                let watching = Watching { keys: self.keys.clone(), id, tell, is_listed: true };
                tokio::spawn(watch_key(store.clone(), watching, look_now));
                ended
            }
        }
    }
}

/// Checks one key until it is no longer in progress, or until no repeat waits for it.
async fn watch_key<S: Store>(store: SharedStore<S>, mut watching: Watching, look_now: Arc<Notify>) {
    let mut pause = FIRST_LOOK;
    loop {
        let soon = clock::now().checked_add(pause);
        let _nudged = clock::until(soon, look_now.notified()).await;
        pause = (pause * 2).min(SLOWEST_LOOK);
        let looked = caught(pin!(store.get(&watching.id))).await;
        // After an error or a panic of the store the check is repeated: each waiting repeat has its
        // own limit.
        let running = matches!(looked, Ok(Ok(Some(RecordState::InProgress { .. })) | Err(_)) | Err(Panicked))
            // Its lease may have expired while this process still runs it.
            || store.parts().claims.is_held(&watching.id);
        if watching.may_end(running) {
            return;
        }
    }
}

/// The place of a checked key in the list. When it is dropped, waiting repeats look for themselves,
/// and the next one starts a new task. A runtime that ends drops its tasks.
struct Watching {
    keys: Arc<Keys>,
    id: RecordId,
    tell: watch::Sender<bool>,
    is_listed: bool,
}

impl Watching {
    /// Leaves the list if the key is no longer in progress, or no repeat waits for it.
    fn may_end(&mut self, running: bool) -> bool {
        let mut waiting = self.keys.lock();
        // The list holds one receiver; each other one is a waiting repeat.
        if running && self.tell.receiver_count() > 1 {
            return false;
        }
        self.keys.leave(&mut waiting, &self.id);
        self.is_listed = false;
        true
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if self.is_listed {
            self.keys.leave(&mut self.keys.lock(), &self.id);
        }
        self.tell.send_replace(true);
    }
}
