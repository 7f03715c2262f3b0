//! The headers that are written for each request that is sent: a valid token, and those of the
//! user's hooks.
//!
//! Nothing here decides whether a request is repeated. A token that was refused is not sent again,
//! and nothing is written once a redirect has led to another origin.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::assessment::Assessment;
use super::attempt_hook::{self, AttemptHead, LastResponse, OnAttempt};
use super::attempt_result::{AttemptError, AttemptProgress, AttemptResult};
use super::credentials::{Issued, NoToken, TokenNumber, TokenSource};
use super::operation::OperationContext;
use super::request_body::RequestBody;
use super::wire_request::WireRequest;
use crate::clock::{self, SharedTimer};
use crate::error::BoxError;
use crate::policy::{Class, Failure};

const DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");

/// What writes headers of each request.
pub(crate) struct AttemptHeaders {
    pub(crate) tokens: Option<TokenSource>,
    pub(crate) hooks: Vec<OnAttempt>,
}

impl OperationContext<'_> {
    /// Returns where the token comes from that the next attempt has to wait for, if it has to.
    pub(super) fn lacks_token(&self, wire_request: &WireRequest) -> Option<&TokenSource> {
        let is_elsewhere = wire_request.redirect_state().is_elsewhere;
        self.tokens_for(&wire_request.template, is_elsewhere).filter(|tokens| tokens.at_hand().is_none())
    }

    /// Returns where the token of a request comes from. A request that sets the header itself has
    /// none, and neither has one to another origin.
    fn tokens_for(&self, request: &reqwest::Request, is_elsewhere: bool) -> Option<&TokenSource> {
        let tokens = self.client.attempt_headers.as_ref()?.tokens.as_ref()?;
        let is_at_home = !is_elsewhere && self.client.origins.is_home(&self.origin);
        (is_at_home && !request.headers().contains_key(&tokens.header)).then_some(tokens)
    }

    /// Returns the number of the token that an attempt would carry now.
    pub(super) fn token_at_hand(&self) -> Option<TokenNumber> {
        let tokens = self.client.attempt_headers.as_ref()?.tokens.as_ref()?;
        tokens.at_hand().map(|token| token.number)
    }

    /// Returns whether the client's token would have been sent to the base URL's origin.
    pub(super) fn withholds_token(&self, headers: &HeaderMap) -> bool {
        let tokens = self.client.attempt_headers.as_ref().and_then(|headers| headers.tokens.as_ref());
        tokens.is_some_and(|tokens| !headers.contains_key(&tokens.header))
    }

    /// Learns from a response whether the server accepts the client's token.
    pub(super) fn observe_token(
        &self,
        token: Option<TokenNumber>,
        assessment: &Assessment,
        result: Option<&AttemptResult>,
    ) {
        let Some(AttemptHeaders { tokens: Some(tokens), hooks }) = self.client.attempt_headers.as_deref() else {
            return;
        };
        let Some(number) = token else { return };
        let head = result.and_then(AttemptResult::head);
        let is_about_proof = !hooks.is_empty() && head.is_some_and(|(_, headers)| asks_for_nonce(headers));
        if assessment.hint.token_refused && !is_about_proof {
            tokens.refused(number);
        } else if assessment.class == Class::Success {
            tokens.accepted(number);
        }
    }
}

/// Returns whether a 401 is about the proof beside the token: it wants this nonce in it (RFC 9449
/// §9). The token itself is good, and a hook writes the next proof.
fn asks_for_nonce(headers: &HeaderMap) -> bool {
    let is_error = |value: &HeaderValue| value.to_str().is_ok_and(|text| text.contains("\"use_dpop_nonce\""));
    headers.contains_key(DPOP_NONCE) && headers.get_all(WWW_AUTHENTICATE).iter().any(is_error)
}

impl AttemptHeaders {
    /// Waits for the token of the next request, if it has one. What the wait takes is added to the
    /// time of the attempt, up to the end of the operation.
    ///
    /// Mostly there is nothing to wait for, since the loop has waited before the attempt. But a
    /// token can be refused or expire while a redirect or a hedge is on its way.
    ///
    /// # Errors
    ///
    /// The refresh has failed, the operation's time has passed, or the token belongs to another
    /// principal than one that this operation has sent.
    pub(super) async fn prepare(
        &self,
        context: &OperationContext<'_>,
        wire_request: &WireRequest,
        progress: &AttemptProgress,
        until: &mut SharedTimer<'_>,
    ) -> Result<Prepared<'_>, AttemptError> {
        let request = wire_request.current(progress).request;
        let Some(tokens) = context.tokens_for(request, progress.redirects.is_elsewhere) else {
            return Ok(Prepared { headers: self, token: None, body: None });
        };
        let token = match tokens.at_hand() {
            Some(token) => token,
            None => wait_for(tokens, progress.limits.deadline, until).await?,
        };
        if progress.token.is_some_and(|earlier| !token.has_principal_of(earlier)) {
            let reason = "the fresh token belongs to another principal than that of an earlier attempt";
            return Err(not_sent(Failure::Credentials, Some(reason.into())));
        }
        Ok(Prepared { headers: self, token: Some(token), body: None })
    }

    /// Keeps the head of a response for the hooks of the next request.
    pub(super) fn keep_response(&self, progress: &mut AttemptProgress, response: &reqwest::Response) {
        if !self.hooks.is_empty() && !progress.redirects.is_elsewhere {
            progress.set_last_response(LastResponse { status: response.status(), headers: response.headers().clone() });
        }
    }
}

async fn wait_for(
    tokens: &TokenSource,
    deadline: Option<Instant>,
    until: &mut SharedTimer<'_>,
) -> Result<Arc<Issued>, AttemptError> {
    let started = clock::now();
    let token = tokens.get(deadline).await.map_err(|error| match error {
        NoToken::Failed(error) => not_sent(Failure::Credentials, Some(error.into())),
        NoToken::TimedOut => not_sent(Failure::Credentials, None),
    })?;
    let waited = clock::now().saturating_duration_since(started);
    until.set(clock::earlier(until.at().and_then(|at| at.checked_add(waited)), deadline));
    Ok(token)
}

/// What the headers of one request are made of.
pub(super) struct Prepared<'a> {
    headers: &'a AttemptHeaders,
    token: Option<Arc<Issued>>,
    /// The bytes of its body, if they are in memory and a hook may ask for them.
    body: Option<Bytes>,
}

impl Prepared<'_> {
    /// Reads the bytes of the body that is sent next, if they are in memory and a hook may ask for
    /// them.
    pub(super) fn read_body(mut self: Box<Self>, body: Option<reqwest::Body>) -> (Option<reqwest::Body>, Box<Self>) {
        if self.headers.hooks.is_empty() {
            return (body, self);
        }
        let (body, bytes) = match body.map(RequestBody::from) {
            None => (None, Some(Bytes::new())),
            Some(RequestBody::Bytes(bytes)) => (Some(bytes.clone().into()), Some(bytes)),
            Some(RequestBody::Once(stream)) => (stream, None),
            Some(_) => (Some(Bytes::new().into()), Some(Bytes::new())),
        };
        self.body = bytes;
        (body, self)
    }

    /// Writes the headers of a request that is about to be sent, the token before all others.
    ///
    /// # Errors
    ///
    /// A hook has failed.
    pub(super) fn write(
        self,
        context: &OperationContext<'_>,
        progress: &mut AttemptProgress,
        request: &mut reqwest::Request,
    ) -> Result<(), AttemptError> {
        if progress.redirects.is_elsewhere {
            return Ok(());
        }
        let Self { headers: AttemptHeaders { tokens, hooks }, token, body } = self;
        let token = tokens.as_ref().map(|tokens| &tokens.header).zip(token);
        let mut headers = std::mem::take(request.headers_mut());
        if let Some((name, token)) = &token {
            headers.insert(*name, token.value.clone());
        }
        let mut head = AttemptHead {
            number: progress.number,
            method: request.method(),
            url: request.url(),
            body: body.as_deref(),
            last: progress.last_response(),
            key_header: &context.client.keys.header,
            headers: &mut headers,
            refused: None,
        };
        attempt_hook::run(hooks, &mut head).map_err(|error| not_sent(Failure::AttemptHook, Some(error)))?;
        // A hook may have put its own credentials in the place of the token.
        let token = token.filter(|(name, token)| headers.get(*name) == Some(&token.value));
        progress.token = token.map(|(_, token)| token.number);
        *request.headers_mut() = headers;
        Ok(())
    }
}

/// Returns the error of an attempt of which nothing was sent. Without a source its time has passed.
fn not_sent(failure: Failure, source: Option<BoxError>) -> AttemptError {
    AttemptError { failure, timed_out: source.is_none(), head: None, body_was_taken: Some(false), source }
}
