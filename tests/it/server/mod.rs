//! The server half: every store against one contract, and the layer over real sockets.

mod agree;
mod codec;
mod contract;
mod crash;
mod cut_requests;
mod ends;
mod events;
mod failing;
mod faults;
#[cfg(any(feature = "redb", feature = "redis", feature = "postgres"))]
mod identity;
mod layer;
mod leases;
mod lockstep;
mod nested;
mod overtaken;
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
#[cfg(feature = "axum")]
mod rejections;
mod scope;
mod support;
mod waiting;
