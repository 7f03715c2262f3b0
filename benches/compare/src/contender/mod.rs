//! The clients under comparison, and their tasks.

#[cfg(feature = "peers")]
pub mod peers;
pub mod plain;
pub mod steadfast;
pub mod traced;

use std::fmt;
use std::future::Future;

use serde::{Deserialize, Serialize};

use crate::load::{self, Say, Scenario};
use crate::wire::{Site, Wire};

/// A client, used as its documentation recommends.
pub trait Contender: Clone + Send + Sync + 'static {
    fn new(site: &Site) -> Self;

    /// Sends a GET and decodes the response from JSON.
    fn get(&self, place: &Place) -> impl Future<Output = Charge> + Send;

    /// Sends a POST of JSON and decodes the response from JSON.
    fn post(&self, place: &Place, charge: &NewCharge) -> impl Future<Output = Charge> + Send;

    /// Repeats a GET until its response is 200, without waits.
    fn persist(&self, place: &Place) -> impl Future<Output = Charge> + Send;
}

/// Every client that was compiled in.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    Reqwest,
    Bare,
    Ready,
    Steadfast,
    Anywhere,
    Traced,
    #[cfg(feature = "peers")]
    Middleware,
    #[cfg(feature = "peers")]
    Gax,
    #[cfg(feature = "peers")]
    Smithy,
    #[cfg(feature = "peers")]
    Hyper,
}

impl Name {
    pub fn all() -> impl Iterator<Item = Self> {
        <Self as clap::ValueEnum>::value_variants().iter().copied()
    }

    /// Returns whether the client can be told to use this wire.
    pub fn speaks(self, wire: Wire) -> bool {
        // aws-smithy-http-client has no setting for HTTP/2 without TLS.
        self.to_string() != "smithy" || wire != Wire::Clear2
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Reqwest => "reqwest",
            Self::Bare => "reqwest without redirects and retries",
            Self::Ready => "the least of reqwest that a layer can use",
            Self::Steadfast => "**steadfast**",
            Self::Anywhere => "**steadfast**, without a base URL",
            Self::Traced => "**steadfast**, with a listener to its spans",
            #[cfg(feature = "peers")]
            Self::Middleware => "reqwest-middleware + reqwest-retry",
            #[cfg(feature = "peers")]
            Self::Gax => "google-cloud-gax over reqwest",
            #[cfg(feature = "peers")]
            Self::Smithy => "aws-smithy-runtime",
            #[cfg(feature = "peers")]
            Self::Hyper => "hyper-util (what is under all of them)",
        }
    }

    pub fn run(self, site: &Site, scenario: Scenario, operations: usize, say: Say) -> Vec<f64> {
        match self {
            Self::Reqwest => load::run::<plain::Plain>(site, scenario, operations, say),
            Self::Bare => load::run::<plain::Bare>(site, scenario, operations, say),
            Self::Ready => load::run::<plain::Ready>(site, scenario, operations, say),
            Self::Steadfast => load::run::<steadfast::Steadfast>(site, scenario, operations, say),
            Self::Anywhere => load::run::<steadfast::Anywhere>(site, scenario, operations, say),
            Self::Traced => load::run::<traced::Traced>(site, scenario, operations, say),
            #[cfg(feature = "peers")]
            Self::Middleware => load::run::<peers::middleware::Middleware>(site, scenario, operations, say),
            #[cfg(feature = "peers")]
            Self::Gax => load::run::<peers::gax::Gax>(site, scenario, operations, say),
            #[cfg(feature = "peers")]
            Self::Smithy => load::run::<peers::smithy::Smithy>(site, scenario, operations, say),
            #[cfg(feature = "peers")]
            Self::Hyper => load::run::<peers::hyper::Hyper>(site, scenario, operations, say),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(clap::ValueEnum::to_possible_value(self).unwrap().get_name())
    }
}

/// One address, in the form that each client wants, so that no measurement includes the conversion.
#[derive(Clone)]
pub struct Place {
    pub url: String,
    pub ready: reqwest::Url,
    /// The path below the contender's base URL.
    pub path: String,
}

impl Place {
    pub fn new(base: &str, path: &str) -> Self {
        let url = format!("{base}{path}");
        Self { ready: url.parse().unwrap(), url, path: path.to_owned() }
    }
}

#[derive(Serialize)]
pub struct NewCharge {
    pub amount: u64,
    pub currency: &'static str,
    pub customer: &'static str,
}

#[derive(Debug, Deserialize)]
#[allow(dead_code, reason = "what is measured is that they are decoded")]
pub struct Charge {
    pub id: String,
    pub amount: u64,
    pub currency: String,
    pub paid: bool,
    pub customer: String,
    pub receipt: String,
    pub description: String,
}
