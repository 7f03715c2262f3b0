//! What the store in memory needs, and what it counts: `cargo bench --bench memory`.
//!
//! Each row is a process of its own, because an allocator keeps what was freed. The resident size
//! is read from `/proc/self/statm`, so this needs Linux.

#![allow(clippy::unwrap_used, reason = "a program for the terminal")]

use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use steadfast::server::{Claim, Completion, End, Fingerprint, MemoryStore, Record, RecordId, Store};

const RETENTION: Duration = Duration::from_secs(3600);
const MIB: usize = 1024 * 1024;

type Row = (&'static str, usize, Option<(usize, usize)>);

/// A row: how many records, the length of each response, and of the buffer that it is a part of.
/// Without a response, the operations are running.
const ROWS: [Row; 5] = [
    ("1,000,000 responses of 2 bytes", 1_000_000, Some((2, 2))),
    ("200,000 responses of 1,000 bytes", 200_000, Some((1_000, 1_000))),
    ("50,000 responses of 5,000 bytes", 50_000, Some((5_000, 5_000))),
    ("1,000 responses of 5,000 bytes in buffers of 1 MiB", 1_000, Some((5_000, MIB))),
    ("10,000 running operations", 10_000, None),
];

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

async fn fill(store: &MemoryStore, records: usize, response: Option<(usize, usize)>) -> usize {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    for key in 0..records {
        let id = RecordId::new("", &key.to_string());
        let claim = Claim::new(&id, store.token().unwrap(), Fingerprint::of("pay"), RETENTION, RETENTION);
        if store.claim(&claim.reserve(MIB)).await.is_err() {
            return key;
        }
        if let Some((length, buffer)) = response {
            let body = Bytes::from(vec![b'x'; buffer]).slice(..length);
            let end = End::Completed(Completion::new(Record::new(StatusCode::OK, &headers, body), RETENTION));
            store.finish(claim.reference(), Some(()), &end).await.unwrap();
        }
    }
    records
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    if let Some(row) = std::env::var("ROW").ok().and_then(|row| row.parse::<usize>().ok()) {
        let (name, records, response) = ROWS[row];
        let store = MemoryStore::new();
        let before = resident();
        let held = fill(&store, records, response).await;
        let (counted, needed) = (store.bytes(), resident() - before);
        let share =
            f64::from(u32::try_from(needed / 1024).unwrap()) / f64::from(u32::try_from(counted / 1024).unwrap());
        println!("| {name} | {held} | {} | {} | {share:.2} |", counted / MIB, needed / MIB);
        return;
    }
    println!("| records | held | counted, MiB | resident, MiB | resident / counted |\n| --- | --- | --- | --- | --- |");
    for row in 0..ROWS.len() {
        Command::new(std::env::current_exe().unwrap()).env("ROW", row.to_string()).status().unwrap();
    }
}
