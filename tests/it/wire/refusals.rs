//! Requests that a server hands back unprocessed, as every server does that retires a connection.
//! No healthy call fails because of it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use steadfast::policy::{BreakerPolicy, BreakerState, Failure, RetryBudget, RetryPolicy, StopReason};
use steadfast::{Client, ClientBuilder, EventKind, KeyPolicy, ResponseExt};
use steadfast_testing::{FaultServer, FaultStep, fast_retries};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::http2::{ACK, END_HEADERS, END_STREAM, GOAWAY, HEADERS, SETTINGS, read, send, status_line};

/// A client without keys that speaks HTTP/2 with prior knowledge.
fn http2() -> ClientBuilder {
    Client::builder().keys(KeyPolicy::off()).http(|http| http.http2_prior_knowledge())
}

#[tokio::test]
async fn refused_requests_are_repeated_twice_for_free() {
    let empty = || RetryBudget::standard().initial(0);
    let cases = [
        (fast_retries(), RetryBudget::standard(), 5, StopReason::AttemptsExhausted),
        (fast_retries().max_attempts(7), RetryBudget::unlimited(), 9, StopReason::AttemptsExhausted),
        (fast_retries().max_attempts(1), empty(), 3, StopReason::AttemptsExhausted),
        (fast_retries(), empty(), 3, StopReason::BudgetExhausted),
        (RetryPolicy::never(), RetryBudget::standard(), 1, StopReason::AttemptsExhausted),
    ];
    for (policy, budget, sends, reason) in cases {
        let server = FaultServer::play([FaultStep::refuse_stream()]).await;
        let client = http2().base_url(server.url("")).retry(policy).budget(budget).build().unwrap();
        let error = client.post("/charges").body("x").send().await.unwrap_err();
        assert_eq!((server.received().len(), server.executions()), (sends, 0), "{error:#}");
        assert_eq!((error.attempts().len(), error.stop_reason()), (sends, Some(reason)), "{error:#}");
        assert!(!error.may_have_been_processed(), "{error:#}");
    }
}

#[tokio::test]
async fn free_repeats_are_in_journal_and_events() {
    let server = FaultServer::play([
        FaultStep::refuse_stream(),
        FaultStep::refuse_stream(),
        FaultStep::refuse_stream(),
        FaultStep::ok(),
    ])
    .await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let shared = told.clone();
    let client = http2().base_url(server.url("")).retry(fast_retries()).on_event(move |event| {
        if let EventKind::RetryScheduled { number, free, .. } = event.kind() {
            shared.lock().unwrap().push((number, free));
        }
    });
    let response = client.build().unwrap().post("/charges").body("x").send().await.unwrap();
    let journal: Vec<_> =
        response.attempts().iter().map(|attempt| (attempt.failure(), attempt.free_repeat())).collect();
    let refused = Some(Failure::Refused);
    assert_eq!(journal, [(refused, true), (refused, true), (refused, false), (None, false)]);
    assert_eq!(*told.lock().unwrap(), [(2, true), (3, true), (4, false)]);
    assert_eq!((server.received().len(), server.executions()), (4, 1));
}

#[tokio::test]
async fn free_repeats_keep_circuit_closed() {
    let refused_twice_each =
        |turn, _: Option<&_>| if turn % 3 == 2 { FaultStep::ok() } else { FaultStep::refuse_stream() };
    let server = FaultServer::start(refused_twice_each).await;
    let breaker = BreakerPolicy::new().min_calls(4);
    let client = http2().base_url(server.url("")).breaker(breaker.clone()).build().unwrap();
    for _ in 0..20 {
        client.post("/charges").body("x").send().await.unwrap();
    }
    assert_eq!((client.breaker_state("/charges"), server.executions()), (Some(BreakerState::Closed), 20));

    let server = FaultServer::play([FaultStep::refuse_stream()]).await;
    let client = http2().base_url(server.url("")).breaker(breaker).retry(fast_retries()).build().unwrap();
    for _ in 0..2 {
        client.post("/charges").body("x").send().await.unwrap_err();
    }
    let state = client.breaker_state("/charges");
    assert!(matches!(state, Some(BreakerState::Open { .. })), "all others count: {state:?}");
}

/// A server whose first connection responds to one request. Once enough further requests are
/// waiting, it refuses them all by a `GOAWAY`.
struct Retiring {
    address: SocketAddr,
    /// Number of heads that arrived.
    sends: Arc<AtomicUsize>,
    executions: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Retiring {
    async fn start(crowd: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sends, executions) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let shared = (sends.clone(), executions.clone());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            for turn in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (sends, executions) = shared.clone();
                let retires_after = (turn == 0).then_some(crowd);
                connections.spawn(async move { serve(stream, retires_after, &sends, &executions).await });
            }
        });
        Self { address, sends, executions, task }
    }
}

impl Drop for Retiring {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    retires_after: Option<usize>,
    sends: &AtomicUsize,
    executions: &AtomicUsize,
) -> std::io::Result<()> {
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut [0; 24]).await?;
    send(&mut stream, SETTINGS, 0, 0, &[]).await?;
    let mut heads = 0;
    loop {
        let frame = read(&mut stream).await?;
        match frame.kind {
            SETTINGS if frame.flags & ACK == 0 => send(&mut stream, SETTINGS, ACK, 0, &[]).await?,
            HEADERS => {
                heads += 1;
                sends.fetch_add(1, Ordering::SeqCst);
                if retires_after.is_none() || heads == 1 {
                    executions.fetch_add(1, Ordering::SeqCst);
                    send(&mut stream, HEADERS, END_HEADERS | END_STREAM, frame.stream, &status_line(200)).await?;
                } else if Some(heads) == retires_after.map(|crowd| crowd + 1) {
                    // The last processed stream is the first one; 0 is NO_ERROR.
                    send(&mut stream, GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]).await?;
                }
            }
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retired_connection_fails_no_call() {
    const CROWD: usize = 90;
    let server = Retiring::start(CROWD).await;
    // With an empty budget, because none of these repeats adds load to a server.
    let client = http2().budget(RetryBudget::standard().initial(0)).build().unwrap();
    let url = format!("http://{}/", server.address);
    client.get(&url).send().await.unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..CROWD {
        let (client, url) = (client.clone(), url.clone());
        calls.spawn(async move { client.post(url).send().await });
    }
    for answered in calls.join_all().await {
        let answered = answered.unwrap();
        assert!(answered.attempts().len() <= 3, "{:?}", answered.attempts());
    }
    assert_eq!(server.executions.load(Ordering::SeqCst), CROWD + 1);
    let sends = server.sends.load(Ordering::SeqCst);
    assert!((2 * CROWD + 1..=3 * CROWD + 1).contains(&sends), "{sends} heads arrived");
}

/// The client may open a hundred streams before it knows the server's limit. The server refuses
/// those above the limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn burst_on_fresh_connection_fails_no_call() {
    const BURST: usize = 100;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let executions = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    let shared = executions.clone();
    let server = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(limited(stream, shared.clone()));
        }
    });
    for round in 0..5 {
        let client = http2().budget(RetryBudget::standard().initial(0)).build().unwrap();
        let mut calls = JoinSet::new();
        for number in 0..BURST {
            let (client, url) = (client.clone(), format!("{url}/{round}/{number}"));
            calls.spawn(async move { client.post(url).body("x").send().await });
        }
        for answered in calls.join_all().await {
            answered.unwrap();
        }
    }
    server.abort();
    let executions = executions.lock().unwrap();
    assert_eq!((executions.len(), executions.values().max()), (5 * BURST, Some(&1)));
}

/// Takes ten streams at a time, and announces that late, as a server does that is some milliseconds
/// away.
async fn limited(stream: TcpStream, executions: Arc<Mutex<HashMap<String, usize>>>) {
    let late = tokio::time::Instant::now() + Duration::from_millis(50);
    let _never = tokio::time::timeout_at(late, std::future::pending::<()>()).await;
    let mut server = h2::server::Builder::new();
    let mut connection = server.max_concurrent_streams(10).handshake::<_, Bytes>(stream).await.unwrap();
    let mut exchanges = JoinSet::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        *executions.lock().unwrap().entry(request.uri().path().to_owned()).or_default() += 1;
        exchanges.spawn(async move {
            let soon = tokio::time::Instant::now() + Duration::from_millis(5);
            let _never = tokio::time::timeout_at(soon, std::future::pending::<()>()).await;
            respond.send_response(http::Response::new(()), true)
        });
    }
}
