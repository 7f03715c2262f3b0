//! An HTTP/2 server whose streams and connections break at random.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::{FAULTS, draw};

#[derive(Default)]
struct State {
    turns: AtomicUsize,
    honours_keys: bool,
    seen: Mutex<HashSet<String>>,
    executions: Mutex<HashMap<Vec<u8>, usize>>,
}

pub(super) struct Server {
    pub(super) address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(honours_keys: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let state = Arc::new(State { honours_keys, ..State::default() });
        let shared = state.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, shared.clone()));
            }
        });
        Self { address, state, task }
    }

    pub(super) fn executions_by_body(&self) -> HashMap<Vec<u8>, usize> {
        self.state.executions.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    // A client that hangs up in the handshake is no fault of the test.
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let mut streams = tokio::task::JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        // One connection in a hundred requests is lost with all its streams.
        if draw(state.turns.load(Ordering::Relaxed), 4, 100) < 1 {
            state.turns.fetch_add(1, Ordering::Relaxed);
            connection.abrupt_shutdown(Reason::INTERNAL_ERROR);
        }
        streams.spawn(answer(request, respond, state.clone()));
    }
}

/// What breaks is the client's to bear: a write that fails has no one to be told.
async fn answer(request: http::Request<RecvStream>, mut respond: SendResponse<Bytes>, state: Arc<State>) {
    let turn = state.turns.fetch_add(1, Ordering::Relaxed);
    // One in a hundred is the loss of a connection, above.
    let fault = if draw(turn, 2, 100) >= FAULTS - 1 { None } else { Some(draw(turn, 3, 9)) };
    if fault == Some(0) {
        return respond.send_reset(Reason::REFUSED_STREAM);
    }
    let (head, mut body) = request.into_parts();
    let mut content = Vec::new();
    while let Some(chunk) = body.data().await {
        let Ok(chunk) = chunk else { return };
        let _released = body.flow_control().release_capacity(chunk.len());
        content.extend_from_slice(&chunk);
    }
    let refusal = match fault {
        Some(1) => Some(503),
        Some(2) => Some(429),
        _ => None,
    };
    if let Some(status) = refusal {
        return reply(&mut respond, status, b"{}", true);
    }
    state.execute(&head, content);
    match fault {
        None => reply(&mut respond, 200, b"{}", true),
        Some(3) => respond.send_reset(Reason::INTERNAL_ERROR),
        Some(4) => respond.send_reset(Reason::CANCEL),
        Some(5) => reply(&mut respond, 500, b"{}", true),
        Some(6) => reply(&mut respond, 504, b"{}", true),
        _ => reply(&mut respond, 200, b"{\"cut\":", false),
    }
}

fn reply(respond: &mut SendResponse<Bytes>, status: u16, body: &'static [u8], whole: bool) {
    let head = http::Response::builder().status(status).body(()).expect("a status makes a response");
    if let Ok(mut stream) = respond.send_response(head, false) {
        let _sent = stream.send_data(Bytes::from_static(body), whole);
        if !whole {
            stream.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}

impl State {
    fn execute(&self, head: &http::request::Parts, body: Vec<u8>) {
        let key = head.headers.get("idempotency-key").and_then(|key| key.to_str().ok()).filter(|_| self.honours_keys);
        let fresh = key.is_none_or(|key| self.seen.lock().unwrap().insert(key.to_owned()));
        if fresh {
            *self.executions.lock().unwrap().entry(body).or_default() += 1;
        }
    }
}
