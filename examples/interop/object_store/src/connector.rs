//! The connector: object_store's requests become operations of steadfast.
//!
//! object_store has a retry loop of its own. It also continues a `get` whose body was cut, so it
//! cannot be turned off. So the connector says of every failure whether that loop may send the
//! request again, by the kind of the error:
//!
//! * `Connect`, which object_store repeats: nothing was sent.
//! * `Interrupted`, which it repeats if it calls the request idempotent: the server may have acted.
//! * `Unknown`, which it never repeats: the same of a POST, because object_store calls the POST that
//!   begins an upload idempotent.
//!
//! Never `Request`, which object_store repeats as "not sent". A status that object_store would repeat
//! for any request becomes an error of these kinds too.

use async_trait::async_trait;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};
use steadfast::http::{Method, Response, StatusCode};
use steadfast::{ClientService, OperationReport, ResponseExt, reqwest};
use tower::Service;

/// Makes the HTTP client of a store. Its `ClientOptions` have no effect: the settings are those of
/// the `steadfast::Client`.
#[derive(Clone, Debug)]
pub struct Connector(ClientService);

impl Connector {
    /// Creates a connector of this client.
    pub fn new(service: ClientService) -> Self {
        Self(service)
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let method = request.method().clone();
        let response = self.0.clone().call(request).await.map_err(|error| failed(&method, error))?;
        if is_failure(&method, &response) {
            let result = reqwest::Response::from(response).into_result().await;
            return match result {
                Err(error) => Err(failed(&method, error)),
                Ok(_) => unreachable!("`is_failure` is true of error statuses only"),
            };
        }
        Ok(response
            .map(|body| HttpResponseBody::new(body.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error)))))
    }
}

fn failed(method: &Method, error: steadfast::Error) -> HttpError {
    let kind = match (error.may_have_been_processed(), method) {
        (true, &Method::POST) => HttpErrorKind::Unknown,
        (true, _) => HttpErrorKind::Interrupted,
        (false, _) if error.is_connect() => HttpErrorKind::Connect,
        // A setting or a request that cannot work.
        (false, _) => HttpErrorKind::Unknown,
    };
    HttpError::new(kind, error)
}

/// Whether object_store must not see this status. It repeats the first ones, whatever the request.
/// The others would say "exists already" of what an earlier attempt may have written.
fn is_failure<B>(method: &Method, response: &Response<B>) -> bool {
    let may_have_run = response.extensions().get().is_some_and(OperationReport::may_have_been_processed);
    match response.status() {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => true,
        StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => may_have_run && !method.is_safe(),
        status => status.is_server_error(),
    }
}
