//! The server of the exploration, and its network: what may happen to one request.
//!
//! Nothing here comes from the client's own tables. A [`Fate`] is what happened, and
//! [`Fate::may_act`] says whether a server can have acted on such a request.

use std::time::{Duration, Instant};

use http::header::{HeaderName, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};

use super::scenario::{Api, Limits, SECOND, Scenario};

// One list, so that no fate is left untried.
macro_rules! fates {
    ($($(#[$doc:meta])* $fate:ident,)*) => {
        /// What happens to one request.
        #[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
        pub(super) enum Fate {
            $($(#[$doc])* $fate,)*
        }

        impl Fate {
            /// In the order in which they are tried.
            pub(super) const ALL: &[Self] = &[$(Self::$fate,)*];
        }
    };
}

fates! {
    Lost,
    Done,
    TimedOut,
    NoConnection,
    NoDescriptor,
    BadCertificate,
    /// The connection closes before any part of the request was read.
    ClosedBeforeSending,
    /// `REFUSED_STREAM`, or `GOAWAY` below the stream.
    Refused,
    /// The attempt times out before its body was read.
    TimedOutBeforeBody,
    NotHttp,
    AnswerCut,
    /// The request body fails after a part of it was sent.
    OwnBodyFails,
    UnknownFailure,
    Invalid,
    Mismatch,
    Conflict,
    StillRunning,
    OutcomeUnknown,
    Stored,
    StoredError,
    Released,
    TooEarly,
    Misdirected,
    Throttled,
    ThrottledLater,
    Unavailable,
    UnavailableLater,
    UnavailableMuchLater,
    Fails,
    SaysStop,
    SaysRetry,
    DeadlinePassed,
    NotImplemented,
    /// 401 with a challenge, in response to the client's token.
    TokenRefused,
    /// The same without a challenge.
    Unauthorized,
    RequestTimeout,
    Moved,
    SeeOther,
    SeeElsewhere,
    Temporary,
    TemporaryAway,
    TemporaryBack,
}

/// Whether the server acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acts {
    Never,
    Always,
    Perhaps,
}

/// Paths at the origin of the API, and one elsewhere.
pub(super) const ASKED: &str = "/charges";
pub(super) const MOVED: &str = "/v2/charges";
const RESULT: &str = "/charges/1";
const ELSEWHERE: &str = "http://other.test/charges";

impl Fate {
    /// Returns whether a server may act on a request with this fate, by RFC 9110, RFC 9113 and the
    /// contract of idempotency keys.
    pub(super) fn may_act(self, scenario: Scenario) -> Acts {
        use Fate::*;
        match self {
            TimedOut | Lost | NotHttp | OwnBodyFails | UnknownFailure => Acts::Perhaps,
            // Over HTTP/1 the head waits for the body. Over HTTP/2 it may be on its way.
            TimedOutBeforeBody if scenario.tls => Acts::Perhaps,
            Unavailable | UnavailableLater | UnavailableMuchLater | Fails | SaysStop | RequestTimeout => Acts::Perhaps,
            Moved => Acts::Perhaps,
            TokenRefused | Unauthorized if scenario.limits == Limits::UnauthorizedActs => Acts::Perhaps,
            Throttled | ThrottledLater if scenario.limits == Limits::ThrottledActs => Acts::Perhaps,
            Done | AnswerCut | StoredError | SeeOther | SeeElsewhere => Acts::Always,
            _ => Acts::Never,
        }
    }

    /// Returns whether this fate is explored at every attempt. A history has few of the others
    /// ([`Scenario::rare_fates`]).
    pub(super) fn is_common(self, scenario: Scenario) -> bool {
        use Fate::*;
        match self {
            NoConnection | Lost | Done => true,
            Refused => scenario.limits == Limits::Refusing,
            TokenRefused => scenario.has_token(),
            StillRunning | Stored | ThrottledLater | Unavailable => scenario.limits != Limits::Refusing,
            _ => false,
        }
    }

    /// Returns the status of the response, or `None` if there is no response.
    pub(super) fn status(self) -> Option<StatusCode> {
        use Fate::*;
        let code = match self {
            Done | Stored | AnswerCut => 201,
            Invalid | SaysRetry => 400,
            Mismatch => 422,
            Conflict | StillRunning | OutcomeUnknown => 409,
            StoredError | Fails => 500,
            TooEarly => 425,
            Misdirected => 421,
            Throttled | ThrottledLater => 429,
            Released | Unavailable | UnavailableLater | UnavailableMuchLater | SaysStop | DeadlinePassed => 503,
            NotImplemented => 501,
            TokenRefused | Unauthorized => 401,
            RequestTimeout => 408,
            Moved => 301,
            SeeOther | SeeElsewhere => 303,
            Temporary | TemporaryAway | TemporaryBack => 307,
            _ => return None,
        };
        StatusCode::from_u16(code).ok()
    }

    pub(super) fn retry_after(self) -> Option<Duration> {
        match self {
            Self::StillRunning => Some(SECOND),
            Self::ThrottledLater | Self::UnavailableLater => Some(5 * SECOND),
            Self::UnavailableMuchLater => Some(120 * SECOND),
            _ => None,
        }
    }

    /// Returns whether the response is final, so that the request must not be repeated.
    pub(super) fn is_final(self) -> bool {
        use Fate::*;
        matches!(
            self,
            Done | Stored
                | StoredError
                | OutcomeUnknown
                | Invalid
                | Mismatch
                | Conflict
                | SaysStop
                | NotImplemented
                | BadCertificate
        )
    }

    fn location(self) -> Option<&'static str> {
        match self {
            Self::Moved | Self::Temporary => Some(MOVED),
            Self::TemporaryBack => Some(ASKED),
            Self::SeeOther => Some(RESULT),
            Self::SeeElsewhere | Self::TemporaryAway => Some(ELSEWHERE),
            _ => None,
        }
    }

    /// Returns the headers of the response from an API that is now `api`.
    pub(super) fn head(self, api: Api) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut add = |name: HeaderName, text: String| {
            headers.insert(name, HeaderValue::try_from(text).expect("a header value"));
        };
        if let Some(time) = self.retry_after() {
            add(RETRY_AFTER, time.as_secs().to_string());
        }
        if let Some(to) = self.location() {
            add(LOCATION, to.to_owned());
        }
        match self {
            Self::TokenRefused => add(WWW_AUTHENTICATE, "Bearer".to_owned()),
            Self::SaysStop => add(HeaderName::from_static("x-should-retry"), "false".to_owned()),
            Self::SaysRetry => add(HeaderName::from_static("x-should-retry"), "true".to_owned()),
            _ => {}
        }
        if let Some(word) = self.record_word().filter(|_| api != Api::Ignores) {
            let scope = if api == Api::HonoursByPath { "" } else { ";scope=\"/\"" };
            add(HeaderName::from_static("idempotency-status"), format!("{word}{scope}"));
        }
        headers
    }

    /// Returns `Idempotency-Status` in a response of an API that honours keys.
    fn record_word(self) -> Option<&'static str> {
        match self {
            Self::Done => Some("stored"),
            Self::Stored | Self::StoredError => Some("replayed"),
            Self::StillRunning => Some("in-progress"),
            Self::OutcomeUnknown => Some("unknown"),
            Self::Released => Some("released"),
            _ => None,
        }
    }

    pub(super) fn body(self) -> &'static str {
        match self {
            Self::DeadlinePassed => {
                r#"{"type":"https://docs.rs/steadfast/latest/steadfast/guide/problems/#deadline-passed"}"#
            }
            Self::Done | Self::Stored => "null",
            _ => "",
        }
    }

    /// Returns the fate in the words of a story.
    pub(super) fn story(self) -> &'static str {
        use Fate::*;
        match self {
            NoConnection => "no connection can be made",
            NoDescriptor => "this process has no file descriptor left",
            BadCertificate => "the certificate is not accepted",
            ClosedBeforeSending => "the connection closes before anything is sent",
            Refused => "the server refuses the stream (REFUSED_STREAM)",
            TimedOutBeforeBody => "the time is up before the body is asked for",
            TimedOut => "no answer comes in time",
            Lost => "the connection is lost before the answer",
            NotHttp => "the answer is not HTTP",
            AnswerCut => "the answer, 201, is cut short",
            OwnBodyFails => "the request's own body fails half-way",
            UnknownFailure => "the transport fails in an unknown way",
            Done => "the answer is 201",
            Invalid => "the answer is 400",
            Mismatch => "the answer is 422",
            Conflict => "the answer is 409, a conflict",
            StillRunning => "the answer is 409 with Retry-After: 1",
            OutcomeUnknown => "the answer is 409, outcome unknown",
            Stored => "the answer is the stored 201",
            StoredError => "the answer is a stored 500",
            Released => "the answer is 503, and the key is free again",
            TooEarly => "the answer is 425",
            Misdirected => "the answer is 421",
            Throttled => "the answer is 429",
            ThrottledLater => "the answer is 429 with Retry-After: 5",
            Unavailable => "the answer is 503",
            UnavailableLater => "the answer is 503 with Retry-After: 5",
            UnavailableMuchLater => "the answer is 503 with Retry-After: 120",
            Fails => "the answer is 500",
            SaysStop => "the answer is 503 and says not to retry",
            SaysRetry => "the answer is 400 and says to retry",
            DeadlinePassed => "the answer is 503, the deadline has passed",
            NotImplemented => "the answer is 501",
            TokenRefused => "the answer is 401 with a challenge",
            Unauthorized => "the answer is 401",
            RequestTimeout => "the answer is 408",
            Moved => "the answer is 301 to /v2/charges",
            SeeOther => "the answer is 303 to the result",
            SeeElsewhere => "the answer is 303 to another origin",
            Temporary => "the answer is 307 to /v2/charges",
            TemporaryAway => "the answer is 307 to another origin",
            TemporaryBack => "the answer is 307, back to /charges",
        }
    }
}

/// The state of the server: its executions, and its records of keys.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) api: Api,
    pub(super) executions: u8,
    records: Vec<Record>,
}

#[derive(Debug)]
struct Record {
    key: String,
    path: String,
    at: Instant,
}

/// How long an API remembers a key that [forgets](Api::Forgets).
const REMEMBERS: Duration = Duration::from_millis(9500);

impl Server {
    pub(super) fn new(api: Api) -> Self {
        Self { api, executions: 0, records: Vec::new() }
    }

    /// Acts on the request, unless there is a record of its key.
    pub(super) fn act(&mut self, key: Option<&str>, path: &str, now: Instant) {
        if self.knows(key, path, now) {
            return;
        }
        self.executions = self.executions.saturating_add(1);
        if let Some(key) = key.filter(|_| self.api != Api::Ignores) {
            self.records.push(Record { key: key.to_owned(), path: path.to_owned(), at: now });
        }
    }

    /// Returns whether a request with this key has been carried out.
    pub(super) fn knows(&self, key: Option<&str>, path: &str, now: Instant) -> bool {
        let is_kept = |record: &Record| match self.api {
            Api::Ignores => false,
            Api::HonoursByPath => record.path == path,
            Api::Honours | Api::Stops => true,
            Api::Forgets => now.saturating_duration_since(record.at) < REMEMBERS,
        };
        self.records.iter().any(|record| Some(record.key.as_str()) == key && is_kept(record))
    }
}
