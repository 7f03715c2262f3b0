//! The kill matrix: a process is killed before and after every write of its outbox and every send, and
//! the next one goes on. With PostgreSQL, a process is also stopped there, and goes on when the next
//! one has finished.
//!
//! At a server that honours keys every operation is carried out once. At one that ignores them it is
//! carried out at most once, and the end never promises more than the server knows.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fastrand::Rng;
use steadfast::policy::RetryPolicy;
use steadfast::{Client, EventKind, KeyPolicy};
use steadfast_outbox::{DurableExt, End, Outbox, OutboxStore, RedbOutbox};
use steadfast_postgres::PostgresOutbox;
use steadfast_testing::{FaultPoint, FaultServer, FaultStep};
use tempfile::TempDir;

use super::around::{Around, Writes};
use crate::server::crash::die;
use crate::server::postgres::{options, pool, pool_of};

const CHILD: &str = "STEADFAST_TEST_OUTBOX";
const OPERATIONS: usize = 3;

/// Where an outbox is kept.
enum Place {
    File(TempDir),
    Schema(String),
}

impl Place {
    fn file() -> Self {
        Self::File(TempDir::new().unwrap())
    }

    async fn schema() -> Self {
        let (schema, pool) = pool().await;
        PostgresOutbox::new(pool).create_table().await.unwrap();
        Self::Schema(schema)
    }

    fn argument(&self) -> String {
        match self {
            Self::File(folder) => folder.path().join("operations.redb").display().to_string(),
            Self::Schema(schema) => format!("schema {schema}"),
        }
    }
}

/// Kills or stops the process at one of its steps.
#[derive(Clone)]
struct Fate {
    left: Arc<AtomicUsize>,
    stops: bool,
}

impl Fate {
    /// Dies at the nth step, never if `nth` is 0.
    fn at(nth: usize, stops: bool) -> Self {
        Self { left: Arc::new(AtomicUsize::new(nth)), stops }
    }

    fn step(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            if !self.stops {
                die();
            }
            println!("stopped");
            signal("-STOP", std::process::id());
        }
    }
}

fn signal(signal: &str, process: u32) {
    assert!(Command::new("kill").args([signal, &process.to_string()]).status().unwrap().success());
}

impl Writes for Fate {
    fn before(&self) {
        self.step();
    }

    async fn after(&self) {
        self.step();
    }
}

/// The process that submits, waits and is killed or stopped. Prints the ends.
#[tokio::test]
async fn child() {
    let Ok(arguments) = std::env::var(CHILD) else { return };
    let parts: Vec<&str> = arguments.split('#').collect();
    let [place, server, trusts, nth, how] = parts[..] else { panic!("{arguments}") };
    let fate = Fate::at(nth.parse().unwrap(), how == "stops");
    let client = client(server, trusts == "trusts", &fate);
    match place.strip_prefix("schema ") {
        // A process that is stopped may hold rows that the next one waits for.
        Some(schema) => {
            let settings = [("search_path", schema), ("idle_in_transaction_session_timeout", "300ms")];
            let store = PostgresOutbox::new(pool_of(4, options().options(settings)));
            act(Around { store, writes: fate }, client).await;
        }
        None => act(Around { store: RedbOutbox::open(place).unwrap(), writes: fate }, client).await,
    }
}

fn client(server: &str, trusts: bool, fate: &Fate) -> Client {
    let (before, after) = (fate.clone(), fate.clone());
    let builder =
        Client::builder().base_url(server).retry(RetryPolicy::never()).attempt_timeout(Duration::from_millis(400));
    let builder = builder.on_attempt(move |_| {
        before.step();
        Ok(())
    });
    let builder = builder.on_event(move |event| {
        if matches!(event.kind(), EventKind::ExchangeEnded { .. }) {
            after.step();
        }
    });
    let builder = if trusts { builder.keys(KeyPolicy::standard()) } else { builder };
    builder.build().unwrap()
}

async fn act<S: OutboxStore>(store: S, client: Client) {
    let outbox = Outbox::open(store, client.clone())
        .lease(Duration::from_millis(600))
        .settling_time(Duration::from_millis(10))
        .backoff(Duration::from_millis(1), Duration::from_millis(5))
        .poll_interval(Duration::from_millis(50))
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

/// A process of the test, at work.
struct Worker {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    said: String,
}

impl Worker {
    fn start(place: &Place, server: &FaultServer, trusts: &str, nth: usize, how: &str) -> Self {
        let arguments = format!("{}#{}#{trusts}#{nth}#{how}", place.argument(), server.url(""));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "outbox::crash::child", "--nocapture"]).env(CHILD, arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines, said: String::new() }
    }

    /// Waits until the process has stopped itself. Returns `false` if it has ended instead.
    fn stops(&mut self) -> bool {
        let mut line = String::new();
        while self.lines.read_line(&mut line).unwrap() > 0 {
            self.said.push_str(&line);
            if line == "stopped\n" {
                let status = format!("/proc/{}/stat", self.child.id());
                while !std::fs::read_to_string(&status).unwrap().contains(") T ") {
                    std::thread::yield_now();
                }
                return true;
            }
            line.clear();
        }
        false
    }

    /// Waits for the end of the process. Returns the ends of the operations, or `None` if it was
    /// killed.
    fn ends(mut self) -> Option<Vec<String>> {
        self.lines.read_to_string(&mut self.said).unwrap();
        let said = &self.said;
        let ends = said.lines().filter_map(|line| Some(line.strip_prefix("end ")?[2..].to_owned())).collect();
        let status = self.child.wait().unwrap();
        if said.contains("finished") {
            return Some(ends);
        }
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        assert!(status.code().is_none(), "the process was not killed: {said}{errors}");
        None
    }
}

/// Runs the process. Returns the ends of the operations, or `None` if it was killed.
async fn run(place: &Place, server: &FaultServer, trusts: &str, nth: usize) -> Option<Vec<String>> {
    let worker = Worker::start(place, server, trusts, nth, "dies");
    let ends = tokio::task::spawn_blocking(|| worker.ends()).await.unwrap();
    assert!(nth > 0 || ends.is_some(), "the process was killed");
    ends
}

/// Runs a process that is stopped, and goes on once another one has finished. Returns the ends as both
/// see them, or `None` if the first one was not stopped.
async fn overtaken(place: &Place, server: &FaultServer, trusts: &str, nth: usize) -> Option<Vec<String>> {
    let mut worker = Worker::start(place, server, trusts, nth, "stops");
    let (worker, stopped) = tokio::task::spawn_blocking(|| {
        let stopped = worker.stops();
        (worker, stopped)
    })
    .await
    .unwrap();
    if !stopped {
        return None;
    }
    let ends = run(place, server, trusts, 0).await.unwrap();
    signal("-CONT", worker.child.id());
    let late = tokio::task::spawn_blocking(|| worker.ends()).await.unwrap();
    assert_eq!(late.as_ref(), Some(&ends), "stopped at step {nth}");
    Some(ends)
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

fn honours(server: FaultServer, trusts: &str) -> FaultServer {
    if trusts == "trusts" { server } else { server.ignoring_keys() }
}

fn check_all(server: &FaultServer, ends: &[String], trusts: &str, said: &str) {
    check(server, ends, said);
    assert!(trusts == "doubts" || ends.iter().all(|end| end == "answer"), "{said}: {ends:?}");
}

/// Kills at every step, each time with a new outbox.
async fn killed(place: impl AsyncFn() -> Place, trusts: &str) {
    let mut nth = 1;
    loop {
        let (place, server) = (place().await, honours(losing().await, trusts));
        let said = format!("killed at step {nth}");
        let first = run(&place, &server, trusts, nth).await;
        let was_killed = first.is_none();
        let ends = match first {
            Some(ends) => ends,
            None => run(&place, &server, trusts, 0).await.unwrap(),
        };
        check_all(&server, &ends, trusts, &said);
        if !was_killed {
            break;
        }
        nth += 1;
    }
    assert!(nth > 12, "only {nth} steps");
}

/// Stops at every step, each time with a new outbox.
async fn stopped(trusts: &str) {
    let mut nth = 1;
    loop {
        let (place, server) = (Place::schema().await, honours(losing().await, trusts));
        let Some(ends) = overtaken(&place, &server, trusts, nth).await else { break };
        check_all(&server, &ends, trusts, &format!("stopped at step {nth}"));
        nth += 1;
    }
    assert!(nth > 12, "only {nth} steps");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_every_step_each_is_carried_out_once() {
    killed(async || Place::file(), "trusts").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_every_step_none_is_carried_out_twice() {
    killed(async || Place::file(), "doubts").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_over_postgres_each_is_carried_out_once() {
    killed(Place::schema, "trusts").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_over_postgres_none_is_carried_out_twice() {
    killed(Place::schema, "doubts").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_past_its_lease_each_is_carried_out_once() {
    stopped("trusts").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_past_its_lease_none_is_carried_out_twice() {
    stopped("doubts").await;
}

/// What a soak has seen.
#[derive(Debug, Default)]
struct Tally {
    outboxes: usize,
    kills: usize,
    requests: usize,
    once: usize,
    never: usize,
    ends: BTreeMap<String, usize>,
}

/// Kills at random steps, again and again, until all has ended.
async fn soak(place: impl AsyncFn() -> Place, seed: u64, kills: usize) -> Tally {
    let (mut chance, mut tally) = (Rng::with_seed(seed), Tally::default());
    while tally.kills < kills {
        let trusts = if chance.bool() { "trusts" } else { "doubts" };
        let (place, server) = (place().await, honours(losing().await, trusts));
        let ends = loop {
            // The whole work of a process takes some 30 steps.
            match run(&place, &server, trusts, chance.usize(1..40)).await {
                Some(ends) => break ends,
                None => tally.kills += 1,
            }
        };
        check_all(&server, &ends, trusts, &format!("seed {seed}, {trusts}"));
        tally.outboxes += 1;
        tally.requests += server.received().len();
        tally.once += server.executions();
        tally.never += OPERATIONS - server.executions();
        for end in ends {
            *tally.ends.entry(format!("{end} ({trusts})")).or_default() += 1;
        }
    }
    tally
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_again_and_again() {
    soak(async || Place::file(), 1, 30).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten minutes; the short form runs always"]
async fn killed_ten_thousand_times() {
    println!("{:#?}", soak(async || Place::file(), 2, 10_000).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "half an hour; the short form runs always"]
async fn killed_a_thousand_times_over_postgres() {
    println!("{:#?}", soak(Place::schema, 3, 1_000).await);
}
