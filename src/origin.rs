//! What a client remembers of each origin: its retry budget, its breaker and cooldowns, and where it
//! honours keys.
//!
//! Budgets are per origin, so that one origin's outage does not take the retries of the others. So
//! is trust: a key is a licence only where the API has shown that it honours keys. The map is
//! bounded, and a client with a base URL needs no lookup in it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use http::{HeaderName, HeaderValue};
use reqwest::Url;
use steadfast_core::latency::Latencies;

use super::common_headers::CommonHeaders;
use super::cooldown::Cooldowns;
use super::key_trust::KeyTrust;
use crate::policy::{AdmissionState, BreakerPolicy, BreakerState, RetryBudget, TokenBucket};

/// The most origins that a client remembers. Beyond it, the one that was used longest ago is
/// forgotten: its budget starts full again, and its trust starts empty.
const ORIGINS: usize = 1024;

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
    common_headers: OnceLock<CommonHeaders>,
    pub(super) budget: TokenBucket,
    pub(super) trust: KeyTrust,
    pub(super) admission: AdmissionState,
    pub(super) cooldowns: Cooldowns,
    /// Kept once something has asked how long the origin takes.
    pub(super) latencies: OnceLock<Option<Latencies>>,
}

impl Origin {
    /// Returns the headers that requests have in common, if `Host` is not left to the transport.
    pub(super) fn common_headers(&self, key: &HeaderName) -> Option<&CommonHeaders> {
        let host = self.host.as_ref()?;
        Some(self.common_headers.get_or_init(|| CommonHeaders::new(host, key)))
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
            common_headers: OnceLock::new(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Class, Hint, Idempotency, Operation, RetryPolicy};

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn origin_is_the_part_before_the_path() {
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
    fn host_header_is_ours_in_the_clear_only() {
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
    fn each_origin_keeps_its_own_bucket() {
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
    fn origin_map_evicts_least_recently_used() {
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
}
