//! How often the client allocates: counts are exact, so a test may hold them.
//!
//! A binary of its own, because the counting allocator is the whole process's; it counts for one thread, and the server runs on
//! another.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is its business")]

use std::io::{Read, Write};
use std::net::TcpListener;

use allocation_counter::measure;
use serde_json::Value;
use steadfast::{Client, KeyPolicy};

/// Answers every request with the same 200, on a thread of its own.
fn server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/charges", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                // Small requests arrive in one piece here.
                while stream.read(&mut buffer).is_ok_and(|read| read > 0) {
                    let body = r#"{"id":"ch_1","amount":1200,"currency":"eur","paid":true}"#;
                    let head = format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                        body.len()
                    );
                    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
                }
            });
        }
    });
    url
}

/// The fewest allocations of one call, after the connection and every lazy thing is there.
fn allocations<F: Future>(runtime: &tokio::runtime::Runtime, call: impl Fn() -> F) -> u64 {
    for _ in 0..5 {
        runtime.block_on(call());
    }
    (0..20).map(|_| measure(|| drop(runtime.block_on(call()))).count_total).min().unwrap()
}

/// What an operation costs above a plain request of reqwest, counted: `fetch` of a GET nothing; `send` of a GET the story in the
/// response and the clone of the template, less what turning reqwest's redirects off saves; a POST its key, its body's probe and
/// the clone of its headers.
#[test]
fn an_operation_costs_few_allocations_above_a_plain_request() {
    let url = server();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let plain = steadfast::reqwest::Client::new();
    let ours = Client::builder().base_url(&url).keys(KeyPolicy::standard()).build().unwrap();
    let body = serde_json::json!({ "amount": 1200 });

    let plain_get =
        allocations(&runtime, || async { plain.get(&url).send().await.unwrap().json::<Value>().await.unwrap() });
    let our_get = allocations(&runtime, || async { ours.get_json::<Value>("").await.unwrap() });
    let our_send = allocations(&runtime, || async { ours.get("").send().await.unwrap().bytes().await.unwrap() });
    let plain_send = allocations(&runtime, || async { plain.get(&url).send().await.unwrap().bytes().await.unwrap() });
    let plain_post = allocations(&runtime, || async {
        plain.post(&url).json(&body).send().await.unwrap().json::<Value>().await.unwrap()
    });
    let our_post = allocations(&runtime, || async { ours.post_json::<Value>("", &body).await.unwrap() });
    println!(
        "GET: plain {plain_get}, ours {our_get}; send: plain {plain_send}, ours {our_send}; POST: plain {plain_post}, ours {our_post}"
    );
    let clone = measure(|| drop(ours.clone())).count_total;
    assert_eq!(clone, 0, "cloning the client");
    assert!(our_get <= plain_get, "GET, fetched");
    assert!(our_send <= plain_send + 2, "GET, sent");
    assert!(our_post <= plain_post + 7, "POST, fetched");
}
