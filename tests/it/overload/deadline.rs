//! Deadlines of a task: nothing starts after them, and the server learns the time left and refuses
//! late requests.

use std::time::Duration;

use steadfast::http::HeaderName;
use steadfast::policy::{Backoff, RetryPolicy, StopReason};
use steadfast::{Deadline, ErrorKind, EventKind, ResponseExt, with_deadline};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, fast_retries};

use crate::support::{doubting, trusting};

const SECOND: Duration = Duration::from_secs(1);
const HEADER: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

#[tokio::test]
async fn operation_ends_at_task_deadline() {
    let server = FaultServer::play([FaultStep::stall(FaultPoint::AfterExecuting)]).await;
    let client = trusting(&server).build().unwrap();
    let error = with_deadline(Duration::from_millis(100), client.post("/charges").body("x").send()).await.unwrap_err();
    assert!(error.is_timeout() && error.may_have_been_processed(), "{error}");
    assert_eq!((error.stop_reason(), server.received().len()), (Some(StopReason::DeadlineExceeded), 1));
    assert!(error.elapsed() < 5 * SECOND, "{error}");
}

#[tokio::test]
async fn no_wait_ends_after_task_deadline() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(503))]).await;
    let slowly = RetryPolicy::new().backoff(Backoff::fixed(20 * SECOND));
    let client = doubting(&server).retry(slowly).build().unwrap();
    let response = with_deadline(SECOND, client.get("/").send()).await.unwrap();
    // Full jitter may draw a short wait; the next wait then ends the operation.
    assert!(matches!(response.stop_reason(), Some(StopReason::DeadlineExceeded | StopReason::AttemptsExhausted)));
    assert!(response.elapsed() < SECOND);

    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let client = doubting(&server).retry(fast_retries().max_attempts(1)).timeout(7 * SECOND).on_event(move |event| {
        if let EventKind::OperationStarted { deadline, .. } = event.kind() {
            tell.send(deadline.unwrap()).unwrap();
        }
    });
    let client = client.build().unwrap();
    with_deadline(3600 * SECOND, client.get("/").send()).await.unwrap();
    assert_eq!(told.recv().await.unwrap(), 7 * SECOND);
    with_deadline(3 * SECOND, client.get("/").send()).await.unwrap();
    assert!(told.recv().await.unwrap() <= 3 * SECOND);
}

#[tokio::test]
async fn nothing_is_sent_after_task_deadline() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(200))]).await;
    let client = trusting(&server).build().unwrap();
    let late = with_deadline(Duration::ZERO, async {
        assert_eq!(Deadline::current().unwrap().time_left(), Duration::ZERO);
        client.post("/charges").body("x").send().await.unwrap_err()
    });
    let error = late.await;
    assert_eq!((server.received().len(), error.attempts().len()), (0, 0));
    assert_eq!((error.kind(), error.stop_reason()), (ErrorKind::Timeout, Some(StopReason::DeadlineExceeded)));
    assert!(!error.may_have_been_processed());
    let text = error.to_string();
    assert!(
        text.contains(
            "no time is left before the first attempt \
             (deadline exceeded: the task's deadline, set by with_deadline; not processed; key "
        ),
        "{text}"
    );
}

#[tokio::test]
async fn deadline_header_has_time_left_for_attempt() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(503)), FaultStep::answer(Answer::new(200))]).await;
    let client = doubting(&server).attempt_timeout(8 * SECOND).deadline_header(HEADER).build().unwrap();
    client.get("/").header(HEADER, "99").send().await.unwrap();
    with_deadline(2 * SECOND, client.get("/").send()).await.unwrap();
    client.get("/").attempt_timeout(None).timeout(None).send().await.unwrap();
    let told: Vec<Option<u64>> =
        server.received().iter().map(|request| request.header(HEADER.as_str()).map(|ms| ms.parse().unwrap())).collect();
    let [Some(first), Some(retry), Some(hurried), None] = told[..] else { panic!("{told:?}") };
    assert!((7000..=8000).contains(&first) && (7000..=8000).contains(&retry), "not what the caller wrote: {told:?}");
    assert!((1000..=2000).contains(&hurried), "{told:?}");
}

#[tokio::test]
async fn deadline_header_stays_on_base_origin() {
    let abroad = FaultServer::play([FaultStep::answer(Answer::new(200))]).await;
    let home = FaultServer::play([FaultStep::answer(Answer::new(302).header("location", abroad.url("/")))]).await;
    let client = doubting(&home).deadline_header(HEADER).build().unwrap();
    client.get("/").send().await.unwrap();
    assert!(home.received()[0].header(HEADER.as_str()).is_some());
    assert_eq!(abroad.received()[0].header(HEADER.as_str()), None);
}
mod layer {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::{Extension, Router, routing::post};
    use steadfast::policy::Class;
    use steadfast::server::{DeadlineLayer, IdempotencyLayer, MemoryStore, Scope};
    use steadfast::{Client, KeyPolicy};

    use super::*;

    struct Served {
        url: String,
        executions: Arc<AtomicUsize>,
        layer: IdempotencyLayer<MemoryStore>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Drop for Served {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    /// Starts a server that refuses requests with less than a second left. The handler responds
    /// with the milliseconds left.
    async fn serve() -> Served {
        let executions = Arc::new(AtomicUsize::new(0));
        let count = executions.clone();
        let handler = move |deadline: Option<Extension<Deadline>>| async move {
            count.fetch_add(1, Ordering::SeqCst);
            deadline.map_or(0, |Extension(deadline)| deadline.time_left().as_millis()).to_string()
        };
        let task_local =
            async || Deadline::current().map_or(0, |deadline| deadline.time_left().as_millis()).to_string();
        let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller());
        let keyed = Router::new().route("/charges", post(handler)).layer(layer.clone());
        let router = keyed.route("/plain", post(task_local)).layer(DeadlineLayer::new(HEADER).min_remaining(SECOND));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Served { url, executions, layer, task }
    }

    fn client(served: &Served) -> Client {
        let client = Client::builder().base_url(&served.url).keys(KeyPolicy::standard()).retry(fast_retries());
        client.deadline_header(HEADER).build().unwrap()
    }

    #[tokio::test]
    async fn late_request_is_refused_before_claim() {
        let served = serve().await;
        let client = client(&served);
        let request = || client.post("/charges").body("x").timeout(Duration::from_millis(900));
        for response in [request().send().await.unwrap(), request().idempotent(false).send().await.unwrap()] {
            assert_eq!(response.status(), 503);
            assert_eq!((response.attempts().len(), response.attempts()[0].class()), (3, Class::NotProcessed));
            assert!(!response.may_have_been_processed(), "its own word that it was not executed");
            let error = response.into_result().await.unwrap_err();
            let kind = error.problem().and_then(|problem| problem.kind).unwrap();
            assert!(kind.ends_with("#deadline-passed"), "{kind}");
        }
        assert_eq!(served.executions.load(Ordering::SeqCst), 0);
        assert_eq!(served.layer.metrics().executed, 0);

        let key: steadfast::IdempotencyKey = "one-key".parse().unwrap();
        let error = request().idempotency_key(key.clone()).fetch::<u64>().await.unwrap_err();
        assert!(!error.may_have_been_processed(), "{error}");
        // The refusal left the key unused.
        let left: u64 =
            client.post("/charges").body("x").idempotency_key(key).timeout(9 * SECOND).fetch().await.unwrap();
        assert!((7000..=9000).contains(&left), "{left}");
        assert_eq!(served.executions.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn handler_task_gets_deadline_from_valid_header() {
        let served = serve().await;
        let left: u64 = client(&served).post("/plain").timeout(5 * SECOND).fetch().await.unwrap();
        assert!((3000..=5000).contains(&left), "{left}");
        let plain = Client::builder().base_url(&served.url).build().unwrap();
        for value in ["soon", "", "-1", "0.5"] {
            let left: u64 = plain.post("/plain").header(HEADER, value).fetch().await.unwrap();
            assert_eq!(left, 0, "{value:?}");
        }
        let refused = plain.post("/plain").header(HEADER, "0").send().await.unwrap();
        assert_eq!(refused.status(), 503);
        assert!(refused.may_have_been_processed(), "who sends no deadline does not read the answer for it");
    }
}

/// An upload may outlast the attempt timeout, so the server must not take that for the end.
#[tokio::test]
async fn upload_tells_deadline_of_operation() {
    let server = FaultServer::play([FaultStep::execute(200)]).await;
    let client = trusting(&server).deadline_header(HEADER).build().unwrap();
    for bytes in [16 * 1024, 16 * 1024 + 1] {
        client.post("/upload").body(vec![b'x'; bytes]).send().await.unwrap();
    }
    let told = server.received().into_iter().map(|request| request.header(HEADER.as_str()).unwrap().parse().unwrap());
    let told: Vec<u64> = told.collect();
    assert!(told[0] <= 10_000 && (20_000..=30_000).contains(&told[1]), "{told:?}");
}
