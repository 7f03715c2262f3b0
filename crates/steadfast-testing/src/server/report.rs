//! What a [`FaultServer`](super::FaultServer) saw and did, as numbers and as a table.

use std::collections::BTreeMap;
use std::fmt;

use crate::Received;

/// What a server saw and did, from its start until now.
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
    /// The connections that were accepted.
    pub connections: usize,
    /// The requests that arrived whole.
    pub requests: usize,
    /// The executions.
    pub executions: usize,
    /// The operations, told apart by key. A request without a key is an operation of its own.
    pub by_key: Tally,
    /// The operations, told apart by method, target and body.
    pub by_body: Tally,
    /// The bytes that were read, with heads and frames.
    pub bytes_in: u64,
    /// The bytes that were written.
    pub bytes_out: u64,
}

/// How often operations were executed. Only those that arrived whole at least once are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// The operations that were asked for: the sum of the other three.
    pub asked: usize,
    /// Those that were executed once.
    pub once: usize,
    /// Those that were executed twice or more: what must not happen.
    pub twice: usize,
    /// Those that were not executed.
    pub never: usize,
}

impl Tally {
    /// Counts the requests and the executions that have the same name.
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
