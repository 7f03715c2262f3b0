//! The crash matrix: a process is killed at every step of an operation, and at every write of its
//! store. Then the client repeats the request.
//!
//! For every store, the operation has run at most once. If nobody can know whether it has, the
//! response says so. If claim, rows and record are in one transaction, it has run exactly once.
mod damage;
pub(crate) mod disk;
mod events;
mod scene;
mod writes;

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::routing::post;
use http_body_util::BodyExt;
use steadfast::server::{
    Claim, ClaimOutcome, ClaimRef, End, FinishOutcome, IdempotencyLayer, RecordId, RecordState, Scope, Store,
    StoreError,
};
use tower::ServiceExt;

use self::scene::{Scene, at_every_point};

const CHILD: &str = "STEADFAST_TEST_CRASH";
const LEASE: Duration = Duration::from_millis(300);
const POINTS: [&str; 5] = ["before_claim", "after_claim", "after_effect", "before_end", "after_end"];

/// Sends SIGKILL to this process: no clean-up, no response. Does nothing more until the signal
/// arrives.
pub(crate) fn die() -> ! {
    let pid = std::process::id().to_string();
    Command::new("kill").args(["-9", &pid]).status().unwrap();
    loop {
        std::thread::park();
    }
}

/// A store that kills the process at one point.
struct Deadly<S> {
    inner: S,
    point: String,
}

impl<S> Deadly<S> {
    fn at(&self, point: &str) {
        if self.point == point {
            die();
        }
    }
}

impl<S: Store> Store for Deadly<S> {
    type Session = S::Session;
    const TRANSACTIONAL: bool = S::TRANSACTIONAL;

    async fn claim(&self, claim: &Claim<'_>) -> Result<ClaimOutcome<S::Session>, StoreError> {
        self.at("before_claim");
        let claimed = self.inner.claim(claim).await?;
        self.at("after_claim");
        Ok(claimed)
    }

    async fn renew(&self, claim: ClaimRef, lease: Duration) -> Result<bool, StoreError> {
        self.inner.renew(claim, lease).await
    }

    async fn finish(
        &self,
        claim: ClaimRef,
        session: Option<S::Session>,
        end: &End,
    ) -> Result<FinishOutcome, StoreError> {
        if !matches!(end, End::Completed(_)) {
            return self.inner.finish(claim, session, end).await;
        }
        self.at("before_end");
        let completed = self.inner.finish(claim, session, end).await?;
        self.at("after_end");
        Ok(completed)
    }

    async fn get(&self, id: &RecordId) -> Result<Option<RecordState>, StoreError> {
        self.inner.get(id).await
    }

    async fn purge_expired(&self, most: usize) -> Result<usize, StoreError> {
        self.inner.purge_expired(most).await
    }
}

/// Counts the effects in a file, which outlives the process.
fn effects(log: &Path) -> usize {
    std::fs::read_to_string(log).unwrap_or_default().lines().count()
}

fn append(log: &Path) {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
    file.write_all(b"charged\n").unwrap();
}

/// A handler whose effect is a line in a file.
fn charging(log: &Path, point: &str) -> Router {
    let (log, point) = (log.to_owned(), point.to_owned());
    let charge = move || async move {
        append(&log);
        if point == "after_effect" {
            die();
        }
        (StatusCode::CREATED, "charged")
    };
    Router::new().route("/charges", post(charge))
}

/// Sends the one request of these tests. Returns the status and the body of the response.
async fn ask(router: Router) -> (u16, String) {
    let request = Request::post("/charges").header("idempotency-key", "the one").body(Body::empty()).unwrap();
    let response = router.oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn layer<S: Store>(store: S, point: &str) -> IdempotencyLayer<Deadly<S>> {
    IdempotencyLayer::new(Deadly { inner: store, point: point.to_owned() }, Scope::single_caller()).lease(LEASE)
}

/// Runs the test of this name in a process that is expected to die. Returns the process's output if
/// it survives.
fn dies(name: &str, arguments: &str) -> Result<(), String> {
    use std::os::unix::process::ExitStatusExt;
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[child.stdout, child.stderr].concat()).into_owned();
    assert!(child.status.success() || child.status.signal() == Some(9), "{name} {arguments}: {} {said}", child.status);
    if child.status.success() { Err(said) } else { Ok(()) }
}

/// Repeats the request until the response is final.
async fn ask_again(router: &Router) -> (u16, String) {
    let told = async {
        loop {
            let (status, body) = ask(router.clone()).await;
            if !body.contains("in-progress") {
                return (status, body);
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), told).await.expect("the key is wedged")
}

/// Returns the expected response to a repeat and the expected number of effects, by the point of
/// death. For stores that write claim and end separately.
fn expected_apart(point: &str) -> (u16, &'static str, usize) {
    match point {
        // Before the claim: the operation runs now. After the end: its response is replayed.
        "before_claim" | "after_end" => (201, "charged", 1),
        "after_claim" => (409, "outcome-unknown", 0),
        _ => (409, "outcome-unknown", 1),
    }
}

async fn check_apart<S: Store>(store: S, log: &Path, point: &str) {
    let router = charging(log, "").layer(layer(store, ""));
    let (status, body) = ask_again(&router).await;
    let (wanted, text, times) = expected_apart(point);
    assert_eq!((status, effects(log)), (wanted, times), "{point}: {body}");
    assert!(body.contains(text), "{point}: {body}");
    let again = ask_again(&router).await;
    assert_eq!((again, effects(log)), ((status, body), times), "{point}: it stays with that");
}
mod embedded {
    use super::*;

    #[tokio::test]
    async fn child() {
        scene::child(async |place, log, point| {
            println!("{:?}", ask(charging(log, point).layer(layer(scene::redb(place), point))).await);
        })
        .await;
    }

    #[tokio::test]
    async fn crash_at_any_step_charges_at_most_once() {
        at_every_point(
            "server::crash::embedded::child",
            async || Scene::file(),
            async |scene, point| {
                check_apart(scene::redb(scene.place()), &scene.log(), point).await;
            },
        )
        .await;
    }
}
mod remote {
    use super::*;

    #[tokio::test]
    async fn child() {
        scene::child(async |place, log, point| {
            println!("{:?}", ask(charging(log, point).layer(layer(scene::redis(place).await, point))).await);
        })
        .await;
    }

    #[tokio::test]
    async fn crash_at_any_step_charges_at_most_once() {
        at_every_point(
            "server::crash::remote::child",
            async || Scene::prefix(),
            async |scene, point| {
                check_apart(scene::redis(scene.place()).await, &scene.log(), point).await;
            },
        )
        .await;
    }
}
mod database {
    use super::*;

    #[tokio::test]
    async fn child() {
        scene::child(async |place, log, point| {
            println!("{:?}", ask(charging(log, point).layer(layer(scene::postgres(place).await.1, point))).await);
        })
        .await;
    }

    #[tokio::test]
    async fn crash_at_any_step_charges_at_most_once() {
        at_every_point("server::crash::database::child", scene::schema, async |scene, point| {
            check_apart(scene::postgres(scene.place()).await.1, &scene.log(), point).await;
        })
        .await;
    }
}
mod transaction {
    use axum::Extension;
    use steadfast::server::TransactionHandle;
    use steadfast_postgres::PostgresSession;

    use super::super::postgres::{count, run};
    use super::*;

    /// A handler whose effect is a row in the lent transaction.
    fn ordering(point: &str) -> Router {
        let point = point.to_owned();
        let order = move |Extension(lent): Extension<TransactionHandle<PostgresSession>>| async move {
            let mut session = lent.lock().unwrap();
            sqlx::query("INSERT INTO orders DEFAULT VALUES").execute(&mut **session).await.unwrap();
            if point == "after_effect" {
                die();
            }
            (StatusCode::CREATED, "charged")
        };
        Router::new().route("/charges", post(order))
    }

    async fn scene_with_orders() -> Scene {
        let scene = scene::schema().await;
        run("CREATE TABLE orders (id bigserial)", &scene::postgres(scene.place()).await.0).await;
        scene
    }

    #[tokio::test]
    async fn child() {
        scene::child(async |place, _, point| {
            let store = scene::postgres(place).await.1.transactional();
            println!("{:?}", ask(ordering(point).layer(layer(store, point))).await);
        })
        .await;
    }

    #[tokio::test]
    async fn crash_at_any_step_writes_row_exactly_once() {
        at_every_point("server::crash::transaction::child", scene_with_orders, async |scene, point| {
            let (pool, store) = scene::postgres(scene.place()).await;
            let rows = async || count("SELECT count(*) FROM orders", &pool).await;
            // Either nothing was committed, or everything.
            assert_eq!(rows().await, i64::from(point == "after_end"), "{point}");
            let router = ordering("").layer(layer(store.transactional(), ""));
            for _ in 0..2 {
                assert_eq!(ask_again(&router).await, (201, "charged".to_owned()), "{point}");
                assert_eq!(rows().await, 1, "{point}");
            }
        })
        .await;
    }
}
