//! Events with repeated deliveries, handlers that run again, and operations whose outcome is
//! reconciled.

mod admin;
mod inbox;
mod lineage;
mod reconcile;
mod webhook;
