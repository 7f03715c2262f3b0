//! A deadline of a task, shared by all of its calls.
//!
//! A handler with two seconds left makes three calls. With a timeout of thirty seconds each, they
//! would work on for a caller who has left. So a task can carry the instant at which its caller
//! leaves. Every operation in the task ends then at the latest.
//!
//! This module is shared by the client and the server half.

use std::future::Future;
use std::time::{Duration, Instant};

use crate::clock;
use crate::units::CENTURY;

tokio::task_local! {
    /// Set by this module alone.
    static TASK: Task;
}

/// What an operation of the client finds out about the task that runs it. One value, so that it
/// looks once.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Task {
    /// The deadline of the task.
    pub deadline: Option<Deadline>,
    /// The operation is an attempt of another operation, whose loop repeats it.
    pub is_nested: bool,
    /// The operation belongs to a read that confirms another one, so it asks no such read itself.
    pub is_confirming: bool,
}

impl Task {
    /// Returns the values of the current task.
    #[must_use]
    pub fn current() -> Self {
        TASK.try_with(|task| *task).unwrap_or_default()
    }
}

/// Runs `future` as an attempt of an operation. An operation of the client in it makes one attempt.
#[doc(hidden)]
pub fn nested<F: Future>(future: F) -> impl Future<Output = F::Output> {
    in_task(Task { is_nested: true, ..Task::current() }, future)
}

/// Runs `future` as a read that confirms an operation.
#[doc(hidden)]
pub fn confirming<F: Future>(future: F) -> impl Future<Output = F::Output> {
    in_task(Task { is_confirming: true, ..Task::current() }, future)
}

/// Runs `future` with the values of a task, such as the one that spawns it.
#[doc(hidden)]
pub fn in_task<F: Future>(task: Task, future: F) -> impl Future<Output = F::Output> {
    TASK.scope(task, future)
}

/// The instant after which nobody needs the result. Made from a [`Duration`], it is that long from
/// now.
///
/// ```
/// use std::time::Duration;
/// use steadfast::Deadline;
///
/// let deadline = Deadline::from(Duration::from_secs(2));
/// assert!(deadline.time_left() <= Duration::from_secs(2));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(Instant);

impl Deadline {
    /// Returns the deadline of the current task: the earliest that an enclosing [`with_deadline`]
    /// has set.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast::{Deadline, with_deadline};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// assert_eq!(Deadline::current(), None);
    /// with_deadline(Duration::from_secs(2), async {
    ///     // A spawned task has no deadline of its own, so hand this one on.
    ///     let deadline = Deadline::current().unwrap();
    ///     let work = async { Deadline::current().is_some() };
    ///     assert!(tokio::spawn(with_deadline(deadline, work)).await.unwrap());
    /// })
    /// .await;
    /// # }
    /// ```
    #[must_use]
    pub fn current() -> Option<Self> {
        Task::current().deadline
    }

    /// Returns the instant itself.
    #[must_use]
    pub fn instant(self) -> Instant {
        self.0
    }

    /// Returns the time left, or zero if the deadline has passed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast::Deadline;
    ///
    /// /// Skips the recommendations if there is no time for them.
    /// fn has_time() -> bool {
    ///     Deadline::current().is_none_or(|deadline| deadline.time_left() > Duration::from_millis(100))
    /// }
    /// assert!(has_time());
    /// ```
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

/// Runs `future` with a deadline for every operation of the client `steadfast` in it.
///
/// None of these operations starts an attempt or ends a wait after the deadline. With
/// [`deadline_header`](https://docs.rs/steadfast/latest/steadfast/struct.ClientBuilder.html#method.deadline_header)
/// the client also sends the time left to the server.
///
/// Inside another deadline, the earlier one counts. A deadline belongs to its task: pass
/// [`Deadline::current`] to each task that you spawn. It does not stop code that is not an
/// operation of that client.
///
/// ```no_run
/// use std::time::Duration;
///
/// # async fn example(client: steadfast::Client) -> steadfast::Result<()> {
/// steadfast::with_deadline(Duration::from_secs(2), async {
///     let user: serde_json::Value = client.get_json("https://users.example.com/7").await?;
///     // Only the rest of the two seconds is left for this call.
///     let orders: serde_json::Value = client.get_json("https://orders.example.com/?user=7").await?;
///     # drop((user, orders));
///     Ok(())
/// })
/// .await
/// # }
/// ```
pub fn with_deadline<F: Future>(deadline: impl Into<Deadline>, future: F) -> impl Future<Output = F::Output> {
    let (deadline, task) = (deadline.into(), Task::current());
    let earlier = task.deadline.map_or(deadline, |outer| outer.min(deadline));
    TASK.scope(Task { deadline: Some(earlier), ..task }, future)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn earlier_deadline_counts_in_its_task() {
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
