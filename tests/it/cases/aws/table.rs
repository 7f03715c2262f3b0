//! The format of the table, and its parameters as settings of steadfast.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use steadfast::policy::{Backoff, RetryBudget, RetryPolicy, TokenBucket};

#[derive(Deserialize)]
pub(super) struct Table {
    pub(super) parameters: HashMap<String, Parameters>,
    pub(super) throttle_error_codes: Vec<String>,
    pub(super) cases: Vec<Case>,
}

#[derive(Clone, Deserialize)]
pub(super) struct Parameters {
    pub(super) max_attempts: u32,
    pub(super) initial_tokens: u32,
    pub(super) capacity: u32,
    pub(super) base_transient: f64,
    pub(super) base_throttle: f64,
    pub(super) cap: f64,
    pub(super) cost: u32,
    pub(super) cost_throttle: u32,
    pub(super) refund_first_try: u32,
}

#[derive(Deserialize)]
pub(super) struct Case {
    pub(super) id: String,
    #[serde(flatten)]
    pub(super) kind: Kind,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Kind {
    Sequence {
        spec: String,
        given: Given,
        steps: Vec<Step>,
    },
    Classification {
        status: u16,
        expect: String,
        #[serde(default)]
        also_acceptable: Vec<String>,
    },
    Threads {
        spec: String,
        given: Given,
        threads: [Vec<u16>; 2],
        interleaved_quota: Vec<u64>,
        expected_final_quota: u64,
    },
    /// Kind of withdrawal, tokens, whether they were available, tokens left.
    Bucket {
        capacity: u32,
        ops: [(String, u32, bool, u64); 2],
    },
    Header,
    Cubic,
}

#[derive(Deserialize)]
pub(super) struct Given {
    pub(super) max_attempts: Option<u32>,
    pub(super) initial_tokens: Option<u32>,
    pub(super) base_transient: Option<f64>,
    pub(super) cap: Option<f64>,
}

#[derive(Deserialize)]
pub(super) struct Step {
    pub(super) response: Response,
    pub(super) expected: Expected,
}

#[derive(Deserialize)]
pub(super) struct Response {
    pub(super) status: Option<u16>,
    pub(super) error_code: Option<String>,
    pub(super) error: Option<String>,
}

#[derive(Debug, Deserialize, PartialEq)]
pub(super) struct Expected {
    pub(super) outcome: String,
    pub(super) retry_quota: u64,
    pub(super) delay_s: Option<f64>,
}

impl Parameters {
    pub(super) fn with(&self, given: &Given) -> Self {
        Self {
            max_attempts: given.max_attempts.unwrap_or(self.max_attempts),
            initial_tokens: given.initial_tokens.unwrap_or(self.initial_tokens),
            base_transient: given.base_transient.unwrap_or(self.base_transient),
            cap: given.cap.unwrap_or(self.cap),
            ..*self
        }
    }

    pub(super) fn settings(&self) -> (RetryPolicy, TokenBucket) {
        let [base, throttle_base, cap] =
            [self.base_transient, self.base_throttle, self.cap].map(Duration::from_secs_f64);
        let backoff = Backoff::exponential(base, cap).throttle_base(throttle_base);
        let budget = RetryBudget::standard().capacity(self.capacity).initial(self.initial_tokens);
        let budget = budget.cost(self.cost).throttle_cost(self.cost_throttle).first_try_refund(self.refund_first_try);
        (RetryPolicy::new().max_attempts(self.max_attempts).backoff(backoff).deadline(None), TokenBucket::new(budget))
    }
}
