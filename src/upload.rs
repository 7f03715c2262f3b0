//! Request bodies that each attempt opens again: a file, and a multipart form.
//!
//! A later attempt must send the bytes of the first one. If a file's length has changed in between,
//! that is an error and never a short upload. A form keeps the boundary of the first attempt, so
//! that a server which compares bodies sees the same one.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::error::BoxError;

#[cfg(feature = "stream")]
pub(super) use self::file::File;
#[cfg(feature = "multipart")]
pub(super) use self::form::FormFactory;

#[cfg(feature = "stream")]
mod file {
    use std::io;
    use std::path::PathBuf;

    use tokio::io::{AsyncRead, ReadBuf};

    use super::{Body, BoxError, Bytes, Context, Frame, Pin, Poll, SizeHint, ready};

    /// Maximum number of bytes that are read at a time.
    const CHUNK: usize = 64 * 1024;

    /// A file, and its length at the first attempt.
    pub(crate) struct File {
        path: PathBuf,
        length: Option<u64>,
    }

    impl File {
        pub(crate) fn new(path: PathBuf) -> Self {
            Self { path, length: None }
        }

        /// Returns the same file for another operation, which finds out its length anew.
        pub(crate) fn reopened(&self) -> Self {
            Self::new(self.path.clone())
        }

        pub(crate) async fn open(&mut self) -> Result<reqwest::Body, BoxError> {
            // The length of a pipe reads as zero, and opening it may block for ever.
            if !tokio::fs::metadata(&self.path).await?.is_file() {
                return Err("it is not a regular file, so its length is not known".into());
            }
            let file = tokio::fs::File::open(&self.path).await?;
            let now = file.metadata().await?.len();
            let first = *self.length.get_or_insert(now);
            if now != first {
                return Err(format!("the file had {first} bytes at the first attempt and has {now} now").into());
            }
            let buffer = vec![0; CHUNK.min(usize::try_from(first).unwrap_or(CHUNK))];
            Ok(reqwest::Body::wrap(Reading { file, left: first, buffer }))
        }
    }

    struct Reading {
        file: tokio::fs::File,
        left: u64,
        buffer: Vec<u8>,
    }

    impl Body for Reading {
        type Data = Bytes;
        type Error = io::Error;

        fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
            let Self { file, left, buffer } = self.get_mut();
            if *left == 0 {
                return Poll::Ready(None);
            }
            let most = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            let mut read = ReadBuf::new(buffer.get_mut(..most).unwrap_or_default());
            ready!(Pin::new(file).poll_read(cx, &mut read))?;
            let chunk = Bytes::copy_from_slice(read.filled());
            if chunk.is_empty() {
                let short = io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was sent");
                return Poll::Ready(Some(Err(short)));
            }
            *left = left.saturating_sub(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
            Poll::Ready(Some(Ok(Frame::data(chunk))))
        }

        fn is_end_stream(&self) -> bool {
            self.left == 0
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.left)
        }
    }
}

#[cfg(feature = "multipart")]
mod form {
    use http::HeaderValue;
    use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
    use reqwest::multipart::Form;

    use super::{Body, BoxError, Bytes, Context, Frame, Pin, Poll, SizeHint, ready};

    /// A form that is made for each attempt, with the boundary of the first one.
    pub(crate) struct FormFactory<F> {
        http: reqwest::Client,
        make: F,
        boundary: String,
    }

    impl<F: Fn() -> Form> FormFactory<F> {
        /// Makes one form for its boundary, and returns the content type with that boundary.
        pub(crate) fn new(http: reqwest::Client, make: F) -> Result<(Self, HeaderValue), BoxError> {
            let boundary = make().boundary().to_owned();
            let content_type = HeaderValue::try_from(format!("multipart/form-data; boundary={boundary}"))?;
            Ok((Self { http, make, boundary }, content_type))
        }

        pub(crate) fn body(&self) -> Result<reqwest::Body, BoxError> {
            let form = (self.make)();
            let own = form.boundary().to_owned();
            if own.len() != self.boundary.len() {
                return Err("a form's boundary has another length than the first attempt's".into());
            }
            // Only reqwest can write a form. The address is never used.
            let mut built =
                self.http.post("http://localhost").multipart(form).build().map_err(reqwest::Error::without_url)?;
            let length = built.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
            let is_announced = built
                .headers()
                .get(CONTENT_TYPE)
                .is_some_and(|value| value.to_str().is_ok_and(|value| value.ends_with(&own)));
            let form = built.body_mut().take().filter(|_| is_announced).ok_or("the form has no body")?;
            let boundary = self.boundary.clone();
            Ok(reqwest::Body::wrap(WithBoundary { form, own, boundary, length, has_begun: false }))
        }
    }

    /// The stream of a form, with its boundary replaced. Boundary lines come as frames of their
    /// own.
    struct WithBoundary {
        form: reqwest::Body,
        own: String,
        boundary: String,
        length: Option<u64>,
        has_begun: bool,
    }

    impl WithBoundary {
        fn replace_boundary(&mut self, chunk: Bytes) -> Result<Bytes, BoxError> {
            let delimiter = chunk.strip_prefix(b"--").and_then(|rest| rest.strip_prefix(self.own.as_bytes()));
            let first = !std::mem::replace(&mut self.has_begun, true);
            match delimiter {
                Some(rest) => Ok([b"--", self.boundary.as_bytes(), rest].concat().into()),
                // The server could not parse such an upload.
                None if first => Err("the form does not begin with its boundary".into()),
                None => Ok(chunk),
            }
        }
    }

    impl Body for WithBoundary {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            let frame = ready!(Pin::new(&mut self.form).poll_frame(cx));
            let replaced = frame.map(|frame| match frame?.into_data() {
                Ok(chunk) => self.replace_boundary(chunk).map(Frame::data),
                Err(trailers) => Ok(trailers),
            });
            Poll::Ready(replaced)
        }

        fn is_end_stream(&self) -> bool {
            self.form.is_end_stream()
        }

        fn size_hint(&self) -> SizeHint {
            self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
        }
    }
}
