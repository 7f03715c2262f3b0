//! The identity version of the records under a prefix.

use std::sync::atomic::{AtomicBool, Ordering};

use redis::Script;
use redis::aio::ConnectionLike;
use steadfast_server::{IDENTITY_VERSION, StoreError, verify_identity};

use super::RedisStore;

/// The script that reads the version, and whether the version has been verified.
#[derive(Debug)]
pub(super) struct Identity {
    script: Script,
    verified: AtomicBool,
}

impl Default for Identity {
    fn default() -> Self {
        Self { script: Script::new(include_str!("scripts/identity.lua")), verified: AtomicBool::new(false) }
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> RedisStore<C> {
    /// Verifies that this build identifies records as the build did that wrote them
    /// ([`IDENTITY_VERSION`]). The key `…identity` holds the version.
    ///
    /// The first claim does this too. Call it at start, after [`prefix`](Self::prefix), to learn of
    /// a mismatch before the first request. A prefix without that key counts as new.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::IdentityMismatch`] if the versions differ, or
    /// [`StoreError::Unavailable`] if the server cannot be reached.
    ///
    /// ```no_run
    /// use steadfast_redis::RedisStore;
    /// use steadfast_server::StoreError;
    ///
    /// # async fn example() -> Result<(), StoreError> {
    /// let store = RedisStore::connect("redis://127.0.0.1").await?.prefix("shop:");
    /// store.verify_identity().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn verify_identity(&self) -> Result<(), StoreError> {
        let mut invocation = self.identity.script.key(format!("{}identity", self.prefix));
        let found: String = self.call(invocation.arg(IDENTITY_VERSION)).await?;
        verify_identity(found.parse().ok())?;
        self.identity.verified.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Verifies the identity version, unless it has been verified before.
    pub(super) async fn verify_once(&self) -> Result<(), StoreError> {
        if self.identity.verified.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Boxed, since every claim would reserve room for this future and only the first needs it.
        Box::pin(self.verify_identity()).await
    }
}
