//! Records in PostgreSQL: shared by all processes, as durable as the database, and able to be one with the business rows.
//!
//! Two stores over one table, because there are two promises:
//!
//! * [`PostgresStore`] writes claim and end in transactions of their own. The handler may do anything, and a process that dies
//!   between the two leaves an operation of which nobody knows how it ended.
//! * [`TransactionalPostgresStore`] holds claim, business rows and record in one transaction. The handler writes its rows through
//!   it, and a process that dies has done nothing: the repeat runs, and every row is there once.
//!
//! The statements are in `sql/`, one a file.

mod identity;
mod row;
mod transactional;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use sqlx::{PgPool, Postgres, Transaction};

use self::row::Row;
pub use self::transactional::{PostgresSession, TransactionalPostgresStore};
use super::store::{Claim, ClaimRef, Claimed, Completed, End, RecordId, State, Store, StoreError, TOMBSTONE};
use crate::clock;

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
///
/// The pool's settings are the caller's: TLS, size, `search_path`, and `synchronous_commit`, which has to stay on for a claim to
/// survive the loss of the machine.
///
/// ```no_run
/// use sqlx::postgres::PgPoolOptions;
/// use steadfast::server::{IdempotencyLayer, PostgresStore, Scope};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = PgPoolOptions::new().max_connections(20).connect("postgres://localhost/shop").await?;
/// let store = PostgresStore::new(pool);
/// store.create_table().await?;
/// let layer = IdempotencyLayer::new(store, Scope::single_caller()).required();
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresStore {
    pool: PgPool,
    timeout: Duration,
    won: Arc<AtomicU32>,
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
        Self { pool, timeout: Duration::from_secs(5), won: Arc::default(), verified: Arc::default() }
    }

    /// The longest that a call may take, in which a connection has to come free, too. Default: 5 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
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
        self.bounded(async {
            let mut transaction = self.begin().await?;
            sqlx::query(ALONE).execute(&mut *transaction).await?;
            sqlx::raw_sql(Self::SCHEMA).execute(&mut *transaction).await?;
            transaction.commit().await
        })
        .await?;
        self.verify_identity().await
    }

    /// A transaction, begun on a task of its own. A `BEGIN` whose future is dropped while it is under way would leave the connection in
    /// a transaction that nobody knows of, and whoever has the connection next would write into it (sqlx 0.9.0: launchbadge/sqlx#4385).
    async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        // The isolation is said because `hold.sql`, which looks twice, would see the same twice under REPEATABLE READ.
        const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";
        let pool = self.pool.clone();
        let begun = tokio::spawn(async move { pool.begin_with(BEGIN).await });
        begun.await.map_err(|gone| sqlx::Error::Io(std::io::Error::other(gone)))?
    }

    /// `call`, for as long as a call may take. One that is cut off may have been carried out.
    async fn bounded<T>(&self, call: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
        match clock::until(clock::now().checked_add(self.timeout), call).await {
            Ok(done) => done.map_err(unavailable),
            Err(clock::TimedOut) => Err(StoreError::Unavailable(format!("no answer within {:?}", self.timeout).into())),
        }
    }

    /// Sweeps, once in a while. Whoever has just won a key waits for it, so the batch is small.
    async fn sweep_sometimes(&self) {
        if self.won.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1
            && let Err(error) = self.sweep(SWEEP).await
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

    async fn claim(&self, claim: &Claim<'_>) -> Result<Claimed<()>, StoreError> {
        self.verify_once().await?;
        let ask = || {
            sqlx::query_as::<_, Row>(include_str!("sql/claim.sql"))
                .bind(claim.id.as_bytes())
                .bind(claim.token.as_bytes())
                .bind(claim.fingerprint.as_bytes())
                .bind(milliseconds(claim.lease))
                .bind(milliseconds(claim.retention))
                .bind(claim.take_over)
                .bind(lock_of(claim.id))
                .fetch_one(&self.pool)
        };
        for _ in 0..RACES {
            let row = self.bounded(ask()).await?;
            if row.won {
                self.sweep_sometimes().await;
                return Ok(Claimed::Won(()));
            }
            if row.cancelled {
                return Ok(Claimed::Cancelled);
            }
            if let Some(state) = row.state()? {
                return Ok(Claimed::Known(state));
            }
        }
        Err(StoreError::Unavailable("the key changes hands too fast".into()))
    }

    async fn renew(&self, claim: ClaimRef, lease: Duration) -> Result<bool, StoreError> {
        let renew = sqlx::query(include_str!("sql/renew.sql"))
            .bind(claim.id.as_bytes())
            .bind(claim.token.as_bytes())
            .bind(milliseconds(lease))
            .execute(&self.pool);
        Ok(self.bounded(renew).await?.rows_affected() == 1)
    }

    async fn finish(&self, claim: ClaimRef, _: Option<()>, end: &End) -> Result<Completed, StoreError> {
        let statement = match end {
            End::Completed(_) => include_str!("sql/complete.sql"),
            End::Released => include_str!("sql/release.sql"),
            End::Unknown => include_str!("sql/unknown.sql"),
            End::Cancelled => include_str!("sql/cancel.sql"),
        };
        let mut finish = sqlx::query_scalar(statement).bind(claim.id.as_bytes()).bind(claim.token.as_bytes());
        finish = match end {
            End::Completed(completion) => {
                finish.bind(completion.record.encode()).bind(milliseconds(completion.retention))
            }
            End::Released | End::Cancelled => finish.bind(milliseconds(TOMBSTONE)),
            End::Unknown => finish,
        };
        Ok(stored(self.bounded(finish.fetch_one(&self.pool)).await?))
    }

    async fn look(&self, id: &RecordId) -> Result<Option<State>, StoreError> {
        self.verify_once().await?;
        let look = sqlx::query_as::<_, Row>(include_str!("sql/look.sql"))
            .bind(id.as_bytes())
            .bind(lock_of(id))
            .fetch_one(&self.pool);
        self.bounded(look).await?.state()
    }

    async fn sweep(&self, most: usize) -> Result<usize, StoreError> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let sweep = sqlx::query(include_str!("sql/sweep.sql")).bind(most).execute(&self.pool);
        Ok(usize::try_from(self.bounded(sweep).await?.rows_affected()).unwrap_or(usize::MAX))
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

fn stored(yes: bool) -> Completed {
    if yes { Completed::Stored } else { Completed::Lost }
}

fn unavailable(error: sqlx::Error) -> StoreError {
    // https://www.postgresql.org/docs/current/errcodes-appendix.html
    const DISK_FULL: &str = "53100";
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    if code.is_some_and(|code| code == DISK_FULL) { StoreError::Full } else { StoreError::Unavailable(error.into()) }
}
