//! What the five parts share: the faults, the table of naive against ours, and the verdict.
//!
//! Every row is one operation of a caller, twice: with what a team has today, and with steadfast.
//! The server counts what it executed. A row also says what the caller was told. The part fails if
//! either differs from the row's expectation, so that the table cannot become untrue.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

pub use steadfast_testing::fast_retries;
use steadfast_testing::{Answer, FaultPoint, FaultServer, FaultStep, Received};

/// What happens to the first request. Later ones are executed and answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is executed and answered.
    None,
    /// Executed, and the connection is closed before the response.
    Closed,
    /// Executed, and the connection is reset before the response.
    Reset,
    /// Executed, and half of the response's head is sent.
    HalfHead,
    /// Executed, and this status comes back, as from a proxy that did not wait.
    Late(u16),
    /// Not executed: this status, with `Retry-After: 0` if it is a 429.
    Refused(u16),
    /// The connection is reset before anything is read.
    ResetOnAccept,
    /// Every connection is refused.
    NoConnection,
}

impl Fault {
    /// Returns the server's step. `FaultStep::ok` executes a key once.
    pub fn step(self, turn: usize) -> FaultStep {
        match self {
            _ if turn > 0 => FaultStep::ok(),
            Self::None | Self::NoConnection => FaultStep::ok(),
            Self::Closed => FaultStep::close(FaultPoint::AfterExecuting),
            Self::Reset => FaultStep::reset(FaultPoint::AfterExecuting),
            Self::HalfHead => FaultStep::close(FaultPoint::MidHead),
            Self::Late(status) => FaultStep::execute(failure(status)),
            Self::Refused(429) => FaultStep::answer(failure(429).retry_after(0)),
            Self::Refused(status) => FaultStep::answer(failure(status)),
            Self::ResetOnAccept => FaultStep::reset(FaultPoint::OnAccept),
        }
    }

    fn executes(self) -> bool {
        !matches!(self, Self::Refused(_) | Self::ResetOnAccept)
    }
}

fn failure(status: u16) -> Answer {
    // As GitHub writes it, and as Kubernetes does.
    Answer::new(status).body(format!("{{\"message\":\"staged\",\"code\":{status}}}"))
}

/// Starts a server whose first request meets `fault`. `api` executes a request and returns the
/// response, which the fault may keep from the client.
pub async fn serve(fault: Fault, api: impl FnMut(&Received) -> Answer + Send + 'static) -> FaultServer {
    let api = Mutex::new(api);
    let server = FaultServer::start(move |turn, request| {
        let executed = request.filter(|_| turn > 0 || fault.executes());
        let answer = executed.map(|request| api.lock().unwrap_or_else(PoisonError::into_inner)(request));
        match answer {
            Some(answer) if turn > 0 || fault == Fault::None => FaultStep::execute(answer),
            _ => fault.step(turn),
        }
    });
    open(server.await, fault).await
}

/// Refuses connections, if that is the fault.
pub async fn open(server: FaultServer, fault: Fault) -> FaultServer {
    if fault == Fault::NoConnection {
        server.refuse_connections().await;
    }
    server
}

/// How one operation went: what the server counted, and what the caller was told.
#[derive(Debug)]
pub struct Seen {
    executed: Option<usize>,
    told: String,
}

impl Seen {
    /// An operation that has an effect, with the number of its executions.
    pub fn write(executed: usize, told: impl Into<String>) -> Self {
        Self { executed: Some(executed), told: told.into() }
    }

    /// An operation that only reads, which may be repeated freely.
    #[must_use]
    pub fn as_read(self) -> Self {
        Self { executed: None, ..self }
    }

    fn is_twice(&self) -> bool {
        self.executed.is_some_and(|times| times > 1)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.executed {
            None => f.write_str("read")?,
            Some(0) => f.write_str("never")?,
            Some(1) => f.write_str("once")?,
            Some(2) => f.write_str("twice")?,
            Some(times) => write!(f, "{times} times")?,
        }
        write!(f, ", {}", self.told)
    }
}

/// Says what a caller was told: `ok`, `error`, or what an error of steadfast knows.
pub fn told<T, E: Error + 'static>(result: &Result<T, E>) -> String {
    told_by(result, |error| in_chain(error))
}

/// As [`told`], with a function that finds an error of steadfast.
pub fn told_by<T, E>(result: &Result<T, E>, find: impl Fn(&E) -> Option<&steadfast::Error>) -> String {
    let Err(error) = result else { return "ok".to_owned() };
    let told = match find(error) {
        None => "error",
        Some(known) if known.may_have_been_processed() => "error: may have run",
        Some(_) => "error: has not run",
    };
    told.to_owned()
}

fn in_chain<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a steadfast::Error> {
    let mut link = Some(error);
    while let Some(error) = link {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        link = error.source();
    }
    None
}

/// The table of one part.
#[derive(Debug)]
pub struct Table {
    name: &'static str,
    operations: usize,
    naive_twice: usize,
    twice: usize,
    wrong: usize,
}

impl Table {
    /// Prints the heading. `today` is what retries in the naive half.
    pub fn new(name: &'static str, heading: &str, today: &str) -> Self {
        println!("{name}: {heading}\n");
        println!("  {:50} {today:28} with steadfast", "what happens to the first request");
        Self { name, operations: 0, naive_twice: 0, twice: 0, wrong: 0 }
    }

    /// Prints a row, and compares both halves with what is expected of them.
    pub fn row(&mut self, situation: &str, naive: (Seen, &str), ours: (Seen, &str)) {
        println!("  {situation:50} {:28} {}", naive.0.to_string(), ours.0);
        self.operations += 1;
        self.naive_twice += usize::from(naive.0.is_twice());
        self.twice += usize::from(ours.0.is_twice());
        for (half, (seen, expected)) in [("naive", naive), ("steadfast", ours)] {
            if seen.to_string() != expected {
                println!("  WRONG: {half} is expected to be: {expected}");
                self.wrong += 1;
            }
        }
    }

    /// Prints the last line. The exit code is 1 if a row is not as expected, or if an operation was
    /// executed twice with steadfast.
    #[must_use]
    pub fn finish(self) -> ExitCode {
        let Self { name, operations, naive_twice, twice, wrong } = self;
        println!("\n{name}: operations={operations} naive_twice={naive_twice} wrong={wrong} twice={twice}");
        if wrong == 0 && twice == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
