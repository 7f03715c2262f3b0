//! Measures the cost of the idempotency layer for each store: added microseconds per request, and
//! claims per second.
//!
//! ```text
//! ./scripts/with_servers.sh cargo bench -p steadfast-benches --bench server
//! ```
//!
//! The handler responds at once, and only the last table uses a socket, so this measures the layer
//! and its store. `STEADFAST_REDIS_URL` and `STEADFAST_POSTGRES_URL` add Redis and PostgreSQL. The
//! output is Markdown tables. Times differ between machines, and no check depends on them.

// A benchmark stops if it cannot do its work.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "it measures time, and stops if it cannot"
)]

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use axum::routing::post;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use indicatif::{ProgressBar, ProgressStyle};
use steadfast::server::{
    Claim, ClaimOutcome, ClaimRef, Completion, End, Fingerprint, IdempotencyLayer, MemoryStore, Record, RecordId,
    Scope, SharedStore, Store,
};
use tower::{Service, ServiceBuilder, ServiceExt};
const HOUR: Duration = Duration::from_secs(3600);
/// Records in memory expire as fast as they arrive, as in a process that has run for a day. With a
/// longer retention, this would measure a growing memory.
const SHORT: Duration = Duration::from_millis(100);
/// Duration of a count of claims.
const TIME: Duration = Duration::from_secs(2);
/// Duration of one measurement with several threads.
const SPELL: Duration = Duration::from_secs(1);
const SPELLS: usize = 9;
/// Duration of one turn. Each contender takes turns with the bare handler, and the result is the
/// median of the differences. So a machine that is slow for a second is slow for both.
const TURN: Duration = Duration::from_millis(200);
const TURNS: usize = 15;
const IN_FLIGHT: usize = 64;

const CHARGE: &str = r#"{"amount":1200,"currency":"eur"}"#;
const ANSWER: &str = r#"{"id":"ch_1","amount":1200}"#;

type Body = Full<Bytes>;

/// Responds like a JSON handler, with a header and bytes of its own: it matters which thread frees
/// them.
async fn handler(_: Request<Body>) -> Result<Response<Body>, Infallible> {
    let mut response = Response::new(Full::new(ANSWER.to_owned().into()));
    *response.status_mut() = StatusCode::CREATED;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Runs the handler on a task of its own, as the layer does.
async fn spawned(request: Request<Body>) -> Result<Response<Body>, Infallible> {
    tokio::spawn(handler(request)).await.unwrap()
}

fn request(key: &str) -> Request<Body> {
    let body = Full::new(CHARGE.into());
    Request::post("/charges").header("idempotency-key", key).body(body).unwrap()
}

/// Returns a key that no other measurement uses, in this run or another.
fn key(run: u64, number: u64) -> String {
    // Full length at once: a growing string takes the allocator's lock for every piece.
    let mut key = String::with_capacity(34);
    write!(key, "{:08x}-{run:08x}-{number:016x}", std::process::id()).unwrap();
    key
}

fn new_run() -> u64 {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    RUNS.fetch_add(1, Ordering::Relaxed)
}

/// Returns the microseconds of one call, with calls one after the other for `time`.
async fn microseconds<S, R>(mut service: S, time: Duration, mut next: impl FnMut(u64) -> String) -> f64
where
    S: Service<Request<Body>, Response = Response<R>, Error = Infallible>,
{
    let start = Instant::now();
    let mut calls = 0_u32;
    while start.elapsed() < time {
        let answer = service.ready().await.unwrap().call(request(&next(calls.into()))).await.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED);
        calls += 1;
    }
    start.elapsed().as_secs_f64() * 1e6 / f64::from(calls)
}

/// Returns the claims made and completed in a second, `in_flight` at a time, each with a key of its
/// own.
async fn claims_a_second<S: Store>(store: &Arc<S>, in_flight: usize, life: Duration) -> f64 {
    let run = new_run();
    let record = Record::new(StatusCode::CREATED, &http::HeaderMap::new(), "done".into());
    let number = Arc::new(AtomicU64::new(0));
    let mut workers = tokio::task::JoinSet::new();
    let start = Instant::now();
    for _ in 0..in_flight {
        let (store, record, number) = (store.clone(), record.clone(), number.clone());
        workers.spawn(async move {
            while start.elapsed() < TIME {
                let id = RecordId::new("claims", &key(run, number.fetch_add(1, Ordering::Relaxed)));
                let token = store.token().unwrap();
                let claim = Claim::new(&id, token, Fingerprint::from_bytes([1; 32]), life, life);
                let ClaimOutcome::Acquired(session) = store.claim(&claim).await.unwrap() else {
                    panic!("a key was used twice")
                };
                store
                    .finish(
                        ClaimRef::new(id, token),
                        Some(session),
                        &End::Completed(Completion::new(record.clone(), life)),
                    )
                    .await
                    .unwrap();
                // Yields like a task with other work, so that the others have their turn.
                tokio::task::yield_now().await;
            }
        });
    }
    workers.join_all().await;
    f64::from(u32::try_from(number.load(Ordering::Relaxed)).unwrap()) / start.elapsed().as_secs_f64()
}

/// The contenders that take turns with two threads. The second shares nothing between threads, so
/// its gain is the most that a second core can add.
const CONTENDERS: [&str; 4] = [
    "the layer over a memory store",
    "a layer and a store for each thread",
    "the handler on a task of its own",
    "the handler alone",
];

fn memory_layer() -> IdempotencyLayer<MemoryStore> {
    over(Arc::new(MemoryStore::new()), SHORT)
}

/// The lease is short in proportion to the retention, as by default.
fn over<S: Store>(store: Arc<S>, life: Duration) -> IdempotencyLayer<S> {
    IdempotencyLayer::with_shared_store(SharedStore::from(store), Scope::single_caller())
        .retention(life)
        .lease(life / 20)
}

/// Calls per second of each contender: with one thread, and with two.
type Turn = [[f64; CONTENDERS.len()]; 2];

/// Measures each contender in turns.
///
/// The threads live as long as the measurement, like a server's. The memory of an ended thread is
/// adopted by another, and whoever frees it waits for that one.
fn by_threads() -> Vec<Turn> {
    let (layer, start) = (memory_layer(), Barrier::new(2));
    let work = |thread: usize| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let layered = |layer: IdempotencyLayer<_>| ServiceBuilder::new().layer(layer).service_fn(handler);
        let (layer, apart) = (layered(layer.clone()), layered(memory_layer()));
        let calls = async |contender| {
            let (run, thread) = (new_run(), thread as u64);
            let next = |number| key(run, thread << 40 | number);
            1e6 / match contender {
                0 => microseconds(layer.clone(), SPELL, next).await,
                1 => microseconds(apart.clone(), SPELL, next).await,
                2 => microseconds(tower::service_fn(spawned), SPELL, next).await,
                _ => microseconds(tower::service_fn(handler), SPELL, next).await,
            }
        };
        let spell = |threads, contender| {
            start.wait();
            if thread < threads { runtime.block_on(calls(contender)) } else { 0.0 }
        };
        (0..=SPELLS).map(|_| [1, 2].map(|threads| [0, 1, 2, 3].map(|contender| spell(threads, contender)))).collect()
    };
    let [first, second]: [Vec<Turn>; 2] = std::thread::scope(|scope| {
        [0, 1].map(|thread| scope.spawn(move || work(thread))).map(|worker| worker.join().unwrap())
    });
    let sum = |(first, second): (Turn, Turn)| {
        [0, 1].map(|threads| std::array::from_fn(|contender| first[threads][contender] + second[threads][contender]))
    };
    first.into_iter().zip(second).map(sum).collect()
}

/// Returns the calls per second of each contender, many at a time, on one runtime of two busy
/// workers. The contender that shares nothing is left out, because its threads are runtimes.
fn busy() -> Vec<[f64; 4]> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let layered = ServiceBuilder::new().layer(memory_layer()).service_fn(handler);
    let turn = |_| {
        [
            runtime.block_on(at_once(layered.clone())),
            f64::NAN,
            runtime.block_on(at_once(tower::service_fn(spawned))),
            runtime.block_on(at_once(tower::service_fn(handler))),
        ]
    };
    (0..=SPELLS).map(turn).collect()
}

async fn at_once<S, R>(service: S) -> f64
where
    S: Service<Request<Body>, Response = Response<R>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    R: Send,
{
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (service, run) = (service.clone(), new_run());
        callers.spawn(async move {
            let (start, mut calls, mut service) = (Instant::now(), 0_u32, service);
            while start.elapsed() < SPELL {
                let request = request(&key(run, calls.into()));
                service.ready().await.unwrap().call(request).await.unwrap();
                calls += 1;
                // Yields like a connection that waits for its next request.
                tokio::task::yield_now().await;
            }
            f64::from(calls) / start.elapsed().as_secs_f64()
        });
    }
    callers.join_all().await.iter().sum()
}

/// Returns the nanoseconds for a cache line to move between the cores. It puts the ratios into
/// proportion: on a virtual machine it may be ten times higher a minute later, when its cores have
/// moved apart.
fn handover() -> f64 {
    const TIMES: u64 = 100_000;
    let line = AtomicU64::new(0);
    let hand_on = |thread: u64| {
        for number in (thread..TIMES).step_by(2) {
            while line.load(Ordering::Acquire) != number {
                std::hint::spin_loop();
            }
            line.store(number + 1, Ordering::Release);
        }
    };
    let once = || {
        let start = Instant::now();
        line.store(0, Ordering::Relaxed);
        std::thread::scope(|scope| [0, 1].map(|thread| _ = scope.spawn(move || hand_on(thread))));
        start.elapsed().as_secs_f64() * 1e9 / TIMES as f64
    };
    median((0..9).map(|_| once()).collect())
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn scaling() {
    let before = handover();
    // The first turn does not count: a core that has just woken up is slow.
    let (by_threads, busy) = (by_threads().split_off(1), busy().split_off(1));
    let after = handover();
    println!(
        "\nA cache line went from core to core in {before:.0} ns before this table was made, and in {after:.0} ns afterwards."
    );
    println!(
        "\n| first executions | a second, one thread | adds, µs | a second, two threads | ratio | two busy workers: adds, µs of a core |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for (index, name) in CONTENDERS.iter().enumerate() {
        let of = |number: &dyn Fn(&Turn) -> f64| median(by_threads.iter().map(number).collect());
        let [one, two] = [0, 1].map(|threads| of(&|turn| turn[threads][index]));
        let added = of(&|[one, _]| 1e6 / one[index] - 1e6 / one[3]);
        let ratio = of(&|[one, two]| two[index] / one[index]);
        let busy = median(busy.iter().map(|turn| 2e6 / turn[index] - 2e6 / turn[3]).collect());
        let busy = if busy.is_nan() { "-".to_owned() } else { format!("{busy:.1}") };
        println!("| {name} | {one:.0} | {added:.1} | {two:.0} | {ratio:.2} | {busy} |");
    }
}

/// Measures a POST over a socket. The kernel and the connection have used the caches in between,
/// and sleeping workers have to wake up.
fn over_sockets() {
    let by_workers = [1, 2].map(posts);
    println!(
        "\n| a POST over a socket, one at a time | one worker, µs | more than the handler alone | two workers, µs | more |"
    );
    println!("| --- | --- | --- | --- | --- |");
    for (route, name) in ROUTES.iter().enumerate() {
        let [one, two] = by_workers.each_ref().map(|turns| {
            let whole = median(turns.iter().map(|turn| turn[route]).collect());
            let more = median(turns.iter().map(|turn| turn[route] - turn[0]).collect());
            format!("{whole:.1} | {more:.1}")
        });
        println!("| {name} | {one} | {two} |");
    }
}

const ROUTES: [&str; 4] = ["the handler alone", "the handler on a task of its own", "a replay", "a first execution"];

/// Returns the medians of each turn for each route.
fn posts(workers: usize) -> Vec<[f64; 4]> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let (charge, layer) = (|_: Bytes| async { (StatusCode::CREATED, ANSWER) }, memory_layer());
    let app = axum::Router::new()
        .route("/0", post(charge))
        .route("/1", post(async move |body: Bytes| tokio::spawn(charge(body)).await.unwrap()))
        .route("/2", post(charge).layer(over(Arc::new(MemoryStore::new()), Duration::from_secs(60))))
        .route("/3", post(charge).layer(layer));
    runtime.spawn(axum::serve(listener, app).into_future());

    let mut connections = ROUTES.map(|_| Connection::to(address));
    let (run, mut number) = (new_run(), 0);
    let mut turn = || {
        let mut took = [const { Vec::new() }; 4];
        let start = Instant::now();
        // One request for each route in turn, so that other load on the machine affects all of
        // them.
        while start.elapsed() < TURN * 2 {
            number += 1;
            for (route, connection) in connections.iter_mut().enumerate() {
                took[route].push(connection.post(route, &key(run, if route == 2 { 0 } else { number })));
            }
        }
        took.map(median)
    };
    (0..TURNS).map(|_| turn()).collect()
}

/// A client with almost no cost of its own, which would hide the server's.
struct Connection(TcpStream);

impl Connection {
    fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    /// Returns the microseconds until the response arrives.
    fn post(&mut self, route: usize, key: &str) -> f64 {
        let length = CHARGE.len();
        let request = format!(
            "POST /{route} HTTP/1.1\r\nhost: x\r\nidempotency-key: {key}\r\ncontent-length: {length}\r\n\r\n{CHARGE}"
        );
        let mut answer = [0; 1024];
        let start = Instant::now();
        self.0.write_all(request.as_bytes()).unwrap();
        let length = self.0.read(&mut answer).unwrap();
        let took = start.elapsed();
        assert!(answer.starts_with(b"HTTP/1.1 201") && answer[..length].ends_with(ANSWER.as_bytes()));
        took.as_secs_f64() * 1e6
    }
}

/// Returns the microseconds that a service takes beyond the handler alone. `next` gets the number
/// of the call, over all turns.
async fn added<S, R>(service: impl Fn() -> S, next: impl Fn(u64) -> String) -> f64
where
    S: Service<Request<Body>, Response = Response<R>, Error = Infallible>,
{
    let run = new_run();
    let (mut differences, mut calls) = (Vec::new(), 0);
    for _ in 0..TURNS {
        let bare = microseconds(tower::service_fn(handler), TURN, |number| key(run, number)).await;
        let mut next = |_| {
            calls += 1;
            next(calls)
        };
        // Not timed: expired records are removed, four for each claim, until one is removed for
        // each new one.
        microseconds(service(), TURN, &mut next).await;
        differences.push(microseconds(service(), TURN, &mut next).await - bare);
    }
    median(differences)
}

struct Table {
    bar: ProgressBar,
}

impl Table {
    /// Measures a task, and the wait for it, without a layer.
    async fn row_of_a_task(&self) {
        self.bar.set_message("a task of its own");
        let run = new_run();
        let task = added(|| tower::service_fn(spawned), |number| key(run, number)).await;
        println!("| none: the handler on a task of its own | {task:.1} | - | - | - |");
        self.bar.inc(1);
    }

    /// Measures one store. `life` is the retention of its records.
    async fn row<S: Store>(&self, name: &str, store: S, in_flight: usize, life: Duration) {
        let store = Arc::new(store);
        let run = new_run();
        let service = || ServiceBuilder::new().layer(over(store.clone(), life)).service_fn(handler);
        self.bar.set_message(format!("{name}: first execution"));
        let first = added(service, |number| key(run, number)).await;
        self.bar.inc(1);
        self.bar.set_message(format!("{name}: replay"));
        let replay = added(service, |_| key(run, 0)).await;
        self.bar.inc(1);
        self.bar.set_message(format!("{name}: claims, one at a time"));
        let one = claims_a_second(&store, 1, life).await;
        self.bar.inc(1);
        self.bar.set_message(format!("{name}: claims, {in_flight} at a time"));
        let many = claims_a_second(&store, in_flight, life).await;
        self.bar.inc(1);
        println!("| {name} | {first:.1} | {replay:.1} | {one:.0} | {many:.0} ({in_flight}) |");
    }
}

fn main() {
    // One worker: the cost of waking another one is measured below, over sockets.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // Handlers run on the workers, as in a server, and not on the thread that blocks on the
    // runtime.
    let measured = runtime.spawn(measure());
    runtime.block_on(measured).unwrap();
    drop(runtime);
    scaling();
    over_sockets();
}

async fn measure() {
    let style = ProgressStyle::with_template("[{bar:40}] {pos}/{len} {msg}").unwrap();
    let table = Table { bar: ProgressBar::new(1 + stores() * 4).with_style(style) };
    println!("\n| store | first execution adds, µs | replay, µs | claims/s, one at a time | claims/s (at a time) |");
    println!("| --- | --- | --- | --- | --- |");
    table.row_of_a_task().await;
    table.row("memory", MemoryStore::new(), IN_FLIGHT, SHORT).await;
    {
        let folder = tempfile::tempdir().unwrap();
        let store = steadfast_redb::RedbStore::open(folder.path().join("keys.redb")).unwrap();
        table.row("redb", store, IN_FLIGHT, HOUR).await;
    }
    if let Ok(url) = std::env::var("STEADFAST_REDIS_URL") {
        table.row("Redis", steadfast_redis::RedisStore::connect(&url).await.unwrap(), IN_FLIGHT, HOUR).await;
    }
    if let Ok(url) = std::env::var("STEADFAST_POSTGRES_URL") {
        // A transaction holds a connection, so there are as many connections as claims in flight.
        let most = u32::try_from(IN_FLIGHT).unwrap();
        let pool = sqlx::postgres::PgPoolOptions::new().max_connections(most).connect(&url).await.unwrap();
        let store = steadfast_postgres::PostgresStore::new(pool);
        store.create_table().await.unwrap();
        table.row("PostgreSQL", store.clone(), IN_FLIGHT, HOUR).await;
        table.row("PostgreSQL, in the handler's transaction", store.transactional(), IN_FLIGHT, HOUR).await;
    }
    table.bar.finish_and_clear();
}

fn stores() -> u64 {
    let redis = std::env::var_os("STEADFAST_REDIS_URL").is_some();
    let postgres = std::env::var_os("STEADFAST_POSTGRES_URL").is_some();
    2 + u64::from(redis) + 2 * u64::from(postgres)
}
