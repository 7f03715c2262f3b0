//! The settings of headers that differ from attempt to attempt: credentials that are renewed, and
//! hooks.

use std::sync::Arc;

use super::ClientBuilder;
use crate::attempt_headers::AttemptHeaders;
use crate::attempt_hook::{AttemptHead, is_writable};
use crate::credentials::{Credentials, Kind, TokenSource};
use crate::error::{BoxError, Error, Result};

impl ClientBuilder {
    /// Sets the credentials of every request to the base URL's origin: a password, an API key, or a
    /// token that is renewed ([`Refreshing`](crate::Refreshing)).
    ///
    /// They go to that origin alone, also after redirects. A request that sets the same header
    /// itself keeps its own, and is not sent again with another. Default: none.
    ///
    /// If the server refuses a renewable token (401), the same operation goes [again
    /// once](crate::policy::RetryPolicy#fresh-tokens), under the same key, with a fresh one. [Tokens
    /// that expire](crate::guide::credentials) has the conditions.
    ///
    /// # Errors
    ///
    /// [`build`](Self::build) returns an error if there is no [`base_url`](Self::base_url), since the
    /// credentials would go to every origin, or if a default header has the same name.
    ///
    /// ```
    /// use std::time::Duration;
    /// use steadfast::{Client, Refreshing, Token, Why};
    ///
    /// # async fn ask_the_identity_provider() -> Result<String, std::io::Error> { unreachable!() }
    /// # fn example() -> steadfast::Result<()> {
    /// let tokens = Refreshing::bearer(|_why: Why| async move {
    ///     let token = ask_the_identity_provider().await?;
    ///     Ok::<_, std::io::Error>(Token::new(token).expires_in(Duration::from_secs(3600)))
    /// });
    /// let client = Client::builder().base_url("https://api.example.com").credentials(tokens).build()?;
    /// # drop(client);
    /// # Ok(())
    /// # }
    /// # example().unwrap();
    /// ```
    pub fn credentials(mut self, credentials: impl Into<Credentials>) -> Self {
        self.credentials = Some(credentials.into());
        self
    }

    /// Calls a closure for each request just before it is sent. It can write headers, and nothing
    /// else: a signature that must be fresh for each attempt, or a trace context.
    ///
    /// It is called for every attempt, for the second one of a [hedged](Self::hedge) pair, and for
    /// redirects on the same origin. Once a redirect has led to another origin it is not called for
    /// that attempt any more, even if a later redirect leads back. Several hooks run in the order in
    /// which you add them, after the [`credentials`](Self::credentials). So the last one sees all
    /// other headers.
    ///
    /// It runs on the operation's own task. Keep it quick. It is called for requests to every
    /// origin: look at [`url`](AttemptHead::url) if the client calls several.
    ///
    /// # Errors
    ///
    /// If the closure returns an error, panics, or writes [a header that it may
    /// not](AttemptHead::insert), nothing of this attempt is sent. The operation ends with an
    /// [`ErrorKind::AttemptHook`](crate::ErrorKind::AttemptHook). Whether it [may have been
    /// processed](crate::Error::may_have_been_processed) depends on the attempts before.
    ///
    /// ```
    /// use std::time::SystemTime;
    /// use steadfast::Client;
    ///
    /// # fn hmac(_: &str, _: &[u8]) -> String { String::new() }
    /// let client = Client::builder().on_attempt(|head| {
    ///     let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    ///     let signed = format!("{} {} {seconds}", head.method(), head.url().path());
    ///     let signature = hmac(&signed, head.body()?); // an error if the body is a stream
    ///     head.insert("x-timestamp", seconds)?;
    ///     head.insert("x-signature", signature)
    /// });
    /// ```
    pub fn on_attempt(
        mut self,
        hook: impl Fn(&mut AttemptHead<'_>) -> std::result::Result<(), BoxError> + Send + Sync + 'static,
    ) -> Self {
        self.on_attempt.push(Arc::new(hook));
        self
    }

    /// Returns what writes headers of each attempt. Credentials that stay the same become a default
    /// header.
    pub(super) fn attempt_headers(&mut self, has_base: bool) -> Result<Option<Box<AttemptHeaders>>> {
        let tokens = self.credentials.take().map(|credentials| self.token_source(credentials, has_base)).transpose()?;
        let (tokens, hooks) = (tokens.flatten(), std::mem::take(&mut self.on_attempt));
        let has_none = tokens.is_none() && hooks.is_empty();
        Ok(if has_none { None } else { Some(Box::new(AttemptHeaders { tokens, hooks })) })
    }

    fn token_source(&mut self, Credentials(kind): Credentials, has_base: bool) -> Result<Option<TokenSource>> {
        let (kind, name) = match kind {
            Kind::Static(header) => {
                let (name, mut value) = header?;
                value.set_sensitive(true);
                (Err((name.clone(), value)), name)
            }
            Kind::Refreshing(refreshing) => {
                let source = refreshing.into_source()?;
                let name = source.header.clone();
                (Ok(source), name)
            }
        };
        let refuse = |reason| Err(Error::build("credentials", format!("{name} {reason}")));
        if !has_base {
            return refuse("would go to every origin; set base_url");
        }
        if self.default_headers.iter().flatten().any(|(other, _)| *other == name) {
            return refuse("is a default header too; set one of them");
        }
        let is_taken = [&self.attempt_header, &self.overload.deadline_header].contains(&&Some(name.clone()));
        if is_taken || !is_writable(&name, &self.keys.header) {
            return refuse("is taken by another setting or by HTTP itself");
        }
        match kind {
            Ok(source) => Ok(Some(source)),
            Err(header) => {
                self.default_headers.push(Ok(header));
                Ok(None)
            }
        }
    }
}
