//! Operations with an unknown outcome, at APIs without keys: the client asks a read of the user's.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use steadfast::http::{Method, StatusCode};
use steadfast::policy::{RetryBudget, StopReason};
use steadfast::{
    Client, ClientBuilder, Confirmation, ConfirmationOutcome, ErrorKind, EventKind, KeyPolicy, ResponseExt, Unconfirmed,
};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, fast_retries};

const SETTLING: Duration = Duration::from_millis(60);

/// A server whose POSTs take these steps, and whose GETs of `/charge` have these statuses. The last
/// of either goes on for ever.
async fn server(posts: Vec<FaultStep>, gets: Vec<u16>) -> FaultServer {
    let (post, get) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let turn = |count: &AtomicUsize, all: usize| count.fetch_add(1, Ordering::Relaxed).min(all - 1);
    FaultServer::start(move |_, request| match request {
        Some(request) if request.method == Method::GET => {
            let status = gets[turn(&get, gets.len())];
            FaultStep::answer(Answer::new(status).body(r#"{"id":7}"#))
        }
        Some(_) => posts[turn(&post, posts.len())].clone(),
        None => FaultStep::ok(),
    })
    .await
}

/// Looks for the charge. A 404 says that there is none.
async fn find(charge: Unconfirmed) -> steadfast::Result<Confirmation> {
    match charge.client().get("/charge").fetch_response().await {
        Ok(found) => Ok(Confirmation::applied(found)),
        Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => Ok(Confirmation::NotApplied),
        Err(error) => Err(error),
    }
}

/// A client without keys.
fn keyless(server: &FaultServer) -> ClientBuilder {
    Client::builder().base_url(server.url("")).retry(fast_retries()).keys(KeyPolicy::off())
}

fn count(server: &FaultServer, method: &Method) -> usize {
    server.received().iter().filter(|request| request.method == method).count()
}

fn lost() -> FaultStep {
    FaultStep::close(FaultPoint::AfterExecuting)
}

fn not_executed() -> FaultStep {
    FaultStep::close(FaultPoint::BeforeExecuting)
}

#[tokio::test]
async fn applied_operation_ends_with_the_answer_found() {
    let server = server(vec![lost()], vec![200]).await;
    let client = keyless(&server).confirm(find).build().unwrap();
    let charged: Value = client.post("/charge").body("12 EUR").fetch().await.unwrap();
    assert_eq!((&charged["id"], server.executions()), (&Value::from(7), 1));

    let response = client.post("/charge").body("12 EUR").send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.stop_reason()), (200, Some(StopReason::Confirmed)));
    let attempts = response.attempts();
    assert_eq!((attempts.len(), attempts[0].confirmation()), (1, Some(ConfirmationOutcome::Applied)));
    assert!(attempts[0].to_string().ends_with("; confirmed as applied"), "{}", attempts[0]);
}

#[tokio::test]
async fn operation_not_applied_is_repeated_after_settling() {
    let server = server(vec![not_executed(), FaultStep::execute(201)], vec![404]).await;
    let client = keyless(&server).confirm(find).settling_time(SETTLING).build().unwrap();
    let response = client.post("/charge").body("12 EUR").send().await.unwrap();
    assert_eq!((response.status().as_u16(), server.executions()), (201, 1));
    assert_eq!((count(&server, &Method::POST), count(&server, &Method::GET)), (2, 2), "asked early, and again");
    assert_eq!(response.attempts()[0].confirmation(), Some(ConfirmationOutcome::NotApplied));
}

#[tokio::test]
async fn not_applied_before_settling_is_asked_again() {
    // The first request is still being worked on when the client asks first.
    let server = server(vec![lost()], vec![404, 200]).await;
    let client = keyless(&server).confirm(find).settling_time(SETTLING).build().unwrap();
    let response = client.post("/charge").body("12 EUR").send().await.unwrap();
    assert_eq!((response.stop_reason(), server.executions()), (Some(StopReason::Confirmed), 1));
}

#[tokio::test]
async fn not_applied_without_settling_time_repeats_nothing() {
    let server = server(vec![lost()], vec![404]).await;
    let client = keyless(&server).confirm(find).build().unwrap();
    let error = client.post("/charge").body("12 EUR").send().await.unwrap_err();
    assert_eq!((server.executions(), count(&server, &Method::GET)), (1, 1), "{error}");
    assert_eq!((error.stop_reason(), error.may_have_been_processed()), (Some(StopReason::NotRepeatable), true));
    assert_eq!(error.attempts()[0].confirmation(), Some(ConfirmationOutcome::NotApplied));
}

#[tokio::test]
async fn settling_past_the_deadline_repeats_nothing() {
    let server = server(vec![lost()], vec![404]).await;
    let client = keyless(&server).confirm(find).settling_time(Duration::from_secs(3600)).build().unwrap();
    let error = client.post("/charge").body("12 EUR").send().await.unwrap_err();
    assert_eq!((server.executions(), error.stop_reason()), (1, Some(StopReason::NotRepeatable)), "{error}");
    assert!(error.elapsed() < Duration::from_secs(10) && error.may_have_been_processed(), "{error}");
}

#[tokio::test]
async fn read_that_fails_leaves_the_error() {
    let server = server(vec![lost()], vec![500]).await;
    let settled = || keyless(&server).settling_time(Duration::ZERO).timeout(Duration::from_millis(400));
    let clients = [
        settled().confirm(find),
        settled().confirm(|_| async { Ok::<_, std::io::Error>(Confirmation::Unknown) }),
        settled().confirm(|_| async { Err::<Confirmation, _>("the bank is closed") }),
        settled().confirm(|_| async { panic!("the read dies on purpose") as Result<Confirmation, String> }),
        settled().confirm(|_| std::future::pending::<Result<Confirmation, String>>()),
    ];
    for (number, client) in clients.into_iter().enumerate() {
        let error = client.build().unwrap().post("/charge").body("12 EUR").send().await.unwrap_err();
        assert_eq!(
            (server.executions(), error.stop_reason()),
            (number + 1, Some(StopReason::NotRepeatable)),
            "{error}"
        );
        assert!(error.may_have_been_processed(), "{error}");
        assert_eq!(error.attempts()[0].confirmation(), Some(ConfirmationOutcome::Unknown));
    }
}

#[tokio::test]
async fn licensed_operation_asks_nothing() {
    let server = server(vec![lost(), FaultStep::execute(201)], vec![200]).await;
    let asked = || keyless(&server).confirm(find).settling_time(Duration::ZERO);
    asked().keys(KeyPolicy::standard()).build().unwrap().post("/charge").body("x").send().await.unwrap();
    asked().build().unwrap().put("/charge").body("x").send().await.unwrap();
    let declined = asked().build().unwrap().get("/charge").send().await.unwrap();
    assert_eq!((declined.status().as_u16(), count(&server, &Method::GET)), (200, 1));
}

#[tokio::test]
async fn repeat_after_the_read_takes_attempt_and_tokens() {
    let server = server(vec![not_executed()], vec![404]).await;
    let asked = || keyless(&server).confirm(find).settling_time(Duration::ZERO);
    let client = asked().retry(fast_retries().max_attempts(2)).build().unwrap();
    let error = client.post("/charge").body("x").send().await.unwrap_err();
    assert_eq!((error.attempts().len(), error.stop_reason()), (2, Some(StopReason::AttemptsExhausted)), "{error}");

    let client = asked().budget(RetryBudget::standard().capacity(0)).build().unwrap();
    let error = client.post("/charge").body("x").send().await.unwrap_err();
    assert_eq!((error.attempts().len(), error.stop_reason()), (1, Some(StopReason::BudgetExhausted)), "{error}");
}

#[tokio::test]
async fn request_has_a_read_of_its_own_and_sees_itself() {
    let server = server(vec![lost()], vec![200]).await;
    let seen = Arc::new(Mutex::new(None));
    let (told, told_by) = (Arc::new(AtomicUsize::new(0)), seen.clone());
    let counted = told.clone();
    let client = keyless(&server)
        .keys(KeyPolicy::standard().negotiated())
        .on_event(move |event| {
            let is_it = matches!(event.kind(), EventKind::Confirmed { outcome: ConfirmationOutcome::Unknown, .. });
            counted.fetch_add(usize::from(is_it), Ordering::Relaxed);
        })
        .build()
        .unwrap();
    let read = move |charge: Unconfirmed| {
        *seen.lock().unwrap() = Some(charge);
        async { Ok::<_, std::io::Error>(Confirmation::Unknown) }
    };
    let request = client.post("/charge?expand=all").header("x-order", "1042").body("12 EUR");
    let error = request.confirm(read).settling_time(SETTLING).send().await.unwrap_err();
    assert_eq!((error.kind(), error.stop_reason()), (ErrorKind::Transport, Some(StopReason::KeyNotTrusted)));
    let charge = told_by.lock().unwrap().take().unwrap();
    assert_eq!((charge.method(), charge.body()), (&Method::POST, Some(&b"12 EUR"[..])));
    assert_eq!((charge.url().query(), &charge.headers()["x-order"]), (Some("expand=all"), &"1042".parse().unwrap()));
    assert_eq!(charge.idempotency_key(), error.idempotency_key());
    assert!(!format!("{charge:?}").contains("1042"));
    assert_eq!(told.load(Ordering::Relaxed), 1);
}

/// A read that is a POST, and in doubt itself, must not ask itself.
#[tokio::test]
async fn read_in_doubt_asks_nothing() {
    let server = server(vec![FaultStep::execute(500)], vec![404]).await;
    let search = |charge: Unconfirmed| async move {
        let found = charge.client().post("/search").body("order 1042").fetch_response().await?;
        Ok::<_, steadfast::Error>(Confirmation::applied(found))
    };
    let client = keyless(&server).confirm(search).build().unwrap();
    let response = client.post("/charge").body("x").send().await.unwrap();
    assert_eq!((response.status().as_u16(), count(&server, &Method::POST)), (500, 2), "the charge and one search");
    assert_eq!(response.attempts()[0].confirmation(), Some(ConfirmationOutcome::Unknown));
}

#[tokio::test]
async fn repeat_after_the_read_waits_as_the_server_asked() {
    let later = FaultStep::answer(Answer::new(503).header("retry-after", "3600"));
    let server = server(vec![later], vec![404]).await;
    let client = keyless(&server).confirm(find).settling_time(Duration::ZERO).build().unwrap();
    let response = client.post("/charge").body("x").send().await.unwrap();
    assert_eq!(response.stop_reason(), Some(StopReason::RetryAfterTooLong));
    assert_eq!(count(&server, &Method::POST), 1);
}

/// The chaos run of the README's table, at an API that ignores keys. The reads fail as often as the
/// charges do.
#[tokio::test]
async fn chaos_with_confirm_ends_known_and_doubles_nothing() {
    let faults = || {
        let close = FaultStep::close;
        [
            (0.1, close(FaultPoint::AfterExecuting)),
            (0.1, close(FaultPoint::BeforeExecuting)),
            (0.1, FaultStep::execute(503)),
        ]
    };
    let bank = Arc::new(FaultServer::random(7, faults()).await.ignoring_keys());
    let book = bank.clone();
    let reads = AtomicUsize::new(0);
    let ledger = FaultServer::start(move |_, request| {
        if reads.fetch_add(1, Ordering::Relaxed) % 10 < 3 {
            return FaultStep::close(FaultPoint::BeforeExecuting);
        }
        let order = request.map(|request| request.target.trim_start_matches('/').to_owned()).unwrap_or_default();
        let found = book.executions_by_body().contains_key(order.as_bytes());
        FaultStep::answer(if found { 200 } else { 404 })
    })
    .await;
    let address = ledger.url("");
    let read = move |charge: Unconfirmed| {
        let order = String::from_utf8_lossy(charge.body().unwrap_or_default()).into_owned();
        let url = format!("{address}/{order}");
        async move {
            match charge.client().get(url).fetch_response().await {
                Ok(found) => Ok(Confirmation::applied(found)),
                Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => Ok(Confirmation::NotApplied),
                Err(error) => Err(error),
            }
        }
    };
    let plain = || {
        let budget = RetryBudget::standard().capacity(1_000_000);
        Client::builder().retry(fast_retries().max_attempts(8)).budget(budget).keys(KeyPolicy::off())
    };
    let mut unknown = HashMap::new();
    for (name, client) in [("without", plain()), ("with", plain().confirm(read).settling_time(Duration::ZERO))] {
        let client = client.build().unwrap();
        for number in 0..300 {
            let charged = client.post(bank.url("/charges")).body(format!("{name}-{number}")).send().await;
            let is_unknown = match charged {
                Ok(response) => !response.status().is_success() && response.may_have_been_processed(),
                Err(error) => error.may_have_been_processed(),
            };
            *unknown.entry(name).or_insert(0) += usize::from(is_unknown);
        }
    }
    let twice = bank.executions_by_body().values().filter(|times| **times > 1).count();
    println!(
        "of 300 operations without a key, {} end unknown, and with a read {}",
        unknown["without"], unknown["with"]
    );
    assert_eq!(twice, 0);
    assert!(unknown["without"] >= 60 && unknown["with"] * 20 <= unknown["without"], "{unknown:?}");
}
