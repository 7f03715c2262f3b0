//! A server that requires a client certificate. With TLS 1.3 its refusal arrives after the
//! handshake, where a lost connection would be ambiguous. It is final, and nothing was processed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use steadfast::policy::{Class, StopReason};
use steadfast::{Client, Error, ErrorKind, KeyPolicy};
use steadfast_testing::fast_retries;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion, version};

use super::line;
use crate::wire::Identity;

/// Starts a server that takes certificates of `trusted` alone. Returns its port and the count of
/// finished handshakes.
async fn strict(
    identity: &Identity,
    trusted: &Identity,
    version: &'static SupportedProtocolVersion,
    protocol: &str,
) -> (u16, Arc<AtomicUsize>) {
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(trusted.authority_der()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
    let (chain, key) = identity.chain_and_key();
    let mut config = config.with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            match acceptor.accept(stream).into_fallible().await {
                Ok(_) => _ = count.fetch_add(1, Ordering::SeqCst),
                // Read to the end, since a reset could overtake the alert.
                Err((_, mut stream)) => _ = stream.read_to_end(&mut Vec::new()).await,
            }
        }
    });
    (port, accepted)
}

async fn post(port: u16, server: &Identity, own: Option<&Identity>) -> Error {
    let client = Client::builder().retry(fast_retries()).keys(KeyPolicy::standard());
    let (authority, own) = (server.authority(), own.map(Identity::for_client));
    let client = client.http(move |http| {
        let http = http.tls_certs_only([authority]);
        match own {
            Some(own) => http.identity(own),
            None => http,
        }
    });
    let url = format!("https://localhost:{port}/charges");
    client.build().unwrap().post(url).body("x").send().await.unwrap_err()
}

#[tokio::test]
async fn missing_client_certificate_is_final() {
    let (server, stranger) = (Identity::new("localhost", |_| {}), Identity::new("client", |_| {}));
    let missing = "the server requires a client certificate";
    let refused = "the server refused the client certificate, or misses one";
    for protocol in ["http/1.1", "h2"] {
        for (version, own, what) in [
            (&version::TLS13, None, missing),
            (&version::TLS13, Some(&stranger), refused),
            (&version::TLS12, None, missing),
            (&version::TLS12, Some(&stranger), refused),
        ] {
            let (port, accepted) = strict(&server, &server, version, protocol).await;
            let error = post(port, &server, own).await;
            let expected = format!("{what} after 1 attempt in T (permanent; not processed; key K)");
            assert_eq!(line(&error), expected, "{protocol}, {version:?}: {error:#}");
            assert_eq!((error.kind(), error.stop_reason()), (ErrorKind::Certificate, Some(StopReason::Permanent)));
            assert_eq!(error.attempts()[0].class(), Class::Permanent);
            assert!(!error.may_have_been_processed(), "{error:#}");
            assert_eq!(accepted.load(Ordering::SeqCst), 0, "the server read no request");
        }
    }
}
