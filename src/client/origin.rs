//! What a client remembers of each origin: its retry budget, its breaker and cooldowns, and where it
//! honours keys.
//!
//! Budgets are per origin, so that one origin's outage does not take the retries of the others. So
//! is trust: a key is a licence only where the API has shown that it honours keys. The map is
//! bounded, and a client with a base URL needs no lookup in it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use reqwest::Url;

use super::cooldown::Cooldowns;
use super::pattern::Pattern;
use crate::key_policy::Trust;
use crate::policy::{
    AdmissionState, BreakerPolicy, BreakerState, RecordStatus, RetryBudget, TokenBucket, record_status,
};
use steadfast_core::latency::Latencies;

/// The most origins that a client remembers. Beyond it, the one that was used longest ago is
/// forgotten: its budget starts full again, and its trust starts empty.
const ORIGINS: usize = 1024;

/// The most (method, path) pairs that one origin is trusted for.
const TRUSTED: usize = 256;

/// Returns all of a URL that comes before the path: `https://api.example.com:8443`. A URL has no
/// default port, so this identifies the origin. User information has been taken off by then.
pub(super) fn origin(url: &Url) -> &str {
    let marked = |part: Option<&str>| part.map_or(0, |part| part.len() + 1);
    let rest = url.path().len() + marked(url.query()) + marked(url.fragment());
    let text = url.as_str();
    text.get(..text.len() - rest).unwrap_or(text)
}

/// One origin.
#[derive(Debug)]
pub(super) struct Origin {
    /// The value of `Host`, if it is not left to the transport.
    host: Option<HeaderValue>,
    /// Made at the first request.
    pattern: OnceLock<Pattern>,
    pub(super) budget: TokenBucket,
    pub(super) trust: KeyTrust,
    pub(super) admission: AdmissionState,
    pub(super) cooldowns: Cooldowns,
    /// Kept once something has asked how long the origin takes.
    pub(super) latencies: OnceLock<Option<Latencies>>,
}

impl Origin {
    /// Returns the headers that requests have in common, if `Host` is not left to the transport.
    pub(super) fn pattern(&self, key: &HeaderName) -> Option<&Pattern> {
        let host = self.host.as_ref()?;
        Some(self.pattern.get_or_init(|| Pattern::new(host, key)))
    }
}

/// The settings from which each origin gets its own state.
#[derive(Debug, Default)]
pub(super) struct OriginSettings {
    pub(super) budget: RetryBudget,
    pub(super) breaker: Option<BreakerPolicy>,
    /// The transport is as we made it, so requests in the clear are HTTP/1.1, and only the URL says
    /// what their `Host` is. It is then written once. The transport would write it for every request,
    /// which is a twentieth of its work.
    pub(super) names_host: bool,
}

impl OriginSettings {
    fn origin(&self, origin: &str) -> Arc<Origin> {
        // HTTP/2, which TLS may choose, has `:authority` instead (RFC 9113 §8.3.1).
        let host = origin.strip_prefix("http://").filter(|_| self.names_host);
        Arc::new(Origin {
            host: host.and_then(|host| HeaderValue::from_str(host).ok()),
            pattern: OnceLock::new(),
            budget: TokenBucket::new(self.budget),
            trust: KeyTrust::default(),
            admission: AdmissionState::new(self.breaker.clone()),
            cooldowns: Cooldowns::default(),
            latencies: OnceLock::new(),
        })
    }
}

/// Every origin that the client has spoken to.
#[derive(Debug)]
pub(super) struct OriginMap {
    settings: OriginSettings,
    base: Option<(String, Arc<Origin>)>,
    others: RwLock<HashMap<String, Entry>>,
    tick: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    origin: Arc<Origin>,
    used: AtomicU64,
}

impl OriginMap {
    pub(super) fn new(settings: OriginSettings, base: Option<&Url>) -> Self {
        let base = base.map(origin).map(|origin| (origin.to_owned(), settings.origin(origin)));
        Self { settings, base, others: RwLock::default(), tick: AtomicU64::new(0) }
    }

    /// Returns the state of an origin's breaker, if there are breakers. An origin that was never called
    /// is closed, and leaves no trace in the map.
    pub(super) fn breaker_state(&self, url: &Url, now: Instant) -> Option<BreakerState> {
        self.settings.breaker.as_ref()?;
        let others = self.others.read().unwrap_or_else(PoisonError::into_inner);
        let found = self.base(url).or_else(|| others.get(origin(url)).map(|entry| &entry.origin));
        let breaker = found.and_then(|origin| origin.admission.breaker.as_ref());
        Some(breaker.map_or(BreakerState::Closed, |breaker| breaker.state(now)))
    }

    /// Returns the base URL's origin, if this URL is there: a slash follows an origin, and nothing but
    /// the path begins with one.
    fn base(&self, url: &Url) -> Option<&Arc<Origin>> {
        let is_at = |base: &str| url.as_str().strip_prefix(base).is_some_and(|rest| rest.starts_with('/'));
        self.base.as_ref().filter(|(base, _)| is_at(base)).map(|(_, origin)| origin)
    }

    /// Returns whether this is the base URL's origin, or there is no base.
    pub(super) fn is_home(&self, origin: &Arc<Origin>) -> bool {
        self.base.as_ref().is_none_or(|(_, base)| Arc::ptr_eq(base, origin))
    }

    pub(super) fn get(&self, url: &Url) -> Arc<Origin> {
        if let Some(origin) = self.base(url) {
            return origin.clone();
        }
        let name = origin(url);
        let now = self.tick.fetch_add(1, Ordering::Relaxed);
        // Poisoning cannot leave the map half-written: nothing between lock and unlock panics.
        if let Some(entry) = self.others.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            entry.used.store(now, Ordering::Relaxed);
            return entry.origin.clone();
        }
        let mut others = self.others.write().unwrap_or_else(PoisonError::into_inner);
        if others.len() >= ORIGINS && !others.contains_key(name) {
            forget_oldest(&mut others);
        }
        let new = || Entry { origin: self.settings.origin(name), used: AtomicU64::new(now) };
        others.entry(name.to_owned()).or_insert_with(new).origin.clone()
    }
}

fn forget_oldest(others: &mut HashMap<String, Entry>) {
    let oldest = others.iter().min_by_key(|(_, entry)| entry.used.load(Ordering::Relaxed));
    if let Some(origin) = oldest.map(|(origin, _)| origin.clone()) {
        others.remove(&origin);
    }
}

/// Where one origin has shown that it honours keys.
#[derive(Debug, Default)]
pub(super) struct KeyTrust {
    /// Lets an origin that never showed a sign, the common case, be asked without the lock.
    any: AtomicBool,
    trusted: Mutex<Vec<Trusted>>,
}

#[derive(Debug, PartialEq)]
struct Trusted {
    method: Method,
    path: String,
    is_prefix: bool,
    /// How long the API says that it keeps a record.
    retention: Option<Duration>,
}

/// The path that a request asked for, and that of the last redirect it followed, if it followed
/// one.
pub(super) type Paths<'a> = (&'a str, Option<&'a str>);

impl Trusted {
    fn covers(&self, method: &Method, path: &str) -> bool {
        let path_fits = if self.is_prefix { is_below(path, &self.path) } else { path == self.path };
        path_fits && self.method == *method
    }
}

/// Whether a path begins with these segments.
fn is_below(path: &str, prefix: &str) -> bool {
    let whole_segments = |rest: &str| rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/');
    path.strip_prefix(prefix).is_some_and(whole_segments)
}

impl KeyTrust {
    /// Whether a key is a licence for this method at these paths.
    ///
    /// A repeat starts at the path that was asked for, and the attempt before it may have been
    /// carried out at the last hop. Only a sign that covers both says that the one knows the keys
    /// of the other.
    pub(super) fn is_trusted<'a>(&self, trust: Trust, method: &Method, paths: impl FnOnce() -> Paths<'a>) -> bool {
        match trust {
            Trust::Declared => true,
            Trust::Negotiated => self.covers(method, paths()),
            Trust::Nobody => false,
        }
    }

    /// Whether one sign says that the origin honours keys for this method at both paths.
    fn covers(&self, method: &Method, (asked, last): Paths<'_>) -> bool {
        let covers =
            |trusted: &Trusted| trusted.covers(method, asked) && last.is_none_or(|path| trusted.covers(method, path));
        self.any.load(Ordering::Acquire) && self.lock().iter().any(covers)
    }

    /// Takes note of what the answer to a keyed request shows about the path that answered.
    pub(super) fn observe(&self, method: &Method, path: &str, status: StatusCode, headers: &HeaderMap) {
        match sign(status, headers) {
            Sign::Honours { scope, retention } => {
                let scope = scope.filter(|scope| is_below(path, scope));
                let path = scope.unwrap_or(path).to_owned();
                self.add(Trusted { method: method.clone(), path, is_prefix: scope.is_some(), retention });
            }
            Sign::Ignores => self.remove(method, path),
            Sign::Nothing => {}
        }
    }

    /// How long the origin says that it keeps the records of such requests at any of these paths,
    /// if it does.
    pub(super) fn retention(&self, method: &Method, (asked, last): Paths<'_>) -> Option<Duration> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let covers =
            |trusted: &&Trusted| trusted.covers(method, asked) || last.is_some_and(|path| trusted.covers(method, path));
        self.lock().iter().filter(covers).filter_map(|trusted| trusted.retention).min()
    }

    fn add(&self, entry: Trusted) {
        let mut trusted = self.lock();
        if trusted.contains(&entry) {
            return;
        }
        // What it said before of the same requests.
        let same = |old: &Trusted| (&old.method, &old.path) == (&entry.method, &entry.path);
        trusted.retain(|old| !same(old) || old.is_prefix != entry.is_prefix);
        if trusted.len() >= TRUSTED {
            trusted.remove(0);
        }
        trusted.push(entry);
        self.any.store(true, Ordering::Release);
    }

    fn remove(&self, method: &Method, path: &str) {
        if self.any.load(Ordering::Acquire) {
            self.lock().retain(|trusted| !trusted.covers(method, path));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Trusted>> {
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The words of `Idempotency-Status` that only an API says that keeps records of keys.
const KEPT: [&str; 5] = ["stored", "replayed", "in-progress", "released", "unknown"];

/// What one answer shows about keys.
#[derive(Debug, PartialEq)]
enum Sign<'a> {
    Honours { scope: Option<&'a str>, retention: Option<Duration> },
    Ignores,
    Nothing,
}

/// An echo of the key is no sign: a proxy or a debugging handler that reflects headers knows
/// nothing of keys.
fn sign(status: StatusCode, headers: &HeaderMap) -> Sign<'_> {
    match record_status(headers) {
        Some(record) if record.word == "ignored" => Sign::Ignores,
        Some(RecordStatus { word, scope, retention }) if KEPT.contains(&word) => Sign::Honours { scope, retention },
        // A word that we do not know may say anything, and is no sign.
        _ if headers.contains_key("idempotent-replayed") => Sign::Honours { scope: None, retention: None },
        _ if status.is_success() => Sign::Ignores,
        _ => Sign::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Class, Hint, Idempotency, Operation, RetryPolicy};

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn the_origin_is_what_comes_before_the_path() {
        for (text, expected) in [
            ("https://api.example.com/v1?q#f", "https://api.example.com"),
            ("https://api.example.com:443/", "https://api.example.com"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("https://api.example.com?q", "https://api.example.com"),
            ("https://api.example.com/?#", "https://api.example.com"),
            ("https://api.example.com/a%23?b?#c#d", "https://api.example.com"),
        ] {
            assert_eq!(origin(&url(text)), expected);
        }
    }

    #[test]
    fn host_is_named_in_the_clear_by_a_transport_that_is_ours() {
        let host = |names_host, text| {
            let origins = OriginMap::new(OriginSettings { names_host, ..OriginSettings::default() }, None);
            origins.get(&url(text)).host.as_ref().map(|host| host.to_str().unwrap().to_owned())
        };
        assert_eq!(host(true, "http://api.example.com:80/v1").as_deref(), Some("api.example.com"));
        assert_eq!(host(true, "http://[::1]:8080/").as_deref(), Some("[::1]:8080"));
        assert_eq!(host(true, "https://api.example.com/v1"), None, "TLS may choose HTTP/2");
        assert_eq!(host(false, "http://api.example.com/v1"), None, "the transport may have one of its own");
    }

    #[test]
    fn each_origin_has_a_bucket_of_its_own_and_keeps_it() {
        let origins = OriginMap::new(OriginSettings::default(), Some(&url("https://base.example.com/v1")));
        let policy = RetryPolicy::new();
        let one = origins.get(&url("https://one.example.com/a"));
        let mut operation = Operation::start(&policy, &one.budget, Idempotency::Natural, crate::clock::now());
        let _retry = operation.decide(Class::Ambiguous, &Hint::default(), crate::clock::now(), 0.0);
        assert_eq!(origins.get(&url("https://one.example.com/b")).budget.tokens(), 486);
        assert_eq!(origins.get(&url("https://two.example.com/")).budget.tokens(), 500);
        assert!(origins.get(&url("https://base.example.com/v2")).budget.tokens() == 500);
        assert_eq!(origins.others.read().unwrap().len(), 2, "the base needs no entry");
    }

    #[test]
    fn the_map_is_bounded_and_forgets_the_one_used_longest_ago() {
        let origins = OriginMap::new(OriginSettings::default(), None);
        let first = origins.get(&url("https://first.example.com/"));
        for number in 0..ORIGINS {
            origins.get(&url(&format!("https://h{number}.example.com/")));
            if number < ORIGINS - 1 {
                origins.get(&url("https://first.example.com/"));
            }
        }
        let others = origins.others.read().unwrap();
        assert_eq!(others.len(), ORIGINS);
        assert!(Arc::ptr_eq(&others["https://first.example.com"].origin, &first));
        assert!(!others.contains_key("https://h0.example.com"));
    }

    fn observe(trust: &KeyTrust, path: &str, status: u16, lines: &[(&'static str, &str)]) {
        let lines = lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        trust.observe(&Method::POST, path, StatusCode::from_u16(status).unwrap(), &lines.collect());
    }

    fn covers(trust: &KeyTrust, path: &str) -> bool {
        trust.covers(&Method::POST, (path, None))
    }

    #[test]
    fn trust_is_earned_by_a_sign_and_lost_by_its_absence() {
        let trust = KeyTrust::default();
        let charges = |trust: &KeyTrust| covers(trust, "/v1/charges");
        observe(&trust, "/v1/charges", 503, &[]);
        assert!(!charges(&trust), "no sign");
        observe(&trust, "/v1/charges", 503, &[("idempotency-key", "\"abc\"")]);
        assert!(!charges(&trust), "an echoed key");
        observe(&trust, "/v1/charges", 503, &[("idempotent-replayed", "false")]);
        assert!(charges(&trust), "a sign");
        assert!(!trust.covers(&Method::PATCH, ("/v1/charges", None)) && !covers(&trust, "/v1/charges/1"));
        observe(&trust, "/v1/charges", 503, &[]);
        assert!(charges(&trust), "an error without a sign says nothing");
        observe(&trust, "/v1/charges", 201, &[]);
        assert!(!charges(&trust), "a success without a sign takes it back");
        observe(&trust, "/v1/charges", 201, &[("idempotent-replayed", "false")]);
        assert!(charges(&trust));
        observe(&trust, "/v1/charges", 409, &[("idempotency-status", "ignored")]);
        assert!(!charges(&trust));
        observe(&trust, "/v1/charges", 201, &[("idempotency-status", "unsupported")]);
        assert!(!charges(&trust), "a word that is not known promises nothing");
        observe(&trust, "/v1/charges", 201, &[("idempotent-replayed", "false")]);
        observe(&trust, "/v1/charges", 201, &[("idempotency-key", "abc")]);
        assert!(!charges(&trust), "a success with an echo has no sign");
    }

    #[test]
    fn two_paths_need_one_sign_that_covers_both() {
        let trust = KeyTrust::default();
        let both = |trust: &KeyTrust| trust.covers(&Method::POST, ("/v1/charges", Some("/v2/charges")));
        observe(&trust, "/v1/charges", 201, &[("idempotent-replayed", "false")]);
        observe(&trust, "/v2/charges", 201, &[("idempotent-replayed", "false")]);
        assert!(covers(&trust, "/v1/charges") && covers(&trust, "/v2/charges") && !both(&trust));
        observe(&trust, "/v2/charges", 201, &[("idempotency-status", "stored;scope=\"/\"")]);
        assert!(both(&trust));
    }

    #[test]
    fn a_scope_widens_trust_to_its_path_prefix() {
        let trust = KeyTrust::default();
        observe(&trust, "/v1/charges", 201, &[("idempotency-status", "stored;scope=\"/v1\"")]);
        assert!(covers(&trust, "/v1/refunds") && covers(&trust, "/v1"));
        assert!(!covers(&trust, "/v10") && !covers(&trust, "/v2"));
        observe(&trust, "/v3/a", 201, &[("idempotency-status", "stored;scope=\"/v1\"")]);
        assert!(covers(&trust, "/v3/a") && !covers(&trust, "/v3/b"), "a scope that is not ours");
        let trust = KeyTrust::default();
        observe(&trust, "/v10/a", 201, &[("idempotency-status", "stored;scope=\"/v1\"")]);
        assert!(covers(&trust, "/v10/a") && !covers(&trust, "/v1/charges"));
    }

    #[test]
    fn what_the_origin_says_of_its_retention_is_known_and_follows_its_latest_word() {
        let trust = KeyTrust::default();
        let retention = |path| trust.retention(&Method::POST, (path, None));
        assert_eq!(retention("/a"), None);
        observe(&trust, "/a", 201, &[("idempotency-status", "stored;retention=60")]);
        assert_eq!((retention("/a"), retention("/b")), (Some(Duration::from_secs(60)), None));
        assert_eq!(trust.retention(&Method::POST, ("/b", Some("/a"))), Some(Duration::from_secs(60)));
        observe(&trust, "/a", 201, &[("idempotency-status", "replayed;retention=3600")]);
        assert_eq!((retention("/a"), trust.lock().len()), (Some(Duration::from_secs(3600)), 1));
        observe(&trust, "/a", 201, &[]);
        assert_eq!(retention("/a"), None);
    }

    #[test]
    fn trust_is_bounded() {
        let trust = KeyTrust::default();
        for number in 0..=TRUSTED {
            observe(&trust, &format!("/{number}"), 503, &[("idempotent-replayed", "false")]);
        }
        assert_eq!(trust.lock().len(), TRUSTED);
        assert!(!covers(&trust, "/0") && covers(&trust, "/256"));
    }
}
