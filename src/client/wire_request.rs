//! The request on its way: sent as often as its body allows, redirected, and perhaps turned into
//! the GET of its result.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::Inner;
use super::operation::OperationContext;
use super::pattern::Pattern;
use super::redirect::{self, Next};
use super::request_body::RequestBody;
use super::send_probe::SendProbe;
use super::upstream::{Paths, origin};
use crate::journal::NotFollowed;
use crate::key_policy::Trust;
use crate::policy::Idempotency;
use crate::resume::{Identity, ResumeToken};

/// Headers that are added to a template's: `Host`, `Accept`, the key, `Content-Type`, and one to spare.
const ROOM: usize = 5;

/// What the body is said to be where the caller's headers do not say it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum ContentType {
    #[default]
    Unsaid,
    #[cfg(feature = "json")]
    Json,
    Form,
}

impl ContentType {
    /// That of most bodies.
    #[cfg(feature = "json")]
    pub(super) const USUAL: Self = Self::Json;
    #[cfg(not(feature = "json"))]
    pub(super) const USUAL: Self = Self::Form;

    pub(super) fn value(self) -> Option<HeaderValue> {
        let text = match self {
            Self::Unsaid => return None,
            #[cfg(feature = "json")]
            Self::Json => "application/json",
            Self::Form => "application/x-www-form-urlencoded",
        };
        Some(HeaderValue::from_static(text))
    }
}

/// The request, ready to be sent as often as its body allows.
pub(super) struct WireRequest {
    /// Everything but the body, its type and the key: those are added to what is sent. Most
    /// requests have no other headers, and one that has none needs no map of them.
    pub(super) template: reqwest::Request,
    pub(super) payload: RequestBody,
    pub(super) content_type: ContentType,
    /// The request came to us finished, with extensions that we cannot see.
    adopted: bool,
    /// An earlier attempt, or one beside this, may have been processed, so what is sent now is a
    /// repeat.
    pub(super) is_repeat: bool,
    /// Boxed, because most requests are not redirected.
    redirects: Option<Box<Redirects>>,
}

/// The redirects of an operation.
#[derive(Default)]
struct Redirects {
    /// The caller's word for this request: a 301 or 302 to a POST becomes a GET. Here and not in the
    /// plan, which would be larger for every request.
    post_as_get: Option<bool>,
    /// What the caller asked for, once a redirect has turned it into the GET of its result.
    asked: Option<(reqwest::Request, RequestBody)>,
    /// The result is at another origin.
    result_is_elsewhere: bool,
    /// Those of the current attempt.
    current: AttemptRedirects,
}

/// The redirects of one attempt.
#[derive(Default)]
struct AttemptRedirects {
    /// The last hop that kept the method. The next attempt starts again without it.
    hop: Option<reqwest::Request>,
    /// A hop has left the origin.
    is_elsewhere: bool,
    /// A redirect was followed that does not say that the server has not acted.
    may_have_acted: bool,
    /// Why the last redirect was not followed.
    not_followed: Option<NotFollowed>,
}

impl WireRequest {
    pub(super) fn new(template: reqwest::Request, payload: RequestBody, adopted: bool) -> Self {
        let content_type = ContentType::Unsaid;
        Self { template, payload, content_type, adopted, is_repeat: false, redirects: None }
    }

    /// Forgets the redirects of the attempt before.
    pub(super) fn begin_attempt(&mut self) {
        if let Some(redirects) = &mut self.redirects {
            let is_elsewhere = redirects.result_is_elsewhere;
            redirects.current = AttemptRedirects { is_elsewhere, ..AttemptRedirects::default() };
        }
    }

    pub(super) fn set_post_as_get(&mut self, yes: bool) {
        self.redirects.get_or_insert_default().post_as_get = Some(yes);
    }

    /// What the caller says of a 301 or 302 to this POST; `None` leaves it to the client.
    pub(super) fn post_as_get(&self) -> Option<bool> {
        self.redirects.as_ref().and_then(|redirects| redirects.post_as_get)
    }

    fn redirects(&self) -> Option<&AttemptRedirects> {
        self.redirects.as_deref().map(|redirects| &redirects.current)
    }

    fn redirects_mut(&mut self) -> &mut AttemptRedirects {
        &mut self.redirects.get_or_insert_default().current
    }

    /// The last hop of this attempt that kept the method.
    fn hop(&self) -> Option<&reqwest::Request> {
        self.redirects().and_then(|redirects| redirects.hop.as_ref())
    }

    /// Whether this attempt followed a redirect that does not say that the server has not acted.
    pub(super) fn may_have_acted(&self) -> bool {
        self.redirects().is_some_and(|redirects| redirects.may_have_acted)
    }

    /// Whether a redirect of this attempt has left the origin. Its answer is another server's.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.redirects().is_some_and(|redirects| redirects.is_elsewhere)
    }

    /// Why the redirect that ended this attempt was not followed, if one did.
    pub(super) fn not_followed(&self) -> Option<NotFollowed> {
        self.redirects().and_then(|redirects| redirects.not_followed)
    }

    pub(super) fn set_not_followed(&mut self, reason: NotFollowed) {
        self.redirects_mut().not_followed = Some(reason);
    }

    /// The same request once more, to be sent beside this one; `None` if its body cannot be, or if it is done already.
    pub(super) fn fork(&self) -> Option<Self> {
        let payload = self.payload.fork().filter(|_| !self.is_done())?;
        let mut fork = Self::new(self.copy(&self.template, 0), payload, self.adopted);
        if let Some(yes) = self.post_as_get() {
            fork.set_post_as_get(yes);
        }
        Some(Self { content_type: self.content_type, is_repeat: self.is_repeat, ..fork })
    }

    fn asked_first(&self) -> Option<&(reqwest::Request, RequestBody)> {
        self.redirects.as_deref().and_then(|redirects| redirects.asked.as_ref())
    }

    /// The request as the caller made it.
    pub(super) fn asked(&self) -> &reqwest::Request {
        self.asked_first().map_or(&self.template, |(request, _)| request)
    }

    /// The request that was sent last: the caller's own, or the last hop.
    pub(super) fn current(&self) -> &reqwest::Request {
        self.hop().unwrap_or(&self.template)
    }

    /// The server has done what was asked and said where its result is.
    pub(super) fn is_done(&self) -> bool {
        self.asked_first().is_some()
    }

    /// Becomes the next hop of the attempt.
    pub(super) fn follow(&mut self, client: &Inner, plan: &OperationContext, next: Next) {
        let is_elsewhere = self.is_elsewhere() || next.leaves;
        let (may_have_acted, see_other) = (next.may_have_acted, next.see_other);
        let key_header = &client.keys.header;
        let hop = match self.hop() {
            Some(from) => redirect::request(from, next, is_elsewhere, key_header),
            None => redirect::request(&self.whole(client, plan), next, is_elsewhere, key_header),
        };
        let redirects = self.redirects_mut();
        redirects.may_have_acted |= may_have_acted;
        redirects.is_elsewhere = is_elsewhere;
        if see_other {
            redirects.hop = None;
            self.see_other(hop);
        } else {
            redirects.hop = Some(hop);
        }
    }

    /// From now on this is the GET of the result.
    fn see_other(&mut self, result: reqwest::Request) {
        let asked = std::mem::replace(&mut self.template, result);
        let payload = std::mem::take(&mut self.payload);
        let redirects = self.redirects.get_or_insert_default();
        redirects.asked.get_or_insert((asked, payload));
        redirects.result_is_elsewhere = redirects.current.is_elsewhere;
    }

    /// Records that a transport which follows redirects itself got its answer from `url`.
    pub(super) fn answered_from(&mut self, url: &reqwest::Url, may_have_acted: bool) {
        let is_elsewhere = origin(url) != origin(self.template.url());
        let hop = reqwest::Request::new(self.template.method().clone(), url.clone());
        *self.redirects_mut() = AttemptRedirects { hop: Some(hop), is_elsewhere, may_have_acted, not_followed: None };
    }

    /// The request of an attempt, or of a hop in it, and what watches its body.
    pub(super) fn open(
        &self,
        client: &Inner,
        plan: &OperationContext,
        body: Option<reqwest::Body>,
    ) -> (reqwest::Request, Option<SendProbe>) {
        let mut request = match self.hop() {
            Some(hop) => self.copy(hop, ROOM),
            None => self.whole(client, plan),
        };
        // Only the caller says how long the body is.
        let said = self.current().headers();
        // TLS may choose HTTP/2, and so may a transport that is not as we made it.
        let is_http1 = client.clear_is_http1 && request.url().scheme() == "http";
        let watched = body.map(|body| SendProbe::watch(body, said, is_http1));
        let (body, probe) = watched.map_or((None, None), |(body, probe)| (Some(body), Some(probe)));
        *request.body_mut() = body;
        (request, probe)
    }

    /// The request as it is sent, but for the body.
    pub(super) fn whole(&self, client: &Inner, plan: &OperationContext) -> reqwest::Request {
        if self.is_done() {
            return self.copy(&self.template, ROOM);
        }
        let key = plan.key.as_ref().map(|key| (&client.keys.header, key.to_header(client.keys.form)));
        let has_none = self.template.headers().is_empty() && !self.adopted;
        match plan.upstream.pattern(&client.keys.header) {
            Some(pattern) if has_none => {
                let mut request = blank(&self.template);
                *request.headers_mut() = pattern.headers(key, self.content_type);
                request
            }
            pattern => self.filled(pattern, key),
        }
    }

    /// The template with what it does not say itself.
    fn filled(&self, pattern: Option<&Pattern>, key: Option<(&HeaderName, HeaderValue)>) -> reqwest::Request {
        let mut request = self.copy(&self.template, ROOM);
        let headers = request.headers_mut();
        if let Some(pattern) = pattern {
            pattern.add_to(headers);
        }
        if let Some((name, key)) = key {
            headers.entry(name).or_insert(key);
        }
        if let Some(content_type) = self.content_type.value() {
            headers.entry(CONTENT_TYPE).or_insert(content_type);
        }
        request
    }

    /// A copy without a body, which templates do not have. It is made for every attempt, so a
    /// request of our own is put together from its parts: reqwest's `try_clone` allocates a map for
    /// the timeout that is not there. With `room` for more headers, so that the map does not grow.
    fn copy(&self, template: &reqwest::Request, room: usize) -> reqwest::Request {
        let whole = if self.adopted { template.try_clone() } else { None };
        whole.unwrap_or_else(|| {
            let mut copy = blank(template);
            copy.headers_mut().reserve(template.headers().keys_len() + room);
            for (name, value) in template.headers() {
                copy.headers_mut().append(name, value.clone());
            }
            copy
        })
    }

    pub(super) fn resume_token(
        &self,
        plan: &OperationContext,
        may_have_been_processed: bool,
    ) -> Option<Box<ResumeToken>> {
        let (key, first_sent) = plan.key.as_ref().zip(plan.first_sent)?;
        Some(Box::new(ResumeToken::new(key, first_sent, &self.identity(), may_have_been_processed)))
    }

    fn identity(&self) -> Identity<'_> {
        let payload = self.asked_first().map_or(&self.payload, |(_, payload)| payload);
        Identity { method: self.asked().method(), url: self.asked().url(), body: payload.bytes() }
    }

    /// Whether the key is a licence now; `head` is the latest answer's.
    pub(super) fn key_is_trusted(
        &self,
        client: &Inner,
        plan: &OperationContext,
        head: Option<(StatusCode, &HeaderMap)>,
    ) -> bool {
        let origin = &plan.upstream.trust;
        // The GET of a result has no key, and no request to another origin has. What a transport
        // that follows redirects itself has sent to the last hop is not known.
        let is_keyed = plan.key.is_some() && !self.is_done() && !self.is_elsewhere();
        let is_known = !client.opaque || self.hop().is_none();
        if let (Trust::Negotiated, Some((status, headers)), true) = (plan.trust, head, is_keyed && is_known) {
            origin.observe(&plan.method, self.current().url().path(), status, headers);
        }
        origin.is_trusted(plan.trust, &plan.method, || self.paths())
    }

    /// The path that was asked for, and that of the last hop.
    pub(super) fn paths(&self) -> Paths<'_> {
        let hop = self.hop().filter(|_| !self.is_done());
        (self.asked().url().path(), hop.map(|hop| hop.url().path()))
    }

    /// Whether the hop may be sent. After an attempt that may have been processed it is a repeat at
    /// another path, and needs the licence there.
    pub(super) fn may_repeat_at(&self, plan: &OperationContext, next: &Next) -> bool {
        let needs_key = self.is_repeat && plan.idempotency == Idempotency::Keyed && !self.is_done() && !next.see_other;
        let paths = || (self.asked().url().path(), Some(next.url.path()));
        !needs_key || plan.upstream.trust.is_trusted(plan.trust, &plan.method, paths)
    }
}

/// The same without headers.
fn blank(template: &reqwest::Request) -> reqwest::Request {
    reqwest::Request::new(template.method().clone(), template.url().clone())
}
