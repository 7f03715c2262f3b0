//! The store's session in the hands of the handler.
//!
//! Where claim, business rows and record are one transaction, the handler has to write its rows in that transaction, and the layer
//! has to have it back to end it. So it travels in the request's extensions, one at a time can hold it, and whoever holds it gives
//! it back by letting go.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMappedMutexGuard, OwnedMutexGuard};

/// A store's session, lent to the handler: in the request's extensions where the store [holds the
/// effects](super::Store::TRANSACTIONAL).
///
/// The layer ends the session when the handler has answered, so nobody may have it then: an answer that comes while a task of the
/// handler's still holds it is replaced by a 500, and nothing is kept.
// Nobody ever waits for this lock: it tells who has the session, and the mapped guard gives it back without a slot to unwrap.
pub struct TransactionHandle<T>(Arc<Mutex<Option<T>>>);

impl<T> TransactionHandle<T> {
    pub(super) fn new(session: T) -> Self {
        Self(Arc::new(Mutex::new(Some(session))))
    }

    /// The session, until the guard is dropped; `None` while another has it, and after the operation has ended.
    #[must_use]
    pub fn lock(&self) -> Option<TransactionGuard<T>> {
        let guard = self.0.clone().try_lock_owned().ok()?;
        OwnedMutexGuard::try_map(guard, Option::as_mut).ok().map(TransactionGuard)
    }

    /// The session, for good; `None` if the handler still holds it.
    pub(super) fn take(&self) -> Option<T> {
        self.0.try_lock().ok()?.take()
    }
}

impl<T> Clone for TransactionHandle<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for TransactionHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionHandle").finish_non_exhaustive()
    }
}

/// A session in the hands of a handler; dropped, it is given back.
pub struct TransactionGuard<T>(OwnedMappedMutexGuard<Option<T>, T>);

impl<T> Deref for TransactionGuard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for TransactionGuard<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T> fmt::Debug for TransactionGuard<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionGuard").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_it_and_it_comes_back_by_itself() {
        let lent = TransactionHandle::new(vec![1]);
        let mut borrowed = lent.lock().unwrap();
        borrowed.push(2);
        assert!(lent.lock().is_none(), "another has it");
        assert!(lent.take().is_none(), "the layer cannot end what a handler still uses");
        drop(borrowed);
        assert_eq!(*lent.lock().unwrap(), [1, 2]);
        assert_eq!(lent.take(), Some(vec![1, 2]));
        assert!(lent.lock().is_none(), "the operation has ended");
    }

    #[test]
    fn a_handler_that_panics_gives_it_back() {
        let lent = TransactionHandle::new(1);
        let panicking = lent.clone();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _borrowed = panicking.lock().unwrap();
            panic!("on purpose")
        }));
        assert!(panicked.is_err());
        assert_eq!(lent.take(), Some(1));
    }
}
