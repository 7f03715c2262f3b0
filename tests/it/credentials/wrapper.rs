//! What everybody writes instead (refresh, post again), why that executes twice, and the form that
//! does not.

use serde_json::{Value, json};
use steadfast::{Client, KeyPolicy};
use steadfast_testing::{FaultPoint, FaultServer, FaultStep, fast_retries};

use super::{tokens, unauthorized};
use crate::support::trusting;

/// The first answer is lost, and the token has expired by the time of the retry.
async fn server() -> FaultServer {
    FaultServer::play([
        FaultStep::close(FaultPoint::AfterExecuting),
        FaultStep::answer(unauthorized()),
        FaultStep::ok(),
    ])
    .await
}

#[tokio::test]
async fn wrapper_that_posts_again_executes_twice() {
    let server = server().await;
    let client = Client::builder().base_url(server.url("")).keys(KeyPolicy::standard()).retry(fast_retries());
    let client = client.build().unwrap();
    let charge = json!({ "amount": 1200 });
    let post = async |token: &str| client.post("/charges").bearer_auth(token).json(&charge).fetch::<Value>().await;
    let mut charged = post("expired").await;
    if charged.as_ref().is_err_and(|error| error.status() == Some(http::StatusCode::UNAUTHORIZED)) {
        charged = post("fresh").await;
    }
    charged.unwrap();
    let keys = server.keys();
    assert_eq!((keys.len(), keys[0] == keys[1], keys[1] == keys[2]), (3, true, false), "a second key");
    assert_eq!(server.executions(), 2);
}

/// For those who refresh themselves: the same operation goes on, under its key.
#[tokio::test]
async fn wrapper_that_resumes_executes_once() {
    let server = server().await;
    let client = trusting(&server).build().unwrap();
    let charge = json!({ "amount": 1200 });
    let request = |token: &str| client.post("/charges").bearer_auth(token).json(&charge);
    let mut charged = request("expired").fetch::<Value>().await;
    if let Err(error) = &charged
        && error.status() == Some(http::StatusCode::UNAUTHORIZED)
        && let Some(token) = error.resume_token()
    {
        charged = request("fresh").resume(token.clone()).fetch().await;
    }
    charged.unwrap();
    assert_eq!((server.received().len(), server.executions()), (3, 1));
    steadfast_testing::assert_one_key(&server).await;
}

#[tokio::test]
async fn client_that_renews_executes_once() {
    let server = server().await;
    let client = trusting(&server).credentials(tokens().0).build().unwrap();
    client.post_json::<Value>("/charges", &json!({ "amount": 1200 })).await.unwrap();
    assert_eq!((server.received().len(), server.executions()), (3, 1));
    steadfast_testing::assert_one_key(&server).await;
}
