//! The clients that do a part of the work, each used as in its documentation, with three attempts
//! and no wait between them.

use std::time::Duration;

use super::{Charge, Contender, NewCharge, Place};
use crate::wire::{Site, Wire};

/// hyper-util's client alone: the lower bound for reqwest, with a URI that is parsed once.
pub mod hyper {
    use bytes::Bytes;
    use http::{Method, Request, Uri, header};
    use http_body_util::{BodyExt, Full};
    use std::sync::Arc;

    use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
    use hyper_util::client::legacy::{Client, connect::HttpConnector};
    use hyper_util::rt::TokioExecutor;
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    use rustls::{ClientConfig, RootCertStore};

    use super::{Charge, Contender, NewCharge, Place, Site, Wire};

    #[derive(Clone)]
    pub struct Hyper(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

    impl Hyper {
        async fn exchange(&self, method: Method, place: &Place, body: Bytes) -> (http::StatusCode, Bytes) {
            let uri: Uri = place.url.parse().unwrap();
            let request = Request::builder().method(method).uri(uri).header(header::ACCEPT, "*/*");
            let request = request.header(header::CONTENT_TYPE, "application/json").body(Full::new(body)).unwrap();
            let response = self.0.request(request).await.unwrap();
            (response.status(), response.into_body().collect().await.unwrap().to_bytes())
        }
    }

    impl Contender for Hyper {
        fn new(site: &Site) -> Self {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(site.certificate()).unwrap()).unwrap();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
            let tls = tls.with_root_certificates(roots).with_no_client_auth();
            let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
            let connector = connector.enable_http1().enable_http2().build();
            let mut builder = Client::builder(TokioExecutor::new());
            Self(builder.http2_only(site.wire == Wire::Clear2).build(connector))
        }

        async fn get(&self, place: &Place) -> Charge {
            serde_json::from_slice(&self.exchange(Method::GET, place, Bytes::new()).await.1).unwrap()
        }

        async fn post(&self, place: &Place, charge: &NewCharge) -> Charge {
            let body = serde_json::to_vec(charge).unwrap().into();
            serde_json::from_slice(&self.exchange(Method::POST, place, body).await.1).unwrap()
        }

        async fn persist(&self, place: &Place) -> Charge {
            loop {
                let (status, body) = self.exchange(Method::GET, place, Bytes::new()).await;
                if status.is_success() {
                    return serde_json::from_slice(&body).unwrap();
                }
            }
        }
    }
}

pub mod middleware {
    use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
    use reqwest_retry::{Jitter, RetryTransientMiddleware, policies::ExponentialBackoff};

    use super::{Charge, Contender, Duration, NewCharge, Place, Site};

    #[derive(Clone)]
    pub struct Middleware(ClientWithMiddleware);

    impl Contender for Middleware {
        fn new(site: &Site) -> Self {
            let at_once =
                ExponentialBackoff::builder().retry_bounds(Duration::ZERO, Duration::ZERO).jitter(Jitter::None);
            let retry = RetryTransientMiddleware::new_with_policy(at_once.build_with_max_retries(2));
            Self(ClientBuilder::new(site.configure(reqwest::Client::builder()).build().unwrap()).with(retry).build())
        }

        async fn get(&self, place: &Place) -> Charge {
            self.0.get(&place.url).send().await.unwrap().json().await.unwrap()
        }

        async fn post(&self, place: &Place, charge: &NewCharge) -> Charge {
            self.0.post(&place.url).json(charge).send().await.unwrap().json().await.unwrap()
        }

        async fn persist(&self, place: &Place) -> Charge {
            self.get(place).await
        }
    }
}

/// Google's loop around reqwest, as in its generated clients.
pub mod gax {
    use std::sync::{Arc, Mutex};

    use google_cloud_gax::backoff_policy::BackoffPolicy;
    use google_cloud_gax::error::Error;
    use google_cloud_gax::retry_loop_internal::retry_loop;
    use google_cloud_gax::retry_policy::{AlwaysRetry, RetryPolicy, RetryPolicyExt};
    use google_cloud_gax::retry_state::RetryState;
    use google_cloud_gax::retry_throttler::{AdaptiveThrottler, RetryThrottler};

    use super::{Charge, Contender, Duration, NewCharge, Place, Site};

    #[derive(Clone)]
    pub struct Gax {
        http: reqwest::Client,
        policy: Arc<dyn RetryPolicy>,
        backoff: Arc<dyn BackoffPolicy>,
        throttler: Arc<Mutex<dyn RetryThrottler>>,
    }

    #[derive(Debug)]
    struct AtOnce;

    impl BackoffPolicy for AtOnce {
        fn on_failure(&self, _: &RetryState) -> Duration {
            Duration::ZERO
        }
    }

    impl Gax {
        async fn operation(&self, idempotent: bool, request: reqwest::RequestBuilder) -> Charge {
            let attempt = async move |remaining| attempt(request.try_clone().unwrap(), remaining).await;
            // Google's own clients sleep in this way, even if the wait is zero.
            let sleep = async |wait| tokio::time::sleep(wait).await;
            let (throttler, policy, backoff) = (self.throttler.clone(), self.policy.clone(), self.backoff.clone());
            retry_loop(attempt, sleep, idempotent, throttler, policy, backoff).await.unwrap()
        }
    }

    async fn attempt(mut request: reqwest::RequestBuilder, remaining: Option<Duration>) -> Result<Charge, Error> {
        if let Some(remaining) = remaining {
            request = request.timeout(remaining);
        }
        let response = request.send().await.map_err(Error::io)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.map_err(Error::io)?;
        if !status.is_success() {
            return Err(Error::http(status.as_u16(), headers, body));
        }
        serde_json::from_slice(&body).map_err(Error::deser)
    }

    impl Contender for Gax {
        fn new(site: &Site) -> Self {
            Self {
                http: site.configure(reqwest::Client::builder()).build().unwrap(),
                policy: Arc::new(AlwaysRetry.with_attempt_limit(3).with_time_limit(Duration::from_secs(30))),
                backoff: Arc::new(AtOnce),
                // A factor that lets every retry through.
                throttler: Arc::new(Mutex::new(AdaptiveThrottler::new(1e9).unwrap())),
            }
        }

        async fn get(&self, place: &Place) -> Charge {
            self.operation(true, self.http.get(&place.url)).await
        }

        async fn post(&self, place: &Place, charge: &NewCharge) -> Charge {
            self.operation(false, self.http.post(&place.url).json(charge)).await
        }

        async fn persist(&self, place: &Place) -> Charge {
            self.get(place).await
        }
    }
}

/// The runtime under the AWS SDK, without authentication and signing.
pub mod smithy {
    use std::fmt;
    use std::sync::Arc;

    use aws_smithy_http_client::Builder;
    use aws_smithy_http_client::tls::{self, TlsContext, TrustStore};
    use aws_smithy_runtime::client::orchestrator::operation::Operation;
    use aws_smithy_runtime::client::retries::classifiers::HttpStatusCodeClassifier;
    use aws_smithy_runtime::client::retries::{RetryPartition, TokenBucket};
    use aws_smithy_runtime_api::client::http::SharedHttpClient;
    use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse, OrchestratorError};
    use aws_smithy_runtime_api::client::runtime_plugin::StaticRuntimePlugin;
    use aws_smithy_types::body::SdkBody;
    use aws_smithy_types::config_bag::Layer;
    use aws_smithy_types::retry::RetryConfig;
    use aws_smithy_types::timeout::TimeoutConfig;

    use super::{Charge, Contender, Duration, NewCharge, Place, Site};

    /// Method, path and body.
    type Input = (&'static str, String, Vec<u8>);

    #[derive(Clone)]
    pub struct Smithy {
        usual: Arc<Operation<Input, Charge, Refused>>,
        /// A second client, because its quota would end a run in which every operation fails twice.
        stubborn: Arc<Operation<Input, Charge, Refused>>,
    }

    #[derive(Debug)]
    pub struct Refused;

    impl fmt::Display for Refused {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("refused")
        }
    }

    impl std::error::Error for Refused {}

    fn decode(response: &HttpResponse) -> Result<Charge, OrchestratorError<Refused>> {
        if !response.status().is_success() {
            return Err(OrchestratorError::operation(Refused));
        }
        Ok(serde_json::from_slice(response.body().bytes().unwrap()).unwrap())
    }

    fn http_client(site: &Site) -> SharedHttpClient {
        if !site.wire.is_tls() {
            return Builder::new().build_http();
        }
        let pem = std::fs::read(site.certificate()).unwrap();
        let trust = TlsContext::builder().with_trust_store(TrustStore::empty().with_pem_certificate(pem));
        let provider = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc);
        Builder::new().tls_provider(provider).tls_context(trust.build().unwrap()).build_https()
    }

    fn operation(site: &Site, bucket: Option<TokenBucket>) -> Arc<Operation<Input, Charge, Refused>> {
        let at_once = RetryConfig::standard().with_max_attempts(3).with_initial_backoff(Duration::ZERO);
        let timeouts = TimeoutConfig::builder().operation_timeout(Duration::from_secs(30));
        let mut builder = Operation::builder()
            .service_name("charges")
            .operation_name("charge")
            .http_client(http_client(site))
            .endpoint_url(&site.base())
            .no_auth()
            .standard_retry(&at_once)
            .retry_classifier(HttpStatusCodeClassifier::default())
            .timeout_config(timeouts.operation_attempt_timeout(Duration::from_secs(10)).build())
            .sleep_impl(aws_smithy_async::rt::sleep::TokioSleep::new());
        if let Some(bucket) = bucket {
            let mut config = Layer::new("quota");
            config.store_put(RetryPartition::custom("charges").token_bucket(bucket).build());
            builder = builder.runtime_plugin(StaticRuntimePlugin::new().with_config(config.freeze()));
        }
        let encoded = builder.serializer(|(method, path, body): Input| {
            let mut request = HttpRequest::new(SdkBody::from(body));
            request.set_method(method).unwrap();
            request.set_uri(path).unwrap();
            request.headers_mut().insert("content-type", "application/json");
            Ok(request)
        });
        Arc::new(encoded.deserializer(decode).build())
    }

    impl Contender for Smithy {
        fn new(site: &Site) -> Self {
            Self { usual: operation(site, None), stubborn: operation(site, Some(TokenBucket::unlimited())) }
        }

        async fn get(&self, place: &Place) -> Charge {
            self.usual.invoke(("GET", place.path.clone(), Vec::new())).await.unwrap()
        }

        async fn post(&self, place: &Place, charge: &NewCharge) -> Charge {
            self.usual.invoke(("POST", place.path.clone(), serde_json::to_vec(charge).unwrap())).await.unwrap()
        }

        async fn persist(&self, place: &Place) -> Charge {
            self.stubborn.invoke(("GET", place.path.clone(), Vec::new())).await.unwrap()
        }
    }
}
