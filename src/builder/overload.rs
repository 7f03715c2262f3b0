//! The builder's settings of overload protection. They spare a server in trouble, and shorten the
//! waits of callers. All are off by default.

use http::HeaderName;

use super::ClientBuilder;
use crate::cooldown::Lanes;
use crate::policy::{BreakerPolicy, HedgePolicy};

impl ClientBuilder {
    /// Gives every origin a circuit breaker. Default: off; [when to turn it
    /// on](crate::guide::overload).
    ///
    /// When too many calls to an origin have failed, the circuit opens: the client sends nothing
    /// for a while, and then a few calls as probes. An operation that meets an open circuit ends at
    /// once with [`CircuitOpen`](crate::policy::StopReason::CircuitOpen). If that is before its
    /// first attempt, nothing was sent, and the error is an
    /// [`ErrorKind::NotAdmitted`](crate::ErrorKind::NotAdmitted).
    /// [`retry_after`](crate::Error::retry_after) tells you when to try again.
    ///
    /// Every attempt counts, by its class and its duration. A hedged pair counts once, by the
    /// response that counted. Dropped attempts and failures on this side do not count. An attempt
    /// that ran out of its operation's time counts as failed, so timeouts that are too short open
    /// the circuit.
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
    /// After a 429, a 503 or another throttled response with a time, every operation waits before
    /// its next attempt, the first included. A 413 concerns its own request alone. The wait is at
    /// most
    /// [`max_retry_after`](crate::policy::RetryPolicy::max_retry_after). When it is over, one
    /// operation goes first, as a probe. If the server does not refuse the probe, the others follow
    /// at random within a second, or within the time of the `Retry-After` if that is shorter.
    ///
    /// An operation whose deadline is nearer stops at once with
    /// [`RetryAfterTooLong`](crate::policy::StopReason::RetryAfterTooLong), and
    /// [`retry_after`](crate::Error::retry_after) has the wait.
    ///
    /// A wait costs as much as a retry after throttling (5 of 500 tokens), as if the operation had
    /// been refused itself. A success returns it. Without the tokens, the operation stops with
    /// [`BudgetExhausted`](crate::policy::StopReason::BudgetExhausted).
    ///
    /// ```
    /// let client = steadfast::Client::builder().cooldown();
    /// ```
    pub fn cooldown(mut self) -> Self {
        self.overload.cooldown = Some(Lanes::default());
        self
    }

    /// Applies one `Retry-After` to all requests in the same lane: those for which `lane` returns
    /// the same text. Default: off.
    ///
    /// Use it in place of [`cooldown`](Self::cooldown) where a limit holds for a credential or a
    /// route, and not for the whole origin. The client keeps only a digest of the text. It holds
    /// back at most 256 lanes of an origin at a time.
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

    /// Sends in this header how long you wait for each attempt. The server can then refuse work
    /// that comes too late for you. Default: off.
    ///
    /// The value is the time left, in whole milliseconds. The attempt timeout, the operation's
    /// timeout and the task's [deadline](crate::with_deadline) bound it, whichever ends first. Like
    /// gRPC's `grpc-timeout` it is a duration, because the clocks of two machines differ. It is not
    /// sent to another origin. The attempt timeout does not bound an upload, so it is left out for a
    /// body of more than 16 KiB.
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

    /// Sends a second request beside a late one, for operations with a *safe* method (GET, HEAD,
    /// OPTIONS, TRACE, QUERY). Default: off; [when to turn it on](crate::guide::overload).
    ///
    /// The first final response counts, and the client drops the other request.
    ///
    /// A hedge is an attempt: it counts against `max_attempts`, pays the price of a retry from the
    /// budget, and stands in the journal. It needs a body that can be sent again, a closed circuit
    /// and no cooldown. Only the first attempt is hedged. For other methods, hedge one request at a
    /// time: [`RequestBuilder::hedge`](crate::RequestBuilder::hedge).
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
