//! reqwest: used plainly, and with the layers off that a careful wrapper replaces.

use reqwest::{Client, StatusCode};

use super::{Charge, Contender, NewCharge, Place};

#[derive(Clone)]
pub struct Plain(Client);

impl Contender for Plain {
    fn new(_: &str) -> Self {
        Self(Client::new())
    }

    async fn get(&self, place: &Place) -> Charge {
        self.0.get(&place.url).send().await.unwrap().json().await.unwrap()
    }

    async fn post(&self, place: &Place, charge: &NewCharge) -> Charge {
        self.0.post(&place.url).json(charge).send().await.unwrap().json().await.unwrap()
    }

    async fn persist(&self, place: &Place) -> Charge {
        loop {
            let response = self.0.get(&place.url).send().await.unwrap();
            if response.status() == StatusCode::OK {
                return response.json().await.unwrap();
            }
            // Unread, it would cost the connection.
            response.bytes().await.unwrap();
        }
    }
}

/// reqwest without redirects and without its own retries.
#[derive(Clone)]
pub struct Bare(Plain);

impl Contender for Bare {
    fn new(_: &str) -> Self {
        let no_retries = reqwest::retry::never().max_retries_per_request(0);
        let client = Client::builder().redirect(reqwest::redirect::Policy::none()).retry(no_retries);
        Self(Plain(client.build().unwrap()))
    }

    async fn get(&self, place: &Place) -> Charge {
        self.0.get(place).await
    }

    async fn post(&self, place: &Place, charge: &NewCharge) -> Charge {
        self.0.post(place, charge).await
    }

    async fn persist(&self, place: &Place) -> Charge {
        self.0.persist(place).await
    }
}
