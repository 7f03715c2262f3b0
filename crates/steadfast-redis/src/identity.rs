//! How the records under a prefix are identified.

use std::sync::atomic::{AtomicBool, Ordering};

use redis::Script;
use redis::aio::ConnectionLike;
use steadfast_server::{IDENTITY_VERSION, StoreError, verify_identity};

use super::RedisStore;

/// What is known of it.
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
    /// Verifies that the records under this prefix are identified as this build identifies them
    /// ([`IDENTITY_VERSION`]), which the key `…identity` tells.
    ///
    /// The first claim does this. Call it at start, after [`prefix`](Self::prefix), to be told
    /// before the first request. A prefix without that key is taken for a new one.
    ///
    /// # Errors
    ///
    /// [`StoreError::IdentityMismatch`], or the server cannot be reached.
    pub async fn verify_identity(&self) -> Result<(), StoreError> {
        let mut invocation = self.identity.script.key(format!("{}identity", self.prefix));
        let found: String = self.call(invocation.arg(IDENTITY_VERSION)).await?;
        verify_identity(found.parse().ok())?;
        self.identity.verified.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Before the first claim, unless it was verified before.
    pub(super) async fn verify_once(&self) -> Result<(), StoreError> {
        if self.identity.verified.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Boxed: every claim has room for it, and one needs it.
        Box::pin(self.verify_identity()).await
    }
}
