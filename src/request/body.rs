//! The body of a request.
//!
//! A body that can be made again is sent with each attempt. One that is consumed gets one attempt.

use serde::Serialize;

use super::super::request_body::{ContentType, RequestBody};
use super::RequestBuilder;
use crate::error::Error;

impl RequestBuilder {
    /// Feature `json`. Sets a JSON body, and `Content-Type: application/json` unless you set
    /// another.
    ///
    /// The value is serialised once, so every attempt sends the same bytes. A `HashMap` has another
    /// order each time it is built. Do not [resume](Self::resume) an operation with one: the token
    /// would belong to another body.
    ///
    /// ```
    /// use serde_json::json;
    ///
    /// let client = steadfast::Client::new();
    /// let charges = client.post("https://api.example.com/charges");
    /// let request = charges.json(&json!({ "amount": 1200 }));
    /// ```
    #[cfg(feature = "json")]
    pub fn json(self, body: &(impl Serialize + ?Sized)) -> Self {
        let encoded = serde_json::to_vec(body).map_err(|error| Error::build("json", error));
        self.encoded(ContentType::Json, encoded.map(RequestBody::from))
    }

    /// Sets a URL-encoded form as the body, and its `Content-Type` unless you set another.
    ///
    /// ```
    /// let client = steadfast::Client::new();
    /// let token = client.post("https://api.example.com/token");
    /// let request = token.form(&[("grant_type", "client_credentials")]);
    /// ```
    pub fn form(self, form: &(impl Serialize + ?Sized)) -> Self {
        let encoded = serde_urlencoded::to_string(form).map_err(|error| Error::build("form", error));
        self.encoded(ContentType::Form, encoded.map(|text| RequestBody::from(text.into_bytes())))
    }

    /// Sets the body.
    ///
    /// Bytes and text are sent again with each attempt. A stream can be read once, so the request
    /// gets exactly one attempt. For a stream that can be made again, use
    /// [`body_factory`](Self::body_factory).
    pub fn body(self, body: impl Into<reqwest::Body>) -> Self {
        let body = body.into();
        self.with(|_, kept| {
            *kept = RequestBody::from(body);
            Ok(())
        })
    }

    /// Sets a closure that makes the body of each attempt. Use it for a body that is too large to
    /// keep in memory.
    ///
    /// `make` must produce the same bytes every time. A server that compares bodies refuses another
    /// one under the same key.
    ///
    /// ```
    /// let client = steadfast::Client::new();
    /// let request = client
    ///     .put("https://files.example.com/table")
    ///     .body_factory(|| "one line\n".repeat(10_000_000));
    /// ```
    pub fn body_factory<B: Into<reqwest::Body>>(self, make: impl Fn() -> B + Send + Sync + 'static) -> Self {
        self.with(|_, kept| {
            *kept = RequestBody::factory(move || Ok(make().into()));
            Ok(())
        })
    }

    /// Feature `stream`. Sets a file as the body. Each attempt opens it again and sends it with its
    /// length.
    ///
    /// The request fails with [`ErrorKind::RequestBody`](crate::ErrorKind::RequestBody) if the
    /// file's length has changed at a later attempt, or if the file becomes shorter while it is
    /// read. It is never a short upload.
    ///
    /// ```no_run
    /// # async fn example(client: steadfast::Client) -> steadfast::Result<()> {
    /// let request = client.put("https://files.example.com/monday");
    /// let response = request.file("/var/backups/monday.tar").send().await?;
    /// # drop(response);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "stream")]
    pub fn file(self, path: impl Into<std::path::PathBuf>) -> Self {
        let path = path.into();
        self.with(|_, kept| {
            *kept = RequestBody::File(super::super::upload::File::new(path));
            Ok(())
        })
    }

    /// Feature `multipart`. Sets a closure that makes the multipart form of each attempt. It is
    /// also called once now.
    ///
    /// Every attempt sends the boundary of the first form. So a form with the same parts is the
    /// same body.
    ///
    /// ```
    /// use steadfast::reqwest::multipart::Form;
    ///
    /// let client = steadfast::Client::new();
    /// let request = client
    ///     .post("https://files.example.com/upload")
    ///     .multipart_factory(|| Form::new().text("title", "March"));
    /// ```
    #[cfg(feature = "multipart")]
    pub fn multipart_factory(self, make: impl Fn() -> reqwest::multipart::Form + Send + Sync + 'static) -> Self {
        let http = self.client.http();
        self.with(|request, kept| {
            let made = super::super::upload::FormFactory::new(http?, make);
            let (factory, content_type) = made.map_err(|error| Error::build("multipart_factory", error))?;
            request.headers_mut().insert(http::header::CONTENT_TYPE, content_type);
            *kept = RequestBody::factory(move || factory.body());
            Ok(())
        })
    }

    /// Feature `multipart`. Sets a multipart form as the body.
    ///
    /// A form can be sent once, so the request gets exactly one attempt. For more attempts, use
    /// [`multipart_factory`](Self::multipart_factory).
    #[cfg(feature = "multipart")]
    pub fn multipart(self, form: reqwest::multipart::Form) -> Self {
        let http = self.client.http();
        self.with(|request, kept| {
            // Only reqwest can write the headers and the body of a form.
            let blank = reqwest::Request::new(request.method().clone(), request.url().clone());
            let built = reqwest::RequestBuilder::from_parts(http?, blank).multipart(form).build();
            let mut built = built.map_err(|error| Error::build("multipart", error.without_url()))?;
            *kept = built.body_mut().take().map_or(RequestBody::Empty, RequestBody::from);
            request.headers_mut().extend(std::mem::take(built.headers_mut()));
            Ok(())
        })
    }

    /// Sets the body.
    pub(crate) fn request_body(self, body: RequestBody) -> Self {
        self.with(|_, kept| {
            *kept = body;
            Ok(())
        })
    }
}
