//! Instruments for tests and for choosing settings (feature `testing`); never for production.
//!
//! * [`lab`]: a simulation that shows what a retry policy does to a server in trouble.

pub mod lab;
