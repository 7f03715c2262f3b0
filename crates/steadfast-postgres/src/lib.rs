//! Stores the idempotency records of [`steadfast-server`](steadfast_server) in PostgreSQL, for
//! several processes that serve one API. The records are as durable as the database.
//!
//! There are two stores over one table, with two guarantees:
//!
//! * [`PostgresStore`] writes claim and end in transactions of their own. Your handler may do
//!   anything. If the process dies between the two, the outcome of the operation is unknown.
//! * [`TransactionalPostgresStore`] keeps claim, business rows and record in one transaction. Your
//!   handler writes its rows through it. If the process dies, nothing has happened: the repeat
//!   runs, and every row exists once.
//!
//! ```no_run
//! use sqlx::postgres::PgPoolOptions;
//! use steadfast_postgres::{PostgresStore, sqlx};
//! use steadfast_server::{IdempotencyLayer, Scope};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = PgPoolOptions::new().max_connections(20).connect("postgres://localhost/shop").await?;
//! let store = PostgresStore::new(pool);
//! store.create_table().await?;
//! let layer = IdempotencyLayer::new(store, Scope::single_caller()).required();
//! # Ok(())
//! # }
//! ```
//!
//! [The guide](https://docs.rs/steadfast/latest/steadfast/guide/server/) compares the stores.
//!
//! With the feature `outbox`, `PostgresOutbox` is a store of the crate `steadfast-outbox`: operations
//! that are written down before they are sent, in the transaction of your own rows if you like.

// `database` sends statements, for all stores. The statements are in `sql/`, one per file. The tests
// against a real server are in the workspace's `tests/it/server/postgres/`, and those of the outbox
// in `tests/it/outbox/`.

mod database;
mod error;
mod identity;
#[cfg(feature = "outbox")]
mod outbox;
mod row;
mod sessions;
mod transactional;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use sqlx::{FromRow as _, PgPool, Row as _};
use steadfast_server::{
    Claim, ClaimOutcome, ClaimRef, End, FinishOutcome, RecordId, RecordState, Store, StoreError, StoreLimit, TOMBSTONE,
};
use tokio::sync::Semaphore;

use self::database::{Database, limit};
use self::error::unavailable;
use self::row::Row;

#[cfg(feature = "outbox")]
pub use self::outbox::{PostgresOutbox, SubmitIn};
pub use self::transactional::{PostgresSession, TransactionalPostgresStore};
pub use sqlx;

/// One in this many successful claims removes expired records.
const SWEEP_EVERY: u32 = 64;
/// Maximum number of expired records removed at a time. More than `SWEEP_EVERY`, so that the table
/// does not grow.
const SWEEP: usize = 256;
/// How often a call looks again after losing a race. Each lost race means that another call has
/// succeeded or ended, so the loop ends.
const RACES: usize = 16;

/// A store that keeps its records in PostgreSQL, written in transactions of their own.
///
/// The store uses the database's clock alone, so the clocks of your processes do not matter. Every
/// 64th claim removes up to 256 expired rows.
///
/// | setting | default |
/// | --- | --- |
/// | [`timeout`](Self::timeout) | 5 s for each call, then [`StoreError::Unavailable`] |
/// | [`max_transactions`](Self::max_transactions) | half of the pool's connections |
///
/// You choose the pool's settings: TLS, size, `search_path` and `synchronous_commit`. Leave
/// `synchronous_commit` on, or claims may not survive the loss of the machine.
///
/// ```no_run
/// use sqlx::postgres::PgPoolOptions;
/// use steadfast_server::{IdempotencyLayer, Scope};
/// use steadfast_postgres::PostgresStore;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = PgPoolOptions::new().max_connections(20).connect("postgres://localhost/shop").await?;
/// let store = PostgresStore::new(pool);
/// store.create_table().await?;
/// let layer = IdempotencyLayer::new(store, Scope::single_caller()).required();
/// # Ok(())
/// # }
/// ```
///
/// # Isolation
///
/// The store's statements run in `READ COMMITTED`. If your sessions have another default
/// (`default_transaction_isolation`), each statement gets a transaction that names its isolation.
/// This takes two more round trips. If the database rolls a statement back because of another
/// transaction (40001 serialization_failure, 40P01 deadlock_detected), the store repeats it up to
/// five times within [`timeout`](Self::timeout).
///
/// # Poolers
///
/// The store works behind pgbouncer in session and in transaction mode. Set
/// `ignore_startup_parameters = extra_float_digits`, which sqlx sends. pgbouncer refuses
/// transactions in statement mode, so that mode does not work.
///
/// Before its first statement, the store takes two connections and tests whether prepared
/// statements outlive a transaction. If they do not (pgbouncer before 1.21, or
/// `max_prepared_statements = 0`), the store logs a warning and sends its statements without names.
/// A call then takes three more round trips.
///
/// # Failover
///
/// A server that no longer accepts writes returns 25006 read_only_sql_transaction. The store
/// closes that connection, unless it is younger than a second, and repeats the call over another
/// one. So if the name leads to the new primary, the first call finds it. The pool replaces broken
/// connections by itself.
#[derive(Clone)]
pub struct PostgresStore {
    database: Database,
    won: Arc<AtomicU32>,
    /// Limits the transactions that are lent to handlers at the same time.
    transactions: Arc<Semaphore>,
    max_transactions: usize,
    /// Whether the identity version of the records has been verified.
    verified: Arc<AtomicBool>,
}

impl PostgresStore {
    /// The SQL that creates the tables and the index, as [`create_table`](Self::create_table) runs
    /// it.
    ///
    /// Use it in migrations of your own, and call [`verify_identity`](Self::verify_identity) at
    /// start.
    ///
    /// ```
    /// use steadfast_postgres::PostgresStore;
    ///
    /// assert!(PostgresStore::SCHEMA.contains("CREATE TABLE IF NOT EXISTS steadfast_records"));
    /// ```
    pub const SCHEMA: &'static str = include_str!("sql/schema.sql");

    /// Creates a store over this pool. The tables must exist: use
    /// [`create_table`](Self::create_table) or [`SCHEMA`](Self::SCHEMA).
    ///
    /// ```no_run
    /// use sqlx::PgPool;
    /// use steadfast_postgres::{PostgresStore, sqlx};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = PostgresStore::new(PgPool::connect("postgres://localhost/shop").await?);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        let half = usize::try_from(pool.options().get_max_connections() / 2).unwrap_or(1);
        let (max_transactions, transactions) = lendable(half);
        Self {
            database: Database::new(pool),
            won: Arc::default(),
            transactions,
            max_transactions,
            verified: Arc::default(),
        }
    }

    /// Sets the timeout of one call, including the wait for a connection. Default: 5 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.database.timeout = timeout;
        self
    }

    /// Sets how many transactions handlers may hold at the same time, at least 1. Default: half of
    /// the pool's connections, rounded down.
    ///
    /// Concerns [`transactional`](Self::transactional) stores. A handler's transaction holds a
    /// connection until the handler has responded. If handlers held all connections and each asked
    /// the same pool for another, they would wait for each other. With the default, each handler
    /// can take a second connection.
    ///
    /// A request that finds no free transaction waits up to [`timeout`](Self::timeout). Then the
    /// store returns [`StoreError::Busy`], the layer responds with 503, and nothing was executed. A
    /// repeat of a running or finished request does not wait.
    ///
    /// Raise the limit to the pool's size less one if each handler takes at most one further
    /// connection at a time from this pool. If handlers take *n* at once, keep it below the pool's
    /// size divided by *n*.
    ///
    /// A pool of one connection lends that connection. A handler that then asks the pool for
    /// another one waits for the pool's `acquire_timeout` and gets none. Behind a pooler, count the
    /// pooler's sessions instead; all processes share them.
    ///
    /// The limit covers this store, its clones and all [`transactional`](Self::transactional)
    /// stores made from them. So create one store per pool.
    ///
    /// ```no_run
    /// use sqlx::postgres::PgPoolOptions;
    /// use steadfast_postgres::{PostgresStore, sqlx};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = PgPoolOptions::new().max_connections(20).connect("postgres://localhost/shop").await?;
    /// // Each handler takes at most one more connection from this pool.
    /// let store = PostgresStore::new(pool).max_transactions(19).transactional();
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn max_transactions(mut self, transactions: usize) -> Self {
        (self.max_transactions, self.transactions) = lendable(transactions);
        self
    }

    /// Returns the limit of the transactions that are lent.
    fn transactions_limit(&self) -> StoreLimit {
        let advice = "raise it with PostgresStore::max_transactions, within the pool's size";
        StoreLimit::new("max_transactions", advice).max(self.max_transactions)
    }

    /// Returns a store over the same table that keeps claim, business rows and record in one
    /// transaction.
    #[must_use]
    pub fn transactional(&self) -> TransactionalPostgresStore {
        TransactionalPostgresStore::new(self.clone())
    }

    /// Creates missing tables and verifies the identity version of the records. Processes that
    /// start together may all call it.
    ///
    /// A role that may not create tables may call it too, once they exist. It needs `USAGE` on the
    /// schema, `SELECT`, `INSERT`, `UPDATE` and `DELETE` on `steadfast_records`, and `SELECT` on
    /// `steadfast_identity`.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::Unavailable`] if the database cannot be reached or refuses the
    /// statement, or [`StoreError::IdentityMismatch`].
    ///
    /// ```no_run
    /// use sqlx::PgPool;
    /// use steadfast_postgres::{PostgresStore, sqlx};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = PostgresStore::new(PgPool::connect("postgres://localhost/shop").await?);
    /// store.create_table().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn create_table(&self) -> Result<(), StoreError> {
        // Two concurrent calls can collide in the catalogue despite `IF NOT EXISTS`.
        const ALONE: &str = "SELECT pg_advisory_xact_lock(hashtext('steadfast_records'))";
        let database = &self.database;
        let columns = include_str!("sql/columns.sql");
        database.create(ALONE, Self::SCHEMA, columns).await.map_err(unavailable)?;
        self.verify_identity().await
    }

    /// Runs `call` with the timeout of one call. A call that times out may have been executed.
    async fn bounded<T>(&self, call: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
        self.database.within(self.database.deadline(), call).await.map_err(unavailable)
    }

    /// Removes expired records, once in a while. The claim that has just succeeded waits for this,
    /// so the batch is small.
    async fn sweep_sometimes(&self) {
        if self.won.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1
            && let Err(error) = self.purge_expired(SWEEP).await
        {
            // The next sweep removes the rest.
            tracing::warn!(target: "steadfast", %error, "expired records could not be removed");
        }
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("timeout", &self.database.timeout).finish_non_exhaustive()
    }
}

impl Store for PostgresStore {
    type Session = ();

    async fn claim(&self, claim: &Claim<'_>) -> Result<ClaimOutcome<()>, StoreError> {
        self.verify_once().await?;
        let ask = || {
            sqlx::query(include_str!("sql/claim.sql"))
                .bind(claim.id.as_bytes())
                .bind(claim.token.as_bytes())
                .bind(claim.fingerprint.as_bytes())
                .bind(milliseconds(claim.lease))
                .bind(milliseconds(claim.retention))
                .bind(claim.take_over)
                .bind(lock_of(claim.id))
        };
        for _ in 0..RACES {
            let row = self.bounded(self.database.row(ask())).await?;
            let row = Row::from_row(&row).map_err(unavailable)?;
            if row.won {
                self.sweep_sometimes().await;
                return Ok(ClaimOutcome::Acquired(()));
            }
            if row.cancelled {
                return Ok(ClaimOutcome::Cancelled);
            }
            if let Some(state) = row.state()? {
                return Ok(ClaimOutcome::Existing(state));
            }
        }
        Err(StoreError::Unavailable("lost too many races for the key".into()))
    }

    async fn renew(&self, claim: ClaimRef, lease: Duration) -> Result<bool, StoreError> {
        let renew = sqlx::query(include_str!("sql/renew.sql"))
            .bind(claim.id.as_bytes())
            .bind(claim.token.as_bytes())
            .bind(milliseconds(lease));
        Ok(self.bounded(self.database.affected(renew)).await? == 1)
    }

    async fn finish(&self, claim: ClaimRef, _: Option<()>, end: &End) -> Result<FinishOutcome, StoreError> {
        let statement = match end {
            End::Completed(_) => include_str!("sql/complete.sql"),
            End::Released => include_str!("sql/release.sql"),
            End::Unknown => include_str!("sql/unknown.sql"),
            End::Cancelled => include_str!("sql/cancel.sql"),
        };
        let mut finish = sqlx::query(statement).bind(claim.id.as_bytes()).bind(claim.token.as_bytes());
        finish = match end {
            End::Completed(completion) => {
                finish.bind(completion.record.encode()).bind(milliseconds(completion.retention))
            }
            End::Released | End::Cancelled => finish.bind(milliseconds(TOMBSTONE)),
            End::Unknown => finish,
        };
        let row = self.bounded(self.database.row(finish)).await?;
        Ok(stored(row.try_get(0).map_err(unavailable)?))
    }

    async fn get(&self, id: &RecordId) -> Result<Option<RecordState>, StoreError> {
        self.verify_once().await?;
        let look = sqlx::query(include_str!("sql/look.sql")).bind(id.as_bytes()).bind(lock_of(id));
        let row = self.bounded(self.database.row(look)).await?;
        Row::from_row(&row).map_err(unavailable)?.state()
    }

    async fn purge_expired(&self, most: usize) -> Result<usize, StoreError> {
        let sweep = sqlx::query(include_str!("sql/sweep.sql")).bind(limit(most));
        Ok(usize::try_from(self.bounded(self.database.affected(sweep)).await?).unwrap_or(usize::MAX))
    }
}

/// Returns the number of the advisory lock by which a handler's transaction holds a key
/// (`pg_try_advisory_xact_lock`).
///
/// The statements add the table's number, so that equal keys in two schemas do not meet. The lock
/// shares the database's space of advisory locks. Another application's lock would have to hit one
/// number in 2^64, and would only make a key look busy.
fn lock_of(id: &RecordId) -> i64 {
    let [a, b, c, d, e, f, g, h, ..] = *id.as_bytes();
    i64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// Converts a duration for `interval`, which ends after 178 million years. The maximum is a
/// thousand years.
fn milliseconds(time: Duration) -> i64 {
    const MOST: i64 = 1000 * 365 * 24 * 3600 * 1000;
    i64::try_from(time.as_millis()).unwrap_or(MOST).min(MOST)
}

fn stored(yes: bool) -> FinishOutcome {
    if yes { FinishOutcome::Stored } else { FinishOutcome::Fenced }
}

/// Creates a semaphore with at least one permit. Without one, no transaction could ever be lent.
/// Returns the limit that is in force, and its semaphore.
fn lendable(transactions: usize) -> (usize, Arc<Semaphore>) {
    let limit = transactions.clamp(1, Semaphore::MAX_PERMITS);
    (limit, Arc::new(Semaphore::new(limit)))
}
