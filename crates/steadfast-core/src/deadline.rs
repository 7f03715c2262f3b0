//! A deadline that belongs to the work, and not to one call of it.
//!
//! A handler that has two seconds left makes three calls. Each of them with its own thirty seconds would go on working for a caller who
//! has left. So a task can carry the instant at which its caller leaves, and every operation in it ends there at the latest.
//!
//! Floor 1: words shared with callers, and by the client with the server half.

use std::future::Future;
use std::time::{Duration, Instant};

use crate::clock;
use crate::units::CENTURY;

tokio::task_local! {
    /// Exists only where [`with_deadline`] sets it.
    static DEADLINE: Deadline;
}

/// An instant after which nobody waits any more. From a [`Duration`] it is that long from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline of the task that this is called in: the earliest of those that [`with_deadline`] has set around it.
    #[must_use]
    pub fn current() -> Option<Self> {
        DEADLINE.try_with(|deadline| *deadline).ok()
    }

    /// The instant itself.
    #[must_use]
    pub fn instant(self) -> Instant {
        self.0
    }

    /// What is left of it; zero if it has passed.
    #[must_use]
    pub fn time_left(self) -> Duration {
        self.0.saturating_duration_since(clock::now())
    }
}

impl From<Instant> for Deadline {
    fn from(instant: Instant) -> Self {
        Self(instant)
    }
}

impl From<Duration> for Deadline {
    fn from(time: Duration) -> Self {
        let now = clock::now();
        Self(now.checked_add(time.min(CENTURY)).unwrap_or(now))
    }
}

/// `future` with a deadline that every operation of this crate's clients in it reads: none of them starts an attempt or ends a wait after
/// it, and with [`deadline_header`](https://docs.rs/steadfast/latest/steadfast/struct.ClientBuilder.html#method.deadline_header) the server is told.
///
/// Set within another, the earlier of the two counts. It holds for this task alone: what is spawned from it has none, unless it is given
/// one with [`Deadline::current`]. It stops nothing by itself but operations of this crate.
///
/// ```
/// # use std::time::Duration;
/// # async fn example(client: steadfast::Client) -> steadfast::Result<()> {
/// steadfast::with_deadline(Duration::from_secs(2), async {
///     let user: serde_json::Value = client.get_json("https://users.example.com/7").await?;
///     // What is left of the two seconds.
///     let orders: serde_json::Value = client.get_json("https://orders.example.com/?user=7").await?;
///     # drop((user, orders));
///     Ok(())
/// })
/// .await
/// # }
/// ```
pub fn with_deadline<F: Future>(deadline: impl Into<Deadline>, future: F) -> impl Future<Output = F::Output> {
    let deadline = deadline.into();
    let earlier = Deadline::current().map_or(deadline, |outer| outer.min(deadline));
    DEADLINE.scope(earlier, future)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn earlier_deadline_counts_per_task() {
        assert_eq!(Deadline::current(), None);
        let (hour, minute) = (Duration::from_secs(3600), Duration::from_secs(60));
        let left = |at: Option<Deadline>| at.map(|at| at.time_left()).unwrap_or_default();
        with_deadline(minute, async {
            with_deadline(hour, async { assert!(left(Deadline::current()) <= minute) }).await;
            with_deadline(Duration::ZERO, async { assert!(left(Deadline::current()).is_zero()) }).await;
            assert!(left(Deadline::current()) > minute / 2);
            assert_eq!(tokio::spawn(async { Deadline::current() }).await.unwrap(), None);
        })
        .await;
        assert_eq!(Deadline::current(), None);
        with_deadline(Duration::MAX, async { assert!(left(Deadline::current()) > hour) }).await;
    }
}
