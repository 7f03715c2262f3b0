//! How an operation ends: with an answer, rejected, or unknown.

use std::fmt;

use http::{HeaderMap, HeaderName, StatusCode};
use serde::{Deserialize, Serialize};

use crate::headers::StoredHeaders;

/// The end of an operation. It is on the disk before you see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_enums, reason = "there are three ends, and a caller has to handle each")]
pub enum End {
    /// The server has carried out the operation, and this is its 2xx response.
    Answer(Answer),
    /// The server has not carried out the operation, in no attempt of its whole life.
    Rejected(Failed),
    /// Nobody knows whether the server has carried out the operation. Look it up, and
    /// [resolve](crate::Outbox::resolve) it.
    Unknown(Failed),
}

impl End {
    /// Returns the server's last response, if there is one.
    #[must_use]
    pub fn answer(&self) -> Option<&Answer> {
        match self {
            Self::Answer(answer) => Some(answer),
            Self::Rejected(failed) | Self::Unknown(failed) => failed.answer.as_ref(),
        }
    }

    /// Returns the end in one word: `answer`, `rejected` or `unknown`.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Answer(_) => "answer",
            Self::Rejected(_) => "rejected",
            Self::Unknown(_) => "unknown",
        }
    }

    pub(crate) fn drop_body(&mut self) {
        let answer = match self {
            Self::Answer(answer) => Some(answer),
            Self::Rejected(failed) | Self::Unknown(failed) => failed.answer.as_mut(),
        };
        if let Some(answer) = answer {
            answer.body = None;
        }
    }
}

/// A response of the server, as it is kept.
///
/// Of its headers, only those without credentials are kept: `Content-Type`, `Content-Language`,
/// `Location`, `ETag`, `Last-Modified`, `Date`, and those that you name in
/// [`keep_headers`](crate::OutboxBuilder::keep_headers).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    status: u16,
    headers: StoredHeaders,
    body: Option<Vec<u8>>,
}

impl Answer {
    /// Makes an answer, for [`reconcile`](crate::OutboxBuilder::reconcile) and for
    /// [`Outbox::resolve`](crate::Outbox::resolve).
    ///
    /// ```
    /// use steadfast_outbox::Answer;
    /// use steadfast::http::StatusCode;
    ///
    /// let answer = Answer::new(StatusCode::CREATED, br#"{"id":"ch_1"}"#);
    /// assert_eq!(answer.status(), 201);
    /// ```
    #[must_use]
    pub fn new(status: StatusCode, body: impl Into<Vec<u8>>) -> Self {
        Self { status: status.as_u16(), headers: StoredHeaders::default(), body: Some(body.into()) }
    }

    /// Keeps those of these headers that are named in `kept`.
    pub(crate) fn with_headers(self, headers: &HeaderMap, kept: &[HeaderName]) -> Self {
        Self { headers: headers.iter().filter(|(name, _)| kept.contains(name)).collect(), ..self }
    }

    pub(crate) fn without_body(self) -> Self {
        Self { body: None, ..self }
    }

    /// Returns the status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// Returns the headers that were kept.
    #[must_use]
    pub fn headers(&self) -> HeaderMap {
        self.headers.to_map()
    }

    /// Returns the body. Returns `None` if it is over the client's limit or was cut off, and once it
    /// was dropped, after [`keep_answers`](crate::OutboxBuilder::keep_answers).
    #[must_use]
    pub fn body(&self) -> Option<&[u8]> {
        self.body.as_deref()
    }
}

// The body may be secret.
impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body.as_ref().map(Vec::len);
        f.debug_struct("Answer").field("status", &self.status).field("body_bytes", &body).finish_non_exhaustive()
    }
}

/// Why an operation has no answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct Failed {
    /// The reason, as the client's error prints it. It has no secret and no query.
    pub message: String,
    /// The server's last response, if there was one.
    pub answer: Option<Answer>,
}

impl Failed {
    /// Makes a reason of your own, for [`Outbox::resolve`](crate::Outbox::resolve).
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), answer: None }
    }
}
