//! When an operation goes again with a fresh token, and when a 401 is its end.

use http::StatusCode;
use serde_json::Value;
use steadfast::policy::{Class, RetryBudget, RetryPolicy, StopReason};
use steadfast::reqwest::{self, Body};
use steadfast::{ClientBuilder, RequestBuilder, ResponseExt, Why};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, fast_retries};

use super::{asked, authorization, keyless, tokens, unauthorized};
use crate::support::trusting;

const AGAIN: [Why; 2] = [Why::First, Why::Refused];

/// How an operation has ended: requests, executions, whether it may have been processed, the last
/// status, and why the closure was asked for a token.
#[derive(Debug, PartialEq)]
struct Ended {
    sends: usize,
    executions: usize,
    may: bool,
    status: u16,
    asked: Vec<Why>,
}

/// Sends a POST to a server that plays these steps and ignores keys.
async fn post(steps: impl IntoIterator<Item = FaultStep>, client: impl Fn(&FaultServer) -> ClientBuilder) -> Ended {
    send(steps, client, |client| client.post("/charges").body("5")).await
}

async fn send(
    steps: impl IntoIterator<Item = FaultStep>,
    client: impl Fn(&FaultServer) -> ClientBuilder,
    request: impl Fn(&steadfast::Client) -> RequestBuilder,
) -> Ended {
    let server = FaultServer::play(steps).await;
    let (refreshing, why) = tokens();
    let client = client(&server).credentials(refreshing).build().unwrap();
    let response = request(&client).send().await.unwrap();
    let status = response.status().as_u16();
    let may = response.may_have_been_processed();
    Ended { sends: server.received().len(), executions: server.executions(), may, status, asked: asked(&why) }
}

fn refused() -> FaultStep {
    FaultStep::answer(unauthorized())
}

fn without_challenge() -> FaultStep {
    FaultStep::answer(401)
}

fn again(executions: usize) -> Ended {
    Ended { sends: 2, executions, may: true, status: 200, asked: AGAIN.to_vec() }
}

fn stops() -> Ended {
    Ended { sends: 1, executions: 0, may: false, status: 401, asked: vec![Why::First] }
}

#[tokio::test]
async fn challenge_lets_keyless_operation_go_again() {
    let ended = post([refused(), FaultStep::ok()], keyless).await;
    assert_eq!(ended, again(1));
    assert_eq!(post([without_challenge(), FaultStep::ok()], keyless).await, stops());
}

#[tokio::test]
async fn licensed_operation_goes_again_without_challenge() {
    assert_eq!(post([without_challenge(), FaultStep::ok()], trusting).await, again(1));
    let put = send([without_challenge(), FaultStep::ok()], keyless, |client| client.put("/charges/1").body("5")).await;
    assert_eq!(put, again(1));
    // A key without trust is no licence.
    let doubting = |server: &FaultServer| keyless(server).keys(steadfast::KeyPolicy::default());
    assert_eq!(post([without_challenge(), FaultStep::ok()], doubting).await, stops());
    assert_eq!(post([refused(), FaultStep::ok()], doubting).await, again(1));
}

/// An attempt is lost after it was carried out. Under one key the operation is executed once.
#[tokio::test]
async fn refusal_after_lost_answer_goes_again_under_same_key() {
    let server = FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting), refused(), FaultStep::ok()]).await;
    let (refreshing, why) = tokens();
    let client = trusting(&server).credentials(refreshing).build().unwrap();
    let response = client.post("/charges").body("5").send().await.unwrap();
    assert_eq!((response.status(), response.attempts().len()), (StatusCode::OK, 3));
    assert_eq!((server.executions(), asked(&why)), (1, AGAIN.to_vec()));
    steadfast_testing::assert_one_key(&server).await;
}

/// The user's classifier lets a keyless operation be repeated after a 503. That is no evidence
/// about what the 503 has done, so a 401 ends it.
#[tokio::test]
async fn refusal_after_ambiguous_attempt_ends_keyless() {
    let classify = |server: &FaultServer| {
        keyless(server).classify(|outcome| match outcome.status() {
            Some(StatusCode::SERVICE_UNAVAILABLE) => Class::NotProcessed,
            _ => outcome.default_class(),
        })
    };
    let ended = post([FaultStep::execute(503), refused(), FaultStep::ok()], classify).await;
    assert_eq!(ended, Ended { sends: 2, executions: 1, may: true, status: 401, asked: vec![Why::First] });
}

#[tokio::test]
async fn refusal_behind_redirect_that_may_have_acted_ends() {
    let moved = || FaultStep::execute(Answer::new(302).header("location", "/moved"));
    // A GET with effects: what the first hop did is not known.
    let with_effects = |client: &steadfast::Client| client.get("/toggle").idempotent(false);
    let ended = send([moved(), refused(), FaultStep::ok()], keyless, with_effects).await;
    assert_eq!(ended, Ended { sends: 2, executions: 1, may: true, status: 401, asked: vec![Why::First] });

    // A 307 has not acted.
    let temporary = || FaultStep::answer(Answer::new(307).header("location", "/moved"));
    let ended = post([temporary(), refused(), FaultStep::ok()], keyless).await;
    assert_eq!(ended, Ended { sends: 3, ..again(1) });

    // After a 303 it is the GET of the result that goes again.
    let see_other = FaultStep::execute(Answer::new(303).header("location", "/result"));
    let ended = post([see_other, without_challenge(), FaultStep::answer(200)], keyless).await;
    assert_eq!(ended, Ended { sends: 3, ..again(1) });
}

#[tokio::test]
async fn ambiguous_401_needs_a_licence() {
    let policy = || fast_retries().unauthorized_is_ambiguous(true);
    let ended = post([refused(), FaultStep::ok()], |server| keyless(server).retry(policy())).await;
    assert_eq!(ended, Ended { may: true, ..stops() });
    assert_eq!(post([refused(), FaultStep::ok()], |server| trusting(server).retry(policy())).await, again(1));
}

#[tokio::test]
async fn opaque_transport_needs_a_licence() {
    let given = |client: ClientBuilder| client.http_client(reqwest::Client::new());
    assert_eq!(post([refused(), FaultStep::ok()], |server| given(keyless(server))).await, stops());
    assert_eq!(post([refused(), FaultStep::ok()], |server| given(trusting(server))).await, again(1));
    let exact = |server: &FaultServer| given(keyless(server)).assume_no_redirects();
    assert_eq!(post([refused(), FaultStep::ok()], exact).await, again(1));

    // The same with a transport behind a closure.
    let server = FaultServer::play([refused(), FaultStep::ok()]).await;
    let client = keyless(&server).credentials(tokens().0).build().unwrap();
    let mut request = reqwest::Request::new(http::Method::POST, server.url("/charges").parse().unwrap());
    *request.body_mut() = Some("5".into());
    let http = reqwest::Client::new();
    let response = client.execute_through(request, |request| {
        let sending = http.execute(request);
        async move { Ok(sending.await?) }
    });
    assert_eq!((response.await.unwrap().status().as_u16(), server.received().len()), (401, 1));
}

#[tokio::test]
async fn second_refusal_is_final() {
    for client in [keyless, trusting] {
        let ended = post([refused(), refused(), FaultStep::ok()], client).await;
        assert_eq!(ended, Ended { sends: 2, asked: AGAIN.to_vec(), ..stops() });
    }
}

#[tokio::test]
async fn repeat_takes_no_attempt_and_no_token() {
    let poor = |server: &FaultServer| {
        trusting(server).retry(RetryPolicy::new().max_attempts(1)).budget(RetryBudget::standard().initial(0))
    };
    assert_eq!(post([refused(), FaultStep::ok()], poor).await, again(1));
    let never = |server: &FaultServer| trusting(server).retry(RetryPolicy::never());
    assert_eq!(post([refused(), FaultStep::ok()], never).await, stops());
    // Three attempts beside it.
    let all = [refused(), FaultStep::answer(503), FaultStep::answer(503), FaultStep::answer(503)];
    let ended = post(all, |server| trusting(server).retry(fast_retries().max_attempts(3))).await;
    assert_eq!(ended, Ended { sends: 4, may: true, status: 503, asked: AGAIN.to_vec(), executions: 0 });
}

/// A stored 401 tells nothing about the token of this request.
#[tokio::test]
async fn replayed_401_is_final_and_keeps_token() {
    let replayed = || FaultStep::answer(unauthorized().header("idempotent-replayed", "true"));
    let server = FaultServer::play([replayed(), FaultStep::ok()]).await;
    let (refreshing, why) = tokens();
    let client = trusting(&server).credentials(refreshing).build().unwrap();
    let error = client.post_json::<Value>("/charges", &5).await.unwrap_err();
    assert_eq!((error.stop_reason(), server.received().len()), (Some(StopReason::Replayed), 1));
    client.post_json::<Value>("/charges", &5).await.unwrap();
    assert_eq!(asked(&why), [Why::First]);
}

#[tokio::test]
async fn callers_own_credentials_are_not_renewed() {
    let ended = send([refused(), FaultStep::ok()], trusting, |client| client.get("/").bearer_auth("mine")).await;
    assert_eq!(ended, Ended { asked: vec![], ..stops() });
}

#[tokio::test]
async fn stream_does_not_go_again() {
    let server = FaultServer::play([refused(), FaultStep::ok()]).await;
    let (refreshing, why) = tokens();
    let client = trusting(&server).credentials(refreshing).build().unwrap();
    let stream = Body::wrap_stream(futures_util::stream::once(async { Ok::<_, std::io::Error>("5") }));
    let error = client.put("/charges/1").body(stream).fetch::<Value>().await.unwrap_err();
    assert_eq!((error.stop_reason(), server.received().len()), (Some(StopReason::BodyNotReplayable), 1));
    client.get_json::<Value>("/").await.unwrap();
    assert_eq!((asked(&why), authorization(&server)[1].as_deref()), (AGAIN.to_vec(), Some("Bearer token-2")));
}
