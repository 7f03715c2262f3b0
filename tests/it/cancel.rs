//! An operation can be dropped at every point, and leaves nothing behind.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use steadfast::policy::{Backoff, HedgePolicy, RetryBudget, RetryPolicy, StopReason};
use steadfast::{Client, KeyPolicy, ResponseExt};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, fast_retries};

/// Polls `future` up to `polls` times, whenever it wakes, and then drops it. Returns `None` if it
/// was dropped before its end.
async fn poll_at_most<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

/// Drops the future of `start` at its first poll, at its second, and so on until it completes. Each
/// round has a client of its own. Returns the number of polls.
async fn drop_everywhere<F: Future>(start: impl Fn(Client) -> F) -> usize {
    let policy = RetryPolicy::new().max_attempts(3).backoff(Backoff::fixed(Duration::from_millis(2)));
    for polls in 0.. {
        let before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let client = Client::builder().retry(policy.clone()).keys(KeyPolicy::standard()).build().unwrap();
        let finished = poll_at_most(start(client), polls).await.is_some();
        // Connections belong to the pool, which is dropped with the client. The server's tasks end
        // with them.
        let gone = async {
            while tokio::runtime::Handle::current().metrics().num_alive_tasks() > before {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("a task stayed behind");
        if finished {
            return polls;
        }
    }
    unreachable!("it ends some time")
}

#[tokio::test]
async fn operation_dropped_at_any_poll_leaves_no_task() {
    let failing = FaultServer::play([FaultStep::answer(Answer::new(503).body("x".repeat(3000)))]).await;
    let url = failing.url("/");
    // Waits, and response bodies that are drained.
    assert!(drop_everywhere(|client| client.post(&url).body("x").send()).await > 6);
    assert!(drop_everywhere(|client| client.post(&url).body("x").fetch::<()>()).await > 6);
    // Two attempts at once.
    let late = FaultServer::play([FaultStep::answer(Answer::new(200).delay(Duration::from_millis(10)))]).await;
    let (url, hedge) = (late.url("/"), HedgePolicy::after(Duration::from_millis(2)).max_extra_load(1.0));
    assert!(drop_everywhere(|client| client.get(&url).hedge(hedge).send()).await > 3);
    // A response body that the attempt reads, and that is cut.
    let cut = FaultServer::play([FaultStep::close(FaultPoint::MidBody)]).await;
    let url = cut.url("/");
    assert!(drop_everywhere(|client| client.post(&url).body("x").fetch::<()>()).await > 6);
    // A conflict whose body the client inspects.
    let busy = FaultServer::play([FaultStep::answer(Answer::new(409).body(r#"{"code":"x"}"#))]).await;
    let url = busy.url("/");
    assert!(drop_everywhere(|client| client.post(&url).body("x").send()).await > 2);
    // Hops of a redirect.
    let away =
        FaultServer::start(|turn, _| FaultStep::answer(Answer::new(307).header("location", format!("/{turn}")))).await;
    let url = away.url("/");
    assert!(drop_everywhere(|client| client.post(&url).body("x").send()).await > 12);
}
#[tokio::test]
async fn upload_dropped_at_any_poll_leaves_no_task() {
    let server = FaultServer::play([FaultStep::answer(503)]).await;
    let url = server.url("/");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, &[0; 200_000]).unwrap();
    assert!(drop_everywhere(|client| client.post(&url).file(file.path()).send()).await > 6);
}

#[tokio::test]
async fn only_a_sent_retry_takes_tokens() {
    let mut tokens_after = Vec::new();
    for polls in 0.. {
        let server = FaultServer::play([FaultStep::answer(503)]).await;
        let policy = RetryPolicy::new().max_attempts(2).backoff(Backoff::fixed(Duration::from_millis(2)));
        let client = Client::builder()
            .base_url(server.url(""))
            .retry(policy)
            .budget(RetryBudget::standard().capacity(14))
            .build()
            .unwrap();
        let finished = poll_at_most(client.get("/").send(), polls).await.is_some();
        let sent = server.received().len();
        // Are the tokens for the one retry still there?
        let response = client.get("/").retry(fast_retries().max_attempts(2)).send().await.unwrap();
        let left = response.stop_reason() == Some(StopReason::AttemptsExhausted);
        // A second request that arrived took tokens; a retry that was not sent did not.
        assert!(left || sent > 0, "dropped after {polls} polls: nothing was sent and the tokens are gone");
        assert!(!left || sent < 2, "dropped after {polls} polls: two requests arrived for nothing");
        tokens_after.push(left);
        if finished {
            break;
        }
    }
    assert!(tokens_after.contains(&true) && tokens_after.contains(&false), "{tokens_after:?}");
}

/// The futures can be moved to another task.
#[test]
fn operation_futures_are_send() {
    fn is_send<T: Send>(_: &T) {}
    let client = Client::new();
    is_send(&client.get("http://localhost").send());
    is_send(&client.get("http://localhost").fetch::<String>());
    is_send(&client.post_json::<String>("http://localhost", "x"));
}

#[tokio::test]
async fn unpolled_operation_sends_nothing() {
    let server = FaultServer::play([FaultStep::answer(200)]).await;
    let client = Client::builder().base_url(server.url("")).build().unwrap();
    drop(client.get("/").send());
    let mut once = Box::pin(client.get("/").send());
    let _pending = once.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    drop(once);
    assert_eq!(client.get("/").send().await.unwrap().status(), 200);
    assert_eq!(server.received().len(), 1);
}
