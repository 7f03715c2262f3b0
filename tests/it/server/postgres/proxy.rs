//! The way to the database, which can be cut, and on which replies can be held back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

pub(super) struct Proxy {
    port: u16,
    way: Arc<Way>,
    task: JoinHandle<()>,
}

struct Way {
    down: AtomicBool,
    cut: Notify,
    /// From the moment that a client sends a `BEGIN`, no reply comes through while this is set.
    holds_begin: watch::Sender<bool>,
    commits: watch::Sender<Commits>,
}

/// What becomes of a `COMMIT`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Commits {
    Pass,
    /// It never arrives: its connection is cut before.
    Lost,
    /// It arrives, and its connection is cut instead of a reply.
    Unanswered,
    /// It arrives when they may pass again, whatever its sender does meanwhile.
    Late,
}

impl Proxy {
    pub(super) async fn start(database: &PgConnectOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = (database.get_host().to_owned(), database.get_port());
        let way = Arc::new(Way {
            down: AtomicBool::new(false),
            cut: Notify::new(),
            holds_begin: watch::channel(false).0,
            commits: watch::channel(Commits::Pass).0,
        });
        let shared = way.clone();
        let task = tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let (target, way) = (target.clone(), shared.clone());
                tokio::spawn(async move { way.forward(from, target).await });
            }
        });
        Self { port, way, task }
    }

    /// The options, by way of this proxy.
    pub(super) fn options(&self, database: PgConnectOptions) -> PgConnectOptions {
        database.host("127.0.0.1").port(self.port)
    }

    /// Cuts what is connected and refuses what comes; or no longer.
    pub(super) fn set_down(&self, down: bool) {
        self.way.down.store(down, Ordering::SeqCst);
        self.way.cut.notify_waiters();
    }

    /// Says what becomes of every `COMMIT`.
    pub(super) fn commits(&self, commits: Commits) {
        self.way.commits.send_replace(commits);
    }

    /// Holds back the replies to every `BEGIN`, and what comes after it; or no longer.
    pub(super) fn hold_begin(&self, hold: bool) {
        self.way.holds_begin.send_replace(hold);
    }
}

impl Way {
    async fn forward(&self, mut from: TcpStream, target: (String, u16)) {
        let is_cut = self.cut.notified();
        if self.down.load(Ordering::SeqCst) {
            return;
        }
        let Ok(mut to) = TcpStream::connect(target).await else { return };
        let (mut from, mut back) = from.split();
        let (mut replies, mut to) = to.split();
        let (begun, unanswered) = (AtomicBool::new(false), AtomicBool::new(false));
        let there = async {
            let mut bytes = vec![0; 64 * 1024];
            let mut commits = self.commits.subscribe();
            while let Ok(length @ 1..) = from.read(&mut bytes).await {
                let sent = &bytes[..length];
                begun.fetch_or(sent.windows(5).any(|word| word == b"BEGIN"), Ordering::SeqCst);
                if sent.windows(7).any(|word| word == b"COMMIT\0") {
                    let now = *commits.borrow();
                    match now {
                        Commits::Pass => {}
                        Commits::Lost => break,
                        Commits::Unanswered => unanswered.store(true, Ordering::SeqCst),
                        Commits::Late => _ = commits.wait_for(|commits| *commits == Commits::Pass).await,
                    }
                }
                if to.write_all(sent).await.is_err() {
                    break;
                }
            }
        };
        let and_back = async {
            let mut bytes = vec![0; 64 * 1024];
            let mut holds = self.holds_begin.subscribe();
            while let Ok(length @ 1..) = replies.read(&mut bytes).await {
                if unanswered.load(Ordering::SeqCst) {
                    break;
                }
                if begun.load(Ordering::SeqCst) {
                    let _never_dropped = holds.wait_for(|holds| !holds).await;
                }
                if back.write_all(&bytes[..length]).await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            () = is_cut => {}
            () = there => {}
            () = and_back => {}
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
