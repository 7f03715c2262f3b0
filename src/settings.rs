//! The client's settings of overload protection, of redirects and of the read timeout.
//!
//! The builder's methods set them (`builder/overload.rs`, `builder/redirects.rs`,
//! `builder/timeouts.rs`), and its `check` checks them.

use std::time::Duration;

use http::HeaderName;

use super::cooldown::Lanes;
use super::origin::OriginSettings;
use crate::journal::NotFollowed;
use crate::policy::{BreakerPolicy, HedgePolicy, RetryBudget};

/// Which mechanisms of overload protection are on. By default none is.
#[derive(Debug, Default)]
pub(super) struct OverloadSettings {
    pub(super) breaker: Option<BreakerPolicy>,
    pub(super) cooldown: Option<Lanes>,
    pub(super) deadline_header: Option<HeaderName>,
    pub(super) hedge: Option<HedgePolicy>,
}

impl OverloadSettings {
    /// Returns the settings from which each origin gets its own state.
    pub(super) fn origins(&self, budget: RetryBudget, names_host: bool) -> OriginSettings {
        OriginSettings { budget, breaker: self.breaker.clone(), names_host }
    }
}

/// The default of [`ReadTimeout`]. Event streams send a comment every 15 s or so (WHATWG HTML
/// §9.2.7), and common proxies end a connection that is silent for 60 s.
const READ_TIMEOUT: Duration = Duration::from_secs(90);

/// The longest pause in a response body.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ReadTimeout {
    Default,
    Set(Option<Duration>),
}

impl ReadTimeout {
    pub(super) fn duration(&self) -> Option<&Duration> {
        match self {
            Self::Default => Some(&READ_TIMEOUT),
            Self::Set(timeout) => timeout.as_ref(),
        }
    }
}

const MAX_REDIRECTS: u32 = 10;

/// Which redirects are followed. The rules that these settings change are in `redirect.rs`.
#[derive(Debug)]
pub(super) struct RedirectSettings {
    /// Maximum number of redirects of one attempt.
    pub(super) max: u32,
    /// A 301 or 302 to a POST becomes a GET.
    pub(super) post_as_get: bool,
    /// Whether a redirect may lead to another origin. `None`: it depends on the transport.
    pub(super) cross_origin: Option<bool>,
}

impl Default for RedirectSettings {
    fn default() -> Self {
        Self { max: MAX_REDIRECTS, post_as_get: false, cross_origin: None }
    }
}

impl RedirectSettings {
    /// Checks whether redirects to another origin are followed. An error names the reason.
    /// `is_ours`: the transport is this crate's own. Another one may add credentials to every
    /// request, and the client can neither see nor remove them.
    pub(super) fn may_leave(&self, is_ours: bool) -> Result<(), NotFollowed> {
        match self.cross_origin {
            Some(true) => Ok(()),
            Some(false) => Err(NotFollowed::CrossOriginOff),
            None => is_ours.then_some(()).ok_or(NotFollowed::MayAddCredentials),
        }
    }
}
