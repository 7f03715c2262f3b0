//! Credentials: one refresh for all operations, and the repeat with a fresh token under the
//! conditions that make it safe.

mod conditions;
mod wrapper;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};
use steadfast::policy::{HedgePolicy, RetryBudget, RetryPolicy, StopReason};
use steadfast::{Client, ClientBuilder, Credentials, ErrorKind, KeyPolicy, Refreshing, ResponseExt, Token, Why};
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, Received, fast_retries};

use crate::support::{clock, trusting};

/// A 401 with a challenge, as RFC 9110 §15.5.2 requires it.
fn unauthorized() -> Answer {
    Answer::new(401).header("www-authenticate", "Bearer error=\"invalid_token\"")
}

/// A closure whose tokens are `token-1`, `token-2` and so on, and why it was asked for each.
fn tokens() -> (Refreshing, Arc<Mutex<Vec<Why>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let told = asked.clone();
    let refreshing = Refreshing::bearer(move |why: Why| {
        let number = {
            let mut told = told.lock().unwrap();
            told.push(why);
            told.len()
        };
        // Others can come in between.
        async move {
            tokio::task::yield_now().await;
            Ok::<_, std::io::Error>(Token::new(format!("token-{number}")).expires_in(Duration::from_secs(3600)))
        }
    });
    (refreshing, asked)
}

fn asked(asked: &Mutex<Vec<Why>>) -> Vec<Why> {
    asked.lock().unwrap().clone()
}

/// A client without keys, which does not wait between attempts.
fn keyless(server: &FaultServer) -> ClientBuilder {
    Client::builder().base_url(server.url("")).retry(fast_retries()).keys(KeyPolicy::off())
}

fn authorization(server: &FaultServer) -> Vec<Option<String>> {
    server.received().iter().map(|request| request.header("authorization").map(str::to_owned)).collect()
}

/// A server that accepts this token alone.
async fn accepting(token: &'static str, then: impl Fn(&Received) -> FaultStep + Send + Sync + 'static) -> FaultServer {
    FaultServer::start(move |_, request| match request {
        Some(request) if request.header("authorization") == Some(token) => then(request),
        _ => FaultStep::answer(unauthorized()),
    })
    .await
}

/// Over HTTP/2, since a thousand connections are more than a process may have.
#[tokio::test]
async fn thousand_operations_share_one_refresh() {
    let server = accepting("Bearer token-2", |_| FaultStep::ok()).await;
    let (refreshing, why) = tokens();
    let client = keyless(&server)
        .http(|http| http.http2_prior_knowledge())
        .retry(RetryPolicy::new().max_attempts(1).deadline(Duration::from_secs(60)))
        .attempt_timeout(Duration::from_secs(60))
        .budget(RetryBudget::standard().initial(0))
        .credentials(refreshing)
        .build()
        .unwrap();
    let responses = join_all((0..1000).map(|number| client.post("/charges").body(format!("{number}")).send())).await;
    for response in responses {
        let response = response.unwrap();
        let attempts = response.attempts();
        assert_eq!((response.status(), attempts.len()), (StatusCode::OK, 2));
        assert!(attempts[0].free_repeat() && attempts[0].wait() == Some(Duration::ZERO), "{attempts:?}");
    }
    assert_eq!(asked(&why), [Why::First, Why::Refused], "one token for all, and one refresh");
    let executions = server.executions_by_body();
    assert!(executions.len() == 1000 && executions.values().all(|times| *times == 1), "every POST once");
    assert!(server.keys().iter().all(Option::is_none), "and no key was needed");
    let stale = authorization(&server).iter().filter(|sent| sent.as_deref() == Some("Bearer token-1")).count();
    assert_eq!((server.received().len(), stale), (2000, 1000), "no stale token is sent again");
}

#[tokio::test]
async fn failed_refresh_is_one_error_for_all() {
    let server = FaultServer::play([FaultStep::ok()]).await;
    let calls = Arc::new(Mutex::new(0));
    let counted = calls.clone();
    let refreshing = Refreshing::bearer(move |_| {
        *counted.lock().unwrap() += 1;
        async {
            tokio::task::yield_now().await;
            Err::<Token, _>("the identity provider is down")
        }
    });
    let client = keyless(&server).credentials(refreshing).build().unwrap();
    let errors = join_all((0..100).map(|_| client.post("/charges").body("5").send())).await;
    // One more, in the pause.
    let later = client.post("/charges").body("5").send().await;
    for error in errors.into_iter().chain([later]) {
        let error = error.unwrap_err();
        let line = error.to_string();
        assert!(line.contains(": no credentials: the identity provider is down after 1 attempt in"), "{line}");
        assert!(line.ends_with("(permanent; not processed)"), "{line}");
        assert_eq!((error.kind(), error.may_have_been_processed()), (ErrorKind::Credentials, false));
    }
    assert_eq!((*calls.lock().unwrap(), server.received().len()), (1, 0));
}

/// An attempt may be lost, and then the refresh fails.
#[tokio::test]
async fn failed_refresh_keeps_what_earlier_attempts_did() {
    let server =
        FaultServer::play([FaultStep::close(FaultPoint::AfterExecuting), FaultStep::answer(unauthorized())]).await;
    let refreshing = Refreshing::bearer(|why| async move {
        if why == Why::First { Ok("token-1") } else { Err("the identity provider is down") }
    });
    let client = trusting(&server).credentials(refreshing).build().unwrap();
    let error = client.post_json::<Value>("/charges", &5).await.unwrap_err();
    assert_eq!((error.kind(), error.may_have_been_processed()), (ErrorKind::Credentials, true), "{error}");
    assert_eq!((server.received().len(), error.attempts().len()), (2, 3));
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "a slow identity provider is what is staged")]
async fn refresh_counts_for_operation_and_not_for_attempt() {
    let server = FaultServer::play([FaultStep::ok()]).await;
    let slow = |time| {
        Refreshing::bearer(move |_| async move {
            tokio::time::sleep(Duration::from_millis(time)).await;
            Ok::<_, std::io::Error>("token")
        })
    };
    let hurried = || keyless(&server).attempt_timeout(Duration::from_millis(200));
    let client = hurried().credentials(slow(400)).build().unwrap();
    let response = client.post("/charges").body("5").send().await.unwrap();
    assert!(response.attempts()[0].elapsed() < Duration::from_millis(300), "{:?}", response.attempts());

    let client = hurried().credentials(slow(60_000)).timeout(Duration::from_millis(300)).build().unwrap();
    let began = clock::now();
    let error = client.post("/charges").body("5").send().await.unwrap_err();
    let line = error.to_string();
    assert!(line.contains("the credentials were not renewed in time before the first attempt"), "{line}");
    assert!(line.ends_with("(deadline exceeded: the operation's timeout; not processed)"), "{line}");
    assert!(error.is_timeout() && began.elapsed() < Duration::from_secs(5));
    assert_eq!((error.stop_reason(), server.received().len()), (Some(StopReason::DeadlineExceeded), 1));
}

#[tokio::test]
async fn changed_principal_ends_operation() {
    let server = accepting("Bearer token-2", |_| FaultStep::ok()).await;
    let refreshing = Refreshing::bearer(|why| async move {
        let (token, name) = if why == Why::First { ("token-1", "ann") } else { ("token-2", "bob") };
        Ok::<_, std::io::Error>(Token::new(token).principal(name))
    });
    let client = trusting(&server).credentials(refreshing).build().unwrap();
    let error = client.post_json::<Value>("/charges", &5).await.unwrap_err();
    assert!(error.to_string().contains("belongs to another principal"), "{error}");
    assert_eq!((error.kind(), server.received().len()), (ErrorKind::Credentials, 1));
    assert!(!error.to_string().contains("bob") && !error.to_string().contains("ann"));
    client.post_json::<Value>("/charges", &5).await.unwrap();
    assert_eq!(server.executions(), 1, "the next operation is bob's");
}

#[tokio::test]
async fn token_stays_on_its_origin() {
    let abroad = FaultServer::play([FaultStep::answer(unauthorized())]).await;
    let to = abroad.url("/file");
    let home = FaultServer::play([FaultStep::answer(Answer::new(302).header("location", to))]).await;
    let (refreshing, why) = tokens();
    let client = keyless(&home).credentials(refreshing).build().unwrap();
    let direct = client.get(abroad.url("/")).send().await.unwrap().into_result().await.unwrap_err();
    assert!(direct.to_string().contains("sent to the origin of base_url alone"), "{direct}");
    assert_eq!((asked(&why), direct.attempts().len()), (vec![], 1), "nobody needs a token");
    let behind = client.get("/").send().await.unwrap().into_result().await.unwrap_err();
    assert!(behind.to_string().contains("a redirect led to another origin"), "{behind}");
    assert_eq!((asked(&why), behind.attempts().len()), (vec![Why::First], 1), "its 401 is not about our token");
    assert_eq!(authorization(&abroad), [None, None]);
    assert_eq!(authorization(&home), [Some("Bearer token-1".to_owned())]);
}

#[tokio::test]
async fn static_credentials_are_sent_home_alone() {
    let (home, abroad) = (FaultServer::play([FaultStep::ok()]).await, FaultServer::play([FaultStep::ok()]).await);
    let basic = "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==";
    for (credentials, name, value) in [
        (Credentials::bearer("token"), "authorization", "Bearer token"),
        (Credentials::basic("Aladdin", "open sesame"), "authorization", basic),
        (Credentials::header("x-api-key", "key"), "x-api-key", "key"),
    ] {
        let client = trusting(&home).credentials(credentials).build().unwrap();
        client.get_json::<Value>("/").await.unwrap();
        client.get(abroad.url("/")).send().await.unwrap();
        assert_eq!(home.received().last().unwrap().header(name), Some(value));
        assert_eq!(abroad.received().last().unwrap().header(name), None);
    }
    // A 401 is final: there is no fresh password.
    let server = FaultServer::play([FaultStep::answer(unauthorized())]).await;
    let client = trusting(&server).credentials(Credentials::bearer("token")).build().unwrap();
    assert_eq!(client.get("/").send().await.unwrap().attempts().len(), 1);
}

#[tokio::test]
async fn unusable_credentials_are_build_errors() {
    let home = || Client::builder().base_url("https://api.example.com");
    let refreshing = || tokens().0;
    for (client, line) in [
        (Client::builder().credentials(refreshing()), "authorization would go to every origin; set base_url"),
        (Client::builder().credentials(Credentials::bearer("s3cret")), "authorization would go to every origin"),
        (home().bearer_auth("s3cret").credentials(refreshing()), "authorization is a default header too"),
        (home().credentials(Credentials::header("idempotency-key", "s3cret")), "idempotency-key is taken"),
        (home().credentials(Credentials::header("content-type", "s3cret")), "content-type is taken"),
        (home().credentials(Credentials::bearer("s3cret\n")), "authorization: failed to parse header value"),
        (home().credentials(Credentials::basic("s3cret:", "")), "a user name with a colon cannot be sent"),
        (home().credentials(refreshing().timeout(Duration::ZERO)), "a timeout of zero"),
    ] {
        let error = client.build().unwrap_err();
        assert!(error.is_build() && error.to_string().starts_with(&format!("credentials: {line}")), "{error}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
}

/// RFC 9449 §9: the server wants a nonce in the proof. The token is good, so it is not renewed.
#[tokio::test]
async fn dpop_nonce_of_401_reaches_the_next_proof() {
    let challenge = Answer::new(401).header("www-authenticate", "DPoP error=\"use_dpop_nonce\"");
    let server = FaultServer::play([FaultStep::answer(challenge.header("dpop-nonce", "n1")), FaultStep::ok()]).await;
    let asked_why = Arc::new(Mutex::new(Vec::new()));
    let told = asked_why.clone();
    let refreshing = Refreshing::with_scheme("DPoP", move |why| {
        told.lock().unwrap().push(why);
        async { Ok::<_, std::io::Error>("token") }
    });
    let client = keyless(&server).credentials(refreshing).on_attempt(|head| {
        let nonce = head.last_response().and_then(|(_, headers)| headers.get("dpop-nonce"));
        head.insert("dpop", format!("proof {}", nonce.map_or("without", |nonce| nonce.to_str().unwrap())))
    });
    client.build().unwrap().post("/charges").body("5").send().await.unwrap();
    let proofs: Vec<_> = server.received().iter().map(|request| request.header("dpop").unwrap().to_owned()).collect();
    assert_eq!((proofs, server.executions()), (vec!["proof without".to_owned(), "proof n1".to_owned()], 1));
    assert_eq!((asked(&asked_why), authorization(&server)), (vec![Why::First], vec![Some("DPoP token".to_owned()); 2]));

    // Without a hook nobody writes proofs, so there is nothing to try but another token.
    let challenge = Answer::new(401).header("www-authenticate", "DPoP error=\"use_dpop_nonce\"");
    let server = FaultServer::play([FaultStep::answer(challenge.header("dpop-nonce", "n1")), FaultStep::ok()]).await;
    let (refreshing, why) = tokens();
    keyless(&server).credentials(refreshing).build().unwrap().post("/charges").body("5").send().await.unwrap();
    assert_eq!((asked(&why), server.executions()), (vec![Why::First, Why::Refused], 1));
}

/// A caller that goes away in the middle does not end the refresh for the others.
#[tokio::test]
async fn dropped_caller_leaves_refresh_to_others() {
    let server = accepting("Bearer token-1", |_| FaultStep::ok()).await;
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let calls = Arc::new(Mutex::new(0));
    let (permit, counted) = (gate.clone(), calls.clone());
    let refreshing = Refreshing::bearer(move |_| {
        *counted.lock().unwrap() += 1;
        let permit = permit.clone();
        async move {
            permit.acquire().await.unwrap().forget();
            Ok::<_, std::io::Error>("token-1")
        }
    });
    let client = keyless(&server).credentials(refreshing).build().unwrap();
    let send = || tokio::spawn(client.post("/charges").body("5").send());
    let (leaves, stays) = (send(), send());
    while *calls.lock().unwrap() == 0 {
        tokio::task::yield_now().await;
    }
    leaves.abort();
    assert!(leaves.await.unwrap_err().is_cancelled());
    gate.add_permits(1);
    assert_eq!(stays.await.unwrap().unwrap().status(), 200);
    assert_eq!((*calls.lock().unwrap(), server.executions()), (1, 1));
}

#[tokio::test]
async fn json_of_401_error_names_its_repeat() {
    let server = FaultServer::play([FaultStep::answer(unauthorized())]).await;
    let client = keyless(&server).credentials(tokens().0).build().unwrap();
    let error = client.post_json::<Value>("/charges", &json!(5)).await.unwrap_err();
    let lines = format!("{error:#}");
    assert!(
        lines.contains("attempt 1: permanent, status 401") && lines.contains("; repeated with a fresh token, free")
    );
    assert!(lines.contains("attempt 2: permanent, status 401"), "{lines}");
    assert_eq!((error.kind(), error.attempts().len()), (ErrorKind::Status, 2));
}

/// The key is forgotten while the resumed operation waits for its token.
#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "the age of a key is told by the wall clock, which no test can set")]
async fn resumed_operation_that_waits_too_long_is_not_sent() {
    let retention = Duration::from_secs(2);
    let server = FaultServer::start(|_, _| FaultStep::close(FaultPoint::AfterExecuting)).await;
    let lost = trusting(&server).retry(RetryPolicy::never()).build().unwrap();
    let error = lost.post("/charges").body("12 EUR").send().await.unwrap_err();
    let token = error.resume_token().unwrap().clone();

    let slow = Refreshing::bearer(move |_| async move {
        tokio::time::sleep(retention).await;
        Ok::<_, std::io::Error>("token")
    });
    let client = trusting(&server).keys(KeyPolicy::standard().retention(retention)).credentials(slow).build().unwrap();
    let error = client.post("/charges").body("12 EUR").resume(token).send().await.unwrap_err();
    assert_eq!((server.executions(), error.stop_reason()), (1, Some(StopReason::DeadlineExceeded)), "{error}");
    assert!(error.may_have_been_processed() && error.attempts().is_empty(), "{error}");
}

/// One endpoint refuses every token, for want of a scope. Each of its calls costs a refresh, and the
/// others go on.
#[tokio::test]
async fn endpoint_that_refuses_all_tokens_stops_no_other() {
    let server = FaultServer::start(|_, request| match request {
        Some(request) if request.target == "/secret" => FaultStep::answer(unauthorized()),
        _ => FaultStep::execute(201),
    })
    .await;
    let (refreshing, _) = tokens();
    let client = keyless(&server).credentials(refreshing).build().unwrap();
    for _ in 0..4 {
        assert_eq!(client.get("/secret").send().await.unwrap().status(), 401);
        assert_eq!(client.post("/charges").body("x").send().await.unwrap().status(), 201);
    }
}

/// A hedge is the same operation, so it speaks for the same principal.
#[tokio::test]
async fn hedge_under_another_principal_is_not_sent() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let server = FaultServer::start(move |_, request| match request {
        Some(request) if request.target == "/slow" => {
            tell.send(()).unwrap();
            FaultStep::answer(Answer::new(200).delay(Duration::from_secs(2)))
        }
        Some(request) if request.header("authorization") == Some("Bearer ann") => FaultStep::answer(unauthorized()),
        _ => FaultStep::answer(200),
    })
    .await;
    let next = Mutex::new(["bob", "ann"].to_vec());
    let refreshing = Refreshing::bearer(move |_| {
        let name = next.lock().unwrap().pop().unwrap();
        async move { Ok::<_, std::io::Error>(Token::new(name).principal(name)) }
    });
    let client = keyless(&server).credentials(refreshing).build().unwrap();
    let slow = client.get("/slow").hedge(HedgePolicy::after(Duration::from_millis(700)).max_extra_load(1.0)).send();
    let (slow, other) = tokio::join!(slow, async {
        told.recv().await.unwrap();
        client.get("/other").send().await
    });
    // The other operation has got bob's token, so it ends. The first request has its own response.
    assert!(other.is_err() && slow.unwrap().status() == 200);
    let sent: Vec<_> = server.received().iter().filter(|request| request.target == "/slow").cloned().collect();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].header("authorization"), Some("Bearer ann"));
}
