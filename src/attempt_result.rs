//! The evidence of one attempt, and its result.
//!
//! A dropped attempt returns nothing: the caller went away, or the other half of a hedged pair was
//! faster. Nevertheless it may have reached the server. So each attempt keeps its evidence in an
//! [`AttemptProgress`] that the operation owns, and its [`AttemptResult`] is made from that.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::redirect::{RedirectState, RedirectTrail, ResultRequest};
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
    /// Boxed because most requests are not redirected.
    trail: Option<Box<RedirectTrail>>,
}

impl AttemptProgress {
    /// An attempt of which nothing has been sent, and without an end. It starts from `redirects`.
    pub(super) fn new(number: u32, is_repeat: bool, redirects: RedirectState) -> Self {
        Self { number, limits: TimeLimits::default(), reach: Reach::NotSent, is_repeat, redirects, trail: None }
    }

    /// Returns the request of the current hop, or `None` before the first redirect.
    pub(super) fn hop(&self) -> Option<&reqwest::Request> {
        self.trail.as_ref().and_then(|trail| trail.hop())
    }

    /// Returns the last hop that kept the method, or `None` before the first such redirect.
    pub(super) fn same_method_hop(&self) -> Option<&reqwest::Request> {
        self.trail.as_ref().and_then(|trail| trail.same_method.as_ref())
    }

    /// Takes the GET that a 303 has turned the request into.
    pub(super) fn take_result(&mut self) -> Option<ResultRequest> {
        self.trail.as_mut().and_then(|trail| trail.result.take())
    }

    pub(super) fn trail_mut(&mut self) -> &mut RedirectTrail {
        self.trail.get_or_insert_default()
    }

    /// Ends the attempt.
    pub(super) fn finish(&self, outcome: Result<AttemptResponse, AttemptError>) -> AttemptResult {
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
