//! steadfast at its defaults: budget on, a key minted for each POST, deadline and attempt timeout
//! on.

use std::time::Duration;

use steadfast::policy::{Backoff, RetryBudget, RetryPolicy};
use steadfast::{Client, ClientBuilder, KeyPolicy};

use super::{Charge, Contender, NewCharge, Place};
use crate::wire::Site;

fn builder(site: &Site) -> ClientBuilder {
    let builder = Client::builder();
    // A transport that was configured costs more, so it is configured only where it must be.
    if site.needs_settings() { builder.http(|http| site.configure(http)) } else { builder }
}

#[derive(Clone)]
pub struct Steadfast {
    client: Client,
    /// Without waits, and without a budget: every operation here fails twice, which a budget would
    /// end.
    stubborn: Client,
}

impl Contender for Steadfast {
    fn new(site: &Site) -> Self {
        let builder = || builder(site).base_url(site.base()).keys(KeyPolicy::standard());
        let at_once = RetryPolicy::new().backoff(Backoff::fixed(Duration::ZERO));
        Self {
            client: builder().build().unwrap(),
            stubborn: builder().retry(at_once).budget(RetryBudget::unlimited()).build().unwrap(),
        }
    }

    async fn get(&self, place: &Place) -> Charge {
        self.client.get_json(&place.path).await.unwrap()
    }

    async fn post(&self, place: &Place, charge: &NewCharge) -> Charge {
        self.client.post_json(&place.path, charge).await.unwrap()
    }

    async fn persist(&self, place: &Place) -> Charge {
        self.stubborn.get_json(&place.path).await.unwrap()
    }
}

/// Without a base URL: every request names its origin, and the client looks the origin up.
#[derive(Clone)]
pub struct Anywhere(Client);

impl Contender for Anywhere {
    fn new(site: &Site) -> Self {
        Self(builder(site).keys(KeyPolicy::standard()).build().unwrap())
    }

    async fn get(&self, place: &Place) -> Charge {
        self.0.get_json(&place.url).await.unwrap()
    }

    async fn post(&self, place: &Place, charge: &NewCharge) -> Charge {
        self.0.post_json(&place.url, charge).await.unwrap()
    }

    async fn persist(&self, place: &Place) -> Charge {
        self.get(place).await
    }
}
