//! steadfast
pub mod policy;
#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client")]
mod error;
#[cfg(feature = "client")]
mod journal;
#[cfg(feature = "client")]
mod key;
#[cfg(feature = "client")]
mod problem;
#[cfg(feature = "client")]
mod resume;

#[cfg(feature = "client")]
pub use client::{Client, ClientBuilder, Event, EventKind, RequestBuilder, ResponseExt};
#[cfg(feature = "client")]
pub use error::{Error, ErrorKind, Result};
#[cfg(feature = "json")]
pub use error::DecodeError;
#[cfg(feature = "client")]
pub use journal::{Attempt, Reach};
#[cfg(feature = "client")]
pub use key::{IdempotencyKey, KeyError, KeyForm, KeyPolicy};
#[cfg(feature = "client")]
pub use problem::Problem;
#[cfg(feature = "client")]
pub use resume::ResumeToken;

pub use http;
#[cfg(feature = "client")]
pub use {reqwest, uuid};
