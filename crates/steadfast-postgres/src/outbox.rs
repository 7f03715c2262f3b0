//! An outbox in PostgreSQL: many processes share it, and an operation can be written down in the
//! transaction of your own rows.

mod batch;
mod draft;
mod room;
mod table;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use steadfast_outbox::rules::NewEntry;
use steadfast_outbox::{
    Applied, Change, DurableOperation, Entry, OperationId, Outbox, OutboxError, OutboxStore, OutboxStoreError,
    Submitted, Terms, Usage,
};
use tokio::sync::oneshot;

use self::batch::{Batches, Call, Reply};
use self::room::Room;
use self::table::{Table, unavailable};
use crate::database::Database;

/// A store of an [`Outbox`] that keeps its operations in PostgreSQL.
///
/// ```no_run
/// use sqlx::PgPool;
/// use steadfast::{Client, KeyPolicy};
/// use steadfast_outbox::{DurableExt, Outbox};
/// use steadfast_postgres::{PostgresOutbox, SubmitIn, sqlx};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = PgPool::connect("postgres://localhost/shop").await?;
/// let store = PostgresOutbox::new(pool.clone());
/// store.create_table().await?;
/// let client = Client::builder().base_url("https://api.example.com").keys(KeyPolicy::standard()).build()?;
/// let outbox = Outbox::open(store, client.clone()).start().await?;
///
/// // The order and its charge: both are there, or neither.
/// let mut transaction = pool.begin().await?;
/// sqlx::query("INSERT INTO orders (id, item) VALUES (1042, 'tea')").execute(&mut *transaction).await?;
/// let charge = client.post("/charges").body("12 EUR").prepare()?.named("order-1042-charge");
/// outbox.submit_in(&mut transaction, charge).await?;
/// transaction.commit().await?;
/// outbox.wake(); // so that it is sent at once, and not when the outbox looks next
/// # Ok(())
/// # }
/// ```
///
/// Any number of processes may start an outbox over one table. A worker claims an operation under a
/// lease. If its process dies, another one takes the operation up after the lease, which you set with
/// [`lease`](steadfast_outbox::OutboxBuilder::lease). Each claim has a fencing token, so a worker that
/// was only late cannot end what another one has taken over.
///
/// The store uses the database's clock alone, so the clocks of your processes do not matter. Leave
/// `synchronous_commit` on. After a failover to a replica that lacks the last commits, an operation can
/// be lost, or be sent again.
///
/// | setting | default |
/// | --- | --- |
/// | [`timeout`](Self::timeout) | 5 s for each call, then [`OutboxStoreError::Unavailable`] |
/// | [`max_entries`](Self::max_entries) | 1,000,000 |
/// | [`max_bytes`](Self::max_bytes) | 1 GiB |
///
/// Changes that wait at the same time share two statements and one commit, in two batches at a time, and
/// in two more for submissions under a name. So a pool of a few connections is enough. A submission
/// whose name an open transaction has just taken waits for that transaction, and so may others under a
/// name, for up to the timeout.
///
/// Isolation, poolers and failover are as for [`PostgresStore`](crate::PostgresStore).
///
/// For the person on call: `SELECT id, name, state FROM steadfast_outbox WHERE state = 'unknown'`.
/// Resolve an operation with [`Outbox::resolve`] and not by SQL, since the row has a checksum.
#[derive(Clone)]
pub struct PostgresOutbox {
    table: Table,
    room: Arc<Room>,
    batches: Arc<Batches>,
    /// Submissions under a name. They may have to wait for a transaction of the caller's that has just
    /// taken the name, and nothing else may wait with them.
    named: Arc<Batches>,
}

impl fmt::Debug for PostgresOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOutbox")
            .field("timeout", &self.table.database.timeout)
            .field("max", &self.room.max)
            .finish_non_exhaustive()
    }
}

impl PostgresOutbox {
    /// The SQL that creates the table and its indexes, as [`create_table`](Self::create_table) runs
    /// it. Use it in migrations of your own.
    ///
    /// ```
    /// use steadfast_postgres::PostgresOutbox;
    ///
    /// assert!(PostgresOutbox::SCHEMA.contains("CREATE TABLE IF NOT EXISTS steadfast_outbox"));
    /// ```
    pub const SCHEMA: &'static str = include_str!("sql/outbox_schema.sql");

    /// Creates a store over this pool. The table must exist: use
    /// [`create_table`](Self::create_table) or [`SCHEMA`](Self::SCHEMA).
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self {
            table: Table { database: Database::new(pool) },
            room: Arc::new(Room::new(Usage::new(1_000_000, 1 << 30))),
            batches: Arc::default(),
            named: Arc::default(),
        }
    }

    /// Sets the timeout of one call, including the wait for a connection. Default: 5 s.
    ///
    /// After a timeout the change may have been written.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.table.database.timeout = timeout;
        self
    }

    /// Sets the maximum number of entries, with those that have ended. A submission beyond it is an
    /// error, and nothing unacknowledged is removed for it. Default: 1,000,000.
    ///
    /// Counting takes a while, so a count is used for up to a minute. Other processes can therefore go
    /// beyond the limit by what they submit in that time. [`submit_in`](SubmitIn::submit_in) does not
    /// count.
    #[must_use]
    pub fn max_entries(mut self, entries: u64) -> Self {
        self.room = Arc::new(Room::new(Usage::new(entries, self.room.max.bytes)));
        self
    }

    /// Sets the maximum size of all entries, in bytes, without the database's own overhead. It is
    /// counted as for [`max_entries`](Self::max_entries). Default: 1 GiB.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.room = Arc::new(Room::new(Usage::new(self.room.max.entries, bytes)));
        self
    }

    /// Creates the table and its indexes, unless they are there. Processes that start together may all
    /// call it.
    ///
    /// A role that may not create tables may call it too, once they exist. It needs `USAGE` on the
    /// schema, and `SELECT`, `INSERT`, `UPDATE` and `DELETE` on `steadfast_outbox`.
    ///
    /// # Errors
    ///
    /// The database cannot be reached, or refuses the statement.
    pub async fn create_table(&self) -> Result<(), OutboxStoreError> {
        const ALONE: &str = "SELECT pg_advisory_xact_lock(hashtext('steadfast_outbox'))";
        let columns = include_str!("sql/outbox_columns.sql");
        self.table.database.create(ALONE, Self::SCHEMA, columns).await.map_err(unavailable)
    }

    async fn get_by(&self, ids: Vec<uuid::Uuid>, names: Vec<String>) -> Result<Option<Entry>, OutboxStoreError> {
        let draft = self.table.read(self.table.database.deadline(), ids, names).await.map_err(unavailable)?;
        draft.only()
    }
}

async fn answered<T>(answer: oneshot::Receiver<Result<T, OutboxStoreError>>) -> Result<T, OutboxStoreError> {
    answer.await.unwrap_or_else(|_| Err(OutboxStoreError::Unavailable("the runtime is shutting down".into())))
}

impl OutboxStore for PostgresOutbox {
    const IS_SHARED: bool = true;

    async fn submit(&self, new: NewEntry, terms: Option<Terms>) -> Result<Submitted, OutboxStoreError> {
        let (sender, answer) = oneshot::channel();
        let batches = if new.name.is_some() { &self.named } else { &self.batches };
        let call = Call::Submit { new: Box::new(new), terms, reply: Reply::new(sender) };
        batches.add(&self.table, &self.room, call);
        answered(answer).await
    }

    async fn apply(&self, id: OperationId, change: Change) -> Result<Applied, OutboxStoreError> {
        let (sender, answer) = oneshot::channel();
        // Nobody loses anything if an acknowledgement is lost, so it is not worth a commit.
        let is_along = change == Change::Acknowledge;
        let call = Call::Apply { id, change, reply: Reply::new(sender) };
        if is_along {
            self.room.look_again();
            self.batches.add_along(&self.table, &self.room, call);
        } else {
            self.batches.add(&self.table, &self.room, call);
        }
        answered(answer).await
    }

    async fn claim_due(&self, terms: Terms, limit: usize, except: Vec<String>) -> Result<Vec<Entry>, OutboxStoreError> {
        // Mostly nothing is due, and then no transaction is needed.
        if self.next_due(except.clone()).await?.is_none_or(|time| !time.is_zero()) {
            return Ok(Vec::new());
        }
        self.table.claim_due(terms, limit, &except).await
    }

    async fn next_due(&self, except: Vec<String>) -> Result<Option<Duration>, OutboxStoreError> {
        self.table.next_due(except).await
    }

    async fn get(&self, id: OperationId) -> Result<Option<Entry>, OutboxStoreError> {
        self.get_by(vec![*id.as_uuid()], Vec::new()).await
    }

    async fn find(&self, name: &str) -> Result<Option<Entry>, OutboxStoreError> {
        self.get_by(Vec::new(), vec![name.to_owned()]).await
    }

    async fn list(&self, after: Option<OperationId>, limit: usize) -> Result<Vec<Entry>, OutboxStoreError> {
        self.table.list(after, limit).await
    }

    async fn usage(&self) -> Result<Usage, OutboxStoreError> {
        self.table.usage().await
    }

    async fn sweep(&self, limit: usize) -> Result<usize, OutboxStoreError> {
        self.table.sweep(limit).await
    }
}

/// Writes operations down in a transaction of yours.
pub trait SubmitIn {
    /// Writes an operation down in your transaction. It exists once you have committed, together with
    /// your own rows, and never if you roll back. Nothing is sent before the commit.
    ///
    /// After the commit, call [`Outbox::wake`]. Otherwise the outbox finds the operation when it looks
    /// next, within [`poll_interval`](steadfast_outbox::OutboxBuilder::poll_interval). If the process
    /// dies between the two, another one finds it.
    ///
    /// A name that an open transaction of somebody else has just taken makes this wait for that
    /// transaction.
    ///
    /// # Errors
    ///
    /// The request cannot be stored, the name belongs to another operation, or a statement fails. After
    /// a failed statement PostgreSQL lets you only roll back.
    fn submit_in(
        &self,
        connection: &mut PgConnection,
        operation: impl Into<DurableOperation> + Send,
    ) -> impl Future<Output = Result<OperationId, OutboxError>> + Send;
}

impl SubmitIn for Outbox<PostgresOutbox> {
    fn submit_in(
        &self,
        connection: &mut PgConnection,
        operation: impl Into<DurableOperation> + Send,
    ) -> impl Future<Output = Result<OperationId, OutboxError>> + Send {
        let new = self.new_entry(operation);
        async move {
            let (Submitted::New(entry) | Submitted::Existing(entry)) =
                self.store().table.submit_in(connection, new?).await?;
            Ok(entry.id)
        }
    }
}
