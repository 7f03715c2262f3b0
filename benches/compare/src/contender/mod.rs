//! Who is compared, and what each is asked to do.

#[cfg(feature = "peers")]
pub mod peers;
pub mod plain;
pub mod steadfast;

use std::fmt;
use std::future::Future;

use serde::{Deserialize, Serialize};

use crate::load::{self, Say, Scenario};

/// A client, used as its documentation says that it is used.
pub trait Contender: Clone + Send + Sync + 'static {
    fn new(base: &str) -> Self;

    /// GET, the answer decoded from JSON.
    fn get(&self, place: &Place) -> impl Future<Output = Charge> + Send;

    /// POST of JSON, the answer decoded from JSON.
    fn post(&self, place: &Place, charge: &NewCharge) -> impl Future<Output = Charge> + Send;

    /// GET until it is answered 200, without waiting in between.
    fn persist(&self, place: &Place) -> impl Future<Output = Charge> + Send;
}

/// Everybody that was compiled in.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    Reqwest,
    Bare,
    Ready,
    Steadfast,
    Anywhere,
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

    pub fn title(self) -> &'static str {
        match self {
            Self::Reqwest => "reqwest",
            Self::Bare => "reqwest without redirects and retries",
            Self::Ready => "the least of reqwest that a layer can use",
            Self::Steadfast => "**steadfast**",
            Self::Anywhere => "**steadfast**, without a base URL",
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

    pub fn run(self, port: u16, scenario: Scenario, operations: usize, say: Say) -> Vec<f64> {
        match self {
            Self::Reqwest => load::run::<plain::Plain>(port, scenario, operations, say),
            Self::Bare => load::run::<plain::Bare>(port, scenario, operations, say),
            Self::Ready => load::run::<plain::Ready>(port, scenario, operations, say),
            Self::Steadfast => load::run::<steadfast::Steadfast>(port, scenario, operations, say),
            Self::Anywhere => load::run::<steadfast::Anywhere>(port, scenario, operations, say),
            #[cfg(feature = "peers")]
            Self::Middleware => load::run::<peers::middleware::Middleware>(port, scenario, operations, say),
            #[cfg(feature = "peers")]
            Self::Gax => load::run::<peers::gax::Gax>(port, scenario, operations, say),
            #[cfg(feature = "peers")]
            Self::Smithy => load::run::<peers::smithy::Smithy>(port, scenario, operations, say),
            #[cfg(feature = "peers")]
            Self::Hyper => load::run::<peers::hyper::Hyper>(port, scenario, operations, say),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(clap::ValueEnum::to_possible_value(self).unwrap().get_name())
    }
}

/// One address, spelled in advance as each client wants it, so that nobody is charged for spelling it.
#[derive(Clone)]
pub struct Place {
    pub url: String,
    pub ready: reqwest::Url,
    /// Below the base that the contender was given.
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
