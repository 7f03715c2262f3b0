//! Explores every history of an operation, within the bounds of the policy.
//!
//! The model has no copy of the client's decisions. Its state is the *history* of one operation:
//! the fate of each request. A server and a network decide that, and do whatever their protocols
//! allow. Each step replays the history through the client's own code ([`replay`]). Then the result
//! for the caller is compared with the acts of the server.
//!
//! The page about it is `guide/proof_client.md`. `stories` refutes broken designs ([`Design`]),
//! which proves that each property can fail.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed, which is its business")]

mod replay;
mod scenario;
mod seen;
mod server;
mod stories;

use std::collections::BTreeMap;
use std::sync::Mutex;

use stateright::{Checker as _, Model as _, Property};

use self::replay::replay;
use self::scenario::{Api, Ask, Limits, Scenario, Word};
use self::seen::{Decided, Phase, Seen};
use self::server::{Acts, Fate};
use crate::policy::StopReason;

/// The client to explore: this crate's, or one with a mistake that other clients have made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Design {
    Ours,
    /// A key is a licence, even if the API is not known to honour it.
    KeyIsLicence,
    /// A connection that is lost counts as "not sent".
    LostIsNotSent,
    /// A timeout before the body was asked for counts as "not sent", over HTTP/2 too.
    HeadIsNothing,
    /// Refused streams are repeated without a limit.
    FreeWithoutEnd,
    /// Each attempt has a key of its own.
    KeyPerAttempt,
    /// Only the last attempt decides whether something may have been processed.
    ForgetsEarlierAttempts,
    /// A 409 counts as a success.
    ConflictIsDone,
    /// A 301 turns a POST into a GET, as in browsers.
    MovedPostIsGet,
    /// After every 401 the request is sent again with a fresh token.
    RefusalIsNothing,
}

/// One step of a history.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
enum Step {
    /// The response to another call shows that the API honours keys.
    ApiShows,
    /// The API stops honouring keys, and the response to another call shows that.
    ApiStops,
    /// Calls of others fail until the circuit opens.
    OthersFail,
    /// The wait is over.
    Begin,
    /// The wait is over, and a busy machine has woken the task late.
    BeginLate,
    /// A request goes out: the first of an attempt, or that of a redirect.
    Sent {
        fate: Fate,
        acts: bool,
        /// As [`ApiStops`](Self::ApiStops), before the response arrives.
        stops_meanwhile: bool,
    },
}

impl Step {
    fn stops(self) -> bool {
        matches!(self, Self::ApiStops | Self::Sent { stops_meanwhile: true, .. })
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct State {
    scenario: Scenario,
    history: Vec<Step>,
    /// Derived from the scenario and the history.
    seen: Seen,
}

struct Model {
    design: Design,
    scenarios: Vec<Scenario>,
    promises: Vec<Promise>,
    /// How often each kind of transition was made.
    kinds: Mutex<BTreeMap<String, u64>>,
}

impl Model {
    fn new(design: Design, scenarios: Vec<Scenario>, promises: &[Promise]) -> Self {
        Self { design, scenarios, promises: promises.to_vec(), kinds: Mutex::default() }
    }

    fn state(&self, scenario: Scenario, history: Vec<Step>) -> State {
        let seen = replay(self, scenario, &history);
        State { scenario, history, seen }
    }

    fn count(&self, step: Step, decided: Decided) {
        let step = match step {
            Step::Sent { stops_meanwhile: true, .. } => "step: ApiStopsMeanwhile".to_owned(),
            Step::Sent { fate, acts, .. } => format!("step: {fate:?}{}", if acts { ", acts" } else { "" }),
            other => format!("step: {other:?}"),
        };
        let decided = match decided {
            Decided::Retry { is_free: true, .. } => "free repeat".to_owned(),
            Decided::Retry { .. } => "retry".to_owned(),
            Decided::Nothing | Decided::Hop | Decided::Refused => format!("{decided:?}").to_lowercase(),
            Decided::Stop(reason) => format!("stop {reason:?}"),
            Decided::Denied(reason) => format!("held back {reason:?}"),
        };
        let mut kinds = self.kinds.lock().unwrap();
        for kind in [step, format!("decision: {decided}")] {
            *kinds.entry(kind).or_default() += 1;
        }
    }
}

impl stateright::Model for Model {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        self.scenarios.iter().map(|scenario| self.state(*scenario, Vec::new())).collect()
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        match state.seen.phase {
            Phase::Waiting => between_attempts(state, steps),
            Phase::Sending => in_an_attempt(state, steps),
            Phase::Ended => {}
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let history = state.history.iter().copied().chain([step]).collect();
        let next = self.state(state.scenario, history);
        self.count(step, next.seen.decided);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        self.promises.iter().map(|(name, holds)| Property::always(name, *holds)).collect()
    }

    fn within_boundary(&self, state: &State) -> bool {
        // This crate's client ends by itself; a broken one may not.
        state.seen.sends <= 7
    }
}

fn between_attempts(State { scenario, history, seen }: &State, steps: &mut Vec<Step>) {
    let is_new = |step| !history.contains(&step);
    let honours = !matches!(scenario.api, Api::Ignores) && !history.iter().any(|step| step.stops());
    if scenario.word == Word::Api && honours && is_new(Step::ApiShows) {
        steps.push(Step::ApiShows);
    }
    if scenario.api == Api::Stops && honours {
        steps.push(Step::ApiStops);
    }
    if scenario.limits == Limits::Breaker && is_new(Step::OthersFail) {
        steps.push(Step::OthersFail);
    }
    steps.push(Step::Begin);
    if seen.waited && seen.sends == 1 {
        steps.push(Step::BeginLate);
    }
}

fn in_an_attempt(state: &State, steps: &mut Vec<Step>) {
    let State { scenario, history, seen } = state;
    let may_stop = scenario.api == Api::Stops && !history.iter().any(|step| step.stops());
    let is_harmless = scenario.is_read() || seen.is_result || seen.is_elsewhere;
    for fate in Fate::ALL.iter().copied().filter(|fate| is_possible(*fate, state)) {
        let acts = match fate.may_act(*scenario) {
            // The server has nothing left to do.
            _ if is_harmless || seen.is_known => &[false][..],
            Acts::Never => &[false],
            Acts::Always => &[true],
            Acts::Perhaps => &[false, true],
        };
        for stops_meanwhile in if may_stop { &[false, true][..] } else { &[false] } {
            steps.extend(acts.iter().map(|acts| Step::Sent { fate, acts: *acts, stops_meanwhile: *stops_meanwhile }));
        }
    }
}

/// Returns whether the next request can meet this fate.
fn is_possible(fate: Fate, State { scenario, history, seen }: &State) -> bool {
    use Fate::*;
    let honours = !matches!(scenario.api, Api::Ignores) && !history.iter().any(|step| step.stops());
    let is_read = scenario.is_read() || seen.is_result || seen.is_elsewhere;
    let rare =
        history.iter().filter(|step| matches!(step, Step::Sent { fate, .. } if !fate.is_common(*scenario))).count();
    if !fate.is_common(*scenario) && rare >= scenario.rare_fates() {
        return false;
    }
    match fate {
        BadCertificate => scenario.tls,
        TokenRefused | Unauthorized => scenario.has_token() && !seen.is_elsewhere,
        DeadlinePassed => scenario.limits == Limits::TellsDeadline,
        Moved | Temporary => !seen.is_result && !seen.is_elsewhere && seen.hops == 0 && !seen.is_known,
        SeeOther => !seen.is_result && !seen.is_elsewhere && !seen.is_known,
        SeeElsewhere | TemporaryAway => !is_read && seen.hops == 0 && !seen.is_known,
        TemporaryBack => seen.is_moved,
        NoConnection | Refused | TimedOut | Lost | Invalid | Unavailable | ThrottledLater => true,
        Done => !seen.is_known,
        // A read needs no more fates.
        _ if is_read => false,
        Stored | OutcomeUnknown => honours && seen.is_known,
        StoredError => honours,
        // From an API without keys it is a conflict of its own.
        StillRunning => seen.is_known || !honours,
        Released => honours && !seen.is_known,
        Mismatch | Conflict => !seen.is_known,
        _ => true,
    }
}

/// The name of a property, and its check in a state.
type Promise = (&'static str, fn(&Model, &State) -> bool);

/// The properties of every state. The page lists the same names.
const PROMISES: [Promise; 15] = [
    ("without trust or without a key, nothing is carried out twice", |_, State { scenario, seen, .. }| {
        !(scenario.has_effects() && scenario.word != Word::User && seen.executions > 1)
    }),
    ("a server that honours keys carries out nothing twice", |_, State { scenario, seen, .. }| {
        !(scenario.has_effects() && scenario.api != Api::Ignores && seen.executions > 1)
    }),
    ("`may_have_been_processed() == false` means that nothing was done", |_, State { seen, .. }| {
        seen.end.is_none_or(|end| end.may_have_been_processed || seen.executions == 0)
    }),
    ("an error that says \"not processed\" is right", |_, State { seen, .. }| {
        seen.end.is_none_or(|end| !end.says_not_processed || seen.executions == 0)
    }),
    ("the error line and the method say the same", |_, State { seen, .. }| {
        seen.end.is_none_or(|end| end.is_ok || end.says_not_processed != end.may_have_been_processed)
    }),
    ("`Ok` means that it was done", |_, State { scenario, seen, .. }| {
        scenario.is_read() || seen.end.is_none_or(|end| !end.is_ok || seen.executions > 0)
    }),
    ("at most `max_attempts` attempts and two free repeats", |_, State { scenario, seen, .. }| {
        seen.free <= scenario.max_free_repeats() && seen.sends <= scenario.max_attempts() + seen.free + seen.renewed
    }),
    ("at most one repeat with a fresh token", |_, State { seen, .. }| seen.renewed <= 1),
    ("with an empty budget, only what is free is repeated", |_, State { scenario, seen, .. }| {
        scenario.limits != Limits::EmptyBudget || seen.sends <= 1 + seen.free + seen.renewed + seen.local
    }),
    ("nothing is sent after the server's last word", |_, State { seen, .. }| !seen.broken.after_final),
    ("nothing is sent before the time that the server has named", |_, State { seen, .. }| !seen.broken.early),
    ("nothing is sent after the deadline", |_, State { seen, .. }| !seen.broken.late),
    ("nothing is sent through an open circuit", |_, State { seen, .. }| !seen.broken.through_open_circuit),
    ("every attempt carries the same key", |_, State { seen, .. }| !seen.broken.key_changed),
    ("the key goes to no other origin, and not with the GET of a result", |_, State { seen, .. }| {
        !seen.broken.key_leaked
    }),
];

/// Every reason for an end but `UploadTooSlow` and `ResponseTooLarge`, since no body or head here is
/// long, `Nested`, since no operation here is inside another, and `Confirmed`, since nobody here can
/// be asked. The test fails if no scenario reaches one of them.
const REASONS: [StopReason; 13] = [
    StopReason::Done,
    StopReason::Replayed,
    StopReason::ServerSaidStop,
    StopReason::OutcomeUnknown,
    StopReason::Permanent,
    StopReason::NotRepeatable,
    StopReason::KeyNotTrusted,
    StopReason::BodyNotReplayable,
    StopReason::AttemptsExhausted,
    StopReason::RetryAfterTooLong,
    StopReason::DeadlineExceeded,
    StopReason::CircuitOpen,
    StopReason::BudgetExhausted,
];

#[test]
fn every_course_keeps_the_promises() {
    let scenarios = Scenario::all();
    let checker = Model::new(Design::Ours, scenarios.clone(), &PROMISES).checker().threads(2).spawn_bfs().join();
    let kinds = checker.model().kinds.lock().unwrap().clone();
    let states = checker.unique_state_count();
    println!("{states} states of {} scenarios, {} steps at most", scenarios.len(), checker.max_depth() - 1);
    for (kind, times) in &kinds {
        println!("{times:>8}  {kind}");
    }
    if let Some(promise) = PROMISES.iter().find(|(name, _)| checker.discovery(name).is_some()) {
        let story = stories::refute(Design::Ours, *promise, scenarios.clone());
        panic!("broken: {}\n{}", promise.0, story.unwrap_or_default());
    }
    let has = |kind: &str| assert!(kinds.contains_key(kind), "never made: {kind}");
    for fate in Fate::ALL {
        let acts = kinds.contains_key(&format!("step: {fate:?}, acts"));
        assert!(acts || kinds.contains_key(&format!("step: {fate:?}")), "never met: {fate:?}");
    }
    for step in ["ApiShows", "ApiStops", "ApiStopsMeanwhile", "OthersFail", "Begin", "BeginLate"] {
        has(&format!("step: {step}"));
    }
    for reason in REASONS {
        has(&format!("decision: stop {reason:?}"));
    }
    for decision in ["hop", "retry", "free repeat", "held back DeadlineExceeded", "held back CircuitOpen"] {
        has(&format!("decision: {decision}"));
    }
    has("decision: held back KeyNotTrusted");
    assert!(states >= 50_000, "{states} states");
}

/// A control: only the licence keeps a POST from being doubled.
#[test]
fn falsely_declared_keys_double_the_operation() {
    let wrongly = Scenario::new(Ask::PostMinted, Word::User, Api::Ignores);
    let once: Promise = ("nothing is carried out twice", |_, state| state.seen.executions < 2);
    let story = stories::refute(Design::Ours, once, vec![wrongly]).unwrap();
    assert!(story.ends_with("The server has carried out the operation twice.\n"), "{story}");
}
