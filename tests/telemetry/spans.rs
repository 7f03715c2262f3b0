//! The spans of an operation and of its requests: names, attributes with their types, and one span
//! of kind CLIENT for each request that the server received.

use std::time::Duration;

use opentelemetry::trace::{SpanKind, Status};
use opentelemetry_sdk::trace::SpanData;
use serde_json::Value;
use steadfast::http::Method;
use steadfast::policy::{BreakerPolicy, HedgePolicy, RetryBudget};
use steadfast::{Client, Confirmation, ErrorKind, EventKind, KeyPolicy, Refreshing, Token, Unconfirmed};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, fast_retries};
use tracing::{Instrument as _, info_span};

use crate::support::{Trace, attribute, lines, trusting};

fn port(server: &FaultServer) -> u16 {
    server.url("").parse::<reqwest::Url>().unwrap().port().unwrap()
}

/// Renders name, number of the resend, status and error of each span of kind CLIENT.
fn sends(trace: &Trace) -> Vec<String> {
    let line = |span: &&SpanData| {
        let value = |key| {
            let text = attribute(span, key);
            text.split_once(' ').map_or_else(|| "-".to_owned(), |(_, value)| value.to_owned())
        };
        let [resend, status, error] =
            ["http.request.resend_count", "http.response.status_code", "error.type"].map(value);
        let is_error = matches!(span.status, Status::Error { .. });
        assert_eq!(is_error, error != "-", "{span:?}");
        format!("{}: resend {resend}, status {status}, error {error}", span.name)
    };
    trace.sends().iter().map(line).collect()
}

/// Renders outcome, attempts and error of the operation's span.
fn operation(trace: &Trace) -> String {
    let span = trace.operation();
    let value = |key| attribute(span, key);
    let is_error = matches!(span.status, Status::Error { .. });
    assert_eq!(is_error, !value("error.type").is_empty(), "{span:?}");
    format!("{}, {}, {}", value("steadfast.outcome"), value("steadfast.attempts"), value("error.type"))
}

#[tokio::test]
async fn success_has_every_stable_attribute() {
    let server = FaultServer::play([FaultStep::ok()]).await;
    let client = trusting(&server).build().unwrap();
    let request = client.get("/users/7?page=2").template("/users/{id}");
    let (response, trace) = Trace::of(request.send()).await;
    assert_eq!(response.unwrap().status(), 200);
    let [send] = trace.sends()[..] else { panic!("{:?}", trace.spans) };
    assert_eq!((&*send.name, &send.span_kind, &send.status), ("GET /users/{id}", &SpanKind::Client, &Status::Unset));
    let expected = [
        "http.request.method: string GET",
        "http.response.status_code: int 200",
        "network.peer.address: string 127.0.0.1",
        "network.peer.port: int PORT",
        "network.protocol.version: string 1.1",
        "server.address: string 127.0.0.1",
        "server.port: int PORT",
        "steadfast.attempt: int 1",
        "url.full: string http://127.0.0.1:PORT/users/7?page=2",
        "url.template: string /users/{id}",
    ];
    assert_eq!(lines(&send.attributes, port(&server)), expected);
    let operation = trace.operation();
    assert_eq!((&*operation.name, &operation.status), ("operation GET /users/{id}", &Status::Unset));
    let expected = [
        "http.request.method: string GET",
        "server.address: string 127.0.0.1",
        "server.port: int PORT",
        "steadfast.attempts: int 1",
        "steadfast.may_have_been_processed: bool true",
        "steadfast.outcome: string done",
        "url.template: string /users/{id}",
    ];
    assert_eq!(lines(&operation.attributes, port(&server)), expected);
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn failed_send_has_every_stable_attribute() {
    let server = FaultServer::play([FaultStep::answer(503), FaultStep::ok()]).await;
    let client = trusting(&server).build().unwrap();
    let (_, trace) = Trace::of(client.request("PURGE".parse().unwrap(), "/").idempotent(true).send()).await;
    let expected = [
        "error.type: string 503",
        "http.request.method: string _OTHER",
        "http.request.method_original: string PURGE",
        "http.response.status_code: int 503",
        "network.peer.address: string 127.0.0.1",
        "network.peer.port: int PORT",
        "network.protocol.version: string 1.1",
        "server.address: string 127.0.0.1",
        "server.port: int PORT",
        "steadfast.attempt: int 1",
        "url.full: string http://127.0.0.1:PORT/",
    ];
    assert_eq!(lines(&trace.sends()[0].attributes, port(&server)), expected);
    assert_eq!(attribute(trace.sends()[1], "http.request.resend_count"), "int 1");
    assert_eq!(trace.sends()[0].name, "HTTP");
    assert_eq!(trace.sends()[0].status, Status::error(""));
}

#[tokio::test]
async fn each_retry_has_a_span_with_its_number() {
    let lost = FaultStep::reset(FaultPoint::AfterExecuting);
    let server = FaultServer::play([FaultStep::answer(503), lost, FaultStep::ok()]).await;
    let client = trusting(&server).build().unwrap();
    let (charged, trace) = Trace::of(client.post("/charges").body("x").fetch::<Value>()).await;
    charged.unwrap();
    let expected = [
        "POST: resend -, status 503, error 503",
        "POST: resend 1, status -, error disconnected",
        "POST: resend 2, status 200, error -",
    ];
    assert_eq!(sends(&trace), expected);
    assert_eq!(operation(&trace), "string done, int 3, ");
    assert_eq!(server.received().len(), 3);
}

#[tokio::test]
async fn refused_connection_has_error_and_no_status() {
    let server = FaultServer::play([FaultStep::ok()]).await;
    let url = server.url("/");
    drop(server);
    let client = Client::builder().retry(fast_retries().max_attempts(1)).build().unwrap();
    let (result, trace) = Trace::of(client.get(url).send()).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Connect);
    assert_eq!(sends(&trace), ["GET: resend -, status -, error connect"]);
    assert_eq!(attribute(trace.sends()[0], "network.protocol.version"), "");
    assert_eq!(operation(&trace), "string attempts_exhausted, int 1, string connect");
}

#[tokio::test]
async fn redirect_is_a_send_of_its_own() {
    let to = |path| Answer::new(307).header("location", path);
    let server =
        FaultServer::play([FaultStep::answer(to("/moved?sig=abc")), FaultStep::answer(503), FaultStep::ok()]).await;
    let client = trusting(&server).build().unwrap();
    let request = client.put("/a").body("x").template("/{name}");
    let (_, trace) = Trace::of(request.send()).await;
    let expected = [
        "PUT /{name}: resend -, status 307, error -",
        "PUT /{name}: resend 1, status 503, error 503",
        "PUT /{name}: resend 2, status 200, error -",
    ];
    assert_eq!(sends(&trace), expected);
    let attempts: Vec<_> = trace.sends().iter().map(|send| attribute(send, "steadfast.attempt")).collect();
    assert_eq!(attempts, ["int 1", "int 1", "int 2"]);
    assert!(attribute(trace.sends()[1], "url.full").ends_with("/moved?sig=REDACTED"));
    assert_eq!(operation(&trace), "string done, int 2, ");
    assert_eq!(server.received().len(), 3);
}

#[tokio::test]
async fn see_other_is_sent_as_get() {
    let see_other = Answer::new(303).header("location", "/charges/1");
    let server = FaultServer::play([FaultStep::execute(see_other), FaultStep::answer(200)]).await;
    let client = trusting(&server).build().unwrap();
    let (_, trace) = Trace::of(client.post("/charges").body("x").send()).await;
    assert_eq!(sends(&trace), ["POST: resend -, status 303, error -", "GET: resend 1, status 200, error -"]);
    assert_eq!(server.received().len(), 2);
}

/// The conventions: 3xx is no error, unless there are too many.
#[tokio::test]
async fn circle_of_redirects_is_an_error() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(307).header("location", "/"))]).await;
    let client = trusting(&server).build().unwrap();
    let (result, trace) = Trace::of(client.get("/").send()).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Redirect);
    assert_eq!(sends(&trace), ["GET: resend -, status 307, error redirects"]);
    assert_eq!(operation(&trace), "string permanent, int 1, string redirects");
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn hedge_is_a_send_beside_the_first() {
    let server = FaultServer::play([FaultStep::stall(FaultPoint::AfterExecuting), FaultStep::answer(200)]).await;
    let late = HedgePolicy::after(Duration::from_millis(20)).max_extra_load(1.0);
    let client = trusting(&server).hedge(late).build().unwrap();
    let (_, trace) = Trace::of(client.get("/").send()).await;
    // The first one was cancelled by the client, and that is no error.
    assert_eq!(sends(&trace), ["GET: resend -, status -, error -", "GET: resend 1, status 200, error -"]);
    let [first, second] = trace.sends()[..] else { panic!("{:?}", trace.spans) };
    assert!(second.start_time < first.end_time, "side by side");
    assert!(first.end_time >= second.start_time + Duration::from_micros(1));
    assert_eq!(attribute(second, "steadfast.attempt"), "int 2");
    assert_eq!(operation(&trace), "string done, int 2, ");
    assert_eq!(server.received().len(), 2);
}

#[tokio::test]
async fn cancelled_by_the_caller_is_no_error() {
    let server = FaultServer::play([FaultStep::stall(FaultPoint::AfterExecuting)]).await;
    let client = trusting(&server).build().unwrap();
    let work = async {
        tokio::select! {
            result = client.post("/charges").body("x").send() => panic!("{result:?}"),
            () = async { while server.executions() == 0 { tokio::task::yield_now().await } } => {}
        }
    };
    let ((), trace) = Trace::of(work).await;
    assert_eq!(sends(&trace), ["POST: resend -, status -, error -"]);
    assert_eq!(operation(&trace), "string cancelled, int 1, ");
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn spent_budget_is_the_outcome() {
    let server = FaultServer::play([FaultStep::answer(503)]).await;
    let client = trusting(&server).budget(RetryBudget::standard().capacity(14)).build().unwrap();
    let (_, trace) = Trace::of(client.get("/").send()).await;
    assert_eq!(sends(&trace).len(), 2);
    assert_eq!(operation(&trace), "string budget_exhausted, int 2, string 503");
    assert_eq!(server.received().len(), 2);
}

#[tokio::test]
async fn unauthorised_send_is_an_error() {
    let server = FaultServer::play([FaultStep::answer(401)]).await;
    let client = trusting(&server).build().unwrap();
    let (_, trace) = Trace::of(client.get("/").send()).await;
    assert_eq!(sends(&trace), ["GET: resend -, status 401, error 401"]);
    assert_eq!(operation(&trace), "string permanent, int 1, string 401");
}

/// The fresh token belongs to the same operation, and its send is numbered like any other.
#[tokio::test]
async fn send_with_fresh_token_is_numbered() {
    let refused = Answer::new(401).header("www-authenticate", "Bearer");
    let server = FaultServer::play([FaultStep::answer(refused), FaultStep::ok()]).await;
    let renewed = Refreshing::bearer(async |why| Ok::<_, std::io::Error>(Token::new(format!("{why:?}"))));
    let client = trusting(&server).credentials(renewed).build().unwrap();
    let (_, trace) = Trace::of(client.post("/charges").body("x").send()).await;
    assert_eq!(sends(&trace), ["POST: resend -, status 401, error 401", "POST: resend 1, status 200, error -"]);
    assert_eq!(operation(&trace), "string done, int 2, ");
    assert_eq!(server.received().len(), 2);
}

/// The read that finds out what became of an operation belongs to it, and has spans of its own.
#[tokio::test]
async fn read_that_confirms_is_inside_its_operation() {
    let lost = FaultStep::reset(FaultPoint::AfterExecuting);
    let server = FaultServer::play([lost, FaultStep::answer(200)]).await;
    let find = async |charge: Unconfirmed| {
        let found = charge.client().get("/charge").fetch_response().await?;
        Ok::<_, steadfast::Error>(Confirmation::applied(found))
    };
    let client = trusting(&server).keys(KeyPolicy::off()).confirm(find).build().unwrap();
    let (response, trace) = Trace::of(client.post("/charges").body("x").send()).await;
    assert_eq!(response.unwrap().status(), 200);
    let expected = ["POST: resend -, status -, error disconnected", "GET: resend -, status 200, error -"];
    assert_eq!(sends(&trace), expected);
    let named = |name: &str| trace.spans.iter().find(|span| span.name == name).unwrap();
    let (charge, read) = (named("operation POST"), named("operation GET"));
    assert_eq!(read.parent_span_id, charge.span_context.span_id());
    assert_eq!(
        (attribute(charge, "steadfast.outcome"), &charge.status),
        ("string confirmed".to_owned(), &Status::Unset)
    );
    assert_eq!(server.received().len(), 2);
}

/// Nothing was sent, and the span says why.
#[tokio::test]
async fn failed_hook_is_the_error_of_its_span() {
    let server = FaultServer::play([FaultStep::ok()]).await;
    let client = trusting(&server).on_attempt(|_| Err("no signature".into())).build().unwrap();
    let (result, trace) = Trace::of(client.get("/").send()).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::AttemptHook);
    assert_eq!(sends(&trace), ["GET: resend -, status -, error attempt_hook"]);
    assert_eq!(server.received().len(), 0);
}

#[tokio::test]
async fn attempt_out_of_time_is_a_timeout() {
    let server = FaultServer::play([FaultStep::stall(FaultPoint::AfterExecuting)]).await;
    let client = trusting(&server).attempt_timeout(Duration::from_millis(300)).build().unwrap();
    let (_, trace) = Trace::of(client.post("/").body("x").retry(fast_retries().max_attempts(1)).send()).await;
    assert_eq!(sends(&trace), ["POST: resend -, status -, error timeout"]);
    assert_eq!(operation(&trace), "string attempts_exhausted, int 1, string timeout");
}

/// `fetch` reads the body inside the attempt, so the span has its end.
#[tokio::test]
async fn cut_body_is_an_error_beside_its_status() {
    let server = FaultServer::play([FaultStep::close(FaultPoint::MidBody), FaultStep::ok()]).await;
    let client = trusting(&server).build().unwrap();
    let (_, trace) = Trace::of(client.get("/").fetch::<Value>()).await;
    assert_eq!(sends(&trace), ["GET: resend -, status 200, error body_cut", "GET: resend 1, status 200, error -"]);
}

#[tokio::test]
async fn protocol_version_is_that_of_the_connection() {
    let server = FaultServer::play([FaultStep::ok()]).await;
    let client = trusting(&server).http(|http| http.http2_prior_knowledge()).build().unwrap();
    let (_, trace) = Trace::of(client.get("/").send()).await;
    assert_eq!(attribute(trace.sends()[0], "network.protocol.version"), "string 2");
}

#[tokio::test]
async fn client_without_spans_makes_none() {
    let server = FaultServer::play([FaultStep::answer(503), FaultStep::ok()]).await;
    let client = trusting(&server).spans(false).build().unwrap();
    let (_, trace) = Trace::of(client.get("/").send()).await;
    assert_eq!((trace.spans.len(), server.received().len()), (0, 2));
}

/// 200 operations over a server that fails in every way that leaves a whole request.
#[tokio::test]
async fn server_receives_as_many_requests_as_spans() {
    let faults = [
        (0.2, FaultStep::answer(503)),
        (0.1, FaultStep::reset(FaultPoint::AfterExecuting)),
        (0.1, FaultStep::close(FaultPoint::MidHead)),
        (0.1, FaultStep::answer(Answer::new(307).header("location", "/elsewhere"))),
        (0.1, FaultStep::answer(429)),
        (0.1, FaultStep::answer(421)),
    ];
    let server = FaultServer::random(11, faults).await;
    let client = trusting(&server).budget(RetryBudget::unlimited()).build().unwrap();
    let work = async {
        for number in 0..200_u32 {
            let method = if number.is_multiple_of(2) { Method::POST } else { Method::GET };
            // Some operations fail, after all their attempts.
            drop(client.request(method, "/charges").body("x").send().await);
        }
    };
    let ((), trace) = Trace::of(work).await;
    let received = server.received().len();
    assert!(received > 250, "{received}");
    assert_eq!(trace.sends().len(), received);
}

/// A span of a transport belongs to the request that it sends.
#[tokio::test]
async fn transport_works_inside_the_span_of_its_send() {
    let server = FaultServer::play([FaultStep::answer(503), FaultStep::ok()]).await;
    let (client, plain) = (trusting(&server).build().unwrap(), reqwest::Client::new());
    let send = async |request| {
        let sending = plain.execute(request).instrument(info_span!(target: "test", "inside"));
        Ok(sending.await?)
    };
    let request = reqwest::Request::new(Method::GET, server.url("/").parse().unwrap());
    let (response, trace) = Trace::of(client.execute_through(request, send)).await;
    assert_eq!(response.unwrap().status(), 200);
    let expected = ["GET: resend -, status 503, error 503", "GET: resend 1, status 200, error -"];
    assert_eq!(sends(&trace), expected);
    let inside: Vec<_> = trace.spans.iter().filter(|span| span.name == "inside").collect();
    assert_eq!((inside.len(), server.received().len()), (2, 2));
    for (span, send) in inside.iter().zip(trace.sends()) {
        assert_eq!(span.parent_span_id, send.span_context.span_id());
    }
}

/// Events are told inside the operation's span, whatever the closure does with them.
#[tokio::test]
async fn events_are_inside_the_span_of_the_operation() {
    let server = FaultServer::play([FaultStep::answer(503), FaultStep::ok()]).await;
    let client = trusting(&server).on_event(|event| {
        if let EventKind::RetryScheduled { .. } = event.kind() {
            info_span!(target: "test", "noted").in_scope(|| ());
        }
    });
    let (_, trace) = Trace::of(client.build().unwrap().get("/").send()).await;
    let noted = trace.spans.iter().find(|span| span.name == "noted").unwrap();
    let operation = trace.spans.iter().find(|span| span.name == "operation GET").unwrap();
    assert_eq!(noted.parent_span_id, operation.span_context.span_id());
    let told: Vec<_> = operation.events.iter().map(|event| event.name.to_string()).collect();
    assert!(told.contains(&"retry scheduled".to_owned()), "{told:?}");
}

#[tokio::test]
async fn operation_that_is_not_admitted_sends_nothing() {
    let server = FaultServer::play([FaultStep::answer(500)]).await;
    let client = trusting(&server).breaker(BreakerPolicy::new().min_calls(1)).build().unwrap();
    drop(client.get("/").retry(fast_retries().max_attempts(1)).send().await);
    let (_, trace) = Trace::of(client.get("/").send()).await;
    assert_eq!(operation(&trace), "string circuit_open, int 0, string circuit_open");
    assert_eq!((trace.sends().len(), server.received().len()), (0, 1));
    let (_, trace) = Trace::of(async { client.get("/").prepare().unwrap() }).await;
    assert_eq!(trace.spans.len(), 0, "it does not start yet");
    let (_, trace) = Trace::of(client.get("http://[").send()).await;
    assert_eq!(trace.spans.len(), 0, "it cannot start");
}
