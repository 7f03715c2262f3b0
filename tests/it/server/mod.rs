//! Tests of the server crates: every store against one contract, and the layer over real sockets.

mod agree;
mod codec;
mod contract;
mod crash;
mod cut_requests;
mod ends;
mod events;
mod failing;
mod faults;
mod identity;
mod layer;
mod leases;
mod lockstep;
mod nested;
mod overtaken;
mod polled;
mod postgres;
mod processes;
mod redb;
mod redis;
mod redis_failover;
mod redis_server;
mod rejections;
mod scope;
mod support;
mod waiting;
