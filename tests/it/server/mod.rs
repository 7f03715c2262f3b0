//! The server half: every store against one contract, and the layer over real sockets.

mod agree;
mod contract;
mod crash;
mod events;
mod failing;
mod faults;
mod layer;
mod polled;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(any(feature = "redis", feature = "postgres"))]
mod processes;
#[cfg(feature = "redb")]
mod redb;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redis")]
mod redis_failover;
#[cfg(feature = "redis")]
mod redis_server;
mod support;
