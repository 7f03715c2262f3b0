//! The server half: every store against one contract, and the layer over real sockets.

mod agree;
mod contract;
mod layer;
mod support;
