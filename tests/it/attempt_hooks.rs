//! Hooks that write headers of an attempt: when they run, what they may write, and what becomes of
//! the operation if one fails.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::hmac;
use serde_json::{Value, json};
use steadfast::policy::{HedgePolicy, StopReason};
use steadfast::{AttemptHead, ClientBuilder, ErrorKind, Reach, ResponseExt};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, Received};

use crate::support::trusting;

type HookResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Writes the number of the call in `x-call`.
fn counting(client: ClientBuilder) -> (ClientBuilder, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let client = client.on_attempt(move |head| head.insert("x-call", counted.fetch_add(1, Ordering::SeqCst) + 1));
    (client, calls)
}

fn header<'a>(received: &'a [Received], name: &str) -> Vec<Option<&'a str>> {
    received.iter().map(|request| request.header(name)).collect()
}

async fn by_path(route: impl Fn(&Received) -> FaultStep + Send + Sync + 'static) -> FaultServer {
    FaultServer::start(move |_, request| request.map_or(FaultStep::answer(200), &route)).await
}

fn redirect(status: u16, to: impl Into<String>) -> Answer {
    Answer::new(status).header("location", to)
}

#[tokio::test]
async fn hook_runs_for_every_send() {
    let server = FaultServer::play([
        FaultStep::close(FaultPoint::AfterExecuting),
        FaultStep::answer(503),
        FaultStep::answer(redirect(307, "/moved")),
        FaultStep::ok(),
    ])
    .await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = seen.clone();
    let client = trusting(&server).retry(steadfast_testing::fast_retries().max_attempts(3)).on_attempt(move |head| {
        let last = head.last_response().map(|(status, _)| status.as_u16());
        let url = head.url().path().to_owned();
        told.lock().unwrap().push((head.number(), head.method().to_string(), url, head.body()?.to_vec(), last));
        Ok(())
    });
    let (client, _) = counting(client);
    client.build().unwrap().post_json::<Value>("/charges", &json!(5)).await.unwrap();
    assert_eq!(header(&server.received(), "x-call"), [Some("1"), Some("2"), Some("3"), Some("4")]);
    let call = |number, path: &str, last| (number, "POST".to_owned(), path.to_owned(), b"5".to_vec(), last);
    let calls = [
        call(1, "/charges", None),
        call(2, "/charges", None),
        call(3, "/charges", Some(503)),
        call(3, "/moved", Some(307)),
    ];
    assert_eq!(*seen.lock().unwrap(), calls);
}

#[tokio::test]
async fn hook_runs_for_a_hedge() {
    let server = FaultServer::play([FaultStep::stall(FaultPoint::BeforeExecuting), FaultStep::ok()]).await;
    let (client, calls) = counting(trusting(&server).hedge(HedgePolicy::after(Duration::from_millis(50))));
    client.build().unwrap().get_json::<Value>("/").await.unwrap();
    assert_eq!((header(&server.received(), "x-call"), calls.load(Ordering::SeqCst)), (vec![Some("1"), Some("2")], 2));
}

/// From home to another origin and back: no hook from the other origin on. The next attempt starts
/// at home again.
#[tokio::test]
async fn no_hook_runs_after_another_origin() {
    let turns = AtomicUsize::new(0);
    let home = by_path(move |request| match request.target.as_str() {
        "/back" if turns.fetch_add(1, Ordering::SeqCst) == 0 => FaultStep::answer(503),
        "/back" => FaultStep::answer(200),
        _ => FaultStep::answer(redirect(302, request.header("x-to").unwrap_or("/").to_owned())),
    })
    .await;
    let back = home.url("/back");
    let abroad = by_path(move |_| FaultStep::answer(redirect(307, back.clone()).header("x-from", "abroad"))).await;
    let last = Arc::new(Mutex::new(Vec::new()));
    let told = last.clone();
    let (client, calls) = counting(trusting(&home).on_attempt(move |head| {
        told.lock().unwrap().push(head.last_response().map(|(status, _)| status.as_u16()));
        Ok(())
    }));
    client.build().unwrap().get("/").header("x-to", abroad.url("/")).send().await.unwrap();
    let (at_home, elsewhere) = (home.received(), abroad.received());
    let sent: Vec<_> = at_home.iter().map(|request| (request.target.as_str(), request.header("x-call"))).collect();
    assert_eq!(sent, [("/", Some("1")), ("/back", None), ("/", Some("2")), ("/back", None)]);
    assert_eq!((header(&elsewhere, "x-call"), calls.load(Ordering::SeqCst)), (vec![None, None], 2));
    assert_eq!(*last.lock().unwrap(), [None, Some(302)], "what others answer is not for the hook");
}

#[tokio::test]
async fn hooks_run_in_order_after_credentials() {
    let server = FaultServer::play([FaultStep::ok()]).await;
    let tokens = steadfast::Refreshing::bearer(|_| async { Ok::<_, std::io::Error>("token") });
    let client = trusting(&server)
        .on_attempt(|head| {
            let authorized = head.headers().contains_key("authorization") && head.headers().contains_key("x-attempt");
            head.insert("x-first", authorized.to_string())
        })
        .on_attempt(|head| head.insert("x-second", head.headers().contains_key("x-first").to_string()))
        .credentials(tokens)
        .attempt_header(http::HeaderName::from_static("x-attempt"));
    client.build().unwrap().post_json::<Value>("/", &1).await.unwrap();
    let received = server.received();
    assert_eq!(header(&received, "authorization"), [Some("Bearer token")]);
    assert_eq!((received[0].header("x-first"), received[0].header("x-second")), (Some("true"), Some("true")));
}

/// Fails on the second attempt, after one that may have been processed, and on the first.
#[tokio::test]
async fn failed_hook_sends_nothing_and_ends_operation() {
    type Fails = fn(&mut AttemptHead<'_>) -> HookResult;
    let cases: [(Fails, &str); 4] = [
        (|_| Err("no signing key".into()), "the on_attempt hook failed: no signing key"),
        (|_| panic!("s3cret"), "the on_attempt hook failed: it panicked"),
        (
            |head| head.insert("idempotency-key", "mine"),
            "the on_attempt hook failed: a hook cannot write idempotency-key",
        ),
        (
            |head| {
                let _ignored = head.insert("Content-Length", "5");
                Ok(())
            },
            "the on_attempt hook failed: a hook cannot write content-length",
        ),
    ];
    for (fails, line) in cases {
        for (fails_at, step, may, sends) in [
            (1, FaultStep::ok(), false, 0),
            (2, FaultStep::close(FaultPoint::AfterExecuting), true, 1),
            (2, FaultStep::answer(429), false, 1),
        ] {
            let server = FaultServer::play([step, FaultStep::ok()]).await;
            let hook = move |head: &mut AttemptHead<'_>| if head.number() == fails_at { fails(head) } else { Ok(()) };
            // A classifier cannot turn it into a retry.
            let classify = |outcome: &steadfast::policy::Outcome<'_>| outcome.default_class();
            let client = trusting(&server).on_attempt(hook).classify(classify).build().unwrap();
            let error = client.post_json::<Value>("/charges", &5).await.unwrap_err();
            assert!(error.to_string().contains(line) && !format!("{error:?}").contains("s3cret"), "{error:?}");
            assert_eq!((error.kind(), error.may_have_been_processed()), (ErrorKind::AttemptHook, may), "{error}");
            assert_eq!((server.received().len(), error.stop_reason()), (sends, Some(StopReason::Permanent)));
            assert_eq!(error.attempts().last().unwrap().reach(), Reach::NotSent);
        }
    }
}

#[tokio::test]
async fn failed_hook_of_a_hop_or_hedge_ends_operation() {
    let server = by_path(|request| match request.target.as_str() {
        "/charges" => FaultStep::execute(redirect(303, "/result")),
        "/moves" => FaultStep::answer(redirect(307, "/result")),
        _ => FaultStep::stall(FaultPoint::BeforeExecuting),
    })
    .await;
    let fails = |head: &mut AttemptHead<'_>| match head.url().path() {
        "/result" => Err("not there".into()),
        "/late" if head.number() == 2 => Err("not twice".into()),
        _ => Ok(()),
    };
    let client = trusting(&server).hedge(HedgePolicy::after(Duration::from_millis(50))).on_attempt(fails);
    let client = client.build().unwrap();
    for (path, may) in [("/charges", true), ("/moves", false)] {
        let error = client.post_json::<Value>(path, &5).await.unwrap_err();
        assert_eq!((error.kind(), error.may_have_been_processed()), (ErrorKind::AttemptHook, may), "{error}");
    }
    let error = client.get_json::<Value>("/late").await.unwrap_err();
    assert_eq!((error.kind(), error.may_have_been_processed()), (ErrorKind::AttemptHook, true), "{error}");
    let targets: Vec<_> = server.received().iter().map(|request| request.target.clone()).collect();
    assert_eq!(targets, ["/charges", "/moves", "/late"]);
}

#[tokio::test]
async fn hook_reads_body_only_if_it_is_in_memory() {
    let server = FaultServer::play([FaultStep::ok()]).await;
    let client = trusting(&server).on_attempt(|head| head.insert("x-length", head.body()?.len())).build().unwrap();
    client.get("/").send().await.unwrap();
    client.post("/").body("12345").send().await.unwrap();
    client.post("/").body_factory(|| "123").send().await.unwrap();
    client.post("/").body("").send().await.unwrap();
    let received = server.received();
    assert_eq!(header(&received, "x-length"), [Some("0"), Some("5"), Some("3"), Some("0")]);
    assert_eq!(received.iter().map(|request| request.body.len()).collect::<Vec<_>>(), [0, 5, 3, 0]);
    let stream =
        steadfast::reqwest::Body::wrap_stream(futures_util::stream::once(async { Ok::<_, std::io::Error>("1") }));
    let error = client.post("/").body(stream).send().await.unwrap_err();
    let line = "the on_attempt hook failed: the request body is a stream, a file or a form";
    assert!(error.to_string().contains(line), "{error}");
    assert_eq!((error.kind(), server.received().len()), (ErrorKind::AttemptHook, 4));
}

/// Signs method, path, body and time.
fn sign(method: &str, path: &str, body: &[u8], time: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"s3cret");
    let text = [method.as_bytes(), path.as_bytes(), body, time.as_bytes()].join(&b'\n');
    hmac::sign(&key, &text).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn signing(head: &mut AttemptHead<'_>) -> HookResult {
    static TIME: AtomicUsize = AtomicUsize::new(0);
    let time = TIME.fetch_add(1, Ordering::SeqCst).to_string();
    let signature = sign(head.method().as_str(), head.url().path(), head.body()?, &time);
    head.insert("x-time", time)?;
    head.insert("x-signature", signature)
}

/// Checks the signature, and refuses one that it has seen.
async fn verifying(steps: Vec<FaultStep>) -> FaultServer {
    let (seen, turn) = (Mutex::new(HashSet::new()), AtomicUsize::new(0));
    by_path(move |request| {
        let (time, signature) = (request.header("x-time").unwrap_or(""), request.header("x-signature").unwrap_or(""));
        let is_right = signature == sign(request.method.as_str(), &request.target, &request.body, time);
        if !is_right || !seen.lock().unwrap().insert(signature.to_owned()) {
            return FaultStep::answer(403);
        }
        steps[turn.fetch_add(1, Ordering::SeqCst)].clone()
    })
    .await
}

#[tokio::test]
async fn every_retry_has_a_signature_of_its_own() {
    let steps = vec![
        FaultStep::close(FaultPoint::AfterExecuting),
        FaultStep::answer(503),
        FaultStep::answer(redirect(307, "/v2/charges")),
        FaultStep::ok(),
    ];
    let server = verifying(steps.clone()).await;
    let client = trusting(&server).on_attempt(signing).build().unwrap();
    client.post_json::<Value>("/charges", &json!({ "amount": 5 })).await.unwrap();
    assert_eq!((server.received().len(), server.executions()), (4, 1));

    // Signed once, above the loop, the retry is refused.
    let server = verifying(steps).await;
    let (time, client) = ("1", trusting(&server).build().unwrap());
    let signed = client.post("/charges").body("5").header("x-time", time);
    let response = signed.header("x-signature", sign("POST", "/charges", b"5", time)).send().await.unwrap();
    let statuses: Vec<_> = response.attempts().iter().map(|attempt| attempt.status()).collect();
    assert_eq!((statuses, server.executions()), (vec![None, Some(http::StatusCode::FORBIDDEN)], 1));
}
