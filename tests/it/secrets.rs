//! Secrets planted in URL, headers, body and key appear nowhere: in no error in any format, in no
//! cause, event or log.

use std::error::Error as _;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use steadfast::{Client, Credentials, Error, IdempotencyKey, KeyPolicy, Refreshing, ResponseExt, Token, Why};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, fast_retries};

use crate::support::log::Log;

const KEY: &str = "s3cret-key-s3cret-key-s3cret-key";
const SECRETS: [&str; 10] = [
    "s3cret-user",
    "s3cret-query",
    "s3cret-fragment",
    "s3cret-header",
    "s3cret-body",
    "key-s3cret",
    "s3cret-token",
    "s3cret-refresh",
    "s3cret-signature",
    "s3cret-principal",
];

/// Prints an error in every format, with every cause.
fn printed(error: &Error) -> String {
    let mut text = format!("{error}\n{error:?}\n{error:#}\n{error:#?}\n");
    let mut cause = error.source();
    while let Some(error) = cause {
        writeln!(text, "{error}\n{error:?}\n{error:#}\n{error:#?}").unwrap();
        cause = error.source();
    }
    writeln!(text, "{:?} {:?} {:?}", error.resume_token(), error.idempotency_key(), error.attempts()).unwrap();
    text
}

fn check(what: &str, text: &str) {
    for secret in SECRETS {
        assert!(!text.contains(secret), "{what} shows {secret}: {text}");
    }
}

#[tokio::test]
async fn printed_values_contain_no_secret() {
    let logged = Log::of_process();

    let echo = r#"{"echo":"s3cret-body"}"#;
    for act in [
        FaultStep::close(FaultPoint::OnAccept),
        FaultStep::close(FaultPoint::AfterExecuting),
        FaultStep::reset(FaultPoint::AfterExecuting),
        FaultStep::close(FaultPoint::MidBody),
        FaultStep::close(FaultPoint::MidHead),
        FaultStep::garbage(),
        FaultStep::stall(FaultPoint::AfterExecuting),
        FaultStep::answer(Answer::new(500).body(echo)),
        FaultStep::answer(Answer::new(409).body(echo)),
        FaultStep::answer(Answer::new(302).header("location", "https://s3cret-user@x/?s3cret-query")),
        FaultStep::execute(Answer::new(200).body(echo)),
    ] {
        let name = format!("{act:?}");
        let server = FaultServer::play([act]).await;
        let events = Arc::new(Mutex::new(Vec::<u8>::new()));
        let told = events.clone();
        let client = Client::builder()
            .base_url(server.url(""))
            .keys(KeyPolicy::standard())
            .retry(fast_retries())
            .attempt_timeout(std::time::Duration::from_millis(100))
            .bearer_auth("s3cret-header")
            .on_event(move |event| told.lock().unwrap().extend(format!("{event:?} {}\n", event.url()).bytes()))
            .build()
            .unwrap();
        let url = server.url("/p?q=s3cret-query#s3cret-fragment").replace("http://", "http://s3cret-user:s3cret-user@");
        let request = || {
            let key: IdempotencyKey = KEY.parse().unwrap();
            client
                .post(&url)
                .idempotency_key(key)
                .header("x-secret", "s3cret-header")
                .json(&json!({"a": "s3cret-body"}))
        };
        check("the builder", &format!("{:?} {client:?}", request()));
        let error = request().fetch::<u64>().await.unwrap_err();
        check(&name, &printed(&error));
        match request().send().await {
            Ok(response) => {
                let error = response.into_result().await.err();
                check(&name, &error.as_ref().map(printed).unwrap_or_default());
            }
            Err(error) => check(&name, &printed(&error)),
        }
        check("events", &String::from_utf8_lossy(&events.lock().unwrap()));
        assert!(!events.lock().unwrap().is_empty());
    }
    check_credentials_and_signatures().await;
    let logged = logged.take();
    // The transport's own logs are out of scope; steadfast's lines carry its target.
    let ours: String = logged.lines().filter(|line| line.contains(" steadfast: ")).collect();
    assert!(ours.contains("operation ended"), "{logged}");
    check("the log", &ours);
}

#[tokio::test]
async fn finished_request_hides_user_information() {
    let server = FaultServer::play([FaultStep::answer(Answer::new(302).header("location", "/p"))]).await;
    let client = Client::builder().base_url(server.url("")).retry(fast_retries()).build().unwrap();
    let url = server.url("/p").replace("http://", "http://s3cret-user:s3cret-user@").parse().unwrap();
    let request = steadfast::reqwest::Request::new(http::Method::GET, url);
    check("a circle", &printed(&client.execute(request).await.unwrap_err()));
    // As in every other request, the user information becomes a header.
    assert_eq!(server.received()[0].header("authorization"), Some("Basic czNjcmV0LXVzZXI6czNjcmV0LXVzZXI="));
}

#[tokio::test]
async fn connect_and_build_errors_contain_no_secret() {
    let client = Client::builder().retry(fast_retries()).build().unwrap();
    let url = "http://s3cret-user:s3cret-user@127.0.0.1:1/p?q=s3cret-query#s3cret-fragment";
    let error = client.post(url).json(&json!({"a": "s3cret-body"})).fetch::<Value>().await.unwrap_err();
    check("refused", &printed(&error));
    let url = "http://s3cret-user:s3cret-user@[::1/?q=s3cret-query";
    check("no URL", &printed(&client.get(url).send().await.unwrap_err()));
    let request = client.get("http://s3cret-user@x/?q=s3cret-query").header("x", "s3cret-header\n");
    check("header", &printed(&request.send().await.unwrap_err()));
}

/// A body that fails with an error of reqwest's, which has a presigned URL.
#[tokio::test]
async fn error_of_failed_body_has_no_query() {
    let source = FaultServer::play([FaultStep::answer(403)]).await;
    let refused = steadfast::reqwest::get(source.url("/part?signature=s3cret-query")).await.unwrap();
    let refused = refused.error_for_status().unwrap_err();
    let body = futures_util::stream::once(async move { Err::<Vec<u8>, _>(refused) });
    let server = FaultServer::play([FaultStep::ok()]).await;
    let request = Client::new().post(server.url("/")).body(steadfast::reqwest::Body::wrap_stream(body));
    let error = request.send().await.unwrap_err();
    let line = error.to_string();
    assert!(line.contains("the request body failed: HTTP status client error (403 Forbidden) for url (http"), "{line}");
    for printed in [line, format!("{error:?}"), format!("{error:#}")] {
        assert!(!printed.contains("s3cret"), "{printed}");
    }
}

#[tokio::test]
async fn service_terms_and_report_show_no_secret() {
    use steadfast::{OperationReport, RequestTerms};
    use tower::{Service, ServiceExt};

    let server = FaultServer::play([FaultStep::answer(500), FaultStep::close(FaultPoint::AfterExecuting)]).await;
    let client = Client::builder().retry(fast_retries().max_attempts(1)).build().unwrap();
    let mut service = client.into_service();
    let terms = RequestTerms::new().idempotency_key(KEY.parse().unwrap());
    let url = server.url("/p?q=s3cret-query").replace("http://", "http://s3cret-user:s3cret-user@");
    let request = |url: &str| {
        let request = http::Request::post(url).header("x-secret", "s3cret-header").extension(terms.clone());
        request.body("s3cret-body".to_owned()).unwrap()
    };
    let sending = service.call(request(&url));
    check("the service", &format!("{service:?} {terms:?} {sending:?}"));
    let response = sending.await.unwrap();
    check("the report", &format!("{:?} {:?}", response.extensions().get::<OperationReport>(), response.body()));
    check("no answer", &printed(&service.clone().oneshot(request(&url)).await.unwrap_err()));
    check("relative", &printed(&service.oneshot(request("/p?q=s3cret-query")).await.unwrap_err()));
}

/// A token, its refresh token and a signature: while they are sent, refused and renewed, and where
/// the closure or the hook fails.
async fn check_credentials_and_signatures() {
    let refused = || FaultStep::answer(Answer::new(401).header("www-authenticate", "Bearer"));
    let other_user = |_| Ok(Token::new("s3cret-token-2").principal("s3cret-principal"));
    let no_header = |_| Ok(Token::new("s3cret-token\n"));
    type Renew = fn(Why) -> Result<Token, Box<dyn std::error::Error + Send + Sync>>;
    let renewals: [(Renew, &str); 6] = [
        (|_| Ok("s3cret-token-2".into()), ""),
        (|_| Ok("s3cret-token".into()), ""),
        (|_| panic!("s3cret-refresh"), ""),
        (|_| Ok("unused".into()), "http://s3cret-user:s3cret-user@127.0.0.1:1/token?refresh_token=s3cret-refresh"),
        (other_user, ""),
        (no_header, ""),
    ];
    for (case, (renew, idp)) in renewals.into_iter().enumerate() {
        for hook_fails in [false, true] {
            let server = FaultServer::play([refused(), FaultStep::close(FaultPoint::AfterExecuting), refused()]).await;
            let events = Arc::new(Mutex::new(Vec::<u8>::new()));
            let told = events.clone();
            let refreshing = Refreshing::bearer(move |why| {
                let held = "s3cret-refresh".to_owned();
                async move {
                    if why == Why::First {
                        return Ok("s3cret-token".into());
                    }
                    if !idp.is_empty() {
                        steadfast::reqwest::get(idp).await?;
                    }
                    drop(held);
                    renew(why)
                }
            });
            check("the credentials", &format!("{refreshing:?}"));
            let builder = Client::builder()
                .base_url(server.url(""))
                .keys(KeyPolicy::standard())
                .retry(fast_retries())
                .credentials(refreshing)
                .on_attempt(move |head| {
                    head.insert("x-signature", "s3cret-signature")?;
                    check("the head", &format!("{head:?}"));
                    assert!(!hook_fails || head.number() < 2, "s3cret-signature");
                    Ok(())
                })
                .on_event(move |event| told.lock().unwrap().extend(format!("{event:?} {}\n", event.url()).bytes()));
            check("the builder", &format!("{builder:?}"));
            let client = builder.build().unwrap();
            check("the client", &format!("{client:?}"));
            let error = client.post_json::<Value>("/p?q=s3cret-query", &json!(5)).await.unwrap_err();
            check(&format!("case {case}"), &printed(&error));
            check("the journal", &serde_json::to_string(error.attempts()).unwrap());
            check("the resume token", &serde_json::to_string(&error.resume_token()).unwrap());
            check("events", &String::from_utf8_lossy(&events.lock().unwrap()));
            assert_eq!(server.received()[0].header("authorization"), Some("Bearer s3cret-token"));
            assert_eq!(server.received()[0].header("x-signature"), Some("s3cret-signature"));
        }
    }
    for credentials in [Credentials::bearer("s3cret-token"), Credentials::basic("s3cret-user", "s3cret-header")] {
        check("static credentials", &format!("{credentials:?}"));
    }
}
