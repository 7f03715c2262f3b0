//! The server half: every store against one contract, and the layer over real sockets.

mod agree;
mod contract;
mod layer;
#[cfg(feature = "redb")]
mod redb;
#[cfg(feature = "redis")]
mod redis;
mod support;
