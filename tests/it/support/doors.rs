//! The ways into the client's loop, behind one face: what holds for the plain client must hold for
//! every adapter.
//!
//! A further adapter is a further variant of [`Door`], and an arm of [`Opened::send`].

use bytes::Bytes;
use http_body_util::Full;
use reqwest_middleware::ClientWithMiddleware;
use steadfast::adapter::{self, TransportView};
use steadfast::reqwest::{self, Request, Response};
use steadfast::{Client, ClientBuilder, RequestBuilder, RequestTerms, TransportError};
use steadfast_reqwest_middleware::{Steadfast, into_error};
use tower::ServiceExt;

/// A way into the client's loop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Door {
    /// `RequestBuilder::send`.
    Plain,
    /// `Client::into_service`.
    Service,
    /// `RequestBuilder::send_through`, over a reqwest client of the caller's that follows redirects.
    Function,
    /// An adapter that knows that there is nothing below it but such a client.
    Innermost,
    /// An adapter that also knows that its client follows no redirects.
    Exact,
    /// `steadfast_reqwest_middleware::Steadfast`, of which nothing is known.
    Middleware,
    /// The same as the last middleware, over a client that follows no redirects.
    ExactMiddleware,
}

impl Door {
    pub(crate) const ALL: [Self; 7] = [
        Self::Plain,
        Self::Service,
        Self::Function,
        Self::Innermost,
        Self::Exact,
        Self::Middleware,
        Self::ExactMiddleware,
    ];

    /// Whether nothing is known of the transport but what the caller says.
    pub(crate) fn is_opaque(self) -> bool {
        matches!(self, Self::Function | Self::Innermost | Self::Middleware)
    }

    /// Opens the door with these settings. `wire` configures the reqwest client that sends.
    pub(crate) fn open(
        self,
        client: ClientBuilder,
        wire: impl Fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
    ) -> Opened {
        let below = reqwest::Client::builder().tls_backend_rustls();
        let is_exact = matches!(self, Self::Exact | Self::ExactMiddleware);
        let below = if is_exact { below.redirect(reqwest::redirect::Policy::none()) } else { below };
        let view = match self {
            Self::Exact => TransportView::exact(),
            Self::Innermost => TransportView::innermost(),
            _ => TransportView::opaque(),
        };
        // Without the system's certificates, which take long to load.
        let wire = |http: reqwest::ClientBuilder| wire(http.tls_certs_only([]));
        let client = client.http(wire).build().unwrap();
        let below = wire(below).build().unwrap();
        let steadfast = Steadfast::new(client.clone());
        let steadfast = if is_exact { steadfast.innermost().assume_no_redirects() } else { steadfast };
        let layered = reqwest_middleware::ClientBuilder::new(below.clone()).with(steadfast).build();
        Opened { door: self, client, below, layered, view }
    }
}

/// A door with a client behind it.
pub(crate) struct Opened {
    door: Door,
    client: Client,
    /// The caller's own client, which the adapters send through.
    below: reqwest::Client,
    /// The same with our middleware.
    layered: ClientWithMiddleware,
    view: TransportView,
}

impl Opened {
    /// Sends a request, whose body must be bytes, as one operation.
    pub(crate) async fn send(&self, request: Request, terms: RequestTerms) -> steadfast::Result<Response> {
        let below = async |request| Ok::<_, TransportError>(self.below.execute(request).await?);
        let builder = |request| RequestBuilder::from_parts(self.client.clone(), request).terms(terms.clone());
        match self.door {
            Door::Plain => builder(request).send().await,
            Door::Service => {
                let response = self.client.clone().into_service().oneshot(in_http(request, terms)).await;
                response.map(Response::from)
            }
            Door::Function => builder(request).send_through(below).await,
            Door::Innermost | Door::Exact => adapter::send_through(builder(request), &self.view, below).await,
            Door::Middleware | Door::ExactMiddleware => {
                let request = reqwest_middleware::RequestBuilder::from_parts(self.layered.clone(), request);
                request.with_extension(terms).send().await.map_err(|failed| into_error(failed).unwrap())
            }
        }
    }
}

/// The same request in the types of `http`.
fn in_http(mut request: Request, terms: RequestTerms) -> http::Request<Full<Bytes>> {
    let body = request.body_mut().take().map(|body| Bytes::copy_from_slice(body.as_bytes().expect("bytes")));
    let mut converted = http::Request::new(body.unwrap_or_default().into());
    *converted.method_mut() = request.method().clone();
    *converted.uri_mut() = request.url().as_str().parse().unwrap();
    *converted.headers_mut() = std::mem::take(request.headers_mut());
    converted.extensions_mut().insert(terms);
    converted
}
