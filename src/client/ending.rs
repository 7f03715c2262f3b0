//! Whether the body of an answer has ended, or was only cut off.
//!
//! Over HTTP/2 a body ends with END_STREAM. hyper also ends one, without an error, at a RST_STREAM
//! or GOAWAY whose code is NO_ERROR: RFC 9113 §8.1 lets a server that has answered *whole* stop the
//! rest of an upload that way. But servers send the same when they give up in the middle of an
//! answer; Node's `stream.destroy()` does. Half of `1200` would be the number 12.
//!
//! So the end is checked. What is left of the announced length tells it, and so does the body
//! itself (`is_end_stream`). Neither is known of an answer that reqwest has decoded; there the
//! format's own end has to do.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Method, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use reqwest::ResponseBuilderExt as _;

use crate::error::BoxError;

/// Whether a body's `is_end_stream` can be believed.
const SEES_END: bool = !decoding::IS_COMPILED;

/// The answer with a body that fails where it is cut off, if anything can tell that. `has_body`: the
/// length that it announces is that of its body.
pub(super) fn checked(response: reqwest::Response, has_body: bool) -> reqwest::Response {
    let length = response.content_length();
    let can_tell = SEES_END || (length.is_some() && has_body);
    if response.version() != Version::HTTP_2 || length == Some(0) || !can_tell {
        return response;
    }
    let (parts, body) = apart(response);
    http::Response::from_parts(parts, reqwest::Body::wrap(Checked { body, has_failed: false })).into()
}

/// Whether the answer, whose body has been read to what looks like its end, was cut off. Nothing is
/// left of the response afterwards.
pub(super) fn is_cut(response: &mut reqwest::Response, has_body: bool) -> bool {
    let left = response.content_length();
    if response.version() != Version::HTTP_2 || left == Some(0) {
        return false;
    }
    if !SEES_END {
        return left.is_some() && has_body;
    }
    // Only a response that is taken apart gives its body away.
    let response = std::mem::replace(response, http::Response::new(reqwest::Body::default()).into());
    !http::Response::<reqwest::Body>::from(response).body().is_end_stream()
}

/// Why an answer is not whole.
pub(super) fn cut_short() -> BoxError {
    "the HTTP/2 stream was closed in the middle of the answer's body".into()
}

/// Whether an announced length is that of a body: an answer to HEAD, a 204 and a 304 have none
/// (RFC 9110 §8.6).
pub(super) fn has_body(asked: &Method, status: StatusCode) -> bool {
    *asked != Method::HEAD && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// The parts of a response, its URL among the extensions: put together again they are the same
/// response.
pub(super) fn apart(response: reqwest::Response) -> (http::response::Parts, reqwest::Body) {
    let url = response.url().clone();
    let (mut parts, body) = http::Response::<reqwest::Body>::from(response).into_parts();
    // The builder is the only way to give a response its URL.
    if let Some(with_url) = http::Response::builder().url(url).extensions_mut() {
        parts.extensions.extend(std::mem::take(with_url));
    }
    (parts, body)
}

/// Fails instead of ending if it was cut off.
struct Checked {
    body: reqwest::Body,
    has_failed: bool,
}

impl Checked {
    fn is_cut(&self) -> bool {
        if SEES_END { !self.body.is_end_stream() } else { self.body.size_hint().lower() > 0 }
    }
}

impl Body for Checked {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let is_cut = frame.is_none() && !self.has_failed && self.is_cut();
        self.has_failed |= is_cut || matches!(frame, Some(Err(_)));
        Poll::Ready(if is_cut { Some(Err(cut_short())) } else { frame.map(|frame| frame.map_err(BoxError::from)) })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whether reqwest was compiled with a decompression feature, by this crate or by another one of
/// the build.
///
/// With one of them every body goes through tower-http's decoder, even if it is not encoded, and
/// the decoder says to the end that it has not ended (`is_end_stream` of tower-http 0.6.11).
/// reqwest does not tell which of its features are on. But each of them has a method of its own on
/// the builder, and a method of the type itself comes before one of a trait.
#[allow(dead_code, reason = "the methods of the trait are used only where reqwest has none of the same name")]
mod decoding {
    use reqwest::ClientBuilder;

    pub(super) const IS_COMPILED: bool = is_own(ClientBuilder::gzip)
        || is_own(ClientBuilder::brotli)
        || is_own(ClientBuilder::zstd)
        || is_own(ClientBuilder::deflate);

    struct Missing;

    trait Decoders: Sized {
        fn gzip(self, _: bool) -> Missing {
            Missing
        }
        fn brotli(self, _: bool) -> Missing {
            Missing
        }
        fn zstd(self, _: bool) -> Missing {
            Missing
        }
        fn deflate(self, _: bool) -> Missing {
            Missing
        }
    }

    impl Decoders for ClientBuilder {}

    trait Returned {
        const IS_OWN: bool;
    }

    impl Returned for ClientBuilder {
        const IS_OWN: bool = true;
    }

    impl Returned for Missing {
        const IS_OWN: bool = false;
    }

    const fn is_own<R: Returned>(_: fn(ClientBuilder, bool) -> R) -> bool {
        R::IS_OWN
    }
}

#[cfg(test)]
mod tests {
    /// The features of this crate that bring reqwest's decoder along are all that does in this
    /// build.
    #[test]
    fn a_decoder_is_known_to_be_compiled() {
        let has_decoder = cfg!(any(feature = "gzip", feature = "brotli", feature = "zstd"));
        assert_eq!(super::decoding::IS_COMPILED, has_decoder);
    }
}
