//! The contract of every way into the client's loop: the words of the journal, of the error and of
//! the key are the same. Where an adapter knows less, only the words for the failure differ.

use std::net::TcpListener;
use std::time::Duration;

use steadfast::http::{HeaderValue, Method};
use steadfast::reqwest::Request;
use steadfast::{Client, Confirmation, KeyPolicy, RequestTerms, ResponseExt};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, fast_retries};

use crate::support::doors::Door;

/// One operation: a POST with a body, and the answers that it meets.
struct Case {
    name: &'static str,
    keys: KeyPolicy,
    /// A key in the request's header.
    key: Option<&'static str>,
    terms: RequestTerms,
    steps: Vec<FaultStep>,
    /// Whether the failure of an attempt is known from the transport alone.
    is_of_transport: bool,
}

impl Case {
    fn new(name: &'static str, keys: KeyPolicy, steps: impl Into<Vec<FaultStep>>) -> Self {
        Self { name, keys, key: None, terms: RequestTerms::new(), steps: steps.into(), is_of_transport: false }
    }

    fn of_transport(self) -> Self {
        Self { is_of_transport: true, ..self }
    }

    fn key(self, key: &'static str) -> Self {
        Self { key: Some(key), ..self }
    }

    fn terms(self, terms: RequestTerms) -> Self {
        Self { terms, ..self }
    }
}

fn cases() -> Vec<Case> {
    let lost = || FaultStep::close(FaultPoint::AfterExecuting);
    let (declared, negotiated) = (KeyPolicy::standard, || KeyPolicy::standard().negotiated());
    let replayed = Answer::new(500).header("idempotent-replayed", "true");
    let declined = Answer::new(402).header("content-type", "application/problem+json");
    let declined = declined.body(r#"{"type":"about:blank","title":"card declined"}"#);
    let running = Answer::new(409).retry_after(0);
    vec![
        Case::new("success", declared(), [FaultStep::execute(201)]),
        Case::new("success after 503", declared(), [FaultStep::answer(503), FaultStep::execute(201)]),
        Case::new("503 to the end", declared(), [FaultStep::answer(503)]),
        Case::new("503 without licence", KeyPolicy::off(), [FaultStep::answer(503)]),
        Case::new("503 under a key nobody trusts", negotiated(), [FaultStep::answer(503)]),
        Case::new("refusal in the server's words", declared(), [FaultStep::execute(declined)]),
        Case::new("stored error, replayed", declared(), [FaultStep::answer(replayed)]),
        Case::new(
            "409 while the first runs",
            declared(),
            [lost(), FaultStep::answer(running), FaultStep::execute(201)],
        )
        .of_transport(),
        Case::new("wait that is too long", declared(), [FaultStep::answer(Answer::new(503).retry_after(86_400))]),
        Case::new("key in the header", declared(), [FaultStep::answer(503), FaultStep::execute(201)]).key("order-1042"),
        Case::new("key in quotes", declared(), [FaultStep::answer(503), FaultStep::execute(201)]).key("\"order-1042\""),
        Case::new("malformed key", declared(), [FaultStep::execute(201)]).key("\"order"),
        Case::new("key in the terms", declared(), [FaultStep::answer(503)])
            .terms(RequestTerms::new().idempotency_key("order-1042".parse().unwrap())),
        Case::new("harmless by word", KeyPolicy::off(), [FaultStep::answer(503), FaultStep::execute(201)])
            .terms(RequestTerms::new().idempotent(true)),
        Case::new("invalid term", declared(), [FaultStep::execute(201)])
            .terms(RequestTerms::new().timeout(Duration::ZERO)),
        Case::new("lost answer, trusted key", declared(), [lost(), FaultStep::execute(201)]).of_transport(),
        Case::new("lost answers to the end", declared(), [lost()]).of_transport(),
        Case::new("lost answer, no licence", KeyPolicy::off(), [lost()]).of_transport(),
        Case::new("lost answer, no trust", negotiated(), [lost()]).of_transport(),
        Case::new("lost answer, found by a read", KeyPolicy::off(), [lost()]).of_transport().terms(
            RequestTerms::new().confirm(async |_| {
                Ok::<_, steadfast::Error>(Confirmation::applied(steadfast::http::Response::new("charged")))
            }),
        ),
        Case::new("cut head", declared(), [FaultStep::close(FaultPoint::MidHead)]).of_transport(),
        Case::new("no HTTP", declared(), [FaultStep::garbage()]).of_transport(),
    ]
}

/// Sends the request through a door, and returns everything that is told of it, on the client's side
/// and on the server's, without what differs from run to run.
async fn transcript(door: Door, case: &Case) -> String {
    let server = FaultServer::play(case.steps.clone()).await;
    let client = Client::builder().keys(case.keys.clone()).retry(fast_retries().max_attempts(3));
    let opened = door.open(client, |http| http);
    let mut request = Request::new(Method::POST, server.url("/charges?limit=3").parse().unwrap());
    *request.body_mut() = Some("12 EUR".into());
    if let Some(key) = case.key {
        request.headers_mut().insert("idempotency-key", HeaderValue::from_static(key));
    }
    let mut told = Vec::new();
    let ended = match opened.send(request, case.terms.clone()).await {
        Ok(response) => {
            told.push(format!("response: {:?}", response.stop_reason()));
            told.push(format!("may have been processed: {}", response.may_have_been_processed()));
            told.push(format!("key: {:?}", response.idempotency_key().map(ToString::to_string)));
            told.extend(response.attempts().iter().map(ToString::to_string));
            response.into_result().await.map(|response| response.status())
        }
        Err(error) => Err(error),
    };
    match ended {
        Ok(status) => told.push(format!("status: {status}")),
        Err(error) => {
            told.push(format!("error: {:?}, {:?}, {:?}", error.kind(), error.stop_reason(), error.status()));
            told.push(format!("may have been processed: {}", error.may_have_been_processed()));
            told.push(format!("key: {:?}", error.idempotency_key().map(ToString::to_string)));
            let token = error.resume_token().map(|token| token.may_have_been_processed());
            told.push(format!("token: {token:?}, again after {:?}", error.retry_after()));
            told.extend(error.attempts().iter().map(ToString::to_string));
            told.push(error.to_string());
        }
    }
    told.extend(server.received().iter().map(ToString::to_string));
    told.push(format!("executions: {}", server.executions()));
    anonymous(&told.join("\n"), &server)
}

/// Replaces the server's address, the minted key and all times.
fn anonymous(told: &str, server: &FaultServer) -> String {
    let mut told = told.replace(&server.url(""), "http://server");
    let keys: std::collections::BTreeSet<String> = server.keys().into_iter().flatten().collect();
    assert!(keys.len() <= 1, "one key: {keys:?}");
    if let Some(key) = keys.first().filter(|key| key.trim_matches('"').len() == 36) {
        told = told.replace(key, "KEY").replace(&format!("{}…", &key.trim_matches('"')[..8]), "KEY…");
    }
    told.lines().map(timeless).collect::<Vec<_>>().join("\n")
}

/// Replaces times such as `12 ms` and `under 1 ms`.
fn timeless(line: &str) -> String {
    let mut words: Vec<&str> = Vec::new();
    for word in line.split(' ') {
        let is_unit = matches!(word.trim_end_matches([';', ',', ')']), "ms" | "s");
        if is_unit && words.pop_if(|number| number.parse::<f64>().is_ok()).is_some() {
            words.pop_if(|under| *under == "under");
            words.push("TIME");
        }
        words.push(word);
    }
    words.join(" ")
}

/// What an adapter that knows less says in place of these.
const UNKNOWN: &str = "failed in an unknown way";
const KNOWN: [&str; 2] = ["connection lost before the response", "the response is not HTTP"];

#[tokio::test]
async fn words_are_the_same_through_every_door() {
    for case in cases() {
        let plain = transcript(Door::Plain, &case).await;
        let poorer = KNOWN.iter().fold(plain.clone(), |told, known| told.replace(known, UNKNOWN));
        for door in Door::ALL {
            let told = transcript(door, &case).await;
            let expected = if door.is_opaque() && case.is_of_transport { &poorer } else { &plain };
            assert_eq!(told, *expected, "{} through {door:?}", case.name);
        }
    }
}

#[tokio::test]
async fn refused_connection_is_ambiguous_where_less_is_known() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/charges", listener.local_addr().unwrap());
    drop(listener);
    for door in Door::ALL {
        let client = Client::builder().keys(KeyPolicy::off()).retry(fast_retries().max_attempts(3));
        let request = Request::new(Method::POST, url.parse().unwrap());
        let error = door.open(client, |http| http).send(request, RequestTerms::new()).await.unwrap_err();
        let expected = if door.is_opaque() { (1, true) } else { (3, false) };
        assert_eq!((error.attempts().len(), error.may_have_been_processed()), expected, "{door:?}: {error}");
    }
}
