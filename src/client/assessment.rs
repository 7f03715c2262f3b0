//! From one attempt's outcome to its class, with everything that the status alone does not say.
//!
//! The default table is in `policy/class.rs`. Here it meets the key (a 409 may mean "the first attempt still runs"), the user's
//! classifier, and the evidence for "may have been processed", which no classifier can change.

use http::{HeaderMap, Method, StatusCode};

use super::operation::OperationContext;
use super::response_body::{AttemptError, AttemptResponse};
use super::{Classifier, Inner};
use crate::clock;
use crate::journal::Reach;
use crate::key_policy::KeyPolicy;
use crate::policy::{Class, Failure, Hint, Idempotency, Outcome, RetryPolicy, record_status};
use crate::problem;

/// What the assessment of every attempt of one operation depends on.
#[derive(Clone, Copy)]
pub(super) struct AttemptContext<'a> {
    /// A redirect to the result has come: the operation was carried out, and what is sent now is a GET.
    pub(super) is_done: bool,
    /// A redirect was followed that does not say that the server has not acted on the hop before it.
    pub(super) may_have_acted: bool,
    /// The HTTP client may have followed redirects of which nothing is known.
    pub(super) opaque: bool,
    pub(super) method: &'a Method,
    pub(super) idempotency: Idempotency,
    /// The server is told how long it is waited for, and may refuse what is too late.
    pub(super) tells_deadline: bool,
    pub(super) has_key: bool,
    pub(super) key_was_given: bool,
    pub(super) keys: &'a KeyPolicy,
    pub(super) policy: &'a RetryPolicy,
    pub(super) classifier: Option<&'a Classifier>,
}

/// Whether the body must be looked at to judge an answer of this status: a 409 under a key says there what it means, and a 503 that it
/// is about the deadline that was sent.
pub(super) fn says_why(client: &Inner, plan: &OperationContext, status: StatusCode) -> bool {
    AttemptContext::at_first(client, plan).says_why(status)
}

/// A 307 or 308 asks for the same request elsewhere, so it was not carried out here (RFC 9110
/// §15.4.8, §15.4.9). A 301 or 302 does not say so: frameworks answer them after they have acted.
fn says_not_acted(status: StatusCode) -> bool {
    matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT)
}

/// What one attempt came to.
pub(super) struct Assessment {
    pub(super) class: Class,
    pub(super) default_class: Class,
    pub(super) reach: Reach,
    pub(super) status: Option<StatusCode>,
    pub(super) failure: Option<Failure>,
    pub(super) hint: Hint,
    /// The server may have carried the operation out in this attempt.
    pub(super) may_have_been_processed: bool,
}

impl Assessment {
    /// On an attempt that was dropped while it was under way: it may have arrived.
    pub(super) fn on_dropped() -> Self {
        Self {
            class: Class::Ambiguous,
            default_class: Class::Ambiguous,
            reach: Reach::Sent,
            status: None,
            failure: Some(Failure::HedgeCancelled),
            hint: Hint::default(),
            may_have_been_processed: true,
        }
    }
}

impl<'a> AttemptContext<'a> {
    pub(super) fn at_first(client: &'a Inner, plan: &'a OperationContext) -> Self {
        Self {
            is_done: false,
            may_have_acted: false,
            opaque: client.opaque,
            method: &plan.method,
            idempotency: plan.idempotency,
            tells_deadline: client.overload.deadline_header.is_some(),
            has_key: plan.key.is_some(),
            key_was_given: plan.key_was_given,
            keys: &client.keys,
            policy: plan.policy(client),
            classifier: client.classifier.as_ref(),
        }
    }
}

impl AttemptContext<'_> {
    fn says_why(&self, status: StatusCode) -> bool {
        (status == StatusCode::CONFLICT && self.has_key)
            || (status == StatusCode::SERVICE_UNAVAILABLE && self.tells_deadline)
    }

    /// `earlier_ambiguous`: an attempt before this one may have been carried out.
    pub(super) fn judge(
        &self,
        attempted: &Result<AttemptResponse, AttemptError>,
        earlier_ambiguous: bool,
    ) -> Assessment {
        match attempted {
            Ok(answer) => self.answered(answer.status(), answer.headers(), answer.begun(), earlier_ambiguous),
            Err(failed) => self.failed(failed),
        }
    }

    fn answered(&self, status: StatusCode, headers: &HeaderMap, body: &[u8], earlier_ambiguous: bool) -> Assessment {
        let names = if self.says_why(status) { problem::names(body) } else { Vec::new() };
        let named = |name: &str| names.iter().any(|found| found == name);
        // The server's own word that it has not begun.
        let too_late = status == StatusCode::SERVICE_UNAVAILABLE && named(problem::DEADLINE_PASSED);
        let by_status = if too_late { Class::NotProcessed } else { Class::of_status(status) };
        let mut hint = Hint::read(headers, by_status, clock::wall, self.policy.hint_cap_in_force());
        hint.misdirected = status == StatusCode::MISDIRECTED_REQUEST;
        hint.outcome_unknown |= named(problem::OUTCOME_UNKNOWN);

        let asks_to_wait = || {
            headers.contains_key(http::header::RETRY_AFTER)
                || record_status(headers).is_some_and(|record| record.word == "in-progress")
                || named(problem::IN_PROGRESS)
                || self.keys.in_progress.as_deref().is_some_and(named)
        };
        // draft-ietf-httpapi-idempotency-key-header-07 §2.6: the first attempt under our key still runs. Only where there can
        // have been one: a 409 on the first try under a fresh key is the API's own conflict.
        let ours_still_runs = status == StatusCode::CONFLICT
            && self.has_key
            && !self.is_done
            && (earlier_ambiguous || self.key_was_given)
            && !hint.outcome_unknown
            && asks_to_wait();
        let default_class = if ours_still_runs { Class::Ambiguous } else { self.of_hop(by_status) };

        let outcome =
            Outcome::answered(self.method, self.idempotency, status, headers).with_default_class(default_class);
        let throttled_acts = self.policy.throttling_is_ambiguous() && default_class == Class::Throttled;
        Assessment {
            class: self.classify(&outcome),
            default_class,
            reach: Reach::Answered,
            status: Some(status),
            failure: None,
            hint,
            may_have_been_processed: default_class == Class::Ambiguous
                || (default_class == Class::Success && !says_not_acted(status))
                || hint.outcome_unknown
                || throttled_acts
                || self.may_have_acted
                || self.is_done,
        }
    }

    fn failed(&self, failed: &AttemptError) -> Assessment {
        let none = HeaderMap::new();
        let (status, headers) =
            failed.head.as_deref().map_or((None, &none), |(status, headers)| (Some(*status), headers));
        let outcome = match status {
            Some(status) => {
                Outcome::answered(self.method, self.idempotency, status, headers).with_failure(failed.failure)
            }
            None => Outcome::failed(self.method, self.idempotency, failed.failure),
        };
        // Of a request that was carried out, nothing can be said to be not processed.
        let outcome = match outcome.default_class() {
            Class::NotProcessed if self.is_done => outcome.with_default_class(Class::Ambiguous),
            class => outcome.with_default_class(self.of_hop(class)),
        };
        let default_class = outcome.default_class();
        let hint = Hint::read(headers, default_class, clock::wall, self.policy.hint_cap_in_force());
        // A cut answer is no stored end: asked again, the server sends it whole.
        let hint = Hint {
            replayed: false,
            refused: failed.failure == Failure::Refused,
            local: failed.failure == Failure::LocalResources,
            ..hint
        };
        let part_was_taken = failed.failure == Failure::RequestBody && failed.taken != Some(false);
        Assessment {
            class: self.classify(&outcome),
            default_class,
            reach: match default_class {
                _ if status.is_some() => Reach::Answered,
                Class::NotProcessed => Reach::NotSent,
                Class::Permanent if !part_was_taken => Reach::NotSent,
                _ => Reach::Sent,
            },
            status,
            failure: Some(failed.failure),
            hint,
            may_have_been_processed: default_class == Class::Ambiguous
                || part_was_taken
                || self.may_have_acted
                || self.is_done
                || (failed.failure == Failure::Redirects && !status.is_some_and(says_not_acted)),
        }
    }

    /// A later hop cannot say that nothing was done at an earlier one.
    fn of_hop(&self, class: Class) -> Class {
        match class {
            Class::NotProcessed if self.opaque => Class::Ambiguous,
            Class::NotProcessed | Class::Throttled if self.may_have_acted => Class::Ambiguous,
            class => class,
        }
    }

    fn classify(&self, outcome: &Outcome<'_>) -> Class {
        self.classifier.map_or(outcome.default_class(), |classify| classify(outcome))
    }
}
