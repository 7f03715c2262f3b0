//! What an outbox takes, and what it writes down of it.

use http::header::{AUTHORIZATION, HeaderName, SET_COOKIE};
use steadfast::ErrorKind;
use steadfast::policy::RetryPolicy;
use steadfast_outbox::{DurableExt, End, OutboxError, OutboxStoreError, codec};
use steadfast_testing::{FaultServer, FaultStep};

use super::{charge, once, one_attempt, outbox, store};

#[tokio::test]
async fn submitted_operation_is_sent_once() {
    let server = FaultServer::play([FaultStep::execute(201)]).await;
    let client = once(&server);
    let (store, prepared) = (store(), charge(&client));
    let key = prepared.resume_token().unwrap().key().unwrap();
    let outbox = outbox(&store, &client).start().await.unwrap();

    let id = outbox.submit(prepared).await.unwrap();
    let End::Answer(answer) = outbox.wait(id).await.unwrap() else { panic!("no answer") };
    assert_eq!((answer.status().as_u16(), server.executions()), (201, 1));
    assert_eq!(server.keys(), [Some(key.as_str().to_owned())]);
    assert_eq!(server.received()[0].body, b"12 EUR");

    // The end stays until it is acknowledged.
    assert!(outbox.wait(id).await.is_ok());
    outbox.acknowledge(id).await.unwrap();
    let counts = outbox.metrics();
    assert_eq!((counts.submitted, counts.answered, counts.taken_up), (1, 1, 0));
}

#[tokio::test]
async fn same_name_is_same_operation() {
    let server = FaultServer::play([FaultStep::execute(201)]).await;
    let client = once(&server);
    let outbox = outbox(&store(), &client).start().await.unwrap();
    let first = outbox.submit(charge(&client).named("order-1")).await.unwrap();
    let again = outbox.submit(charge(&client).named("order-1")).await.unwrap();
    assert_eq!(first, again);
    outbox.wait(first).await.unwrap();
    assert_eq!(outbox.submit(charge(&client).named("order-1")).await.unwrap(), first);
    assert_eq!(server.received().len(), 1);

    let other = client.post("/charges").body("13 EUR").prepare().unwrap();
    let error = outbox.submit(other.named("order-1")).await.unwrap_err();
    assert!(matches!(error, OutboxError::Store(OutboxStoreError::NameTaken { id, .. }) if id == first), "{error}");
    assert!(error.to_string().contains("`order-1`"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused_by_name() {
    let server = FaultServer::play([FaultStep::execute(201)]).await;
    let (client, store) = (once(&server), store());
    let outbox = outbox(&store, &client).persist_headers([HeaderName::from_static("x-tenant")]).start().await.unwrap();
    let post = || client.post("/charges").body("12 EUR");

    let with_header = post().header("x-plain", "1").prepare().unwrap();
    let error = outbox.submit(with_header).await.unwrap_err().to_string();
    assert!(error.contains("header x-plain") && error.contains("persist_headers"), "{error}");

    let with_token = post().bearer_auth("s3cret").prepare().unwrap();
    let error = outbox.submit(with_token).await.unwrap_err().to_string();
    assert!(error.contains("header authorization") && error.contains("`credentials`"), "{error}");
    assert!(!error.contains("s3cret"));

    let user = server.url("/charges").replace("http://", "http://me:s3cret@");
    let error = outbox.submit(client.post(user).prepare().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("user information") && !error.contains("s3cret"), "{error}");

    let form = client.post("/charges").body_factory(|| "12 EUR").prepare().unwrap();
    let error = outbox.submit(form).await.unwrap_err();
    assert!(matches!(&error, OutboxError::Request(error) if error.kind() == ErrorKind::Build), "{error}");

    let second = std::time::Duration::from_secs(1);
    let resumed = post().prepare().unwrap().resume_token().unwrap().clone();
    for (setting, request) in [
        ("timeout", post().timeout(second)),
        ("attempt_timeout", post().attempt_timeout(second)),
        ("read_timeout", post().read_timeout(second)),
        ("body_limit", post().body_limit(7)),
        ("retry", post().retry(RetryPolicy::never())),
        ("hedge", post().hedge(None)),
        ("confirm", post().settling_time(second)),
        ("template", post().template("/charges")),
        ("resume", post().resume(resumed)),
    ] {
        let error = outbox.submit(request.prepare().unwrap()).await.unwrap_err().to_string();
        assert!(error.contains(&format!("cannot be stored: {setting}: ")), "{error}");
    }

    assert_eq!((server.received().len(), outbox.usage().await.unwrap().entries), (0, 0));
    let named = post().header("x-tenant", "7").prepare().unwrap();
    outbox.wait(outbox.submit(named).await.unwrap()).await.unwrap();
    assert_eq!(server.received()[0].header("x-tenant"), Some("7"));
}

#[tokio::test]
async fn credentials_of_client_are_sent_and_not_stored() {
    let server = FaultServer::play([FaultStep::execute(201)]).await;
    let client = one_attempt(&server).bearer_auth("s3cret-token").default_header("x-api-key", "s3cret-key");
    let client = client.build().unwrap();
    let outbox = outbox(&store(), &client).start().await.unwrap();
    let id = outbox.submit(charge(&client)).await.unwrap();
    outbox.wait(id).await.unwrap();
    assert_eq!(server.received()[0].header("authorization"), Some("Bearer s3cret-token"));
    assert_eq!(server.received()[0].header("x-api-key"), Some("s3cret-key"));

    let stored = codec::encode(&outbox.get(id).await.unwrap().unwrap()).unwrap();
    assert!(!String::from_utf8_lossy(&stored).contains("s3cret"));
}

#[tokio::test]
async fn credentials_cannot_be_named_as_stored() {
    let server = FaultServer::play([FaultStep::execute(201)]).await;
    let builder = || outbox(&store(), &once(&server));
    let error = builder().persist_headers([AUTHORIZATION]).start().await.unwrap_err().to_string();
    assert!(error.contains("persist_headers") && error.contains("authorization is a credential"), "{error}");
    let error = builder().keep_headers([SET_COOKIE]).start().await.unwrap_err().to_string();
    assert!(error.contains("keep_headers") && error.contains("set-cookie is a credential"), "{error}");
}
