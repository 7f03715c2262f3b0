//! The bank: it charges, loses a part of its answers, and counts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, Received};

/// The names of the charges that were made.
type Books = Arc<Mutex<HashMap<String, usize>>>;

pub(crate) struct Bank {
    server: FaultServer,
    ignores_keys: bool,
}

impl Bank {
    pub(crate) async fn open(seed: u64, ignores_keys: bool) -> Self {
        let (chance, books) = (Mutex::new(Rng::with_seed(seed)), Books::default());
        let server = FaultServer::start(move |_, request| match request {
            Some(request) if request.target.starts_with("/books") => look_up(&books, request),
            Some(request) => charge(&books, request, &mut chance.lock().unwrap_or_else(PoisonError::into_inner)),
            None => FaultStep::ok(),
        })
        .await;
        let server = if ignores_keys { server.ignoring_keys() } else { server };
        Self { server, ignores_keys }
    }

    pub(crate) fn url(&self) -> String {
        self.server.url("")
    }

    /// Returns how many charges were made so far.
    pub(crate) fn charged(&self) -> usize {
        self.server.executions_by_body().len()
    }

    /// Returns how many charges were made once, and how many more often.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let counts = self.server.executions_by_body();
        let charges = || counts.iter().filter(|(body, _)| body.starts_with(b"charge-"));
        (charges().filter(|(_, count)| **count == 1).count(), charges().filter(|(_, count)| **count > 1).count())
    }

    pub(crate) fn requests(&self) -> usize {
        let received = self.server.received();
        received.iter().filter(|request| request.target == "/charges" || !self.ignores_keys).count()
    }
}

/// Answers with the charge of this name, or with nothing.
fn look_up(books: &Books, request: &Received) -> FaultStep {
    let name = request.target.split_once('=').map(|(_, name)| name.to_owned()).unwrap_or_default();
    let is_there = books.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&name);
    FaultStep::answer(Answer::new(200).body(if is_there { name } else { String::new() }))
}

/// Makes a charge, and answers it in three of four cases.
fn charge(books: &Books, request: &Received, chance: &mut Rng) -> FaultStep {
    let (step, is_charged) = match chance.u8(0..100) {
        0..8 => (FaultStep::close(FaultPoint::AfterExecuting), true),
        8..14 => (FaultStep::reset(FaultPoint::BeforeExecuting), false),
        14..20 => (FaultStep::answer(503), false),
        20..30 => (FaultStep::execute(Answer::new(201).delay(Duration::from_millis(chance.u64(1..50)))), true),
        _ => (FaultStep::execute(201), true),
    };
    if is_charged {
        let name = String::from_utf8_lossy(&request.body).into_owned();
        *books.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
    }
    step
}
