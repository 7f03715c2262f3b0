//! The steps of a probe: the requests and the meaning of their responses.

use http::StatusCode;
use steadfast::KeyFormat;

use super::answers::{Answered, Marks};
use super::report::{Basis, Concurrent, Finding, Kept, Promise, Report};
use super::sending::{Key, Sender};
use super::{Probe, ProbeError};

/// Number of characters quoted from a refusal.
const QUOTE: usize = 200;

pub(super) struct ProbeRun<'a> {
    sender: Sender<'a>,
    /// Whether a replay header is evidence. It is not if the API sets it on every response.
    marks_replays: bool,
    /// Whether the API marked the plain repeat as a replay.
    has_marked: bool,
}

/// The response to a repeat.
enum Repeat {
    Replayed(Basis),
    /// The response of another operation.
    Again,
    Refused(StatusCode),
    /// The response does not show it.
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

    /// Sends two operations that are certainly distinct. Every later judgement rests on how their
    /// responses differ.
    async fn control(&mut self) -> Result<(Key, Answered, Marks), ProbeError> {
        self.step("two operations under different keys");
        let mut key = self.sender.mint()?;
        let mut first = self.sender.ask(&key).await.map_err(ProbeError::Unreachable)?;
        if [StatusCode::BAD_REQUEST, StatusCode::UNPROCESSABLE_ENTITY].contains(&first.status) {
            // Some APIs accept a key only as the structured field of the IETF draft.
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
                (Kept::Yes, Basis::Observed, format!("the API marks the second response as a replay{}", line(&again)))
            }
            Repeat::Replayed(basis) => {
                (Kept::Yes, basis, "the second response is about the first operation".to_owned())
            }
            Repeat::Again => (Kept::No, Basis::Inferred, "the second response is about another operation".to_owned()),
            Repeat::Refused(_) => (
                Kept::Unknown,
                Basis::Nothing,
                "the request is not executed twice, but its response is not available again".to_owned(),
            ),
            Repeat::Unclear => (Kept::Unknown, Basis::Nothing, UNCLEAR.to_owned()),
        };
        Finding { promise: Promise::Honoured, kept, basis, observed, meaning }
    }

    /// Finds out whether the bare and the quoted form are one key.
    async fn spelling(&mut self, key: &Key, first: &Answered, marks: &Marks) -> String {
        self.step("the key in its other format");
        let (own, other) = match self.sender.form {
            KeyFormat::Quoted => ("quoted", KeyFormat::Bare),
            _ => ("bare", KeyFormat::Quoted),
        };
        let form = std::mem::replace(&mut self.sender.form, other);
        let answer = self.sender.ask(key).await;
        self.sender.form = form;
        match self.judge(marks, first, &answer) {
            Repeat::Replayed(_) => "bare and quoted are the same key".to_owned(),
            Repeat::Again => format!("bare and quoted are two keys: never change the format ({own} here)"),
            Repeat::Refused(status) => {
                format!("the API accepts {own} keys and refuses the other format with status {}", status.as_u16())
            }
            Repeat::Unclear => format!("{own}; the response to the other format is unclear"),
        }
    }

    async fn other_payload(&mut self, key: &Key, first: &Answered, marks: &Marks) -> Result<Finding, ProbeError> {
        let promise = Promise::PayloadChecked;
        self.step("another payload under the same key");
        let Some(other) = self.sender.settings.sample.other.clone() else {
            let (observed, meaning) = ("not tried".to_owned(), "set SampleRequest::other_payload".to_owned());
            return Ok(Finding { promise, kept: Kept::Unknown, basis: Basis::Nothing, observed, meaning });
        };
        let answer = self.sender.send(key, other.clone()).await;
        let mut observed = format!("another payload: {}", describe(marks, &answer));
        let (kept, basis, meaning) = match self.judge(marks, first, &answer) {
            Repeat::Refused(_) => {
                // The API might refuse this payload under any key.
                let own = self.sender.mint()?;
                let alone = self.sender.send(&own, other).await;
                observed.push_str(&format!("; under a key of its own: {}", describe(marks, &alone)));
                match alone {
                    Ok(alone) if alone.is_success() => (Kept::Yes, Basis::Observed, "it is refused because of its key"),
                    _ => {
                        (Kept::Unknown, Basis::Nothing, "it is refused under any key: set SampleRequest::other_payload")
                    }
                }
            }
            Repeat::Replayed(basis) => (Kept::No, basis, "it gets the response to the first payload"),
            Repeat::Again => (Kept::No, Basis::Inferred, "it is executed under a key in use"),
            Repeat::Unclear => (Kept::Unknown, Basis::Nothing, UNCLEAR),
        };
        Ok(Finding { promise, kept, basis, observed, meaning: meaning.to_owned() })
    }

    async fn malformed(&mut self, marks: &Marks) -> Result<Finding, ProbeError> {
        self.step("a malformed key, twice");
        let key = self.sender.mint()?;
        // An unclosed quote is not a valid structured field, and not a key that anybody would
        // choose.
        let broken = Key { text: format!("\"{}", key.text), ..key };
        let form = std::mem::take(&mut self.sender.form);
        let (first, again) = (self.sender.ask(&broken).await, self.sender.ask(&broken).await);
        self.sender.form = form;
        let observed = format!("{}, then {}", describe(marks, &first), describe(marks, &again));
        let (kept, basis, meaning) = match &first {
            Ok(first) if first.is_refusal() => (Kept::Yes, Basis::Observed, "it is refused"),
            Ok(first) if first.is_success() => match self.judge(marks, first, &again) {
                Repeat::Replayed(basis) => (Kept::Yes, basis, "it is used like any other key"),
                Repeat::Again => (Kept::No, Basis::Inferred, "it is ignored: both requests were executed"),
                Repeat::Refused(_) | Repeat::Unclear => (Kept::Unknown, Basis::Nothing, UNCLEAR),
            },
            _ => (Kept::Unknown, Basis::Nothing, UNCLEAR),
        };
        let promise = Promise::MalformedNotIgnored;
        Ok(Finding { promise, kept, basis, observed, meaning: meaning.to_owned() })
    }

    /// Sends concurrent requests under one key, in several rounds. Returns the finding, the
    /// behaviour, and the error code of a 409.
    async fn at_the_same_time(&mut self, marks: &Marks) -> Result<(Finding, Concurrent, Option<String>), ProbeError> {
        self.step("concurrent requests under one key");
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
                (Kept::No, Basis::Inferred, Concurrent::Doubled, "the responses are about several operations: a race")
            }
            (false, true, _) => (Kept::Unknown, Basis::Nothing, Concurrent::Unknown, UNCLEAR),
            (false, false, true) => (
                Kept::Yes,
                Basis::Inferred,
                Concurrent::Refused,
                "one is executed and the others are refused; no race was seen",
            ),
            (false, false, false) => {
                (Kept::Yes, Basis::Inferred, Concurrent::Waits, "all get the response of one; no race was seen")
            }
        };
        let promise = Promise::ConcurrentSafe;
        Ok((Finding { promise, kept, basis, observed, meaning: meaning.to_owned() }, what, word))
    }

    async fn lost_answer(&mut self, marks: &Marks) -> Result<Finding, ProbeError> {
        self.step("a request with a dropped connection, and its repeat");
        let key = self.sender.mint()?;
        let early = self.sender.cut(&key).await;
        let (again, went_on) = self.sender.ask_until_it_has_ended(&key).await;
        let once_more = self.sender.ask(&key).await;
        let waited = if went_on { ", when it was no longer in progress" } else { "" };
        let (first, second) = (describe(marks, &again), describe(marks, &once_more));
        let cut = match &early {
            None => "the connection was dropped before the response".to_owned(),
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
            Repeat::Again => (Kept::No, Basis::Inferred, "the responses after the cut are about two operations"),
            _ if replayed => (Kept::Yes, Basis::Observed, "the API marks the response as a replay of the cut request"),
            Repeat::Replayed(_) if kept_early => (
                Kept::Yes,
                Basis::Inferred,
                "a response that was sent is kept; it came too early to disconnect before it",
            ),
            Repeat::Replayed(_) if went_on => {
                (Kept::Yes, Basis::Inferred, "the request continued without its client, and its response was kept")
            }
            Repeat::Replayed(_) if self.has_marked => (
                Kept::Unknown,
                Basis::Nothing,
                "the API marks replays, but not this response: the repeat was executed. Whether \
                 the cut request was executed too is not visible",
            ),
            Repeat::Replayed(_) => (
                Kept::Unknown,
                Basis::Nothing,
                "the key has one response now. Whether the cut request was executed before, without a record, is not visible",
            ),
            Repeat::Refused(_) | Repeat::Unclear => (Kept::Unknown, Basis::Nothing, UNCLEAR),
        };
        Ok(Finding { promise: Promise::LostAnswerKept, kept, basis, observed, meaning: meaning.to_owned() })
    }

    fn step(&self, what: &str) {
        (self.sender.settings.on_step)(what);
    }

    /// Judges the response to a repeat by comparing it with the first response.
    fn judge(&mut self, marks: &Marks, first: &Answered, again: &Result<Answered, String>) -> Repeat {
        let Ok(again) = again else { return Repeat::Unclear };
        let verdict = match (marks.same(first, again), self.is_marked(again)) {
            // A replay of another operation is not a replay.
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

const UNCLEAR: &str = "the responses do not show it";

fn describe(marks: &Marks, answer: &Result<Answered, String>) -> String {
    match answer {
        Ok(answer) => marks.describe(answer),
        Err(error) => format!("no response ({error})"),
    }
}

fn line(answer: &Result<Answered, String>) -> String {
    let line = answer.as_ref().ok().and_then(Answered::replay_line);
    line.map(|line| format!(" ({line})")).unwrap_or_default()
}

fn unknown() -> Vec<String> {
    [
        "how long the API keeps a key: wait that long, and repeat a request",
        "whether the API keeps a key across a restart or a failover",
        "whether a race was missed: the probe ran a few rounds on one day",
        "how other endpoints of the API behave",
    ]
    .map(str::to_owned)
    .to_vec()
}
