//! The queue of a server that drops some requests when their turn comes.
//!
//! Until then the server does not know which it will drop, so they take room like the others. Their
//! cost in the end says nothing about that room, so each is kept in a list.

use std::collections::VecDeque;
use std::time::Duration;

#[derive(Debug, Default)]
pub(super) struct Line {
    /// When each leaves the queue, in this order, and the work that it seems to be until then.
    waiting: VecDeque<(Duration, Duration)>,
    work: Duration,
}

impl Line {
    /// Adds a request that leaves at `end`.
    pub(super) fn joins(&mut self, work: Duration, end: Duration) {
        self.waiting.push_back((end, work));
        self.work = self.work.saturating_add(work);
    }

    /// Returns the work of those that still wait.
    pub(super) fn work(&mut self, now: Duration) -> Duration {
        while let Some((_, work)) = self.waiting.pop_front_if(|(end, _)| *end <= now) {
            self.work = self.work.saturating_sub(work);
        }
        self.work
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn departed_client_takes_no_room() {
        let mut line = Line::default();
        let seconds = Duration::from_secs;
        line.joins(seconds(2), seconds(5));
        line.joins(seconds(3), seconds(5));
        line.joins(seconds(1), seconds(6));
        assert_eq!([0, 4, 5, 6].map(|now| line.work(seconds(now))), [6, 6, 1, 0].map(seconds));
    }
}
