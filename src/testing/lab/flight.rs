//! An operation under way, and its requests: the one that is waited for, or two that race.
//!
//! This is `client/race.rs` in simulated time: the first final answer counts, and a failure waits for the other one.

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
