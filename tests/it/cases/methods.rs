//! Every method with every outcome: is it repeated?
//!
//! `tests/cases/methods_status.json` lists, for each method and outcome, the defaults of some
//! twenty clients. It also has a proposal, derived from RFC 9110 §9.2.2 and the Idempotency-Key
//! draft. The rule of steadfast has precedence over the proposal. `DIFFERS` gives the reason where
//! the two differ.

mod wire;

use std::time::Duration;

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use steadfast::policy::{
    Backoff, Class, Decision, Failure, Hint, Idempotency, Operation, RetryBudget, RetryPolicy, StopReason, TokenBucket,
};

use super::{Account, cases, reason};
use crate::support::clock;

const LEFT_OUT: &[(&str, &str)] = &[
    ("get-caller_cancel", "not an outcome: the future is dropped (see `dropped_operation_sends_nothing_more`)"),
    ("post-caller_cancel", "not an outcome: the future is dropped (see `dropped_operation_sends_nothing_more`)"),
];

/// Cases in which steadfast differs from the table's proposal.
const DIFFERS: &[(&str, &str)] = &[
    ("get-body_truncated", "asked for again from the start, not resumed by a range request"),
    ("post-421", "the wrong connection (RFC 9110 §15.5.20): the server cannot have acted, so once more"),
    ("post-425", "too early (RFC 8470 §5.2): the server refuses before it acts"),
    (
        "post+key-409",
        "no opt-in: asked again later where an earlier attempt under the key may still run; the API's own conflict is final",
    ),
];

#[derive(Deserialize)]
struct Case {
    id: String,
    method: String,
    failure: Outcome,
    has_key: bool,
    proposed: Value,
}

/// A status, or the name of a failure without a response.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Outcome {
    Status(u16),
    Failure(String),
}

impl Case {
    fn idempotency(&self) -> Idempotency {
        match Idempotency::of_method(&Method::from_bytes(self.method.as_bytes()).unwrap()) {
            Idempotency::Absent if self.has_key => Idempotency::Keyed,
            other => other,
        }
    }

    /// The class according to the library.
    fn class(&self) -> Class {
        match &self.failure {
            Outcome::Status(status) => Class::of_status(StatusCode::from_u16(*status).unwrap()),
            Outcome::Failure(word) => failure(word).class(),
        }
    }

    /// The expected class, written independently of the library.
    fn expected_class(&self) -> Class {
        match &self.failure {
            Outcome::Status(421 | 425) => Class::NotProcessed,
            Outcome::Status(429) => Class::Throttled,
            Outcome::Status(501 | 505) => Class::Permanent,
            Outcome::Status(408 | 500..) => Class::Ambiguous,
            Outcome::Status(_) => Class::Permanent,
            Outcome::Failure(word) => match word.as_str() {
                "dns" | "connect_refused" | "connect_timeout" | "h2_refused_stream" => Class::NotProcessed,
                "tls_cert" => Class::Permanent,
                _ => Class::Ambiguous,
            },
        }
    }

    /// The decision after the first attempt.
    fn decide(&self) -> Decision {
        let policy = RetryPolicy::new().backoff(Backoff::fixed(Duration::ZERO));
        let (budget, now) = (TokenBucket::new(RetryBudget::standard()), clock::now());
        let mut hint = Hint::default();
        hint.misdirected = matches!(self.failure, Outcome::Status(421));
        let mut operation = Operation::start(&policy, &budget, self.idempotency(), now);
        operation.begin_attempt();
        operation.decide(self.class(), &hint, now, 1.0)
    }
}

fn failure(word: &str) -> Failure {
    match word {
        "dns" | "connect_refused" | "connect_timeout" => Failure::Connect,
        "tls_cert" => Failure::Certificate,
        "h2_refused_stream" => Failure::Refused,
        "reset_no_response" => Failure::Disconnected,
        "attempt_timeout" => Failure::Timeout,
        "body_truncated" => Failure::BodyCut,
        other => panic!("a failure that nobody knows: {other}"),
    }
}

/// The one rule.
fn rule(class: Class, idempotency: Idempotency) -> Decision {
    match class {
        Class::NotProcessed | Class::Throttled => Decision::Retry { after: Duration::ZERO },
        Class::Ambiguous if idempotency != Idempotency::Absent => Decision::Retry { after: Duration::ZERO },
        Class::Ambiguous => Decision::Stop(StopReason::NotRepeatable),
        Class::Permanent => Decision::Stop(StopReason::Permanent),
        Class::Success => Decision::Stop(StopReason::Done),
    }
}

#[test]
fn every_outcome_follows_the_rule() {
    let cases: Vec<Case> = cases(include_str!("../../cases/methods_status.json"));
    let mut account = Account::of("methods_status");
    let mut differs = Vec::new();
    for case in &cases {
        let id = case.id.as_str();
        if let Some(reason) = reason(LEFT_OUT, id) {
            account.leave_out(id, reason);
            continue;
        }
        assert_eq!(case.class(), case.expected_class(), "{id}");
        let decision = case.decide();
        assert_eq!(decision, rule(case.expected_class(), case.idempotency()), "{id}");
        // The table proposes true, false, or a name for another outcome.
        let retried = matches!(decision, Decision::Retry { .. });
        if case.proposed != Value::Bool(retried) {
            println!("methods_status: {id} is {decision:?}, proposed: {}", case.proposed);
            differs.push(id);
        }
        account.ran();
    }
    for (id, reason) in DIFFERS {
        println!("  differs: {id}: {reason}");
    }
    assert_eq!(differs, DIFFERS.iter().map(|(id, _)| *id).collect::<Vec<_>>(), "where the house differs");
    account.close(54, 2);
}
