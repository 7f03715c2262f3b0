//! Responses that axum gives before a handler runs: they release the key if they are marked, and
//! use it up otherwise.

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path};
use axum::http::StatusCode;
use axum::routing::{post, put};
use axum::{Json, Router};
use serde_json::json;
use steadfast::reqwest::RequestBuilder;
use steadfast::server::{IdempotencyLayer, MemoryStore, Scope};
use steadfast_axum::{Checked, NotExecuted, method_not_allowed, not_found};

use super::support::{Executions, Served, header, problem};

#[derive(serde::Deserialize)]
struct Order {
    item: String,
}

fn layer() -> IdempotencyLayer<MemoryStore> {
    IdempotencyLayer::new(MemoryStore::new(), Scope::single_caller()).required()
}

/// Routes that can reject a request in every way, all marked.
fn checked(executions: &Executions) -> Router {
    let (counted, replaced) = (executions.clone(), executions.clone());
    let order = move |Checked(Json(order)): Checked<Json<Order>>| async move {
        (StatusCode::CREATED, format!("{} {}", order.item, counted.add()))
    };
    let replace = move |Checked(Path(id)): Checked<Path<u32>>, Checked(Json(order)): Checked<Json<Order>>| async move {
        (StatusCode::CREATED, format!("{} {} at {id}", order.item, replaced.add()))
    };
    Router::new()
        .route("/orders", post(order))
        .route("/orders/{id}", put(replace))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(100))
}

/// The faulty requests, each with axum's status.
fn mistakes(served: &Served) -> Vec<(u16, RequestBuilder)> {
    let json =
        |request: RequestBuilder, body: &str| request.header("content-type", "application/json").body(body.to_owned());
    let good = r#"{"item":"tea"}"#;
    let put = |path: &str| served.http.put(served.url(path)).header("idempotency-key", "k");
    vec![
        (400, json(served.post("/orders", "k"), "{\"item\":")),
        (422, json(served.post("/orders", "k"), "{\"item\":7}")),
        (415, served.post("/orders", "k").body(good)),
        (413, json(served.post("/orders", "k"), &format!("{{\"item\":\"{}\"}}", "x".repeat(100)))),
        (404, json(served.post("/order", "k"), good)),
        (405, json(put("/orders"), good)),
        (400, json(put("/orders/one"), good)),
    ]
}

fn corrected(served: &Served) -> RequestBuilder {
    served.post("/orders", "k").json(&json!({ "item": "tea" }))
}

#[tokio::test]
async fn corrected_request_executes_once_under_its_key() {
    let routers: [fn(Router) -> Router; 2] = [|router| router.layer(layer()), |router| router.route_layer(layer())];
    for (way, wrap) in ["layer", "route_layer"].into_iter().zip(routers) {
        for number in 0..7 {
            let executions = Executions::default();
            let served = Served::serve(wrap(checked(&executions))).await;
            let (status, mistake) = mistakes(&served).swap_remove(number);
            let rejected = mistake.send().await.unwrap();
            assert_eq!(rejected.status(), status, "{way}, {number}");
            // `route_layer` does not see requests to unknown paths, but does see those with a
            // method that is not allowed.
            let is_seen = way == "layer" || status != 404;
            let told = is_seen.then_some("released;retention=86400");
            assert_eq!(header(&rejected, "idempotency-status"), told, "{way}, {number}");
            assert_eq!(header(&rejected, "allow"), (status == 405).then_some("POST"), "{way}, {number}");
            assert_eq!(executions.count(), 0);
            for replayed in [None, Some("true")] {
                let answer = corrected(&served).send().await.unwrap();
                assert_eq!((answer.status().as_u16(), header(&answer, "idempotent-replayed")), (201, replayed));
                assert_eq!(answer.text().await.unwrap(), "tea 1", "{way}, {number}");
            }
            assert_eq!(executions.count(), 1, "{way}, {number}");
        }
    }
}

/// Routes without marks: a plain extractor, and axum's own fallbacks.
fn unchecked(executions: &Executions) -> Router {
    let counted = executions.clone();
    let order = move |Json(order): Json<Order>| async move {
        (StatusCode::CREATED, format!("{} {}", order.item, counted.add()))
    };
    Router::new().route("/orders", post(order)).layer(DefaultBodyLimit::max(100))
}

#[tokio::test]
async fn unmarked_rejection_is_stored_and_422_explains() {
    // The last mistake concerns a route that is not here.
    for number in 0..6 {
        let executions = Executions::default();
        let served = Served::start(unchecked(&executions), layer()).await;
        let (status, mistake) = mistakes(&served).swap_remove(number);
        let stored = mistake.send().await.unwrap();
        assert_eq!(header(&stored, "idempotency-status"), Some("stored;retention=86400"), "{number}");
        let refused = corrected(&served).send().await.unwrap();
        if status == 415 {
            // The correction is in a header, and headers do not distinguish requests.
            assert_eq!((refused.status().as_u16(), header(&refused, "idempotent-replayed")), (415, Some("true")));
        } else {
            let told: serde_json::Value = refused.json().await.unwrap();
            let expected = format!("a stored 4xx holds this key: its request was answered {status}");
            assert!(told["detail"].as_str().unwrap().starts_with(&expected), "{told}");
        }
        assert_eq!(executions.count(), 0);
    }
}

#[tokio::test]
async fn success_that_holds_a_key_is_not_called_a_4xx() {
    let executions = Executions::default();
    let served = Served::start(unchecked(&executions), layer()).await;
    assert_eq!(corrected(&served).send().await.unwrap().status(), 201);
    let other = served.post("/orders", "k").json(&json!({ "item": "milk" })).send().await.unwrap();
    let told: serde_json::Value = other.json().await.unwrap();
    assert_eq!((told["status"].as_u64(), told.get("detail")), (Some(422), None));
}

#[tokio::test]
async fn only_listed_statuses_release_key() {
    for (statuses, releases) in
        [(&[StatusCode::BAD_REQUEST][..], true), (&[StatusCode::NOT_FOUND], false), (&[], false)]
    {
        let executions = Executions::default();
        let served = Served::start(unchecked(&executions), layer().release_on(statuses)).await;
        let (_, mistake) = mistakes(&served).swap_remove(0);
        let rejected = mistake.send().await.unwrap();
        let told = if releases { "released;retention=86400" } else { "stored;retention=86400" };
        assert_eq!((rejected.status().as_u16(), header(&rejected, "idempotency-status")), (400, Some(told)));
        let (status, runs) = if releases { (201, 1) } else { (422, 0) };
        assert_eq!((corrected(&served).send().await.unwrap().status().as_u16(), executions.count()), (status, runs));
    }
}

#[tokio::test]
async fn success_and_outcome_outrank_released_statuses() {
    use axum::Extension;
    use steadfast::server::ExecutionOutcome;

    let executions = Executions::default();
    let (created, conflicted) = (executions.clone(), executions.clone());
    let create = post(move || async move { (StatusCode::CREATED, created.add().to_string()) });
    let conflict = post(move || async move {
        (StatusCode::CONFLICT, Extension(ExecutionOutcome::Executed), conflicted.add().to_string())
    });
    let router = Router::new().route("/create", create).route("/conflict", conflict);
    let layer = layer().release_on(&[StatusCode::CREATED, StatusCode::CONFLICT]);
    let served = Served::start(router, layer).await;
    for (number, path) in [(1, "/create"), (2, "/conflict")] {
        for replayed in [None, Some("true")] {
            let answer = served.post(path, path).send().await.unwrap();
            assert_eq!(header(&answer, "idempotent-replayed"), replayed, "{path}");
            assert_eq!(answer.text().await.unwrap(), number.to_string());
        }
    }
}

#[tokio::test]
async fn handler_may_inspect_rejection() {
    let executions = Executions::default();
    let counted = executions.clone();
    // The handler goes on without an order, so its response is the end of the operation.
    let order = move |order: Result<Checked<Json<Order>>, NotExecuted<JsonRejection>>| async move {
        let number = counted.add();
        match order {
            Ok(Checked(Json(order))) => format!("{} {number}", order.item),
            Err(NotExecuted(rejection)) => format!("{} {number}", rejection.status().as_u16()),
        }
    };
    let served = Served::start(Router::new().route("/orders", post(order)), layer()).await;
    for _ in 0..2 {
        let answer = served.post("/orders", "k").body("{}").send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), "415 1");
    }
    let other = corrected(&served).send().await.unwrap();
    assert_eq!((problem(other).await.0, executions.count()), (422, 1));
}

#[test]
fn every_problem_type_links_to_a_section_of_the_guide() {
    let page = include_str!("../../../src/guide/problems.md");
    for kind in steadfast_core::protocol::problem_type::ALL {
        let (url, section) = kind.split_once('#').expect("a link to a section");
        assert!(url.ends_with("/guide/problems/"), "{kind}");
        assert!(page.contains(&format!("\n## {section}\n")), "no section for {kind}");
        assert!(page.contains(&format!("| [`{section}`](#{section}) |")), "no row for {kind}");
    }
}
