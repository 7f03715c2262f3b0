//! The findings of a probe, and the conclusion from them.

use std::fmt;

use serde::Serialize;
use steadfast::{KeyFormat, KeyPolicy};

/// A promise that an API should keep about idempotency keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Promise {
    /// A repeat under the same key gets the stored response and is not executed again.
    Honoured,
    /// Another payload under a key in use is refused.
    PayloadChecked,
    /// A malformed key is refused or used as it is, but never ignored.
    MalformedNotIgnored,
    /// Of several concurrent requests under one key, one is executed.
    ConcurrentSafe,
    /// After a lost response, a repeat gets it from the record.
    LostAnswerKept,
}

impl Promise {
    fn as_str(self) -> &'static str {
        match self {
            Self::Honoured => "a repeat gets the stored response",
            Self::PayloadChecked => "another payload under the key is refused",
            Self::MalformedNotIgnored => "a malformed key is not ignored",
            Self::ConcurrentSafe => "of concurrent requests, one is executed",
            Self::LostAnswerKept => "a lost response is kept",
        }
    }
}

/// Whether a promise is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kept {
    /// Kept, as far as the probe went.
    Yes,
    /// Broken.
    No,
    /// The responses do not show it, or the probe did not try.
    Unknown,
}

/// The basis of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Basis {
    /// The API states it: by a status, or by a header that marks a replay.
    Observed,
    /// It follows from a comparison of responses, which may mislead.
    Inferred,
    /// No evidence.
    Nothing,
}

/// What the probe found about one promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The promise.
    pub promise: Promise,
    /// Whether the promise is kept.
    pub kept: Kept,
    /// The evidence behind it.
    pub basis: Basis,
    /// The requests that were sent and their responses, in words.
    pub observed: String,
    /// The meaning of these responses.
    pub meaning: String,
}

/// How an API treats a second request while the first one under the same key is in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Concurrent {
    /// It refuses the second request with a 409 or another error status.
    Refused,
    /// It waits, and sends the response of the first request.
    Waits,
    /// It executes the second request too.
    Doubled,
    /// The responses do not show it.
    Unknown,
}

/// The result of a probe.
///
/// `Display` prints it for people; `Serialize` writes it for machines.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use serde_json::json;
/// use steadfast::Client;
/// use steadfast_probe::{SampleRequest, probe};
/// # use steadfast_testing::{FaultServer, FaultStep};
/// # let staging = FaultServer::play([FaultStep::ok()]).await;
/// # let url = staging.url("/charges");
///
/// let report = probe(&url, SampleRequest::json(&json!({ "amount": 100 }))).await?;
/// let mut builder = Client::builder();
/// if let Some(policy) = report.policy() {
///     builder = builder.keys(policy.clone());
/// }
/// assert!(report.requests_sent >= report.operations_at_most);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Method and URL of the API, without user information and query.
    pub target: String,
    /// The header that carried the keys.
    pub header: String,
    /// One finding for each promise, in the order of the steps.
    pub findings: Vec<Finding>,
    /// How the API treats concurrent requests.
    pub concurrent: Concurrent,
    /// Whether the API accepts only quoted keys (a structured field, RFC 9651).
    pub quoted_form_needed: bool,
    /// Whether the bare and the quoted form of a key are the same key to the API.
    pub spelling: String,
    /// The error code of a 409 for a request in progress, if the response has no `Retry-After`.
    pub in_progress_code: Option<String>,
    /// Whether any value differs between the responses to two operations. If `false`, every
    /// comparison is worthless.
    pub answers_tell_operations_apart: bool,
    /// Number of requests sent.
    pub requests_sent: usize,
    /// Upper limit of the number of operations created.
    pub operations_at_most: usize,
    /// The builder call that fits, if one does.
    pub builder_line: Option<String>,
    /// The reason for this policy, or for none.
    pub advice: String,
    /// What no probe of this kind can find out.
    pub unknown: Vec<String>,
    #[serde(skip)]
    pub(super) policy: Option<KeyPolicy>,
}

impl Report {
    /// Returns the policy to [declare](steadfast::ClientBuilder::keys) for this API. `None` means:
    /// declare none.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use serde_json::json;
    /// use steadfast_probe::{SampleRequest, probe};
    /// # use steadfast_testing::{FaultServer, FaultStep};
    /// # let staging = FaultServer::play([FaultStep::ok()]).await;
    /// # let url = staging.url("/charges");
    ///
    /// // In a test suite: fail when the API stops honouring keys.
    /// let report = probe(&url, SampleRequest::json(&json!({ "amount": 100 }))).await?;
    /// assert!(report.policy().is_some(), "{}", report.advice);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn policy(&self) -> Option<&KeyPolicy> {
        self.policy.as_ref()
    }

    /// Returns whether a promise is kept. A promise that was not tried is [`Kept::Unknown`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use serde_json::json;
    /// use steadfast_probe::{Kept, Promise, SampleRequest, probe};
    /// use steadfast_testing::{FaultServer, FaultStep};
    ///
    /// // An API that ignores keys.
    /// let api = FaultServer::play([FaultStep::ok()]).await.ignoring_keys();
    /// let report = probe(&api.url("/"), SampleRequest::json(&json!({ "amount": 100 }))).await?;
    /// assert_eq!(report.kept(Promise::Honoured), Kept::No);
    /// assert_eq!(report.kept(Promise::ConcurrentSafe), Kept::Unknown, "not tried");
    /// assert!(report.policy().is_none());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn kept(&self, promise: Promise) -> Kept {
        self.finding(promise).map_or(Kept::Unknown, |finding| finding.kept)
    }

    /// Returns the finding about a promise, or `None` if it was not tried.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use serde_json::json;
    /// use steadfast_probe::{Basis, Promise, SampleRequest, probe};
    /// # use steadfast_testing::{FaultServer, FaultStep};
    /// # let staging = FaultServer::play([FaultStep::ok()]).await;
    /// # let url = staging.url("/charges");
    ///
    /// let report = probe(&url, SampleRequest::json(&json!({ "amount": 100 }))).await?;
    /// let finding = report.finding(Promise::Honoured).expect("this promise is always tried");
    /// println!("{}: {}", finding.observed, finding.meaning);
    /// assert_eq!(finding.basis, Basis::Observed, "the API marks its replays");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn finding(&self, promise: Promise) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.promise == promise)
    }

    /// Draws the conclusion: the advice and, where one fits, the policy.
    pub(super) fn conclude(mut self) -> Self {
        use Kept::{No, Unknown, Yes};
        let kept =
            [Promise::Honoured, Promise::ConcurrentSafe, Promise::LostAnswerKept].map(|promise| self.kept(promise));
        let fits = matches!(kept, [Yes, Yes, Yes | Unknown]);
        let advice = match kept {
            [No, ..] => {
                "The API ignores keys. Declare no policy: it would license a second execution. The default client \
                         sends keys and retries nothing that may have been executed."
            }
            [Unknown, ..] => {
                "The responses do not show whether keys are honoured. Declare no policy until somebody with access to the \
                              API has counted. The default client retries nothing that may have been executed."
            }
            [Yes, No, _] => {
                "Keys are honoured in sequence, but not for concurrent requests. Declare no policy: a client retries after \
                             a timeout, when the first request may still run, and that is a second execution."
            }
            [Yes, Unknown, _] => {
                "Keys are honoured in sequence; for concurrent requests it is unknown. Declare no policy until that \
                                  is known: a client retries after a timeout, when the first request may still run."
            }
            [Yes, Yes, No] => {
                "Keys are honoured, but forgotten if the client disconnects. Declare no policy: a client retries when its \
                               connection was lost, and that is a second execution."
            }
            [Yes, Yes, Unknown] => {
                "Keys are honoured, also for concurrent requests. Before you declare this policy, check in the API itself \
                                    that the request whose connection was dropped (its key is above) was executed once."
            }
            [Yes, Yes, Yes] => "Keys are honoured, also for concurrent requests. Declare this policy.",
        };
        advice.clone_into(&mut self.advice);
        if fits {
            self.declare();
            if self.kept(Promise::MalformedNotIgnored) == No {
                self.advice
                    .push_str(" Requests with malformed keys run unprotected: use only keys that the client mints.");
            }
            if self.kept(Promise::PayloadChecked) == No {
                self.advice.push_str(" The payload is not checked: never reuse a key for another request.");
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
            writeln!(f, "      seen:  {}", finding.observed)?;
            writeln!(f, "      means: {}", finding.meaning)?;
        }
        writeln!(f, "\nKey format: {}", self.spelling)?;
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
            None => write!(f, "    declare no .keys(..)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The builder line, if one fits, for the three promises that a retry relies on.
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
    fn policy_is_declared_only_if_retry_is_safe() {
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
