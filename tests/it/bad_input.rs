//! An invalid setting is an error that names the setting and the reason. It is never a panic, and
//! nothing is sent.

use std::time::Duration;

use steadfast::policy::{BreakerPolicy, HedgePolicy, RetryBudget, RetryPolicy};
use steadfast::{Client, ClientBuilder, ErrorKind, KeyPolicy, RequestBuilder};
use steadfast_testing::{FaultServer, FaultStep};

fn check_client(setting: &str, reason: &str, builder: ClientBuilder) {
    let error = builder.build().expect_err(setting);
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Build, "{text}");
    assert!(error.is_build() && text.starts_with(setting) && text.contains(reason), "{setting}: {text}");
    assert!(text.ends_with("(nothing was sent)"), "{text}");
    assert!(!error.may_have_been_processed() && error.attempts().is_empty());
}

#[test]
fn invalid_client_setting_is_named() {
    let new = Client::builder;
    check_client("base_url", "the scheme is missing: write https://api.example.com", new().base_url("api.example.com"));
    check_client("base_url", "invalid port", new().base_url("https://api.example.com:99999"));
    check_client("base_url", "query", new().base_url("https://api.example.com?a=1"));
    check_client("max_attempts", "at least 1", new().retry(RetryPolicy::new().max_attempts(0)));
    check_client("deadline", "zero", new().retry(RetryPolicy::new().deadline(Duration::ZERO)));
    check_client("timeout", "zero", new().timeout(Duration::ZERO));
    check_client("attempt_timeout", "zero", new().attempt_timeout(Duration::ZERO));
    check_client("connect_timeout", "zero", new().connect_timeout(Duration::ZERO));
    let second = Duration::from_secs(1);
    let swapped = || new().timeout(2 * second).attempt_timeout(3 * second);
    check_client("attempt_timeout", "3s is longer than the timeout of 2s", swapped());
    let policy = RetryPolicy::new().deadline(2 * second);
    let swapped = new().retry(policy).attempt_timeout(3 * second);
    check_client("attempt_timeout", "3s is longer than the deadline of 2s", swapped);
    let swapped = new().attempt_timeout(2 * second).connect_timeout(3 * second);
    check_client("connect_timeout", "3s is longer than the attempt_timeout of 2s", swapped);
    let swapped = new().timeout(2 * second).connect_timeout(3 * second);
    check_client("connect_timeout", "3s is longer than the timeout of 2s", swapped);
    check_client("read_timeout", "zero", new().read_timeout(Duration::ZERO));
    check_client("min_upload_rate", "zero", new().min_upload_rate(0, Duration::from_secs(1)));
    check_client("budget", "not negative", new().budget(RetryBudget::ratio(-1.0)));
    let breaker = |policy| new().breaker(policy);
    check_client("window", "zero", breaker(BreakerPolicy::new().window(Duration::ZERO)));
    check_client("failure_share", "at most 1", breaker(BreakerPolicy::new().failure_share(1.5)));
    check_client("slow_calls", "share", breaker(BreakerPolicy::new().slow_calls(Duration::from_secs(1), f64::NAN)));
    check_client("open_for", "zero", breaker(BreakerPolicy::new().open_for(Duration::ZERO)));
    check_client("open_jitter", "from 0 to 1", breaker(BreakerPolicy::new().open_jitter(-0.1)));
    check_client("min_calls", "at least 1", breaker(BreakerPolicy::new().min_calls(0)));
    check_client("probes", "at least 1", breaker(BreakerPolicy::new().probes(0)));
    let hedge = |policy| new().hedge(policy);
    check_client("quantile", "under 1", hedge(HedgePolicy::quantile(98.0)));
    check_client("quantile", "over 0", hedge(HedgePolicy::quantile(-0.1)));
    check_client("max_extra_load", "under 1 - quantile", hedge(HedgePolicy::quantile(0.95).max_extra_load(0.02)));
    check_client("max_extra_load", "at most 1", hedge(HedgePolicy::quantile(0.95).max_extra_load(2.0)));
    check_client("after", "zero", hedge(HedgePolicy::after(Duration::ZERO)));
    check_client("keys", "36", new().keys(KeyPolicy::standard().max_length(8)));
    check_client("keys", "retention", new().keys(KeyPolicy::standard().retention(Duration::ZERO)));
    check_client("keys", "under a second", new().keys(KeyPolicy::standard().wait_on_retry(Duration::from_millis(10))));
    let long = KeyPolicy::standard().wait_on_retry(Duration::from_secs(10));
    check_client("keys", "attempt_timeout", new().keys(long).attempt_timeout(Duration::from_secs(10)));
    check_client("default_header", "invalid HTTP header name", new().default_header("a b", "c"));
    check_client("default_header", "failed to parse header value", new().default_header("a", "b\nc"));
    check_client("bearer_auth", "failed to parse header value", new().bearer_auth("a\nb"));
    check_client("default_header", "credential", new().bearer_auth("token"));
    check_client("default_header", "credential", new().default_header("x-api-key", "k"));
    check_client("default_header", "credential", new().default_header("cookie", "k"));
    let base = || new().base_url("https://api.example.com");
    check_client("default_header", "same key", base().default_header("Idempotency-Key", "k"));
    let numbered = base().attempt_header("idempotency-key".parse().unwrap());
    check_client("attempt_header", "another key", numbered);
    let deadline =
        |name: &str| base().deadline_header(name.parse().unwrap()).attempt_header("x-attempt".parse().unwrap());
    check_client("deadline_header", "taken", deadline("idempotency-key"));
    check_client("deadline_header", "taken", deadline("x-attempt"));
    let both = new().http(|http| http).http_client(steadfast::reqwest::Client::new());
    check_client("http_client", "finished", both);
}

/// Only a timeout that contradicts another one that was *set* is a mistake.
#[tokio::test]
async fn timeout_that_meets_a_default_is_accepted() {
    let new = Client::builder;
    let (short, long) = (Duration::from_millis(900), Duration::from_secs(300));
    for builder in [
        new().timeout(short),
        new().attempt_timeout(short),
        new().attempt_timeout(long),
        new().connect_timeout(long),
        new().timeout(short).attempt_timeout(short).connect_timeout(short),
        new().timeout(None).attempt_timeout(long),
        new().timeout(short).attempt_timeout(None).connect_timeout(None),
        new().timeout(short).read_timeout(long),
        new().retry(RetryPolicy::new().max_retry_after(long)).timeout(short),
    ] {
        builder.build().unwrap();
    }
    // A request's own timeouts may be in any order: one of them is often the time that is left.
    let server = FaultServer::play([FaultStep::answer(200)]).await;
    let client = Client::builder().base_url(server.url("")).attempt_timeout(Duration::from_secs(20)).build().unwrap();
    client.get("/").timeout(Duration::from_secs(2)).attempt_timeout(Duration::from_secs(5)).send().await.unwrap();
    client.get("/").timeout(Duration::from_secs(2)).send().await.unwrap();
    assert_eq!(server.received().len(), 2);
}

#[tokio::test]
async fn invalid_request_setting_is_named() {
    let server = FaultServer::play([FaultStep::answer(200)]).await;
    let client = Client::builder().base_url(server.url("/v1")).build().unwrap();
    let get = || client.get("/x");
    let unserialisable = std::collections::HashMap::from([((1, 2), 3)]);
    let cases: Vec<(&str, &str, RequestBuilder)> = vec![
        ("url", "leaves the base_url", client.get("/../v2")),
        ("url", "neither http nor https", client.get("ftp://example.com")),
        ("header", "invalid HTTP header name", get().header("a b", "c")),
        ("header", "failed to parse header value", get().header("a", "b\r\nc: d")),
        ("bearer_auth", "failed to parse header value", get().bearer_auth("a\nb")),
        ("path_segments", "part 2 is empty", get().path_segments(["orders", ""])),
        ("path_segments", "part 1 is `..`", get().path_segments(["..", "orders"])),
        ("path_segments", "part 2 has a tab or a line break", get().path_segments(["orders", ".\n."])),
        ("path_segments", "part 2 has a tab or a line break", get().path_segments(["orders", "\t"])),
        ("json", "key must be a string", get().json(&unserialisable)),
        ("query", "only maps and structs", get().query(&5)),
        ("form", "only maps and structs", get().form(&5)),
        ("timeout", "zero", get().timeout(Duration::ZERO)),
        ("attempt_timeout", "zero", get().attempt_timeout(Duration::ZERO)),
        ("host", "twice", get().header("host", "a.example").header("host", "b.example")),
        (
            "content-length",
            "says 5, and the body has 3 bytes",
            client.post("/x").header("content-length", "5").body("abc"),
        ),
        ("content-length", "says 5, and the body has 0 bytes", client.post("/x").header("content-length", "5")),
        ("content-length", "no number", client.post("/x").header("content-length", "+3").body("abc")),
        ("content-length", "twice", {
            client.post("/x").header("content-length", "3").header("content-length", "3").body("abc")
        }),
        ("read_timeout", "zero", get().read_timeout(Duration::ZERO)),
        ("min_upload_rate", "zero", get().min_upload_rate(0, Duration::from_secs(1))),
        ("min_upload_rate", "zero", get().min_upload_rate(1, Duration::ZERO)),
        ("hedge", "twice", client.post("/x").idempotent(false).hedge(HedgePolicy::quantile(0.98))),
        ("hedge", "concurrent_duplicates_safe", client.post("/x").hedge(HedgePolicy::quantile(0.98))),
        ("quantile", "under 1", get().hedge(HedgePolicy::quantile(1.0))),
        ("max_attempts", "at least 1", get().retry(RetryPolicy::new().max_attempts(0))),
    ];
    for (setting, reason, request) in cases {
        let error = request.send().await.expect_err(setting);
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Build, "{text}");
        assert!(text.contains(&format!("{setting}: ")) && text.contains(reason), "{setting}: {text}");
    }
    // The length of a body that is made for each attempt is known only then.
    let error = client.post("/x").header("content-length", "0").body_factory(|| "x").send().await.unwrap_err();
    assert_eq!((error.kind(), error.may_have_been_processed()), (ErrorKind::RequestBody, false));
    assert!(error.to_string().contains("content-length: it says 0, and the body has 1 bytes"), "{error}");
    assert_eq!(server.connections(), 0);
    let right = client.post("/x").header("host", "a.example").header("content-length", "3").body("abc");
    assert_eq!(right.send().await.unwrap().status(), 200);
    assert_eq!((server.received()[0].header("host"), server.received()[0].body.len()), (Some("a.example"), 3));
}

#[tokio::test]
async fn first_mistake_is_reported() {
    let client = Client::new();
    let error = client.get("/relative").header("a b", "c").path_segments([""]).send().await.unwrap_err();
    assert!(error.to_string().contains("it is relative and the client has no base_url"), "{error}");
}

#[test]
fn client_builds_and_drops_outside_runtime() {
    let client = Client::new();
    drop(client.get("https://example.com"));
    drop(client);
}

#[tokio::test]
async fn longest_durations_are_accepted() {
    let server = FaultServer::play([FaultStep::answer(503), FaultStep::answer(200)]).await;
    let client = Client::builder()
        .base_url(server.url(""))
        .keys(KeyPolicy::standard().retention(Duration::MAX))
        .connect_timeout(Duration::MAX)
        .read_timeout(Duration::MAX)
        .attempt_timeout(Duration::MAX)
        .timeout(Duration::MAX)
        .body_limit(usize::MAX)
        .build()
        .unwrap();
    let value: serde_json::Value = client.post_json("/", &1).await.unwrap();
    assert_eq!((value["status"].as_u64(), server.received().len()), (Some(200), 2));
}

#[tokio::test]
async fn too_many_header_names_are_an_error() {
    let many =
        (0..25_000).fold(Client::builder(), |builder, number| builder.default_header(format!("x-{number}"), "1"));
    check_client("default_header", "more headers than a request can have", many);

    // A header map has room for fewer names than that, but for any number of values.
    let values = std::iter::repeat_n((http::HeaderName::from_static("x"), http::HeaderValue::from_static("1")), 25_000);
    let headers: http::HeaderMap = values.collect();
    let client = Client::builder().retry(RetryPolicy::never()).build().unwrap();
    let error = client.get("http://127.0.0.1:1/").headers(headers).send().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
}
