//! The last check before each request leaves: its mark is on the disk, and the lease holds.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use steadfast::adapter::BeforeSend;
use steadfast_core::clock;

use crate::change::{Change, Terms};
use crate::engine::Engine;
use crate::id::OperationId;
use crate::lease::Lease;
use crate::store::{Applied, OutboxStore};
use crate::verdict::Stopped;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The gate of one round.
pub(crate) struct Gate<S> {
    store: Arc<S>,
    id: OperationId,
    fence: u64,
    terms: Terms,
    /// How long an attempt takes at most.
    attempt: Duration,
    state: Mutex<GateState>,
}

struct GateState {
    lease: Lease,
    /// The last attempt of the round whose mark is on the disk.
    marked: u32,
    /// The last attempt that has asked.
    asked: u32,
    stopped: Option<Stopped>,
}

impl<S: OutboxStore> Gate<S> {
    /// Makes the gate of a claim. With `is_marked` the mark of the first attempt is on the disk.
    pub(crate) fn new(engine: &Engine<S>, (id, fence): (OperationId, u64), lease: Lease, is_marked: bool) -> Self {
        let state = GateState { lease, marked: u32::from(is_marked), asked: 0, stopped: None };
        let Engine { store, terms, attempt, .. } = engine;
        Self { store: store.clone(), id, fence, terms: *terms, attempt: *attempt, state: Mutex::new(state) }
    }

    /// Returns why the round was stopped, if the gate has stopped it.
    pub(crate) fn stopped(&self) -> Option<Stopped> {
        self.with(|state| state.stopped.clone())
    }

    /// Returns whether an attempt of this claim was marked.
    pub(crate) fn has_marked(&self) -> bool {
        self.with(|state| state.marked > 0)
    }

    fn with<T>(&self, call: impl FnOnce(&mut GateState) -> T) -> T {
        call(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn pass(&self, number: u32) -> Result<Instant, Stopped> {
        if self.needs_mark(number) {
            let lease = Lease::from_now(Duration::from_millis(self.terms.lease_ms));
            let mark = Change::Mark { fence: self.fence, terms: self.terms };
            match self.store.apply(self.id, mark).await {
                Ok(Applied::Done(_)) => self.with(|state| (state.lease, state.marked) = (lease, number)),
                Ok(Applied::Refused(refusal)) => return Err(Stopped::Refused(refusal)),
                Err(error) => return Err(Stopped::Store(error.to_string())),
            }
        }
        let lease = self.with(|state| state.lease);
        lease.end_if_held(clock::now(), clock::wall()).ok_or(Stopped::LeaseOver)
    }

    /// Returns whether a mark is needed before the next request. A redirect needs none. An attempt
    /// that was marked with the claim, and has waited since, needs another if its lease would cut it
    /// short: what is cut short may have been processed.
    fn needs_mark(&self, number: u32) -> bool {
        let (now, wall) = (clock::now(), clock::wall());
        self.with(|state| {
            let is_redirect = state.asked == number;
            state.asked = number;
            let end = state.lease.end_if_held(now, wall);
            let is_long_enough = end.is_some_and(|end| end.saturating_duration_since(now) >= self.attempt);
            state.marked < number || !(is_redirect || is_long_enough)
        })
    }
}

impl<S: OutboxStore> BeforeSend for Gate<S> {
    fn before_send(&self, number: u32) -> Pin<Box<dyn Future<Output = Result<Instant, BoxError>> + Send + '_>> {
        Box::pin(async move {
            self.pass(number).await.map_err(|stopped| {
                self.with(|state| state.stopped = Some(stopped));
                BoxError::from("the outbox does not let the attempt pass")
            })
        })
    }
}
