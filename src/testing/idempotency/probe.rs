//! The steps of a probe: what is sent, and what the answers mean.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use http_body::{Body, Frame, SizeHint};
use reqwest::Url;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::answers::{Answered, Marks};
use super::report::{Basis, Concurrent, Finding, Kept, Promise, Report};
use super::{Check, CheckError, Sample, parse};
use crate::clock;
use crate::{IdempotencyKey, KeyForm};

/// After its last byte was taken a request is given so long to leave before the connection is dropped.
const LEAVE: Duration = Duration::from_millis(5);
/// A request under way is asked for again after so long, if the API does not say.
const AGAIN: Duration = Duration::from_millis(250);
/// As much of a refusal is quoted.
const QUOTE: usize = 200;

pub(super) struct Probe<'a> {
    check: Check<'a>,
    http: reqwest::Client,
    url: Url,
    form: KeyForm,
    /// The keys that were minted, which makes the numbers for `{unique}`.
    minted: usize,
    sent: usize,
    /// Requests that may have created an operation.
    created: usize,
}

/// A key, and the number that its operation has.
#[derive(Clone)]
struct Key {
    text: String,
    unique: String,
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

impl<'a> Probe<'a> {
    pub(super) fn new(mut check: Check<'a>) -> Result<Self, CheckError> {
        let url = parse(&check.url)?;
        let http = match check.http.take() {
            Some(http) => http,
            None => reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .build()
                .map_err(|error| CheckError::Build(error.to_string()))?,
        };
        Ok(Self { check, http, url, form: KeyForm::Bare, minted: 0, sent: 0, created: 0 })
    }

    pub(super) async fn run(mut self) -> Result<Report, CheckError> {
        let (key, first, marks) = self.control().await?;
        let honoured = self.repeat(&key, &first, &marks).await;
        let goes_on = honoured.kept != Kept::No;
        let mut findings = vec![honoured];
        let (mut spelling, mut concurrent, mut mark) = ("not tried".to_owned(), Concurrent::Unknown, None);
        if goes_on {
            spelling = self.spelling(&key, &first, &marks).await;
            findings.push(self.other_payload(&key, &first, &marks).await);
            findings.push(self.malformed(&marks).await?);
            let (finding, what, word) = self.at_the_same_time(&marks).await?;
            (concurrent, mark) = (what, word);
            findings.push(finding);
            findings.push(self.lost_answer(&marks).await?);
        }
        let mut shown = self.url.clone();
        shown.set_query(None);
        // It fails for URLs that have no user information.
        let _none = shown.set_username("").and_then(|()| shown.set_password(None));
        let report = Report {
            target: format!("{} {shown}", self.check.sample.method),
            header: self.check.header.to_string(),
            findings,
            concurrent,
            quoted_form_needed: self.form == KeyForm::Quoted,
            spelling,
            in_progress_mark: mark,
            answers_tell_operations_apart: marks.tell(),
            requests_sent: self.sent,
            operations_at_most: self.created,
            builder_line: None,
            advice: String::new(),
            unknown: unknown(),
            policy: None,
        };
        Ok(report.conclude())
    }

    /// Two operations that surely are two: what tells them apart is what everything else is judged by.
    async fn control(&mut self) -> Result<(Key, Answered, Marks), CheckError> {
        self.step("two operations, each with a key of its own");
        let mut key = self.mint()?;
        let mut first = self.ask(&key).await.map_err(CheckError::Unreachable)?;
        if first.status == StatusCode::BAD_REQUEST {
            // Some take a key only as the structured field of the IETF's draft.
            self.form = KeyForm::Quoted;
            key = self.mint()?;
            first = self.ask(&key).await.map_err(CheckError::Unreachable)?;
        }
        if !first.is_success() {
            let body = String::from_utf8_lossy(&first.body).chars().take(QUOTE).collect();
            return Err(CheckError::Refused { status: first.status.as_u16(), body });
        }
        let other = self.mint()?;
        let second = self.ask(&other).await.map_err(CheckError::Unreachable)?;
        if !second.is_success() {
            return Err(CheckError::NotUnique { status: second.status.as_u16() });
        }
        let marks = Marks::between(&first, &second);
        Ok((key, first, marks))
    }

    async fn repeat(&mut self, key: &Key, first: &Answered, marks: &Marks) -> Finding {
        self.step("the same request under the same key");
        let again = self.ask(key).await;
        let observed = format!("{}, then {}", marks.describe(first), describe(marks, &again));
        let (kept, basis, meaning) = match self.judge(marks, first, &again) {
            Repeat::Replayed(Basis::Observed) => {
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
        let (own, other) = match self.form {
            KeyForm::Quoted => ("quoted", KeyForm::Bare),
            _ => ("bare", KeyForm::Quoted),
        };
        let form = std::mem::replace(&mut self.form, other);
        let answer = self.ask(key).await;
        self.form = form;
        match self.judge(marks, first, &answer) {
            Repeat::Replayed(_) => "bare and quoted are the same key".to_owned(),
            Repeat::Again => format!("bare and quoted are two keys: never change the spelling ({own} here)"),
            Repeat::Refused(status) => {
                format!("a key is taken {own}; in the other spelling it is refused, {}", status.as_u16())
            }
            Repeat::Unclear => format!("{own}; the other was not told apart"),
        }
    }

    async fn other_payload(&mut self, key: &Key, first: &Answered, marks: &Marks) -> Finding {
        let promise = Promise::PayloadChecked;
        self.step("another payload under the key");
        let Some(other) = self.check.sample.other.clone() else {
            let (observed, meaning) = ("not tried".to_owned(), "give Sample::other_payload".to_owned());
            return Finding { promise, kept: Kept::Unknown, basis: Basis::Nothing, observed, meaning };
        };
        let answer = self.send(key, other).await;
        let observed = format!("another payload: {}", describe(marks, &answer));
        let (kept, basis, meaning) = match self.judge(marks, first, &answer) {
            Repeat::Refused(_) => (Kept::Yes, Basis::Observed, "it is refused"),
            Repeat::Replayed(basis) => (Kept::No, basis, "it is answered with the first payload's result"),
            Repeat::Again => (Kept::No, Basis::Inferred, "it is run, under a key that was taken"),
            Repeat::Unclear => (Kept::Unknown, Basis::Nothing, UNCLEAR),
        };
        Finding { promise, kept, basis, observed, meaning: meaning.to_owned() }
    }

    async fn malformed(&mut self, marks: &Marks) -> Result<Finding, CheckError> {
        self.step("a malformed key, twice");
        let key = self.mint()?;
        // A quote that is never closed is no structured field, and no key that anybody would choose.
        let broken = Key { text: format!("\"{}", key.text), ..key };
        let form = std::mem::take(&mut self.form);
        let (first, again) = (self.ask(&broken).await, self.ask(&broken).await);
        self.form = form;
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
    async fn at_the_same_time(&mut self, marks: &Marks) -> Result<(Finding, Concurrent, Option<String>), CheckError> {
        self.step("several requests at the same time under one key");
        let (mut lines, mut word) = (Vec::new(), None);
        let (mut doubled, mut refused, mut unclear) = (false, false, false);
        for _ in 0..self.check.rounds {
            let key = self.mint()?;
            let answers = self.flock(&key).await;
            let answers: Vec<Answered> = answers.into_iter().flatten().collect();
            let lost = self.check.at_once - answers.len();
            let (done, others): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.is_success());
            let mut line: Vec<String> = answers.iter().map(|answer| marks.describe(answer)).collect();
            line.sort();
            lines.push(line.join(" · "));
            let verdicts: Vec<Option<bool>> = match done.split_first() {
                Some((first, others)) => others.iter().map(|other| marks.same(first, other)).collect(),
                None => vec![None],
            };
            let alike = verdicts.iter().filter(|same| **same == Some(true)).count();
            self.created = self.created.saturating_sub(alike);
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

    async fn lost_answer(&mut self, marks: &Marks) -> Result<Finding, CheckError> {
        self.step("a request whose connection is dropped, then the same again");
        let key = self.mint()?;
        let early = self.cut(&key).await;
        let (again, went_on) = self.ask_until_it_has_ended(&key).await;
        let once_more = self.ask(&key).await;
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
        let replayed = again.as_ref().is_ok_and(|again| again.replay_line().is_some());
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
        (self.check.on_step)(what);
    }

    fn mint(&mut self) -> Result<Key, CheckError> {
        let key = IdempotencyKey::mint().map_err(|error| CheckError::Build(error.to_string()))?;
        self.minted += 1;
        // The key's own digits, so that two runs have no number in common.
        let digits: String = key.as_str().chars().filter(char::is_ascii_digit).take(9).collect();
        Ok(Key { text: key.as_str().to_owned(), unique: format!("{}{digits}", self.minted) })
    }

    async fn ask(&mut self, key: &Key) -> Result<Answered, String> {
        self.send(key, self.check.sample.body.clone()).await
    }

    /// Sends it, and keeps count.
    async fn send(&mut self, key: &Key, body: String) -> Result<Answered, String> {
        let request = self.request(key, &body);
        let answer = exchange(request, self.check.patience).await;
        self.count(&answer);
        answer
    }

    fn count(&mut self, answer: &Result<Answered, String>) {
        self.sent += 1;
        self.created += usize::from(!answer.as_ref().is_ok_and(Answered::is_refusal));
    }

    fn request(&self, key: &Key, body: &str) -> reqwest::RequestBuilder {
        let Sample { method, headers, .. } = &self.check.sample;
        let mut request = self.http.request(method.clone(), self.url.clone());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let text = if self.form == KeyForm::Quoted { format!("\"{}\"", key.text) } else { key.text.clone() };
        // A value that is none fails when the request is sent, with reqwest's reason.
        let key_header = HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""));
        request.header(self.check.header.clone(), key_header).body(body.replace("{unique}", &key.unique))
    }

    /// Several at once.
    async fn flock(&mut self, key: &Key) -> Vec<Result<Answered, String>> {
        let mut flock = JoinSet::new();
        for _ in 0..self.check.at_once {
            flock.spawn(exchange(self.request(key, &self.check.sample.body), self.check.patience));
        }
        let answers = flock.join_all().await;
        answers.iter().for_each(|answer| self.count(answer));
        answers
    }

    /// Sends it, and drops the connection as soon as it has left; the answer, if that came first.
    async fn cut(&mut self, key: &Key) -> Option<Result<Answered, String>> {
        let (taken, left) = oneshot::channel();
        let body = Bytes::from(self.check.sample.body.replace("{unique}", &key.unique));
        let watched = Watched { body: Some(body), taken: Some(taken) };
        let request = self.request(key, "").body(reqwest::Body::wrap(watched));
        self.sent += 1;
        self.created += 1;
        let hang_up = async {
            // The sender is dropped if it is not taken at all, and then there is nothing to wait for.
            let _taken = left.await;
            clock::sleep(LEAVE).await;
        };
        tokio::select! {
            answer = exchange(request, self.check.patience) => Some(answer),
            () = hang_up => None,
        }
    }

    /// Asks until the answer is not that it still runs; whether it was that at first.
    async fn ask_until_it_has_ended(&mut self, key: &Key) -> (Result<Answered, String>, bool) {
        let deadline = clock::now().checked_add(self.check.patience);
        let mut ran = false;
        loop {
            let answer = self.ask(key).await;
            let runs = answer.as_ref().is_ok_and(|answer| {
                [StatusCode::CONFLICT, StatusCode::TOO_EARLY, StatusCode::LOCKED].contains(&answer.status)
            });
            if !runs || deadline.is_some_and(|deadline| clock::now() >= deadline) {
                return (answer, ran);
            }
            ran = true;
            let asked = answer.as_ref().ok().and_then(|answer| answer.header("retry-after")?.parse().ok());
            clock::sleep(asked.map_or(AGAIN, Duration::from_secs).min(self.check.patience)).await;
        }
    }

    /// What an answer to a repeat says, beside the first one.
    fn judge(&mut self, marks: &Marks, first: &Answered, again: &Result<Answered, String>) -> Repeat {
        let Ok(again) = again else { return Repeat::Unclear };
        let verdict = if again.replay_line().is_some() && first.replay_line().is_none() {
            Repeat::Replayed(Basis::Observed)
        } else if again.is_refusal() {
            Repeat::Refused(again.status)
        } else if !again.is_success() {
            Repeat::Unclear
        } else {
            match marks.same(first, again) {
                Some(true) => Repeat::Replayed(Basis::Inferred),
                Some(false) => Repeat::Again,
                None => Repeat::Unclear,
            }
        };
        if matches!(verdict, Repeat::Replayed(_)) {
            self.created = self.created.saturating_sub(1);
        }
        verdict
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

/// Sends a request and reads its answer to the end.
fn exchange(
    request: reqwest::RequestBuilder,
    patience: Duration,
) -> impl Future<Output = Result<Answered, String>> + Send {
    async move {
        let response = request.timeout(patience).send().await.map_err(reason)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.map_err(reason)?.to_vec();
        Ok(Answered { status, headers, body })
    }
}

/// The innermost reason, without the URL, which may hold credentials.
fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut reason: &dyn std::error::Error = &error;
    while let Some(source) = reason.source() {
        reason = source;
    }
    reason.to_string()
}

/// A body that says when the transport has taken it.
struct Watched {
    body: Option<Bytes>,
    taken: Option<oneshot::Sender<()>>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = self.body.take().map(|body| Ok(Frame::data(body)));
        if let Some(taken) = self.taken.take() {
            let _nobody_waits = taken.send(());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.body.as_ref().map_or(0, |body| body.len() as u64))
    }
}
