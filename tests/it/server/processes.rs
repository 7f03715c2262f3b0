//! Concurrent claims from several processes. One process cannot show this, since its runtime orders
//! its claims.
//!
//! Each child is this test binary, running one test that does nothing in any other process.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use steadfast::server::{Claim, ClaimOutcome, ClaimToken, Fingerprint, RecordId, Store};

const CHILD: &str = "STEADFAST_TEST_CONTENDER";
const LONG: Duration = Duration::from_secs(600);

/// Returns how many of the concurrent claims of `processes` children succeed. `test` is the path of
/// a test that calls [`contender`].
pub(super) fn contest(test: &str, argument: &str, processes: usize) -> usize {
    let mut children: Vec<_> = (0..processes).map(|_| Contender::start(test, argument)).collect();
    // All children are connected before the first one starts.
    for child in &mut children {
        child.read("ready");
    }
    for child in &mut children {
        child.go();
    }
    let won = children.iter_mut().map(Contender::won).sum();
    children.into_iter().for_each(Contender::end);
    won
}

/// Returns the parent's argument for this child, or `None` in any other run of the test.
pub(super) fn contender() -> Option<String> {
    std::env::var(CHILD).ok()
}

/// The child's part: `claims` concurrent claims of one key, on the parent's signal.
pub(super) async fn contend<S: Store>(store: Arc<S>, id: RecordId, claims: usize) {
    // Opens a connection and loads the scripts before the start.
    store.get(&id).await.unwrap();
    println!("\nready");
    let started = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    assert!(started.await.unwrap().unwrap() > 0, "the parent has gone");
    let mut contenders = tokio::task::JoinSet::new();
    for _ in 0..claims {
        let store = store.clone();
        contenders.spawn(async move {
            let (token, fingerprint) = (ClaimToken::new().unwrap(), Fingerprint::from_bytes([1; 32]));
            store.claim(&Claim::new(&id, token, fingerprint, LONG, LONG)).await.unwrap()
        });
    }
    // A dropped session releases the key, so sessions are kept until every process has its result.
    let claimed = contenders.join_all().await;
    println!("\nwon {}", claimed.iter().filter(|claimed| matches!(claimed, ClaimOutcome::Acquired(_))).count());
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await.unwrap().unwrap();
}

struct Contender {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Contender {
    fn start(test: &str, argument: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, argument)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Returns the rest of the next line that begins with `word`.
    fn read(&mut self, word: &str) -> String {
        let mut lines = self.lines.by_ref().map_while(Result::ok);
        lines.find_map(|line| Some(line.strip_prefix(word)?.trim().to_owned())).expect("the child ended early")
    }

    fn go(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    fn won(&mut self) -> usize {
        self.read("won").parse().unwrap()
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}
