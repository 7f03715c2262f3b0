//! The builder's time limits.

use std::time::Duration;

use super::ClientBuilder;
use crate::error::{Error, Result};
use crate::policy::TimeLimit;
use crate::send_clock::UploadRate;
use crate::settings::ReadTimeout;

impl ClientBuilder {
    /// Sets the timeout of a whole operation, waits included. `None` disables it. Default: 30 s.
    ///
    /// The first of these that is set counts: the request's
    /// [`timeout`](crate::RequestBuilder::timeout), the
    /// [`deadline`](crate::policy::RetryPolicy::deadline) of the request's policy, this timeout, the
    /// deadline of the client's policy. [The guide](crate::guide::timeouts) has a picture of all
    /// timeouts.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let client = steadfast::Client::builder().timeout(Duration::from_secs(20));
    /// let patient = steadfast::Client::builder().timeout(None);
    /// ```
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = Some(timeout.into());
        self
    }

    /// Sets the timeout of one attempt. `None` disables it. Default: 10 s.
    ///
    /// An attempt of `send` ends with the headers of the response, and one of `fetch` with its
    /// body. If you set both, it may not be longer than the [`timeout`](Self::timeout) of the
    /// operation.
    ///
    /// It does not limit an upload that moves. While the transport takes a body of more than 16
    /// KiB, it is the longest pause: it starts again with each part that is taken. After the last
    /// part it limits the wait for the response, and so it does from the head of a response that
    /// arrives early. See [the guide](crate::guide::timeouts#uploads).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let client = steadfast::Client::builder().attempt_timeout(Duration::from_secs(5));
    /// ```
    pub fn attempt_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.attempt_timeout = Some(timeout.into());
        self
    }

    /// Sets the lowest rate of an upload: at least `bytes` in each `per`. Default: one byte in each
    /// [`attempt_timeout`](Self::attempt_timeout).
    ///
    /// It replaces the attempt timeout while the transport takes a body of more than 16 KiB. An
    /// upload below it ends with an [`ErrorKind::Timeout`](crate::ErrorKind::Timeout), whose line
    /// says how far it got. If no byte was taken, the upload is repeated where that is safe. If it
    /// moved too slowly, it is not repeated
    /// ([`UploadTooSlow`](crate::policy::StopReason::UploadTooSlow)).
    ///
    /// Bytes count when the transport takes them, and hyper and the system buffer some. Over
    /// HTTP/1.1 they come in steps of 256 KiB and more, so choose a time in which your slowest link
    /// sends a megabyte.
    ///
    /// # Errors
    ///
    /// Building the client fails if one of them is zero.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// // Give up an upload that is slower than 1 MB a minute.
    /// let client = steadfast::Client::builder()
    ///     .timeout(Duration::from_secs(3600))
    ///     .min_upload_rate(1_000_000, Duration::from_secs(60));
    /// ```
    pub fn min_upload_rate(mut self, bytes: u64, per: Duration) -> Self {
        self.upload_rate = Some(UploadRate { bytes, per });
        self
    }

    /// Sets the timeout of a connection attempt, TLS included. `None` disables it. Default: 5 s.
    ///
    /// It may not be longer than an [`attempt_timeout`](Self::attempt_timeout) or a
    /// [`timeout`](Self::timeout) that you set.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let client = steadfast::Client::builder().connect_timeout(Duration::from_secs(2));
    /// ```
    pub fn connect_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.connect_timeout = Some(timeout.into());
        self
    }

    /// Sets the longest pause in a response body. `None` disables it. Default: 90 s.
    ///
    /// It counts from the head of the response, and again from each part of the body, while you
    /// wait for the next part. The wait for the head is
    /// [`attempt_timeout`](Self::attempt_timeout)'s, so a long poll is not cut.
    ///
    /// It is the only limit of a body that you read after `send`: reading it fails with an error
    /// whose `is_timeout` is true. The default does not apply
    ///
    /// * to `fetch`, as long as the attempt or the operation has a timeout;
    /// * to an HTTP client of yours ([`http_client`](Self::http_client)), which has timeouts of its
    ///   own;
    /// * to a connection that changes its protocol (101), such as a WebSocket.
    ///
    /// An event stream should send a comment every 15 s or so ([WHATWG HTML
    /// §9.2.7](https://html.spec.whatwg.org/multipage/server-sent-events.html#authoring-notes)), and
    /// common proxies end a connection after 60 s of silence. Set a longer time, or `None`, for a
    /// stream that is silent for longer.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let downloads = steadfast::Client::builder().read_timeout(Duration::from_secs(20));
    /// let watches = steadfast::Client::builder().read_timeout(None);
    /// ```
    pub fn read_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.read_timeout = ReadTimeout::Set(timeout.into());
        self
    }

    /// Checks that a part is not given more time than the whole: such a timeout could never pass,
    /// and most likely two were swapped. Only timeouts that you have set count: a default must not
    /// turn a shorter timeout of yours into an error.
    pub(super) fn check_order_of_timeouts(&self) -> Result<()> {
        let operation = match self.timeout {
            Some(timeout) => ("timeout", timeout),
            None => ("deadline", set_deadline(self.retry.deadline)),
        };
        let attempt = ("attempt_timeout", self.attempt_timeout.flatten());
        let connect = ("connect_timeout", self.connect_timeout.flatten());
        for ((part, short), (whole, long)) in [(attempt, operation), (connect, attempt), (connect, operation)] {
            if let (Some(short), Some(long)) = (short, long)
                && short > long
            {
                let reason = format!("{short:?} is longer than the {whole} of {long:?}, so it could never pass");
                return Err(Error::build(part, reason));
            }
        }
        Ok(())
    }
}

fn set_deadline(limit: TimeLimit) -> Option<Duration> {
    if let TimeLimit::AtMost(limit) = limit { Some(limit) } else { None }
}
