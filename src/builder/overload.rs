//! The builder's settings of overload protection: they help a server in trouble, and callers whose
//! responses come late. All are off by default.

use http::HeaderName;

use super::ClientBuilder;
use crate::cooldown::Lanes;
use crate::policy::{BreakerPolicy, HedgePolicy};

impl ClientBuilder {
    /// Gives every origin a circuit breaker. Default: off; [when to turn it
    /// on](crate::guide::overload).
    ///
    /// Once too many calls to an origin have failed, none is sent for a while, and then a few as
    /// probes. An operation that meets an open circuit ends at once as
    /// [`CircuitOpen`](crate::policy::StopReason::CircuitOpen). Before its first attempt that is an
    /// [`ErrorKind::NotAdmitted`](crate::ErrorKind::NotAdmitted), with nothing sent.
    /// [`retry_after`](crate::Error::retry_after) says when to come back.
    ///
    /// Every attempt counts, by its class and its duration. A hedged pair counts once, by the
    /// response that counted. Dropped attempts and failures on this side do not count. An attempt
    /// that ran out of its operation's time counts as failed, so timeouts that are too short open the
    /// circuit.
    ///
    /// ```
    /// use steadfast::{Client, policy::BreakerPolicy};
    ///
    /// let client = Client::builder().breaker(BreakerPolicy::new().min_calls(50));
    /// ```
    pub fn breaker(mut self, policy: BreakerPolicy) -> Self {
        self.overload.breaker = Some(policy);
        self
    }

    /// Applies one `Retry-After` to every operation on that origin. Default: off; [when to turn it
    /// on](crate::guide::overload).
    ///
    /// After a 429 or 503 that says when to come back, every operation waits before its next attempt,
    /// the first included. When the time is over, at the latest after
    /// [`max_retry_after`](crate::policy::RetryPolicy::max_retry_after), one operation goes first, as
    /// a probe. If it is not refused, the others follow within a second, or within the time that was
    /// asked for if that is shorter, spread at random.
    ///
    /// An operation whose deadline is nearer stops at once as
    /// [`RetryAfterTooLong`](crate::policy::StopReason::RetryAfterTooLong), with
    /// [`retry_after`](crate::Error::retry_after).
    ///
    /// A wait costs as much as a retry after throttling (5 of 500 tokens), as if the operation had
    /// been refused itself; a success returns it. Without the tokens the operation stops as
    /// [`BudgetExhausted`](crate::policy::StopReason::BudgetExhausted).
    pub fn cooldown(mut self) -> Self {
        self.overload.cooldown = Some(Lanes::default());
        self
    }

    /// Applies one `Retry-After` to the requests for which `lane` returns the same text. Default: off.
    ///
    /// Use it in place of [`cooldown`](Self::cooldown) where a limit is not the whole origin's, but
    /// that of a credential or a route. The text itself is not kept. At most 256 lanes of an origin
    /// are held back at a time.
    ///
    /// ```
    /// use steadfast::Client;
    ///
    /// let client = Client::builder().cooldown_by(|request| match request.headers().get("authorization") {
    ///     Some(token) => String::from_utf8_lossy(token.as_bytes()).into_owned(),
    ///     None => String::new(),
    /// });
    /// ```
    pub fn cooldown_by(mut self, lane: impl Fn(&reqwest::Request) -> String + Send + Sync + 'static) -> Self {
        self.overload.cooldown = Some(Lanes::by(lane));
        self
    }

    /// Sends in this header how long you wait for each attempt, so that the server can refuse work
    /// that nobody waits for. Default: off.
    ///
    /// The value is what is left of the attempt timeout, the operation's timeout and the task's
    /// [deadline](crate::with_deadline), whichever ends first, in whole milliseconds. It is relative,
    /// as gRPC's `grpc-timeout` is: two machines agree on how long a second is, and not on what time
    /// it is. It is not sent to another origin.
    ///
    /// Envoy understands the name `x-envoy-expected-rq-timeout-ms`.
    /// [`server::DeadlineLayer`](https://docs.rs/steadfast/latest/steadfast/server/struct.DeadlineLayer.html)
    /// reads any name.
    ///
    /// ```
    /// use steadfast::{Client, http::HeaderName};
    ///
    /// let name = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
    /// let client = Client::builder().deadline_header(name);
    /// ```
    pub fn deadline_header(mut self, name: HeaderName) -> Self {
        self.overload.deadline_header = Some(name);
        self
    }

    /// Sends a second request beside a first that is late, for operations with a *safe* method (GET,
    /// HEAD, OPTIONS, TRACE, QUERY). The first final response counts, and the other request is
    /// dropped. Default: off; [when to turn it on](crate::guide::overload).
    ///
    /// A hedge is an attempt: it counts against `max_attempts`, pays the price of a retry from the
    /// budget, and stands in the journal. It goes out beside the first attempt only, while the circuit
    /// is closed and nothing cools down, and with a body that can be sent again. Hedge operations with
    /// other methods one by one: [`RequestBuilder::hedge`](crate::RequestBuilder::hedge).
    ///
    /// ```
    /// use steadfast::{Client, policy::HedgePolicy};
    ///
    /// let client = Client::builder().hedge(HedgePolicy::quantile(0.98).max_extra_load(0.03));
    /// ```
    pub fn hedge(mut self, policy: HedgePolicy) -> Self {
        self.overload.hedge = Some(policy);
        self
    }
}
