//! Whole operations through an outbox in a file, beside bare commits of the same durability.
//!
//! `./scripts/bench.sh outbox` puts the table on the page. Times differ from run to run; the ratio is
//! what counts.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a program that measures time, and panics if it cannot"
)]

use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt as _;
use futures_util::stream;
use redb::{Database, TableDefinition};
use steadfast::{Client, KeyPolicy};
use steadfast_outbox::{Outbox, RedbOutbox};
use steadfast_testing::{FaultServer, FaultStep};

const SUBMITTERS: usize = 64;
const OPERATIONS: usize = 4_000;
const COMMITS: usize = 400;
const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("bare");

/// Returns how many bare commits a second `SUBMITTERS` threads make, each with its own sync.
fn bare() -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let database = Arc::new(Database::create(folder.path().join("bare.redb")).unwrap());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..SUBMITTERS {
            let database = database.clone();
            scope.spawn(move || {
                for number in (thread..COMMITS).step_by(SUBMITTERS) {
                    let mut transaction = database.begin_write().unwrap();
                    transaction.set_two_phase_commit(true);
                    transaction.open_table(TABLE).unwrap().insert(number as u64, [7; 300].as_slice()).unwrap();
                    transaction.commit().unwrap();
                }
            });
        }
    });
    COMMITS as f64 / started.elapsed().as_secs_f64()
}

/// Returns how many operations a second are submitted, sent, ended, waited for and acknowledged.
async fn whole(store: RedbOutbox) -> f64 {
    let server = FaultServer::start(|_, _| FaultStep::execute(201)).await;
    let client = Client::builder().base_url(server.url("")).keys(KeyPolicy::standard()).build().unwrap();
    let outbox = Outbox::open(store, client.clone()).workers(SUBMITTERS, SUBMITTERS).start().await.unwrap();
    let started = Instant::now();
    let operation = |_| async {
        let id = outbox.submit(client.post("/charges").body("12 EUR").prepare().unwrap()).await.unwrap();
        outbox.wait(id).await.unwrap();
        outbox.acknowledge(id).await.unwrap();
    };
    stream::iter(0..OPERATIONS).for_each_concurrent(SUBMITTERS, operation).await;
    assert_eq!(server.executions(), OPERATIONS);
    OPERATIONS as f64 / started.elapsed().as_secs_f64()
}

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().unwrap();
    let floor = bare();
    let redb = whole(RedbOutbox::open(folder.path().join("operations.redb")).unwrap()).await;
    println!("| {SUBMITTERS} at once | a second | of the floor |");
    println!("| --- | ---: | ---: |");
    println!("| a bare commit in a file of redb, synced twice (the floor) | {floor:.0} | 1.0 |");
    println!("| a whole operation: submitted, sent, ended, acknowledged | {redb:.0} | {:.1} |", redb / floor);
}
