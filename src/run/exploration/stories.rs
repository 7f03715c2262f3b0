//! Histories as stories, and the broken designs that the exploration must refute.

use stateright::{Checker as _, Model as _};

use super::scenario::{Api, Ask, Limits, Scenario, Word};
use super::seen::{Decided, Phase};
use super::server::{ASKED, MOVED};
use super::{Design, Model, PROMISES, Promise, State, Step};

/// A path as numbered lines of plain English.
fn tell(path: &[State]) -> String {
    let mut lines = Vec::new();
    if let Some(Ask::PostResumed { acted }) = path.first().map(|state| state.scenario.ask) {
        let acted = if acted { "The server has acted on it." } else { "The server has not acted on it." };
        lines.push(format!("An earlier process has sent the request, and its answer was lost. {acted}"));
    }
    for pair in path.windows(2) {
        let [before, after] = pair else { continue };
        lines.extend(line(before, after));
    }
    let Some(last) = path.last() else { return String::new() };
    let done = match last.seen.executions {
        0 => "nothing".to_owned(),
        1 => "the operation once".to_owned(),
        2 => "the operation twice".to_owned(),
        times => format!("the operation {times} times"),
    };
    lines.push(format!("The server has carried out {done}."));
    lines.iter().enumerate().map(|(at, line)| format!("{}. {line}\n", at + 1)).collect()
}

/// What one step has brought about; `None` if there is nothing to tell.
fn line(before: &State, after: &State) -> Option<String> {
    let step = *after.history.last()?;
    let told = match step {
        Step::ApiShows => "The answer to another call shows that the API honours keys.".to_owned(),
        Step::ApiStops => "The API stops honouring keys, and the answer to another call shows it.".to_owned(),
        Step::OthersFail => "Calls of others fail, and the circuit opens.".to_owned(),
        Step::Begin | Step::BeginLate => match after.seen.decided {
            Decided::Denied(_) => "The next attempt is held back.".to_owned(),
            _ => return None,
        },
        Step::Sent { fate, acts, stops_meanwhile } => {
            let request = request(before);
            let acts = if acts { " The server acts on it." } else { "" };
            let stops = if stops_meanwhile {
                " Meanwhile the API stops honouring keys, and another answer shows it."
            } else {
                ""
            };
            let what = fate.story();
            let (first, rest) = what.split_at(1);
            format!("{request} is sent.{acts}{stops} {}{rest}.", first.to_uppercase())
        }
    };
    Some(told + &outcome(after))
}

fn request(State { scenario, seen, .. }: &State) -> String {
    let path = if seen.is_moved { MOVED } else { ASKED };
    let attempt = format!("Attempt {}", seen.sends);
    if seen.is_result {
        return format!("{attempt}: GET of the result");
    }
    let (method, key) = match scenario.ask {
        Ask::Get => ("GET", ""),
        Ask::Put | Ask::PutStream => ("PUT", ""),
        Ask::Post => ("POST", " without a key"),
        _ => ("POST", " with a key"),
    };
    format!("{attempt}: {method} {path}{key}")
}

/// The client's decision, and its message to the caller at the end.
fn outcome(State { seen, .. }: &State) -> String {
    let decided = match seen.decided {
        Decided::Retry { is_free: true, .. } if seen.renewed > 0 => " The client repeats it with a fresh token.",
        Decided::Retry { is_free: true, .. } => " The client repeats it, free of charge.",
        Decided::Retry { .. } => " The client repeats it.",
        Decided::Hop => " The client follows.",
        _ => "",
    };
    let end = match seen.end.filter(|_| seen.phase == Phase::Ended) {
        Some(end) if end.is_ok => " The caller is told `Ok`.",
        Some(end) if end.says_not_processed => " The caller is told \"not processed\".",
        Some(_) => " The caller is told \"may have been processed\".",
        None => "",
    };
    format!("{decided}{end}")
}

/// A broken design, how the promise begins that it breaks, and where.
const BROKEN: [(Design, &str, Scenario); 9] = {
    let keyless = Scenario::new(Ask::Post, Word::Nobody, Api::Ignores);
    let doubting = Scenario::new(Ask::PostMinted, Word::Api, Api::Ignores);
    let trusting = Scenario::new(Ask::PostMinted, Word::User, Api::Honours);
    [
        (Design::KeyIsLicence, "without trust", doubting),
        (Design::LostIsNotSent, "without trust", keyless),
        (Design::HeadIsNothing, "without trust", Scenario { tls: true, ..keyless }),
        (Design::FreeWithoutEnd, "at most", Scenario { limits: Limits::Refusing, ..keyless }),
        (Design::KeyPerAttempt, "a server that honours keys", trusting),
        (Design::ForgetsEarlierAttempts, "`may_have_been_processed()", trusting),
        (Design::ConflictIsDone, "`Ok`", keyless),
        (Design::MovedPostIsGet, "`Ok`", keyless),
        (Design::RefusalIsNothing, "without trust", Scenario { limits: Limits::UnauthorizedActs, ..keyless }),
    ]
};

/// The shortest history that breaks the promise, if there is one.
pub(super) fn refute(design: Design, promise: Promise, scenarios: Vec<Scenario>) -> Option<String> {
    // With one property the checker ends at the first state that breaks it. With several it goes
    // on, and may come back with a longer one.
    let checker = Model::new(design, scenarios, &[promise]).checker().spawn_bfs().join();
    checker.discovery(promise.0).map(|path| tell(&path.into_states()))
}

const PAGE: &str = include_str!("../../guide/proof_client.md");

#[test]
fn broken_designs_are_refuted_as_documented() {
    let blocks = PAGE.split("```text\n").skip(1).filter_map(|rest| rest.split("```").next());
    let mut on_the_page = blocks.filter(|block| block.starts_with("1. "));
    for (design, promise, scenario) in BROKEN {
        let promise = PROMISES.into_iter().find(|(name, _)| name.starts_with(promise)).unwrap();
        let (name, _) = promise;
        let story = refute(design, promise, vec![scenario]);
        let story = story.unwrap_or_else(|| panic!("{design:?} keeps the promise: {name}"));
        println!("{design:?} breaks: {name}\n{story}");
        assert_eq!(on_the_page.next(), Some(story.as_str()), "of {design:?}");
    }
    assert_eq!(on_the_page.next(), None);
}

#[test]
fn page_lists_every_promise() {
    for (name, _) in PROMISES {
        assert!(PAGE.contains(&format!("| {name} |")), "{name}");
    }
}
