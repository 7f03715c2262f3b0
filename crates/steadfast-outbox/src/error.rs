//! Errors of an outbox, and what to do about them.

use http::HeaderName;
use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION, SET_COOKIE};

use crate::change::Refusal;
use crate::store::OutboxStoreError;

/// The reason why an outbox could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// A setting of the outbox is invalid.
    #[error("invalid {setting}: {reason}")]
    #[non_exhaustive]
    Setting {
        /// The setting.
        setting: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The request cannot be stored: its body is a stream, or it has a setting that is lost with this
    /// process. Nothing was written or sent.
    #[error("the request cannot be stored: {0}")]
    Request(#[source] Box<steadfast::Error>),
    /// The request has a header that is not stored. Nothing was written or sent.
    #[error("the request cannot be stored with the header {name}: {}", advice(name))]
    #[non_exhaustive]
    Header {
        /// The header.
        name: HeaderName,
    },
    /// The operating system has no randomness for an identifier.
    #[error("the operating system has no randomness to give")]
    NoRandomness,
    /// The change is not allowed now. Nothing was written.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store has failed.
    #[error(transparent)]
    Store(#[from] OutboxStoreError),
}

impl OutboxError {
    pub(crate) fn setting(setting: &'static str, reason: impl Into<String>) -> Self {
        Self::Setting { setting, reason: reason.into() }
    }
}

/// Returns whether a header is a credential, which no outbox stores.
pub(crate) fn is_credential(name: &HeaderName) -> bool {
    [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE, SET_COOKIE].contains(name)
}

fn advice(name: &HeaderName) -> &'static str {
    if is_credential(name) {
        "credentials belong into no file; take it out of the request and of the user information in the URL, and set \
         `credentials` on the client"
    } else {
        "set it on the client, or name it in `persist_headers` if it is no secret"
    }
}
