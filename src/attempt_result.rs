//! The evidence of one attempt, and its result.
//!
//! A dropped attempt returns nothing: the caller went away, or the other half of a hedged pair was
//! faster. Nevertheless it may have reached the server. So each attempt keeps its evidence in an
//! [`AttemptProgress`] that the operation owns, and its [`AttemptResult`] is made from that.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::attempt_hook::LastResponse;
use super::credentials::TokenNumber;
use super::redirect::{RedirectState, RedirectTrail, ResultRequest};
use super::spans::SendSpan;
use crate::error::BoxError;
use crate::journal::Reach;
use crate::policy::Failure;

/// The result of a finished attempt.
pub(super) struct AttemptResult {
    pub(super) outcome: Result<AttemptResponse, AttemptError>,
    pub(super) redirects: RedirectState,
}

impl AttemptResult {
    /// Returns the head of the response, if it arrived. A response whose body was cut has one, too.
    pub(super) fn head(&self) -> Option<(StatusCode, &HeaderMap)> {
        match &self.outcome {
            Ok(response) => Some((response.status(), response.headers())),
            Err(error) => error.head.as_deref().map(|(status, headers)| (*status, headers)),
        }
    }
}

/// A finished attempt, and its duration.
pub(super) struct FinishedAttempt {
    pub(super) number: u32,
    pub(super) result: AttemptResult,
    pub(super) ended: Instant,
    pub(super) elapsed: Duration,
    /// Lower bound of the origin's latency. `None` if a hedged first attempt failed.
    pub(super) latency: Option<Duration>,
}

/// When an attempt ends.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TimeLimits {
    /// The end of an attempt that does not spend time on an upload.
    pub(super) until: Option<Instant>,
    /// The end of the operation.
    pub(super) deadline: Option<Instant>,
}

/// How far one attempt has got, and when it ends.
pub(super) struct AttemptProgress {
    pub(super) number: u32,
    pub(super) limits: TimeLimits,
    pub(super) reach: Reach,
    /// Another attempt may have been processed, or runs at the same time.
    pub(super) is_repeat: bool,
    pub(super) redirects: RedirectState,
    /// The last token of the client's that this operation has sent.
    pub(super) token: Option<TokenNumber>,
    /// Boxed because most requests have none of it.
    rare: Option<Box<Rare>>,
}

/// What redirects, hooks and spans need.
#[derive(Default)]
struct Rare {
    trail: RedirectTrail,
    /// The last response of the operation's origin. Kept only for hooks.
    last_response: Option<LastResponse>,
    /// The span of the request that was sent last.
    span: Option<SendSpan>,
}

impl AttemptProgress {
    /// An attempt of which nothing has been sent, and without an end. It starts from `redirects`.
    pub(super) fn new(number: u32, is_repeat: bool, redirects: RedirectState) -> Self {
        Self {
            number,
            limits: TimeLimits::default(),
            reach: Reach::NotSent,
            is_repeat,
            redirects,
            token: None,
            rare: None,
        }
    }

    /// Begins the next attempt, which starts from `redirects`.
    pub(super) fn begin(&mut self, number: u32, is_repeat: bool, redirects: RedirectState) {
        let token = self.token;
        let last_response = self.rare.as_mut().and_then(|rare| rare.last_response.take());
        *self = Self { token, ..Self::new(number, is_repeat, redirects) };
        if let Some(last_response) = last_response {
            self.set_last_response(last_response);
        }
    }

    /// Returns the last response of the operation's origin, if hooks need it.
    pub(super) fn last_response(&self) -> Option<&LastResponse> {
        self.rare.as_ref().and_then(|rare| rare.last_response.as_ref())
    }

    pub(super) fn set_last_response(&mut self, response: LastResponse) {
        self.rare.get_or_insert_default().last_response = Some(response);
    }

    /// Returns the request of the current hop, or `None` before the first redirect.
    pub(super) fn hop(&self) -> Option<&reqwest::Request> {
        self.rare.as_ref().and_then(|rare| rare.trail.hop())
    }

    /// Returns the last hop that kept the method, or `None` before the first such redirect.
    pub(super) fn same_method_hop(&self) -> Option<&reqwest::Request> {
        self.rare.as_ref().and_then(|rare| rare.trail.same_method.as_ref())
    }

    /// Takes the GET that a 303 has turned the request into.
    pub(super) fn take_result(&mut self) -> Option<ResultRequest> {
        self.rare.as_mut().and_then(|rare| rare.trail.result.take())
    }

    pub(super) fn trail_mut(&mut self) -> &mut RedirectTrail {
        &mut self.rare.get_or_insert_default().trail
    }

    /// Returns the span of the request that was sent last, if somebody listens.
    pub(super) fn span(&self) -> Option<&SendSpan> {
        self.rare.as_ref().and_then(|rare| rare.span.as_ref())
    }

    pub(super) fn set_span(&mut self, span: SendSpan) {
        self.rare.get_or_insert_default().span = Some(span);
    }

    /// Ends the span of a request that was redirected.
    pub(super) fn end_span(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.span = None;
        }
    }

    /// Ends the attempt.
    pub(super) fn finish(&mut self, outcome: Result<AttemptResponse, AttemptError>) -> AttemptResult {
        if let (Some(span), Err(error)) = (self.span(), &outcome) {
            span.failed(error.failure, error.head.as_ref().map(|head| head.0));
        }
        self.end_span();
        AttemptResult { outcome, redirects: self.redirects }
    }
}

/// A response, with as much of its body as was read inside the attempt.
pub(super) enum AttemptResponse {
    /// The head. `prefix` is the beginning of the body, where the class depends on it.
    Head { response: reqwest::Response, prefix: Bytes },
    /// The head and the body, or its first bytes if it is longer than the limit.
    Whole { status: StatusCode, headers: HeaderMap, body: Bytes, over_limit: bool },
}

impl AttemptResponse {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Head { response, .. } => response.status(),
            Self::Whole { status, .. } => *status,
        }
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        match self {
            Self::Head { response, .. } => response.headers(),
            Self::Whole { headers, .. } => headers,
        }
    }

    /// Returns as much of the body as was read inside the attempt.
    pub(super) fn body_prefix(&self) -> &[u8] {
        match self {
            Self::Head { prefix, .. } => prefix,
            Self::Whole { body, .. } => body,
        }
    }
}

/// Why an attempt has no complete response.
pub(super) struct AttemptError {
    pub(super) failure: Failure,
    pub(super) timed_out: bool,
    /// The head of the response, if it had arrived.
    pub(super) head: Option<Box<(StatusCode, HeaderMap)>>,
    /// Whether the transport took a part of the request's body. `None` if no probe watched it.
    pub(super) body_was_taken: Option<bool>,
    pub(super) source: Option<BoxError>,
}
