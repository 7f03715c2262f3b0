//! The trouble of a run: what goes wrong, and when.

use std::fmt;
use std::time::Duration;

/// What is wrong with the server while the trouble lasts.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Trouble {
    /// Nothing listens: connections are refused at once. Requests that the server had accepted
    /// before are lost, and clients wait for them until the attempt timeout.
    Refusing,
    /// The server accepts requests and never answers, as a deadlocked process does until it is
    /// restarted. All requests that it held or that reached it are lost, and it comes back with an
    /// empty queue.
    Hanging,
    /// The server stops working and keeps its queue, as it does while its database is locked.
    /// Afterwards it goes on where it stopped, with requests that nobody waits for.
    Frozen,
    /// The server is dead, and a proxy in front of it answers 503 at once, perhaps with a
    /// `Retry-After`. Requests that the server had accepted before are lost.
    Unavailable {
        /// The `Retry-After` of the response.
        retry_after: Option<Duration>,
    },
    /// This share of the requests, 0 to 1, is answered with a 500 after the usual work.
    Failing(f64),
    /// The responses to a share of the requests, 0 to 1, leave the server later than usual, and do
    /// not hold it up: a pause, a slow disk, a locked row.
    Slow {
        /// The share of requests.
        share: f64,
        /// How much later they leave.
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

/// The longest phase of a run.
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
    /// Creates a scenario of 10 s of calm, 30 s of trouble, and 60 s afterwards.
    #[must_use]
    pub fn new(trouble: Trouble) -> Self {
        let seconds = Duration::from_secs;
        Self { trouble, calm: seconds(10), lasting: seconds(30), after: seconds(60) }
    }

    /// Sets how long all is well before the trouble begins. Default: 10 s.
    #[must_use]
    pub fn after_calm_of(mut self, calm: Duration) -> Self {
        self.calm = calm.min(LONGEST);
        self
    }

    /// Sets how long the trouble lasts. Default: 30 s.
    #[must_use]
    pub fn lasting(mut self, lasting: Duration) -> Self {
        self.lasting = lasting.min(LONGEST);
        self
    }

    /// Sets how long the run goes on after the trouble. Default: 60 s. A server that has not
    /// recovered by then is reported as not recovered. With zero the trouble does not end.
    #[must_use]
    pub fn watched_for(mut self, after: Duration) -> Self {
        self.after = after.min(LONGEST);
        self
    }

    /// Returns when the trouble begins.
    pub(super) fn from(&self) -> Duration {
        self.calm
    }

    /// Returns when the trouble ends.
    pub(super) fn to(&self) -> Duration {
        if self.after.is_zero() { Duration::MAX } else { self.calm + self.lasting }
    }

    /// Returns the end of the reported time.
    pub(super) fn end(&self) -> Duration {
        self.calm + self.lasting + self.after
    }

    pub(super) fn in_trouble(&self, now: Duration) -> bool {
        (self.from()..self.to()).contains(&now)
    }
}
