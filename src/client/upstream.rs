//! What a client knows about one origin: its retry budget, its breaker, and where it honours keys.
//!
//! Budgets are per origin, so that one origin's outage does not take the retries of the others, and so is trust: a key is a
//! licence only where the API has shown that it honours it. The map is bounded; a client with a base URL needs no lookup in it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use http::{HeaderName, HeaderValue};
use reqwest::Url;

use super::common_headers::CommonHeaders;
use super::cooldown::Cooldowns;
use super::key_trust::KeyTrust;
use super::latency::Latencies;
use crate::policy::{Breaker, BreakerPolicy, BreakerState, HedgeAllowance, RetryBudget};

/// The most origins that a client remembers. Beyond it the one that was used longest ago is forgotten: its budget starts full
/// again and its trust starts empty.
const ORIGINS: usize = 1024;

/// `https://api.example.com:8443`: all that comes before the path. Default ports are not written, so it identifies the origin.
/// User information has been taken off by then.
pub(super) fn origin(url: &Url) -> &str {
    let marked = |part: Option<&str>| part.map_or(0, |part| part.len() + 1);
    let rest = url.path().len() + marked(url.query()) + marked(url.fragment());
    let text = url.as_str();
    text.get(..text.len() - rest).unwrap_or(text)
}

#[derive(Debug)]
pub(super) struct Upstream {
    /// What requests say in `Host`, if it is not left to the transport.
    host: Option<HeaderValue>,
    /// Made at the first request.
    common_headers: OnceLock<CommonHeaders>,
    pub(super) budget: RetryBudget,
    pub(super) trust: KeyTrust,
    pub(super) breaker: Option<Breaker>,
    pub(super) cooldowns: Cooldowns,
    /// Kept once something has asked how long the origin takes.
    pub(super) latencies: OnceLock<Option<Latencies>>,
    pub(super) hedges: HedgeAllowance,
}

impl Upstream {
    /// The headers that requests have in common, if `Host` is not left to the transport.
    pub(super) fn common_headers(&self, key: &HeaderName) -> Option<&CommonHeaders> {
        let host = self.host.as_ref()?;
        Some(self.common_headers.get_or_init(|| CommonHeaders::new(host, key)))
    }
}

/// The settings from which every origin gets what is its own.
#[derive(Debug, Default)]
pub(super) struct Terms {
    pub(super) budget: RetryBudget,
    pub(super) breaker: Option<BreakerPolicy>,
    /// The transport is as we made it, so requests in the clear are HTTP/1.1 and nothing but the URL says what their `Host` is. It is
    /// written once then; the transport would write it for every request, which is a twentieth of all that it does.
    pub(super) names_host: bool,
}

impl Terms {
    fn upstream(&self, origin: &str) -> Arc<Upstream> {
        // HTTP/2, which TLS may choose, has `:authority` instead (RFC 9113 §8.3.1).
        let host = origin.strip_prefix("http://").filter(|_| self.names_host);
        let breaker = self.breaker.clone().map(Breaker::new);
        Arc::new(Upstream {
            host: host.and_then(|host| HeaderValue::from_str(host).ok()),
            common_headers: OnceLock::new(),
            budget: self.budget.fresh(),
            trust: KeyTrust::default(),
            breaker,
            cooldowns: Cooldowns::default(),
            latencies: OnceLock::new(),
            hedges: HedgeAllowance::default(),
        })
    }
}

/// Every origin that the client has spoken to.
#[derive(Debug)]
pub(super) struct Upstreams {
    terms: Terms,
    base: Option<(String, Arc<Upstream>)>,
    others: RwLock<HashMap<String, Entry>>,
    tick: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    upstream: Arc<Upstream>,
    used: AtomicU64,
}

impl Upstreams {
    pub(super) fn new(terms: Terms, base: Option<&Url>) -> Self {
        let base = base.map(origin).map(|origin| (origin.to_owned(), terms.upstream(origin)));
        Self { terms, base, others: RwLock::default(), tick: AtomicU64::new(0) }
    }

    /// The state of an origin's breaker, if there are breakers; one that was never spoken to is closed. It leaves no trace in the map.
    pub(super) fn breaker_state(&self, url: &Url, now: Instant) -> Option<BreakerState> {
        self.terms.breaker.as_ref()?;
        let others = self.others.read().unwrap_or_else(PoisonError::into_inner);
        let upstream = self.base(url).or_else(|| others.get(origin(url)).map(|entry| &entry.upstream));
        let breaker = upstream.and_then(|upstream| upstream.breaker.as_ref());
        Some(breaker.map_or(BreakerState::Closed, |breaker| breaker.state(now)))
    }

    /// The base URL's, if this URL is at its origin: behind an origin comes a slash, and nothing but the path begins with one.
    fn base(&self, url: &Url) -> Option<&Arc<Upstream>> {
        let is_at = |base: &str| url.as_str().strip_prefix(base).is_some_and(|rest| rest.starts_with('/'));
        self.base.as_ref().filter(|(base, _)| is_at(base)).map(|(_, upstream)| upstream)
    }

    /// Whether this is the base URL's origin, or there is no base.
    pub(super) fn is_home(&self, upstream: &Arc<Upstream>) -> bool {
        self.base.as_ref().is_none_or(|(_, base)| Arc::ptr_eq(base, upstream))
    }

    pub(super) fn get(&self, url: &Url) -> Arc<Upstream> {
        if let Some(upstream) = self.base(url) {
            return upstream.clone();
        }
        let origin = origin(url);
        let now = self.tick.fetch_add(1, Ordering::Relaxed);
        // Poisoning cannot leave the map half-written: nothing between lock and unlock panics.
        if let Some(entry) = self.others.read().unwrap_or_else(PoisonError::into_inner).get(origin) {
            entry.used.store(now, Ordering::Relaxed);
            return entry.upstream.clone();
        }
        let mut others = self.others.write().unwrap_or_else(PoisonError::into_inner);
        if others.len() >= ORIGINS && !others.contains_key(origin) {
            forget_oldest(&mut others);
        }
        let new = || Entry { upstream: self.terms.upstream(origin), used: AtomicU64::new(now) };
        others.entry(origin.to_owned()).or_insert_with(new).upstream.clone()
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
            let upstreams = Upstreams::new(Terms { names_host, ..Terms::default() }, None);
            upstreams.get(&url(text)).host.as_ref().map(|host| host.to_str().unwrap().to_owned())
        };
        assert_eq!(host(true, "http://api.example.com:80/v1").as_deref(), Some("api.example.com"));
        assert_eq!(host(true, "http://[::1]:8080/").as_deref(), Some("[::1]:8080"));
        assert_eq!(host(true, "https://api.example.com/v1"), None, "TLS may choose HTTP/2");
        assert_eq!(host(false, "http://api.example.com/v1"), None, "the transport may have one of its own");
    }

    #[test]
    fn each_origin_has_a_bucket_of_its_own_and_keeps_it() {
        let upstreams = Upstreams::new(Terms::default(), Some(&url("https://base.example.com/v1")));
        let policy = RetryPolicy::new();
        let one = upstreams.get(&url("https://one.example.com/a"));
        let mut operation = Operation::start(&policy, &one.budget, Idempotency::Natural, crate::clock::now());
        let _retry = operation.decide(Class::Ambiguous, &Hint::default(), crate::clock::now(), 0.0);
        assert_eq!(upstreams.get(&url("https://one.example.com/b")).budget.tokens(), 486);
        assert_eq!(upstreams.get(&url("https://two.example.com/")).budget.tokens(), 500);
        assert!(upstreams.get(&url("https://base.example.com/v2")).budget.tokens() == 500);
        assert_eq!(upstreams.others.read().unwrap().len(), 2, "the base needs no entry");
    }

    #[test]
    fn the_map_is_bounded_and_forgets_the_one_used_longest_ago() {
        let upstreams = Upstreams::new(Terms::default(), None);
        let first = upstreams.get(&url("https://first.example.com/"));
        for number in 0..ORIGINS {
            upstreams.get(&url(&format!("https://h{number}.example.com/")));
            if number < ORIGINS - 1 {
                upstreams.get(&url("https://first.example.com/"));
            }
        }
        let others = upstreams.others.read().unwrap();
        assert_eq!(others.len(), ORIGINS);
        assert!(Arc::ptr_eq(&others["https://first.example.com"].upstream, &first));
        assert!(!others.contains_key("https://h0.example.com"));
    }
}
