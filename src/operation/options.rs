//! The settings of one request that differ from the client's.

use std::time::Duration;

use crate::key::IdempotencyKey;
use crate::policy::{HedgePolicy, RetryPolicy};
use crate::resume::ResumeToken;
use crate::send_clock::UploadRate;

/// The settings of one request that differ from the client's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) key: Option<IdempotencyKey>,
    pub(crate) resume: Option<ResumeToken>,
    pub(crate) idempotent: Option<bool>,
    pub(crate) retry: Option<RetryPolicy>,
    pub(crate) hedge: Option<Option<HedgePolicy>>,
    pub(crate) timeout: Option<Option<Duration>>,
    pub(crate) attempt_timeout: Option<Option<Duration>>,
    pub(crate) upload_rate: Option<UploadRate>,
    pub(crate) read_timeout: Option<Option<Duration>>,
    pub(crate) body_limit: Option<usize>,
}

/// The options of most requests, in one static, because creating and dropping them takes longer.
pub(super) static NO_OPTIONS: Options = Options {
    key: None,
    resume: None,
    idempotent: None,
    retry: None,
    hedge: None,
    timeout: None,
    attempt_timeout: None,
    upload_rate: None,
    read_timeout: None,
    body_limit: None,
};

/// The limits of pauses that one request sets.
pub(super) struct OwnPauses {
    pub(super) upload_rate: Option<UploadRate>,
    pub(super) read_timeout: Option<Option<Duration>>,
}

pub(super) fn own_pauses(options: &Options) -> Option<Box<OwnPauses>> {
    let &Options { upload_rate, read_timeout, .. } = options;
    (upload_rate.is_some() || read_timeout.is_some()).then(|| Box::new(OwnPauses { upload_rate, read_timeout }))
}
