//! The server half: every store against one contract, and the layer over real sockets.

mod agree;
mod contract;
mod crash;
mod layer;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redb")]
mod redb;
mod support;
