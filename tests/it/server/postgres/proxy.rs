//! A proxy to the database: it can cut connections, hold back replies, and record requests.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// The message by which sqlx's pool tests a connection: a bare Sync.
const PING: &[u8] = b"S\0\0\0\x04";

pub(crate) struct Proxy {
    port: u16,
    way: Arc<Way>,
    task: JoinHandle<()>,
}

struct Way {
    down: AtomicBool,
    cut: Notify,
    /// Holds back all replies on a connection once its client has sent these words.
    holds: watch::Sender<Option<&'static str>>,
    /// The clients' messages, one entry per wait for a reply.
    sent: Mutex<Vec<Vec<u8>>>,
    commits: watch::Sender<Commits>,
}

/// The treatment of a `COMMIT`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Commits {
    Pass,
    /// Never arrives: its connection is cut first.
    Lost,
    /// Arrives, but its connection is cut instead of a reply.
    Unanswered,
    /// Arrives once commits may pass again, whatever its sender does meanwhile.
    Late,
}

impl Proxy {
    pub(crate) async fn start(database: &PgConnectOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = (database.get_host().to_owned(), database.get_port());
        let way = Arc::new(Way {
            down: AtomicBool::new(false),
            cut: Notify::new(),
            holds: watch::channel(None).0,
            sent: Mutex::default(),
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

    /// Returns the options with this proxy as the server.
    pub(crate) fn options(&self, database: PgConnectOptions) -> PgConnectOptions {
        database.host("127.0.0.1").port(self.port)
    }

    /// Cuts existing connections and refuses new ones, or stops doing so.
    pub(crate) fn set_down(&self, down: bool) {
        self.way.down.store(down, Ordering::SeqCst);
        self.way.cut.notify_waiters();
    }

    /// Sets the treatment of every `COMMIT`.
    pub(crate) fn commits(&self, commits: Commits) {
        self.way.commits.send_replace(commits);
    }

    /// Holds back the reply to any message that contains these words, and all later replies on that
    /// connection.
    pub(crate) fn hold(&self, words: &'static str) {
        self.way.holds.send_replace(Some(words));
    }

    /// Lets all replies through.
    pub(crate) fn let_go(&self) {
        self.way.holds.send_replace(None);
    }

    /// Returns the messages since the last call, without the pool's tests.
    pub(crate) fn sent(&self) -> Vec<Vec<u8>> {
        let sent = std::mem::take(&mut *self.way.sent.lock().unwrap());
        sent.into_iter().filter(|message| message != PING).collect()
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
        let (held, answered) = (AtomicBool::new(false), AtomicBool::new(true));
        let unanswered = AtomicBool::new(false);
        let there = async {
            let mut bytes = vec![0; 64 * 1024];
            let mut commits = self.commits.subscribe();
            while let Ok(length @ 1..) = from.read(&mut bytes).await {
                let sent = &bytes[..length];
                if let Some(words) = *self.holds.borrow() {
                    held.fetch_or(contains(sent, words.as_bytes()), Ordering::SeqCst);
                }
                self.remember(sent, answered.swap(false, Ordering::SeqCst));
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
            let mut holds = self.holds.subscribe();
            while let Ok(length @ 1..) = replies.read(&mut bytes).await {
                if unanswered.load(Ordering::SeqCst) {
                    break;
                }
                if held.load(Ordering::SeqCst) {
                    let _never_dropped = holds.wait_for(Option::is_none).await;
                    held.store(false, Ordering::SeqCst);
                }
                answered.store(true, Ordering::SeqCst);
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

    fn remember(&self, bytes: &[u8], is_new: bool) {
        let mut sent = self.sent.lock().unwrap();
        match sent.last_mut() {
            Some(last) if !is_new => last.extend_from_slice(bytes),
            _ => sent.push(bytes.to_vec()),
        }
    }
}

pub(crate) fn contains(bytes: &[u8], words: &[u8]) -> bool {
    bytes.windows(words.len()).any(|window| window == words)
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
