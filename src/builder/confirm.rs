//! Finding out whether an operation was carried out whose outcome is unknown.

use std::time::Duration;

use super::super::confirm::{Confirm, Confirmation, Unconfirmed};
use super::ClientBuilder;
use crate::error::BoxError;

impl ClientBuilder {
    /// Sets a read of yours that finds out whether the server has carried out an operation. Default:
    /// none.
    ///
    /// The client asks after an attempt with an unknown outcome that it has no licence to repeat: a
    /// POST at an API that honours no keys. Without the read, such an operation ends in an error
    /// that [may have been processed](crate::Error::may_have_been_processed).
    ///
    /// * [`Confirmation::Applied`] ends the operation with the response that you return.
    /// * [`Confirmation::NotApplied`] repeats the request, if you have set a
    ///   [`settling_time`](Self::settling_time). The client waits until that has passed since the
    ///   last attempt, and asks again before it repeats. Without it, the error stays.
    /// * [`Confirmation::Unknown`], an error, a panic and a passed deadline leave the error as it is.
    ///
    /// Read by a reference that only this operation has, such as an order number in its body. Return
    /// `Unknown` if the API has no such reference, or if its reads may lag behind its writes by
    /// more than the settling time. A false `NotApplied` carries the operation out twice. A false
    /// `Applied` loses it.
    ///
    /// The read is an operation of its own, and may be retried. Only reads belong into it. It is on
    /// the deadline of the operation. The attempt's line has your word
    /// ([`Attempt::confirmation`](crate::Attempt::confirmation)).
    ///
    /// ```
    /// use std::time::Duration;
    /// use serde_json::Value;
    /// use steadfast::{Client, Confirmation, Unconfirmed, http};
    ///
    /// /// Looks for the charge of an order, whose number is in the request.
    /// async fn find(charge: Unconfirmed) -> steadfast::Result<Confirmation> {
    ///     let Some(Ok(sent)) = charge.body().map(serde_json::from_slice::<Value>) else {
    ///         return Ok(Confirmation::Unknown);
    ///     };
    ///     let Some(order) = sent["order"].as_str() else { return Ok(Confirmation::Unknown) };
    ///     let search = charge.client().get("/charges").query(&[("order", order)]);
    ///     let found: Vec<Value> = search.fetch().await?;
    ///     Ok(match found.first() {
    ///         Some(charge) => Confirmation::applied(http::Response::new(charge.to_string())),
    ///         None => Confirmation::NotApplied,
    ///     })
    /// }
    ///
    /// let client = Client::builder()
    ///     .base_url("https://api.example.com/v1")
    ///     .confirm(find)
    ///     .settling_time(Duration::from_secs(5));
    /// ```
    pub fn confirm<F, R, E>(mut self, ask: F) -> Self
    where
        F: Fn(Unconfirmed) -> R + Send + Sync + 'static,
        R: Future<Output = std::result::Result<Confirmation, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.confirm = Some(Confirm::new(ask));
        self
    }

    /// Sets after which time the server has certainly ended its work on an attempt whose client is
    /// gone, and its reads show the effect. Default: not known, so that a `NotApplied` of
    /// [`confirm`](Self::confirm) repeats nothing.
    ///
    /// It counts from the end of the last attempt. Take the server's own request timeout, and the
    /// lag of its reads.
    pub fn settling_time(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.settling_time = time.into();
        self
    }
}
