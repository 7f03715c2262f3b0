//! The memory of where one origin has shown that it honours idempotency keys.
//!
//! A client that negotiates may repeat an ambiguous POST only where the API itself has stated that
//! it keeps records of keys. [`KeyTrust::observe`] learns from a response; [`KeyTrust::is_trusted`]
//! answers without learning.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};

use crate::key_policy::Trust;
use crate::policy::{RecordStatus, record_status};

/// The maximum number of (method, path) pairs that one origin is trusted for.
const MAX_TRUSTED: usize = 256;

/// Where one origin has shown that it honours keys.
#[derive(Debug, Default)]
pub(super) struct KeyTrust {
    /// False until the first sign, so that most origins are asked without taking the lock.
    any: AtomicBool,
    trusted: Mutex<Vec<Trusted>>,
}

/// One sign: the requests that it covers.
#[derive(Debug, PartialEq)]
struct Trusted {
    method: Method,
    path: String,
    is_prefix: bool,
    /// The retention that the API has stated, if it has.
    retention: Option<Duration>,
}

/// The paths at which a request may have been carried out.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestPaths<'a> {
    /// The path of the caller's request.
    pub(super) requested: &'a str,
    /// The path of the last redirect that was followed with the same method.
    pub(super) last_hop: Option<&'a str>,
}

impl<'a> RequestPaths<'a> {
    /// The paths of a request that was not redirected.
    pub(super) fn only(requested: &'a str) -> Self {
        Self { requested, last_hop: None }
    }
}

impl Trusted {
    fn covers(&self, method: &Method, path: &str) -> bool {
        let path_fits = if self.is_prefix { is_below(path, &self.path) } else { path == self.path };
        path_fits && self.method == *method
    }
}

/// Returns whether `path` begins with the whole segments of `prefix`.
fn is_below(path: &str, prefix: &str) -> bool {
    let whole_segments = |rest: &str| rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/');
    path.strip_prefix(prefix).is_some_and(whole_segments)
}

impl KeyTrust {
    /// Returns whether a key is a licence to repeat this method at these paths.
    ///
    /// A repeat starts at the requested path, and the attempt before it may have been carried out
    /// at the last hop. Only a sign that covers both paths shows that they share their keys.
    pub(super) fn is_trusted<'a>(
        &self,
        trust: Trust,
        method: &Method,
        paths: impl FnOnce() -> RequestPaths<'a>,
    ) -> bool {
        match trust {
            Trust::Declared => true,
            Trust::Negotiated => self.covers(method, paths()),
            Trust::Nobody => false,
        }
    }

    /// Returns whether a single sign covers this method at both paths.
    fn covers(&self, method: &Method, paths: RequestPaths<'_>) -> bool {
        let covers = |trusted: &Trusted| {
            trusted.covers(method, paths.requested) && paths.last_hop.is_none_or(|path| trusted.covers(method, path))
        };
        self.any.load(Ordering::Acquire) && self.lock().iter().any(covers)
    }

    /// Learns from the response to a keyed request whether the path of the response honours keys.
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

    /// Returns the shortest retention that the origin has stated for this method at these paths.
    pub(super) fn retention(&self, method: &Method, paths: RequestPaths<'_>) -> Option<Duration> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let covers = |trusted: &&Trusted| {
            trusted.covers(method, paths.requested) || paths.last_hop.is_some_and(|path| trusted.covers(method, path))
        };
        self.lock().iter().filter(covers).filter_map(|trusted| trusted.retention).min()
    }

    fn add(&self, entry: Trusted) {
        let mut trusted = self.lock();
        if trusted.contains(&entry) {
            return;
        }
        // A new sign replaces an older one about the same requests.
        let is_same =
            |old: &Trusted| (&old.method, &old.path, old.is_prefix) == (&entry.method, &entry.path, entry.is_prefix);
        trusted.retain(|old| !is_same(old));
        if trusted.len() >= MAX_TRUSTED {
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

/// Values of `Idempotency-Status` that only an API which keeps records of keys sends.
const HONOURING_STATUSES: [&str; 5] = ["stored", "replayed", "in-progress", "released", "unknown"];

/// What one response shows about keys.
#[derive(Debug, PartialEq)]
enum Sign<'a> {
    Honours { scope: Option<&'a str>, retention: Option<Duration> },
    Ignores,
    Nothing,
}

/// Reads the sign of a response. An echoed key is no sign: any proxy that reflects headers sends
/// one.
fn sign(status: StatusCode, headers: &HeaderMap) -> Sign<'_> {
    match record_status(headers) {
        Some(record) if record.word == "ignored" => Sign::Ignores,
        Some(RecordStatus { word, scope, retention }) if HONOURING_STATUSES.contains(&word) => {
            Sign::Honours { scope, retention }
        }
        // An unknown status is no sign.
        _ if headers.contains_key("idempotent-replayed") => Sign::Honours { scope: None, retention: None },
        _ if status.is_success() => Sign::Ignores,
        _ => Sign::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observe(trust: &KeyTrust, path: &str, status: u16, lines: &[(&'static str, &str)]) {
        let lines = lines.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()));
        trust.observe(&Method::POST, path, StatusCode::from_u16(status).unwrap(), &lines.collect());
    }

    fn covers(trust: &KeyTrust, path: &str) -> bool {
        trust.covers(&Method::POST, RequestPaths::only(path))
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
        assert!(!trust.covers(&Method::PATCH, RequestPaths::only("/v1/charges")) && !covers(&trust, "/v1/charges/1"));
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
    fn redirected_request_needs_one_sign_for_both_paths() {
        let trust = KeyTrust::default();
        let paths = RequestPaths { requested: "/v1/charges", last_hop: Some("/v2/charges") };
        let both = |trust: &KeyTrust| trust.covers(&Method::POST, paths);
        observe(&trust, "/v1/charges", 201, &[("idempotent-replayed", "false")]);
        observe(&trust, "/v2/charges", 201, &[("idempotent-replayed", "false")]);
        assert!(covers(&trust, "/v1/charges") && covers(&trust, "/v2/charges") && !both(&trust));
        observe(&trust, "/v2/charges", 201, &[("idempotency-status", "stored;scope=\"/\"")]);
        assert!(both(&trust));
    }

    #[test]
    fn scope_widens_trust_to_its_path_prefix() {
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
    fn latest_stated_retention_counts() {
        let trust = KeyTrust::default();
        let retention = |path| trust.retention(&Method::POST, RequestPaths::only(path));
        assert_eq!(retention("/a"), None);
        observe(&trust, "/a", 201, &[("idempotency-status", "stored;retention=60")]);
        assert_eq!((retention("/a"), retention("/b")), (Some(Duration::from_secs(60)), None));
        let behind_a_redirect = RequestPaths { requested: "/b", last_hop: Some("/a") };
        assert_eq!(trust.retention(&Method::POST, behind_a_redirect), Some(Duration::from_secs(60)));
        observe(&trust, "/a", 201, &[("idempotency-status", "replayed;retention=3600")]);
        assert_eq!((retention("/a"), trust.lock().len()), (Some(Duration::from_secs(3600)), 1));
        observe(&trust, "/a", 201, &[]);
        assert_eq!(retention("/a"), None);
    }

    #[test]
    fn trust_is_bounded() {
        let trust = KeyTrust::default();
        for number in 0..=MAX_TRUSTED {
            observe(&trust, &format!("/{number}"), 503, &[("idempotent-replayed", "false")]);
        }
        assert_eq!(trust.lock().len(), MAX_TRUSTED);
        assert!(!covers(&trust, "/0") && covers(&trust, "/256"));
    }
}
