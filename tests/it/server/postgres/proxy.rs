//! The way to the database, which can be cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::postgres::PgConnectOptions;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

pub(super) struct Proxy {
    port: u16,
    down: Arc<(AtomicBool, Notify)>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(super) async fn start(database: &PgConnectOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = (database.get_host().to_owned(), database.get_port());
        let down: Arc<(AtomicBool, Notify)> = Arc::default();
        let cut = down.clone();
        let task = tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let (target, cut) = (target.clone(), cut.clone());
                tokio::spawn(async move { forward(from, target, &cut).await });
            }
        });
        Self { port, down, task }
    }

    /// The options, by way of this proxy.
    pub(super) fn options(&self, database: PgConnectOptions) -> PgConnectOptions {
        database.host("127.0.0.1").port(self.port)
    }

    /// Cuts what is connected and refuses what comes; or no longer.
    pub(super) fn set_down(&self, down: bool) {
        self.down.0.store(down, Ordering::SeqCst);
        self.down.1.notify_waiters();
    }
}

async fn forward(mut from: TcpStream, target: (String, u16), cut: &(AtomicBool, Notify)) {
    let is_cut = cut.1.notified();
    if cut.0.load(Ordering::SeqCst) {
        return;
    }
    let Ok(mut to) = TcpStream::connect(target).await else { return };
    tokio::select! {
        () = is_cut => {}
        _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
