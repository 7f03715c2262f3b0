//! A client for exporters, which makes no telemetry of its own.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use opentelemetry::Context;
use opentelemetry::context::FutureExt as _;
use opentelemetry_http::{HttpClient, HttpError};
use steadfast::Client;
use tokio::runtime::Handle;

/// Maximum size of a collector's response.
const MAX_RESPONSE: usize = 4 << 20;

/// Feature `exporter`. Sends the telemetry of an OTLP exporter by a steadfast client.
///
/// What the client does for the exporter makes no spans and counts in no metric: otherwise each
/// export would bring another one. Its trace context is not sent either. This holds even if the same
/// client serves your program.
///
/// An export that may have arrived is not repeated, unless you state that the collector honours keys.
/// The exporter's own retries would multiply with the client's, so leave them off.
///
/// ```no_run
/// use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
/// use steadfast::Client;
/// use steadfast_otel::ExporterClient;
/// use tokio::runtime::Handle;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = ExporterClient::new(Client::builder().spans(false).build()?, Handle::current());
/// let exporter = SpanExporter::builder()
///     .with_http()
///     .with_http_client(client)
///     .with_endpoint("http://localhost:4318/v1/traces")
///     .build()?;
/// # drop(exporter);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ExporterClient {
    client: Client,
    runtime: Handle,
}

impl ExporterClient {
    /// Sends by `client`, on `runtime`. An exporter calls it from a thread of its own, which has no
    /// runtime.
    #[must_use]
    pub fn new(client: Client, runtime: Handle) -> Self {
        Self { client, runtime }
    }
}

#[async_trait]
impl HttpClient for ExporterClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let suppressed = Context::current().with_telemetry_suppressed();
        // A task does not inherit the exporter's context.
        self.runtime.spawn(async move { send(&client, request).await }.with_context(suppressed)).await?
    }
}

async fn send(client: &Client, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let mut response = client.execute(request.try_into()?).await?;
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_RESPONSE {
            return Err("the collector's response is over 4 MiB".into());
        }
        body.extend_from_slice(&chunk);
    }
    let mut answer = Response::new(body.freeze());
    *answer.status_mut() = response.status();
    *answer.headers_mut() = std::mem::take(response.headers_mut());
    Ok(answer)
}
