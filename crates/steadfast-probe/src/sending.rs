//! Makes, sends and counts the requests of a probe. A request is read to its end, or cut as soon as
//! it was sent.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use reqwest::{RequestBuilder, Url};
use steadfast::{IdempotencyKey, KeyFormat};
use steadfast_core::clock;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::answers::Answered;
use super::{Probe, ProbeError, SampleRequest};

/// Wait before the next request for an operation in progress, if the API sets no `Retry-After`.
const AGAIN: Duration = Duration::from_millis(250);

/// Time between taking the last byte of a request and dropping its connection, so that the byte can
/// leave.
const LEAVE: Duration = Duration::from_millis(5);

/// Sends the requests of a probe and counts them.
pub(super) struct Sender<'a> {
    pub(super) settings: Probe<'a>,
    http: reqwest::Client,
    url: Url,
    /// The form of the keys.
    pub(super) form: KeyFormat,
    /// Number of keys minted: the source of the numbers for `{unique}`.
    minted: usize,
    pub(super) sent: usize,
    /// Number of requests that may have created an operation.
    pub(super) created: usize,
}

/// A key, and the unique number of its operation.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) text: String,
    pub(super) unique: String,
}

impl<'a> Sender<'a> {
    pub(super) fn new(mut settings: Probe<'a>) -> Result<Self, ProbeError> {
        let url = settings.url.parse().map_err(|error| ProbeError::Build(format!("{}: {error}", settings.url)))?;
        let http = match settings.http.take() {
            Some(http) => http,
            None => reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .build()
                .map_err(|error| ProbeError::Build(error.to_string()))?,
        };
        Ok(Self { settings, http, url, form: KeyFormat::Bare, minted: 0, sent: 0, created: 0 })
    }

    /// Returns method and URL, without the parts that may be secret.
    pub(super) fn target(&self) -> String {
        let mut url = self.url.clone();
        url.set_query(None);
        // Fails for URLs without user information.
        let _none = url.set_username("").and_then(|()| url.set_password(None));
        format!("{} {url}", self.settings.sample.method)
    }

    pub(super) fn mint(&mut self) -> Result<Key, ProbeError> {
        let key = IdempotencyKey::mint().map_err(|error| ProbeError::Build(error.to_string()))?;
        self.minted += 1;
        // Uses the key's own digits, so that two runs share no number.
        let digits: String = key.as_str().chars().filter(char::is_ascii_digit).take(9).collect();
        Ok(Key { text: key.as_str().to_owned(), unique: format!("{}{digits}", self.minted) })
    }

    pub(super) async fn ask(&mut self, key: &Key) -> Result<Answered, String> {
        self.send(key, self.settings.sample.body.clone()).await
    }

    /// Sends a request and counts it.
    pub(super) async fn send(&mut self, key: &Key, body: String) -> Result<Answered, String> {
        let request = self.request(key, &body);
        let answer = exchange(request, self.settings.patience).await;
        self.count(&answer);
        answer
    }

    fn count(&mut self, answer: &Result<Answered, String>) {
        self.sent += 1;
        self.created += usize::from(!answer.as_ref().is_ok_and(Answered::is_refusal));
    }

    fn request(&self, key: &Key, body: &str) -> RequestBuilder {
        let SampleRequest { method, headers, .. } = &self.settings.sample;
        let mut request = self.http.request(method.clone(), self.url.clone());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let text = if self.form == KeyFormat::Quoted { format!("\"{}\"", key.text) } else { key.text.clone() };
        request.header(self.settings.header.clone(), text).body(body.replace("{unique}", &key.unique))
    }

    /// Sends concurrent requests under one key.
    pub(super) async fn flock(&mut self, key: &Key) -> Vec<Result<Answered, String>> {
        let mut flock = JoinSet::new();
        for _ in 0..self.settings.at_once {
            flock.spawn(exchange(self.request(key, &self.settings.sample.body), self.settings.patience));
        }
        let answers = flock.join_all().await;
        answers.iter().for_each(|answer| self.count(answer));
        answers
    }

    /// Sends a request and drops the connection as soon as the request has left. Returns the
    /// response if it came first.
    pub(super) async fn cut(&mut self, key: &Key) -> Option<Result<Answered, String>> {
        self.sent += 1;
        self.created += 1;
        let body = Bytes::from(self.settings.sample.body.replace("{unique}", &key.unique));
        cut(self.request(key, ""), body, self.settings.patience).await
    }

    /// Repeats the request until the operation is no longer in progress. Also returns whether it
    /// was in progress at first.
    pub(super) async fn ask_until_it_has_ended(&mut self, key: &Key) -> (Result<Answered, String>, bool) {
        let deadline = clock::now().checked_add(self.settings.patience);
        let mut ran = false;
        loop {
            let answer = self.ask(key).await;
            let runs = answer.as_ref().is_ok_and(|answer| {
                [StatusCode::CONFLICT, StatusCode::TOO_EARLY, StatusCode::LOCKED].contains(&answer.status)
            });
            if !runs || deadline.is_some_and(|deadline| clock::now() >= deadline) {
                return (answer, ran);
            }
            ran = true;
            let asked = answer.as_ref().ok().and_then(|answer| answer.header("retry-after")?.parse().ok());
            clock::sleep(asked.map_or(AGAIN, Duration::from_secs).min(self.settings.patience)).await;
        }
    }
}

/// Sends a request and reads the whole response.
async fn exchange(request: RequestBuilder, patience: Duration) -> Result<Answered, String> {
    let response = request.timeout(patience).send().await.map_err(reason)?;
    let (status, headers) = (response.status(), response.headers().clone());
    let body = response.bytes().await.map_err(reason)?.to_vec();
    Ok(Answered { status, headers, body })
}

/// Sends a request and drops its connection as soon as the request has left. Returns the response
/// if it came first.
pub(super) async fn cut(request: RequestBuilder, body: Bytes, patience: Duration) -> Option<Result<Answered, String>> {
    let (taken, left) = oneshot::channel();
    let watched = Watched { body: Some(body), taken: Some(taken) };
    let hang_up = async {
        // If the body is never taken, the sender is dropped, and there is nothing to wait for.
        let _taken = left.await;
        clock::sleep(LEAVE).await;
    };
    tokio::select! {
        answer = exchange(request.body(reqwest::Body::wrap(watched)), patience) => Some(answer),
        () = hang_up => None,
    }
}

/// Returns the innermost cause, without the URL, which may contain credentials.
fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut reason: &dyn std::error::Error = &error;
    while let Some(source) = reason.source() {
        reason = source;
    }
    reason.to_string()
}

/// A body that reports when the transport has taken it.
struct Watched {
    body: Option<Bytes>,
    taken: Option<oneshot::Sender<()>>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = self.body.take().map(|body| Ok(Frame::data(body)));
        if let Some(taken) = self.taken.take() {
            let _nobody_waits = taken.send(());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.body.as_ref().map_or(0, |body| body.len() as u64))
    }
}
