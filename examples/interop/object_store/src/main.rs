//! Objects through object_store, on an S3-like server that breaks.
//!
//! object_store repeats every request whose connection closed without a response, because it takes
//! that for "not sent". It repeats every request after a 5xx. So a multipart upload is begun twice,
//! and one of the two stays and costs storage. And a put of an object that must not exist is told
//! that it exists: by its own first attempt.

mod bucket;
mod connector;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use interop_common::{Fault, Seen, Table, fast_retries, serve, told};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{BackoffConfig, Error, ObjectStore, ObjectStoreExt, PutMode, RetryConfig};
use steadfast::KeyPolicy;
use steadfast_testing::FaultServer;

use bucket::{Bucket, OBJECT};
use connector::Connector;

fn builder(server: &FaultServer, max_retries: usize) -> AmazonS3Builder {
    let (shortest, longest) = (Duration::from_millis(1), Duration::from_millis(10));
    let backoff = BackoffConfig { init_backoff: shortest, max_backoff: longest, base: 2.0 };
    AmazonS3Builder::new()
        .with_endpoint(server.url(""))
        .with_allow_http(true)
        .with_bucket_name("shop")
        .with_access_key_id("id")
        .with_secret_access_key("secret")
        .with_retry(RetryConfig { backoff, max_retries, ..RetryConfig::default() })
}

/// What a team has today: object_store's own client, with its number of retries and shorter waits.
fn naive(server: &FaultServer) -> AmazonS3 {
    builder(server, RetryConfig::default().max_retries).build().expect("valid settings")
}

/// The lines that change. Two retries of object_store remain: a `get` whose body is cut goes on
/// behind the bytes that it has. They multiply with the attempts of steadfast, so not ten.
fn with_steadfast(server: &FaultServer) -> AmazonS3 {
    let client = steadfast::Client::builder().keys(KeyPolicy::off()).retry(fast_retries());
    let service = client.build().expect("valid settings").into_service();
    builder(server, 2).with_http_connector(Connector::new(service)).build().expect("valid settings")
}

async fn put(store: AmazonS3) -> String {
    told(&store.put(&Path::from("report"), OBJECT.into()).await)
}

async fn put_if_absent(store: AmazonS3) -> String {
    match store.put_opts(&Path::from("report"), OBJECT.into(), PutMode::Create.into()).await {
        Err(Error::AlreadyExists { .. }) => "error: exists already".to_owned(),
        result => told(&result),
    }
}

async fn begin_multipart(store: AmazonS3) -> String {
    told(&store.put_multipart(&Path::from("report")).await)
}

async fn get(store: AmazonS3) -> String {
    let result = async { store.get(&Path::from("report")).await?.bytes().await }.await;
    match &result {
        Ok(bytes) if bytes != OBJECT => "other bytes".to_owned(),
        _ => told(&result),
    }
}

/// Runs one operation against a new server.
async fn run(
    bucket: Bucket,
    fault: Fault,
    store: impl Fn(&FaultServer) -> AmazonS3,
    operation: impl AsyncFn(AmazonS3) -> String,
) -> Seen {
    let bucket = Arc::new(Mutex::new(bucket));
    let api = bucket.clone();
    let server = serve(fault, move |request| lock(&api).answer(request)).await;
    let mut told = operation(store(&server)).await;
    if lock(&bucket).is_down {
        told += &format!(", {} requests", server.received().len());
    }
    Seen::write(lock(&bucket).changes, told)
}

fn lock(bucket: &Mutex<Bucket>) -> MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut table =
        Table::new("object_store", "object_store 0.14.2, and an S3-like server", "object_store's own retries");
    let empty = Bucket::default;

    table.row(
        "put: written, then the connection closes",
        (run(empty(), Fault::Closed, naive, put).await, "once, ok"),
        (run(empty(), Fault::Closed, with_steadfast, put).await, "once, ok"),
    );
    table.row(
        "put if absent: written, then closes",
        (run(empty(), Fault::Closed, naive, put_if_absent).await, "once, error: exists already"),
        (run(empty(), Fault::Closed, with_steadfast, put_if_absent).await, "once, error: may have run"),
    );
    table.row(
        "put if absent: 503, and not written",
        (run(empty(), Fault::Refused(503), naive, put_if_absent).await, "once, ok"),
        (run(empty(), Fault::Refused(503), with_steadfast, put_if_absent).await, "once, ok"),
    );
    for (situation, fault) in [
        ("multipart: begun, then the connection closes", Fault::Closed),
        ("multipart: begun, then half a response", Fault::HalfHead),
        ("multipart: begun, then 500", Fault::Late(500)),
    ] {
        table.row(
            situation,
            (run(empty(), fault, naive, begin_multipart).await, "twice, ok"),
            (run(empty(), fault, with_steadfast, begin_multipart).await, "once, error: may have run"),
        );
    }
    table.row(
        "multipart: connection refused",
        (run(empty(), Fault::NoConnection, naive, begin_multipart).await, "never, error"),
        (run(empty(), Fault::NoConnection, with_steadfast, begin_multipart).await, "never, error: has not run"),
    );
    for (situation, fault) in [
        ("get: the connection closes", Fault::Closed),
        ("get: the connection is reset before it is read", Fault::ResetOnAccept),
        ("get: 503", Fault::Refused(503)),
    ] {
        let stored = || Bucket::with_object(false);
        table.row(
            situation,
            (run(stored(), fault, naive, get).await.as_read(), "read, ok"),
            (run(stored(), fault, with_steadfast, get).await.as_read(), "read, ok"),
        );
    }
    let cut = || Bucket::with_object(true);
    table.row(
        "get: the connection closes within the object",
        (run(cut(), Fault::None, naive, get).await.as_read(), "read, ok"),
        (run(cut(), Fault::None, with_steadfast, get).await.as_read(), "read, ok"),
    );
    table.row(
        "get: 503 for good",
        (run(Bucket::down(), Fault::None, naive, get).await.as_read(), "read, error, 11 requests"),
        (
            run(Bucket::down(), Fault::None, with_steadfast, get).await.as_read(),
            "read, error: may have run, 9 requests",
        ),
    );
    table.finish()
}
