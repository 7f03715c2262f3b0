//! What all clones of a client share.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use crate::defaults::Defaults;
use crate::event::Event;
use crate::journal::NotFollowed;
use crate::key_policy::KeyPolicy;
use crate::origin::OriginMap;
use crate::policy::{Class, Outcome, RetryPolicy};
use crate::settings::OverloadSettings;

pub(crate) type Classifier = Arc<dyn Fn(&Outcome<'_>) -> Class + Send + Sync>;
pub(crate) type OnEvent = Arc<dyn Fn(&Event<'_>) + Send + Sync>;

pub(crate) struct Inner {
    pub(crate) http: reqwest::Client,
    /// A client that we were given and cannot look into.
    pub(crate) opaque: bool,
    /// The transport is as this crate made it: nobody can have told it to speak HTTP/2 with prior
    /// knowledge.
    pub(crate) is_as_made: bool,
    /// What is sent in the clear is HTTP/1: the transport is as we made it, and no proxy stands in
    /// between over TLS.
    pub(crate) clear_is_http1: bool,
    pub(crate) origins: OriginMap,
    pub(crate) base: Option<reqwest::Url>,
    pub(crate) defaults: Defaults,
    pub(crate) retry: RetryPolicy,
    pub(crate) keys: KeyPolicy,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) body_limit: usize,
    pub(crate) max_redirects: u32,
    pub(crate) redirect_post_as_get: bool,
    /// An error says why redirects to another origin are not followed.
    pub(crate) cross_origin_redirects: Result<(), NotFollowed>,
    pub(crate) attempt_header: Option<HeaderName>,
    pub(crate) overload: OverloadSettings,
    pub(crate) classifier: Option<Classifier>,
    pub(crate) on_event: Option<OnEvent>,
}
