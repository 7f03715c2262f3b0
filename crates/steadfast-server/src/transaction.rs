//! The store's session, lent to the handler.
//!
//! With a transactional store, claim, business rows and record are one transaction. The handler
//! writes its rows in it, and then the layer ends it. So the session travels in the request's
//! extensions. Only one holder can lock it at a time, and dropping the guard returns it.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMappedMutexGuard, OwnedMutexGuard};

/// A store's session, lent to the handler. It is in the request's extensions if the store is
/// [transactional](super::Store::TRANSACTIONAL).
///
/// Lock it to use the session, and drop the guard before the handler returns. The layer ends the
/// session after the response. If a task of the handler still holds it then, the response is
/// replaced by a 500, and nothing is kept.
///
/// ```
/// use axum::{Extension, http::StatusCode};
/// use steadfast_server::TransactionHandle;
///
/// /// The session of your store.
/// struct Transaction;
///
/// async fn charge(Extension(handle): Extension<TransactionHandle<Transaction>>) -> StatusCode {
///     let Some(mut transaction) = handle.lock() else {
///         return StatusCode::INTERNAL_SERVER_ERROR;
///     };
///     // Write the rows of the charge: they are committed with the record, or not at all.
///     let _session: &mut Transaction = &mut transaction;
///     StatusCode::CREATED
/// }
/// ```
// No caller waits for this lock: it only shows who has the session. A mapped guard returns the
// session without a slot to unwrap.
pub struct TransactionHandle<T>(Arc<Mutex<Option<T>>>);

impl<T> TransactionHandle<T> {
    pub(super) fn new(session: T) -> Self {
        Self(Arc::new(Mutex::new(Some(session))))
    }

    /// Returns the session, until you drop the guard. `None` while another guard holds it, and
    /// after the operation has ended.
    #[must_use]
    pub fn lock(&self) -> Option<TransactionGuard<T>> {
        let guard = self.0.clone().try_lock_owned().ok()?;
        OwnedMutexGuard::try_map(guard, Option::as_mut).ok().map(TransactionGuard)
    }

    /// Takes the session for good. `None` if the handler still holds it.
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

/// A locked session. Dropping the guard returns the session to its [`TransactionHandle`].
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
    fn session_has_one_holder_until_dropped() {
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
    fn panicking_handler_returns_session() {
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
