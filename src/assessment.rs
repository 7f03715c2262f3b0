//! Classifies one attempt.
//!
//! The default table is in `steadfast-core`, in `class.rs` and, for headers, `hint.rs`. This file
//! adds the meaning of a 409 under a key, and the user's classifier. It also decides whether the
//! operation may have been processed, which no classifier can change.

use std::time::Duration;

use http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};

use super::attempt_result::{AttemptError, AttemptProgress, AttemptResponse, AttemptResult};
use super::credentials::TokenNumber;
use super::operation::OperationContext;
use super::redirect::{self, RedirectState};
use super::response_body::{self, ReadMode};
use super::transport_error;
use crate::cause::Cause;
use crate::clock;
use crate::journal::{Attempt, Reach};
use crate::policy::{Class, Classification, Failure, Hint, Outcome, record_status};
use crate::problem;
use steadfast_core::protocol::problem_type;

/// The class of one attempt, and its evidence.
pub(super) struct Assessment {
    pub(super) class: Class,
    default_class: Class,
    reach: Reach,
    pub(super) status: Option<StatusCode>,
    pub(super) failure: Option<Failure>,
    /// What lies behind the failure. It decides nothing.
    pub(super) cause: Option<Cause>,
    pub(super) hint: Hint,
    /// The server may have carried out the operation in this attempt.
    pub(super) may_have_been_processed: bool,
}

impl Assessment {
    /// Assesses a finished attempt. `token`: the client's token in its last request.
    /// `was_sent_before`: an earlier attempt may have been processed.
    pub(super) fn of(
        context: &OperationContext<'_>,
        result: &AttemptResult,
        token: Option<TokenNumber>,
        was_sent_before: bool,
    ) -> Self {
        let assessor = Assessor { context, redirects: result.redirects, token };
        match &result.outcome {
            Ok(response) => assessor.assess_response(response, was_sent_before),
            Err(error) => assessor.assess_error(error),
        }
    }

    /// Assesses the cancelled half of a hedged pair. Its end is not known, so if the transport took
    /// a part of it, it may have been processed.
    pub(super) fn of_cancelled(progress: &AttemptProgress) -> Self {
        let may_have_been_processed = progress.reach != Reach::NotSent;
        let class = if may_have_been_processed { Class::Ambiguous } else { Class::NotProcessed };
        Self {
            class,
            default_class: class,
            reach: progress.reach,
            status: None,
            failure: Some(Failure::HedgeCancelled),
            cause: None,
            hint: Hint::default(),
            may_have_been_processed,
        }
    }

    /// Returns the attempt as the journal lists it. The decision about it is added later.
    pub(super) fn to_attempt(&self, number: u32, elapsed: Duration) -> Attempt {
        let &Self { class, default_class, reach, status, failure, cause, .. } = self;
        Attempt {
            number,
            reach,
            class,
            default_class,
            status,
            failure,
            cause,
            elapsed,
            wait: None,
            free_repeat: false,
            confirmation: None,
        }
    }
}

/// Returns whether the class of a response depends on its body. The body tells the meaning of a 409
/// under a key, and whether a 503 is about the deadline header.
pub(super) fn needs_body(context: &OperationContext<'_>, status: StatusCode) -> bool {
    match status {
        StatusCode::CONFLICT => context.key.is_some(),
        StatusCode::SERVICE_UNAVAILABLE => context.client.overload.deadline_header.is_some(),
        _ => false,
    }
}

/// Returns whether a redirect means that the server has not acted. A 307 or 308 asks for the same
/// request at another address (RFC 9110 §15.4.8, §15.4.9). Frameworks send 301 and 302 after they
/// have acted.
fn says_not_acted(status: StatusCode) -> bool {
    matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT)
}

struct Assessor<'a> {
    context: &'a OperationContext<'a>,
    redirects: RedirectState,
    token: Option<TokenNumber>,
}

impl Assessor<'_> {
    fn assess_response(&self, response: &AttemptResponse, was_sent_before: bool) -> Assessment {
        let (context, status, headers) = (self.context, response.status(), response.headers());
        let names = if needs_body(context, status) { problem::names(response.body_prefix()) } else { Vec::new() };
        let is_named = |name: &str| names.iter().any(|found| found == name);

        // The server states that it has not begun.
        let was_too_late = status == StatusCode::SERVICE_UNAVAILABLE && is_named(problem_type::DEADLINE_PASSED);
        let by_head = if was_too_late { Class::NotProcessed } else { Class::read(status, headers, clock::wall) };
        let mut hint = Hint::read(headers, by_head, clock::wall);
        hint.misdirected = status == StatusCode::MISDIRECTED_REQUEST;
        hint.outcome_unknown |= is_named(problem_type::OUTCOME_UNKNOWN);
        if status == StatusCode::UNAUTHORIZED {
            self.read_refusal(&mut hint, headers, was_sent_before);
        }

        let may_be_in_progress = status == StatusCode::CONFLICT
            && !hint.outcome_unknown
            && self.may_meet_itself(was_sent_before)
            && self.asks_to_wait(headers, is_named);
        let default_class = if may_be_in_progress { Class::Ambiguous } else { self.after_unseen_redirects(by_head) };
        let may_have_acted = match default_class {
            Class::Ambiguous => true,
            Class::Success => !says_not_acted(status),
            Class::Throttled => context.policy().throttled_is_ambiguous,
            Class::Permanent if status == StatusCode::UNAUTHORIZED => context.policy().unauthorized_is_ambiguous,
            _ => false,
        };
        let class = self.classify(default_class, &mut hint, || {
            let outcome = Outcome::answered(&context.method, context.idempotency, status, headers);
            match context.read {
                ReadMode::Whole { .. } => outcome.with_body(response.body_prefix()),
                // What was peeked at is the beginning at best, and only of some responses.
                ReadMode::Head => outcome,
            }
        });
        Assessment {
            class,
            default_class,
            reach: Reach::Answered,
            status: Some(status),
            failure: None,
            cause: None,
            hint,
            may_have_been_processed: may_have_acted || hint.outcome_unknown || self.an_earlier_hop_acted(),
        }
    }

    /// Reads a 401. If it has met a token of the client's, the request may go again with a fresh one.
    /// A 401 with a challenge says that the request was not applied (RFC 9110 §15.5.2). That is no
    /// evidence about an earlier attempt or hop, nor about one that the client cannot see.
    fn read_refusal(&self, hint: &mut Hint, headers: &HeaderMap, was_sent_before: bool) {
        hint.token_refused = self.token.is_some() && !self.redirects.is_elsewhere && !hint.replayed;
        let acted_before = was_sent_before || self.an_earlier_hop_acted();
        hint.not_applied = headers.contains_key(WWW_AUTHENTICATE) && !acted_before && !self.redirects.is_opaque;
    }

    /// Returns whether a 409 can be about another attempt of this operation. A 409 to the first
    /// attempt under a fresh key is a conflict of the API's own.
    /// (draft-ietf-httpapi-idempotency-key-header-07 §2.6)
    fn may_meet_itself(&self, was_sent_before: bool) -> bool {
        let context = self.context;
        context.key.is_some() && !self.redirects.is_done && (was_sent_before || context.key_was_given)
    }

    /// Returns whether a 409 means that the first attempt under its key still runs.
    fn asks_to_wait(&self, headers: &HeaderMap, is_named: impl Fn(&str) -> bool) -> bool {
        headers.contains_key(RETRY_AFTER)
            || record_status(headers).is_some_and(|record| record.word == "in-progress")
            || is_named(problem_type::IN_PROGRESS)
            || self.context.client.keys.in_progress.as_deref().is_some_and(is_named)
    }

    fn assess_error(&self, error: &AttemptError) -> Assessment {
        let (context, failure) = (self.context, error.failure);
        let no_headers = HeaderMap::new();
        let (status, headers) = match error.head.as_deref() {
            Some((status, headers)) => (Some(*status), headers),
            None => (None, &no_headers),
        };
        let default_class = match failure.class() {
            // The operation was carried out before, so it is not "not processed".
            Class::NotProcessed if self.redirects.is_done => Class::Ambiguous,
            class => self.after_redirects(class),
        };
        let mut hint = Hint::read(headers, default_class, clock::wall);
        // A truncated response is not the stored end: the server sends it again in full.
        hint.replayed = false;
        hint.refused = failure == Failure::Refused;
        let is_ours = matches!(failure, Failure::AttemptHook | Failure::Credentials);
        hint.local = is_ours || failure == Failure::LocalResources;
        hint.upload_too_slow = failure == Failure::UploadTooSlow;
        let cause = self.cause(error);
        hint.response_too_large = matches!(cause, Some(Cause::Http1HeadTooLarge | Cause::Http2HeadTooLarge));
        let part_was_taken = failure == Failure::RequestBody && error.body_was_taken != Some(false);
        let redirect_acted = failure == Failure::Redirects && !status.is_some_and(says_not_acted);
        let outcome = || match status {
            Some(status) => {
                Outcome::answered(&context.method, context.idempotency, status, headers).with_failure(failure)
            }
            None => Outcome::failed(&context.method, context.idempotency, failure),
        };
        // What the client was not to send ends the operation, whatever a classifier says.
        let class = if is_ours { default_class } else { self.classify(default_class, &mut hint, outcome) };
        Assessment {
            class,
            default_class,
            reach: match default_class {
                _ if status.is_some() => Reach::Answered,
                Class::NotProcessed => Reach::NotSent,
                Class::Permanent if !part_was_taken => Reach::NotSent,
                _ => Reach::Sent,
            },
            status,
            failure: Some(failure),
            cause,
            hint,
            may_have_been_processed: default_class == Class::Ambiguous
                || part_was_taken
                || redirect_acted
                || self.an_earlier_hop_acted(),
        }
    }

    fn cause(&self, error: &AttemptError) -> Option<Cause> {
        match &error.source {
            Some(source) if error.failure == Failure::Redirects => {
                let is_circle = source.to_string().starts_with(redirect::CIRCLE);
                Some(if is_circle { Cause::RedirectCircle } else { Cause::TooManyRedirects })
            }
            Some(source) if error.timed_out && source.to_string() == response_body::PAUSED => Some(Cause::ReadTimeout),
            Some(source) => transport_error::cause(error.failure, source, self.context.client.lacks_roots),
            // Only the client's own timer leaves no error.
            None => error.timed_out.then_some(Cause::AttemptTimeout),
        }
    }

    fn an_earlier_hop_acted(&self) -> bool {
        self.redirects.may_have_acted || self.redirects.is_done
    }

    /// Corrects a class for the earlier hops: a later hop cannot know that an earlier one did
    /// nothing.
    fn after_redirects(&self, class: Class) -> Class {
        match class {
            Class::NotProcessed | Class::Throttled if self.redirects.may_have_acted => Class::Ambiguous,
            class => class,
        }
    }

    /// Corrects the class of a response for hops that the transport may have followed unseen. (The
    /// class of a failure comes from the transport, which knows of them.)
    fn after_unseen_redirects(&self, class: Class) -> Class {
        let is_known = self.context.policy().throttled_is_ambiguous;
        match self.after_redirects(class) {
            Class::NotProcessed if self.redirects.is_opaque => Class::Ambiguous,
            Class::Throttled if self.redirects.is_opaque && !is_known => Class::Ambiguous,
            class => class,
        }
    }

    /// Returns the class that decides: the user's classifier has the last word. So has its wait. If
    /// the classifier alone calls a response throttled, its quota counts too.
    fn classify<'b>(&self, default_class: Class, hint: &mut Hint, outcome: impl FnOnce() -> Outcome<'b>) -> Class {
        let Some(classify) = &self.context.client.classifier else { return default_class };
        let outcome = outcome().with_default_class(default_class);
        let Classification { class, after, .. } = classify(&outcome);
        hint.after = after.or(hint.after).or_else(|| match outcome.headers() {
            Some(headers) if class == Class::Throttled => Hint::read(headers, class, clock::wall).after,
            _ => None,
        });
        class
    }
}
