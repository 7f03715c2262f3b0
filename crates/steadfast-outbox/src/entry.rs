//! What is written down of an operation.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, Method};
use serde::{Deserialize, Serialize};
use steadfast::reqwest::Url;
use steadfast::{IdempotencyKey, KeyFormat};

use crate::end::End;
use crate::headers::StoredHeaders;
use crate::id::OperationId;

/// An operation in an outbox. Times are milliseconds since the Unix epoch, by the clock of the store.
///
/// It has the body and the query of the request as they are, and no credentials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Entry {
    /// The identifier of the operation.
    pub id: OperationId,
    /// Your name for the operation, unique in the outbox.
    pub name: Option<String>,
    /// The request.
    pub request: StoredRequest,
    /// The principal in whose name it is sent, if that is not the client's.
    pub principal: Option<String>,
    /// When it was submitted.
    pub submitted_ms: u64,
    /// When it expires, unless an attempt of it was made.
    pub expires_ms: Option<u64>,
    /// When the first attempt was written down that the server may have seen. The retention of the
    /// key counts from there.
    pub first_sent_ms: Option<u64>,
    /// When the last attempt has settled, so that the server can be asked whether it has acted.
    pub settles_ms: Option<u64>,
    /// Number of attempts so far.
    pub attempts: u32,
    /// Number of rounds so far that ended without a result. A round is one operation of the client,
    /// with its own retries.
    pub rounds: u32,
    /// The server may have carried it out in one of the attempts.
    pub may_have_been_processed: bool,
    /// Why the last round has failed.
    pub last_error: Option<String>,
    /// The fencing token. Each claim has a higher one, and a change under a lower one is refused.
    pub fence: u64,
    /// Where the operation stands.
    pub state: State,
}

/// Where an operation stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum State {
    /// It waits for its next round.
    Waiting {
        /// When the round begins at the earliest.
        due_ms: u64,
    },
    /// A worker has it.
    Running {
        /// When the worker's lease ends, unless it is renewed.
        lease_ends_ms: u64,
        /// An attempt is under way, or was when the worker died.
        is_marked: bool,
        /// `first_sent_ms` was written down under this claim.
        is_first_send: bool,
    },
    /// It waits for a person: its credentials are refused, or missing.
    Held {
        /// Since when.
        since_ms: u64,
        /// Why.
        reason: String,
    },
    /// It has ended.
    Ended {
        /// How.
        end: End,
        /// When.
        at_ms: u64,
        /// When the body of the answer is dropped.
        drop_body_ms: Option<u64>,
        /// When it was acknowledged.
        acknowledged_ms: Option<u64>,
    },
}

impl State {
    /// Returns the state in one word: `waiting`, `running`, `held`, or that of the end.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Waiting { .. } => "waiting",
            Self::Running { .. } => "running",
            Self::Held { .. } => "held",
            Self::Ended { end, .. } => end.label(),
        }
    }
}

/// A request as it is kept.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRequest {
    pub(crate) method: String,
    pub(crate) url: String,
    pub(crate) headers: StoredHeaders,
    pub(crate) body: Vec<u8>,
    pub(crate) key: Option<StoredKey>,
    /// How long the API remembers the key, in milliseconds.
    pub(crate) retention_ms: u64,
    pub(crate) idempotent: Option<bool>,
}

/// A key as it is kept.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredKey {
    pub(crate) text: String,
    pub(crate) is_minted: bool,
    pub(crate) spelling: Option<KeyFormat>,
}

impl StoredRequest {
    /// Returns the method.
    #[must_use]
    pub fn method(&self) -> Method {
        self.method.parse().unwrap_or_default()
    }

    /// Returns the URL, with its query, or `None` if it was changed where it is stored.
    #[must_use]
    pub fn url(&self) -> Option<Url> {
        self.url.parse().ok()
    }

    /// Returns the origin: scheme, host and port.
    #[must_use]
    pub fn origin(&self) -> String {
        self.url().map_or_else(String::new, |url| url.origin().ascii_serialization())
    }

    /// Returns the headers.
    #[must_use]
    pub fn headers(&self) -> HeaderMap {
        self.headers.to_map()
    }

    /// Returns the body.
    #[must_use]
    pub fn body(&self) -> Bytes {
        Bytes::copy_from_slice(&self.body)
    }

    /// Returns the key, or `None` if it has none.
    #[must_use]
    pub fn key(&self) -> Option<IdempotencyKey> {
        let key = self.key.as_ref()?;
        IdempotencyKey::restore(&key.text, key.is_minted, key.spelling).ok()
    }

    /// Returns how long the API remembers the key.
    #[must_use]
    pub fn retention(&self) -> Duration {
        Duration::from_millis(self.retention_ms)
    }

    /// Returns whether two requests ask for the same. Their keys may differ: each submission of one
    /// name prepares a request of its own.
    pub(crate) fn asks_for_same(&self, other: &Self) -> bool {
        (&self.method, &self.url, &self.headers) == (&other.method, &other.url, &other.headers)
            && self.body == other.body
    }
}

// Query, body and headers may be secret.
impl fmt::Debug for StoredRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.url().map(|url| format!("{}{}", url.origin().ascii_serialization(), url.path()));
        f.debug_struct("StoredRequest")
            .field("method", &self.method)
            .field("url", &path)
            .field("key", &self.key())
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

impl Entry {
    /// Returns when a worker may take the operation, or has to look at it.
    #[must_use]
    pub fn due_ms(&self) -> Option<u64> {
        let due = match &self.state {
            State::Waiting { due_ms } => Some(*due_ms),
            State::Running { lease_ends_ms, .. } => Some(*lease_ends_ms),
            State::Held { .. } => None,
            State::Ended { .. } => return None,
        };
        match self.expires_ms.filter(|_| self.is_unsent()) {
            Some(expires) => Some(due.map_or(expires, |due| due.min(expires))),
            None => due,
        }
    }

    /// Returns when there is something to remove: the body of the answer, or the whole entry.
    #[must_use]
    pub fn sweep_ms(&self) -> Option<u64> {
        let State::Ended { end, drop_body_ms, acknowledged_ms, .. } = &self.state else { return None };
        let forget = acknowledged_ms.map(|at| at.saturating_add(self.remembered_ms()));
        let has_body = end.answer().is_some_and(|answer| answer.body().is_some());
        let drop_body = drop_body_ms.filter(|_| has_body);
        match (forget, drop_body) {
            (Some(forget), Some(drop_body)) => Some(forget.min(drop_body)),
            (forget, drop_body) => forget.or(drop_body),
        }
    }

    /// Returns for how long an acknowledged operation is remembered. Only a name needs that.
    pub(crate) fn remembered_ms(&self) -> u64 {
        if self.name.is_some() { self.request.retention_ms } else { 0 }
    }

    /// Returns whether the server has seen nothing of it for certain.
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        let is_marked = matches!(self.state, State::Running { is_marked: true, .. });
        self.first_sent_ms.is_none() && !self.may_have_been_processed && !is_marked
    }

    /// Returns its end, if it has ended.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        match &self.state {
            State::Ended { end, .. } => Some(end),
            _ => None,
        }
    }

    /// Returns when the key was sent first, by the wall clock.
    #[must_use]
    pub fn first_sent(&self) -> Option<SystemTime> {
        UNIX_EPOCH.checked_add(Duration::from_millis(self.first_sent_ms?))
    }
}
