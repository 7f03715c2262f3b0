//! The client as a tower service, for code that takes one as its transport.
//!
//! kube, octocrab and others build their requests themselves, and hand an `http::Request` to a
//! [`Service`] of yours. Here that request becomes an operation of the client, and goes through the
//! one loop as every other one does.

mod buffer;

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tower_service::Service;

use self::buffer::{Streamed, read_whole};
use super::request_body::RequestBody;
use super::{ending, request, target};
use crate::clock;
use crate::deadline::Deadline;
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::policy::Failure;
use crate::terms::RequestTerms;
use crate::{Client, RequestBuilder};

/// The longest request body that is kept in memory by default. linkerd2-proxy keeps as much.
const BUFFER: u64 = 64 * 1024;
/// Time that does not count: bodies that are in memory already are read in microseconds.
const TICK: Duration = Duration::from_millis(1);
const LATE: &str = "the request body was not complete in time";

/// The client as a tower [`Service`] of `http` types. [`Client::into_service`] creates it. Clones
/// are cheap, and share what the client's clones share.
///
/// It is the *last* service of a stack: it sends the request. Layers above it see one request and
/// one response for each operation, however many attempts that takes. Turn off the retries of the
/// client above, or attempts multiply: in object_store it is `RetryConfig::max_retries`. Below
/// [`execute_through`](Client::execute_through) the service makes one attempt.
///
/// # What it takes
///
/// * **URI**: an absolute one, or one that the client appends to its
///   [`base_url`](crate::ClientBuilder::base_url). The HTTP version of the request is not looked
///   at: the connection decides.
/// * **Body**: any [`Body`] that is `Send`. One that tells its exact length, of at most 64 KiB, is
///   read into memory first, so that it can be sent again. [`buffer_up_to`](Self::buffer_up_to)
///   raises the limit. Any other body is streamed, and allows one attempt: instead of a second one
///   the operation stops with
///   [`BodyNotReplayable`](crate::policy::StopReason::BodyNotReplayable).
/// * **Key**: a key in the request's header is the operation's key. Otherwise the
///   [`KeyPolicy`](crate::KeyPolicy) decides.
/// * **[`RequestTerms`]** in the request's extensions: its key, its timeouts, and whether a repeat is
///   harmless. Other extensions have no effect.
///
/// # What it returns
///
/// The final response, whatever its status. Its body is a stream with the trailers of the server's
/// response. The extensions have the [`OperationReport`](crate::OperationReport). After a `101` you
/// take over the connection with `hyper::upgrade::on`.
///
/// No pause in the body is too long, unless you set
/// [`read_timeout`](crate::ClientBuilder::read_timeout): a watch may be silent for hours.
///
/// If you need the methods of [`ResponseExt`](crate::ResponseExt), convert the response:
/// `reqwest::Response::from(response)`.
///
/// # Readiness
///
/// It is always ready, because it has no queue of its own. If you want to bound the number of
/// requests in flight, put tower's `ConcurrencyLimit` above it. `poll_ready` fails only if the
/// client [could not be built](Client::new). That error is permanent, and `call` returns it too.
///
/// # Errors
///
/// Those of [`RequestBuilder::send`], and of the body:
///
/// * [`ErrorKind::Build`]: the URI is relative and there is no `base_url`, the key in the header is
///   malformed, or a term is invalid. Nothing was sent.
/// * [`ErrorKind::RequestBody`]: the body failed, or it has not the length that it told.
/// * [`ErrorKind::Timeout`]: also if the body was not in memory before the operation's timeout.
///
/// # Example
///
/// kube's `Client::new(service, "default")` and octocrab's `with_service(service)` take it as it
/// is. By hand:
///
/// ```no_run
/// use http_body_util::{BodyExt, Full};
/// use steadfast::http::Request;
/// use steadfast::{Client, KeyPolicy, OperationReport};
/// use tower_service::Service;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::builder()
///     .base_url("https://api.example.com/v1")
///     .keys(KeyPolicy::standard()) // you state: this API honours idempotency keys
///     .build()?;
/// let mut service = client.into_service();
/// let request: Request<Full<bytes::Bytes>> = Request::post("/charges").body("12 EUR".into())?;
/// let response = service.call(request).await?; // it is always ready
/// if let Some(report) = response.extensions().get::<OperationReport>() {
///     println!("{} after {} attempts", response.status(), report.attempts().len());
/// }
/// let charge = response.into_body().collect().await?.to_bytes();
/// # drop(charge);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ClientService {
    client: Client,
    buffer: u64,
}

impl Client {
    /// Returns the client as a tower service of `http` types, for kube, octocrab and other code that
    /// takes one as its transport.
    ///
    /// ```
    /// use steadfast::{Client, ClientService};
    ///
    /// # fn example() -> steadfast::Result<()> {
    /// let client = Client::builder().base_url("https://api.example.com").build()?;
    /// let service: ClientService = client.clone().into_service();
    /// # drop(service);
    /// # Ok(())
    /// # }
    /// # example().unwrap();
    /// ```
    #[must_use]
    pub fn into_service(self) -> ClientService {
        ClientService { client: self, buffer: BUFFER }
    }
}

impl ClientService {
    /// Sets the longest request body that is read into memory, in bytes, so that it can be sent
    /// again. Default: 65,536.
    ///
    /// The body must tell its exact length. One whose length is not known is always streamed.
    ///
    /// ```
    /// let client = steadfast::Client::new();
    /// let service = client.into_service().buffer_up_to(4 << 20); // parts of an upload
    /// ```
    #[must_use]
    pub fn buffer_up_to(self, bytes: u64) -> Self {
        Self { buffer: bytes, ..self }
    }

    async fn send<B>(self, request: http::Request<B>) -> Result<http::Response<ResponseBody>>
    where
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        let builder = self.builder(parts)?;
        let builder = if body.is_end_stream() { builder } else { self.with_body(builder, body).await? };
        let (parts, body) = ending::into_parts(builder.send().await?);
        Ok(http::Response::from_parts(parts, ResponseBody { body }))
    }

    /// Returns a builder of the request, without its body.
    fn builder(&self, mut parts: http::request::Parts) -> Result<RequestBuilder> {
        let inner = self.client.inner()?;
        let url = target::resolve(inner.base.as_ref(), &parts.uri.to_string())?;
        let bare = request::bare(&inner.http, parts.method, url)?;
        let builder = RequestBuilder::new(self.client.clone(), Ok(bare)).headers(parts.headers).leaving_pauses();
        match parts.extensions.remove::<RequestTerms>() {
            Some(terms) => Ok(builder.terms(terms)),
            None => Ok(builder),
        }
    }

    async fn with_body<B>(&self, builder: RequestBuilder, body: B) -> Result<RequestBuilder>
    where
        B: Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let length = body.size_hint().exact().filter(|length| *length <= self.buffer);
        let Some(length) = length else {
            let streamed = reqwest::Body::wrap(Streamed::new(body));
            return Ok(builder.request_body(RequestBody::Once(Some(streamed))));
        };
        let started = clock::now();
        let own_limit = builder.time_limit().map_err(|error| builder.locate(error))?;
        let own_end = own_limit.and_then(|limit| started.checked_add(limit));
        let until = clock::earlier(own_end, Deadline::current().map(Deadline::instant));
        let body = match clock::until(until, read_whole(pin!(body), length)).await {
            Ok(Ok(body)) => body,
            Ok(Err(error)) => {
                let failed = Error::new(ErrorKind::RequestBody, Failure::RequestBody.as_str());
                return Err(builder.locate(failed.with_source(error)));
            }
            Err(clock::TimedOut) => return Err(builder.locate(Error::new(ErrorKind::Timeout, LATE))),
        };
        let builder = builder.request_body(body);
        let took = clock::now().saturating_duration_since(started);
        match own_limit {
            Some(limit) if took >= TICK => Ok(builder.timeout(limit.saturating_sub(took).max(TICK))),
            _ => Ok(builder),
        }
    }
}

impl<B> Service<http::Request<B>> for ClientService
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = http::Response<ResponseBody>;
    type Error = Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(self.client.inner().map(|_| ()))
    }

    fn call(&mut self, request: http::Request<B>) -> ResponseFuture {
        ResponseFuture { sending: Box::pin(self.clone().send(request)) }
    }
}

impl fmt::Debug for ClientService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientService").field("client", &self.client).field("buffer", &self.buffer).finish()
    }
}

/// The operation of one request to a [`ClientService`]. Nothing is sent before you poll it. Dropping
/// it ends the operation.
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture {
    sending: Pin<Box<dyn Future<Output = Result<http::Response<ResponseBody>>> + Send>>,
}

impl Future for ResponseFuture {
    type Output = Result<http::Response<ResponseBody>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.sending.as_mut().poll(cx)
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// The body of a response from a [`ClientService`]: a stream, with the trailers of the response.
///
/// You read it after the operation has ended, as with [`RequestBuilder::send`]. A failure in it is
/// not retried. A body that is cut off ends in an error. It converts into reqwest's.
pub struct ResponseBody {
    body: reqwest::Body,
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl From<ResponseBody> for reqwest::Body {
    fn from(body: ResponseBody) -> Self {
        body.body
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;
    use crate::ClientBuilder;
    use crate::policy::RetryPolicy;

    fn request(terms: Option<RequestTerms>) -> http::Request<Full<Bytes>> {
        let mut request = http::Request::get("http://127.0.0.1:9/").body(Full::default()).unwrap();
        terms.map(|terms| request.extensions_mut().insert(terms));
        request
    }

    #[test]
    fn client_that_was_not_built_fails_at_both_steps() {
        let mut service = Client::unbuilt("no TLS").into_service();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let ready = Service::<http::Request<Full<Bytes>>>::poll_ready(&mut service, &mut cx);
        let Poll::Ready(Err(error)) = ready else { panic!("{ready:?}") };
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Build, "no TLS (nothing was sent)"));
        let Poll::Ready(Err(error)) = pin!(service.call(request(None))).poll(&mut cx) else { panic!("it was sent") };
        assert!(error.is_build(), "{error}");
        let mut service = Client::new().into_service();
        assert!(Service::<http::Request<Full<Bytes>>>::poll_ready(&mut service, &mut cx).is_ready());
    }

    /// The longest pause of a response's body, in seconds.
    fn check_pause(builder: ClientBuilder, terms: Option<RequestTerms>) -> Option<u64> {
        let service = builder.build().unwrap().into_service();
        let mut builder = service.builder(request(terms).into_parts().0).unwrap();
        let (context, _) = builder.begin(false, None).unwrap();
        context.read_timeout().map(Duration::as_secs)
    }

    #[test]
    fn only_a_read_timeout_of_yours_limits_pauses() {
        let second = RequestTerms::new().read_timeout(Duration::from_secs(1));
        assert_eq!(check_pause(Client::builder(), None), None);
        assert_eq!(check_pause(Client::builder().read_timeout(Duration::from_secs(7)), None), Some(7));
        assert_eq!(check_pause(Client::builder(), Some(second.clone())), Some(1));
        assert_eq!(check_pause(Client::builder().read_timeout(None), Some(second)), Some(1));
    }

    #[test]
    fn time_limit_of_the_body_is_that_of_the_operation() {
        let seconds = Duration::from_secs;
        let check = |terms: RequestTerms| {
            let service = Client::builder().timeout(seconds(9)).build().unwrap().into_service();
            let mut builder = service.builder(request(Some(terms)).into_parts().0).unwrap();
            let limit = builder.time_limit().unwrap();
            let (context, _) = builder.begin(false, None).unwrap();
            assert_eq!(limit, context.policy().deadline.duration());
            limit
        };
        let policy = RetryPolicy::new();
        assert_eq!(check(RequestTerms::new()), Some(seconds(9)));
        assert_eq!(check(RequestTerms::new().retry(policy.clone())), Some(seconds(9)));
        assert_eq!(check(RequestTerms::new().retry(policy.clone().deadline(seconds(5)))), Some(seconds(5)));
        assert_eq!(check(RequestTerms::new().retry(policy.deadline(seconds(5))).timeout(seconds(3))), Some(seconds(3)));
        assert_eq!(check(RequestTerms::new().timeout(None)), None);
    }
}
