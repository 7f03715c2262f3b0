//! What a [`FaultServer`](super::FaultServer) does with one request: how it breaks, and at which
//! point.
//!
//! The effect of a fault depends on the progress of the request. So the two are separate: a
//! [`FaultPoint`] is the point, and a method of [`FaultStep`] is the fault.

use std::time::Duration;

use http::Method;

/// The point of an exchange at which a fault happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultPoint {
    /// The connection was accepted and nothing was read. On a connection in use: when the next
    /// request begins.
    OnAccept,
    /// This many bytes of the request were read. The request is not executed and not counted.
    ///
    /// HTTP/1.1: includes the head, and at least four. HTTP/2: bytes of the body, in whole frames.
    /// After a shorter request the server waits for the rest until the client gives up.
    AfterBytes(usize),
    /// The whole request was read, and not executed.
    BeforeExecuting,
    /// The request was executed, and no byte of the response was sent: the response is lost.
    AfterExecuting,
    /// The request was executed, and half of the response's head was sent.
    MidHead,
    /// The request was executed. The head and half of the body of a 200 were sent.
    MidBody,
}

/// The error code of an HTTP/2 stream reset (RFC 9113 §7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamError {
    /// `INTERNAL_ERROR`.
    Internal,
    /// `REFUSED_STREAM`: the server promises that it did not process the request (RFC 9113 §8.7).
    Refused,
    /// `CANCEL`.
    Cancel,
}

/// What the server does with one request: a response or a fault.
///
/// *Executing* stands for the effect that must not happen twice. The server only counts it: once
/// for each idempotency key, unless it [ignores keys](super::FaultServer::ignoring_keys).
///
/// ```
/// use std::time::Duration;
/// use steadfast_testing::{Answer, FaultPoint, FaultStep};
///
/// // Executed, but the client learns nothing.
/// let lost = FaultStep::close(FaultPoint::AfterExecuting);
/// // Not executed, and the server says when to come back.
/// let busy = FaultStep::answer(Answer::new(503).retry_after(1));
/// // Executed, and the response takes two seconds.
/// let slow = FaultStep::execute(Answer::new(201).delay(Duration::from_secs(2)));
/// // Executed; a repeat with the same key gets the first response.
/// let honest = FaultStep::ok();
/// ```
#[derive(Clone, Debug)]
pub struct FaultStep(pub(super) Kind);

#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// The response of a successful execution.
    Own,
    Answer {
        answer: Answer,
        execute: bool,
    },
    Break(FaultPoint, How),
    ResetStream(StreamError, FaultPoint),
    GoAway(FaultPoint),
}

impl Kind {
    /// The point of the fault, if this is one.
    pub(super) fn phase(&self) -> Option<FaultPoint> {
        match self {
            Self::Own | Self::Answer { .. } => None,
            Self::Break(phase, _) | Self::ResetStream(_, phase) | Self::GoAway(phase) => Some(*phase),
        }
    }

    /// Whether the request is executed.
    pub(super) fn executes(&self) -> bool {
        match self {
            Self::Own => true,
            Self::Answer { execute, .. } => *execute,
            _ => self.phase().is_some_and(FaultPoint::has_executed),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Close,
    Reset,
    Stall,
    Garbage,
}

impl FaultStep {
    /// Executes the request and responds 200 with the number of the execution, `{"execution":1}`.
    ///
    /// A key that was executed before gets the number of its first execution, with
    /// `Idempotent-Replayed: true`.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use steadfast::{Client, IdempotencyKey};
    /// use steadfast_testing::{FaultServer, FaultStep};
    ///
    /// let server = FaultServer::play([FaultStep::ok()]).await;
    /// let client = Client::new();
    /// let key = IdempotencyKey::mint().unwrap();
    /// for _ in 0..2 {
    ///     let request = client.post(server.url("/charges")).idempotency_key(key.clone());
    ///     assert_eq!(request.send().await.unwrap().text().await.unwrap(), r#"{"execution":1}"#);
    /// }
    /// assert_eq!(server.executions(), 1);
    /// # }
    /// ```
    #[must_use]
    pub fn ok() -> Self {
        Self(Kind::Own)
    }

    /// Executes the request and sends this response: an [`Answer`] or a status.
    #[must_use]
    pub fn execute(answer: impl Into<Answer>) -> Self {
        Self(Kind::Answer { answer: answer.into(), execute: true })
    }

    /// Sends this response, an [`Answer`] or a status, without executing the request.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use steadfast::Client;
    /// use steadfast_testing::{FaultServer, FaultStep};
    ///
    /// let server = FaultServer::play([FaultStep::answer(422)]).await;
    /// let response = Client::new().post(server.url("/charges")).send().await.unwrap();
    /// assert_eq!(response.status(), 422);
    /// assert_eq!(server.executions(), 0);
    /// # }
    /// ```
    #[must_use]
    pub fn answer(answer: impl Into<Answer>) -> Self {
        Self(Kind::Answer { answer: answer.into(), execute: false })
    }

    /// Closes the connection (FIN). If the socket holds unread bytes of the client, the operating
    /// system sends a reset instead.
    #[must_use]
    pub fn close(phase: FaultPoint) -> Self {
        Self(Kind::Break(phase, How::Close))
    }

    /// Resets the connection (RST). The client may lose bytes that were sent just before.
    #[must_use]
    pub fn reset(phase: FaultPoint) -> Self {
        Self(Kind::Break(phase, How::Reset))
    }

    /// Stops sending, and keeps the connection open until the client gives up.
    ///
    /// Before the request is whole, the server also stops reading, so it cannot see the client
    /// leave. It then keeps the connection until the server is dropped.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use std::time::Duration;
    /// use steadfast::{Client, ErrorKind};
    /// use steadfast_testing::{FaultPoint, FaultServer, FaultStep};
    ///
    /// let server = FaultServer::play([FaultStep::stall(FaultPoint::AfterExecuting)]).await;
    /// let client = Client::builder().attempt_timeout(Duration::from_millis(50)).build().unwrap();
    /// let error = client.post(server.url("/charges")).send().await.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Timeout);
    /// assert_eq!(server.executions(), 1, "the charge was made all the same");
    /// # }
    /// ```
    #[must_use]
    pub fn stall(phase: FaultPoint) -> Self {
        Self(Kind::Break(phase, How::Stall))
    }

    /// Executes the request, sends bytes that are not HTTP, and closes the connection.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use steadfast::Client;
    /// use steadfast_testing::{FaultServer, FaultStep};
    ///
    /// let server = FaultServer::play([FaultStep::garbage()]).await;
    /// let error = Client::new().post(server.url("/charges")).send().await.unwrap_err();
    /// assert!(error.may_have_been_processed());
    /// # }
    /// ```
    #[must_use]
    pub fn garbage() -> Self {
        Self(Kind::Break(FaultPoint::AfterExecuting, How::Garbage))
    }

    /// Resets the stream with `error` (HTTP/2). The connection stays open.
    ///
    /// The point is [`BeforeExecuting`](FaultPoint::BeforeExecuting),
    /// [`AfterExecuting`](FaultPoint::AfterExecuting) or [`MidBody`](FaultPoint::MidBody). Any
    /// other becomes the nearest of these. Over HTTP/1.1 the response is a 501 that gives this
    /// reason.
    #[must_use]
    pub fn reset_stream(error: StreamError, phase: FaultPoint) -> Self {
        Self(Kind::ResetStream(error, phase))
    }

    /// Resets the stream with `REFUSED_STREAM` (HTTP/2), without executing the request.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use steadfast::Client;
    /// use steadfast::reqwest::ClientBuilder;
    /// use steadfast_testing::{FaultServer, FaultStep};
    ///
    /// // The promise of the RFC makes the retry of a POST safe.
    /// let server = FaultServer::play([FaultStep::refuse_stream(), FaultStep::ok()]).await;
    /// let client = Client::builder().http(ClientBuilder::http2_prior_knowledge).build().unwrap();
    /// client.post(server.url("/charges")).send().await.unwrap();
    /// assert_eq!((server.received().len(), server.executions()), (2, 1));
    /// # }
    /// ```
    #[must_use]
    pub fn refuse_stream() -> Self {
        Self::reset_stream(StreamError::Refused, FaultPoint::BeforeExecuting)
    }

    /// Sends `GOAWAY` and closes the connection (HTTP/2).
    ///
    /// The frame names the last stream that may have been processed. Before executing, that is the
    /// stream before this one. From [`AfterExecuting`](FaultPoint::AfterExecuting) on, it is this
    /// one. If a higher stream was executed at the same time, the frame names that one, so it is
    /// always true.
    ///
    /// Over HTTP/1.1 the response is a 501 that gives this reason.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use steadfast::Client;
    /// use steadfast::reqwest::ClientBuilder;
    /// use steadfast_testing::{FaultPoint, FaultServer, FaultStep};
    ///
    /// // As at a reload of nginx: the stream of the POST is above the last one that was processed.
    /// let reload = FaultStep::go_away(FaultPoint::BeforeExecuting);
    /// let server = FaultServer::play([reload, FaultStep::ok()]).await;
    /// let client = Client::builder().http(ClientBuilder::http2_prior_knowledge).build().unwrap();
    /// client.post(server.url("/charges")).send().await.unwrap();
    /// assert_eq!(server.executions(), 1);
    /// # }
    /// ```
    #[must_use]
    pub fn go_away(phase: FaultPoint) -> Self {
        Self(Kind::GoAway(phase))
    }

    /// The fault, if it happens before the request is whole.
    pub(super) fn early(&self) -> Option<(Early, How)> {
        match self.0 {
            Kind::Break(FaultPoint::OnAccept, how) => Some((Early::OnAccept, how)),
            Kind::Break(FaultPoint::AfterBytes(bytes), how) => Some((Early::AfterBytes(bytes), how)),
            _ => None,
        }
    }
}

/// The points before a request is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Early {
    OnAccept,
    AfterBytes(usize),
}

impl FaultPoint {
    fn has_executed(self) -> bool {
        matches!(self, Self::AfterExecuting | Self::MidHead | Self::MidBody)
    }
}

/// A response of the [`FaultServer`](super::FaultServer), and how it is sent.
///
/// ```
/// use std::time::Duration;
/// use steadfast_testing::{Answer, FaultStep};
///
/// let created = Answer::new(201)
///     .header("location", "/charges/1")
///     .body(r#"{"id":"1"}"#)
///     .drip(Duration::from_millis(1));
/// let step = FaultStep::execute(created);
/// ```
#[derive(Clone, Debug)]
pub struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    pub(super) delay: Duration,
    pub(super) drip: Option<Duration>,
    pub(super) interim: Option<u16>,
    pub(super) length: Option<usize>,
    pub(super) echo_key: bool,
}

impl From<u16> for Answer {
    fn from(status: u16) -> Self {
        Self::new(status)
    }
}

impl Answer {
    /// Creates a response with this status and a JSON body that contains it, such as
    /// `{"status":503}`. It is sent at once.
    ///
    /// # Panics
    ///
    /// Panics if `status` is not a final one: below 200 or above 999.
    #[must_use]
    pub fn new(status: u16) -> Self {
        assert!((200..=999).contains(&status), "FaultServer: {status} is not a final status");
        Self {
            status,
            headers: Vec::new(),
            body: format!("{{\"status\":{status}}}").into_bytes(),
            delay: Duration::ZERO,
            drip: None,
            interim: None,
            length: None,
            echo_key: false,
        }
    }

    /// Adds a header, unchecked. HTTP/1.1 sends it as it is; HTTP/2 leaves out an invalid one.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Adds a `Retry-After`, in seconds.
    #[must_use]
    pub fn retry_after(self, seconds: u64) -> Self {
        self.header("retry-after", seconds.to_string())
    }

    /// Sets the body. Default: the status as JSON.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets the delay before the first byte of the response. An execution comes before the delay.
    /// Default: none.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sends the response byte by byte, with this pause after each. HTTP/2: only the body, in
    /// frames of one byte.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use std::time::Duration;
    /// use steadfast::Client;
    /// use steadfast_testing::{Answer, FaultServer, FaultStep};
    ///
    /// // Slow, but never silent for long: does a read timeout of 1 s let it pass?
    /// let slow = Answer::new(200).body("ok").drip(Duration::from_millis(1));
    /// let server = FaultServer::play([FaultStep::answer(slow)]).await;
    /// let response = Client::new().get(server.url("/")).send().await.unwrap();
    /// assert_eq!(response.text().await.unwrap(), "ok");
    /// # }
    /// ```
    #[must_use]
    pub fn drip(mut self, pause: Duration) -> Self {
        self.drip = Some(pause);
        self
    }

    /// Sends an interim response first: 100, 102 or 103 (RFC 9110 §15.2).
    #[must_use]
    pub fn interim(mut self, status: u16) -> Self {
        self.interim = Some(status);
        self
    }

    /// Sets a wrong `Content-Length`, and closes the connection after the body.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use steadfast::Client;
    /// use steadfast_testing::{Answer, FaultServer, FaultStep};
    ///
    /// // A truncated response: is it an error?
    /// let short = Answer::new(200).body("half").claiming_length(8);
    /// let server = FaultServer::play([FaultStep::answer(short)]).await;
    /// let response = Client::new().get(server.url("/")).send().await.unwrap();
    /// assert!(response.text().await.is_err());
    /// # }
    /// ```
    #[must_use]
    pub fn claiming_length(mut self, length: usize) -> Self {
        self.length = Some(length);
        self
    }

    /// Copies the request's key into an `Idempotency-Key` header of the response, as a proxy that
    /// reflects headers does. This is no sign that the API honours keys.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use steadfast::{Client, IdempotencyKey};
    /// use steadfast_testing::{Answer, FaultServer, FaultStep};
    ///
    /// let server = FaultServer::play([FaultStep::execute(Answer::new(201).echo_key())]).await;
    /// let key = IdempotencyKey::mint().unwrap();
    /// let request = Client::new().post(server.url("/charges")).idempotency_key(key.clone());
    /// let response = request.send().await.unwrap();
    /// let echoed = response.headers()["idempotency-key"].to_str().unwrap();
    /// assert!(echoed.contains(key.as_str()));
    /// # }
    /// ```
    #[must_use]
    pub fn echo_key(mut self) -> Self {
        self.echo_key = true;
        self
    }

    /// Whether the response has a body (RFC 9110 §6.4.1).
    pub(super) fn has_body(&self, method: &Method) -> bool {
        method != Method::HEAD && self.status != 204 && self.status != 304
    }
}
