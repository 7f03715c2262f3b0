//! Overload protection: what the client does not send, asserted by what the server did not receive.

mod breaker;
mod cooldown;
mod deadline;
mod hedge;
