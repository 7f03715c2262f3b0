//! Random steps of callers: mostly about existing claims, now and then about others.

use std::fmt;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use steadfast_testing::{ModelClaim, ModelEnd};

/// Maximum number of steps of a sequence; half as many on average.
const MOST: usize = 400;

/// The life of one store.
#[derive(Clone, Debug)]
pub(super) struct Sequence {
    /// Maximum number of records, for a store that has a limit.
    pub(super) bound: usize,
    pub(super) steps: Vec<Step>,
}

impl Sequence {
    pub(super) fn room(&self) -> String {
        if self.bound == usize::MAX { "without a bound".to_owned() } else { format!("with room for {}", self.bound) }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Call {
        /// 0, 1 or 2.
        caller: usize,
        call: Call,
        /// The caller does not get the reply, and repeats the call.
        lost: bool,
    },
    /// This number of milliseconds passes.
    Pass(u64),
    Restart,
}

/// A step that names its claim by a position in the sequence.
#[derive(Clone, Copy, Debug)]
enum Plan {
    Ask { caller: usize, ask: Ask, lost: bool },
    Pass(u64),
    Restart,
}

#[derive(Clone, Copy, Debug)]
enum Ask {
    Claim { of: Of, request: u8, lease: u64, retention: u64, take_over: bool },
    Renew { of: Of, lease: u64 },
    Finish { of: Of, end: ModelEnd },
    Look { key: u8 },
    Sweep,
}

/// The claim that a call concerns.
#[derive(Clone, Copy, Debug)]
enum Of {
    /// A new claim.
    New { key: u8 },
    /// This caller's last claim; with `elsewhere`, its token on the other key.
    Last { elsewhere: bool },
    /// The claim of any caller this number of claims ago.
    Earlier { ago: usize, elsewhere: bool },
}

/// A call, for both the model and the store.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    Claim(ModelClaim),
    Renew { id: u8, token: u16, lease: u64 },
    Finish { id: u8, token: u16, end: ModelEnd },
    Look { id: u8 },
    Sweep,
}

pub(super) fn sequences() -> impl Strategy<Value = Sequence> {
    // The store in memory may notice an expired record late, by an eighth of the retention, and be
    // full until then. With bounded stores, that is less than the shortest time that passes.
    let bounded = (select(vec![1, 2, 4]), vec(plan(210_000), 1..=MOST));
    prop_oneof![(Just(usize::MAX), vec(plan(900_000), 1..=MOST)), bounded].prop_map(|(bound, plans)| {
        let mut names = Names::default();
        Sequence { bound, steps: plans.into_iter().map(|plan| names.step(plan)).collect() }
    })
}

/// Retentions are zero, a minute, or `long` milliseconds.
fn plan(long: u64) -> impl Strategy<Value = Plan> {
    let ask = (0..3_usize, ask(long), prop::bool::weighted(0.1));
    prop_oneof![
        40 => ask.prop_map(|(caller, ask, lost)| Plan::Ask { caller, ask, lost }),
        // Leases lapse; then tombstones and retentions end. All times are multiples of half a
        // minute, so the duration of the test itself makes no difference.
        6 => select(vec![30_000, 90_000, 720_000]).prop_map(Plan::Pass),
        1 => Just(Plan::Restart),
    ]
}

fn ask(long: u64) -> impl Strategy<Value = Ask> {
    let claim = (of(6, 2, 2), request(), lease(), retention(long), any::<bool>());
    prop_oneof![
        4 => key().prop_map(|key| Ask::Look { key }),
        1 => Just(Ask::Sweep),
        16 => claim.prop_map(|(of, request, lease, retention, take_over)| {
            Ask::Claim { of, request, lease, retention, take_over }
        }),
        4 => (of(1, 7, 3), lease()).prop_map(|(of, lease)| Ask::Renew { of, lease }),
        14 => (of(1, 7, 3), end(long)).prop_map(|(of, end)| Ask::Finish { of, end }),
    ]
}

fn of(new: u32, last: u32, earlier: u32) -> impl Strategy<Value = Of> {
    let elsewhere = || prop::bool::weighted(0.05);
    prop_oneof![
        new => key().prop_map(|key| Of::New { key }),
        last => elsewhere().prop_map(|elsewhere| Of::Last { elsewhere }),
        earlier => (0..8_usize, elsewhere()).prop_map(|(ago, elsewhere)| Of::Earlier { ago, elsewhere }),
    ]
}

fn end(long: u64) -> impl Strategy<Value = ModelEnd> {
    let completed =
        (1..4_u8, retention(long)).prop_map(|(answer, retention)| ModelEnd::Completed { answer, retention });
    prop_oneof![completed, Just(ModelEnd::Released), Just(ModelEnd::Unknown), Just(ModelEnd::Cancelled)]
}

fn key() -> impl Strategy<Value = u8> {
    1..=2_u8
}

fn request() -> impl Strategy<Value = u8> {
    select(vec![7, 7, 7, 8])
}

fn lease() -> impl Strategy<Value = u64> {
    select(vec![60_000, 60_000, 600_000, 600_000, 600_000, 0])
}

fn retention(long: u64) -> impl Strategy<Value = u64> {
    select(vec![long, long, long, 60_000, 60_000, 0])
}

/// The claims so far, in order.
#[derive(Default)]
struct Names(Vec<(usize, u8)>);

impl Names {
    fn step(&mut self, plan: Plan) -> Step {
        match plan {
            Plan::Ask { caller, ask, lost } => Step::Call { caller, call: self.call(caller, ask), lost },
            Plan::Pass(time) => Step::Pass(time),
            Plan::Restart => Step::Restart,
        }
    }

    /// Returns the call that a caller means.
    fn call(&mut self, caller: usize, ask: Ask) -> Call {
        match ask {
            Ask::Claim { of, request, lease, retention, take_over } => {
                let (id, token) = self.find(caller, of);
                Call::Claim(ModelClaim { id, token, request, lease, retention, take_over })
            }
            Ask::Renew { of, lease } => {
                let (id, token) = self.find(caller, of);
                Call::Renew { id, token, lease }
            }
            Ask::Finish { of, end } => {
                let (id, token) = self.find(caller, of);
                Call::Finish { id, token, end }
            }
            Ask::Look { key } => Call::Look { id: key },
            Ask::Sweep => Call::Sweep,
        }
    }

    /// Returns the key and the token of a claim. A missing claim becomes a new one.
    fn find(&mut self, caller: usize, of: Of) -> (u8, u16) {
        let (place, elsewhere) = match of {
            Of::New { .. } => (None, false),
            Of::Last { elsewhere } => (self.0.iter().rposition(|(by, _)| *by == caller), elsewhere),
            Of::Earlier { ago, elsewhere } => (self.0.len().checked_sub(ago + 1), elsewhere),
        };
        let place = place.unwrap_or_else(|| {
            self.0.push((caller, if let Of::New { key } = of { key } else { 1 }));
            self.0.len() - 1
        });
        let key = self.0[place].1;
        (if elsewhere { 3 - key } else { key }, u16::try_from(place).unwrap() + 1)
    }
}

impl Call {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Claim(ModelClaim { take_over: false, .. }) => "claim",
            Self::Claim(_) => "claim, taking over",
            Self::Renew { .. } => "renew",
            Self::Finish { end: ModelEnd::Completed { .. }, .. } => "finish as completed",
            Self::Finish { end: ModelEnd::Released, .. } => "finish as released",
            Self::Finish { end: ModelEnd::Unknown, .. } => "finish as unknown",
            Self::Finish { end: ModelEnd::Cancelled, .. } => "finish as cancelled",
            Self::Look { .. } => "look",
            Self::Sweep => "sweep",
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Claim(ModelClaim { id, token, request, lease, retention, take_over }) => {
                let allow_takeover = if take_over { ", taking over" } else { "" };
                write!(f, "claims key {id} under token {token} for request {request}{allow_takeover}")?;
                write!(f, " (lease {} s, retention {} s)", lease / 1000, retention / 1000)
            }
            Self::Renew { id, token, lease } => {
                write!(f, "renews token {token}'s claim of key {id} for {} s", lease / 1000)
            }
            Self::Finish { id, token, end } => {
                write!(f, "finishes token {token}'s claim of key {id} as ")?;
                match end {
                    ModelEnd::Completed { answer, retention } => {
                        write!(f, "completed with answer {answer} (retention {} s)", retention / 1000)
                    }
                    ModelEnd::Released => f.write_str("released"),
                    ModelEnd::Unknown => f.write_str("unknown"),
                    ModelEnd::Cancelled => f.write_str("cancelled"),
                }
            }
            Self::Look { id } => write!(f, "looks at key {id}"),
            Self::Sweep => f.write_str("sweeps"),
        }
    }
}
