//! What a probe found, and what follows from it.

use std::fmt;

use serde::Serialize;
use steadfast::{KeyFormat, KeyPolicy};

/// What an API should promise about idempotency keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Promise {
    /// A repeat under the same key is answered from the record, and not run again.
    Honoured,
    /// Another payload under a key that is taken is refused.
    PayloadChecked,
    /// A malformed key is refused or taken as it is, and never ignored.
    MalformedNotIgnored,
    /// Of several requests at the same time under one key, one is run.
    ConcurrentSafe,
    /// An operation whose answer was lost is answered from its record.
    LostAnswerKept,
}

impl Promise {
    fn as_str(self) -> &'static str {
        match self {
            Self::Honoured => "a repeat is answered from the record",
            Self::PayloadChecked => "another payload under the key is refused",
            Self::MalformedNotIgnored => "a malformed key is not ignored",
            Self::ConcurrentSafe => "at the same time, one is run",
            Self::LostAnswerKept => "a lost answer can be had again",
        }
    }
}

/// Whether a promise is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kept {
    /// It is, as far as the probe went.
    Yes,
    /// It is not.
    No,
    /// The answers do not say, or it was not tried.
    Unknown,
}

/// What a finding rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Basis {
    /// The API says so itself: by a status, or a header that marks a replay.
    Observed,
    /// It follows from comparing answers, if these are about what they seem to be about.
    Inferred,
    /// Nothing.
    Nothing,
}

/// What the probe knows of one promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The promise.
    pub promise: Promise,
    /// Whether it is kept.
    pub kept: Kept,
    /// What this rests on.
    pub basis: Basis,
    /// What was sent and what came back.
    pub observed: String,
    /// What that means.
    pub meaning: String,
}

/// What an API does with a second request while the first one under the key still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Concurrent {
    /// It is told to come back: 409, or another refusal.
    Refused,
    /// It waits, and is given the answer of the first.
    Waits,
    /// It is run too.
    Doubled,
    /// The answers do not say.
    Unknown,
}

/// What a probe of an API found.
///
/// Its `Display` is for people; it also serialises, for machines.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// What was probed: method and URL, without user information and query.
    pub target: String,
    /// The header that the keys travelled in.
    pub header: String,
    /// One for each promise, in the order in which they were tried.
    pub findings: Vec<Finding>,
    /// What happens to requests at the same time.
    pub concurrent: Concurrent,
    /// Whether a key must be quoted (a structured field, RFC 9651) to be taken.
    pub quoted_form_needed: bool,
    /// What the two spellings of one key are to the API.
    pub spelling: String,
    /// The word by which a 409 says that the first request still runs, if it says it by nothing else.
    pub in_progress_code: Option<String>,
    /// What tells operations apart in the answers; false: nothing does, and every comparison is worthless.
    pub answers_tell_operations_apart: bool,
    /// The requests that were sent.
    pub requests_sent: usize,
    /// The most operations that they can have created.
    pub operations_at_most: usize,
    /// The builder line that fits, if one does.
    pub builder_line: Option<String>,
    /// Why that one, or why none.
    pub advice: String,
    /// What no probe of this kind can find out.
    pub unknown: Vec<String>,
    #[serde(skip)]
    pub(super) policy: Option<KeyPolicy>,
}

impl Report {
    /// The policy to [declare](steadfast::ClientBuilder::keys) for this API; `None`: declare none.
    #[must_use]
    pub fn policy(&self) -> Option<&KeyPolicy> {
        self.policy.as_ref()
    }

    /// Whether a promise is kept.
    #[must_use]
    pub fn kept(&self, promise: Promise) -> Kept {
        self.finding(promise).map_or(Kept::Unknown, |finding| finding.kept)
    }

    /// What is known of a promise.
    #[must_use]
    pub fn finding(&self, promise: Promise) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.promise == promise)
    }

    /// Draws the conclusion.
    pub(super) fn conclude(mut self) -> Self {
        use Kept::{No, Unknown, Yes};
        let kept =
            [Promise::Honoured, Promise::ConcurrentSafe, Promise::LostAnswerKept].map(|promise| self.kept(promise));
        let fits = matches!(kept, [Yes, Yes, Yes | Unknown]);
        let advice = match kept {
            [No, ..] => {
                "Keys are ignored. Declare no policy: a declared one would license a second execution. The default client \
                         sends keys and repeats nothing that may have been executed."
            }
            [Unknown, ..] => {
                "Whether keys are honoured does not show. Declare no policy until somebody who can look into the API has \
                              counted; the default client repeats nothing that may have been executed."
            }
            [Yes, No, _] => {
                "Keys are honoured one after the other and not at the same time. Declare no policy: a client repeats after \
                             a timeout, when the first request may still run, and that is a second execution."
            }
            [Yes, Unknown, _] => {
                "Keys are honoured one after the other; at the same time, nobody knows. Declare no policy until that \
                                  is known: a client repeats after a timeout, when the first request may still run."
            }
            [Yes, Yes, No] => {
                "Keys are honoured, and forgotten if the client hangs up. Declare no policy: a client repeats when its \
                               connection was lost, and that is a second execution."
            }
            [Yes, Yes, Unknown] => {
                "Keys are honoured, at the same time too. Before you declare this policy, look up in the API itself \
                                    that the request whose connection was dropped (its key is above) ran once."
            }
            [Yes, Yes, Yes] => "Keys are honoured, at the same time too. Declare this policy.",
        };
        advice.clone_into(&mut self.advice);
        if fits {
            self.declare();
            if self.kept(Promise::MalformedNotIgnored) == No {
                self.advice.push_str(" Malformed keys run unprotected: keep to keys that the client mints.");
            }
            if self.kept(Promise::PayloadChecked) == No {
                self.advice.push_str(" The payload is not checked: never use a key again for another request.");
            }
        }
        self
    }

    fn declare(&mut self) {
        let (mut policy, mut line) = (KeyPolicy::standard(), String::from("KeyPolicy::standard()"));
        if !self.header.eq_ignore_ascii_case("idempotency-key")
            && let Ok(name) = self.header.parse()
        {
            policy = policy.header(name);
            line.push_str(&format!(".header(HeaderName::from_static({:?}))", self.header));
        }
        if self.quoted_form_needed {
            policy = policy.form(KeyFormat::Quoted);
            line.push_str(".form(KeyFormat::Quoted)");
        }
        if let Some(word) = &self.in_progress_code {
            policy = policy.in_progress_code(word.clone());
            line.push_str(&format!(".in_progress_code({word:?})"));
        }
        self.policy = Some(policy);
        self.builder_line = Some(format!(".keys({line})"));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, keys in {}\n", self.target, self.header)?;
        for finding in &self.findings {
            let (kept, basis) = match (finding.kept, finding.basis) {
                (Kept::Yes, Basis::Observed) => ("yes", "observed"),
                (Kept::Yes, _) => ("yes", "inferred"),
                (Kept::No, Basis::Observed) => ("NO", "observed"),
                (Kept::No, _) => ("NO", "inferred"),
                (Kept::Unknown, _) => ("?", "unknown"),
            };
            writeln!(f, "{kept:>4}  {} [{basis}]", finding.promise.as_str())?;
            writeln!(f, "      saw: {}", finding.observed)?;
            writeln!(f, "      so:  {}", finding.meaning)?;
        }
        writeln!(f, "\nSpelling: {}", self.spelling)?;
        writeln!(
            f,
            "Sent: {} requests, which created at most {} operations.",
            self.requests_sent, self.operations_at_most
        )?;
        writeln!(f, "Unknown:")?;
        for unknown in &self.unknown {
            writeln!(f, "  - {unknown}")?;
        }
        writeln!(f, "\n{}", self.advice)?;
        match &self.builder_line {
            Some(line) => write!(f, "    Client::builder(){line}"),
            None => write!(f, "    no .keys(..)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The builder line, where one fits, for what is known of the three promises that a retry rests on.
    fn probe(honoured: Kept, concurrent: Kept, lost: Kept) -> Option<String> {
        let finding = |promise, kept| {
            let (observed, meaning) = (String::new(), String::new());
            Finding { promise, kept, basis: Basis::Nothing, observed, meaning }
        };
        let report = Report {
            target: String::new(),
            header: "idempotency-key".to_owned(),
            findings: vec![
                finding(Promise::Honoured, honoured),
                finding(Promise::ConcurrentSafe, concurrent),
                finding(Promise::LostAnswerKept, lost),
            ],
            concurrent: Concurrent::Unknown,
            quoted_form_needed: false,
            spelling: String::new(),
            in_progress_code: None,
            answers_tell_operations_apart: true,
            requests_sent: 0,
            operations_at_most: 0,
            builder_line: None,
            advice: String::new(),
            unknown: Vec::new(),
            policy: None,
        };
        let report = report.conclude();
        assert_eq!(report.policy().is_some(), report.builder_line.is_some());
        report.builder_line
    }

    #[test]
    fn a_policy_is_declared_only_where_a_retry_is_safe() {
        use Kept::{No, Unknown, Yes};
        let all = [Yes, No, Unknown];
        for (honoured, concurrent, lost) in
            all.into_iter().flat_map(|a| all.into_iter().flat_map(move |b| all.into_iter().map(move |c| (a, b, c))))
        {
            let fits = honoured == Yes && concurrent == Yes && lost != No;
            assert_eq!(probe(honoured, concurrent, lost).is_some(), fits, "{honoured:?} {concurrent:?} {lost:?}");
        }
    }
}
