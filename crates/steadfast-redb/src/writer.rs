//! The one thread that writes for all callers.
//!
//! One sync per call would limit the store to a few hundred calls a second. So all waiting calls
//! share one transaction and one sync, and no caller gets a result before that. After a failed
//! transaction the database in memory cannot be trusted. The thread closes it and opens the file
//! again, with growing pauses, and refuses calls meanwhile.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redb::{Database, WriteTransaction};
use steadfast_core::clock::{self, Steady};
use steadfast_server::StoreError;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

use super::error::OpenError;
use super::failure::{Failed, Failure};
use super::shared::SharedDatabase;
use super::tables;

/// Maximum number of calls that share one sync.
const BATCH: usize = 256;
/// Maximum number of calls in the queue. The next caller waits for room.
const QUEUE: usize = 1024;
/// How long a job that can wait looks for a transaction of somebody else's.
const RIDE: Duration = Duration::from_millis(100);
/// The first and the longest pause before the file is opened again. The pause doubles with each
/// failure. It starts over once the file has worked for `A_WHILE`: every attempt reads the whole
/// file.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const A_WHILE: Duration = Duration::from_secs(60);

/// The tables of a database, and what belongs to them.
pub trait Layout: Send + 'static {
    /// The tables of one write transaction.
    type Tables<'a>;

    /// Opens the tables, before the first job of a transaction.
    ///
    /// # Errors
    ///
    /// The database has failed.
    fn open<'a>(&self, transaction: &'a WriteTransaction) -> Result<Self::Tables<'a>, Failed>;

    /// Finishes the tables, after the last job of a transaction.
    ///
    /// # Errors
    ///
    /// The database has failed.
    fn close(&self, tables: Self::Tables<'_>) -> Result<(), Failed>;

    /// Prepares a database that was opened again after a failure. Nothing was written from `since_ms`
    /// to `now_ms`.
    ///
    /// # Errors
    ///
    /// The database has failed again.
    fn reopened(&self, database: &Database, since_ms: u64, now_ms: u64) -> Result<(), Failed>;
}

/// The handle of the thread.
#[allow(missing_debug_implementations, reason = "not public: see `engine`")]
pub struct Writer<L: Layout> {
    /// `Some` until the drop, as is `thread`.
    jobs: Option<mpsc::Sender<Box<dyn Job<L>>>>,
    thread: Option<JoinHandle<()>>,
}

impl<L: Layout> Writer<L> {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The operating system gives no thread.
    pub fn start(shared: Arc<SharedDatabase>, layout: L, time: Steady) -> std::io::Result<Self> {
        let (jobs, waiting) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new().name("steadfast-redb".to_owned());
        let thread =
            thread.spawn(move || match tokio::runtime::Builder::new_current_thread().enable_time().build() {
                Ok(timer) => {
                    Thread { shared, waiting, layout, time, timer, pause: FIRST_PAUSE, opened: clock::now() }.run()
                }
                Err(error) => {
                    tracing::error!(target: "steadfast", %error, "the redb store cannot start its timer and refuses all writes")
                }
            })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Does `work` in the next transaction. Returns once the transaction is on the disk.
    ///
    /// # Errors
    ///
    /// The work, or the transaction, has failed.
    pub async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut L::Tables<'_>) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.send(work, false).await
    }

    /// Does `work` in the next transaction of anybody else's, or after 100 ms. Returns once that
    /// transaction is on the disk. For work that nobody waits for, and that is not worth a sync.
    ///
    /// # Errors
    ///
    /// The work, or the transaction, has failed.
    pub async fn write_along<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut L::Tables<'_>) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.send(work, true).await
    }

    async fn send<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut L::Tables<'_>) -> Result<T, Failed> + Send + 'static,
        can_wait: bool,
    ) -> Result<T, StoreError> {
        let (reply, result) = oneshot::channel();
        let task = Task { work: Some(work), value: None, reply, can_wait };
        let gone = || StoreError::Unavailable("the writer thread has ended".into());
        self.jobs.as_ref().ok_or_else(gone)?.send(Box::new(task)).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    /// Reads again in the writer, after a reader has met a failure. If the failure is not that
    /// reader's alone, the writer meets it too and opens the file again.
    pub fn confirm<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut L::Tables<'_>) -> Result<T, Failed> + Send + 'static,
    ) {
        let task = Task { work: Some(work), value: None, reply: oneshot::channel().0, can_wait: false };
        if let Some(jobs) = &self.jobs {
            // If the queue is full, one of its calls will meet the failure.
            let _full = jobs.try_send(Box::new(task));
        }
    }
}

impl<L: Layout> Drop for Writer<L> {
    /// Waits for the thread, so that the file is closed when this returns.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // The panic hook has already reported a panic of the thread.
            let _panicked = thread.join();
        }
    }
}

struct Thread<L: Layout> {
    shared: Arc<SharedDatabase>,
    waiting: mpsc::Receiver<Box<dyn Job<L>>>,
    layout: L,
    time: Steady,
    /// Runs the timer of the pauses.
    timer: Runtime,
    pause: Duration,
    /// When the file was opened last.
    opened: Instant,
}

impl<L: Layout> Thread<L> {
    /// Runs one transaction after another, each for all waiting calls, until the store is dropped.
    fn run(mut self) {
        while let Some(first) = self.waiting.blocking_recv() {
            let mut batch = vec![first];
            self.wait_for_others(&mut batch);
            while batch.len() < BATCH
                && let Ok(next) = self.waiting.try_recv()
            {
                batch.push(next);
            }
            let began_ms = self.time.now_ms();
            let committed = self.shared.call(|database| commit(&self.layout, database, &mut batch));
            let committed = committed.map_err(|failed| Arc::new(failed.into_failure()));
            for job in batch {
                job.answer(&committed);
            }
            if let Err(failure) = committed
                && !self.recover(failure, began_ms)
            {
                return;
            }
        }
    }

    /// Waits for a job that needs a transaction, if all jobs so far can wait for one.
    fn wait_for_others(&mut self, batch: &mut Vec<Box<dyn Job<L>>>) {
        let until = clock::now().checked_add(RIDE);
        let waiting = &mut self.waiting;
        self.timer.block_on(async {
            while batch.len() < BATCH && batch.iter().all(|job| job.can_wait()) {
                let Ok(Some(next)) = clock::until(until, waiting.recv()).await else { break };
                batch.push(next);
            }
        });
    }

    /// Opens the file again, as often as needed, and refuses calls meanwhile. Returns `false` once
    /// the store is dropped.
    fn recover(&mut self, mut failure: Arc<Failure>, since_ms: u64) -> bool {
        tracing::error!(target: "steadfast", error = %failure, "the redb store has failed");
        if !self.shared.can_reopen() {
            return self.refuse(&Arc::new(Failure::NotOurs(failure)), None);
        }
        if clock::now().saturating_duration_since(self.opened) > A_WHILE {
            self.pause = FIRST_PAUSE;
        }
        loop {
            if !self.refuse(&failure, clock::now().checked_add(self.pause)) {
                return false;
            }
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            let now_ms = self.time.now_ms();
            match self.shared.reopen(|database| self.layout.reopened(database, since_ms, now_ms)) {
                Ok(()) => break,
                Err(error) => failure = Arc::new(error),
            }
            tracing::error!(target: "steadfast", error = %failure, "the redb store could not be reopened");
            if matches!(&*failure, Failure::Reopen(OpenError::Damaged { .. })) {
                // Damage does not go away by itself, and a person has to decide about a repair.
                return self.refuse(&failure, None);
            }
        }
        self.opened = clock::now();
        tracing::warn!(target: "steadfast", "the redb store was reopened");
        true
    }

    /// Returns the failure to every call until `until`, or for good. Returns `false` once the
    /// store is dropped.
    fn refuse(&mut self, failure: &Arc<Failure>, until: Option<Instant>) -> bool {
        let waiting = &mut self.waiting;
        self.timer.block_on(async {
            loop {
                match clock::until(until, waiting.recv()).await {
                    Ok(Some(job)) => job.answer(&Err(failure.clone())),
                    Ok(None) => return false,
                    Err(clock::TimedOut) => return true,
                }
            }
        })
    }
}

fn commit<L: Layout>(layout: &L, database: &Database, batch: &mut [Box<dyn Job<L>>]) -> Result<(), Failed> {
    let transaction = tables::begin(database)?;
    let mut tables = layout.open(&transaction)?;
    for job in batch {
        job.run(&mut tables)?;
    }
    layout.close(tables)?;
    Ok(transaction.commit()?)
}

/// A call on its way to the writer and back.
trait Job<L: Layout>: Send {
    /// Does the work. An error makes the transaction unusable.
    fn run(&mut self, tables: &mut L::Tables<'_>) -> Result<(), Failure>;

    /// Returns whether the job needs no transaction of its own.
    fn can_wait(&self) -> bool;

    /// Sends the caller the result, once the transaction has ended.
    fn answer(self: Box<Self>, committed: &Result<(), Arc<Failure>>);
}

struct Task<F, T> {
    work: Option<F>,
    value: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
    can_wait: bool,
}

impl<L: Layout, T: Send, F: FnOnce(&mut L::Tables<'_>) -> Result<T, Failed> + Send> Job<L> for Task<F, T> {
    fn run(&mut self, tables: &mut L::Tables<'_>) -> Result<(), Failure> {
        let Some(work) = self.work.take() else { return Ok(()) };
        match work(tables) {
            Ok(value) => self.value = Some(Ok(value)),
            Err(Failed::Call(error)) => self.value = Some(Err(error)),
            Err(Failed::Database(failure)) => return Err(failure),
        }
        Ok(())
    }

    fn can_wait(&self) -> bool {
        self.can_wait
    }

    fn answer(self: Box<Self>, committed: &Result<(), Arc<Failure>>) {
        let answer = match (committed, self.value) {
            (Ok(()), Some(value)) => value,
            (Ok(()), None) => Err(StoreError::Unavailable("the call was not executed".into())),
            (Err(error), _) => Err(StoreError::Unavailable(error.clone().into())),
        };
        // The caller may be gone. The written change stays, and a repeat under its token finds it.
        let _gone = self.reply.send(answer);
    }
}
