//! How to think about retries, what is repeated and when, why the crate is as it is, and how to come here from elsewhere.
//!
//! * [`failures`]: what each failure means, and what the client does about it.
//! * [`testing`]: how to test your own code against all of this.
//! * [`coming_from`]: the names of reqwest-middleware, reqwest-retry and backoff beside ours, and what changes on the wire.
//! * [`design`]: the why-questions, and the invariants.
//! * [`changelog`]: what changed.

#[doc = include_str!("failures.md")]
pub mod failures {}

#[cfg_attr(all(feature = "testing", feature = "server", feature = "rustls"), doc = include_str!("testing.md"))]
#[cfg_attr(
    not(all(feature = "testing", feature = "server", feature = "rustls")),
    doc = "This page is about the feature `testing`, and is there with it and with `server` and `rustls`."
)]
pub mod testing {}

#[doc = include_str!("coming_from.md")]
pub mod coming_from {}

#[doc = include_str!("design.md")]
pub mod design {}

#[doc = include_str!("changelog.md")]
pub mod changelog {}
