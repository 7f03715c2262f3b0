//! What a [`FaultServer`] received and executed, as numbers and as a table.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::Ordering;

use super::FaultServer;
use crate::Received;

/// The counts of a server since its start. `Display` prints them as a table.
///
/// ```text
///          asked   once  twice  never
/// by key       3      2      0      1
/// by body      3      2      0      1
/// 5 whole requests over 4 connections, 2 executions; 1021 bytes in, 377 bytes out
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Accepted connections.
    pub connections: usize,
    /// Requests that arrived whole.
    pub requests: usize,
    /// Executions.
    pub executions: usize,
    /// Operations, told apart by key. A request without a key counts as an operation of its own.
    pub by_key: Tally,
    /// Operations, told apart by method, target and body.
    pub by_body: Tally,
    /// Bytes read, including heads and frames.
    pub bytes_in: u64,
    /// Bytes written.
    pub bytes_out: u64,
}

/// How often operations were executed. Counts only operations with at least one whole request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// All operations: the sum of the other three.
    pub asked: usize,
    /// Operations that were executed once.
    pub once: usize,
    /// Operations that were executed twice or more, which must not happen.
    pub twice: usize,
    /// Operations that were not executed.
    pub never: usize,
}

impl Tally {
    /// Groups the requests and the executions by name, and counts them.
    pub(super) fn count<N: Ord>(
        requests: &[Received],
        executions: &[usize],
        name: impl Fn(usize, &Received) -> N,
    ) -> Self {
        let mut executed: BTreeMap<N, usize> = BTreeMap::new();
        for (index, request) in requests.iter().enumerate() {
            executed.entry(name(index, request)).or_default();
        }
        for index in executions {
            if let Some(request) = requests.get(*index) {
                *executed.entry(name(*index, request)).or_default() += 1;
            }
        }
        let mut tally = Self { asked: executed.len(), ..Self::default() };
        for times in executed.into_values() {
            match times {
                0 => tally.never += 1,
                1 => tally.once += 1,
                _ => tally.twice += 1,
            }
        }
        tally
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, requests, executions, bytes_in, bytes_out, .. } = self;
        writeln!(f, "{:8} {:>6} {:>6} {:>6} {:>6}", "", "asked", "once", "twice", "never")?;
        for (name, tally) in [("by key", self.by_key), ("by body", self.by_body)] {
            let Tally { asked, once, twice, never } = tally;
            writeln!(f, "{name:8} {asked:>6} {once:>6} {twice:>6} {never:>6}")?;
        }
        write!(f, "{requests} whole requests over {connections} connections, {executions} executions; ")?;
        write!(f, "{bytes_in} bytes in, {bytes_out} bytes out")
    }
}

impl FaultServer {
    /// Returns every request that arrived whole, in order.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.shared.log().received.clone()
    }

    /// Returns the keys in the order of arrival. `None` stands for a request without a key.
    #[must_use]
    pub fn keys(&self) -> Vec<Option<String>> {
        self.shared.log().received.iter().map(|request| request.key().map(str::to_owned)).collect()
    }

    /// Returns the number of accepted connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.log().connections
    }

    /// Returns the number of executions.
    #[must_use]
    pub fn executions(&self) -> usize {
        self.shared.log().executions.len()
    }

    /// Returns the number of executions for each request body.
    #[must_use]
    pub fn executions_by_body(&self) -> HashMap<Vec<u8>, usize> {
        self.shared.log().count_executions(|request| request.body.clone())
    }

    /// Returns the number of executions for each key. `None` stands for requests without a key.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use steadfast::Client;
    /// use steadfast_testing::{FaultServer, FaultStep};
    ///
    /// let server = FaultServer::play([FaultStep::ok()]).await;
    /// let client = Client::new();
    /// for _ in 0..3 {
    ///     client.post(server.url("/charges")).send().await.unwrap();
    /// }
    /// // Each operation has a key of its own.
    /// assert!(server.executions_by_key().values().all(|executions| *executions == 1));
    /// # }
    /// ```
    #[must_use]
    pub fn executions_by_key(&self) -> HashMap<Option<String>, usize> {
        self.shared.log().count_executions(|request| request.key().map(str::to_owned))
    }

    /// Returns all counts. Their `Display` is a table, made for the message of a failed assertion.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// use steadfast::Client;
    /// use steadfast_testing::{FaultServer, FaultStep};
    ///
    /// let server = FaultServer::play([FaultStep::answer(503), FaultStep::ok()]).await;
    /// Client::new().get(server.url("/charges")).send().await.unwrap();
    /// let report = server.report();
    /// assert_eq!((report.requests, report.executions), (2, 1), "{report}");
    /// # }
    /// ```
    #[must_use]
    pub fn report(&self) -> Report {
        let log = self.shared.log();
        let (received, executions) = (&log.received, &log.executions);
        let by_key = |index: usize, request: &Received| request.key().map_or(Err(index), |key| Ok(key.to_owned()));
        let by_body =
            |_: usize, request: &Received| (request.method.to_string(), request.target.clone(), request.body.clone());
        Report {
            connections: log.connections,
            requests: received.len(),
            executions: executions.len(),
            by_key: Tally::count(received, executions, by_key),
            by_body: Tally::count(received, executions, by_body),
            bytes_in: self.shared.meter.read.load(Ordering::Relaxed),
            bytes_out: self.shared.meter.written.load(Ordering::Relaxed),
        }
    }
}
