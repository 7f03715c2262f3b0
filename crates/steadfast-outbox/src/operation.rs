//! What is handed to an outbox: a prepared request, with a name and a principal if you like.

use std::time::Duration;

use http::header::{ACCEPT, CONTENT_LANGUAGE, CONTENT_TYPE};
use http::{HeaderMap, HeaderName};
use steadfast::PreparedRequest;
use steadfast::adapter::DurableRequest;
use steadfast_core::milliseconds;

use crate::entry::{StoredKey, StoredRequest};
use crate::error::OutboxError;
use crate::id::OperationId;
use crate::rules::NewEntry;

/// The headers that every outbox stores.
const STORED: [HeaderName; 3] = [CONTENT_TYPE, CONTENT_LANGUAGE, ACCEPT];

/// A prepared request for an outbox. [`DurableExt`] makes one of a [`PreparedRequest`].
#[derive(Debug)]
#[must_use = "an operation does nothing until it is submitted"]
pub struct DurableOperation {
    prepared: PreparedRequest,
    name: Option<String>,
    principal: Option<String>,
    expires_in: Option<Duration>,
}

impl DurableOperation {
    /// Names the operation. The same name twice in one outbox is the same operation, and is sent
    /// once. Default: no name.
    ///
    /// The outbox remembers a name until the operation was acknowledged and the retention of its key
    /// has passed.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sends the operation in the name of this principal, with the client that
    /// [`principals`](crate::OutboxBuilder::principals) returns for it. Default: the client of the
    /// outbox.
    pub fn as_principal(mut self, name: impl Into<String>) -> Self {
        self.principal = Some(name.into());
        self
    }

    /// Gives the operation up if no attempt was made within this time. Default: never.
    pub fn expires_in(mut self, time: Duration) -> Self {
        self.expires_in = Some(time);
        self
    }

    /// Makes the entry to write down. `also`: further headers that are stored.
    ///
    /// # Errors
    ///
    /// The request has a part that cannot be stored.
    pub(crate) fn into_entry(self, id: OperationId, also: &[HeaderName]) -> Result<NewEntry, OutboxError> {
        let Self { prepared, name, principal, expires_in } = self;
        let request = DurableRequest::from_prepared(prepared).map_err(|error| OutboxError::Request(Box::new(error)))?;
        let request = stored(request, also)?;
        let expires_in_ms = expires_in.map(milliseconds);
        Ok(NewEntry { name, principal, expires_in_ms, ..NewEntry::new(id, request) })
    }
}

impl From<PreparedRequest> for DurableOperation {
    fn from(prepared: PreparedRequest) -> Self {
        Self { prepared, name: None, principal: None, expires_in: None }
    }
}

/// Methods of a [`PreparedRequest`] for an outbox.
///
/// ```
/// use steadfast_outbox::DurableExt;
///
/// # fn example(client: steadfast::Client) -> steadfast::Result<()> {
/// let charge = client.post("https://api.example.com/charges").body("12 EUR").prepare()?;
/// let charge = charge.named("order-1042-charge").as_principal("tenant-7");
/// # drop(charge);
/// # Ok(())
/// # }
/// ```
pub trait DurableExt {
    /// See [`DurableOperation::named`].
    fn named(self, name: impl Into<String>) -> DurableOperation;

    /// See [`DurableOperation::as_principal`].
    #[allow(clippy::wrong_self_convention, reason = "as in `run as`")]
    fn as_principal(self, name: impl Into<String>) -> DurableOperation;

    /// See [`DurableOperation::expires_in`].
    fn expires_in(self, time: Duration) -> DurableOperation;
}

impl DurableExt for PreparedRequest {
    fn named(self, name: impl Into<String>) -> DurableOperation {
        DurableOperation::from(self).named(name)
    }

    fn as_principal(self, name: impl Into<String>) -> DurableOperation {
        DurableOperation::from(self).as_principal(name)
    }

    fn expires_in(self, time: Duration) -> DurableOperation {
        DurableOperation::from(self).expires_in(time)
    }
}

fn stored(request: DurableRequest, also: &[HeaderName]) -> Result<StoredRequest, OutboxError> {
    let DurableRequest { method, url, headers, body, key, retention, idempotent } = request;
    check_headers(&headers, also)?;
    let key = key.map(|key| StoredKey {
        text: key.as_str().to_owned(),
        is_minted: key.is_minted(),
        spelling: key.spelling(),
    });
    Ok(StoredRequest {
        method: method.as_str().to_owned(),
        url: String::from(url),
        headers: headers.iter().collect(),
        body: body.to_vec(),
        key,
        retention_ms: milliseconds(retention),
        idempotent,
    })
}

fn check_headers(headers: &HeaderMap, also: &[HeaderName]) -> Result<(), OutboxError> {
    match headers.keys().find(|name| !STORED.contains(name) && !also.contains(name)) {
        Some(name) => Err(OutboxError::Header { name: name.clone() }),
        None => Ok(()),
    }
}
