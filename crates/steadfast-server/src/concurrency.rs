//! A limit of the handlers that run under keys at the same time.
//!
//! A limit outside of the layer does not hold: it counts clients that wait, and a handler goes on
//! after its client has disconnected. So this limit counts handlers.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// The limit, and the places that are free.
#[derive(Clone)]
pub(super) struct Concurrency {
    pub(super) max: usize,
    pub(super) places: Arc<Semaphore>,
}

impl Concurrency {
    pub(super) fn new(max: usize) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        Self { max, places: Arc::new(Semaphore::new(max)) }
    }
}
