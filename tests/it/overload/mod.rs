//! Overload protection: asserts that the server did *not* receive the requests that the client
//! holds back.

mod breaker;
mod cooldown;
mod deadline;
mod hedge;
