//! The builder's settings of redirects: how many are followed, what happens to a POST, and whether
//! one may leave its origin.

use super::ClientBuilder;

impl ClientBuilder {
    /// Sets how many redirects an attempt follows. With 0 you get every 3xx yourself. Default: 10.
    ///
    /// | status | what the client does |
    /// | --- | --- |
    /// | 307, 308 | follows on the same origin with method, body and key |
    /// | 303 | follows with a GET of the result |
    /// | 301, 302 | follows for safe methods (GET, HEAD, OPTIONS, TRACE, QUERY) |
    /// | 301, 302 to a POST, PUT, PATCH or DELETE | ends; the operation [may have been processed](crate::Error::may_have_been_processed) |
    ///
    /// Some servers send a 301 or 302 because an address has moved, others after they have acted.
    /// So the last row is not followed.
    ///
    /// To another origin, the client sends GET and HEAD without a body only. It adds no
    /// credentials, no cookies and no key. Of your headers it sends `Accept`, `Accept-Language`,
    /// `Range` and `User-Agent`; see [`cross_origin_redirects`](Self::cross_origin_redirects). A
    /// redirect from https to http is never followed.
    ///
    /// `send` returns a redirect that is not followed as `Ok`. `fetch` returns an
    /// [`ErrorKind::Redirect`](crate::ErrorKind::Redirect), which names the target and the reason.
    ///
    /// ```
    /// let client = steadfast::Client::builder().max_redirects(0);
    /// ```
    pub fn max_redirects(mut self, redirects: u32) -> Self {
        self.redirects.max = redirects;
        self
    }

    /// Follows a 301 or 302 to a POST with a GET of the new address, without body and key, as
    /// browsers do. Default: `false`.
    ///
    /// Turn it on for a site that responds to a form with a 301 or 302 to its result. You then
    /// state that such a response means "done, see the result there", as a 303 does (RFC 9110
    /// §15.4.4). If the address has only moved (a slash, https), the POST is lost, and the response
    /// to the GET looks like a success. PUT, PATCH and DELETE are not affected.
    ///
    /// ```
    /// let client = steadfast::Client::builder().redirect_post_as_get(true);
    /// ```
    pub fn redirect_post_as_get(mut self, yes: bool) -> Self {
        self.redirects.post_as_get = yes;
        self
    }

    /// Sets whether a redirect may lead to another origin: another scheme, host or port. It
    /// concerns a GET or HEAD without a body, and the GET of a 303. Default: `true`; with an HTTP
    /// client that you configure ([`http`](Self::http)) or bring along
    /// ([`http_client`](Self::http_client)), `false`.
    ///
    /// Such an HTTP client may add something to every request: reqwest's `default_headers`, a
    /// cookie, a client certificate. This client cannot see it, and cannot remove it for one hop.
    /// With `true` you state that none of it is secret, or that you trust every origin to which
    /// your servers redirect. It has no effect on an HTTP client that follows redirects itself.
    ///
    /// ```
    /// # fn example() -> steadfast::Result<()> {
    /// let client = steadfast::Client::builder()
    ///     .http(|http| http.tcp_nodelay(true)) // no default headers, no cookies, no certificate
    ///     .cross_origin_redirects(true)
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// # example().unwrap();
    /// ```
    pub fn cross_origin_redirects(mut self, yes: bool) -> Self {
        self.redirects.cross_origin = Some(yes);
        self
    }
}
