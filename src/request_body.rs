//! The request's body, and whether it can be sent again.
//!
//! Bytes are kept, and cloned for each attempt. A factory is called, and a file opened, once per
//! attempt. A stream or a plain multipart form can be sent once, so its request gets one attempt
//! only, instead of a second one with an empty body.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderValue;
use http_body::Body;

use crate::clock::SharedTimer;
use crate::error::BoxError;

type MakeBody = Arc<dyn Fn() -> Result<reqwest::Body, BoxError> + Send + Sync>;

/// The `Content-Type` of a body, unless the caller's headers have one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum ContentType {
    #[default]
    Unset,
    #[cfg(feature = "json")]
    Json,
    Form,
}

impl ContentType {
    /// The type that most bodies have.
    #[cfg(feature = "json")]
    pub(super) const USUAL: Self = Self::Json;
    #[cfg(not(feature = "json"))]
    pub(super) const USUAL: Self = Self::Form;

    pub(super) fn value(self) -> Option<HeaderValue> {
        let text = match self {
            Self::Unset => return None,
            #[cfg(feature = "json")]
            Self::Json => "application/json",
            Self::Form => "application/x-www-form-urlencoded",
        };
        Some(HeaderValue::from_static(text))
    }
}

/// The body of a request.
#[derive(Default)]
pub(super) enum RequestBody {
    #[default]
    Empty,
    Bytes(Bytes),
    /// A stream, or `None` once it was sent.
    Once(Option<reqwest::Body>),
    /// A factory, called for each attempt.
    Factory(MakeBody),
    #[cfg(feature = "stream")]
    File(super::upload::File),
}

impl RequestBody {
    /// Creates a body that `make` builds for each attempt.
    pub(super) fn factory(make: impl Fn() -> Result<reqwest::Body, BoxError> + Send + Sync + 'static) -> Self {
        Self::Factory(Arc::new(make))
    }

    /// Returns whether the body can be sent a second time.
    pub(super) fn is_replayable(&self) -> bool {
        !matches!(self, Self::Once(_))
    }

    /// Returns the same body once more, if it is in memory or comes from a factory.
    pub(super) fn fork(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Bytes(bytes) => Some(Self::Bytes(bytes.clone())),
            Self::Factory(make) => Some(Self::Factory(make.clone())),
            _ => None,
        }
    }

    /// Returns the same body for another operation, or `None` if it can be sent only once.
    pub(super) fn try_clone(&self) -> Option<Self> {
        match self {
            #[cfg(feature = "stream")]
            Self::File(file) => Some(Self::File(file.reopened())),
            other => other.fork(),
        }
    }

    /// Returns whether there is nothing to send.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes().is_some_and(<[u8]>::is_empty)
    }

    /// Returns the bytes that a resume token compares, or `None` if they are not in memory.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Empty => Some(&[]),
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Returns the bytes without copying them, or `None` if they are not in memory.
    pub(super) fn kept(&self) -> Option<Bytes> {
        match self {
            Self::Empty => Some(Bytes::new()),
            Self::Bytes(bytes) => Some(bytes.clone()),
            _ => None,
        }
    }

    /// Returns the length, or `None` if it is known only when the body is made, or not at all.
    pub(super) fn length(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Bytes(bytes) => u64::try_from(bytes.len()).ok(),
            Self::Once(body) => body.as_ref().and_then(|body| body.size_hint().exact()),
            _ => None,
        }
    }

    /// Returns the body of the next attempt.
    ///
    /// # Errors
    ///
    /// The factory or the file failed, or the disk did not respond in time.
    #[cfg_attr(not(feature = "stream"), allow(unused_variables, reason = "only a file is waited for"))]
    pub(super) async fn next(&mut self, until: &mut SharedTimer<'_>) -> Result<Option<reqwest::Body>, BodyError> {
        match self {
            Self::Empty => Ok(None),
            Self::Bytes(bytes) => Ok(Some(bytes.clone().into())),
            Self::Once(body) => Ok(body.take()),
            Self::Factory(make) => make().map(Some).map_err(BodyError::Failed),
            #[cfg(feature = "stream")]
            Self::File(file) => match Box::pin(until.bound(file.open())).await {
                Ok(opened) => opened.map(Some).map_err(BodyError::Failed),
                Err(crate::clock::TimedOut) => Err(BodyError::TimedOut),
            },
        }
    }
}

/// Why there is no body to send.
#[derive(Debug)]
pub(super) enum BodyError {
    Failed(BoxError),
    #[cfg_attr(not(feature = "stream"), allow(dead_code, reason = "only a file is waited for"))]
    TimedOut,
}

impl From<Vec<u8>> for RequestBody {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl From<reqwest::Body> for RequestBody {
    fn from(mut body: reqwest::Body) -> Self {
        match body.as_bytes() {
            None => Self::Once(Some(body)),
            Some([]) => Self::Empty,
            // Its one frame is the bytes themselves: taken out this way they are not copied.
            Some(_) => match Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(Ok(frame))) => frame.into_data().map_or(Self::Empty, Self::Bytes),
                _ => Self::Once(Some(body)),
            },
        }
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Bytes(_) => "Bytes",
            Self::Once(_) => "Once",
            Self::Factory(_) => "Factory",
            #[cfg(feature = "stream")]
            Self::File(_) => "File",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_are_not_copied_and_streams_are_sent_once() {
        let timer = std::pin::pin!(crate::clock::timer(None));
        let mut until = SharedTimer::new(None, timer);
        let bytes = Bytes::from_static(b"hello");
        let mut kept = RequestBody::from(reqwest::Body::from(bytes.clone()));
        assert!(kept.is_replayable());
        assert_eq!(kept.bytes().map(<[u8]>::as_ptr), Some(bytes.as_ptr()));
        for _ in 0..3 {
            let body = kept.next(&mut until).await.unwrap();
            assert_eq!(body.as_ref().and_then(reqwest::Body::as_bytes), Some(&b"hello"[..]));
        }

        let mut stream = RequestBody::from(reqwest::Body::wrap(reqwest::Body::from("hello")));
        assert!(!stream.is_replayable() && stream.bytes().is_none());
        assert!(stream.next(&mut until).await.unwrap().is_some() && stream.next(&mut until).await.unwrap().is_none());

        assert!(matches!(RequestBody::from(reqwest::Body::from("")), RequestBody::Empty));
    }
}
