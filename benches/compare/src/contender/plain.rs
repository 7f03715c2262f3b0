//! reqwest: with its defaults, without the layers that a careful wrapper replaces, and as the
//! minimum that a wrapper can use.

use bytes::Bytes;
use reqwest::{Client, Method, Request, StatusCode, header};

use super::{Charge, Contender, NewCharge, Place};
use crate::wire::Site;

#[derive(Clone)]
pub struct Plain(Client);

impl Contender for Plain {
    fn new(site: &Site) -> Self {
        Self(site.configure(Client::builder()).build().unwrap())
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
            // An unread body would cost the connection.
            response.bytes().await.unwrap();
        }
    }
}

/// reqwest without redirects and without its own retries.
#[derive(Clone)]
pub struct Bare(Plain);

impl Contender for Bare {
    fn new(site: &Site) -> Self {
        let no_retries = reqwest::retry::never().max_retries_per_request(0);
        let client = site.configure(Client::builder()).redirect(reqwest::redirect::Policy::none()).retry(no_retries);
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

/// The minimum of reqwest that a layer above it can use: without redirects, retries and proxies,
/// with a parsed URL, and with the response's bytes decoded elsewhere. Everything that a layer does
/// adds to this.
#[derive(Clone)]
pub struct Ready(Client);

impl Ready {
    async fn exchange(&self, method: Method, place: &Place, body: Option<Vec<u8>>) -> (StatusCode, Bytes) {
        let mut request = Request::new(method, place.ready.clone());
        if let Some(body) = body {
            request.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(body.into());
        }
        let response = self.0.execute(request).await.unwrap();
        (response.status(), response.bytes().await.unwrap())
    }
}

impl Contender for Ready {
    fn new(site: &Site) -> Self {
        let no_retries = reqwest::retry::never().max_retries_per_request(0);
        let client =
            site.configure(Client::builder()).redirect(reqwest::redirect::Policy::none()).retry(no_retries).no_proxy();
        Self(client.build().unwrap())
    }

    async fn get(&self, place: &Place) -> Charge {
        serde_json::from_slice(&self.exchange(Method::GET, place, None).await.1).unwrap()
    }

    async fn post(&self, place: &Place, charge: &NewCharge) -> Charge {
        let body = serde_json::to_vec(charge).unwrap();
        serde_json::from_slice(&self.exchange(Method::POST, place, Some(body)).await.1).unwrap()
    }

    async fn persist(&self, place: &Place) -> Charge {
        loop {
            let (status, body) = self.exchange(Method::GET, place, None).await;
            if status.is_success() {
                return serde_json::from_slice(&body).unwrap();
            }
        }
    }
}
