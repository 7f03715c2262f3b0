//! The kill matrix: a process is killed before and after every write of its outbox and every send, and
//! the next one goes on.
//!
//! At a server that honours keys every operation is carried out once. At one that ignores them it is
//! carried out at most once, and the end never promises more than the server knows.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fastrand::Rng;
use steadfast::policy::RetryPolicy;
use steadfast::{Client, EventKind, KeyPolicy};
use steadfast_outbox::{DurableExt, End, Outbox, RedbOutbox};
use steadfast_testing::{FaultPoint, FaultServer, FaultStep};
use tempfile::TempDir;

use super::around::{Around, Writes};
use crate::server::crash::die;

const CHILD: &str = "STEADFAST_TEST_OUTBOX";
const OPERATIONS: usize = 3;

/// Kills the process at one of its steps.
#[derive(Clone)]
struct Fate(Arc<AtomicUsize>);

impl Fate {
    /// Dies at the nth step, never if `nth` is 0.
    fn at(nth: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(nth)))
    }

    fn step(&self) {
        if self.0.fetch_sub(1, Ordering::SeqCst) == 1 {
            die();
        }
    }
}

impl Writes for Fate {
    fn before(&self) {
        self.step();
    }

    async fn after(&self) {
        self.step();
    }
}

/// The process that submits, waits and is killed. Prints the ends.
#[tokio::test]
async fn child() {
    let Ok(arguments) = std::env::var(CHILD) else { return };
    let parts: Vec<&str> = arguments.split('#').collect();
    let [path, server, trusts, nth] = parts[..] else { panic!("{arguments}") };
    let fate = Fate::at(nth.parse().unwrap());
    let (before, after) = (fate.clone(), fate.clone());
    let builder =
        Client::builder().base_url(server).retry(RetryPolicy::never()).attempt_timeout(Duration::from_secs(2));
    let builder = builder.on_attempt(move |_| {
        before.step();
        Ok(())
    });
    let builder = builder.on_event(move |event| {
        if matches!(event.kind(), EventKind::ExchangeEnded { .. }) {
            after.step();
        }
    });
    let builder = if trusts == "trusts" { builder.keys(KeyPolicy::standard()) } else { builder };
    let client = builder.build().unwrap();
    let store = Around { store: RedbOutbox::open(path).unwrap(), writes: fate };
    let outbox = Outbox::open(store, client.clone())
        .lease(Duration::from_secs(3))
        .settling_time(Duration::from_millis(10))
        .backoff(Duration::from_millis(1), Duration::from_millis(5))
        .start()
        .await
        .unwrap();
    let mut ids = Vec::new();
    for number in 0..OPERATIONS {
        let charge = client.post("/charges").body(format!("charge {number}")).prepare().unwrap();
        ids.push(outbox.submit(charge.named(format!("charge-{number}"))).await.unwrap());
    }
    for (number, id) in ids.into_iter().enumerate() {
        let end: End = outbox.wait(id).await.unwrap();
        println!("end {number} {}", end.label());
    }
    println!("finished");
}

/// Runs the process. Returns the ends of the operations, or `None` if it was killed.
async fn run(path: &Path, server: &FaultServer, trusts: &str, nth: usize) -> Option<Vec<String>> {
    let arguments = format!("{}#{}#{trusts}#{nth}", path.display(), server.url(""));
    let child = std::env::current_exe().unwrap();
    let output = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(child);
        command.args(["--exact", "outbox::crash::child", "--nocapture"]).env(CHILD, arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap()
    });
    let output = output.await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let ends = said.lines().filter_map(|line| Some(line.strip_prefix("end ")?[2..].to_owned())).collect();
    if said.contains("finished") {
        return Some(ends);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(nth > 0 && output.status.code().is_none(), "the process was not killed: {said}{errors}");
    None
}

/// A server that loses the answer of the first request of every operation.
async fn losing() -> FaultServer {
    let seen = std::sync::Mutex::new(std::collections::HashSet::new());
    FaultServer::start(move |_, request| match request {
        Some(request) if seen.lock().unwrap().insert(request.body.clone()) => {
            FaultStep::close(FaultPoint::AfterExecuting)
        }
        _ => FaultStep::ok(),
    })
    .await
}

/// Checks what the server has done against what the outbox says.
fn check(server: &FaultServer, ends: &[String], said: &str) {
    let executions = server.executions_by_body();
    assert_eq!(ends.len(), OPERATIONS, "{said}: an operation is lost");
    for (number, end) in ends.iter().enumerate() {
        let count = executions.get(format!("charge {number}").as_bytes()).copied().unwrap_or_default();
        assert!(count <= 1, "{said}: charge {number} was carried out {count} times");
        match end.as_str() {
            "answer" => assert_eq!(count, 1, "{said}: charge {number} has an answer"),
            "rejected" => assert_eq!(count, 0, "{said}: charge {number} is rejected"),
            _ => {}
        }
    }
}

async fn matrix(trusts: &str, expected: &str) {
    let mut nth = 1;
    loop {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("operations.redb");
        let server = losing().await;
        let server = if trusts == "trusts" { server } else { server.ignoring_keys() };
        let said = format!("killed at step {nth}");
        let first = run(&path, &server, trusts, nth).await;
        let was_killed = first.is_none();
        let ends = match first {
            Some(ends) => ends,
            None => run(&path, &server, trusts, 0).await.unwrap(),
        };
        check(&server, &ends, &said);
        if expected == "answer" {
            assert!(ends.iter().all(|end| end == expected), "{said}: {ends:?}");
        }
        if !was_killed {
            break;
        }
        nth += 1;
    }
    assert!(nth > 12, "only {nth} steps");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_every_step_each_is_carried_out_once() {
    matrix("trusts", "answer").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_every_step_none_is_carried_out_twice() {
    matrix("doubts", "any").await;
}

/// Kills at random steps, again and again, until all has ended.
async fn soak(seed: u64, kills: usize) {
    let mut chance = Rng::with_seed(seed);
    let mut killed = 0;
    while killed < kills {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("operations.redb");
        let trusts = if chance.bool() { "trusts" } else { "doubts" };
        let server = losing().await;
        let server = if trusts == "trusts" { server } else { server.ignoring_keys() };
        let ends = loop {
            match run(&path, &server, trusts, chance.usize(1..16)).await {
                Some(ends) => break ends,
                None => killed += 1,
            }
        };
        check(&server, &ends, &format!("seed {seed}, {trusts}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_again_and_again() {
    soak(1, 30).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "half an hour; the short form runs always"]
async fn killed_ten_thousand_times() {
    soak(2, 10_000).await;
}
