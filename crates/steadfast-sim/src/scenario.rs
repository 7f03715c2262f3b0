//! What goes wrong, and when.

use std::fmt;
use std::time::Duration;

/// What is wrong with the server while the trouble lasts.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Trouble {
    /// Nothing listens: connections are refused at once. What the server had accepted before is lost, and waited for until the
    /// attempt timeout.
    Refusing,
    /// The server accepts requests and never answers, as a deadlocked process does until it is restarted: whatever it held
    /// and whatever reached it is lost, and it comes back with an empty queue.
    Hanging,
    /// The server stops working and keeps its queue, as it does while its database is locked: afterwards it goes on where it
    /// stopped, with requests that nobody waits for any more.
    Frozen,
    /// The server is dead, and something in front of it, such as a proxy, answers 503 in its place, at once; with a `Retry-After` if
    /// it has one. What the server had accepted before is lost.
    Unavailable {
        /// When to come back, says the answer.
        retry_after: Option<Duration>,
    },
    /// This share of the requests, 0 to 1, is answered with a 500 after the usual work.
    Failing(f64),
    /// The answers to a share of the requests, 0 to 1, leave the server this much later than usual, and do not hold it up: a pause, a
    /// slow disk, a lock that one row waits for.
    Slow {
        /// How many.
        share: f64,
        /// How much later.
        by: Duration,
    },
    /// The clients start this many times as many operations, 1 to 1,000. The server is well.
    Surge(f64),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refusing => f.write_str("outage, refusing"),
            Self::Hanging => f.write_str("outage, hanging"),
            Self::Frozen => f.write_str("outage, frozen"),
            Self::Unavailable { retry_after: None } => f.write_str("outage, unavailable"),
            Self::Unavailable { retry_after: Some(time) } => {
                write!(f, "outage, unavailable with a hint of {} s", time.as_secs_f64())
            }
            Self::Failing(share) => write!(f, "{:.0} % of the requests fail", share * 100.0),
            Self::Slow { share, by } => {
                write!(f, "{} % of the answers {} s late", share * 100.0, by.as_secs_f64())
            }
            Self::Surge(factor) => write!(f, "{factor} times the operations"),
        }
    }
}

/// Longer than anybody waits for a simulation.
const LONGEST: Duration = Duration::from_hours(24);

/// A trouble, and the time before, during and after it; each at most a day.
///
/// ```
/// use std::time::Duration;
/// use steadfast_sim::{Scenario, Trouble};
///
/// let scenario = Scenario::new(Trouble::Frozen).lasting(Duration::from_secs(5)).watched_for(Duration::from_secs(120));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    pub(super) trouble: Trouble,
    pub(super) calm: Duration,
    pub(super) lasting: Duration,
    pub(super) after: Duration,
}

impl Scenario {
    /// 10 s of calm, 30 s of trouble, and then 60 s in which it is watched how the server comes back.
    #[must_use]
    pub fn new(trouble: Trouble) -> Self {
        let seconds = Duration::from_secs;
        Self { trouble, calm: seconds(10), lasting: seconds(30), after: seconds(60) }
    }

    /// How long all is well before the trouble begins.
    #[must_use]
    pub fn after_calm_of(mut self, calm: Duration) -> Self {
        self.calm = calm.min(LONGEST);
        self
    }

    /// How long the trouble lasts.
    #[must_use]
    pub fn lasting(mut self, lasting: Duration) -> Self {
        self.lasting = lasting.min(LONGEST);
        self
    }

    /// How long it is watched afterwards. Who has not recovered by then is reported not to. With zero the trouble does not end.
    #[must_use]
    pub fn watched_for(mut self, after: Duration) -> Self {
        self.after = after.min(LONGEST);
        self
    }

    /// The trouble's first moment.
    pub(super) fn from(&self) -> Duration {
        self.calm
    }

    /// The repair, if there is one.
    pub(super) fn to(&self) -> Duration {
        if self.after.is_zero() { Duration::MAX } else { self.calm + self.lasting }
    }

    /// The end of what is reported.
    pub(super) fn end(&self) -> Duration {
        self.calm + self.lasting + self.after
    }

    pub(super) fn in_trouble(&self, now: Duration) -> bool {
        (self.from()..self.to()).contains(&now)
    }
}
