//! The request of one operation, kept so that every attempt can send it again.
//!
//! A 303 turns it into the GET of its result. The caller's request is kept beside that one, for
//! events, errors and the resume token.

use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue};

use super::attempt_result::AttemptProgress;
use super::common_headers::CommonHeaders;
use super::key_trust::RequestPaths;
use super::redirect::{RedirectState, ResultRequest, SentRequest};
use super::request_body::{ContentType, RequestBody};
use crate::resume::Identity;

/// Room for the headers that are added to the template's: `Host`, `Accept`, the key,
/// `Content-Type`, and one to spare.
const EXTRA_HEADERS: usize = 5;

/// A request that can be sent as often as its body allows.
pub(super) struct WireRequest {
    /// Everything but the body, its type and the key, which are added for each attempt. Most
    /// requests have no other headers, and then there is no map to allocate.
    pub(super) template: reqwest::Request,
    pub(super) body: RequestBody,
    pub(super) content_type: ContentType,
    /// The caller built the request with reqwest. It may have extensions that are not visible here.
    is_prebuilt: bool,
    /// Whether a 301 or 302 turns this POST into a GET. `None` leaves that to the client.
    pub(super) post_as_get: Option<bool>,
    /// Present once a 303 has turned the request into the GET of its result. Boxed because that is
    /// rare.
    original: Option<Box<Original>>,
}

/// The caller's request, after a 303 has replaced it.
struct Original {
    request: reqwest::Request,
    body: RequestBody,
    result_is_elsewhere: bool,
}

impl WireRequest {
    pub(super) fn new(template: reqwest::Request, body: RequestBody, is_prebuilt: bool) -> Self {
        Self { template, body, content_type: ContentType::Unset, is_prebuilt, post_as_get: None, original: None }
    }

    /// Returns a copy for a hedge, or `None` if the body cannot be sent twice at the same time or
    /// the operation is done already.
    pub(super) fn fork(&self) -> Option<Self> {
        let body = self.body.fork().filter(|_| !self.is_done())?;
        let fork = Self::new(self.copy_of(&self.template, 0), body, self.is_prebuilt);
        Some(Self { content_type: self.content_type, post_as_get: self.post_as_get, ..fork })
    }

    /// Returns a copy of a request that was not sent yet, or `None` if the body cannot be sent
    /// twice.
    pub(super) fn try_clone(&self) -> Option<Self> {
        let copy = Self::new(self.copy_of(&self.template, 0), self.body.try_clone()?, self.is_prebuilt);
        Some(Self { content_type: self.content_type, post_as_get: self.post_as_get, ..copy })
    }

    /// Returns the request as the caller made it.
    pub(super) fn original(&self) -> &reqwest::Request {
        self.original.as_ref().map_or(&self.template, |original| &original.request)
    }

    /// Returns whether a 303 has ended the operation.
    pub(super) fn is_done(&self) -> bool {
        self.original.is_some()
    }

    /// Returns the state from which the next attempt starts.
    pub(super) fn redirect_state(&self) -> RedirectState {
        match &self.original {
            None => RedirectState::default(),
            Some(original) => {
                RedirectState { is_done: true, is_elsewhere: original.result_is_elsewhere, ..RedirectState::default() }
            }
        }
    }

    /// Returns the request that an attempt sent last: the template, or the last hop.
    pub(super) fn current<'a>(&'a self, progress: &'a AttemptProgress) -> SentRequest<'a> {
        let request = progress.hop().unwrap_or(&self.template);
        let body = if progress.redirects.is_done { &RequestBody::Empty } else { &self.body };
        SentRequest { request, body }
    }

    /// Returns the paths at which an attempt may have been carried out.
    pub(super) fn paths<'a>(&'a self, progress: &'a AttemptProgress) -> RequestPaths<'a> {
        let hop = progress.same_method_hop().filter(|_| !progress.redirects.is_done);
        RequestPaths { requested: self.original().url().path(), last_hop: hop.map(|hop| hop.url().path()) }
    }

    /// Becomes the GET of the result, if a 303 of this attempt has named one.
    pub(super) fn become_result(&mut self, progress: &mut AttemptProgress) {
        let Some(ResultRequest { request, is_elsewhere: result_is_elsewhere }) = progress.take_result() else { return };
        let request = std::mem::replace(&mut self.template, request);
        let body = std::mem::take(&mut self.body);
        self.original.get_or_insert_with(|| Box::new(Original { request, body, result_is_elsewhere }));
    }

    /// Builds the request of an attempt, without its body.
    pub(super) fn assemble(
        &self,
        key: Option<(&HeaderName, HeaderValue)>,
        common: Option<&CommonHeaders>,
    ) -> reqwest::Request {
        let has_no_headers = self.template.headers().is_empty() && !self.is_prebuilt;
        if let (Some(common), true) = (common, has_no_headers) {
            let mut request = without_headers(&self.template);
            *request.headers_mut() = common.headers(key, self.content_type);
            return request;
        }
        let mut request = self.copy(&self.template);
        let headers = request.headers_mut();
        if let Some(common) = common {
            common.add_to(headers);
        }
        if let Some((name, key)) = key {
            headers.entry(name).or_insert(key);
        }
        if let Some(content_type) = self.content_type.value() {
            headers.entry(CONTENT_TYPE).or_insert(content_type);
        }
        request
    }

    /// Copies a request that is about to be sent.
    pub(super) fn copy(&self, request: &reqwest::Request) -> reqwest::Request {
        self.copy_of(request, EXTRA_HEADERS)
    }

    /// Copies a request without its body, with room for more headers.
    ///
    /// Every attempt needs a copy. It is built from its parts, because reqwest's `try_clone`
    /// allocates a map even without a timeout.
    fn copy_of(&self, request: &reqwest::Request, extra_headers: usize) -> reqwest::Request {
        if self.is_prebuilt
            && let Some(copy) = request.try_clone()
        {
            return copy;
        }
        let mut copy = without_headers(request);
        copy.headers_mut().reserve(request.headers().keys_len() + extra_headers);
        for (name, value) in request.headers() {
            copy.headers_mut().append(name, value.clone());
        }
        copy
    }

    /// Returns what a resume token compares.
    pub(super) fn identity(&self) -> Identity<'_> {
        let request = self.original();
        let body = self.original.as_ref().map_or(&self.body, |original| &original.body);
        Identity { method: request.method(), url: request.url(), body: body.bytes() }
    }
}

fn without_headers(request: &reqwest::Request) -> reqwest::Request {
    reqwest::Request::new(request.method().clone(), request.url().clone())
}
