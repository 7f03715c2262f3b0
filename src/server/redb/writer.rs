//! One thread that writes for all callers.
//!
//! A sync per call would allow a few hundred calls a second. So whatever waits is put into one
//! transaction and synced together, and nobody is answered before that. After a transaction that
//! failed, nobody knows what the database in memory is worth, and every call is refused.

use std::sync::Arc;
use std::thread::JoinHandle;

use redb::Database;
use tokio::sync::{mpsc, oneshot};

use super::shared::{Failure, SharedDatabase};
use super::tables::{self, Failed, Tables};
use crate::server::store::{RecordId, StoreError};

/// The most calls that share one sync.
const BATCH: usize = 256;
/// The most calls that wait for the writer before the next caller is held back.
const QUEUE: usize = 1024;
pub(super) struct Writer {
    /// Both are here until the drop.
    jobs: Option<mpsc::Sender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(shared: Arc<SharedDatabase>) -> std::io::Result<Self> {
        let (jobs, waiting) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new().name("steadfast-redb".to_owned());
        let thread = thread.spawn(move || write_all(&shared, waiting))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Does `work` in the next transaction; the result arrives once that is on the disk.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tables<'_>) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, result) = oneshot::channel();
        let task = Task { work: Some(work), value: None, reply };
        let gone = || StoreError::Unavailable("the writer has ended".into());
        self.jobs.as_ref().ok_or_else(gone)?.send(Box::new(task)).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    /// Reads a record again, on the writer's side. A reader has met a failure: if it is not that
    /// reader's alone, the writer meets it too and opens the file anew.
    pub(super) fn confirm(&self, id: RecordId) {
        let work = move |tables: &mut Tables<'_>| tables.get(id.as_bytes());
        let task = Task { work: Some(work), value: None, reply: oneshot::channel().0 };
        if let Some(jobs) = &self.jobs {
            // A queue that is full has other calls in it that will meet it.
            let _full = jobs.try_send(Box::new(task));
        }
    }
}

impl Drop for Writer {
    /// Waits for the thread, so that the file is closed when this returns.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A thread that has panicked has been reported by the panic hook.
            let _panicked = thread.join();
        }
    }
}

/// One transaction after another, each for all that wait, until the store is dropped. After one that
/// failed, every call is refused.
fn write_all(shared: &SharedDatabase, mut waiting: mpsc::Receiver<Box<dyn Job>>) {
    let mut committed = Ok(());
    while let Some(first) = waiting.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = waiting.try_recv()
        {
            batch.push(next);
        }
        committed = match committed {
            Ok(()) => {
                shared.call(|database| commit(database, &mut batch)).map_err(|failed| Arc::new(failed.into_failure()))
            }
            Err(failure) => Err(failure),
        };
        for job in batch {
            job.answer(&committed);
        }
    }
}

fn commit(database: &Database, batch: &mut [Box<dyn Job>]) -> Result<(), Failed> {
    let transaction = tables::begin(database)?;
    {
        let mut tables = Tables::open(&transaction)?;
        for job in batch {
            job.run(&mut tables)?;
        }
    }
    Ok(transaction.commit()?)
}

/// A call on its way to the writer and back.
trait Job: Send {
    /// Does the work; an error spoils the transaction.
    fn run(&mut self, tables: &mut Tables<'_>) -> Result<(), Failure>;

    /// Tells the caller, once it is known what became of the transaction.
    fn answer(self: Box<Self>, committed: &Result<(), Arc<Failure>>);
}

struct Task<F, T> {
    work: Option<F>,
    value: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T: Send, F: FnOnce(&mut Tables<'_>) -> Result<T, Failed> + Send> Job for Task<F, T> {
    fn run(&mut self, tables: &mut Tables<'_>) -> Result<(), Failure> {
        let Some(work) = self.work.take() else { return Ok(()) };
        match work(tables) {
            Ok(value) => self.value = Some(Ok(value)),
            Err(Failed::Call(error)) => self.value = Some(Err(error)),
            Err(Failed::Database(failure)) => return Err(failure),
        }
        Ok(())
    }

    fn answer(self: Box<Self>, committed: &Result<(), Arc<Failure>>) {
        let answer = match (committed, self.value) {
            (Ok(()), Some(value)) => value,
            (Ok(()), None) => Err(StoreError::Unavailable("the call was not made".into())),
            (Err(error), _) => Err(StoreError::Unavailable(error.clone().into())),
        };
        // The caller may have gone; what was written stays, and its token can ask again.
        let _gone = self.reply.send(answer);
    }
}
