//! Allocations of the client and of the server's layer. Counts are exact, so a test can hold them.
//!
//! This is a binary of its own because the counting allocator belongs to the whole process. It
//! counts for one thread; the test's server runs on others.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is its business")]

use std::io::{Read, Write};
use std::net::TcpListener;

use allocation_counter::measure;
use serde_json::Value;
use steadfast::{Client, KeyPolicy};

/// Sends every request the same 200, from a thread of its own.
fn server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/charges", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                // Small requests arrive in one piece here.
                while stream.read(&mut buffer).is_ok_and(|read| read > 0) {
                    let body = r#"{"id":"ch_1","amount":1200,"currency":"eur","paid":true}"#;
                    let head = format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                        body.len()
                    );
                    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
                }
            });
        }
    });
    url
}

/// Returns the lowest count of allocations of one call, once the connection and lazy state exist.
fn allocations<F: Future>(runtime: &tokio::runtime::Runtime, call: impl Fn() -> F) -> u64 {
    for _ in 0..5 {
        runtime.block_on(call());
    }
    (0..20).map(|_| measure(|| drop(runtime.block_on(call()))).count_total).min().unwrap()
}

/// Allocations of an operation, compared with a plain request of reqwest.
///
/// A GET pays for its URL and its journal. It saves the second parse of the URL and reqwest's own
/// retries, and fills in the headers once for each origin. A POST also pays for its key and the
/// probe of its body. A second set of headers, kept for the next attempt, is needed only if the
/// caller sets headers. A GET that is sent, and not fetched, pays six for the limit of pauses in its
/// body; with `read_timeout(None)` it pays nothing.
#[test]
fn operation_allocates_as_counted_beside_reqwest() {
    let url = server();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let plain = steadfast::reqwest::Client::new();
    let ours =
        Client::builder().base_url(url.trim_end_matches("/charges")).keys(KeyPolicy::standard()).build().unwrap();
    let body = serde_json::json!({ "amount": 1200 });

    let plain_get =
        allocations(&runtime, || async { plain.get(&url).send().await.unwrap().json::<Value>().await.unwrap() });
    let our_get = allocations(&runtime, || async { ours.get_json::<Value>("/charges").await.unwrap() });
    let plain_send = allocations(&runtime, || async { plain.get(&url).send().await.unwrap().bytes().await.unwrap() });
    let our_send =
        allocations(&runtime, || async { ours.get("/charges").send().await.unwrap().bytes().await.unwrap() });
    let plain_post = allocations(&runtime, || async {
        plain.post(&url).json(&body).send().await.unwrap().json::<Value>().await.unwrap()
    });
    let our_post = allocations(&runtime, || async { ours.post_json::<Value>("/charges", &body).await.unwrap() });
    let counts = [(our_get, plain_get), (our_send, plain_send), (our_post, plain_post)];
    println!("ours and plain: GET fetched, GET sent, POST fetched: {counts:?}");
    let above = counts.map(|(ours, plain)| i64::try_from(ours).unwrap() - i64::try_from(plain).unwrap());
    let unlimited = Client::builder().base_url(url.trim_end_matches("/charges")).read_timeout(None).build().unwrap();
    let without_limit =
        allocations(&runtime, || async { unlimited.get("/charges").send().await.unwrap().bytes().await.unwrap() });
    assert_eq!(our_send - without_limit, 6);
    // With more features reqwest itself allocates more, and not equally for both.
    let expected = if cfg!(feature = "gzip") { [-7, 1, -5] } else { [-8, 0, -4] };
    assert_eq!(above, expected);
}

#[test]
fn client_clone_and_event_allocate_nothing() {
    let url = server();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let unwatched = Client::builder().base_url(&url).build().unwrap();
    let watched = Client::builder().base_url(&url).on_event(|_| ()).build().unwrap();
    assert_eq!(measure(|| drop(unwatched.clone())).count_total, 0);
    let [unwatched, watched] = [unwatched, watched]
        .map(|client| allocations(&runtime, || async { client.get_json::<Value>("").await.unwrap() }));
    assert_eq!(watched, unwatched);
}

/// Every request in flight holds this future, and it is moved before the first poll.
#[test]
fn operation_future_is_small() {
    let client = Client::new();
    let sizes = [
        size_of_val(&client.get("http://127.0.0.1/").fetch::<Value>()),
        size_of_val(&client.get("http://127.0.0.1/").send()),
        size_of_val(&client.post_json::<Value>("http://127.0.0.1/", &1)),
    ];
    println!("fetch, send, post_json: {sizes:?} bytes");
    // The tests of the stores' clock need tokio's `test-util`, which makes a timer larger.
    const TEST_UTIL: usize = 16;
    // The end of the operation, for an attempt that outlasts its timeout, took 32.
    assert!(sizes.iter().all(|size| *size <= 1552 + TEST_UTIL), "{sizes:?}");
}

/// Allocations of the layer itself: its tasks and futures, the handler's request extensions, the
/// record and the status header.
#[test]
fn layer_allocates_as_counted() {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU64, Ordering};

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Full;
    use steadfast::server::{IdempotencyLayer, Scope};
    use tower::{ServiceBuilder, ServiceExt};

    async fn handler(_: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, Infallible> {
        Ok(Response::new(Full::new(Bytes::from_static(b"{\"id\":\"ch_1\"}"))))
    }
    let request = |key: &str| {
        let body = Full::new(Bytes::from_static(b"{\"amount\":1200}"));
        Request::post("/charges").header("idempotency-key", key).body(body).unwrap()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The first record of each of the store's parts makes room for several.
    let store = filled(&runtime);
    let layered = ServiceBuilder::new().layer(IdempotencyLayer::new(store, Scope::single_caller())).service_fn(handler);
    let bare = tower::service_fn(handler);
    let number = AtomicU64::new(0);
    let next = || format!("{:036}", number.fetch_add(1, Ordering::Relaxed));

    let alone = allocations(&runtime, || async { bare.oneshot(request(&next())).await.unwrap() });
    let first = allocations(&runtime, || async { layered.clone().oneshot(request(&next())).await.unwrap() });
    let replay =
        allocations(&runtime, || async { layered.clone().oneshot(request(&format!("{:036}", 0))).await.unwrap() });
    println!("the handler, a first execution, a replay: {:?}", [alone, first, replay]);
    // A replay is a task of its own as well, which is one more than on the connection's task.
    assert_eq!([first - alone, replay - alone], [14, 8]);
}

/// Returns a store with a few records in each of its parts.
fn filled(runtime: &tokio::runtime::Runtime) -> steadfast::server::MemoryStore {
    use std::time::Duration;

    use steadfast::server::{Claim, Fingerprint, MemoryStore, RecordId, Store};

    let (store, time) = (MemoryStore::new(), Duration::from_secs(3600));
    for key in 0..2000 {
        let id = RecordId::new("filled", &key.to_string());
        let claim = Claim::new(&id, store.token().unwrap(), Fingerprint::of("pay"), time, time);
        runtime.block_on(store.claim(&claim)).unwrap();
    }
    store
}

/// Request and response bodies in pieces of one byte. Each piece would keep the whole buffer that
/// it was cut from.
#[test]
fn body_in_small_pieces_takes_little_extra_memory() {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body::{Body, Frame, SizeHint};
    use steadfast::server::{IdempotencyLayer, MemoryStore, Scope};
    use tower::{ServiceBuilder, ServiceExt};

    const LENGTH: usize = 1024 * 1024;

    /// A body as it arrives in chunks: `1\r\nx\r\n` again and again, in the connection's buffer.
    struct Pieces {
        left: usize,
        /// Whether the body announces its length.
        told: bool,
        buffer: Bytes,
    }

    impl From<Bytes> for Pieces {
        fn from(buffer: Bytes) -> Self {
            Self { left: 0, told: true, buffer }
        }
    }

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            if self.left == 0 {
                return Poll::Ready(None);
            }
            self.left -= 1;
            if self.buffer.len() < 6 {
                self.buffer = Bytes::from(vec![0; 8192]);
            }
            let piece = self.buffer.split_to(6).slice(3..4);
            Poll::Ready(Some(Ok(Frame::data(piece))))
        }

        fn size_hint(&self) -> SizeHint {
            if self.told { SizeHint::with_exact(self.left.try_into().unwrap()) } else { SizeHint::default() }
        }
    }

    fn in_pieces(told: bool) -> Pieces {
        Pieces { left: LENGTH, told, buffer: Bytes::new() }
    }
    let handler = |request: Request<Pieces>| async move {
        assert_eq!(request.body().buffer.len(), LENGTH);
        Ok::<_, Infallible>(Response::new(in_pieces(true)))
    };

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).max_body(LENGTH).max_response(LENGTH);
    let service = ServiceBuilder::new().layer(layer).service_fn(handler);
    let request = Request::post("/").header("idempotency-key", "k").body(in_pieces(false)).unwrap();
    let took = measure(|| {
        let answer = runtime.block_on(service.oneshot(request)).unwrap();
        assert_eq!(answer.headers()["idempotency-status"], "stored;retention=86400");
    });
    println!("{} bytes at most", took.bytes_max);
    assert!(took.bytes_max < 3 * 1024 * 1024, "{} bytes", took.bytes_max);
}

/// The bytes that a store counts, and the bytes that its records keep allocated.
fn counted_and_held(records: u32, body: impl Fn() -> bytes::Bytes) -> (usize, i64) {
    use std::time::Duration;

    use http::{HeaderMap, HeaderValue, StatusCode, header};
    use steadfast::server::{Claim, Completion, End, Fingerprint, MemoryStore, Record, RecordId, Store};

    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    let (store, time) = (MemoryStore::new(), Duration::from_secs(3600));
    let held = measure(|| {
        runtime.block_on(async {
            for key in 0..records {
                let id = RecordId::new("", &key.to_string());
                let claim = Claim::new(&id, store.token().unwrap(), Fingerprint::of("pay"), time, time);
                store.claim(&claim.reserve(1024 * 1024)).await.unwrap();
                let end = End::Completed(Completion::new(Record::new(StatusCode::OK, &headers, body()), time));
                store.finish(claim.reference(), Some(()), &end).await.unwrap();
                // Replayed, which shares the stored bytes.
                store.get(&id).await.unwrap();
            }
        });
    });
    (store.bytes(), held.bytes_current)
}

#[test]
fn records_take_half_more_than_is_counted_at_most() {
    use bytes::Bytes;

    for (records, length, buffer) in [(100_000, 2, 2), (20_000, 1_000, 1_000), (2_000, 5_000, 1024 * 1024)] {
        let body = || Bytes::from(vec![b'x'; buffer]).slice(..length);
        let (counted, held) = counted_and_held(records, body);
        let held = usize::try_from(held).unwrap();
        println!("{records} responses of {length} bytes: {counted} bytes counted, {held} held");
        assert!(2 * held <= 3 * counted, "{held} held, {counted} counted");
        assert!(counted / usize::try_from(records).unwrap() < length + 300, "{counted}");
    }
}
