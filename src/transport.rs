//! The seam: the one place where a request leaves this crate.
//!
//! A plain client sends through reqwest. An adapter sends through a client that the user keeps, and
//! then less is known: that client may follow redirects or repeat requests unseen. A
//! [`TransportView`] says what is known, and [`Transport`] is what `attempt.rs` needs of either
//! way. Which one is used is decided at compile time, so the plain client pays nothing for the
//! other.

use std::fmt;
use std::future::Future;

use http::Method;
use reqwest::Url;

use super::send_clock::{self, TooLate};
use super::send_probe::SendProbe;
use super::transport_error;
use super::transport_view::TransportView;
use crate::error::{BoxError, Error, ErrorKind};
use crate::policy::Failure;
use crate::resume::SafeUrl;
use steadfast_core::deadline;

/// Sends requests.
pub(super) trait Transport: Copy {
    /// Why there is no response.
    type Error;

    /// Sends a request once. `own`: the reqwest client of the operation's client.
    fn send(
        self,
        own: &reqwest::Client,
        request: reqwest::Request,
    ) -> impl Future<Output = Result<reqwest::Response, Self::Error>> + use<Self>;

    /// Learns from the address of a response.
    fn check(self, view: &TransportView, sent_to: &Url, answered_from: &Url);

    /// Returns what a failure means.
    fn assess(self, error: Self::Error, probe: Option<&SendProbe>, view: &TransportView) -> SendError;
}

/// Why a request has no response.
pub(super) struct SendError {
    pub(super) failure: Failure,
    pub(super) timed_out: bool,
    pub(super) source: Option<BoxError>,
}

/// The reqwest client of the operation's client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own;

impl Transport for Own {
    type Error = reqwest::Error;

    fn send(
        self,
        own: &reqwest::Client,
        request: reqwest::Request,
    ) -> impl Future<Output = Result<reqwest::Response, reqwest::Error>> + use<> {
        own.execute(request)
    }

    fn check(self, view: &TransportView, sent_to: &Url, answered_from: &Url) {
        // The client that this crate has made follows nothing.
        if !view.is_as_made {
            view.check(sent_to, answered_from);
        }
    }

    fn assess(self, error: reqwest::Error, probe: Option<&SendProbe>, view: &TransportView) -> SendError {
        of_reqwest(error, probe, view)
    }
}

/// A client that the user keeps, behind a closure.
#[derive(Debug)]
pub(super) struct Through<'a, F>(pub(super) &'a F);

impl<F> Clone for Through<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for Through<'_, F> {}

impl<'a, F, R> Transport for Through<'a, F>
where
    F: Fn(reqwest::Request) -> R,
    R: Future<Output = Result<reqwest::Response, TransportError>>,
{
    type Error = TransportError;

    fn send(
        self,
        _: &reqwest::Client,
        request: reqwest::Request,
    ) -> impl Future<Output = Result<reqwest::Response, TransportError>> + use<'a, F, R> {
        let (method, url) = (request.method().clone(), SafeUrl(request.url()).to_string());
        let sending = (self.0)(request);
        // A loop of this crate below this one makes one attempt.
        deadline::nested(async move { sending.await.map_err(|error| error.about(&method, &url)) })
    }

    fn check(self, view: &TransportView, sent_to: &Url, answered_from: &Url) {
        view.check(sent_to, answered_from);
    }

    fn assess(self, error: TransportError, probe: Option<&SendProbe>, view: &TransportView) -> SendError {
        let word = |failure, source| SendError { failure, timed_out: false, source: Some(source) };
        match error.0 {
            Told::NotSent(source) => word(Failure::NotSent, source),
            Told::Unsure(source) => word(Failure::Unknown, source),
            Told::Reqwest(error) => of_reqwest(error, probe, view),
            Told::Ours(error) => {
                SendError { failure: of_nested(&error), timed_out: error.is_timeout(), source: Some(error.into()) }
            }
        }
    }
}

/// Returns what a failure of reqwest means.
fn of_reqwest(error: reqwest::Error, probe: Option<&SendProbe>, view: &TransportView) -> SendError {
    let failure = transport_error::of_transport(&error, probe, view.is_as_made);
    let is_timer = failure == Failure::Timeout && transport_error::is_timer(&error);
    let cut = if is_timer { send_clock::cut_by_transport(probe) } else { None };
    match cut {
        Some(late @ TooLate::Sending { .. }) => SendError::too_late(late, probe, view),
        _ => {
            let timed_out = error.is_timeout();
            SendError { failure, timed_out, source: Some(error.without_url().into()) }.seen_through(view)
        }
    }
}

impl SendError {
    /// A time limit of the client has passed.
    pub(super) fn too_late(late: TooLate, probe: Option<&SendProbe>, view: &TransportView) -> Self {
        let (failure, source) = match late {
            TooLate::NoResponse => (transport_error::of_timeout(probe), None),
            TooLate::Sending { failure, line } => (failure, Some(line.into())),
        };
        Self { failure, timed_out: true, source }.seen_through(view)
    }

    /// A client that may follow redirects unseen hides the first hop. A refused connection may then
    /// be that of a later hop, after the request was carried out.
    fn seen_through(mut self, view: &TransportView) -> Self {
        let is_upload = matches!(self.failure, Failure::UploadTimeout | Failure::UploadTooSlow);
        if view.is_opaque() && !is_upload {
            self.failure = Failure::Unknown;
        }
        self
    }
}

/// Returns what the error of a loop of this crate means that ran below this one.
fn of_nested(error: &Error) -> Failure {
    match error.kind() {
        _ if error.may_have_been_processed() => Failure::Unknown,
        ErrorKind::Build | ErrorKind::RequestBody | ErrorKind::KeyExpired | ErrorKind::AttemptHook => {
            Failure::InvalidRequest
        }
        // It was refused for good. Only the response itself would tell more.
        ErrorKind::Status | ErrorKind::Redirect => Failure::InvalidRequest,
        ErrorKind::Credentials => Failure::Credentials,
        ErrorKind::Certificate => Failure::Certificate,
        _ => Failure::NotSent,
    }
}

/// Returns whether an error is about the request with this method and this URL, without its query.
pub(crate) fn is_about(error: &Error, method: &Method, url: &str) -> bool {
    error.method() == Some(method) && error.url() == Some(url)
}

/// Why a transport of yours has no response: what the closure of
/// [`Client::execute_through`](crate::Client::execute_through) returns.
///
/// It says whether the server can have received the request. A client of reqwest never tells for
/// sure: it may have followed a redirect before a connection was refused. So a `reqwest::Error`
/// becomes [`unsure`](Self::unsure). An [`Error`] of this crate hands on its
/// [`may_have_been_processed`](crate::Error::may_have_been_processed), if it is about the same method
/// and URL. If another request fails in the closure, this one may have been sent.
///
/// ```
/// use steadfast::TransportError;
///
/// fn read(error: std::io::Error, was_connected: bool) -> TransportError {
///     if was_connected { TransportError::unsure(error) } else { TransportError::not_sent(error) }
/// }
/// ```
pub struct TransportError(Told);

enum Told {
    NotSent(BoxError),
    Unsure(BoxError),
    Reqwest(reqwest::Error),
    Ours(Error),
}

impl TransportError {
    /// States that nothing of the request has left this process. The client repeats it, whatever
    /// the method. A false statement can carry an operation out twice.
    #[must_use]
    pub fn not_sent(source: impl Into<BoxError>) -> Self {
        Self(Told::NotSent(source.into()))
    }

    /// States that the server may have received the request. The client repeats it only if acting
    /// twice is harmless. If in doubt, use this.
    #[must_use]
    pub fn unsure(source: impl Into<BoxError>) -> Self {
        Self(Told::Unsure(source.into()))
    }

    /// Takes the word "not processed" back if it is about another request, such as one that the
    /// closure has sent after this one.
    fn about(self, method: &Method, url: &str) -> Self {
        match self.0 {
            Told::Ours(error) if !is_about(&error, method, url) => Self::unsure(error),
            told => Self(told),
        }
    }

    fn inner(&self) -> &(dyn std::error::Error + 'static) {
        match &self.0 {
            Told::NotSent(source) | Told::Unsure(source) => source.as_ref(),
            Told::Reqwest(error) => error,
            Told::Ours(error) => error,
        }
    }
}

impl From<reqwest::Error> for TransportError {
    fn from(error: reqwest::Error) -> Self {
        Self(Told::Reqwest(error))
    }
}

impl From<Error> for TransportError {
    fn from(error: Error) -> Self {
        Self(Told::Ours(error))
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Told::NotSent(_) => "the request was not sent",
            Told::Unsure(_) | Told::Reqwest(_) => "no response, and the request may have been sent",
            Told::Ours(error) if !error.may_have_been_processed() => "the request was not processed",
            Told::Ours(_) => "no response, and the request may have been processed",
        })
    }
}

impl fmt::Debug for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}: {:?}", self.inner())
    }
}

impl std::error::Error for TransportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.inner())
    }
}
