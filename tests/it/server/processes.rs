//! Claims from several processes at once: what one process cannot show, since its claims are ordered by its own runtime.
//!
//! The children are this test binary, asked for one test that does nothing unless it is a child.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use steadfast::server::{Claim, ClaimOutcome, ClaimToken, Fingerprint, RecordId, Store};

const CHILD: &str = "STEADFAST_TEST_CONTENDER";
const LONG: Duration = Duration::from_secs(600);

/// How many of the claims that `processes` children make at once are won. `test` is the path of a test that calls [`contender`].
pub(super) fn contest(test: &str, argument: &str, processes: usize) -> usize {
    let mut children: Vec<_> = (0..processes).map(|_| Contender::start(test, argument)).collect();
    // All are connected before the first is let go.
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

/// What the parent has for this child, or `None` in any other run of the test.
pub(super) fn contender() -> Option<String> {
    std::env::var(CHILD).ok()
}

/// The child's part: `claims` claims of one key, all at once, when the parent says so.
pub(super) async fn contend<S: Store>(store: Arc<S>, id: RecordId, claims: usize) {
    // A connection and its scripts are there before the start.
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
    // A session that is dropped gives the key back, so they are kept until every process has been told.
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

    /// The rest of the next line that begins so.
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
