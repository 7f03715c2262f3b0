//! An answer instead of "may have been processed": after an attempt whose outcome is unknown, the
//! client asks a read of the user's whether the server has acted.
//!
//! Most APIs honour no keys, so nothing licenses a repeat there. But many can be asked: by a
//! reference, a list or a natural key. The order is: ask, wait, ask again, repeat. A server may
//! still work on a request whose client has given up. So "not applied" licenses a repeat only if
//! the question was asked after the settling time.

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method};

use super::attempt_result::AttemptResponse;
use super::ending;
use super::response_body::{self, ReadLimits, ReadMode};
use crate::Client;
use crate::clock::{self, SharedTimer};
use crate::deadline::{confirming, with_deadline};
use crate::error::BoxError;
use crate::key::IdempotencyKey;
use crate::resume::without_queries;

type Answer = Result<Confirmation, BoxError>;
type Ask = dyn Fn(Unconfirmed) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync;

/// What your read says about an operation whose outcome is unknown.
///
/// ```
/// use steadfast::{Confirmation, http};
///
/// /// A list of charges with this reference, as JSON.
/// fn read(found: Option<&serde_json::Value>) -> Confirmation {
///     match found {
///         Some(charge) => Confirmation::applied(http::Response::new(charge.to_string())),
///         None => Confirmation::NotApplied,
///     }
/// }
/// assert!(matches!(read(None), Confirmation::NotApplied));
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Confirmation {
    /// The server has carried out the operation. It ends with this response, as if the server had
    /// sent it.
    Applied(reqwest::Response),
    /// The server has not carried out the operation. If you asked after the [settling
    /// time](crate::ClientBuilder::settling_time), the client sends the request again.
    NotApplied,
    /// It cannot be told. The operation ends with its error.
    Unknown,
}

impl Confirmation {
    /// Makes a [`Confirmation::Applied`] of any response: of the read itself, or one that you build.
    pub fn applied(response: impl Into<reqwest::Response>) -> Self {
        Self::Applied(response.into())
    }
}

/// An operation whose outcome is unknown, as your read gets it.
#[derive(Clone)]
#[non_exhaustive]
pub struct Unconfirmed {
    pub(super) client: Client,
    pub(super) method: Method,
    pub(super) url: reqwest::Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<Bytes>,
    pub(super) key: Option<IdempotencyKey>,
}

impl Unconfirmed {
    /// Returns the client of the operation. A read through it draws on the same retry budget.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns the operation's method.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Returns the operation's URL, as it was requested.
    #[must_use]
    pub fn url(&self) -> &reqwest::Url {
        &self.url
    }

    /// Returns the headers that you have set, and the default headers of the client.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Returns the request's body, or `None` if it is a stream, a file or made by a factory.
    #[must_use]
    pub fn body(&self) -> Option<&[u8]> {
        self.body.as_deref()
    }

    /// Returns the operation's key, if it has one.
    #[must_use]
    pub fn idempotency_key(&self) -> Option<&IdempotencyKey> {
        self.key.as_ref()
    }
}

// Headers, query and body may be secret.
impl fmt::Debug for Unconfirmed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unconfirmed")
            .field("method", &self.method)
            .field("url", &crate::resume::SafeUrl(&self.url))
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// The user's read.
#[derive(Clone)]
pub(crate) struct Confirm(Arc<Ask>);

impl Confirm {
    pub(crate) fn new<F, R, E>(ask: F) -> Self
    where
        F: Fn(Unconfirmed) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Confirmation, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        Self(Arc::new(move |operation| {
            let asked = ask(operation);
            Box::pin(async move { asked.await.map_err(Into::into) })
        }))
    }

    /// Asks, until `deadline` at the latest. A read that fails, panics or takes too long tells
    /// nothing.
    async fn ask(&self, operation: Unconfirmed, deadline: Option<Instant>) -> Confirmation {
        let Ok(mut read) = catch_unwind(AssertUnwindSafe(|| (self.0)(operation))) else { return Confirmation::Unknown };
        let caught = poll_fn(move |cx| match catch_unwind(AssertUnwindSafe(|| read.as_mut().poll(cx))) {
            Ok(polled) => polled.map(Some),
            Err(_) => Poll::Ready(None),
        });
        // The operations of the read are on the same deadline.
        let answer = match deadline {
            Some(deadline) => clock::until(Some(deadline), with_deadline(deadline, confirming(caught))).await,
            None => Ok(confirming(caught).await),
        };
        match answer {
            Ok(Some(Ok(confirmation))) => confirmation,
            Ok(Some(Err(error))) => {
                let error = error.to_string();
                let error = without_queries(&error);
                tracing::debug!(target: "steadfast", %error, "the read that confirms an operation failed");
                Confirmation::Unknown
            }
            Ok(None) | Err(clock::TimedOut) => Confirmation::Unknown,
        }
    }
}

impl fmt::Debug for Confirm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Confirm")
    }
}

/// A question about an operation, and when to ask it.
#[derive(Debug)]
pub(super) struct Question<'a> {
    pub(super) operation: Unconfirmed,
    pub(super) confirm: &'a Confirm,
    /// After this time the server has certainly ended its work on an attempt.
    pub(super) settling: Option<Duration>,
    /// The end of the operation.
    pub(super) deadline: Option<Instant>,
}

impl Question<'_> {
    /// Finds out whether an operation was carried out whose last attempt ended at `ended`. Also
    /// returns whether "not applied" is a licence to repeat it.
    pub(super) async fn settle(self, ended: Instant) -> (Confirmation, bool) {
        let settled = self.settling.and_then(|settling| ended.checked_add(settling));
        let asked = clock::now();
        let early = self.confirm.ask(self.operation.clone(), self.deadline).await;
        let Some(settled) = settled.filter(|_| matches!(early, Confirmation::NotApplied)) else {
            return (early, false);
        };
        if asked >= settled {
            return (early, true);
        }
        if self.deadline.is_some_and(|deadline| settled >= deadline) {
            return (early, false);
        }
        clock::sleep(settled.saturating_duration_since(clock::now())).await;
        (self.confirm.ask(self.operation, self.deadline).await, true)
    }
}

/// Reads the response of an operation that was carried out, as its caller wants it. Returns `None`
/// if its body cannot be read.
pub(super) async fn read(
    mut response: reqwest::Response,
    read: ReadMode,
    deadline: Option<Instant>,
) -> Option<AttemptResponse> {
    let ReadMode::Whole { limit } = read else {
        return Some(AttemptResponse::Head { response, prefix: Bytes::new() });
    };
    let timer = pin!(clock::timer(deadline));
    let mut until = SharedTimer::new(deadline, timer);
    let has_body = ending::has_body(&Method::GET, response.status());
    let limits = ReadLimits { bytes: limit, pause: None };
    response_body::read_whole(&mut response, has_body, &mut until, limits).await.ok()
}
