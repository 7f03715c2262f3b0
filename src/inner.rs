//! The state that all clones of a client share.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use tokio_util::task::TaskTracker;

use crate::attempt_headers::AttemptHeaders;
use crate::confirm::Confirm;
use crate::defaults::Defaults;
use crate::event::Event;
use crate::journal::NotFollowed;
use crate::key_policy::KeyPolicy;
use crate::origin::OriginMap;
use crate::policy::{Classification, Outcome, RetryPolicy};
use crate::send_clock::UploadRate;
use crate::settings::{OverloadSettings, ReadTimeout};
use crate::target::Base;
use crate::transport_view::TransportView;

pub(crate) type Classifier = Arc<dyn Fn(&Outcome<'_>) -> Classification + Send + Sync>;
pub(crate) type OnEvent = Arc<dyn Fn(&Event<'_>) + Send + Sync>;

pub(crate) struct Inner {
    pub(crate) http: reqwest::Client,
    /// What is known of that client.
    pub(crate) view: TransportView,
    /// This host has no CA certificates, so every certificate is rejected.
    pub(crate) lacks_roots: bool,
    pub(crate) origins: OriginMap,
    pub(crate) base: Option<Base>,
    pub(crate) defaults: Defaults,
    pub(crate) retry: RetryPolicy,
    pub(crate) keys: KeyPolicy,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) upload_rate: Option<UploadRate>,
    pub(crate) read_timeout: ReadTimeout,
    pub(crate) body_limit: usize,
    pub(crate) max_redirects: u32,
    pub(crate) redirect_post_as_get: bool,
    /// Whether redirects to another origin are followed. An error names the reason why not.
    pub(crate) cross_origin_redirects: Result<(), NotFollowed>,
    /// The same through a transport of the user's, which may add credentials by itself.
    pub(crate) cross_origin_through: Result<(), NotFollowed>,
    pub(crate) attempt_header: Option<HeaderName>,
    /// Boxed because most clients have none.
    pub(crate) attempt_headers: Option<Box<AttemptHeaders>>,
    pub(crate) overload: OverloadSettings,
    pub(crate) classifier: Option<Classifier>,
    pub(crate) on_event: Option<OnEvent>,
    pub(crate) confirm: Option<Confirm>,
    pub(crate) settling_time: Option<Duration>,
    /// The tasks of detached requests.
    pub(crate) detached: TaskTracker,
    /// Whether spans are made for a subscriber that listens.
    pub(crate) spans: bool,
}
