//! One thread that writes for all callers.
//!
//! A sync per call would allow a few hundred calls a second. So whatever waits is put into one transaction and synced together, and
//! nobody is answered before that.

use std::sync::Arc;
use std::thread::JoinHandle;

use redb::Database;
use tokio::sync::{mpsc, oneshot};

use super::tables::{self, Failed, Tables};
use crate::server::store::StoreError;

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
    pub(super) fn start(database: Arc<Database>) -> std::io::Result<Self> {
        let (jobs, waiting) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new().name("steadfast-redb".to_owned());
        let thread = thread.spawn(move || write_all(&database, waiting))?;
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

/// One transaction after another, each for all that wait, until the store is dropped.
fn write_all(database: &Database, mut waiting: mpsc::Receiver<Box<dyn Job>>) {
    while let Some(first) = waiting.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = waiting.try_recv()
        {
            batch.push(next);
        }
        let committed = commit(database, &mut batch).map_err(Arc::new);
        for job in batch {
            job.answer(&committed);
        }
    }
}

fn commit(database: &Database, batch: &mut [Box<dyn Job>]) -> Result<(), redb::Error> {
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
    fn run(&mut self, tables: &mut Tables<'_>) -> Result<(), redb::Error>;

    /// Tells the caller, once it is known what became of the transaction.
    fn answer(self: Box<Self>, committed: &Result<(), Arc<redb::Error>>);
}

struct Task<F, T> {
    work: Option<F>,
    value: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T: Send, F: FnOnce(&mut Tables<'_>) -> Result<T, Failed> + Send> Job for Task<F, T> {
    fn run(&mut self, tables: &mut Tables<'_>) -> Result<(), redb::Error> {
        let Some(work) = self.work.take() else { return Ok(()) };
        match work(tables) {
            Ok(value) => self.value = Some(Ok(value)),
            Err(Failed::Call(error)) => self.value = Some(Err(error)),
            Err(Failed::Transaction(error)) => return Err(error),
        }
        Ok(())
    }

    fn answer(self: Box<Self>, committed: &Result<(), Arc<redb::Error>>) {
        let answer = match (committed, self.value) {
            (Ok(()), Some(value)) => value,
            (Ok(()), None) => Err(StoreError::Unavailable("the call was not made".into())),
            (Err(error), _) => Err(StoreError::Unavailable(error.clone().into())),
        };
        // Whoever asked may have gone; what was written stays, and its token can ask again.
        let _gone = self.reply.send(answer);
    }
}
