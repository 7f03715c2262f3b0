//! The store in Redis over TLS (`rediss://`), with certificates of a private authority.

use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use redis::{Client, TlsCertificates};
use steadfast::server::{IdempotencyLayer, RecordId, Scope, StoreError};
use steadfast_redis::RedisStore;
use tempfile::TempDir;

use super::contract;
use super::redis_server::RedisServer;
use super::support::{Executions, Served, header};

/// An authority, and a server with its certificate for `localhost`. The server takes TLS only.
struct Secured {
    server: RedisServer,
    authority: String,
    _files: TempDir,
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

impl Secured {
    fn start() -> Self {
        let (issuer, key) = (authority(), KeyPair::generate().unwrap());
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let files = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            let path = files.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (authority, chain) = (issuer.pem(), write("server.pem", certificate.pem()));
        let (key, ca) = (write("server.key", key.serialize_pem()), write("ca.pem", authority.clone()));
        let files_of_server = ["--tls-cert-file", &chain, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
        let ports = ["--tls-port", "{port}", "--port", "0", "--tls-auth-clients", "no"];
        let server = RedisServer::start(&[files_of_server, ports].concat());
        Self { server, authority, _files: files }
    }

    fn url(&self) -> String {
        format!("rediss://localhost:{}", self.server.port())
    }

    /// Returns a client that trusts this authority alone.
    fn client(&self, authority: String) -> Client {
        let _already = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let certificates = TlsCertificates { client_tls: None, root_cert: Some(authority.into_bytes()) };
        Client::build_with_tls(self.url(), certificates).unwrap()
    }

    async fn store(&self) -> RedisStore {
        RedisStore::connect_with(self.client(self.authority.clone())).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tls_store_fulfils_contract() {
    let secured = Secured::start();
    let store = std::sync::Arc::new(secured.store().await.timeout(Duration::from_secs(10)));
    contract::suite(store, |name| RecordId::new("tls", name)).await;
}

#[tokio::test]
async fn tls_store_survives_restart_of_server() {
    let mut secured = Secured::start();
    let executions = Executions::default();
    let counted = executions.clone();
    let handler = move || async move {
        counted.add();
        StatusCode::CREATED
    };
    let layer = IdempotencyLayer::new(secured.store().await, Scope::single_caller());
    let served = Served::start(Router::new().route("/orders", post(handler)), layer).await;
    assert_eq!(served.post("/orders", "k").send().await.unwrap().status(), 201);
    secured.server.kill();
    assert_eq!(served.post("/orders", "k").send().await.unwrap().status(), 503);
    secured.server.start_again();
    let replay = served.post("/orders", "k").send().await.unwrap();
    assert_eq!((replay.status().as_u16(), header(&replay, "idempotent-replayed")), (201, Some("true")));
    assert_eq!(executions.count(), 1);
}

#[tokio::test]
async fn certificate_of_another_authority_is_refused() {
    let secured = Secured::start();
    let refused = RedisStore::connect_with(secured.client(authority().pem())).await;
    let Err(StoreError::Unavailable(error)) = refused else { panic!("it was accepted") };
    let text = error.to_string();
    assert!(text.contains("ertificate") || text.contains("Issuer"), "{text}");
    // Without TLS there is nothing to talk to.
    assert!(RedisStore::connect(&secured.server.url()).await.is_err());
}
