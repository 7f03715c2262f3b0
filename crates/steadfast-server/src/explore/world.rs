//! The explored world: callers in two processes, a network, and the model of a store.

use super::design::Design;
use crate::outcome::OnUnknown;
use crate::store::model::{ModelClaimOutcome, ModelEnd, ModelStore};

pub(super) const CALLERS: usize = 3;
/// The process of each caller.
const PROCESSES: [usize; CALLERS] = [0, 0, 1];

// Time passes in steps. Each duration is just long enough to tell its ends apart.
pub(super) const LEASE: u64 = 2;
/// A reply of this age is too late to run under.
pub(super) const HALF_LEASE: u8 = 1;
pub(super) const RETENTION: u64 = 2;
/// No call arrives later than this after it was sent.
pub(super) const TOMBSTONE: u64 = 2;

/// The requests of the callers, in order: key and request. The same pair again is a repeat.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) asks: [&'static [(u8, u8)]; CALLERS],
    /// The maximum number of faults, which bounds the exploration.
    pub(super) faults: u8,
}

/// One state of the whole world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) script: u8,
    pub(super) store: ModelStore,
    pub(super) callers: [Caller; CALLERS],
    pub(super) is_stopped: [bool; 2],
    /// Calls that their callers have given up. Sorted, so that their order makes no difference.
    pub(super) late: Vec<Late>,
    /// Claims that a process still has to cancel. Sorted.
    pub(super) cancels: Vec<Cancel>,
    /// How many faults may still happen.
    pub(super) faults: u8,
    pub(super) history: History,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Caller {
    pub(super) asked: u8,
    pub(super) phase: Phase,
    /// Whether the client is still there.
    pub(super) listens: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    Idle,
    Claiming(Claiming),
    /// The hook is called before the handler runs.
    FindingOut(Ticket),
    Running(Ticket),
    /// The handler has ended.
    Ending(Ticket, Ending),
}

/// A claim: its key, its token, and its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ticket {
    pub(super) key: u8,
    pub(super) token: u16,
    pub(super) request: u8,
    pub(super) take_over: bool,
}

/// The state of `Claiming` in the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Claiming {
    pub(super) ticket: Ticket,
    /// The claim takes over, so that the hook can find out the outcome.
    pub(super) finds_out: bool,
    pub(super) ran_here: bool,
    pub(super) was_open: bool,
    pub(super) is_open: bool,
    /// Whether the first reply was lost.
    pub(super) is_second_call: bool,
    pub(super) late_claims: u8,
    pub(super) age: u8,
    /// The store's reply, if the call has reached it.
    pub(super) reply: Option<ModelClaimOutcome>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ending {
    pub(super) end: ModelEnd,
    /// A call was made, and its result is not known.
    pub(super) is_again: bool,
    pub(super) is_told: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Late {
    pub(super) ticket: Ticket,
    /// An end; `None` for the claim itself.
    pub(super) end: Option<ModelEnd>,
    /// For how long it may still arrive.
    pub(super) left: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Cancel {
    pub(super) process: usize,
    pub(super) ticket: Ticket,
}

/// The history, as far as a property needs it. Sets of tokens are bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct History {
    /// Tokens whose handlers have acted.
    pub(super) acted: u32,
    /// Tokens whose callers got the response that nothing was executed.
    pub(super) refused: u32,
    /// Tokens with no owner left to end them: the process is gone, or has given up.
    pub(super) abandoned: u32,
    pub(super) took_over: u32,
    /// Tokens whose record is past its retention.
    pub(super) outlived: u32,
    pub(super) keys: [KeyHistory; 2],
    /// A step that must never happen, and did.
    pub(super) wrong: Option<Wrong>,
    /// How many claims reached the store, for a store that names them itself.
    pub(super) arrivals: u16,
}

/// The history of a key since it was last free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct KeyHistory {
    pub(super) executions: u8,
    /// How often a claim that held became unknown.
    pub(super) lapses: u8,
    /// The requests that were executed, as bits.
    pub(super) requests: u8,
    /// The token whose handler acted last.
    pub(super) answer: Option<u16>,
}

/// A step that breaks a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wrong {
    /// A token that does not hold the key has changed it.
    Unfenced,
    /// A completed record was changed inside its retention.
    Changed,
    /// A handler starts although the same process runs the operation that it takes over. Or its
    /// claim was made to take over although the operation ran there.
    TakenOverHere,
    /// A claim was cancelled, and the record of the operation that it took over was lost with it.
    Forgotten,
    /// The client got an untrue response.
    Untrue,
}

impl World {
    pub(super) fn new(script: u8, tombstone: u64, faults: u8) -> Self {
        let caller = Caller { asked: 0, phase: Phase::Idle, listens: true };
        let history = History {
            acted: 0,
            refused: 0,
            abandoned: 0,
            took_over: 0,
            outlived: 0,
            keys: [KeyHistory::default(); 2],
            wrong: None,
            arrivals: 0,
        };
        Self {
            script,
            store: ModelStore::new(tombstone, usize::MAX),
            callers: [caller.clone(), caller.clone(), caller],
            is_stopped: [false; 2],
            late: Vec::new(),
            cancels: Vec::new(),
            faults,
            history,
        }
    }

    /// Returns whether a handler of the key runs in the process, or its end is being written: the
    /// list in `held.rs`.
    pub(super) fn runs_here(&self, process: usize, key: u8) -> bool {
        self.held().any(|(caller, ticket)| process_of(caller) == process && ticket.key == key)
    }

    /// Returns the claims that are held, with their callers.
    pub(super) fn held(&self) -> impl Iterator<Item = (usize, Ticket)> {
        self.callers.iter().enumerate().filter_map(|(caller, Caller { phase, .. })| match phase {
            Phase::FindingOut(ticket) | Phase::Running(ticket) | Phase::Ending(ticket, _) => Some((caller, *ticket)),
            Phase::Idle | Phase::Claiming(_) => None,
        })
    }

    pub(super) fn is_stopped(&self, caller: usize) -> bool {
        self.is_stopped[process_of(caller)]
    }

    pub(super) fn wrong(&mut self, wrong: Wrong) {
        self.history.wrong.get_or_insert(wrong);
    }

    pub(super) fn add_late(&mut self, late: Late) {
        self.late.push(late);
        self.late.sort_unstable_by_key(|late| (late.ticket, late.left, late.end.is_some()));
    }

    pub(super) fn add_cancel(&mut self, cancel: Cancel) {
        self.cancels.push(cancel);
        self.cancels.sort_unstable();
    }
}

pub(super) fn process_of(caller: usize) -> usize {
    PROCESSES[caller]
}

pub(super) fn bit(token: u16) -> u32 {
    1 << token
}

/// Returns the token of a caller's claim.
pub(super) fn token(caller: usize, asked: u8) -> u16 {
    u16::try_from(caller).unwrap_or(0) * 2 + u16::from(asked)
}

/// The settings of a layer, and its design.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) on_unknown: OnUnknown,
    pub(super) reconciles: bool,
    pub(super) design: Design,
    pub(super) scripts: &'static [Script],
}
