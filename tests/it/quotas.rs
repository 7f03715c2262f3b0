//! Rate-limit headers over real sockets: they are a wait of a refusal, and never the reason for
//! one, but for a 403.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use steadfast::ResponseExt;
use steadfast::policy::{Class, StopReason};
use steadfast_testing::{Answer, FaultServer, FaultStep};

use crate::support::{clock, doubting};

/// A clock that is a day ahead of ours, as the server's `Date` shows.
fn theirs() -> SystemTime {
    #[allow(clippy::disallowed_methods, reason = "the server has a clock of its own")]
    let ours = SystemTime::now();
    ours + Duration::from_secs(24 * 3600)
}

/// A response with nothing remaining, and the reset in so many seconds, in epoch seconds.
fn spent(status: u16, seconds: u64) -> Answer {
    let now = theirs();
    let reset = now.duration_since(UNIX_EPOCH).unwrap().as_secs() + seconds;
    let answer = Answer::new(status).header("date", httpdate::fmt_http_date(now));
    answer.header("x-ratelimit-remaining", "0").header("x-ratelimit-reset", reset.to_string())
}

#[tokio::test]
async fn spent_quota_is_waited_for() {
    for status in [429, 403] {
        let server = FaultServer::play([FaultStep::answer(spent(status, 2)), FaultStep::execute(200)]).await;
        let client = doubting(&server).build().unwrap();
        let begun = clock::now();
        let response = client.post("/").body("x").send().await.unwrap();
        assert_eq!((response.status().as_u16(), server.executions()), (200, 1), "{status}");
        assert_eq!(response.attempts()[0].class(), Class::Throttled);
        assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn spent_quota_beyond_the_longest_wait_ends() {
    for status in [429, 403] {
        let server = FaultServer::play([FaultStep::answer(spent(status, 1800))]).await;
        let response = doubting(&server).build().unwrap().post("/").body("x").send().await.unwrap();
        assert_eq!(response.stop_reason(), Some(StopReason::RetryAfterTooLong), "{status}");
        assert_eq!((response.retry_after(), server.received().len()), (Some(Duration::from_secs(1800)), 1));
        assert!(!response.may_have_been_processed());
    }
}

#[tokio::test]
async fn quota_leaves_other_classes_alone() {
    // Ambiguous: nothing remains, and the POST may have acted all the same.
    let server = FaultServer::play([FaultStep::execute(spent(503, 1)), FaultStep::execute(200)]).await.ignoring_keys();
    let response = doubting(&server).build().unwrap().post("/").body("x").send().await.unwrap();
    assert_eq!((response.stop_reason(), server.executions()), (Some(StopReason::KeyNotTrusted), 1));
    assert!(response.may_have_been_processed());
    // Refused for another reason: the quota has plenty, or is open again.
    let plenty = Answer::new(403).header("x-ratelimit-remaining", "4999").header("x-ratelimit-reset", "30");
    for refused in [plenty, spent(403, 0), Answer::new(403).retry_after(0), Answer::new(413)] {
        let server = FaultServer::play([FaultStep::answer(refused)]).await;
        let response = doubting(&server).build().unwrap().get("/").send().await.unwrap();
        assert_eq!((response.stop_reason(), server.received().len()), (Some(StopReason::Permanent), 1));
    }
    let server = FaultServer::play([FaultStep::answer(spent(200, 30))]).await;
    let response = doubting(&server).build().unwrap().get("/").send().await.unwrap();
    assert_eq!(response.retry_after(), None, "the last request of a window was not refused");
}

#[tokio::test]
async fn too_large_with_retry_after_is_repeated() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(413).retry_after(0)), FaultStep::execute(200)]).await;
    let response = doubting(&server).build().unwrap().post("/").body("x").send().await.unwrap();
    assert_eq!((response.status().as_u16(), server.received().len(), server.executions()), (200, 2, 1));
    assert_eq!(response.attempts()[0].class(), Class::Throttled);
}

#[tokio::test]
async fn spent_quota_cools_the_whole_origin() {
    let server = FaultServer::play([FaultStep::answer(spent(403, 1)), FaultStep::answer(200)]).await;
    let client = doubting(&server).retry(steadfast::policy::RetryPolicy::never()).cooldown().build().unwrap();
    let begun = clock::now();
    assert_eq!(client.get("/one").send().await.unwrap().status(), 403);
    assert_eq!(client.get("/other").send().await.unwrap().status(), 200);
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
}
