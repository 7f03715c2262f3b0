//! The builder's settings that protect a server in trouble, and those who wait in the tail. All of them are off until they are asked for.

use http::HeaderName;

use super::builder::ClientBuilder;
use super::cooldown::Lanes;
use super::origin::OriginSettings;
use crate::policy::{BreakerPolicy, HedgePolicy, RetryBudget};

/// What of it is on.
#[derive(Debug, Default)]
pub(super) struct OverloadSettings {
    pub(super) breaker: Option<BreakerPolicy>,
    pub(super) cooldown: Option<Lanes>,
    pub(super) deadline_header: Option<HeaderName>,
    pub(super) hedge: Option<HedgePolicy>,
}

impl OverloadSettings {
    /// Returns the settings from which each origin gets its own state.
    pub(super) fn origins(&self, budget: RetryBudget, names_host: bool) -> OriginSettings {
        OriginSettings { budget, breaker: self.breaker.clone(), names_host }
    }
}

impl ClientBuilder {
    /// A circuit breaker for every origin: once too many of its calls have failed, none is sent for a while, and then a few as probes.
    /// Off by default; [when to turn it on](crate::guide::overload).
    ///
    /// An operation that meets an open circuit ends as [`CircuitOpen`](crate::policy::StopReason::CircuitOpen), at once: before its
    /// first attempt as an [`ErrorKind::NotAdmitted`](crate::ErrorKind::NotAdmitted), nothing sent;
    /// [`retry_after`](crate::Error::retry_after) is when to come back.
    ///
    /// Every attempt counts, by its class and its duration; a hedged pair counts once, by the answer that counted. Dropped attempts and
    /// failures on this side do not count. An attempt that ran out of its operation's time counts as failed, so timeouts that are too short
    /// open the circuit.
    pub fn breaker(mut self, policy: BreakerPolicy) -> Self {
        self.overload.breaker = Some(policy);
        self
    }

    /// What an origin asks of one operation holds for all of them: after a 429 or 503 that says when to come back, every operation to
    /// that origin waits before its next attempt, the first included. Off by default;
    /// [when to turn it on](crate::guide::overload).
    ///
    /// When the time is over, at the longest after the
    /// [`max_retry_after`](crate::policy::RetryPolicy::max_retry_after), one operation goes first,
    /// as a probe. If it is not refused the others follow within a second, or within the time that
    /// was asked for if that is shorter, spread at random. An operation whose deadline is nearer
    /// stops at once as
    /// [`RetryAfterTooLong`](crate::policy::StopReason::RetryAfterTooLong), with [`retry_after`](crate::Error::retry_after).
    ///
    /// A wait takes the price of a retry after throttling from the budget (5 of 500 tokens), as if the operation had been refused itself; a
    /// success returns it. Where it is not there the operation stops as
    /// [`BudgetExhausted`](crate::policy::StopReason::BudgetExhausted).
    pub fn cooldown(mut self) -> Self {
        self.overload.cooldown = Some(Lanes::default());
        self
    }

    /// As [`cooldown`](Self::cooldown), for limits that are not the whole origin's: only requests for which `lane` returns the same text
    /// wait for each other, such as those with one credential or to one route. The text itself is not kept. At most 256 lanes of an
    /// origin are held back at a time.
    ///
    /// ```
    /// # use steadfast::Client;
    /// let client = Client::builder().cooldown_by(|request| match request.headers().get("authorization") {
    ///     Some(token) => String::from_utf8_lossy(token.as_bytes()).into_owned(),
    ///     None => String::new(),
    /// });
    /// ```
    pub fn cooldown_by(mut self, lane: impl Fn(&reqwest::Request) -> String + Send + Sync + 'static) -> Self {
        self.overload.cooldown = Some(Lanes::by(lane));
        self
    }

    /// Tells the server in this header how long each attempt is waited for, so that it can refuse what nobody waits for any more: what is left of
    /// the attempt timeout, the operation's timeout and the task's [deadline](crate::with_deadline), whichever ends first. Off by default.
    ///
    /// The value is whole milliseconds in digits, from the moment in which the attempt is sent: relative as gRPC's `grpc-timeout`, since
    /// two machines agree on how long a second is and not on what time it is. The name `x-envoy-expected-rq-timeout-ms` is understood
    /// by Envoy and whoever reads its headers; [`server::DeadlineLayer`](https://docs.rs/steadfast/latest/steadfast/server/struct.DeadlineLayer.html) reads any. It stays on the
    /// origin that was asked.
    pub fn deadline_header(mut self, name: HeaderName) -> Self {
        self.overload.deadline_header = Some(name);
        self
    }

    /// A second request beside a first that is late, for operations with a *safe* method (GET,
    /// HEAD, OPTIONS, TRACE, QUERY); the first final answer counts, and the other request is
    /// dropped. Off by default; [when to turn it on](crate::guide::overload).
    ///
    /// A hedge is an attempt: it counts against `max_attempts`, pays the price of a retry from the budget, and stands in the journal. It
    /// goes out beside the first attempt only, while the circuit is closed and nothing cools down, and with a body that can be sent
    /// again. Others than safe methods are hedged one by one: [`RequestBuilder::hedge`](crate::RequestBuilder::hedge).
    pub fn hedge(mut self, policy: HedgePolicy) -> Self {
        self.overload.hedge = Some(policy);
        self
    }
}
