//! The builder's settings of redirects: how many are followed, what becomes of a POST, and whether one
//! may leave its origin.

use super::ClientBuilder;

impl ClientBuilder {
    /// Sets how many redirects an attempt follows; 0 hands every 3xx to the caller. Default: 10.
    ///
    /// 307 and 308 keep method, body and key on the same origin. A 303 becomes a GET of the result.
    /// 301 and 302 are followed for safe methods (GET, HEAD, OPTIONS, TRACE, QUERY). A POST, PUT,
    /// PATCH or DELETE ends with a 301 or 302, and [may have been
    /// processed](crate::Error::may_have_been_processed): some servers send these when an address
    /// has moved, others after they have acted.
    ///
    /// Another origin gets GET and HEAD without a body only, and neither credentials, cookies, the
    /// key, nor any header of yours but `Accept`, `Accept-Language`, `Range` and `User-Agent`; see
    /// [`cross_origin_redirects`](Self::cross_origin_redirects). A redirect from https to http is
    /// never followed.
    ///
    /// A redirect that is not followed is returned as `Ok` by `send`. `fetch` returns an
    /// [`ErrorKind::Redirect`](crate::ErrorKind::Redirect), which names where it leads and why it
    /// is not followed.
    pub fn max_redirects(mut self, redirects: u32) -> Self {
        self.redirects.max = redirects;
        self
    }

    /// Follows a 301 or 302 to a POST with a GET of the new address, without body and key, as
    /// browsers do. Default: `false`.
    ///
    /// Turn it on for a site that answers a form with a 301 or 302 to its result. It is your
    /// statement that such an answer means "done, look there", as a 303 does (RFC 9110 §15.4.4). If
    /// the address has only moved (a slash, https), the POST is lost, and the answer to the GET
    /// looks like a success. PUT, PATCH and DELETE are not affected.
    ///
    /// ```
    /// let client = steadfast::Client::builder().redirect_post_as_get(true);
    /// ```
    pub fn redirect_post_as_get(mut self, yes: bool) -> Self {
        self.redirects.post_as_get = yes;
        self
    }

    /// Sets whether a GET or HEAD without a body, and the GET of a 303, may go to another origin:
    /// another scheme, host or port. Default: `true`; with an HTTP client that you configure
    /// ([`http`](Self::http)) or bring along ([`http_client`](Self::http_client)), `false`.
    ///
    /// Such an HTTP client may add something to every request: reqwest's `default_headers`, a
    /// cookie, a client certificate. This client cannot see it, and cannot remove it for one hop.
    /// `true` is your statement that none of it is secret, or that you trust every origin to which
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
    /// ```
    pub fn cross_origin_redirects(mut self, yes: bool) -> Self {
        self.redirects.cross_origin = Some(yes);
        self
    }
}
