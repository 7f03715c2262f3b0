//! The tasks that wait for one refresh, and how all of them are woken.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

/// The tasks that wait for the refresh. As a waker it wakes all of them.
#[derive(Default)]
pub(super) struct Waiting {
    was_woken: AtomicBool,
    tasks: Mutex<Tasks>,
}

#[derive(Default)]
struct Tasks {
    next: u64,
    /// `None` while a task has been woken and was not polled yet.
    wakers: BTreeMap<u64, Option<Waker>>,
}

impl Waiting {
    pub(super) fn place(&self) -> Place<'_> {
        let mut tasks = self.tasks();
        tasks.next = tasks.next.wrapping_add(1);
        Place { waiting: self, number: tasks.next }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks().wakers.is_empty()
    }

    /// Forgets the wake-ups so far.
    pub(super) fn begin_poll(&self) {
        self.was_woken.store(false, Ordering::SeqCst);
    }

    /// Wakes the tasks again, if they were woken since the poll began. They may have found nothing
    /// to poll then.
    pub(super) fn end_poll(&self) {
        if self.was_woken.load(Ordering::SeqCst) {
            self.wake_all();
        }
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wake_all(&self) {
        let wakers: Vec<Waker> = self.tasks().wakers.values_mut().filter_map(Option::take).collect();
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.was_woken.store(true, Ordering::SeqCst);
        self.wake_all();
    }
}

/// The place of one task among those that wait.
pub(super) struct Place<'a> {
    waiting: &'a Waiting,
    number: u64,
}

impl Place<'_> {
    pub(super) fn wait(&self, waker: &Waker) {
        self.waiting.tasks().wakers.insert(self.number, Some(waker.clone()));
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiting.tasks().wakers.remove(&self.number);
    }
}
