//! The server's side: the cost of the idempotency layer for a request, in a process that does
//! nothing else and without a socket.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use steadfast::server::{IdempotencyLayer, MemoryStore, Scope};
use tower::{Service, ServiceBuilder, ServiceExt};

const KEPT: Duration = Duration::from_millis(200);

type Body = Full<Bytes>;

/// The service under measurement, and its requests.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Serving {
    /// The handler alone.
    Alone,
    /// The handler on a task of its own, as the layer runs it.
    Task,
    /// The layer, under a new key each time.
    First,
    /// The layer, under one key.
    Replay,
}

impl Serving {
    pub fn all() -> impl Iterator<Item = Self> {
        <Self as clap::ValueEnum>::value_variants().iter().copied()
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Alone => "the handler alone",
            Self::Task => "the handler on a task of its own",
            Self::First => "a first execution",
            Self::Replay => "a replay",
        }
    }

    /// Runs `requests` requests, one after the other.
    pub fn run(self, requests: usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // A retention that is short beside the run. Records expire as fast as they are added, as in
        // a process that has been up for a day.
        let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).retention(KEPT);
        let layered = ServiceBuilder::new().layer(layer).service_fn(handler);
        runtime.block_on(async {
            match self {
                Self::Alone => serve(tower::service_fn(handler), 0..requests).await,
                Self::Task => serve(tower::service_fn(spawned), 0..requests).await,
                Self::First => serve(layered, 0..requests).await,
                Self::Replay => serve(layered, std::iter::repeat_n(0, requests)).await,
            }
        });
    }
}

async fn serve<S, R>(mut service: S, keys: impl IntoIterator<Item = usize>)
where
    S: Service<Request<Body>, Response = Response<R>, Error = Infallible>,
{
    for key in keys {
        let body = Full::new(Bytes::from_static(br#"{"amount":1200,"currency":"eur"}"#));
        let request = Request::post("/charges").header("idempotency-key", format!("{key:036}")).body(body).unwrap();
        let answer = service.ready().await.unwrap().call(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED);
    }
}

async fn handler(_: Request<Body>) -> Result<Response<Body>, Infallible> {
    let mut response = Response::new(Full::new(Bytes::from_static(br#"{"id":"ch_1","amount":1200}"#)));
    *response.status_mut() = StatusCode::CREATED;
    Ok(response)
}

async fn spawned(request: Request<Body>) -> Result<Response<Body>, Infallible> {
    tokio::spawn(handler(request)).await.unwrap()
}
