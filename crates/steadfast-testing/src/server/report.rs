//! What a [`FaultServer`](super::FaultServer) received and executed, as numbers and as a table.

use std::collections::BTreeMap;
use std::fmt;

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
