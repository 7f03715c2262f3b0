//! The bank's books: how often each order was charged, and the response under each key.
//!
//! "Not charged twice" is a statement about the server. So the server counts, by the order's number
//! in the body, and independently of keys.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Order;

/// A response as sent over the wire.
#[derive(Clone)]
pub(crate) struct Answer {
    pub(crate) status: &'static str,
    /// Header lines beyond those of every response.
    pub(crate) headers: &'static str,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn error(status: &'static str, headers: &'static str) -> Self {
        Self { status, headers, body: format!("{{\"error\":\"{status}\"}}") }
    }
}

/// The state of a key.
enum Record {
    Running,
    Done(Answer),
}

/// Whether a request may be carried out.
pub(crate) enum Claim {
    /// Yes: the key is free.
    Granted,
    /// No: send this response instead.
    Answered(Answer),
}

pub(crate) struct Bank {
    honours_keys: bool,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    arrivals: HashMap<u32, u32>,
    executions: HashMap<u32, u32>,
    records: HashMap<String, Record>,
}

/// The server's counts.
#[derive(Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) once: u32,
    /// Twice or more.
    pub(crate) twice: u32,
    pub(crate) never: u32,
    pub(crate) requests: u32,
}

impl Bank {
    pub(crate) fn new(honours_keys: bool) -> Self {
        Self { honours_keys, books: Mutex::default() }
    }

    /// Counts a request for this order. The first is number 1.
    pub(crate) fn arrived(&self, order: Order) -> u32 {
        let mut books = self.books();
        let arrivals = books.arrivals.entry(order.order).or_default();
        *arrivals += 1;
        *arrivals
    }

    /// Checks whether the request may be carried out. A granted claim must be
    /// [executed](Self::execute).
    pub(crate) fn claim(&self, key: Option<&str>) -> Claim {
        let Some(key) = key.filter(|_| self.honours_keys) else { return Claim::Granted };
        let mut books = self.books();
        match books.records.get(key) {
            Some(Record::Done(answer)) => {
                Claim::Answered(Answer { headers: "idempotent-replayed: true\r\n", ..answer.clone() })
            }
            // The first request under this key is still in progress; its response comes later.
            Some(Record::Running) => Claim::Answered(Answer::error("409 Conflict", "retry-after: 1\r\n")),
            None => {
                books.records.insert(key.to_owned(), Record::Running);
                Claim::Granted
            }
        }
    }

    /// Charges, and stores the response under the key in the same step.
    pub(crate) fn execute(&self, order: Order, key: Option<&str>) -> Answer {
        let Order { order, amount } = order;
        let mut books = self.books();
        let executions = books.executions.entry(order).or_default();
        *executions += 1;
        let body = format!("{{\"id\":\"ch_{order}_{executions}\",\"order\":{order},\"amount\":{amount}}}");
        let answer = Answer { status: "201 Created", headers: "", body };
        if let Some(key) = key.filter(|_| self.honours_keys) {
            books.records.insert(key.to_owned(), Record::Done(answer.clone()));
        }
        answer
    }

    pub(crate) fn tally(&self, charges: u32) -> Tally {
        let books = self.books();
        let mut tally = Tally { once: 0, twice: 0, never: 0, requests: books.arrivals.values().sum() };
        for order in Order::all(charges) {
            let counter = match books.executions.get(&order.order).copied().unwrap_or_default() {
                0 => &mut tally.never,
                1 => &mut tally.once,
                _ => &mut tally.twice,
            };
            *counter += 1;
        }
        tally
    }

    /// Nothing panics while it holds the lock, so poisoned books are still correct.
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
