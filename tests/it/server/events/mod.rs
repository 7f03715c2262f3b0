//! Events that are delivered more than once, handlers that are run again, and operations whose outcome somebody finds out.

mod admin;
mod inbox;
mod lineage;
mod reconcile;
mod webhook;
