//! Operations through a transport of the user's: what its errors prove, and loops inside loops.

use std::net::TcpListener;
use std::sync::Mutex;
use std::time::Duration;

use steadfast::http::{self, Method};
use steadfast::policy::{Class, StopReason};
use steadfast::reqwest::{self, Request, Response};
use steadfast::{Client, ErrorKind, KeyPolicy, RequestBuilder, ResponseExt, TransportError};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, assert_one_key, fast_retries};

/// A client without a base URL. `keys` says whether the API is said to honour keys.
fn client(keys: KeyPolicy) -> Client {
    Client::builder().retry(fast_retries().max_attempts(3)).keys(keys).build().unwrap()
}

fn post(url: &str) -> Request {
    let mut request = Request::new(Method::POST, url.parse().unwrap());
    *request.body_mut() = Some("12 EUR".into());
    request
}

/// The address of a port that refuses connections.
fn refused() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}/charges", listener.local_addr().unwrap())
}

/// Sends requests as a plain reqwest client does, redirects and all.
async fn plainly(request: Request) -> Result<Response, TransportError> {
    Ok(reqwest::Client::new().execute(request).await?)
}

#[tokio::test]
async fn unseen_303_to_refused_port_stays_one_execution() {
    let see_other = Answer::new(303).header("location", refused());
    let server = FaultServer::play([FaultStep::execute(see_other), FaultStep::execute(200)]).await;
    let client = client(KeyPolicy::standard().negotiated());
    let error = client.execute_through(post(&server.url("/charges")), plainly).await.unwrap_err();
    assert_eq!((server.executions(), error.may_have_been_processed()), (1, true), "{error}");
    assert_eq!(error.stop_reason(), Some(StopReason::KeyNotTrusted), "{error}");
}

#[tokio::test]
async fn refused_connection_of_reqwest_is_ambiguous() {
    let error = client(KeyPolicy::off()).execute_through(post(&refused()), plainly).await.unwrap_err();
    println!("{error:#}");
    assert_eq!((error.attempts().len(), error.may_have_been_processed()), (1, true), "{error}");
    assert_eq!(error.stop_reason(), Some(StopReason::NotRepeatable));
    let get = Request::new(Method::GET, refused().parse().unwrap());
    let error = client(KeyPolicy::off()).execute_through(get, plainly).await.unwrap_err();
    assert_eq!(error.attempts().len(), 3, "{error}");
}

#[tokio::test]
async fn not_sent_is_repeated_whatever_the_method() {
    let server = FaultServer::play([FaultStep::execute(200)]).await;
    let turns = Mutex::new(0);
    let response =
        client(KeyPolicy::off())
            .execute_through(post(&server.url("/charges")), |request| {
                let turn = {
                    let mut turns = turns.lock().unwrap();
                    *turns += 1;
                    *turns
                };
                async move {
                    if turn < 3 { Err(TransportError::not_sent("the queue is full")) } else { plainly(request).await }
                }
            })
            .await
            .unwrap();
    let classes: Vec<_> = response.attempts().iter().map(|attempt| attempt.class()).collect();
    assert_eq!(classes, [Class::NotProcessed, Class::NotProcessed, Class::Success]);
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn unsure_is_repeated_under_one_trusted_key() {
    let lost = FaultStep::close(FaultPoint::AfterExecuting);
    let server = FaultServer::play([lost, FaultStep::execute(503), FaultStep::execute(201)]).await;
    let client = client(KeyPolicy::standard());
    let response = client.execute_through(post(&server.url("/charges")), plainly).await.unwrap();
    assert_eq!((response.status().as_u16(), response.attempts().len()), (201, 3));
    assert_one_key(&server).await;
}

#[tokio::test]
async fn key_in_the_request_is_kept() {
    let server = FaultServer::play([FaultStep::execute(201)]).await;
    let mut request = post(&server.url("/charges"));
    request.headers_mut().insert("idempotency-key", http::HeaderValue::from_static("order-1042"));
    client(KeyPolicy::standard()).execute_through(request, plainly).await.unwrap();
    assert_eq!(server.keys(), [Some("order-1042".to_owned())]);

    let mut malformed = post(&server.url("/charges"));
    malformed.headers_mut().insert("idempotency-key", http::HeaderValue::from_static(" "));
    let error = client(KeyPolicy::standard()).execute_through(malformed, plainly).await.unwrap_err();
    assert_eq!((error.kind(), server.received().len()), (ErrorKind::Build, 1), "{error}");
}

#[tokio::test]
async fn body_stays_reusable_for_layers_below() {
    let server = FaultServer::play([FaultStep::execute(201)]).await;
    let response = client(KeyPolicy::standard())
        .execute_through(post(&server.url("/charges")), |request| async {
            assert!(request.try_clone().is_some());
            plainly(request).await
        })
        .await;
    assert_eq!(response.unwrap().attempts().len(), 1);
}

#[tokio::test]
async fn loop_below_a_loop_makes_one_attempt() {
    let server = FaultServer::start(|_, _| FaultStep::answer(503)).await;
    let (outer, inner) = (client(KeyPolicy::standard()), client(KeyPolicy::standard()));
    let response = outer
        .execute_through(post(&server.url("/charges")), |request| {
            let inner = inner.clone();
            async move {
                let response = inner.execute(request).await?;
                assert_eq!(response.stop_reason(), Some(StopReason::Nested));
                Ok(response)
            }
        })
        .await
        .unwrap();
    assert_eq!((response.stop_reason(), server.received().len()), (Some(StopReason::AttemptsExhausted), 3));
    assert_one_key(&server).await;
}

#[tokio::test]
async fn error_of_nested_loop_hands_on_what_it_knows() {
    let inner = client(KeyPolicy::off());
    let through = async |url: String| {
        let send = |request| {
            let inner = inner.clone();
            async move { Ok(inner.execute(request).await?) }
        };
        client(KeyPolicy::off()).execute_through(post(&url), send).await.unwrap_err()
    };
    let error = through(refused()).await;
    assert_eq!((error.attempts().len(), error.may_have_been_processed()), (3, false), "{error}");

    let server = FaultServer::start(|_, _| FaultStep::close(FaultPoint::AfterExecuting)).await;
    let error = through(server.url("/charges")).await;
    assert_eq!((server.executions(), error.may_have_been_processed()), (1, true), "{error}");
}

#[tokio::test]
async fn terms_of_the_builder_hold_through_a_transport() {
    let server = FaultServer::start(|_, _| FaultStep::answer(503)).await;
    let request = RequestBuilder::from_parts(client(KeyPolicy::off()), post(&server.url("/search")));
    let retry = fast_retries().max_attempts(2);
    let response = request.idempotent(true).retry(retry).send_through(plainly).await.unwrap();
    assert_eq!((response.status().as_u16(), server.received().len()), (503, 2));
    assert_eq!(response.stop_reason(), Some(StopReason::AttemptsExhausted));
}

#[tokio::test]
async fn exact_transport_is_believed_until_it_redirects() {
    use steadfast::adapter::{TransportView, send_through};

    let view = TransportView::exact();
    let client = client(KeyPolicy::off());
    let charge = |url: String| RequestBuilder::from_parts(client.clone(), post(&url));
    let error = send_through(charge(refused()), &view, plainly).await.unwrap_err();
    assert_eq!((error.kind(), error.may_have_been_processed()), (ErrorKind::Connect, false), "{error}");
    assert_eq!(error.attempts().len(), 3);

    let moved = Answer::new(303).header("location", "/charges/1");
    let server = FaultServer::play([FaultStep::execute(moved), FaultStep::execute(200)]).await;
    let response = send_through(charge(server.url("/charges")), &view, plainly).await.unwrap();
    assert_eq!(response.url().path(), "/charges/1");

    let error = send_through(charge(refused()), &view, plainly).await.unwrap_err();
    assert_eq!((error.attempts().len(), error.may_have_been_processed()), (1, true), "{error}");
}

#[tokio::test]
async fn operation_through_a_transport_can_be_spawned() {
    let server = FaultServer::play([FaultStep::execute(201)]).await;
    let request = post(&server.url("/charges"));
    let task = tokio::spawn(async move { client(KeyPolicy::standard()).execute_through(request, plainly).await });
    assert_eq!(task.await.unwrap().unwrap().status(), 201);
}

/// The audit fails before it is sent. That tells nothing about the charge.
#[tokio::test]
async fn error_about_another_request_is_no_word_about_this_one() {
    let server = FaultServer::start(|_, _| FaultStep::execute(201)).await;
    let audit = refused();
    let error = client(KeyPolicy::off())
        .execute_through(post(&server.url("/charges")), |request| {
            let audit = client(KeyPolicy::off()).post(&audit).body("charged");
            async move {
                let response = plainly(request).await?;
                audit.send().await?;
                Ok(response)
            }
        })
        .await
        .unwrap_err();
    assert_eq!((server.executions(), error.may_have_been_processed()), (1, true), "{error}");
}

/// A client that is said to follow no redirects may add credentials to every request.
#[tokio::test]
async fn exact_transport_is_led_to_no_other_origin() {
    use steadfast::adapter::{TransportView, send_through};
    use steadfast::reqwest::redirect::Policy;

    let other = FaultServer::start(|_, _| FaultStep::answer(200)).await;
    let moved = Answer::new(302).header("location", other.url("/stolen"));
    let server = FaultServer::start(move |_, _| FaultStep::answer(moved.clone())).await;
    let token = [("authorization".parse().unwrap(), "Bearer secret".parse().unwrap())].into_iter().collect();
    let plain = reqwest::Client::builder().redirect(Policy::none()).default_headers(token).build().unwrap();
    let get = Request::new(Method::GET, server.url("/").parse().unwrap());
    let request = RequestBuilder::from_parts(client(KeyPolicy::off()), get);
    let view = TransportView::exact();
    let response = send_through(request, &view, |request| async { Ok(plain.execute(request).await?) }).await.unwrap();
    assert_eq!((response.status().as_u16(), other.received().len()), (302, 0));
}

#[tokio::test]
async fn given_client_that_redirects_is_believed_no_longer() {
    let see_other = Answer::new(303).header("location", "/charges/1");
    let server = FaultServer::play([FaultStep::execute(see_other), FaultStep::execute(200)]).await;
    let builder = Client::builder().http_client(reqwest::Client::new()).assume_no_redirects();
    let client = builder.retry(fast_retries()).keys(KeyPolicy::off()).build().unwrap();
    client.post(server.url("/charges")).body("x").send().await.unwrap();
    let error = client.post(refused()).body("x").send().await.unwrap_err();
    assert_eq!((error.attempts().len(), error.may_have_been_processed()), (1, true), "{error}");
}

/// One operation has met "refused" and waits. Meanwhile another one shows that the client below
/// follows redirects.
#[tokio::test]
async fn redirect_seen_while_waiting_takes_not_sent_back() {
    use steadfast::EventKind;
    use steadfast::adapter::{TransportView, send_through};
    use steadfast::policy::{Backoff, RetryPolicy};

    let (tell, mut waits) = tokio::sync::mpsc::unbounded_channel();
    let client = Client::builder()
        .retry(RetryPolicy::new().backoff(Backoff::fixed(Duration::from_millis(1500))))
        .keys(KeyPolicy::off())
        .on_event(move |event| {
            if matches!(event.kind(), EventKind::RetryScheduled { .. }) {
                tell.send(()).unwrap();
            }
        })
        .build()
        .unwrap();
    let moved = Answer::new(303).header("location", "/charges/1");
    let server = FaultServer::play([FaultStep::execute(moved), FaultStep::execute(200)]).await;
    let view = TransportView::exact();
    let charge = |url: String| RequestBuilder::from_parts(client.clone(), post(&url));
    let (refused, shown) = tokio::join!(send_through(charge(refused()), &view, plainly), async {
        waits.recv().await.unwrap();
        send_through(charge(server.url("/charges")), &view, plainly).await
    });
    assert_eq!(shown.unwrap().url().path(), "/charges/1");
    let error = refused.unwrap_err();
    assert_eq!((error.attempts().len(), error.stop_reason()), (1, Some(StopReason::NotRepeatable)), "{error}");
    assert!(error.may_have_been_processed(), "{error}");
}
