//! A request that an adapter has sent before, for a layer above that repeats it.
//!
//! A retry layer above an adapter calls it again with the same request. That is the same operation:
//! it goes on under the first call's key, from the time when that was sent first. If the first call
//! may have been processed, the second one is a repeat, and needs the licence of every repeat.

use std::time::SystemTime;

use http::HeaderMap;

use crate::Client;
use crate::clock;
use crate::key::IdempotencyKey;

/// What became of a request so far.
#[derive(Clone, Debug)]
pub struct Earlier {
    pub(crate) key: Option<IdempotencyKey>,
    first_sent: SystemTime,
    may_have_been_processed: bool,
}

impl Earlier {
    /// Records a request with these headers that goes out now. Until you say otherwise, it may have
    /// been processed.
    #[must_use]
    pub fn sent(client: &Client, headers: &HeaderMap) -> Self {
        let header = client.inner().ok().and_then(|inner| headers.get(&inner.keys.header));
        let key = header.and_then(|value| IdempotencyKey::from_header(value).ok());
        Self { key, first_sent: clock::wall(), may_have_been_processed: true }
    }

    /// Describes a request that was sent under this key, first at `first_sent`.
    #[must_use]
    pub fn under_key(key: Option<IdempotencyKey>, first_sent: SystemTime, may_have_been_processed: bool) -> Self {
        Self { key, first_sent, may_have_been_processed }
    }

    /// Returns when its key was sent first, or `None` if it has no key.
    pub(crate) fn key_first_sent(&self) -> Option<SystemTime> {
        self.key.as_ref().map(|_| self.first_sent)
    }

    /// Returns whether the server may have acted on it.
    #[must_use]
    pub fn may_have_been_processed(&self) -> bool {
        self.may_have_been_processed
    }

    /// Sets whether the server may have acted on it.
    pub fn set_may_have_been_processed(&mut self, yes: bool) {
        self.may_have_been_processed = yes;
    }
}
