//! The request on its way: sent as often as its body allows, and turned into the GET of its result by a redirect.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::Inner;
use super::pattern::Pattern;
use super::payload::Payload;
use super::plan::Plan;
use super::probe::Probe;
use super::upstream::Sent;
use crate::key_policy::Trust;
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
pub(super) struct Outgoing {
    /// Everything but the body, its type and the key: those are added to what is sent. Most requests have no other headers, and one that
    /// has none needs no map of them.
    pub(super) template: reqwest::Request,
    pub(super) payload: Payload,
    pub(super) content_type: ContentType,
    /// The request came to us finished, with extensions that we cannot see.
    adopted: bool,
    /// What the caller asked for, once a redirect has turned it into the GET of its result.
    asked: Option<Box<(reqwest::Request, Payload)>>,
    /// A redirect has left the origin: nothing of the caller's but four headers goes further.
    pub(super) foreign: bool,
    /// In this attempt a redirect was followed that does not say that the server has not acted.
    pub(super) may_have_acted: bool,
    /// What came of this attempt came from another origin, to which a redirect has led.
    pub(super) is_elsewhere: bool,
}

impl Outgoing {
    pub(super) fn new(template: reqwest::Request, payload: Payload, adopted: bool) -> Self {
        let content_type = ContentType::Unsaid;
        Self {
            template,
            payload,
            content_type,
            adopted,
            asked: None,
            foreign: false,
            may_have_acted: false,
            is_elsewhere: false,
        }
    }

    /// The same request once more, to be sent beside this one; `None` if its body cannot be, or if it is done already.
    pub(super) fn fork(&self) -> Option<Self> {
        let payload = self.payload.fork().filter(|_| !self.is_done())?;
        let fork = Self::new(self.copy(&self.template, 0), payload, self.adopted);
        Some(Self { content_type: self.content_type, ..fork })
    }

    /// The request as the caller made it.
    pub(super) fn asked(&self) -> &reqwest::Request {
        self.asked.as_deref().map_or(&self.template, |(request, _)| request)
    }

    /// The server has done what was asked and said where its result is.
    pub(super) fn is_done(&self) -> bool {
        self.asked.is_some()
    }

    /// From now on this is the GET of the result.
    pub(super) fn see_other(&mut self, result: reqwest::Request, foreign: bool) {
        self.foreign = foreign;
        let asked = std::mem::replace(&mut self.template, result);
        let payload = std::mem::take(&mut self.payload);
        self.asked.get_or_insert_with(|| Box::new((asked, payload)));
    }

    /// The request of an attempt, or of a detour in it, and what watches its body.
    pub(super) fn open(
        &self,
        client: &Inner,
        plan: &Plan,
        detour: Option<&reqwest::Request>,
        body: Option<reqwest::Body>,
    ) -> (reqwest::Request, Option<Probe>) {
        let mut request = match detour {
            Some(detour) => self.copy(detour, ROOM),
            None => self.whole(client, plan),
        };
        // Only the caller says how long the body is.
        let said = detour.unwrap_or(&self.template).headers();
        // TLS may choose HTTP/2, and so may a transport that is not as we made it.
        let is_http1 = client.clear_is_http1 && request.url().scheme() == "http";
        let watched = body.map(|body| Probe::watch(body, said, is_http1));
        let (body, probe) = watched.map_or((None, None), |(body, probe)| (Some(body), Some(probe)));
        *request.body_mut() = body;
        (request, probe)
    }

    /// The request as it is sent, but for the body.
    pub(super) fn whole(&self, client: &Inner, plan: &Plan) -> reqwest::Request {
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

    /// A copy without a body, which templates do not have. It is made for every attempt, so a request of our own is put together
    /// from its parts: reqwest's `try_clone` allocates a map for the timeout that is not there. With `room` for more headers, so that the
    /// map does not grow.
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

    pub(super) fn resume_token(&self, plan: &Plan, may_have_been_processed: bool) -> Option<Box<ResumeToken>> {
        let (key, first_sent) = plan.key.as_ref().zip(plan.first_sent)?;
        Some(Box::new(ResumeToken::new(key, first_sent, &self.identity(), may_have_been_processed)))
    }

    fn identity(&self) -> Identity<'_> {
        let payload = self.asked.as_deref().map_or(&self.payload, |(_, payload)| payload);
        Identity { method: self.asked().method(), url: self.asked().url(), body: payload.bytes() }
    }

    /// Whether the key is a licence now; `head` is the latest answer's.
    pub(super) fn key_is_trusted(&self, client: &Inner, plan: &Plan, head: Option<(StatusCode, &HeaderMap)>) -> bool {
        let origin = &plan.upstream.trust;
        let path = || self.asked().url().path();
        // After a redirect to the result, answers are no longer to the keyed request.
        if let (Trust::Negotiated, Some(key), Some((status, headers)), false) =
            (plan.trust, &plan.key, head, self.is_done())
        {
            let sent = Sent { key, key_header: &client.keys.header };
            origin.learn(&plan.method, path(), &sent, status, headers);
        }
        origin.vouches(plan.trust, &plan.method, path)
    }
}

/// The same without headers.
fn blank(template: &reqwest::Request) -> reqwest::Request {
    reqwest::Request::new(template.method().clone(), template.url().clone())
}
