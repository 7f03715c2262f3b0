//! The state that the connections of a [`FaultServer`](super::FaultServer) share: its script, its
//! log and its executions.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::act::{Answer, Early, FaultStep, How};
use super::lock;
use super::wire::Meter;
use crate::Received;

type Script = dyn Fn(usize, Option<&Received>) -> FaultStep + Send + Sync;

/// State shared by the connections of a server.
pub(super) struct Shared {
    script: Box<Script>,
    /// The number of the next turn.
    turns: Mutex<usize>,
    pub(super) honours_keys: AtomicBool,
    log: Mutex<Log>,
    pub(super) meter: Arc<Meter>,
    #[cfg(feature = "tls")]
    pub(super) tls: std::sync::OnceLock<super::tls::Identity>,
}

#[derive(Default)]
pub(super) struct Log {
    pub(super) connections: usize,
    pub(super) received: Vec<Received>,
    /// Indexes of the received requests that were executed.
    pub(super) executions: Vec<usize>,
    /// Execution numbers by key.
    executed: HashMap<String, usize>,
}

/// The result of executing a request.
#[derive(Clone, Copy)]
pub(super) struct Execution {
    /// Starts at 1.
    pub(super) number: usize,
    pub(super) replayed: bool,
}

impl Shared {
    pub(super) fn new(script: Box<Script>) -> Self {
        Self {
            script,
            turns: Mutex::new(0),
            honours_keys: AtomicBool::new(true),
            log: Mutex::default(),
            meter: Arc::default(),
            #[cfg(feature = "tls")]
            tls: std::sync::OnceLock::new(),
        }
    }

    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        lock(&self.log)
    }

    /// Counts an accepted connection. Returns the fault if the connection ends right away, which
    /// takes a turn.
    pub(super) fn accepted(&self) -> Option<How> {
        self.log().connections += 1;
        let mut turns = lock(&self.turns);
        match (self.script)(*turns, None).early() {
            Some((Early::OnAccept, how)) => {
                *turns += 1;
                Some(how)
            }
            _ => None,
        }
    }

    /// Takes a turn for a new request. Returns the turn, and the fault if it comes before the
    /// request is whole.
    pub(super) fn begun(&self) -> (usize, Option<(Early, How)>) {
        let turn = {
            let mut turns = lock(&self.turns);
            *turns += 1;
            *turns - 1
        };
        (turn, (self.script)(turn, None).early())
    }

    /// Records a whole request. Returns its index and the step for it.
    pub(super) fn whole(&self, turn: usize, request: &Received) -> (usize, FaultStep) {
        let act = (self.script)(turn, Some(request));
        let mut log = self.log();
        log.received.push(request.clone());
        (log.received.len() - 1, act)
    }

    /// Executes the request at `index`, unless its key was executed before.
    pub(super) fn execute(&self, index: usize) -> Execution {
        let mut log = self.log();
        let honours_keys = self.honours_keys.load(Ordering::Relaxed);
        let key = log.received.get(index).and_then(Received::key).filter(|_| honours_keys).map(str::to_owned);
        if let Some(number) = key.as_ref().and_then(|key| log.executed.get(key)) {
            return Execution { number: *number, replayed: true };
        }
        log.executions.push(index);
        let number = log.executions.len();
        if let Some(key) = key {
            log.executed.insert(key, number);
        }
        Execution { number, replayed: false }
    }
}

impl Log {
    pub(super) fn count_executions<N: Hash + Eq>(&self, name: impl Fn(&Received) -> N) -> HashMap<N, usize> {
        let mut count = HashMap::new();
        for request in self.executions.iter().filter_map(|index| self.received.get(*index)) {
            *count.entry(name(request)).or_default() += 1;
        }
        count
    }
}

impl Execution {
    /// The response to a successful execution.
    pub(super) fn answer(self) -> Answer {
        let answer = Answer::new(200).body(format!("{{\"execution\":{}}}", self.number));
        if self.replayed { answer.header("idempotent-replayed", "true") } else { answer }
    }
}
