//! An operation under way, and its requests: one, or two that race.
//!
//! This is the client's hedging in simulated time: the first final answer counts, and a failure
//! waits for the other one.

use std::time::Duration;

use super::caller::Admitted;
use super::server::Reply;
use steadfast_core::{Class, Operation};

/// An operation that has not ended.
#[derive(Debug)]
pub(super) struct Live<'a> {
    pub(super) caller: usize,
    pub(super) started: Duration,
    pub(super) operation: Operation<'a>,
    pub(super) flight: Option<Flight<'a>>,
}

/// An attempt under way, or a race of two.
#[derive(Debug)]
pub(super) struct Flight<'a> {
    /// Never given twice: a response that comes too late for this flight must not be taken for one
    /// to another flight in the same place.
    pub(super) number: u64,
    pub(super) admitted: Admitted<'a>,
    pub(super) sent: Duration,
    /// When the client stops waiting, for both.
    pub(super) until: Duration,
    /// The requests that may still be answered.
    out: u32,
    first_failed: bool,
}

/// A request on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) place: usize,
    pub(super) flight: u64,
    pub(super) is_hedge: bool,
    pub(super) fleet: usize,
    pub(super) until: Duration,
    /// How long the client waits, as the server is told.
    pub(super) told: Option<Duration>,
}

impl<'a> Flight<'a> {
    /// Creates a flight whose first request is out.
    pub(super) fn new(number: u64, admitted: Admitted<'a>, sent: Duration, until: Duration) -> Self {
        Self { number, admitted, sent, until, out: 1, first_failed: false }
    }

    /// Records that the second request is out, too.
    pub(super) fn hedged(&mut self) {
        self.out += 1;
    }

    /// Records the reply to one of its requests. Returns whether it counts; if it does not, the
    /// other one may do better.
    pub(super) fn lands(&mut self, is_hedge: bool, reply: &Reply) -> bool {
        self.out = self.out.saturating_sub(1);
        let is_final = matches!(reply.class, Class::Success | Class::Permanent);
        let counts = is_final || self.out == 0;
        self.first_failed |= !counts && !is_hedge;
        counts
    }

    /// Returns how long the server took to answer the first request, at least: it may be dropped
    /// now. `None` if it failed.
    pub(super) fn latency(&self, now: Duration) -> Option<Duration> {
        (!self.first_failed).then(|| now.saturating_sub(self.sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Caller;
    use crate::fleet::Fleet;
    use steadfast_core::{AdmissionStep, Idempotency, Operation, RetryPolicy};

    const MS: Duration = Duration::from_millis(1);

    /// What counts of two requests that come to these in this order, and how long the server took
    /// for the first one at least, in milliseconds. The flight begins at 10 ms; the first that ends
    /// does so at 50 ms, the second at 90 ms.
    fn check(ended: &[(&str, Class)]) -> (&'static str, Option<u128>) {
        let fleet = Fleet::new(&RetryPolicy::new()).idempotency(Idempotency::Natural);
        let caller = Caller::new(0, &fleet);
        let now = steadfast_core::clock::now();
        let mut operation = Operation::start(&fleet.policy, &caller.bucket, Idempotency::Natural, now);
        let AdmissionStep::Admit { permit, goes_first } = caller.enter(&mut operation, now) else {
            panic!("nothing holds it back")
        };
        let mut flight = Flight::new(1, Admitted::new(permit, goes_first), MS * 10, MS * 1000);
        flight.hedged();
        for ((name, class), now) in ended.iter().zip([MS * 50, MS * 90]) {
            let is_hedge = *name == "hedge";
            if flight.lands(is_hedge, &Reply { class: *class, ..Reply::TIMEOUT }) {
                let which = if is_hedge { "hedge" } else { "first" };
                return (which, flight.latency(now).map(|latency| latency.as_millis()));
            }
        }
        ("none", None)
    }

    #[test]
    fn first_final_response_wins_failure_waits() {
        use Class::{Ambiguous, Permanent, Success, Throttled};
        assert_eq!(check(&[("first", Success)]), ("first", Some(40)));
        assert_eq!(check(&[("hedge", Permanent)]), ("hedge", Some(40)), "the first one took that long at least");
        assert_eq!(check(&[("first", Ambiguous)]), ("none", None));
        assert_eq!(
            check(&[("first", Throttled), ("hedge", Success)]),
            ("hedge", None),
            "how long it took is not known"
        );
        assert_eq!(check(&[("hedge", Ambiguous), ("first", Success)]), ("first", Some(80)));
        assert_eq!(check(&[("first", Ambiguous), ("hedge", Ambiguous)]), ("hedge", None), "the later one decides");
    }
}
