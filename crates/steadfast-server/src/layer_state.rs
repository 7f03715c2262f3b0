//! The state that every part of a layer reads: its settings, and the state that its clones share.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use super::config::Config;
use super::metrics::Counters;
use super::shared_store::SharedStore;
use super::wait::Waits;

pub(super) struct LayerState<S> {
    pub(super) config: Config,
    pub(super) shared: Arc<Shared<S>>,
}

/// The state that all clones of a layer and all its services share.
pub(super) struct Shared<S> {
    pub(super) store: SharedStore<S>,
    pub(super) counters: Counters,
    pub(super) waits: Waits,
    /// The requests under a key that are in progress.
    pub(super) running: TaskTracker,
}

impl<S> LayerState<S> {
    pub(super) fn new(config: Config, store: SharedStore<S>) -> Self {
        let (counters, waits, running) = (Counters::default(), Waits::default(), TaskTracker::new());
        Self { config, shared: Arc::new(Shared { store, counters, waits, running }) }
    }
}

impl<S> Clone for LayerState<S> {
    fn clone(&self) -> Self {
        Self { config: self.config.clone(), shared: self.shared.clone() }
    }
}
