//! An operation under way, and its requests: the one that is waited for, or two that race.
//!
//! This is `client/hedge.rs` in simulated time: the first final answer counts, and a failure waits for the other one.

use std::time::Duration;

use super::caller::Pass;
use super::server::Reply;
use crate::policy::{Class, Operation};

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
    /// Never given twice: what comes too late for this flight must not be taken for an answer to another in the same place.
    pub(super) number: u64,
    pub(super) pass: Pass<'a>,
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
    /// How long it is waited for, as the server is told.
    pub(super) told: Option<Duration>,
}

impl<'a> Flight<'a> {
    /// The first request is out.
    pub(super) fn new(number: u64, pass: Pass<'a>, sent: Duration, until: Duration) -> Self {
        Self { number, pass, sent, until, out: 1, first_failed: false }
    }

    /// The second one is, too.
    pub(super) fn hedged(&mut self) {
        self.out += 1;
    }

    /// One of its requests has come to this. Whether it counts: if it does not, the other one may do better.
    pub(super) fn lands(&mut self, is_hedge: bool, reply: &Reply) -> bool {
        self.out = self.out.saturating_sub(1);
        let is_final = matches!(reply.class, Class::Success | Class::Permanent);
        let counts = is_final || self.out == 0;
        self.first_failed |= !counts && !is_hedge;
        counts
    }

    /// How long the server took to answer the first request, at least: it may be dropped now. `None` if it failed.
    pub(super) fn latency(&self, now: Duration) -> Option<Duration> {
        (!self.first_failed).then(|| now.saturating_sub(self.sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Idempotency, Operation, RetryPolicy};
    use crate::testing::simulation::caller::{Caller, Entry};
    use crate::testing::simulation::fleet::Fleet;

    const MS: Duration = Duration::from_millis(1);

    /// What counts of two requests that come to these in this order, and how long the server took for the first one at least, in
    /// milliseconds. The flight begins at 10 ms; the first that ends does so at 50 ms, the second at 90 ms.
    fn check(ended: &[(&str, Class)]) -> (&'static str, Option<u128>) {
        let fleet = Fleet::new(&RetryPolicy::new()).idempotency(Idempotency::Natural);
        let caller = Caller::new(0, &fleet);
        let now = crate::clock::now();
        let mut operation = Operation::start(&fleet.policy, &caller.budget, Idempotency::Natural, now);
        let Entry::Go(pass) = caller.enter(&mut operation, now) else { panic!("nothing holds it back") };
        let mut flight = Flight::new(1, pass, MS * 10, MS * 1000);
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
    fn the_first_final_answer_counts_and_a_failure_waits_for_the_other() {
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
