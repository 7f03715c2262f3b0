//! What the workers of an outbox share, and the task that hands them what is due.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use steadfast::Client;
use steadfast_core::{clock, milliseconds};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::builder::Settings;
use crate::change::{Change, Outcome, Terms};
use crate::end::End;
use crate::entry::{Entry, State};
use crate::event::{Counters, OutboxEvent, OutboxEventKind};
use crate::id::OperationId;
use crate::lease::Lease;
use crate::slots::{Slot, Slots};
use crate::store::{OutboxStore, OutboxStoreError};
use crate::worker::{Claimed, carry_out};

/// How many entries are swept at once, and how often.
const SWEEP: usize = 256;
const SWEEP_EVERY: Duration = Duration::from_secs(60);

pub(crate) type Principals = Arc<dyn Fn(&str) -> Option<Client> + Send + Sync>;
pub(crate) type OnEvent = Arc<dyn Fn(&OutboxEvent<'_>) + Send + Sync>;
type Waiters = HashMap<OperationId, watch::Sender<Option<End>>>;

/// What the workers of an outbox share.
pub(crate) struct Engine<S> {
    pub(crate) store: Arc<S>,
    pub(crate) settings: Settings,
    pub(crate) terms: Terms,
    /// How long an attempt takes at most.
    pub(crate) attempt: Duration,
    pub(crate) slots: Arc<Slots>,
    pub(crate) counters: Counters,
    /// Told when there may be something to claim.
    pub(crate) work: Arc<Notify>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    /// The operations that this process has submitted and that have not ended.
    pub(crate) own: Mutex<HashSet<OperationId>>,
    waiters: Mutex<Waiters>,
}

impl<S> Engine<S> {
    pub(crate) fn new(store: S, settings: Settings, terms: Terms, attempt: Duration) -> Self {
        let work = Arc::default();
        Self {
            store: Arc::new(store),
            terms,
            attempt,
            slots: Slots::new(settings.workers, Arc::clone(&work)),
            settings,
            counters: Counters::default(),
            work,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            own: Mutex::default(),
            waiters: Mutex::default(),
        }
    }

    /// Returns the client that sends an operation.
    ///
    /// # Errors
    ///
    /// Its principal is not known. Another one's credentials are never taken instead.
    pub(crate) fn client_for(&self, entry: &Entry) -> Result<Client, String> {
        let Some(principal) = &entry.principal else { return Ok(self.settings.client.clone()) };
        let found = self.settings.principals.as_ref().and_then(|principals| {
            // A panic here must not end the worker, which would leave the operation claimed.
            catch_unwind(AssertUnwindSafe(|| principals(principal))).ok().flatten()
        });
        found.ok_or_else(|| format!("no client is known for the principal `{principal}`"))
    }

    /// Returns the pause after so many rounds, with jitter.
    pub(crate) fn backoff(&self, rounds: u32) -> Duration {
        let (first, longest) = self.settings.backoff;
        let pause = first.saturating_mul(1 << rounds.min(20)).min(longest);
        pause.mul_f64(0.5 + clock::unit() / 2.0)
    }

    pub(crate) fn ended(&self, end: End) -> Outcome {
        Outcome::Ended { end, keep_body_ms: self.settings.keep_answers.map(milliseconds) }
    }

    pub(crate) fn is_own(&self, id: OperationId) -> bool {
        locked(&self.own).contains(&id)
    }

    pub(crate) fn tell(&self, entry: &Entry, kind: OutboxEventKind<'_>) {
        let event = OutboxEvent { entry, kind };
        self.counters.count(&event);
        if let (OutboxEventKind::Ended, Some(End::Unknown(failed))) = (kind, entry.end()) {
            tracing::warn!(target: "steadfast", operation = %entry.id, name = entry.name, error = %failed, "nobody knows whether the operation was carried out: look it up and resolve it");
        }
        if let OutboxEventKind::Held { reason } = kind {
            tracing::warn!(target: "steadfast", operation = %entry.id, name = entry.name, reason, "the operation waits for valid credentials: mend them and release it");
        }
        if let Some(on_event) = &self.settings.on_event {
            // The user's closure must not end the worker.
            let _panicked = catch_unwind(AssertUnwindSafe(|| on_event(&event)));
        }
    }

    /// Tells everybody what was written down of an operation.
    pub(crate) fn settled(&self, entry: &Entry, change: &Change) {
        if let Change::Settle { outcome, .. } = change {
            match outcome {
                Outcome::Postponed { after_ms, error, .. } => {
                    let after = Duration::from_millis(*after_ms);
                    self.tell(entry, OutboxEventKind::Postponed { after, error });
                }
                Outcome::Held { reason, .. } => self.tell(entry, OutboxEventKind::Held { reason }),
                Outcome::NotApplied => self.tell(entry, OutboxEventKind::NotApplied),
                Outcome::Ended { .. } => {}
            }
        }
        self.announce(entry);
    }

    /// Tells those who wait that an operation has ended, if it has.
    pub(crate) fn announce(&self, entry: &Entry) {
        if let State::Ended { end, .. } = &entry.state {
            locked(&self.own).remove(&entry.id);
            self.tell(entry, OutboxEventKind::Ended);
            if let Some(waiter) = locked(&self.waiters).remove(&entry.id) {
                // Nobody may wait any more.
                let _gone = waiter.send(Some(end.clone()));
            }
        } else {
            self.work.notify_one();
        }
    }

    /// Returns where the end of an operation will be told.
    pub(crate) fn subscribe(&self, id: OperationId) -> Subscription<'_, S> {
        let ended = locked(&self.waiters).entry(id).or_insert_with(|| watch::Sender::new(None)).subscribe();
        Subscription { engine: self, id, ended: Some(ended) }
    }
}

/// The place of somebody who waits for the end of an operation. Dropping it gives the place up.
pub(crate) struct Subscription<'a, S> {
    engine: &'a Engine<S>,
    id: OperationId,
    /// `Some` until the drop.
    ended: Option<watch::Receiver<Option<End>>>,
}

impl<S> Subscription<'_, S> {
    /// Waits for the end, until `until` at the latest.
    pub(crate) async fn wait(&mut self, until: Option<Instant>) -> Option<End> {
        let ended = self.ended.as_mut()?.wait_for(Option::is_some);
        clock::until(until, ended).await.ok()?.ok()?.clone()
    }
}

impl<S> Drop for Subscription<'_, S> {
    fn drop(&mut self) {
        self.ended = None;
        let mut waiters = locked(&self.engine.waiters);
        if waiters.get(&self.id).is_some_and(|waiter| waiter.receiver_count() == 0) {
            waiters.remove(&self.id);
        }
    }
}

impl<S: OutboxStore> Engine<S> {
    /// Starts a worker for a claimed operation.
    pub(crate) fn start(self: &Arc<Self>, claimed: Claimed, slot: Slot) {
        self.tasks.spawn(carry_out(self.clone(), claimed, slot));
    }

    /// Hands out what is due, until the outbox stops.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut failures = 0;
        let mut swept = clock::now();
        while !self.stop.is_cancelled() {
            let pause = match self.claim().await {
                Ok(pause) => {
                    failures = 0;
                    pause
                }
                Err(error) => {
                    self.counters.store_errors.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(target: "steadfast", %error, "the outbox cannot look for operations that are due");
                    failures += 1;
                    Some(self.backoff(failures))
                }
            };
            if clock::now().saturating_duration_since(swept) > SWEEP_EVERY {
                swept = clock::now();
                if let Err(error) = self.store.sweep(SWEEP).await {
                    tracing::warn!(target: "steadfast", %error, "the outbox cannot be swept");
                }
            }
            self.rest(pause).await;
        }
    }

    /// Claims what is due and has a place. Returns how long there is nothing to do, `None` for until
    /// somebody says so.
    async fn claim(self: &Arc<Self>) -> Result<Option<Duration>, OutboxStoreError> {
        loop {
            let room = self.slots.room();
            if room.limit == 0 {
                return Ok(Some(self.settings.poll_interval));
            }
            let lease = Lease::from_now(Duration::from_millis(self.terms.lease_ms));
            let claimed = self.store.claim_due(self.terms, room.limit, room.except.clone()).await?;
            let is_all = claimed.len() < room.limit;
            for entry in claimed {
                match Claimed::new(entry, self.terms.lease_ms, lease) {
                    Ok(claimed) => {
                        self.tell(&claimed.entry, OutboxEventKind::TakenUp);
                        let slot = self.slots.take(&claimed.entry.request.origin());
                        self.start(claimed, slot);
                    }
                    Err(expired) => self.announce(&expired),
                }
            }
            if is_all {
                return self.store.next_due(room.except).await;
            }
        }
    }

    /// Waits until there may be something to claim.
    async fn rest(&self, pause: Option<Duration>) {
        // Other processes tell nobody here what they submit.
        let longest = if S::IS_SHARED { self.settings.poll_interval.min(SWEEP_EVERY) } else { SWEEP_EVERY };
        let until = clock::now().checked_add(pause.unwrap_or(longest).min(longest));
        // Only the loop asks why it was woken.
        let _woken = clock::until(until, self.stop.run_until_cancelled(self.work.notified())).await;
    }
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
