//! A token that expires and is revoked under way, renewed by the crate `oauth2`.
//!
//! ```text
//! cargo run --example token_refresh
//! ```
//!
//! Two services run on loopback: an identity provider, whose tokens last a second, and a shop.
//! 500 orders are sent, in ten waves. In the middle of some waves the
//! token is revoked. The shop honours no idempotency keys, so the client sends none: a 401 with a
//! challenge is evidence enough that the order was not made.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Json, Router};
use oauth2::basic::BasicClient;
use oauth2::{ClientId, ClientSecret, HttpRequest, HttpResponse, TokenResponse as _, TokenUrl};
use serde_json::json;
use steadfast::{Client, KeyPolicy, Refreshing, RequestBuilder, Token, Why, reqwest};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const WAVES: usize = 10;
const ORDERS: usize = 50;
/// The waves in which the token is revoked. In between it expires.
const REVOKED: [usize; 2] = [1, 9];

/// Both services.
#[derive(Default)]
struct Services {
    /// The number of the newest token.
    issued: AtomicUsize,
    /// The number of the last token that was revoked.
    revoked: AtomicUsize,
    orders: AtomicUsize,
    refused: AtomicUsize,
}

impl Services {
    fn is_valid(&self, headers: &HeaderMap) -> bool {
        let sent = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let number = sent.and_then(|sent| sent.strip_prefix("Bearer token-")?.parse::<usize>().ok());
        number.is_some_and(|number| number > self.revoked.load(Ordering::SeqCst))
    }
}

/// The identity provider (RFC 6749 §4.4).
async fn token(State(services): State<Arc<Services>>) -> Json<serde_json::Value> {
    let number = services.issued.fetch_add(1, Ordering::SeqCst) + 1;
    Json(json!({ "access_token": format!("token-{number}"), "token_type": "bearer", "expires_in": 1 }))
}

/// The shop: each execution is an order.
async fn order(State(services): State<Arc<Services>>, headers: HeaderMap) -> Response {
    if !services.is_valid(&headers) {
        services.refused.fetch_add(1, Ordering::SeqCst);
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer error=\"invalid_token\"")])
            .into_response();
    }
    services.orders.fetch_add(1, Ordering::SeqCst);
    StatusCode::CREATED.into_response()
}

async fn serve(services: Arc<Services>) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let routes = Router::new().route("/token", post(token)).route("/orders", post(order)).with_state(services);
    tokio::spawn(async move { axum::serve(listener, routes).await });
    Ok(url)
}

/// Sends a request of `oauth2`. To ask twice for a token is harmless.
async fn send(idp: Client, request: HttpRequest) -> steadfast::Result<HttpResponse> {
    let response =
        RequestBuilder::from_parts(idp, reqwest::Request::try_from(request)?).idempotent(true).send().await?;
    let mut answer = HttpResponse::new(Vec::new());
    (*answer.status_mut(), *answer.headers_mut()) = (response.status(), response.headers().clone());
    *answer.body_mut() = response.bytes().await?.into();
    Ok(answer)
}

/// The closure that the shop's client asks for a token.
fn tokens(url: &str) -> Result<Refreshing> {
    let oauth = BasicClient::new(ClientId::new("shop".to_owned()))
        .set_client_secret(ClientSecret::new("secret".to_owned()))
        .set_token_uri(TokenUrl::new(format!("{url}/token"))?);
    // A client of its own: one that needs a token cannot fetch it.
    let idp = Client::builder().keys(KeyPolicy::off()).build()?;
    Ok(Refreshing::bearer(move |why: Why| {
        let (oauth, idp) = (oauth.clone(), idp.clone());
        async move {
            let send = |request| send(idp.clone(), request);
            let token = oauth.exchange_client_credentials().request_async(&send).await?;
            println!("a fresh token, because: {why:?}");
            Ok::<_, Box<dyn Error + Send + Sync>>(
                Token::new(token.access_token().secret()).expires_in(token.expires_in()),
            )
        }
    }))
}

#[tokio::main]
#[allow(clippy::disallowed_methods, reason = "a program with a wait of its own")]
async fn main() -> Result<()> {
    let services = Arc::new(Services::default());
    let url = serve(services.clone()).await?;
    let shop = Client::builder().base_url(&url).keys(KeyPolicy::off()).credentials(tokens(&url)?).build()?;
    let mut made = 0;
    for wave in 0..WAVES {
        let mut orders = JoinSet::new();
        for number in 0..ORDERS {
            orders.spawn(shop.post("/orders").body(format!("order {number}")).send());
            if REVOKED.contains(&wave) && number == ORDERS / 2 {
                services.revoked.store(services.issued.load(Ordering::SeqCst), Ordering::SeqCst);
            }
        }
        while let Some(order) = orders.join_next().await {
            made += usize::from(order??.status() == StatusCode::CREATED);
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
    let (executed, refused, refreshes) = (count(&services.orders), count(&services.refused), count(&services.issued));
    println!("{refused} requests met a revoked token, and went again");
    println!("orders={made} executed={executed} twice={} refreshes={refreshes}", executed - made);
    if (made, executed) == (WAVES * ORDERS, WAVES * ORDERS) {
        Ok(())
    } else {
        Err("an order is lost or doubled".into())
    }
}
