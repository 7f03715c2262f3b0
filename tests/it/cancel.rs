//! Dropping an operation, at every point at which it can be dropped: nothing stays behind.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use steadfast::policy::{Backoff, RetryBudget, RetryPolicy, StopReason};
use steadfast::{Client, KeyPolicy, ResponseExt};

use crate::support::raw::answer;
use crate::support::{Act, Server, fast};

/// Polls `future` when it asks for it, `polls` times at most, and drops it. `None` if it was dropped before its end.
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

#[tokio::test]
async fn dropping_at_each_poll_leaves_no_task_and_no_token_behind() {
    let server = Server::play([Act::Answer(answer(503).body("x".repeat(3000)))]).await;
    let url = server.url("/");
    // Exactly the tokens of two retries: a token lost to a drop would show.
    let policy = RetryPolicy::new().max_attempts(3).backoff(Backoff::fixed(Duration::from_millis(2)));
    let mut finished = false;
    let mut polls = 0;
    while !finished {
        let before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let budget = RetryBudget::standard().capacity(28);
        let client =
            Client::builder().retry(policy.clone()).budget(budget).keys(KeyPolicy::standard()).build().unwrap();
        finished = poll_at_most(client.post(&url).body("x").send(), polls).await.is_some();
        // Connections belong to the pool, which goes with the client; the server's side ends with them.
        drop(client);
        let gone = async {
            while tokio::runtime::Handle::current().metrics().num_alive_tasks() > before {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("a task stayed behind");
        polls += 1;
    }
    assert!(polls > 6, "there were {polls} points to drop at");
}

#[tokio::test]
async fn a_token_is_spent_only_on_a_retry_that_was_sent() {
    let mut tokens_after = Vec::new();
    for polls in 0.. {
        let server = Server::play([Act::Answer(answer(503))]).await;
        let policy = RetryPolicy::new().max_attempts(2).backoff(Backoff::fixed(Duration::from_millis(2)));
        let client = Client::builder()
            .base_url(server.url(""))
            .retry(policy)
            .budget(RetryBudget::standard().capacity(14))
            .build()
            .unwrap();
        let finished = poll_at_most(client.get("/").send(), polls).await.is_some();
        let sent = server.received().len();
        // Whether the one retry's worth of tokens is still there.
        let response = client.get("/").retry(fast().max_attempts(2)).send().await.unwrap();
        let left = response.stop_reason() == Some(StopReason::AttemptsExhausted);
        // A second request that arrived was paid for; what never left was not.
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
fn operations_are_send() {
    fn is_send<T: Send>(_: &T) {}
    let client = Client::new();
    is_send(&client.get("http://localhost").send());
    is_send(&client.get("http://localhost").fetch::<String>());
    is_send(&client.post_json::<String>("http://localhost", "x"));
}

#[tokio::test]
async fn an_operation_that_is_never_polled_sends_nothing() {
    let server = Server::play([Act::Answer(answer(200))]).await;
    let client = Client::builder().base_url(server.url("")).build().unwrap();
    drop(client.get("/").send());
    let mut once = Box::pin(client.get("/").send());
    let _pending = once.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    drop(once);
    assert_eq!(client.get("/").send().await.unwrap().status(), 200);
    assert_eq!(server.received().len(), 1);
}
