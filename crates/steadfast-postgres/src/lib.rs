//! Idempotency records in PostgreSQL: the store for [`steadfast-server`](steadfast_server) when
//! several processes serve one API, as durable as the database.
//!
//! There are two stores over one table, because there are two promises:
//!
//! * [`PostgresStore`] writes claim and end in transactions of their own. The handler may do
//!   anything. A process that dies between the two leaves an operation whose outcome is unknown.
//! * [`TransactionalPostgresStore`] holds claim, business rows and record in one transaction. The
//!   handler writes its rows through it. A process that dies has done nothing: the repeat runs, and
//!   every row is there once.
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

// The statements are in `sql/`, one a file. The tests against a real server are in the workspace's
// `tests/it/server/postgres/`.

mod error;
mod identity;
mod row;
mod sessions;
mod statement;
mod transactional;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{fmt, io};

use sqlx::{Executor as _, FromRow as _, PgPool, Row as _};
use steadfast_core::clock;
use steadfast_server::{
    Claim, ClaimOutcome, ClaimRef, End, FinishOutcome, RecordId, RecordState, Store, StoreError, TOMBSTONE,
};
use tokio::sync::Semaphore;

use self::error::unavailable;
use self::row::Row;
use self::sessions::Sessions;

pub use self::transactional::{PostgresSession, TransactionalPostgresStore};
pub use sqlx;

/// Every so many claims that are won, one sweeps.
const SWEEP_EVERY: u32 = 64;
/// It removes so many at most: more than were claimed meanwhile, so that the table does not grow.
const SWEEP: usize = 256;
/// A claim that loses a race looks again. Each time somebody else has won or ended, so it ends.
const RACES: usize = 16;

/// Records in PostgreSQL, written in transactions of their own.
///
/// Time is the database's: processes may disagree about it as they like. What has expired is removed on the way, 256 rows at every
/// 64th claim.
///
/// | setting | default |
/// | --- | --- |
/// | [`timeout`](Self::timeout) | 5 s for each call, after which it is [`StoreError::Unavailable`] |
/// | [`max_transactions`](Self::max_transactions) | half of the pool's connections |
///
/// The pool's settings are the caller's: TLS, size, `search_path`, and `synchronous_commit`, which has to stay on for a claim to
/// survive the loss of the machine.
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
/// The store's statements run in `READ COMMITTED`. Where sessions have another default
/// (`default_transaction_isolation`), each is sent in a transaction that names it, which takes two
/// round trips more. A statement that the database has rolled back because of another transaction
/// (40001 serialization_failure, 40P01 deadlock_detected) is repeated five times at most, within
/// [`timeout`](Self::timeout).
///
/// # Poolers
///
/// The store works behind pgbouncer in session and in transaction mode, with
/// `ignore_startup_parameters = extra_float_digits`, which sqlx sends. Before its first statement
/// it takes two connections and finds out whether prepared statements outlive a transaction. Where
/// they do not (pgbouncer before 1.21, or `max_prepared_statements = 0`), its statements have no
/// names, and a call takes three round trips more; a warning says so. Statement mode has no
/// transactions, and is refused by pgbouncer.
///
/// # Failover
///
/// A connection to a server that takes no writes any more (25006 read_only_sql_transaction) is
/// closed, unless it is younger than a second, and the call is made again over another one. So a
/// name that leads to the new primary is followed at the first call. The pool replaces broken
/// connections by itself.
#[derive(Clone)]
pub struct PostgresStore {
    pool: PgPool,
    timeout: Duration,
    won: Arc<AtomicU32>,
    sessions: Arc<Sessions>,
    /// As many transactions may be lent to handlers at the same time.
    transactions: Arc<Semaphore>,
    /// Its records are known to be identified as this build does it.
    verified: Arc<AtomicBool>,
}

impl PostgresStore {
    /// The tables and the index, as [`create_table`](Self::create_table) makes them: for those who
    /// run migrations of their own, who call [`verify_identity`](Self::verify_identity) at start.
    pub const SCHEMA: &'static str = include_str!("sql/schema.sql");

    /// A store over this pool. The table has to be there: [`create_table`](Self::create_table), or [`SCHEMA`](Self::SCHEMA).
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        let half = usize::try_from(pool.options().get_max_connections() / 2).unwrap_or(1);
        Self {
            pool,
            timeout: Duration::from_secs(5),
            won: Arc::default(),
            sessions: Arc::default(),
            transactions: semaphore(half),
            verified: Arc::default(),
        }
    }

    /// The longest that a call may take, in which a connection has to come free, too. Default: 5 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how many transactions handlers may hold at the same time, at least 1. Default: half of
    /// the pool's connections, rounded down.
    ///
    /// It concerns [`transactional`](Self::transactional) stores. A handler's transaction holds a
    /// connection until the handler has answered. If handlers held all of them, those that ask the
    /// same pool for one more would wait for each other. With the default, each handler can have a
    /// second connection.
    ///
    /// A request that finds no transaction free waits for one, for [`timeout`](Self::timeout) at
    /// most. Then it is [`StoreError::Busy`]: the layer answers 503, and nothing was executed. A
    /// repeat of a request that runs or has ended does not wait.
    ///
    /// Raise it to the pool's size less one if your handlers take at most one further connection at
    /// a time from this pool. If they take *n* at once, keep it below the pool's size divided by
    /// *n*.
    ///
    /// A pool of one connection lends it. A handler that asks that pool for another one waits in
    /// vain, for the pool's `acquire_timeout`. Behind a pooler its sessions count instead, and all
    /// processes share them.
    ///
    /// The bound holds for this store, its clones and all [`transactional`](Self::transactional)
    /// stores made of them, so make one store for each pool.
    #[must_use]
    pub fn max_transactions(mut self, transactions: usize) -> Self {
        self.transactions = semaphore(transactions);
        self
    }

    /// A store over the same table that holds claim, business rows and record in one transaction.
    #[must_use]
    pub fn transactional(&self) -> TransactionalPostgresStore {
        TransactionalPostgresStore::new(self.clone())
    }

    /// Makes the tables if they are not there, and verifies how the records are identified.
    /// Processes that start together may all call it.
    ///
    /// # Errors
    ///
    /// The database cannot be reached, or does not allow it; or [`StoreError::IdentityMismatch`].
    pub async fn create_table(&self) -> Result<(), StoreError> {
        // Two of them at once can collide in the catalogue, `IF NOT EXISTS` or not.
        const ALONE: &str = "SELECT pg_advisory_xact_lock(hashtext('steadfast_records'))";
        let create = || async {
            let mut transaction = self.begin().await?;
            transaction.execute(ALONE).await?;
            transaction.execute(Self::SCHEMA).await?;
            transaction.commit().await
        };
        self.bounded(self.repeated(create)).await?;
        self.verify_identity().await
    }

    /// `call`, for as long as a call may take. One that is cut off may have been carried out.
    async fn bounded<T>(&self, call: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
        self.within(self.deadline(), call).await.map_err(unavailable)
    }

    /// When a call that begins now ends.
    fn deadline(&self) -> Option<Instant> {
        clock::now().checked_add(self.timeout)
    }

    async fn within<T>(
        &self,
        deadline: Option<Instant>,
        call: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        clock::until(deadline, call).await.unwrap_or_else(|clock::TimedOut| {
            let late = format!("no answer within {:?}", self.timeout);
            Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, late)))
        })
    }

    /// Sweeps, once in a while. Whoever has just won a key waits for it, so the batch is small.
    async fn sweep_sometimes(&self) {
        if self.won.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1
            && let Err(error) = self.purge_expired(SWEEP).await
        {
            // What is left over is left to the next one.
            tracing::warn!(target: "steadfast", %error, "expired records could not be removed");
        }
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("timeout", &self.timeout).finish_non_exhaustive()
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
            let row = self.bounded(self.row(ask())).await?;
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
        Err(StoreError::Unavailable("the key changes hands too fast".into()))
    }

    async fn renew(&self, claim: ClaimRef, lease: Duration) -> Result<bool, StoreError> {
        let renew = sqlx::query(include_str!("sql/renew.sql"))
            .bind(claim.id.as_bytes())
            .bind(claim.token.as_bytes())
            .bind(milliseconds(lease));
        Ok(self.bounded(self.affected(renew)).await? == 1)
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
        let row = self.bounded(self.row(finish)).await?;
        Ok(stored(row.try_get(0).map_err(unavailable)?))
    }

    async fn get(&self, id: &RecordId) -> Result<Option<RecordState>, StoreError> {
        self.verify_once().await?;
        let look = sqlx::query(include_str!("sql/look.sql")).bind(id.as_bytes()).bind(lock_of(id));
        let row = self.bounded(self.row(look)).await?;
        Row::from_row(&row).map_err(unavailable)?.state()
    }

    async fn purge_expired(&self, most: usize) -> Result<usize, StoreError> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let sweep = sqlx::query(include_str!("sql/sweep.sql")).bind(most);
        Ok(usize::try_from(self.bounded(self.affected(sweep)).await?).unwrap_or(usize::MAX))
    }
}

/// The number by which a handler's transaction holds a key (`pg_try_advisory_xact_lock`), to which the statements add the table's, so
/// that equal keys of two schemas do not meet. It shares the database's space of advisory locks: another application's would have to
/// hit one number in 2^64, and would only make a key look busy.
fn lock_of(id: &RecordId) -> i64 {
    let [a, b, c, d, e, f, g, h, ..] = *id.as_bytes();
    i64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// For `interval`, which ends after 178 million years: nobody means more than a thousand.
fn milliseconds(time: Duration) -> i64 {
    const MOST: i64 = 1000 * 365 * 24 * 3600 * 1000;
    i64::try_from(time.as_millis()).unwrap_or(MOST).min(MOST)
}

fn stored(yes: bool) -> FinishOutcome {
    if yes { FinishOutcome::Stored } else { FinishOutcome::Fenced }
}

/// At least one, or none could ever be lent.
fn semaphore(transactions: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(transactions.clamp(1, Semaphore::MAX_PERMITS)))
}
