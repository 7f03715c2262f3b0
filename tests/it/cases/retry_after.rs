//! `Retry-After` and related headers: the wait that each value asks for. A wait above the cap ends
//! the operation.
//!
//! `tests/cases/retry_after.json` follows RFC 9110 §10.2.3 and §5.6.7 where they decide. Elsewhere
//! it follows urllib3, undici, ky, got, go-retryablehttp, dotnet resilience, azcore, and the
//! OpenAI, Anthropic and AWS SDKs, at the commits named in the table.

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use steadfast::policy::{
    Backoff, Class, Decision, Hint, Idempotency, Operation, RetryBudget, RetryPolicy, StopReason, TokenBucket,
    parse_retry_hint,
};

use super::{Account, cases};
use crate::support::clock;

/// The default of `RetryPolicy::max_retry_after`.
const CAP: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Case {
    id: String,
    now: String,
    status: u16,
    headers: Vec<(String, String)>,
    expect: Expect,
    #[serde(default)]
    also_acceptable: Vec<Expect>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Expect {
    Delay { seconds: f64 },
    Ignored,
    OverCap,
}

impl Expect {
    fn allows(&self, hint: Option<Duration>) -> bool {
        match self {
            Self::Delay { seconds } => hint == Some(Duration::from_secs_f64(*seconds)),
            Self::Ignored => hint.is_none(),
            Self::OverCap => hint.is_some_and(|wait| wait > CAP),
        }
    }
}

#[test]
fn every_retry_after_value_agrees_with_table() {
    let cases: Vec<Case> = cases(include_str!("../../cases/retry_after.json"));
    let mut account = Account::of("retry_after");
    let mut by_another_reading = Vec::new();
    for case in &cases {
        let (id, headers, now) = (case.id.as_str(), super::headers(&case.headers), clock::utc(&case.now));
        let hint = parse_retry_hint(&headers, now);
        if !case.expect.allows(hint) {
            let allowed = case.also_acceptable.iter().any(|expect| expect.allows(hint));
            assert!(allowed, "{id}: {hint:?} is neither {:?} nor one of {:?}", case.expect, case.also_acceptable);
            by_another_reading.push(id);
        }
        let class = Class::of_status(StatusCode::from_u16(case.status).unwrap());
        assert_eq!(decide(class, &Hint::from_headers(&headers, class, now)), expected(hint), "{id}");
        account.ran();
    }
    println!("retry_after: {} by another acceptable reading: {by_another_reading:?}", by_another_reading.len());
    // A fraction is rounded up. Of two lines the longer wait counts. If a vendor header does not
    // parse, the standard one counts.
    assert_eq!(by_another_reading, ["sec-fraction-0.5", "two-lines", "ms-negative"]);
    account.close(39, 0);
}

/// A wait within the cap is kept, and a longer one ends the operation. Without a valid value the
/// backoff applies, which is zero here.
fn expected(hint: Option<Duration>) -> Decision {
    match hint {
        Some(wait) if wait > CAP => Decision::Stop(StopReason::RetryAfterTooLong),
        wait => Decision::Retry { after: wait.unwrap_or(Duration::ZERO) },
    }
}

fn decide(class: Class, hint: &Hint) -> Decision {
    let policy = RetryPolicy::new().backoff(Backoff::fixed(Duration::ZERO)).deadline(None);
    let (budget, now) = (TokenBucket::new(RetryBudget::standard()), clock::now());
    let mut operation = Operation::start(&policy, &budget, Idempotency::Natural, now);
    operation.begin_attempt();
    operation.decide(class, hint, now, 1.0)
}
