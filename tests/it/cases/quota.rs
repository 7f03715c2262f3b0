//! Rate-limit headers: the class and the wait that each response gets.
//!
//! `tests/cases/quota.json` has the dialects of published APIs. Each case names its source.

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use steadfast::policy::{Class, Hint};

use super::{Account, cases};
use crate::support::clock;

#[derive(Deserialize)]
struct Case {
    id: String,
    now: String,
    status: u16,
    headers: Vec<(String, String)>,
    class: String,
    wait_ms: Option<u64>,
    source: String,
}

#[test]
fn every_quota_agrees_with_table() {
    let cases: Vec<Case> = cases(include_str!("../../cases/quota.json"));
    let mut account = Account::of("quota");
    for Case { id, now, status, headers, class, wait_ms, source } in &cases {
        let headers = super::headers(headers);
        let found = Class::of_response(StatusCode::from_u16(*status).unwrap(), &headers, clock::utc(now));
        assert_eq!(found.as_str(), class, "{id}");
        let hint = Hint::from_headers(&headers, found, clock::utc(now));
        assert_eq!(hint.after, wait_ms.map(Duration::from_millis), "{id}");
        assert!(!source.is_empty(), "{id}");
        account.ran();
    }
    account.close(36, 0);
}
