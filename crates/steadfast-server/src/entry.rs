//! Entering under the limit of running handlers: a place, or what a request without one gets.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use http_body::Body;
use steadfast_core::clock;
use tokio::sync::OwnedSemaphorePermit;

use super::concurrency::Concurrency;
use super::execution::ResponseSender;
use super::layer_state::LayerState;
use super::request::Operation;
use super::store::{RecordState, Store, StoreError};

/// What a request finds that needs a place.
pub(super) enum PlaceOutcome {
    Place(OwnedSemaphorePermit),
    /// Every place is taken, and the request needs none: this is the state of its key.
    Known(RecordState),
    /// No place came free in time.
    Full,
    /// The client disconnected before a place came free.
    Gone,
}

impl Concurrency {
    /// Returns a place for the handler of this operation. `reruns`: an operation with an unknown
    /// outcome runs again, so it needs a place too.
    pub(super) async fn enter<S: Store, R: Body, E>(
        &self,
        layer: &LayerState<S>,
        operation: &Operation,
        reruns: bool,
        client: &mut ResponseSender<R, E>,
    ) -> Result<PlaceOutcome, StoreError> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Ok(PlaceOutcome::Place(place));
        }
        if let Some(known) = known(layer, operation, reruns).await? {
            return Ok(PlaceOutcome::Known(known));
        }
        let wait = layer.config.concurrency_wait;
        if wait.is_zero() {
            return Ok(PlaceOutcome::Full);
        }
        let mut free = pin!(self.places.clone().acquire_owned());
        let entering = poll_fn(|cx| {
            // Nothing is claimed yet, so nothing is lost: the next repeat runs.
            if client.poll_closed(cx).is_ready() {
                return Poll::Ready(PlaceOutcome::Gone);
            }
            free.as_mut().poll(cx).map(|place| place.map_or(PlaceOutcome::Full, PlaceOutcome::Place))
        });
        match clock::until(clock::now().checked_add(wait), entering).await {
            Ok(entered) => Ok(entered),
            // The first request under the key may have found a place meanwhile.
            Err(clock::TimedOut) => {
                Ok(known(layer, operation, reruns).await?.map_or(PlaceOutcome::Full, PlaceOutcome::Known))
            }
        }
    }
}

/// Returns the state of a key that needs no handler. A repeat is served without a place.
async fn known<S: Store>(
    layer: &LayerState<S>,
    operation: &Operation,
    reruns: bool,
) -> Result<Option<RecordState>, StoreError> {
    let store = &layer.shared.store;
    Ok(match store.get(&operation.id).await? {
        Some(RecordState::Unknown { fingerprint }) if store.parts().claims.is_held(&operation.id) => {
            Some(RecordState::in_progress(fingerprint, layer.config.lease))
        }
        Some(RecordState::Unknown { fingerprint }) if reruns && fingerprint == operation.fingerprint => None,
        state => state,
    })
}
