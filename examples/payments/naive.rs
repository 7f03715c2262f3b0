//! A plain client with a loop that tries again after every failure, as written in an afternoon.
//!
//! It looks reasonable, it has a limit and a backoff, and it charges people twice: it treats a
//! charge whose response was lost as a failed charge.

use std::error::Error;
use std::time::Duration;

use steadfast::reqwest::{self, header::CONTENT_TYPE};

use crate::{Charge, Order, clock};

#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    attempts: u32,
}

/// The loop gave up. It does not know the outcome of the charge.
pub(crate) struct GaveUp;

impl Client {
    pub(crate) fn new(url: &str, attempts: u32, timeout: Duration) -> reqwest::Result<Self> {
        let http = reqwest::Client::builder().timeout(timeout).no_proxy().build()?;
        Ok(Self { http, url: format!("{url}/charges"), attempts })
    }

    pub(crate) async fn charge(self, order: Order) -> Result<Charge, GaveUp> {
        for attempt in 1..=self.attempts {
            match self.attempt(order).await {
                Ok(charge) => return Ok(charge),
                Err(_) if attempt < self.attempts => clock::pause(Duration::from_millis(50) * attempt).await,
                Err(_) => {}
            }
        }
        Err(GaveUp)
    }

    async fn attempt(&self, order: Order) -> Result<Charge, Box<dyn Error>> {
        let body = serde_json::to_vec(&order)?;
        let request = self.http.post(&self.url).header(CONTENT_TYPE, "application/json").body(body);
        let answer = request.send().await?.error_for_status()?.bytes().await?;
        Ok(serde_json::from_slice(&answer)?)
    }
}
