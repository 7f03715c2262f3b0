//! Scenarios: the caller, the API and the settings of one exploration.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use http::{HeaderName, Method};
use reqwest::Url;

use crate::origin::{Origin, OriginMap, OriginSettings};
use crate::policy::{Backoff, BreakerPolicy, Jitter, RetryBudget, RetryPolicy};
use crate::resume::{Identity, ResumeToken};
use crate::{Client, RequestBuilder};
use crate::{ClientBuilder, IdempotencyKey, KeyPolicy};

/// The request that the caller makes.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(super) enum Ask {
    Get,
    Put,
    /// A PUT whose body is a stream, which can be sent once.
    PutStream,
    /// A POST without a key.
    Post,
    /// A POST with a key that the client mints.
    PostMinted,
    /// A POST with a key of the caller's.
    PostGiven,
    /// A POST that an earlier process has sent. Its response was lost. `acted`: whether the server
    /// has acted on it.
    PostResumed {
        acted: bool,
    },
}

/// On whose statement the client relies that the API honours keys.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(super) enum Word {
    /// Nobody, and no response changes that.
    Nobody,
    /// The API, by the signs in its responses.
    Api,
    /// The user.
    User,
}

/// What the API does with keys.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(super) enum Api {
    Ignores,
    /// Honours a key at the path where it was used first, and at no other.
    HonoursByPath,
    Honours,
    /// Honours keys for 9.5 s. The client is configured with 10 s, less its margin of 5 %.
    Forgets,
    /// Honours keys until a deployment turns that off.
    Stops,
}

/// The settings of the client.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(super) enum Limits {
    /// Three attempts in 30 s.
    Default,
    /// One attempt, and no free repeat.
    Never,
    Two,
    /// No token for a retry.
    EmptyBudget,
    /// The default, with a server that refuses streams again and again.
    Refusing,
    /// A time limit of 12 s for the operation.
    Hurried,
    /// A circuit that opens at the first failure.
    Breaker,
    /// The API may act and still respond 429, and the user has declared this.
    ThrottledActs,
    /// The client has a token that it can renew.
    Token,
    /// The same, and a gateway passes on the 401 of a server that may have acted. The user has
    /// declared this.
    UnauthorizedActs,
    /// The client sends its deadline, and a server may refuse a request that is too late.
    TellsDeadline,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(super) struct Scenario {
    pub(super) ask: Ask,
    pub(super) word: Word,
    pub(super) api: Api,
    pub(super) limits: Limits,
    /// TLS, which may have negotiated HTTP/2.
    pub(super) tls: bool,
}

pub(super) const SECOND: Duration = Duration::from_secs(1);

impl Scenario {
    pub(super) const fn new(ask: Ask, word: Word, api: Api) -> Self {
        Self { ask, word, api, limits: Limits::Default, tls: false }
    }

    /// Returns every combination in which something else may happen.
    pub(super) fn all() -> Vec<Self> {
        use Ask::{Get, Post, PostGiven, PostMinted, PostResumed, Put, PutStream};
        let by_all = |ask, word, apis: &[Api]| apis.iter().map(|api| Self::new(ask, word, *api)).collect::<Vec<_>>();
        let every_api = [Api::Ignores, Api::HonoursByPath, Api::Honours];
        let mut all = [
            by_all(Post, Word::Nobody, &[Api::Ignores]),
            by_all(PostGiven, Word::Nobody, &[Api::Ignores, Api::Honours]),
            by_all(PostMinted, Word::Api, &every_api),
            by_all(PostMinted, Word::User, &[Api::Honours]),
        ]
        .concat();
        let licensed = Self::new(PostMinted, Word::User, Api::Honours);
        let earned = Self::new(PostMinted, Word::Api, Api::Honours);
        let keyless = Self::new(Post, Word::Nobody, Api::Ignores);
        for limits in [Limits::Never, Limits::Two, Limits::EmptyBudget, Limits::Breaker] {
            all.extend([licensed, earned, keyless].map(|scenario| Self { limits, ..scenario }));
        }
        for limits in [Limits::Refusing, Limits::Hurried] {
            all.extend([licensed, keyless].map(|scenario| Self { limits, ..scenario }));
        }
        let stopping = Self::new(PostMinted, Word::Api, Api::Stops);
        let given = Self::new(PostGiven, Word::User, Api::Honours);
        let wrongly = Self::new(PostMinted, Word::User, Api::Ignores);
        let natural = Self::new(Put, Word::Nobody, Api::Ignores);
        let resumed = Self::new(PostResumed { acted: false }, Word::User, Api::Honours);
        all.extend(
            [stopping, given, wrongly, natural, resumed].map(|scenario| Self { limits: Limits::Two, ..scenario }),
        );
        let special = [
            by_all(Get, Word::Nobody, &[Api::Ignores]),
            by_all(PutStream, Word::Nobody, &[Api::Ignores]),
            by_all(PostGiven, Word::Api, &[Api::Ignores]),
            by_all(PostMinted, Word::User, &[Api::Forgets]),
            by_all(PostResumed { acted: true }, Word::User, &[Api::Honours]),
            by_all(PostResumed { acted: true }, Word::Api, &[Api::Ignores]),
        ];
        all.extend(special.concat());
        let doubting = Self::new(PostMinted, Word::Api, Api::Ignores);
        for scenario in [keyless, doubting] {
            all.push(Self { tls: true, ..scenario });
            all.push(Self { limits: Limits::ThrottledActs, ..scenario });
        }
        all.push(Self { limits: Limits::TellsDeadline, ..doubting });
        for limits in [Limits::Token, Limits::UnauthorizedActs] {
            all.extend([licensed, doubting, keyless, natural].map(|scenario| Self { limits, ..scenario }));
        }
        all.push(Self { limits: Limits::Token, ..Self::new(PostMinted, Word::Api, Api::Stops) });
        all
    }

    /// Returns how many fates of one history may be other than
    /// [common](super::server::Fate::is_common) ones.
    pub(super) fn rare_fates(self) -> usize {
        if self.limits == Limits::Two && self.api != Api::Stops { 2 } else { 1 }
    }

    /// Returns whether a second execution would change something. One of a GET or PUT does not.
    pub(super) fn has_effects(self) -> bool {
        !matches!(self.ask, Ask::Get | Ask::Put | Ask::PutStream)
    }

    pub(super) fn has_token(self) -> bool {
        matches!(self.limits, Limits::Token | Limits::UnauthorizedActs)
    }

    pub(super) fn is_read(self) -> bool {
        self.ask == Ask::Get
    }

    /// Returns the maximum number of attempts, without free repeats.
    pub(super) fn max_attempts(self) -> u8 {
        match self.limits {
            Limits::Never => 1,
            Limits::Two => 2,
            _ => 3,
        }
    }

    pub(super) fn max_free_repeats(self) -> u8 {
        if self.limits == Limits::Never { 0 } else { 2 }
    }

    /// Returns the time limit of the operation.
    pub(super) fn deadline(self) -> Duration {
        if self.limits == Limits::Hurried { 12 * SECOND } else { 30 * SECOND }
    }

    fn policy(self) -> RetryPolicy {
        let policy = match self.limits {
            Limits::Never => RetryPolicy::never(),
            Limits::Two => RetryPolicy::new().max_attempts(2),
            Limits::Hurried => RetryPolicy::new().deadline(self.deadline()),
            Limits::ThrottledActs => RetryPolicy::new().throttled_is_ambiguous(true),
            Limits::UnauthorizedActs => RetryPolicy::new().unauthorized_is_ambiguous(true),
            _ => RetryPolicy::new(),
        };
        // Chance would make two replays of one history differ.
        policy.backoff(Backoff::default().jitter(Jitter::None))
    }

    pub(super) fn base(self) -> Url {
        let text = if self.tls { "https://api.test" } else { "http://api.test" };
        text.parse().expect("a URL")
    }

    /// Returns an origin of which nothing is known yet, with a full budget.
    pub(super) fn origin(self) -> std::sync::Arc<Origin> {
        let budget = match self.limits {
            Limits::EmptyBudget => RetryBudget::standard().initial(0),
            _ => RetryBudget::standard(),
        };
        let breaker = (self.limits == Limits::Breaker).then(|| BreakerPolicy::new().min_calls(1).open_jitter(0.0));
        OriginMap::new(OriginSettings { budget, breaker, names_host: false }, None).get(&self.base())
    }

    pub(super) fn request(self) -> RequestBuilder {
        let url = format!("{}charges", self.base());
        let body = if self.ask == Ask::Get { "" } else { "{}" };
        let method = match self.ask {
            Ask::Get => Method::GET,
            Ask::Put | Ask::PutStream => Method::PUT,
            _ => Method::POST,
        };
        let request = self.client().request(method, &url).retry(self.policy());
        match self.ask {
            Ask::Get => request,
            Ask::PutStream => request.body(reqwest::Body::wrap(http_body_util::Full::new(bytes::Bytes::from(body)))),
            Ask::PostGiven => request.body(body).idempotency_key(own_key()),
            Ask::PostResumed { .. } => {
                let identity =
                    Identity { method: &Method::POST, url: &url.parse().expect("a URL"), body: Some(body.as_bytes()) };
                #[allow(clippy::disallowed_methods, reason = "the age of a token is told by the wall clock")]
                let token = ResumeToken::new(&own_key(), SystemTime::now(), &identity, true);
                request.body(body).resume(token)
            }
            _ => request.body(body),
        }
    }
}

pub(super) fn own_key() -> IdempotencyKey {
    "order-1042".parse().expect("a key")
}

const DEADLINE: HeaderName = HeaderName::from_static("x-deadline-ms");

/// The clients of all scenarios, which are expensive to build.
struct Clients {
    nobody: Client,
    api: Client,
    user: Client,
    forgets: Client,
    deadline: Client,
}

/// Building one reads the certificates of the system.
static CLIENTS: LazyLock<Clients> = LazyLock::new(|| {
    let build = |builder: ClientBuilder| builder.build().expect("a client");
    let client = |keys| Client::builder().keys(keys);
    Clients {
        nobody: build(client(KeyPolicy::off())),
        api: build(client(KeyPolicy::default())),
        user: build(client(KeyPolicy::standard())),
        forgets: build(client(KeyPolicy::standard().retention(10 * SECOND))),
        deadline: build(client(KeyPolicy::default()).deadline_header(DEADLINE)),
    }
});

impl Scenario {
    pub(super) fn client(self) -> &'static Client {
        match (self.word, self.api, self.limits) {
            (Word::Nobody, ..) => &CLIENTS.nobody,
            (Word::Api, _, Limits::TellsDeadline) => &CLIENTS.deadline,
            (Word::Api, ..) => &CLIENTS.api,
            (Word::User, Api::Forgets, _) => &CLIENTS.forgets,
            (Word::User, ..) => &CLIENTS.user,
        }
    }
}
