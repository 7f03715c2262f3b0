//! The body of a request to the service: in memory if it is short, otherwise a stream.
//!
//! The bodies of other crates need not be `Sync`, as reqwest's are: kube's are not.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::super::request_body::RequestBody;
use super::super::response_body::Chunks;
use crate::error::BoxError;

/// Reads a body of this length into memory.
///
/// # Errors
///
/// The body failed, or it has another length than it told.
pub(super) async fn read_whole<B>(mut body: Pin<&mut B>, length: u64) -> Result<RequestBody, BoxError>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let (mut data, mut trailers) = (Chunks::default(), None);
    while !body.is_end_stream()
        && let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await
    {
        match bytes_of(frame.map_err(Into::into)?).into_data() {
            Ok(chunk) => data.push(chunk),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        if data.len() as u64 > length {
            return Err(format!("it told a length of {length} bytes, and has more").into());
        }
    }
    let data = data.into_bytes();
    if data.len() as u64 != length {
        return Err(format!("it told a length of {length} bytes, and ended after {}", data.len()).into());
    }
    Ok(match trailers {
        None if data.is_empty() => RequestBody::Empty,
        None => RequestBody::Bytes(data),
        Some(trailers) => RequestBody::factory(move || {
            Ok(reqwest::Body::wrap(WithTrailers { data: data.clone(), trailers: Some(trailers.clone()) }))
        }),
    })
}

fn bytes_of<D: Buf>(frame: Frame<D>) -> Frame<Bytes> {
    frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))
}

/// A body in memory that ends with trailers.
struct WithTrailers {
    data: Bytes,
    trailers: Option<HeaderMap>,
}

impl Body for WithTrailers {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let data = std::mem::take(&mut self.data);
        if !data.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.len() as u64)
    }
}

/// A body that is sent as it comes.
pub(super) struct Streamed<B> {
    // A mutex is `Sync` whatever it holds. It is never locked: only its owner reads the body.
    body: Mutex<Pin<Box<B>>>,
    size_hint: SizeHint,
    is_end_stream: bool,
}

impl<B: Body> Streamed<B> {
    pub(super) fn new(body: B) -> Self {
        let (size_hint, is_end_stream) = (body.size_hint(), body.is_end_stream());
        Self { body: Mutex::new(Box::pin(body)), size_hint, is_end_stream }
    }
}

impl<B> Body for Streamed<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let body = self.body.get_mut().unwrap_or_else(PoisonError::into_inner);
        let frame = ready!(body.as_mut().poll_frame(cx));
        let (size_hint, is_end_stream) = (body.size_hint(), body.is_end_stream());
        (self.size_hint, self.is_end_stream) = (size_hint, is_end_stream);
        Poll::Ready(frame.map(|frame| frame.map(bytes_of).map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.is_end_stream
    }

    fn size_hint(&self) -> SizeHint {
        self.size_hint
    }
}
