//! steadfast as a middleware of
//! [reqwest-middleware](https://docs.rs/reqwest-middleware): keep your `ClientWithMiddleware`, and
//! change one line.
//!
//! reqwest-retry repeats every request that failed, a POST too, and adds no key. If only the
//! response was lost, the server acts twice. This middleware follows steadfast's one rule:
//!
//! > Repeat a request only if the server cannot have acted on it, or if acting twice is harmless.
//!
//! ```
//! use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
//! use steadfast::KeyPolicy;
//! use steadfast_reqwest_middleware::Steadfast;
//!
//! fn client(plain: reqwest::Client) -> steadfast::Result<ClientWithMiddleware> {
//!     let steadfast = steadfast::Client::builder()
//!         .keys(KeyPolicy::standard()) // you state: this API honours idempotency keys
//!         .build()?;
//!     Ok(ClientBuilder::new(plain)
//!         .with(Steadfast::new(steadfast)) // was: RetryTransientMiddleware::new_with_policy(…)
//!         .build())
//! }
//! # client(reqwest::Client::new()).unwrap();
//! ```
//!
//! No call site changes. The loop, the policy, the keys, the budget and the events are those of the
//! [`steadfast::Client`]. The connections are those of the client that you keep, with its TLS, its
//! proxy and its redirects.
//!
//! # What you get back
//!
//! A response is reqwest's. [`steadfast::ResponseExt`] shows its attempts and its key.
//!
//! An error is always `reqwest_middleware::Error::Middleware`, which retry layers above take for
//! final. [`error()`] finds steadfast's error in it, and [`into_error`] takes it out.
//! reqwest-middleware's own `is_timeout`, `is_connect` and `status` answer `false` and `None` for
//! every error of a middleware: [`is_timeout`], [`is_connect`] and [`status`] answer instead.
//!
//! # What is known
//!
//! The layers below are not steadfast's. They may follow redirects or repeat requests unseen, so a
//! refused connection may be that of a second hop, after the request was carried out. By default
//! every failure without a response is therefore ambiguous: the request is repeated only if acting
//! twice is harmless. [`Steadfast::innermost`] and [`Steadfast::assume_no_redirects`] tell more.
//!
//! # Terms of one request
//!
//! [`RequestTerms`] in the extensions of a request override the client's
//! settings: its policy, its key, its time limits, and whether repeating it is harmless.
//!
//! ```no_run
//! use steadfast::{IdempotencyKey, RequestTerms};
//!
//! # use reqwest_middleware::ClientWithMiddleware;
//! # async fn example(client: ClientWithMiddleware) -> Result<(), Box<dyn std::error::Error>> {
//! let key: IdempotencyKey = "order-1042-charge".parse()?;
//! let response = client
//!     .post("https://api.example.com/charges")
//!     .body("12 EUR")
//!     .with_extension(RequestTerms::new().idempotency_key(key))
//!     .send()
//!     .await?;
//! # drop(response);
//! # Ok(())
//! # }
//! ```
//!
//! A key in the request's header is the operation's key too, and is sent once. A malformed one is
//! an error before anything is sent.
//!
//! # Position
//!
//! | layer | where | why |
//! | --- | --- | --- |
//! | logging or tracing of each attempt | below | it sees each attempt |
//! | logging or tracing of the operation | above | it sees one call |
//! | a signature with a timestamp or a nonce | **below** | each attempt needs a fresh one. Above, it signs once, and a server may refuse the second attempt |
//! | a cache | above | what it answers needs no attempt |
//! | another retry layer, such as reqwest-retry | nowhere | see below |
//!
//! Each attempt gets a clone of the request's extensions. Those of the attempt that brought the
//! response are handed back. After an error you have your own, unchanged.
//!
//! Requests are not hedged through this middleware, because the extensions of two concurrent
//! attempts could not both be handed back.
//!
//! # Other retry layers
//!
//! * **Above.** reqwest-retry above takes a 503 for a reason to call this middleware again. The
//!   second call has the same extensions and the same request, so it is the *same* operation. It is
//!   sent under the first call's key. If the first call may have been processed, it needs the
//!   licence of every repeat, else it ends in an error, and nothing is sent. A warning of the
//!   target `steadfast` names the cause once. So do not reuse extensions for another operation
//!   (`execute_with_extensions`). A layer in between that changes the URL or the body makes the second
//!   call another operation.
//! * **Below.** It cannot be seen from here. It repeats requests without asking, under the
//!   operation's key if there is one. Remove it.
//! * **Another loop of steadfast below** makes one attempt:
//!   [`StopReason::Nested`](steadfast::policy::StopReason::Nested).
//!
//! The [guide](https://docs.rs/steadfast/latest/steadfast/guide/keep_your_client/) compares this
//! with other ways to keep a client.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod error;
mod mark;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use http::Extensions;
use reqwest::{Request, Response};
use reqwest_middleware::{Middleware, Next};
use steadfast::adapter::{self, Earlier, TransportView};
use steadfast::{Client, RequestBuilder, RequestTerms};

pub use error::{error, into_error, is_connect, is_timeout, status};
use mark::{Identity, Mark};

/// The middleware: one call is one operation, with steadfast's retries and key.
///
/// ```
/// use reqwest_middleware::ClientBuilder;
/// use steadfast_reqwest_middleware::Steadfast;
///
/// let client = ClientBuilder::new(reqwest::Client::new())
///     .with(Steadfast::new(steadfast::Client::new()))
///     .build();
/// ```
#[must_use = "a middleware has no effect until a client has it"]
pub struct Steadfast {
    client: Client,
    is_innermost: bool,
    follows_no_redirects: bool,
    view: TransportView,
    has_warned: AtomicBool,
}

impl Steadfast {
    /// Creates the middleware of this client. Its policy, keys, budgets, time limits, default
    /// headers and events apply, each with its default. Its connections are not used. So these
    /// settings have no effect: `http`, `http_client`, `connect_timeout`, `hedge`, those of
    /// redirects unless you [`assume_no_redirects`](Self::assume_no_redirects), and
    /// `min_upload_rate` unless this is the [`innermost`](Self::innermost) middleware.
    ///
    /// A timeout that you set on a request is that of one attempt, as with reqwest-retry. It also
    /// limits the response body.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            is_innermost: false,
            follows_no_redirects: false,
            view: TransportView::opaque(),
            has_warned: AtomicBool::new(false),
        }
    }

    /// States that this is the last middleware: below it there is only a plain `reqwest::Client`.
    ///
    /// The middleware cannot see that. `ClientBuilder::from_client(client).with(…)` adds another
    /// one below, and then the statement is false.
    ///
    /// The progress of an upload can be seen then, and an upload that moves is not cut by
    /// [`attempt_timeout`](steadfast::ClientBuilder::attempt_timeout). Failures stay ambiguous,
    /// because the client may have followed a redirect. With
    /// [`assume_no_redirects`](Self::assume_no_redirects) they are known as exactly as with
    /// steadfast's own client.
    ///
    /// # Troubleshooting
    ///
    /// A middleware below gets bodies that cannot be cloned: `try_clone()` returns `None`.
    pub fn innermost(self) -> Self {
        Self { is_innermost: true, ..self }.with_view()
    }

    /// States that the client below follows no redirects: it was built with
    /// `reqwest::redirect::Policy::none()`. It has an effect only together with
    /// [`innermost`](Self::innermost).
    ///
    /// A refused connection then means that the server has not acted, and a POST is repeated
    /// without a key. steadfast follows redirects itself, by [its own
    /// rules](steadfast::ClientBuilder::max_redirects). None leads to another origin, unless you allow
    /// [`cross_origin_redirects`](steadfast::ClientBuilder::cross_origin_redirects): your client may
    /// add credentials to every request.
    ///
    /// One response from another address than the request's takes the statement back for good, with
    /// a warning.
    ///
    /// ```
    /// use reqwest::redirect::Policy;
    /// use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
    /// use steadfast_reqwest_middleware::Steadfast;
    ///
    /// fn client() -> reqwest::Result<ClientWithMiddleware> {
    ///     let plain = reqwest::Client::builder().redirect(Policy::none()).build()?;
    ///     let steadfast = Steadfast::new(steadfast::Client::new());
    ///     let exact = steadfast.innermost().assume_no_redirects();
    ///     Ok(ClientBuilder::new(plain).with(exact).build())
    /// }
    /// # client().unwrap();
    /// ```
    pub fn assume_no_redirects(self) -> Self {
        Self { follows_no_redirects: true, ..self }.with_view()
    }

    fn with_view(self) -> Self {
        let view = match (self.is_innermost, self.follows_no_redirects) {
            (true, true) => TransportView::exact(),
            (true, false) => TransportView::innermost(),
            (false, _) => TransportView::opaque(),
        };
        Self { view, ..self }
    }

    /// Returns the request with its terms. A repeat of an earlier call is the same operation.
    fn builder(&self, request: Request, terms: Option<RequestTerms>, earlier: Option<&Earlier>) -> RequestBuilder {
        let mut builder = RequestBuilder::from_parts(self.client.clone(), request);
        if let Some(terms) = terms {
            builder = builder.terms(terms);
        }
        if let Some(earlier) = earlier {
            builder = adapter::repeat(builder, earlier.clone());
        }
        builder.hedge(None)
    }

    fn warn_once(&self) {
        if !self.has_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                target: "steadfast",
                "a layer above this middleware repeats requests, as reqwest-retry's RetryTransientMiddleware does: \
                 remove it, because attempts multiply, and it repeats without asking whether that is safe"
            );
        }
    }
}

#[async_trait]
impl Middleware for Steadfast {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let call = Mark::enter(extensions, Identity::of(&request));
        if call.is_retry {
            self.warn_once();
        }
        let timeout = request.timeout().copied();
        let builder = self.builder(request, extensions.get().cloned(), call.earlier.as_ref());
        let given = without_mark(extensions);
        let winner = Mutex::new(None);
        let send = |mut request: Request| {
            call.sends(|| Earlier::sent(&self.client, request.headers()));
            // Ours is that of the attempt, and ends with the head. reqwest's limits the body too.
            *request.timeout_mut() = timeout;
            let (winner, next, mut own) = (&winner, next.clone(), given.clone());
            let sent = (request.method().clone(), request.url().clone());
            async move {
                let response = next.run(request, &mut own).await;
                let response = response.map_err(|below| error::from_below(below, Mark::has_acted(&own), &sent))?;
                *winner.lock().unwrap_or_else(PoisonError::into_inner) = Some(own);
                Ok(response)
            }
        };
        let result = adapter::send_through(builder, &self.view, send).await;
        call.ended(&result);
        let handed_back = winner.into_inner().unwrap_or_else(PoisonError::into_inner).filter(|_| result.is_ok());
        if let Some(handed_back) = handed_back {
            *extensions = handed_back;
            call.leave(extensions);
        }
        result.map_err(error::hand_up)
    }
}

/// Returns a clone of the extensions for the layers below, of which another middleware of ours is a
/// call of its own.
fn without_mark(extensions: &Extensions) -> Extensions {
    let mut given = extensions.clone();
    given.remove::<Mark>();
    given
}

impl fmt::Debug for Steadfast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steadfast")
            .field("client", &self.client)
            .field("innermost", &self.is_innermost)
            .field("assume_no_redirects", &self.follows_no_redirects)
            .finish_non_exhaustive()
    }
}
