//! The decision about a request with a key: its handler runs, or the layer responds itself.

use std::pin::pin;

use http::Response;
use http::request::Parts;
use http_body::Body;
use steadfast_core::clock;

use super::child_key::OperationKey;
use super::claiming::{Answer, Claiming, Won};
use super::ending::WonClaim;
use super::entry::PlaceOutcome;
use super::execution::{AcquiredClaim, ResponseSender};
use super::layer_state::LayerState;
use super::metrics::Route;
use super::poll::caught;
use super::reconcile::{Reconcile, Reconciliation, UnknownOperation};
use super::rejection::Rejection;
use super::request::Operation;
use super::response::{reject, reject_for_store, respond_to_other_request, respond_to_repeat};
use super::response_body::ResponseBody;
use super::rules::{self, Repeat};
use super::store::{Claim, RecordState, Store, StoreError};

/// The next step of a request with a key.
pub(super) enum Step<'a, T, R: Body> {
    /// The layer responds, and nothing runs.
    Respond(Response<ResponseBody<R>>),
    /// The handler runs under the key.
    Run(AcquiredClaim<'a, T>),
    /// An earlier request under the key may have run, and the hook has replied.
    Reconciled(AcquiredClaim<'a, T>, Reconciliation),
    /// The client disconnected before anything was claimed.
    Gone,
}

/// Claims the key of an operation, and decides the next step.
pub(super) async fn decide<'a, S: Store, R: Body, E>(
    layer: &'a LayerState<S>,
    operation: &Operation,
    parts: &Parts,
    client: &mut ResponseSender<R, E>,
) -> Step<'a, S::Session, R> {
    match claim_key(layer, operation, client).await {
        Ok(KeyClaim::Acquired(acquired)) => Step::Run(acquired),
        // Boxed, because it is rare: every operation in flight would carry the room for it.
        Ok(KeyClaim::ToReconcile(acquired, hook)) => Box::pin(reconcile(operation, parts, acquired, &hook)).await,
        Ok(KeyClaim::OtherRequest(state)) => {
            Step::Respond(respond_to_other_request(layer, (&operation.id, &Route::of(parts)), &state))
        }
        Ok(KeyClaim::Known { mut state, waited }) => match layer.config.open(&operation.id, &mut state) {
            Ok(()) => Step::Respond(respond_to_repeat(layer, (&operation.id, &Route::of(parts)), state, waited)),
            Err(error) => Step::Respond(reject_for_store(layer, (&operation.id, &Route::of(parts)), &error)),
        },
        Ok(KeyClaim::Full(limit)) => {
            let about = (Some(&operation.id), &Route::of(parts));
            Step::Respond(reject(layer, about, Rejection::TooManyRunning { limit }))
        }
        Ok(KeyClaim::Gone) => Step::Gone,
        Err(error) => Step::Respond(reject_for_store(layer, (&operation.id, &Route::of(parts)), &error)),
    }
}

/// The result of claiming a key.
enum KeyClaim<'a, T> {
    Acquired(AcquiredClaim<'a, T>),
    /// The key is ours. An earlier request under it may have run, and the hook can find out.
    ToReconcile(AcquiredClaim<'a, T>, Reconcile),
    /// This request came before, and this is the state of its key.
    Known {
        state: RecordState,
        waited: bool,
    },
    /// The key belongs to another request.
    OtherRequest(RecordState),
    /// So many handlers run already, and no more may.
    Full(usize),
    /// The client disconnected while it waited for a place.
    Gone,
}

/// Claims the key. Waits for the first request under it if the client asked for that.
async fn claim_key<'a, S: Store, R: Body, E>(
    layer: &'a LayerState<S>,
    operation: &Operation,
    client: &mut ResponseSender<R, E>,
) -> Result<KeyClaim<'a, S::Session>, StoreError> {
    let store = &layer.shared.store;
    let token = store.token().map_err(|error| StoreError::Unavailable(error.into()))?;
    let claim = Claim::new(&operation.id, token, operation.fingerprint, layer.config.lease, layer.config.retention)
        .reserve(layer.config.max_response)
        .in_scope(operation.scope);
    let has_hook = layer.config.reconcile.is_some();
    let reruns = rules::reruns(layer.config.on_unknown, has_hook);
    let wait_until = operation.wait.and_then(|wait| clock::now().checked_add(wait));
    let mut claiming = Claiming::new(store, claim);
    let (mut waited, mut finds_out) = (false, false);
    loop {
        // Only the request that takes the key over calls the hook.
        let take_over = reruns || finds_out;
        let entry = match &layer.config.concurrency {
            None => None,
            // Boxed, as above.
            Some(limit) => match Box::pin(limit.enter(layer, operation, reruns || has_hook, client)).await? {
                PlaceOutcome::Full => return Ok(KeyClaim::Full(limit.max)),
                PlaceOutcome::Gone => return Ok(KeyClaim::Gone),
                entry => Some(entry),
            },
        };
        let (answer, place) = match entry {
            Some(PlaceOutcome::Known(state)) => (Answer::Known(state), None),
            Some(PlaceOutcome::Place(place)) => (claiming.ask(take_over).await?, Some(place)),
            _ => (claiming.ask(take_over).await?, None),
        };
        let state = match answer {
            Answer::Known(state) => state,
            Answer::Won(Won { session, asked }) => {
                claiming.begins();
                let won = WonClaim::of(&claim.allow_takeover(take_over));
                let held = store.hold(claim.reference(), claim.lease, asked);
                let acquired = AcquiredClaim { won, held, session, place };
                return Ok(match &layer.config.reconcile {
                    Some(hook) if finds_out => KeyClaim::ToReconcile(acquired, hook.clone()),
                    _ => KeyClaim::Acquired(acquired),
                });
            }
        };
        // A repeat that waits for the first request takes no place.
        drop(place);
        let still_waits = || wait_until.filter(|until| *until > clock::now());
        match rules::repeat(&state, operation.fingerprint, has_hook && !finds_out, still_waits) {
            Repeat::Tell => return Ok(KeyClaim::Known { state, waited }),
            Repeat::OtherRequest => return Ok(KeyClaim::OtherRequest(state)),
            Repeat::FindOut => finds_out = true,
            Repeat::Wait(until) => {
                (waited, finds_out) = (true, false);
                Box::pin(layer.shared.waits.wait(store, operation.id, until)).await;
            }
        }
    }
}

/// Calls the hook for the outcome of the earlier request, under the claim of the key.
async fn reconcile<'a, T, R: Body>(
    operation: &Operation,
    parts: &Parts,
    acquired: AcquiredClaim<'a, T>,
    hook: &Reconcile,
) -> Step<'a, T, R> {
    let unknown = UnknownOperation {
        operation: OperationKey::of(operation.id),
        method: parts.method.clone(),
        uri: parts.uri.clone(),
        headers: parts.headers.clone(),
        body: operation.body.clone(),
    };
    // Called within the future, so that a hook which panics at once counts as unknown too.
    let finding = pin!(async { hook.find(unknown).await });
    match caught(finding).await.unwrap_or(Reconciliation::Unknown) {
        Reconciliation::NotApplied => Step::Run(acquired),
        found => Step::Reconciled(acquired, found),
    }
}
