//! AWS's standard retry mode: attempts, waits and the token bucket, step by step.
//!
//! `tests/cases/aws_standard_mode.json` holds the sequences from the tests of botocore,
//! smithy-kotlin, smithy-typescript and smithy-rs. They are those of version 2.1, which
//! `RetryBudget::standard` follows, and of 2.0, at the commits named in the table.

mod table;

use http::StatusCode;
use steadfast::policy::{
    Class, Decision, Failure, Hint, Idempotency, Operation, RetryBudget, RetryPolicy, StopReason, TokenBucket,
};

use self::table::{Case, Expected, Kind, Parameters, Response, Step, Table};
use super::{Account, reason};
use crate::support::clock;

const LEFT_OUT: &[(&str, &str)] = &[
    ("v21-retry-after-", "x-amz-retry-after, with its own clamp to 5 s over the backoff, is not read"),
    ("v21-longpoll-", "a long-polling call sleeps even where it does not retry; there is no such call here"),
    ("v20-timeout-cost-10", "a timeout has no cost of its own (2.1 dropped it)"),
    ("class-400-Throttling", "error codes in bodies are not read"),
    ("class-400-PriorRequestNotComplete", "error codes in bodies are not read"),
    ("class-509-BandwidthLimitExceeded", "error codes in bodies are not read"),
    ("class-400-NotAThrottlingError", "error codes in bodies are not read"),
    ("header-attempt-max-first", "amz-sdk-request is not sent"),
    ("adaptive-cubic-", "the adaptive mode's rate limiter is another thing"),
];

#[test]
fn aws_sequences_and_buckets_agree() {
    let table: Table = serde_json::from_str(include_str!("../../cases/aws_standard_mode.json")).unwrap();
    let mut account = Account::of("aws_standard_mode");
    for Case { id, kind } in &table.cases {
        if let Some(reason) = reason(LEFT_OUT, id) {
            account.leave_out(id, reason);
            continue;
        }
        match kind {
            Kind::Sequence { spec, given, steps } => {
                sequence(id, &table.parameters[spec].with(given), &table.throttle_error_codes, steps);
            }
            Kind::Classification { status, expect, also_acceptable } => {
                let class = word(by_status(*status));
                assert!(class == expect || also_acceptable.iter().any(|word| word == class), "{id}: {class}");
            }
            Kind::Threads { spec, given, threads, interleaved_quota, expected_final_quota } => {
                let parameters = table.parameters[spec].with(given);
                interleavings(id, &parameters, threads, interleaved_quota, *expected_final_quota);
            }
            Kind::Bucket { capacity, ops } => bucket(id, *capacity, ops),
            Kind::Header | Kind::Cubic => panic!("{id}: not run, and no reason given"),
        }
        account.ran();
    }
    account.close(24, 18);
}

/// Plays calls one after the other on the same bucket. The random number of the jitter is 1.
fn sequence(id: &str, parameters: &Parameters, throttle_codes: &[String], steps: &[Step]) {
    let ((policy, budget), now) = (parameters.settings(), clock::now());
    let mut call: Option<Operation<'_>> = None;
    for (number, step) in (1..).zip(steps) {
        let operation = call.get_or_insert_with(|| Operation::start(&policy, &budget, Idempotency::Natural, now));
        operation.begin_attempt();
        let decision = operation.decide(class(id, &step.response, throttle_codes), &Hint::default(), now, 1.0);
        let (outcome, delay_s) = match decision {
            Decision::Retry { after } => ("retry_request", Some(after.as_secs_f64())),
            Decision::Stop(StopReason::Done) => ("success", None),
            Decision::Stop(StopReason::AttemptsExhausted) => ("max_attempts_exceeded", None),
            Decision::Stop(StopReason::BudgetExhausted) => ("retry_quota_exceeded", None),
            Decision::Stop(StopReason::Permanent) => ("fail_request", None),
            other => panic!("{id}, step {number}: {other:?}"),
        };
        let got = Expected { outcome: outcome.to_owned(), retry_quota: budget.tokens(), delay_s };
        assert_eq!(got, step.expected, "{id}, step {number}");
        if matches!(decision, Decision::Stop(_)) {
            call = None;
        }
    }
}

fn class(id: &str, response: &Response, throttle_codes: &[String]) -> Class {
    match response {
        Response { error_code: Some(code), .. } if throttle_codes.contains(code) => Class::Throttled,
        Response { status: Some(status), .. } => by_status(*status),
        Response { error: Some(error), .. } if error == "timeout" => Failure::Timeout.class(),
        _ => panic!("{id}: a response that nobody knows"),
    }
}

fn by_status(status: u16) -> Class {
    Class::of_status(StatusCode::from_u16(status).unwrap())
}

/// Returns AWS's name of a class.
fn word(class: Class) -> &'static str {
    match class {
        Class::Throttled => "throttling",
        Class::Ambiguous | Class::NotProcessed => "transient",
        Class::Permanent | Class::Success => "none",
    }
}

/// Plays two calls on one bucket, in every order of their steps. The published quotas are those of
/// one order. The final quota is the same in all of them.
fn interleavings(id: &str, parameters: &Parameters, threads: &[Vec<u16>; 2], published: &[u64], at_the_end: u64) {
    let length = threads[0].len() + threads[1].len();
    let orders = (0_u32..1 << length).filter(|order| order.count_ones() as usize == threads[1].len());
    let mut published_were_seen = false;
    for order in orders {
        let ((policy, budget), now) = (parameters.settings(), clock::now());
        let start = || Operation::start(&policy, &budget, Idempotency::Natural, now);
        let (mut calls, mut quotas) = ([start(), start()], [Vec::new(), Vec::new()]);
        for position in 0..length {
            let turn = (order >> position & 1) as usize;
            let status = threads[turn][quotas[turn].len()];
            calls[turn].begin_attempt();
            let _decision = calls[turn].decide(by_status(status), &Hint::default(), now, 1.0);
            quotas[turn].push(budget.tokens());
        }
        drop(calls);
        assert_eq!(budget.tokens(), at_the_end, "{id}, order {order:05b}");
        published_were_seen |= quotas.concat() == published;
    }
    assert!(published_were_seen, "{id}: no order has the quotas {published:?}");
}

/// Takes two amounts from a bucket: the price of a retry, and its price after throttling.
fn bucket(id: &str, capacity: u32, ops: &[(String, u32, bool, u64); 2]) {
    let policy = RetryPolicy::new().deadline(None);
    let budget = RetryBudget::standard().capacity(capacity).cost(ops[0].1).throttle_cost(ops[1].1);
    let budget = TokenBucket::new(budget);
    for ((_, _, granted, left), class) in ops.iter().zip([Class::Ambiguous, Class::Throttled]) {
        let mut call = Operation::start(&policy, &budget, Idempotency::Natural, clock::now());
        let decision = call.decide(class, &Hint::default(), clock::now(), 1.0);
        call.begin_attempt();
        assert_eq!(matches!(decision, Decision::Retry { .. }), *granted, "{id}: {decision:?}");
        assert_eq!(budget.tokens(), *left, "{id}");
    }
}
