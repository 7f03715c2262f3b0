//! A `redis-server` of a test's own, which can be killed, frozen, filled up, and restarted with the
//! data on its disk.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// Returns the address of the shared Redis.
pub(super) fn shared() -> String {
    std::env::var("STEADFAST_REDIS_URL")
        .expect("STEADFAST_REDIS_URL names no Redis: run the tests by ./scripts/with_servers.sh cargo test …")
}

pub(super) struct RedisServer {
    child: Child,
    port: u16,
    folder: TempDir,
    arguments: Vec<String>,
}

impl RedisServer {
    /// Starts a server that writes every acknowledged change to its disk, with more `arguments`.
    /// `{port}` in them is the server's port.
    pub(super) fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        // Another test may take a free port before Redis does.
        for _ in 0..5 {
            let port = free_port();
            if let Some(child) = spawn(port, &folder, &arguments) {
                return Self { child, port, folder, arguments };
            }
        }
        panic!("redis-server does not start");
    }

    pub(super) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Sends SIGKILL: Redis writes nothing more.
    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(super) fn start_again(&mut self) {
        self.child = spawn(self.port, &self.folder, &self.arguments).expect("redis-server does not start again");
    }

    /// Sends SIGSTOP or SIGCONT: the server exists but does not reply.
    pub(super) fn signal(&self, signal: &str) {
        let killed = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
    }

    /// Sends a command that no store sends.
    pub(super) async fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        command(&self.url(), words).await
    }

    pub(super) async fn info_says(&self, line: &str) -> bool {
        let info: String = self.command(&["INFO"]).await;
        info.lines().any(|said| said == line)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

pub(super) async fn command<T: redis::FromRedisValue>(url: &str, words: &[&str]) -> T {
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]).query_async(&mut connection).await.unwrap()
}

pub(super) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Returns `None` if the process ends before it is ready.
fn spawn(port: u16, folder: &TempDir, arguments: &[String]) -> Option<Child> {
    let program = std::env::var("STEADFAST_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
    let mut child = Command::new(program)
        .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir", folder.path().to_str().unwrap()])
        .args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"])
        .args(arguments.iter().map(|argument| argument.replace("{port}", &port.to_string())))
        .stdout(Stdio::piped())
        .spawn()
        .expect("redis-server is missing: ./scripts/with_servers.sh installs it");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    if !lines.any(|line| line.contains("Ready to accept connections")) {
        let _reaped = child.wait();
        return None;
    }
    // A full pipe must not block the server.
    std::thread::spawn(move || lines.for_each(drop));
    Some(child)
}

/// A proxy to Redis that records its requests, can lose replies, and can lead to another server.
#[derive(Clone)]
pub(super) struct Wire {
    pub(super) url: String,
    state: Arc<Mutex<Carried>>,
    cut: Arc<Notify>,
}

struct Carried {
    server: SocketAddr,
    connections: usize,
    requests: Vec<u8>,
    replies_to_lose: usize,
}

impl Wire {
    pub(super) async fn to(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = Carried { server: address(url), connections: 0, requests: Vec::new(), replies_to_lose: 0 };
        let wire = Self {
            url: format!("redis://{}", listener.local_addr().unwrap()),
            state: Arc::new(Mutex::new(state)),
            cut: Arc::default(),
        };
        let (state, cut) = (wire.state.clone(), wire.cut.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = {
                    let mut state = state.lock().unwrap();
                    state.connections += 1;
                    state.server
                };
                let server = TcpStream::connect(server).await.unwrap();
                let (state, cut) = (state.clone(), cut.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = carry(client, server, state) => {}
                        () = cut.notified() => {}
                    }
                });
            }
        });
        wire
    }

    /// Leads new connections to `url`. Existing connections stay.
    pub(super) fn lead_to(&self, url: &str) {
        self.state.lock().unwrap().server = address(url);
    }

    /// Cuts all existing connections.
    pub(super) fn cut(&self) {
        self.cut.notify_waiters();
    }

    /// Returns the number of connections so far.
    pub(super) fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }

    /// Loses the next `times` replies of Redis, each with its connection.
    pub(super) fn lose_replies(&self, times: usize) {
        self.state.lock().unwrap().replies_to_lose = times;
    }

    /// Returns the bytes sent since the last call.
    pub(super) fn requests(&self) -> Vec<u8> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }
}

fn address(url: &str) -> SocketAddr {
    url.trim_start_matches("redis://").rsplit('@').next().unwrap().parse().unwrap()
}

async fn carry(mut client: TcpStream, mut server: TcpStream, state: Arc<Mutex<Carried>>) {
    let (mut request, mut reply) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            read = client.read(&mut request) => {
                let Ok(read @ 1..) = read else { return };
                let request = &request[..read];
                state.lock().unwrap().requests.extend_from_slice(request);
                server.write_all(request).await.unwrap();
            }
            read = server.read(&mut reply) => {
                let Ok(read @ 1..) = read else { return };
                {
                    let mut state = state.lock().unwrap();
                    // The greeting of a new connection does not count.
                    let script = String::from_utf8_lossy(&state.requests).contains("EVALSHA");
                    if state.replies_to_lose > 0 && script {
                        state.replies_to_lose -= 1;
                        return;
                    }
                }
                client.write_all(&reply[..read]).await.unwrap();
            }
        }
    }
}
