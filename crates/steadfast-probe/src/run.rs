//! The steps of a probe: what is sent, and what the answers mean.

use http::StatusCode;
use steadfast::KeyFormat;

use super::answers::{Answered, Marks};
use super::report::{Basis, Concurrent, Finding, Kept, Promise, Report};
use super::sending::{Key, Sender};
use super::{Probe, ProbeError};

/// As much of a refusal is quoted.
const QUOTE: usize = 200;

pub(super) struct ProbeRun<'a> {
    sender: Sender<'a>,
    /// Whether a mark of a replay says something: not if the API puts it on every answer.
    marks_replays: bool,
    /// Whether it marked the plain repeat.
    has_marked: bool,
}

/// What a repeat was answered.
enum Repeat {
    Replayed(Basis),
    /// Another operation's answer.
    Again,
    Refused(StatusCode),
    /// The answers do not say.
    Unclear,
}

impl<'a> ProbeRun<'a> {
    pub(super) fn new(settings: Probe<'a>) -> Result<Self, ProbeError> {
        Ok(Self { sender: Sender::new(settings)?, marks_replays: true, has_marked: false })
    }

    pub(super) async fn run(mut self) -> Result<Report, ProbeError> {
        let (key, first, marks) = self.control().await?;
        let honoured = self.repeat(&key, &first, &marks).await;
        let goes_on = honoured.kept != Kept::No;
        let mut findings = vec![honoured];
        let (mut spelling, mut concurrent, mut mark) = ("not tried".to_owned(), Concurrent::Unknown, None);
        if goes_on {
            spelling = self.spelling(&key, &first, &marks).await;
            findings.push(self.other_payload(&key, &first, &marks).await?);
            findings.push(self.malformed(&marks).await?);
            let (finding, what, word) = self.at_the_same_time(&marks).await?;
            (concurrent, mark) = (what, word);
            findings.push(finding);
            findings.push(self.lost_answer(&marks).await?);
        }
        let Sender { form, sent, created, .. } = self.sender;
        let report = Report {
            target: self.sender.target(),
            header: self.sender.settings.header.to_string(),
            findings,
            concurrent,
            quoted_form_needed: form == KeyFormat::Quoted,
            spelling,
            in_progress_code: mark,
            answers_tell_operations_apart: marks.tell(),
            requests_sent: sent,
            operations_at_most: created,
            builder_line: None,
            advice: String::new(),
            unknown: unknown(),
            policy: None,
        };
        Ok(report.conclude())
    }

    /// Two operations that surely are two: what tells them apart is what everything else is judged by.
    async fn control(&mut self) -> Result<(Key, Answered, Marks), ProbeError> {
        self.step("two operations, each with a key of its own");
        let mut key = self.sender.mint()?;
        let mut first = self.sender.ask(&key).await.map_err(ProbeError::Unreachable)?;
        if [StatusCode::BAD_REQUEST, StatusCode::UNPROCESSABLE_ENTITY].contains(&first.status) {
            // Some take a key only as the structured field of the IETF's draft.
            self.sender.form = KeyFormat::Quoted;
            key = self.sender.mint()?;
            first = self.sender.ask(&key).await.map_err(ProbeError::Unreachable)?;
        }
        if !first.is_success() {
            let body = String::from_utf8_lossy(&first.body).chars().take(QUOTE).collect();
            return Err(ProbeError::Refused { status: first.status.as_u16(), body });
        }
        let other = self.sender.mint()?;
        let second = self.sender.ask(&other).await.map_err(ProbeError::Unreachable)?;
        if !second.is_success() {
            return Err(ProbeError::NotUnique { status: second.status.as_u16() });
        }
        self.marks_replays = first.replay_line().is_none() && second.replay_line().is_none();
        let marks = Marks::between(&first, &second);
        Ok((key, first, marks))
    }

    async fn repeat(&mut self, key: &Key, first: &Answered, marks: &Marks) -> Finding {
        self.step("the same request under the same key");
        let again = self.sender.ask(key).await;
        let observed = format!("{}, then {}", marks.describe(first), describe(marks, &again));
        let (kept, basis, meaning) = match self.judge(marks, first, &again) {
            Repeat::Replayed(Basis::Observed) => {
                self.has_marked = true;
                (Kept::Yes, Basis::Observed, format!("the API marks the second answer as a replay{}", line(&again)))
            }
            Repeat::Replayed(basis) => (Kept::Yes, basis, "the second answer is about the first operation".to_owned()),
            Repeat::Again => (Kept::No, Basis::Inferred, "the second answer is about another operation".to_owned()),
            Repeat::Refused(_) => {
                (Kept::Unknown, Basis::Nothing, "it is not run twice, but its answer cannot be had again".to_owned())
            }
            Repeat::Unclear => (Kept::Unknown, Basis::Nothing, UNCLEAR.to_owned()),
        };
        Finding { promise: Promise::Honoured, kept, basis, observed, meaning }
    }

    /// Whether the bare and the quoted key are one.
    async fn spelling(&mut self, key: &Key, first: &Answered, marks: &Marks) -> String {
        self.step("the key in its other spelling");
        let (own, other) = match self.sender.form {
            KeyFormat::Quoted => ("quoted", KeyFormat::Bare),
            _ => ("bare", KeyFormat::Quoted),
        };
        let form = std::mem::replace(&mut self.sender.form, other);
        let answer = self.sender.ask(key).await;
        self.sender.form = form;
        match self.judge(marks, first, &answer) {
            Repeat::Replayed(_) => "bare and quoted are the same key".to_owned(),
            Repeat::Again => format!("bare and quoted are two keys: never change the spelling ({own} here)"),
            Repeat::Refused(status) => {
                format!("a key is taken {own}; in the other spelling it is refused, {}", status.as_u16())
            }
            Repeat::Unclear => format!("{own}; the other was not told apart"),
        }
    }

    async fn other_payload(&mut self, key: &Key, first: &Answered, marks: &Marks) -> Result<Finding, ProbeError> {
        let promise = Promise::PayloadChecked;
        self.step("another payload under the key");
        let Some(other) = self.sender.settings.sample.other.clone() else {
            let (observed, meaning) = ("not tried".to_owned(), "give SampleRequest::other_payload".to_owned());
            return Ok(Finding { promise, kept: Kept::Unknown, basis: Basis::Nothing, observed, meaning });
        };
        let answer = self.sender.send(key, other.clone()).await;
        let mut observed = format!("another payload: {}", describe(marks, &answer));
        let (kept, basis, meaning) = match self.judge(marks, first, &answer) {
            Repeat::Refused(_) => {
                // Or it would be refused under any key.
                let own = self.sender.mint()?;
                let alone = self.sender.send(&own, other).await;
                observed.push_str(&format!("; under a key of its own: {}", describe(marks, &alone)));
                match alone {
                    Ok(alone) if alone.is_success() => (Kept::Yes, Basis::Observed, "it is refused for its key"),
                    _ => (
                        Kept::Unknown,
                        Basis::Nothing,
                        "it is refused under any key: give SampleRequest::other_payload",
                    ),
                }
            }
            Repeat::Replayed(basis) => (Kept::No, basis, "it is answered with the first payload's result"),
            Repeat::Again => (Kept::No, Basis::Inferred, "it is run, under a key that was taken"),
            Repeat::Unclear => (Kept::Unknown, Basis::Nothing, UNCLEAR),
        };
        Ok(Finding { promise, kept, basis, observed, meaning: meaning.to_owned() })
    }

    async fn malformed(&mut self, marks: &Marks) -> Result<Finding, ProbeError> {
        self.step("a malformed key, twice");
        let key = self.sender.mint()?;
        // A quote that is never closed is no structured field, and no key that anybody would choose.
        let broken = Key { text: format!("\"{}", key.text), ..key };
        let form = std::mem::take(&mut self.sender.form);
        let (first, again) = (self.sender.ask(&broken).await, self.sender.ask(&broken).await);
        self.sender.form = form;
        let observed = format!("{}, then {}", describe(marks, &first), describe(marks, &again));
        let (kept, basis, meaning) = match &first {
            Ok(first) if first.is_refusal() => (Kept::Yes, Basis::Observed, "it is refused"),
            Ok(first) if first.is_success() => match self.judge(marks, first, &again) {
                Repeat::Replayed(basis) => (Kept::Yes, basis, "it is taken as a key like any other"),
                Repeat::Again => (Kept::No, Basis::Inferred, "it is ignored: both were run, unprotected"),
                Repeat::Refused(_) | Repeat::Unclear => (Kept::Unknown, Basis::Nothing, UNCLEAR),
            },
            _ => (Kept::Unknown, Basis::Nothing, UNCLEAR),
        };
        let promise = Promise::MalformedNotIgnored;
        Ok(Finding { promise, kept, basis, observed, meaning: meaning.to_owned() })
    }

    /// Several requests under one key at once, in some rounds; the finding, what happens, and the mark of a 409.
    async fn at_the_same_time(&mut self, marks: &Marks) -> Result<(Finding, Concurrent, Option<String>), ProbeError> {
        self.step("several requests at the same time under one key");
        let (mut lines, mut word) = (Vec::new(), None);
        let (mut doubled, mut refused, mut unclear) = (false, false, false);
        for _ in 0..self.sender.settings.rounds {
            let key = self.sender.mint()?;
            let answers = self.sender.flock(&key).await;
            let answers: Vec<Answered> = answers.into_iter().flatten().collect();
            let lost = self.sender.settings.at_once - answers.len();
            let (done, others): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.is_success());
            let mut line: Vec<String> = answers.iter().map(|answer| marks.describe(answer)).collect();
            line.sort();
            lines.push(line.join(" · "));
            let verdicts: Vec<Option<bool>> = match done.split_first() {
                Some((first, others)) => others.iter().map(|other| marks.same(first, other)).collect(),
                None => vec![None],
            };
            let alike = verdicts.iter().filter(|same| **same == Some(true)).count();
            self.sender.created = self.sender.created.saturating_sub(alike);
            doubled |= verdicts.contains(&Some(false));
            unclear |= verdicts.contains(&None) || lost > 0;
            for other in others {
                refused |= other.is_refusal();
                unclear |= !other.is_refusal();
                if other.status == StatusCode::CONFLICT && other.header("retry-after").is_none() {
                    word = word.or_else(|| other.code());
                }
            }
        }
        let observed = lines.join("; ");
        let (kept, basis, what, meaning) = match (doubled, unclear, refused) {
            (true, ..) => {
                (Kept::No, Basis::Inferred, Concurrent::Doubled, "answers are about several operations: a race")
            }
            (false, true, _) => (Kept::Unknown, Basis::Nothing, Concurrent::Unknown, UNCLEAR),
            (false, false, true) => (
                Kept::Yes,
                Basis::Inferred,
                Concurrent::Refused,
                "one is run, the others are told to come back; no race was seen",
            ),
            (false, false, false) => {
                (Kept::Yes, Basis::Inferred, Concurrent::Waits, "all are given the answer of one; no race was seen")
            }
        };
        let promise = Promise::ConcurrentSafe;
        Ok((Finding { promise, kept, basis, observed, meaning: meaning.to_owned() }, what, word))
    }

    async fn lost_answer(&mut self, marks: &Marks) -> Result<Finding, ProbeError> {
        self.step("a request whose connection is dropped, then the same again");
        let key = self.sender.mint()?;
        let early = self.sender.cut(&key).await;
        let (again, went_on) = self.sender.ask_until_it_has_ended(&key).await;
        let once_more = self.sender.ask(&key).await;
        let waited = if went_on { ", once it no longer ran" } else { "" };
        let (first, second) = (describe(marks, &again), describe(marks, &once_more));
        let cut = match &early {
            None => "the connection was dropped before the answer".to_owned(),
            Some(early) => format!("{} before the connection could be dropped", describe(marks, early)),
        };
        let observed = format!("{cut}, key {}; then {first}{waited}, then {second}", key.text);
        let kept_early = early.is_some_and(|early| match (early, &again) {
            (Ok(early), Ok(again)) => marks.same(&early, again) == Some(true),
            _ => false,
        });
        let stable = match &again {
            Ok(again) if again.is_success() => self.judge(marks, again, &once_more),
            _ => Repeat::Unclear,
        };
        let replayed = again.as_ref().is_ok_and(|again| self.is_marked(again));
        let (kept, basis, meaning) = match stable {
            Repeat::Again => (Kept::No, Basis::Inferred, "the answers after the cut are about two operations"),
            _ if replayed => {
                (Kept::Yes, Basis::Observed, "the API marks the answer as the replay of the request that was cut")
            }
            Repeat::Replayed(_) if kept_early => {
                (Kept::Yes, Basis::Inferred, "an answer that was sent is kept; it came too soon to hang up before it")
            }
            Repeat::Replayed(_) if went_on => {
                (Kept::Yes, Basis::Inferred, "the request went on without its client, and its answer was kept")
            }
            Repeat::Replayed(_) if self.has_marked => (
                Kept::Unknown,
                Basis::Nothing,
                "the API marks replays, and not this one: it was run now. Whether the request that was \
                 cut had run too does not show",
            ),
            Repeat::Replayed(_) => (
                Kept::Unknown,
                Basis::Nothing,
                "the key has one answer now. Whether the request that was cut had run before, without a record, does not show",
            ),
            Repeat::Refused(_) | Repeat::Unclear => (Kept::Unknown, Basis::Nothing, UNCLEAR),
        };
        Ok(Finding { promise: Promise::LostAnswerKept, kept, basis, observed, meaning: meaning.to_owned() })
    }

    fn step(&self, what: &str) {
        (self.sender.settings.on_step)(what);
    }

    /// What an answer to a repeat says, beside the first one.
    fn judge(&mut self, marks: &Marks, first: &Answered, again: &Result<Answered, String>) -> Repeat {
        let Ok(again) = again else { return Repeat::Unclear };
        let verdict = match (marks.same(first, again), self.is_marked(again)) {
            // A replay of another operation is none.
            (Some(false), true) => Repeat::Unclear,
            (_, true) => Repeat::Replayed(Basis::Observed),
            _ if again.is_refusal() => Repeat::Refused(again.status),
            _ if !again.is_success() => Repeat::Unclear,
            (Some(true), _) => Repeat::Replayed(Basis::Inferred),
            (Some(false), _) => Repeat::Again,
            (None, _) => Repeat::Unclear,
        };
        if matches!(verdict, Repeat::Replayed(_)) {
            self.sender.created = self.sender.created.saturating_sub(1);
        }
        verdict
    }

    fn is_marked(&self, answer: &Answered) -> bool {
        self.marks_replays && answer.replay_line().is_some()
    }
}

const UNCLEAR: &str = "the answers do not say";

fn describe(marks: &Marks, answer: &Result<Answered, String>) -> String {
    match answer {
        Ok(answer) => marks.describe(answer),
        Err(error) => format!("no answer ({error})"),
    }
}

fn line(answer: &Result<Answered, String>) -> String {
    let line = answer.as_ref().ok().and_then(Answered::replay_line);
    line.map(|line| format!(" ({line})")).unwrap_or_default()
}

fn unknown() -> Vec<String> {
    [
        "how long a key is kept: wait that long, and ask again",
        "whether a key is kept across a restart or a failover of the API",
        "whether a race was missed: these were a few rounds on one day",
        "what another endpoint of the API does",
    ]
    .map(str::to_owned)
    .to_vec()
}
