//! How operations end: answered, rejected, or unknown, and what a reconcile hook changes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;
use steadfast_outbox::{Answer, End, Outbox, OutboxError, Reconciliation, RedbOutbox, Refusal};
use steadfast_testing::{FaultPoint, FaultServer, FaultStep};

use super::{charge, once, once_doubting, outbox, store};
use crate::support::clock;

fn lost() -> FaultStep {
    FaultStep::close(FaultPoint::AfterExecuting)
}

#[tokio::test]
async fn lost_answers_end_in_one_execution() {
    let server = FaultServer::play([lost(), lost(), lost(), FaultStep::ok()]).await;
    let client = once(&server);
    let outbox = outbox(&store(), &client).start().await.unwrap();
    let id = outbox.submit(charge(&client)).await.unwrap();
    let end = outbox.wait(id).await.unwrap();
    assert!(matches!(end, End::Answer(_)), "{end:?}");
    assert_eq!((server.executions(), server.received().len()), (1, 4));
    let entry = outbox.get(id).await.unwrap().unwrap();
    assert_eq!((entry.attempts, entry.rounds), (4, 3));
}

#[tokio::test]
async fn server_that_ignores_keys_gets_one_request() {
    let server = FaultServer::start(|_, _| lost()).await.ignoring_keys();
    let client = once_doubting(&server);
    let outbox = outbox(&store(), &client).start().await.unwrap();
    let id = outbox.submit(charge(&client)).await.unwrap();
    let End::Unknown(failed) = outbox.wait(id).await.unwrap() else { panic!("the outcome is not unknown") };
    assert!(failed.to_string().contains("may have been processed"), "{failed}");
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn refused_connections_are_tried_until_they_work() {
    let server = FaultServer::play([FaultStep::execute(201)]).await;
    server.refuse_connections().await;
    let client = once(&server);
    let failures = Arc::new(tokio::sync::Notify::new());
    let failed = failures.clone();
    let builder = outbox(&store(), &client).on_event(move |event| {
        if event.entry.rounds == 3 {
            failed.notify_one();
        }
    });
    let outbox = builder.start().await.unwrap();
    let id = outbox.submit(charge(&client)).await.unwrap();
    failures.notified().await;
    let entry = outbox.get(id).await.unwrap().unwrap();
    assert!(!entry.may_have_been_processed && entry.last_error.is_some(), "{entry:?}");

    server.accept_connections();
    assert!(matches!(outbox.wait(id).await.unwrap(), End::Answer(_)));
    assert_eq!(server.executions(), 1);
}

#[tokio::test]
async fn only_what_was_never_processed_is_rejected() {
    let server = FaultServer::play([FaultStep::answer(422), lost(), FaultStep::answer(422)]).await;
    let client = once(&server);
    let outbox = outbox(&store(), &client).start().await.unwrap();
    let rejected = outbox.submit(charge(&client)).await.unwrap();
    let End::Rejected(failed) = outbox.wait(rejected).await.unwrap() else { panic!("not rejected") };
    assert_eq!(failed.answer.unwrap().status(), 422);

    let unknown = outbox.submit(charge(&client)).await.unwrap();
    let End::Unknown(failed) = outbox.wait(unknown).await.unwrap() else { panic!("not unknown") };
    assert_eq!(failed.answer.unwrap().status(), 422);
    assert_eq!(server.received().len(), 3);
}

#[tokio::test]
async fn hook_is_asked_only_after_settling_time() {
    let server = FaultServer::start(|_, _| lost()).await.ignoring_keys();
    let client = once_doubting(&server);
    let asked: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let times = asked.clone();
    let builder = outbox(&store(), &client).settling_time(Duration::from_millis(300)).reconcile(move |unknown| {
        times.lock().unwrap().push(clock::now());
        assert_eq!(unknown.entry.request.method(), "POST");
        async { Ok::<_, std::io::Error>(Reconciliation::Applied(Answer::new(StatusCode::CREATED, "ch_1"))) }
    });
    let outbox = builder.start().await.unwrap();
    let began = clock::now();
    let id = outbox.submit(charge(&client)).await.unwrap();
    let End::Answer(answer) = outbox.wait(id).await.unwrap() else { panic!("no answer") };
    assert_eq!((answer.body(), server.received().len()), (Some(&b"ch_1"[..]), 1));
    let asked = asked.lock().unwrap();
    assert!(asked.len() == 1 && asked[0] - began >= Duration::from_millis(300));
}

#[tokio::test]
async fn not_applied_is_a_licence_to_send() {
    // The first request is lost before the server acts on it. Nobody but its books can tell.
    let steps = [FaultStep::close(FaultPoint::BeforeExecuting), FaultStep::execute(201)];
    let server = FaultServer::play(steps).await.ignoring_keys();
    let client = once_doubting(&server);
    let builder = outbox(&store(), &client);
    let builder = builder.reconcile(|_| async { Ok::<_, std::io::Error>(Reconciliation::NotApplied) });
    let outbox = builder.start().await.unwrap();
    let id = outbox.submit(charge(&client)).await.unwrap();
    assert!(matches!(outbox.wait(id).await.unwrap(), End::Answer(_)));
    assert_eq!((server.executions(), server.received().len()), (1, 2));
    assert_eq!(outbox.metrics().not_applied, 1);
}

#[tokio::test]
async fn hook_that_fails_is_asked_again() {
    let server = FaultServer::start(|_, _| lost()).await.ignoring_keys();
    let client = once_doubting(&server);
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let builder = outbox(&store(), &client).reconcile(move |_| {
        let call = count.fetch_add(1, Ordering::SeqCst);
        assert_ne!(call, 1, "the second call panics");
        async move {
            if call == 0 { Err(std::io::Error::other("the books are closed")) } else { Ok(Reconciliation::Unknown) }
        }
    });
    let outbox = builder.start().await.unwrap();
    let id = outbox.submit(charge(&client)).await.unwrap();
    assert!(matches!(outbox.wait(id).await.unwrap(), End::Unknown(_)));
    assert_eq!((calls.load(Ordering::SeqCst), server.received().len()), (3, 1));
}

#[tokio::test]
async fn person_resolves_what_is_unknown() {
    let server = FaultServer::start(|_, _| lost()).await.ignoring_keys();
    let client = once_doubting(&server);
    let outbox = outbox(&store(), &client).start().await.unwrap();
    let id = outbox.submit(charge(&client)).await.unwrap();
    outbox.wait(id).await.unwrap();
    outbox.resolve(id, End::Answer(Answer::new(StatusCode::CREATED, "seen in the books"))).await.unwrap();
    assert!(matches!(outbox.wait(id).await.unwrap(), End::Answer(_)));
    let twice = outbox.resolve(id, End::Answer(Answer::new(StatusCode::OK, ""))).await.unwrap_err();
    assert!(matches!(twice, OutboxError::Refused(Refusal::HasEnded("answer"))), "{twice}");

    outbox.acknowledge(id).await.unwrap();
    outbox.acknowledge(id).await.unwrap();
    let unknown = "01935c7e-2b6a-7c3e-8f6d-2a4b6c8d0e1f".parse().unwrap();
    for error in [
        outbox.wait(unknown).await.map(drop),
        outbox.acknowledge(unknown).await,
        outbox.resolve(unknown, End::Answer(Answer::new(StatusCode::OK, ""))).await,
        outbox.cancel(unknown).await,
        outbox.release(unknown).await,
    ] {
        assert!(matches!(error, Err(OutboxError::Refused(Refusal::NotFound(id))) if id == unknown), "{error:?}");
    }
}

#[tokio::test]
async fn headers_of_an_answer_are_kept_by_name() {
    let answer = Answer::new(StatusCode::CREATED, "");
    assert!(answer.headers().is_empty());
    let step = steadfast_testing::Answer::new(201).header("location", "/charges/1").header("x-request-id", "r-1");
    let server = FaultServer::play([FaultStep::execute(step.header("set-cookie", "session=s3cret"))]).await;
    let client = once(&server);
    let builder = outbox(&store(), &client).keep_headers([http::HeaderName::from_static("x-request-id")]);
    let outbox = builder.start().await.unwrap();
    let id = outbox.submit(charge(&client)).await.unwrap();
    let End::Answer(answer) = outbox.wait(id).await.unwrap() else { panic!("no answer") };
    let headers = answer.headers();
    assert_eq!((headers["location"].as_bytes(), headers["x-request-id"].as_bytes()), (&b"/charges/1"[..], &b"r-1"[..]));
    assert!(!headers.contains_key("set-cookie"));
}

/// The wall clock is set back by an hour between two rounds: nobody knows how old the key is.
#[tokio::test]
async fn clock_that_was_set_back_ends_in_a_question() {
    let server = FaultServer::start(|_, _| lost()).await;
    let client = once(&server);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("operations.redb");
    let first = Outbox::open(RedbOutbox::open(&path).unwrap(), client.clone()).start().await.unwrap();
    let id = first.submit(charge(&client)).await.unwrap();
    while first.metrics().postponed == 0 {
        tokio::task::yield_now().await;
    }
    first.shutdown(Duration::from_secs(5)).await;
    drop(first);

    let hour_ago = || u64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap() - 3_600_000;
    let file = RedbOutbox::open_with(&path, false, Arc::new(hour_ago)).unwrap();
    let next = Outbox::open(file, client).start().await.unwrap();
    let End::Unknown(failed) = next.wait(id).await.unwrap() else { panic!("not unknown") };
    assert!(failed.message.contains("the clock went backwards"), "{failed}");
    assert_eq!((server.executions(), server.received().len()), (1, 1));
}
