//! What several cores write at once, kept apart: a cache line that changes cores takes longer than what is done with it.

use std::sync::atomic::{AtomicUsize, Ordering};

/// On cache lines of its own. Two of them: a processor may fetch the neighbour of a line along with it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Apart<T>(pub(super) T);

/// As many threads have one each: more than a server has workers, most of the time.
const STRIPES: usize = 32;

/// One for each of a few threads, which together are the whole: a count is the sum of all.
#[derive(Debug, Default)]
pub(super) struct Striped<T>([Apart<T>; STRIPES]);

impl<T> Striped<T> {
    pub(super) fn at(&self, Stripe(stripe): Stripe) -> &T {
        let Self(all) = self;
        &all.get(stripe).unwrap_or(&all[0]).0
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|Apart(one)| one)
    }
}

/// Which of them a thread writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stripe(usize);

impl Stripe {
    /// Any number is one of them.
    pub(super) fn of(number: usize) -> Self {
        Self(number % STRIPES)
    }

    /// That of this thread: threads take them in turn.
    pub(super) fn of_this_thread() -> Self {
        static TAKEN: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static MINE: Stripe = Stripe::of(TAKEN.fetch_add(1, Ordering::Relaxed)));
        MINE.with(|mine| *mine)
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..STRIPES).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_write_to_one_each_and_all_of_them_are_the_whole() {
        let striped = Striped::<AtomicUsize>::default();
        let write = || striped.at(Stripe::of_this_thread()).fetch_add(1, Ordering::Relaxed);
        std::thread::scope(|scope| (0..2 * STRIPES).for_each(|_| _ = scope.spawn(write)));
        let written: Vec<_> = striped.all().map(|one| one.load(Ordering::Relaxed)).collect();
        // Threads of other tests take turns with these.
        assert_eq!(written.iter().sum::<usize>(), 2 * STRIPES, "{written:?}");
        assert!(written.iter().filter(|written| **written > 0).count() > STRIPES / 2, "{written:?}");
    }

    #[test]
    fn a_thread_keeps_to_its_own() {
        let striped = Striped::<AtomicUsize>::default();
        for _ in 0..3 {
            striped.at(Stripe::of_this_thread()).fetch_add(1, Ordering::Relaxed);
        }
        assert!(striped.all().any(|one| one.load(Ordering::Relaxed) == 3));
    }

    #[test]
    fn neighbours_stand_two_lines_apart() {
        let striped = Striped::<AtomicUsize>::default();
        let places: Vec<_> = striped.all().map(|one| std::ptr::from_ref(one).addr()).collect();
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] >= 128), "{places:?}");
    }
}
