//! The outbox as a program sees it: submit, wait, acknowledge, and look.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use steadfast_core::{clock, milliseconds};
use tokio_util::sync::DropGuard;

use crate::builder::OutboxBuilder;
use crate::change::{Change, Refusal};
use crate::end::End;
use crate::engine::{Engine, locked};
use crate::entry::Entry;
use crate::error::OutboxError;
use crate::event::{OutboxEventKind, OutboxMetrics};
use crate::id::OperationId;
use crate::lease::Lease;
use crate::operation::DurableOperation;
use crate::rules::NewEntry;
use crate::store::{Applied, OutboxStore, OutboxStoreError, Submitted, Usage};
use crate::worker::Claimed;

/// How long `wait` waits after its first look, if another process may end the operation. It doubles.
const FIRST_LOOK: Duration = Duration::from_millis(50);

/// Durable operations: each is on the disk before its first byte leaves, and is carried out across
/// restarts.
///
/// An outbox is a handle. Cloning it is cheap, and all clones are one outbox. It needs a tokio
/// runtime.
///
/// ```no_run
/// use steadfast::Client;
/// use steadfast_outbox::{DurableExt, End, Outbox, RedbOutbox};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::builder().base_url("https://api.example.com").build()?;
/// let outbox = Outbox::open(RedbOutbox::open("operations.redb")?, client.clone()).start().await?;
///
/// let charge = client.post("/charges").body("12 EUR").prepare()?.named("order-1042-charge");
/// let id = outbox.submit(charge).await?; // from here on it survives this process
/// match outbox.wait(id).await? {
///     End::Answer(answer) => println!("charged: {}", answer.status()),
///     End::Rejected(failed) => println!("not charged: {failed}"),
///     End::Unknown(failed) => println!("look it up: {failed}"),
/// }
/// outbox.acknowledge(id).await?;
/// outbox.shutdown(std::time::Duration::from_secs(30)).await;
/// # Ok(())
/// # }
/// ```
pub struct Outbox<S> {
    engine: Arc<Engine<S>>,
    /// Stops the search for due operations with the last handle.
    _stop: Arc<DropGuard>,
}

impl<S> Clone for Outbox<S> {
    fn clone(&self) -> Self {
        Self { engine: self.engine.clone(), _stop: self._stop.clone() }
    }
}

impl<S> fmt::Debug for Outbox<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("running", &self.engine.slots.taken()).finish_non_exhaustive()
    }
}

impl<S: OutboxStore> Outbox<S> {
    /// Makes an outbox over a store. `client` sends the operations: with its retries, its limits and
    /// its credentials. Nothing happens until you [start](OutboxBuilder::start) it.
    pub fn open(store: S, client: steadfast::Client) -> OutboxBuilder<S> {
        OutboxBuilder::new(store, client)
    }

    pub(crate) fn run(engine: Arc<Engine<S>>) -> Self {
        engine.tasks.spawn(engine.clone().run());
        let stop = Arc::new(engine.stop.clone().drop_guard());
        Self { engine, _stop: stop }
    }

    /// Writes an operation down and sends it. Once this returns, the operation survives this process.
    ///
    /// An operation of the same [name](DurableOperation::named) that asks for the same is that
    /// operation: you get its identifier, and nothing is sent a second time.
    ///
    /// If this future is dropped, the operation may have been written down nevertheless. With a name
    /// you can submit it again and get the same one.
    ///
    /// # Errors
    ///
    /// The request cannot be stored (a stream, a header that is not on the list), the name belongs to
    /// another operation, or the store is full or cannot be written. Nothing was sent.
    pub async fn submit(&self, operation: impl Into<DurableOperation>) -> Result<OperationId, OutboxError> {
        let new = self.new_entry(operation.into())?;
        // In a task, because an operation that is written down as under way needs its worker, also if
        // the caller is gone by then.
        let written = self.engine.tasks.spawn(write_down(self.engine.clone(), new));
        written.await.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(OutboxStoreError::Unavailable("the runtime is shutting down".into()).into()),
        })
    }

    /// Makes the entry of an operation, for a store of yours that writes it down by itself.
    ///
    /// # Errors
    ///
    /// The request cannot be stored.
    pub fn new_entry(&self, operation: impl Into<DurableOperation>) -> Result<NewEntry, OutboxError> {
        let now_ms = milliseconds(clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default());
        let id = OperationId::mint(now_ms).ok_or(OutboxError::NoRandomness)?;
        operation.into().into_entry(id, &self.engine.settings.persist_headers)
    }

    /// Waits for the end of an operation. The end is on the disk before you get it, and stays there
    /// until you [acknowledge](Self::acknowledge) it.
    ///
    /// A [held](crate::State::Held) operation has no end until somebody releases or resolves it.
    ///
    /// # Errors
    ///
    /// There is no such operation, or the store cannot be read.
    pub async fn wait(&self, id: OperationId) -> Result<End, OutboxError> {
        let engine = &self.engine;
        let poll_interval = engine.settings.poll_interval;
        // Before any look, so that no end falls between the two.
        let mut subscription = engine.subscribe(id);
        // What this process has submitted mostly ends here too, and then nothing has to be read.
        let mut pause = if engine.is_own(id) { poll_interval } else { Duration::ZERO };
        loop {
            // Another process may end it, and tells nobody here.
            let until = if S::IS_SHARED || pause.is_zero() { clock::now().checked_add(pause) } else { None };
            if let Some(end) = subscription.wait(until).await {
                return Ok(end);
            }
            let entry = engine.store.get(id).await?.ok_or(Refusal::NotFound(id))?;
            if let Some(end) = entry.end() {
                return Ok(end.clone());
            }
            pause = (pause * 2).max(FIRST_LOOK).min(poll_interval);
        }
    }

    /// Acknowledges the end of an operation: you have it, and the outbox may forget it. A name is
    /// remembered for the retention of its key.
    ///
    /// # Errors
    ///
    /// There is no such operation, it has not ended, or the store cannot be written.
    pub async fn acknowledge(&self, id: OperationId) -> Result<(), OutboxError> {
        self.change(id, Change::Acknowledge).await
    }

    /// Cancels an operation of which nothing was sent. It ends as [`End::Rejected`].
    ///
    /// # Errors
    ///
    /// An attempt was made or is about to be made, there is no such operation, or the store cannot be
    /// written.
    pub async fn cancel(&self, id: OperationId) -> Result<(), OutboxError> {
        self.change(id, Change::Cancel).await
    }

    /// Lets a held operation go on, once its credentials are mended.
    ///
    /// # Errors
    ///
    /// It is not held, there is no such operation, or the store cannot be written.
    pub async fn release(&self, id: OperationId) -> Result<(), OutboxError> {
        self.change(id, Change::Release).await
    }

    /// Ends an operation as you say, because you have looked up what the server did.
    ///
    /// # Errors
    ///
    /// A worker is carrying it out, it has ended other than as unknown, there is no such operation,
    /// or the store cannot be written.
    pub async fn resolve(&self, id: OperationId, end: End) -> Result<(), OutboxError> {
        self.change(id, Change::Resolve(end)).await
    }

    async fn change(&self, id: OperationId, change: Change) -> Result<(), OutboxError> {
        let is_news = change != Change::Acknowledge;
        match self.engine.store.apply(id, change).await? {
            Applied::Refused(refusal) => Err(refusal.into()),
            Applied::Done(entry) => {
                if is_news {
                    self.engine.announce(&entry);
                }
                Ok(())
            }
        }
    }

    /// Returns an operation, or `None` if there is none of this identifier.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub async fn get(&self, id: OperationId) -> Result<Option<Entry>, OutboxError> {
        Ok(self.engine.store.get(id).await?)
    }

    /// Returns the operation of this name, or `None` if there is none.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub async fn find(&self, name: &str) -> Result<Option<Entry>, OutboxError> {
        Ok(self.engine.store.find(name).await?)
    }

    /// Returns up to `limit` operations behind `after`, in the order of their submission.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub async fn list(&self, after: Option<OperationId>, limit: usize) -> Result<Vec<Entry>, OutboxError> {
        Ok(self.engine.store.list(after, limit).await?)
    }

    /// Returns the number of entries in the store, and their size.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub async fn usage(&self) -> Result<Usage, OutboxError> {
        Ok(self.engine.store.usage().await?)
    }

    /// Looks for operations that are due at once, and not only after the
    /// [poll interval](OutboxBuilder::poll_interval). Call it when you have written an operation down
    /// by other means than [`submit`](Self::submit), such as in a transaction of yours.
    pub fn wake(&self) {
        self.engine.work.notify_one();
    }

    /// Returns what has happened since the start.
    #[must_use]
    pub fn metrics(&self) -> OutboxMetrics {
        self.engine.counters.read(u64::try_from(self.engine.slots.taken()).unwrap_or(u64::MAX))
    }

    /// Returns the store.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.engine.store
    }

    /// Stops taking operations up, and waits until those under way have been written down, at most
    /// `timeout`. Returns how many are still under way. The next process takes them up.
    pub async fn shutdown(&self, timeout: Duration) -> usize {
        self.engine.stop.cancel();
        self.engine.tasks.close();
        let until = clock::now().checked_add(timeout);
        let _timed_out = clock::until(until, self.engine.tasks.wait()).await;
        self.engine.slots.taken()
    }
}

/// Writes an operation down, and starts a worker for it if one is free.
async fn write_down<S: OutboxStore>(engine: Arc<Engine<S>>, new: NewEntry) -> Result<OperationId, OutboxError> {
    let slot = engine.slots.try_take(&new.request.origin()).filter(|_| !engine.stop.is_cancelled());
    let lease = Lease::from_now(Duration::from_millis(engine.terms.lease_ms));
    let id = new.id;
    locked(&engine.own).insert(id);
    let entry = match engine.store.submit(new, slot.as_ref().map(|_| engine.terms)).await {
        Ok(Submitted::New(entry)) => entry,
        other => {
            locked(&engine.own).remove(&id);
            let (Submitted::Existing(entry) | Submitted::New(entry)) = other?;
            return Ok(entry.id);
        }
    };
    engine.tell(&entry, OutboxEventKind::Submitted);
    match (slot, Claimed::new(entry, engine.terms.lease_ms, lease)) {
        (Some(slot), Ok(claimed)) => engine.start(claimed, slot),
        _ => engine.work.notify_one(),
    }
    Ok(id)
}
