//! One response of a script.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};
use wiremock::ResponseTemplate;

/// The parts of a response. wiremock's template would let the type of a body win over the
/// `Content-Type` that the script names, so the parts stay apart until the script is mounted.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
    content_type: Option<&'static str>,
    delay: Option<Duration>,
}

impl Reply {
    pub(super) fn new(status: u16, delay: Option<Duration>) -> Self {
        Self { status, headers: HeaderMap::new(), body: Vec::new(), content_type: None, delay }
    }

    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    pub(super) fn body(mut self, body: Vec<u8>, content_type: Option<&'static str>) -> Self {
        self.body = body;
        self.content_type = content_type;
        self
    }

    pub(super) fn template(&self) -> ResponseTemplate {
        let mut template = ResponseTemplate::new(self.status).set_body_bytes(self.body.clone());
        if let Some(content_type) = self.content_type {
            template = template.insert_header(CONTENT_TYPE, content_type);
        }
        for (name, value) in &self.headers {
            template = template.insert_header(name, value);
        }
        match self.delay {
            Some(delay) => template.set_delay(delay),
            None => template,
        }
    }
}
