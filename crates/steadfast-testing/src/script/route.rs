//! The requests that a script responds to.

use std::fmt;

use http::Method;
use wiremock::{Match, Request};

/// The requests that a [`Script`](super::Script) responds to: by method, path and wiremock matchers.
///
/// ```
/// use steadfast_testing::{Route, post, wiremock::matchers::header_exists};
///
/// let with_key: Route = post("/charges").and(header_exists("idempotency-key"));
/// assert_eq!(with_key.to_string(), "POST /charges (and 1 matchers)");
/// ```
#[must_use]
pub struct Route {
    method: Option<Method>,
    path: Option<String>,
    more: Vec<Box<dyn Match>>,
}

/// Matches POST requests to `path`, whatever their query.
pub fn post(path: &str) -> Route {
    Route::new(Method::POST, path)
}

/// Matches GET requests to `path`, whatever their query.
pub fn get(path: &str) -> Route {
    Route::new(Method::GET, path)
}

/// Matches every request.
pub fn any() -> Route {
    Route { method: None, path: None, more: Vec::new() }
}

impl Route {
    /// Matches requests of this method to this path, whatever their query.
    pub fn new(method: Method, path: &str) -> Self {
        Self { method: Some(method), path: Some(path.to_owned()), more: Vec::new() }
    }

    /// Adds a wiremock matcher: a request must match it too.
    pub fn and(mut self, matcher: impl Match + 'static) -> Self {
        self.more.push(Box::new(matcher));
        self
    }
}

impl Match for Route {
    fn matches(&self, request: &Request) -> bool {
        self.method.as_ref().is_none_or(|method| *method == request.method)
            && self.path.as_ref().is_none_or(|path| path == request.url.path())
            && self.more.iter().all(|matcher| matcher.matches(request))
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.method, &self.path) {
            (Some(method), Some(path)) => write!(f, "{method} {path}")?,
            _ => f.write_str("every request")?,
        }
        if self.more.is_empty() { Ok(()) } else { write!(f, " (and {} matchers)", self.more.len()) }
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
