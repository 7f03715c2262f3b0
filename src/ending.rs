//! Tells a complete response body from one that was cut off, and from one that does not go on.
//!
//! Over HTTP/2 a body ends with END_STREAM. hyper also ends one, without an error, at a RST_STREAM
//! or GOAWAY with the code NO_ERROR. RFC 9113 §8.1 lets a server stop an upload that way once it
//! has sent its *complete* response. But servers also do this when they give up in the middle of
//! one, as Node's `stream.destroy()` does. Half of `1200` would be the number 12.
//!
//! So this file checks the end: by the rest of the announced length, and by the body's
//! `is_end_stream`. Neither is known of a response that reqwest has decoded. There the end of the
//! compressed format must do.
//!
//! A body that is read after the operation has no time limit but the longest pause. reqwest's own
//! `read_timeout` cannot be that limit: it also counts while a request is sent and while its
//! response is awaited, so it would end long uploads and long polls.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use reqwest::ResponseBuilderExt as _;

use crate::clock;
use crate::error::BoxError;
use crate::journal::ShortDuration;

/// Whether a body's `is_end_stream` can be trusted.
const SEES_END: bool = !decoding::IS_COMPILED;

/// Makes the body of a response fail if it is cut off, where that can be told, or if it pauses for
/// longer than `read_timeout`. `has_body`: an announced length is that of the body.
pub(super) fn guard(response: reqwest::Response, has_body: bool, read_timeout: Option<Duration>) -> reqwest::Response {
    let length = response.content_length();
    if length == Some(0) {
        return response;
    }
    let checks_end = response.version() == Version::HTTP_2 && (SEES_END || (length.is_some() && has_body));
    let pause = read_timeout.filter(|_| has_body);
    if !checks_end && pause.is_none() {
        return response;
    }
    let (parts, body) = into_parts(response);
    let pause = pause.map(Pause::new);
    let guarded = Guarded { body, checks_end, pause, has_failed: false };
    http::Response::from_parts(parts, reqwest::Body::wrap(guarded)).into()
}

/// Returns whether a response was cut off, once its body has been read to what looks like its end.
/// Consumes what is left of the response.
pub(super) fn is_cut(response: &mut reqwest::Response, has_body: bool) -> bool {
    let left = response.content_length();
    if response.version() != Version::HTTP_2 || left == Some(0) {
        return false;
    }
    if !SEES_END {
        return left.is_some() && has_body;
    }
    // reqwest gives a body away only with the whole response.
    let response = std::mem::replace(response, http::Response::new(reqwest::Body::default()).into());
    !http::Response::<reqwest::Body>::from(response).body().is_end_stream()
}

/// The error of a body that was cut off.
pub(super) fn cut_error() -> BoxError {
    "the HTTP/2 stream was closed in the middle of the response body".into()
}

/// Returns whether an announced length is that of a body. A response to HEAD, a 204 and a 304 have
/// no body (RFC 9110 §8.6), and after a 101 the connection speaks another protocol.
pub(super) fn has_body(method: &Method, status: StatusCode) -> bool {
    let without_body = [StatusCode::SWITCHING_PROTOCOLS, StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED];
    *method != Method::HEAD && !without_body.contains(&status)
}

/// Takes a response apart. Parts and body can be put together again, because the URL is among the
/// extensions.
pub(super) fn into_parts(response: reqwest::Response) -> (http::response::Parts, reqwest::Body) {
    let url = response.url().clone();
    let (mut parts, body) = http::Response::<reqwest::Body>::from(response).into_parts();
    put_url(url, &mut parts);
    (parts, body)
}

/// Makes a response from this URL.
pub(super) fn with_url(
    url: reqwest::Url,
    mut parts: http::response::Parts,
    body: impl Into<reqwest::Body>,
) -> reqwest::Response {
    put_url(url, &mut parts);
    http::Response::from_parts(parts, body).into()
}

/// Puts the URL of a response among its extensions, where reqwest looks for it.
fn put_url(url: reqwest::Url, parts: &mut http::response::Parts) {
    // The builder is the only way to give a response its URL. It gets the extensions, since
    // creating others and moving them takes longer.
    let mut builder = http::Response::builder();
    if let Some(extensions) = builder.extensions_mut() {
        *extensions = std::mem::take(&mut parts.extensions);
    }
    let mut builder = builder.url(url);
    if let Some(extensions) = builder.extensions_mut() {
        parts.extensions = std::mem::take(extensions);
    }
}

/// A body that fails instead of ending if it was cut off, and instead of waiting for too long.
struct Guarded {
    body: reqwest::Body,
    checks_end: bool,
    pause: Option<Pause>,
    has_failed: bool,
}

impl Guarded {
    fn is_cut(&self) -> bool {
        if SEES_END { !self.body.is_end_stream() } else { self.body.size_hint().lower() > 0 }
    }
}

impl Body for Guarded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            let Some(error) = ready!(self.pause.as_mut().map_or(Poll::Pending, |pause| pause.poll_end(cx))) else {
                // It was polled again after that.
                return Poll::Ready(None);
            };
            self.has_failed = true;
            return Poll::Ready(Some(Err(error)));
        };
        if let Some(pause) = &mut self.pause {
            pause.is_running = false;
        }
        let is_cut = frame.is_none() && self.checks_end && !self.has_failed && self.is_cut();
        self.has_failed |= is_cut || matches!(frame, Some(Err(_)));
        Poll::Ready(if is_cut { Some(Err(cut_error())) } else { frame.map(|frame| frame.map_err(BoxError::from)) })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Limits the time in which somebody waits for a part of a body.
struct Pause {
    longest: Duration,
    /// Whether somebody waits.
    is_running: bool,
    has_ended: bool,
    /// Boxed, and created at the first wait: the bodies of most responses arrive with their head.
    timer: Option<Pin<Box<clock::Timer>>>,
}

impl Pause {
    fn new(longest: Duration) -> Self {
        Self { longest, is_running: false, has_ended: false, timer: None }
    }

    /// Waits for the end of the longest pause. Returns its error, or `None` if it has returned that
    /// before.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Option<BoxError>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        if !self.is_running {
            let Some(end) = clock::now().checked_add(self.longest) else { return Poll::Pending };
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(end.into()),
                None => self.timer = clock::timer(Some(end)).map(Box::pin),
            }
            self.is_running = true;
        }
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        ready!(timer.as_mut().poll(cx));
        self.has_ended = true;
        let text = format!("no byte of the response body for {}, the read_timeout", ShortDuration(self.longest));
        // reqwest recognises this kind as a timeout.
        Poll::Ready(Some(io::Error::new(io::ErrorKind::TimedOut, text).into()))
    }
}

/// Detects whether reqwest was compiled with a decompression feature, by this crate or by another
/// one of the build.
///
/// With such a feature every body goes through tower-http's decoder, even if it is not encoded. The
/// decoder's `is_end_stream` is never true (tower-http 0.6.11). reqwest has no API that lists its
/// features. But each of them adds a method to the builder, and a method of the type takes
/// precedence over a method of a trait.
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
    /// Only this crate's features bring reqwest's decoder into this build.
    #[test]
    fn compiled_decoder_is_detected() {
        let has_decoder = cfg!(any(feature = "gzip", feature = "brotli", feature = "zstd"));
        assert_eq!(super::decoding::IS_COMPILED, has_decoder);
    }
}
