//! Sending a request and reading its response inside the attempt.
//!
//! A body that breaks after the head is then an ambiguous outcome of the attempt, and is retried
//! where that is harmless. What is made of a complete body is no longer the server's business, so a
//! decoder that fails is never a reason to send the request again.

use std::future::Future;

use bytes::Bytes;

use super::super::attempt_result::AttemptProgress;
use super::super::redirect::RedirectState;
use super::super::run;
use super::super::transport::Own;
use super::super::whole_response::{self, WholeResponse};
use super::RequestBuilder;
use crate::error::{BoxError, Error, Result};

impl RequestBuilder {
    /// Feature `json`. Sends the request and retries it where that is safe. Decodes the 2xx
    /// response from JSON.
    ///
    /// The attempt includes the body. So a truncated body is an ambiguous outcome, and the request
    /// is retried if that is harmless. An empty 2xx body decodes as `null`, that is as `()` or
    /// `None`. A byte order mark before the JSON is skipped (RFC 8259 §8.1).
    ///
    /// # Errors
    ///
    /// No final response arrived, or the request is invalid. A final response is an error if:
    ///
    /// * its status is not 2xx. A redirect that is [not
    ///   followed](crate::ClientBuilder::max_redirects) is an
    ///   [`ErrorKind::Redirect`](crate::ErrorKind::Redirect), which names its target;
    /// * its body is not the JSON of a `T`;
    /// * its body is over the [limit](crate::ClientBuilder::body_limit).
    ///
    /// ```no_run
    /// use steadfast::Client;
    ///
    /// #[derive(serde::Deserialize)]
    /// struct User { name: String }
    ///
    /// # async fn example(client: Client) -> steadfast::Result<()> {
    /// let request = client.get("https://api.example.com/users").query(&[("id", 7)]);
    /// let user: User = request.fetch().await?;
    /// println!("{}", user.name);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "json")]
    pub fn fetch<T: serde::de::DeserializeOwned>(self) -> impl Future<Output = Result<T>> {
        self.read(whole_response::decode_json)
    }

    /// Sends the request and retries it where that is safe. Returns the body of the 2xx response as
    /// text.
    ///
    /// The attempt includes the body, as in [`fetch`](Self::fetch). The text is decoded as by
    /// reqwest's `Response::text`: from the `charset` of the `Content-Type`, UTF-8 by default. A
    /// byte order mark overrides the `charset` and is left out. Malformed sequences become U+FFFD.
    ///
    /// # Errors
    ///
    /// Those of [`fetch_bytes`](Self::fetch_bytes). Every body is some text.
    ///
    /// ```no_run
    /// # async fn example(client: steadfast::Client) -> steadfast::Result<()> {
    /// let page = client.get("https://www.example.com").fetch_text().await?;
    /// # drop(page);
    /// # Ok(())
    /// # }
    /// ```
    pub fn fetch_text(self) -> impl Future<Output = Result<String>> {
        let whole = self.read(|whole| Ok(whole.into_response()));
        // The body is in memory, so reqwest only decodes it.
        async move { Ok(whole.await?.text().await?) }
    }

    /// Sends the request and retries it where that is safe. Returns the body of the 2xx response.
    ///
    /// The attempt includes the body. So a truncated body is an ambiguous outcome, and the request
    /// is retried if that is harmless.
    ///
    /// # Errors
    ///
    /// No final response arrived, or the request is invalid. A final response is an error if its
    /// status is not 2xx, or if its body is over the [limit](crate::ClientBuilder::body_limit).
    ///
    /// ```no_run
    /// # async fn example(client: steadfast::Client) -> steadfast::Result<()> {
    /// let logo = client.get("https://www.example.com/logo.png").fetch_bytes().await?;
    /// println!("{} bytes", logo.len());
    /// # Ok(())
    /// # }
    /// ```
    pub fn fetch_bytes(self) -> impl Future<Output = Result<Bytes>> {
        self.read(|whole| Ok(whole.body))
    }

    /// Sends the request and retries it where that is safe. Decodes the 2xx response by a closure
    /// of yours, such as that of a CSV, XML or protobuf crate.
    ///
    /// The attempt includes the body. The decoder runs once, after the last attempt, on the
    /// complete body. That may be empty.
    ///
    /// # Errors
    ///
    /// Those of [`fetch_bytes`](Self::fetch_bytes). If the decoder fails, the error is an
    /// [`ErrorKind::Decode`](crate::ErrorKind::Decode). The operation *was* processed, and is not
    /// repeated: it would bring the same bytes. The decoder's error is the source. `{:#}` prints
    /// it, so it should not quote values that must stay out of a log.
    ///
    /// ```no_run
    /// # async fn example(client: steadfast::Client) -> steadfast::Result<()> {
    /// // One number on each line.
    /// let numbers = |body: &[u8]| {
    ///     let text = std::str::from_utf8(body)?;
    ///     let numbers: Vec<u64> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
    ///     Ok::<_, Box<dyn std::error::Error + Send + Sync>>(numbers)
    /// };
    /// let request = client.get("https://api.example.com/numbers").header("accept", "text/plain");
    /// let sum: u64 = request.fetch_with(numbers).await?.iter().sum();
    /// # drop(sum);
    /// # Ok(())
    /// # }
    /// ```
    pub fn fetch_with<T, E: Into<BoxError>>(
        self,
        decoder: impl FnOnce(&[u8]) -> std::result::Result<T, E>,
    ) -> impl Future<Output = Result<T>> {
        self.read(|whole| match decoder(&whole.body) {
            Ok(decoded) => Ok(decoded),
            Err(error) => Err(whole.not_decoded("the response could not be decoded").with_source(error.into())),
        })
    }

    /// Sends the request and retries it where that is safe. Returns the 2xx response, with its
    /// headers and its complete body.
    ///
    /// The attempt includes the body, which is in memory. So a truncated body is an ambiguous
    /// outcome, and the request is retried if that is harmless. Use it if you need a header and the
    /// body. [`ResponseExt`](crate::ResponseExt) has the links and the attempts, as after
    /// [`send`](Self::send).
    ///
    /// # Errors
    ///
    /// Those of [`fetch_bytes`](Self::fetch_bytes).
    ///
    /// ```no_run
    /// use steadfast::ResponseExt;
    ///
    /// # async fn example(client: steadfast::Client) -> steadfast::Result<()> {
    /// let page = client.get("https://api.example.com/items").fetch_response().await?;
    /// let next = page.link("next")?;
    /// let items = page.text().await?;
    /// # drop((next, items));
    /// # Ok(())
    /// # }
    /// ```
    #[allow(clippy::manual_async_fn, reason = "an async fn keeps its argument beside what it makes of it")]
    pub fn fetch_response(mut self) -> impl Future<Output = Result<reqwest::Response>> {
        async move {
            let (context, wire_request) = self.start(true, None)?;
            let mut progress = AttemptProgress::new(0, false, RedirectState::default());
            let (response, report) = run::run(Own, &context, wire_request, &mut progress).await?;
            let url = wire_request.current(&progress).request.url();
            match whole_response::success(response, context.read, report.stop, url) {
                Ok(whole) => Ok(whole.into_response_from(url, report)),
                Err(error) => Err(whole_response::with_report(error, report, &context, wire_request, url)),
            }
        }
    }

    /// Sends the request, reads the response inside the attempt, and makes a value of a 2xx.
    #[allow(clippy::manual_async_fn, reason = "an async fn keeps its argument beside what it makes of it")]
    fn read<T>(mut self, decode: impl FnOnce(WholeResponse) -> Result<T>) -> impl Future<Output = Result<T>> {
        async move {
            let (context, wire_request) = self.start(true, None)?;
            let mut progress = AttemptProgress::new(0, false, RedirectState::default());
            let (response, report) = run::run(Own, &context, wire_request, &mut progress).await?;
            let url = wire_request.current(&progress).request.url();
            let decoded = whole_response::success(response, context.read, report.stop, url).and_then(decode);
            decoded.map_err(|error: Error| whole_response::with_report(error, report, &context, wire_request, url))
        }
    }
}
