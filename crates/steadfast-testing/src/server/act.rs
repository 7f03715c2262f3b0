//! What a [`FaultServer`](super::FaultServer) does with one request: how it breaks, and at which point.
//!
//! What a fault means depends on how far the request had got, so the two are told apart: a
//! [`FaultPoint`] is the point, and the verb is the way.

use std::time::Duration;

use http::Method;

/// The point of an exchange at which something breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultPoint {
    /// The connection is there and nothing was read. On a connection that is already in use: as the next request begins.
    OnAccept,
    /// So many bytes of the request were read (HTTP/1.1: its head included, and four at least; HTTP/2: of its body, in whole frames).
    /// Not executed, and not counted as a request. After a shorter request the rest is waited for until the client gives up.
    AfterBytes(usize),
    /// The whole request was read, and nothing was done.
    BeforeExecuting,
    /// The request was executed, and nothing was said: the answer is lost.
    AfterExecuting,
    /// Executed, and half of the answer's head was sent.
    MidHead,
    /// Executed, and the head and half of the body of a 200 were sent.
    MidBody,
}

/// Why an HTTP/2 stream is reset (RFC 9113 §7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamError {
    /// `INTERNAL_ERROR`.
    Internal,
    /// `REFUSED_STREAM`: by the RFC a promise that nothing was done (§8.7).
    Refused,
    /// `CANCEL`.
    Cancel,
}

/// What the server does with one request.
///
/// *Executing* is the thing that must not happen twice: the server does nothing but count it, once per idempotency key unless it
/// [ignores keys](super::FaultServer::ignoring_keys).
#[derive(Clone, Debug)]
pub struct FaultStep(pub(super) Kind);

#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// The operation's own answer.
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
    /// Where it breaks off, if it does.
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
    /// Executes, and answers 200 with the number of the execution, `{"execution":1}`. For a key that was executed before it is the
    /// first number again, with `Idempotent-Replayed: true`.
    #[must_use]
    pub fn ok() -> Self {
        Self(Kind::Own)
    }

    /// Executes, and gives this answer: an [`Answer`], or a status.
    #[must_use]
    pub fn execute(answer: impl Into<Answer>) -> Self {
        Self(Kind::Answer { answer: answer.into(), execute: true })
    }

    /// Gives this answer, and does not execute.
    #[must_use]
    pub fn answer(answer: impl Into<Answer>) -> Self {
        Self(Kind::Answer { answer: answer.into(), execute: false })
    }

    /// Closes the connection (FIN). Where bytes of the client lie unread, the operating system makes a reset of it.
    #[must_use]
    pub fn close(phase: FaultPoint) -> Self {
        Self(Kind::Break(phase, How::Close))
    }

    /// Resets the connection (RST). What was sent just before may be lost to the client.
    #[must_use]
    pub fn reset(phase: FaultPoint) -> Self {
        Self(Kind::Break(phase, How::Reset))
    }

    /// Says nothing more, and keeps the connection until the client gives up. Before the request is whole it also reads nothing more,
    /// and cannot see the client go: then the connection is kept until the server is dropped.
    #[must_use]
    pub fn stall(phase: FaultPoint) -> Self {
        Self(Kind::Break(phase, How::Stall))
    }

    /// Executes, sends bytes that are not HTTP, and closes.
    #[must_use]
    pub fn garbage() -> Self {
        Self(Kind::Break(FaultPoint::AfterExecuting, How::Garbage))
    }

    /// HTTP/2: resets the stream with `error`, at [`BeforeExecuting`](FaultPoint::BeforeExecuting), at
    /// [`AfterExecuting`](FaultPoint::AfterExecuting), or at [`MidBody`](FaultPoint::MidBody); other phases are taken as the nearest of these.
    /// The connection lives on. Over HTTP/1.1 it is answered 501, and the answer says why.
    #[must_use]
    pub fn reset_stream(error: StreamError, phase: FaultPoint) -> Self {
        Self(Kind::ResetStream(error, phase))
    }

    /// HTTP/2: `REFUSED_STREAM`, nothing executed.
    #[must_use]
    pub fn refuse_stream() -> Self {
        Self::reset_stream(StreamError::Refused, FaultPoint::BeforeExecuting)
    }

    /// HTTP/2: `GOAWAY`, and then the connection is closed. It names the last stream that may have
    /// been processed: before executing, the one before this; from
    /// [`AfterExecuting`](FaultPoint::AfterExecuting) on, this one; in either case a higher one, if
    /// that was executed at the same time, because a server does not lie here. Over HTTP/1.1 it is
    /// answered 501, and the answer says why.
    #[must_use]
    pub fn go_away(phase: FaultPoint) -> Self {
        Self(Kind::GoAway(phase))
    }

    /// Where it breaks before the request is whole.
    pub(super) fn early(&self) -> Option<(Early, How)> {
        match self.0 {
            Kind::Break(FaultPoint::OnAccept, how) => Some((Early::OnAccept, how)),
            Kind::Break(FaultPoint::AfterBytes(bytes), how) => Some((Early::AfterBytes(bytes), how)),
            _ => None,
        }
    }
}

/// The phases of a request that is not whole.
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

/// An answer, and how it travels.
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
    /// An answer of this status, at once, with `{"status":503}` (its own status) as JSON.
    ///
    /// # Panics
    ///
    /// If it is no final status: below 200, or above 999.
    #[must_use]
    pub fn new(status: u16) -> Self {
        assert!((200..=999).contains(&status), "FaultServer: {status} is no final status");
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

    /// Adds a header, unchecked: over HTTP/1.1 it goes out as it is, over HTTP/2 what is no header is left out.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Adds a `Retry-After` of so many seconds.
    #[must_use]
    pub fn retry_after(self, seconds: u64) -> Self {
        self.header("retry-after", seconds.to_string())
    }

    /// The body, instead of the status in JSON.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Waits before the answer's first byte; what is executed has been executed by then.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sends it byte by byte, with such a pause after each (HTTP/2: the body alone, in frames of one byte).
    #[must_use]
    pub fn drip(mut self, pause: Duration) -> Self {
        self.drip = Some(pause);
        self
    }

    /// Sends an interim answer first: 100, 102 or 103 (RFC 9110 §15.2).
    #[must_use]
    pub fn interim(mut self, status: u16) -> Self {
        self.interim = Some(status);
        self
    }

    /// Claims a wrong `Content-Length`, and closes after the body.
    #[must_use]
    pub fn claiming_length(mut self, length: usize) -> Self {
        self.length = Some(length);
        self
    }

    /// Repeats the request's key in an `Idempotency-Key` of the answer, as a proxy that reflects
    /// headers does. It is no sign that the API honours keys.
    #[must_use]
    pub fn echo_key(mut self) -> Self {
        self.echo_key = true;
        self
    }

    /// Whether it has a body (RFC 9110 §6.4.1).
    pub(super) fn has_body(&self, method: &Method) -> bool {
        method != Method::HEAD && self.status != 204 && self.status != 304
    }
}
