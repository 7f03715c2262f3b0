//! Recognises a call that repeats an earlier one.
//!
//! A layer above, such as reqwest-retry, takes a 503 for a reason to call this middleware again,
//! with the same request and the same extensions. To this middleware that would be a new operation
//! with a new key, and the server would act twice. So every call leaves a mark in the extensions:
//! its requests, their keys, and whether they may have been processed. A second call with the same
//! request goes on with the first one's key, and needs the licence that every repeat needs.
//!
//! The mark is there before anything is sent. So it also speaks of a call that a timeout above has
//! dropped.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{Extensions, StatusCode};
use reqwest::{Body, Request, Response};
use steadfast::adapter::Earlier;
use steadfast::{Error, ResponseExt};

/// What tells one request from another: method, URL and body. Headers may differ, as by a fresh
/// token.
pub(crate) struct Identity {
    /// Without its headers. The body shares its bytes with the request that is sent.
    request: Request,
    /// A stream cannot be compared.
    is_stream: bool,
}

impl Identity {
    pub(crate) fn of(request: &Request) -> Self {
        let Some(mut copy) = request.try_clone() else {
            let request = Request::new(request.method().clone(), request.url().clone());
            return Self { request, is_stream: true };
        };
        copy.headers_mut().clear();
        Self { request: copy, is_stream: false }
    }

    /// Returns whether two requests are the same, or may be.
    fn may_be(&self, other: &Self) -> bool {
        let is_same_body = self.is_stream || other.is_stream || self.bytes() == other.bytes();
        let (one, other) = (&self.request, &other.request);
        is_same_body && one.method() == other.method() && one.url() == other.url()
    }

    fn bytes(&self) -> &[u8] {
        self.request.body().and_then(Body::as_bytes).unwrap_or_default()
    }
}

/// The requests of the calls that share these extensions.
#[derive(Clone, Default)]
pub(crate) struct Mark(Arc<Mutex<Vec<Marked>>>);

/// A request, and what became of it.
struct Marked {
    identity: Identity,
    /// `None` until something is sent.
    earlier: Option<Earlier>,
    /// A retry layer repeats a request that has ended like this.
    asks_for_retry: bool,
}

/// One call.
pub(crate) struct Call {
    mark: Mark,
    at: usize,
    /// The call before this one with the same request, if that has sent something.
    pub(crate) earlier: Option<Earlier>,
    /// Whether a retry layer above seems to have made this call.
    pub(crate) is_retry: bool,
}

impl Mark {
    /// Begins a call, and leaves the mark in the extensions.
    pub(crate) fn enter(extensions: &mut Extensions, identity: Identity) -> Call {
        let mark = extensions.get_or_insert_default::<Self>().clone();
        let (at, earlier, is_retry) = {
            let mut all = mark.lock();
            match all.iter().position(|marked| marked.identity.may_be(&identity)) {
                Some(at) => {
                    let known = &all[at];
                    (at, known.earlier.clone(), known.asks_for_retry)
                }
                None => {
                    all.push(Marked { identity, earlier: None, asks_for_retry: false });
                    (all.len() - 1, None, false)
                }
            }
        };
        Call { mark, at, earlier, is_retry }
    }

    /// Returns whether a request of these calls may have been processed.
    pub(crate) fn has_acted(extensions: &Extensions) -> bool {
        let Some(mark) = extensions.get::<Self>() else { return false };
        mark.lock().iter().filter_map(|marked| marked.earlier.as_ref()).any(Earlier::may_have_been_processed)
    }

    // A panic cannot leave the list in a half-written state.
    fn lock(&self) -> MutexGuard<'_, Vec<Marked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call {
    /// Records that an attempt goes out. Until the call has ended, it may have been processed.
    pub(crate) fn sends(&self, sent: impl FnOnce() -> Earlier) {
        self.update(|marked| {
            let earlier = marked.earlier.get_or_insert_with(sent);
            earlier.set_may_have_been_processed(true);
            marked.asks_for_retry = true;
        });
    }

    /// Records how the call has ended.
    pub(crate) fn ended(&self, result: &Result<Response, Error>) {
        let (may_have_acted, asks_for_retry) = match result {
            Ok(response) => (response.may_have_been_processed(), is_transient(response.status())),
            Err(error) => (error.may_have_been_processed(), true),
        };
        self.update(|marked| {
            // Nothing was sent, and an earlier call is as it was.
            let Some(earlier) = &mut marked.earlier else { return };
            // Also if this call has sent nothing, as for want of the licence.
            let acted_before = self.earlier.as_ref().is_some_and(Earlier::may_have_been_processed);
            earlier.set_may_have_been_processed(acted_before || may_have_acted);
            marked.asks_for_retry = asks_for_retry;
        });
    }

    /// Leaves the mark in the extensions that go up, whatever the layers below have left there.
    pub(crate) fn leave(self, extensions: &mut Extensions) {
        extensions.insert(self.mark);
    }

    fn update(&self, change: impl FnOnce(&mut Marked)) {
        if let Some(marked) = self.mark.lock().get_mut(self.at) {
            change(marked);
        }
    }
}

/// Returns whether retry layers repeat a response with this status.
fn is_transient(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}
