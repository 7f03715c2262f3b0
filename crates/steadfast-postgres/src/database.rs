//! Sends the stores' own statements in `READ COMMITTED`, in one session, within a timeout, and again
//! after a conflict.
//!
//! Usually a statement is a transaction by itself, prepared once per connection: one round trip. If
//! [`Sessions`] detects a stricter isolation or changing sessions, the statement is sent inside a
//! transaction that names its isolation. That takes two more round trips, and a third if the
//! statement must have no name.
//!
//! [`Sessions`]: super::sessions::Sessions

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::{PgArguments, PgQueryResult, PgRow};
use sqlx::{
    AssertSqlSafe, Execute as _, Executor as _, PgConnection, PgPool, Postgres, SqlSafeStr as _, SqlStr, Transaction,
};
use steadfast_core::clock;
use steadfast_server::ClaimToken;

use super::error::{has_ended, is_denied, is_read_only};
use super::sessions::Sessions;

/// Maximum number of repeats of a statement. Under SERIALIZABLE, one in four was refused at 32
/// concurrent statements; under READ COMMITTED, a second refusal is rare.
const REPEATS: u32 = 5;
/// Pause before the first repeat; it doubles. A deadlock has already taken a second to be detected
/// (`deadlock_timeout`).
const PAUSE: Duration = Duration::from_millis(1);

/// Returns a limit for `LIMIT`.
pub(super) fn limit(most: usize) -> i64 {
    i64::try_from(most).unwrap_or(i64::MAX)
}

/// Returns bytes that nobody else has.
pub(super) fn random() -> Result<[u8; 16], sqlx::Error> {
    let token = ClaimToken::new().map_err(|error| sqlx::Error::Io(io::Error::other(error)))?;
    Ok(*token.as_bytes())
}

pub(super) type Query<'q> = sqlx::query::Query<'q, Postgres, PgArguments>;
type Sending<'c, T> = Pin<Box<dyn Future<Output = Result<T, sqlx::Error>> + Send + 'c>>;
/// Sends a query and selects the wanted part of its result.
type SendFn<T> = for<'c> fn(Query<'c>, &'c mut PgConnection) -> Sending<'c, T>;

/// A pool, and what is known of its sessions. Clones share it.
#[derive(Clone)]
pub(super) struct Database {
    pub(super) pool: PgPool,
    /// The timeout of one call, with the wait for a connection.
    pub(super) timeout: Duration,
    pub(super) sessions: Arc<Sessions>,
}

impl Database {
    pub(super) fn new(pool: PgPool) -> Self {
        Self { pool, timeout: Duration::from_secs(5), sessions: Arc::default() }
    }

    /// Returns the deadline of a call that begins now.
    pub(super) fn deadline(&self) -> Option<Instant> {
        clock::now().checked_add(self.timeout)
    }

    /// Runs `call` until `deadline`. A call that times out may have been executed.
    pub(super) async fn within<T>(
        &self,
        deadline: Option<Instant>,
        call: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        clock::until(deadline, call).await.unwrap_or_else(|clock::TimedOut| {
            let late = format!("no response within {:?}", self.timeout);
            Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, late)))
        })
    }

    /// Sends a statement that returns one row.
    pub(super) async fn row(&self, query: Query<'_>) -> Result<PgRow, sqlx::Error> {
        self.send(query, |query, connection| connection.fetch_one(query)).await
    }

    /// Sends a statement that returns at most one row.
    pub(super) async fn optional_row(&self, query: Query<'_>) -> Result<Option<PgRow>, sqlx::Error> {
        self.send(query, |query, connection| connection.fetch_optional(query)).await
    }

    /// Sends a statement that returns any number of rows.
    #[cfg(feature = "outbox")]
    pub(super) async fn rows(&self, query: Query<'_>) -> Result<Vec<PgRow>, sqlx::Error> {
        self.send(query, |query, connection| connection.fetch_all(query)).await
    }

    /// Sends a statement and returns the number of affected rows.
    pub(super) async fn affected(&self, query: Query<'_>) -> Result<u64, sqlx::Error> {
        let done: PgQueryResult = self.send(query, |query, connection| connection.execute(query)).await?;
        Ok(done.rows_affected())
    }

    /// Begins a transaction on a separate task.
    ///
    /// If the future of a `BEGIN` were dropped half-way, the connection would stay in an open
    /// transaction. Its next user would unknowingly write into that transaction (sqlx 0.9.0:
    /// launchbadge/sqlx#4385).
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        // Also because `hold.sql` runs twice, and would see the same state twice under REPEATABLE
        // READ.
        const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";
        let pool = self.pool.clone();
        let begun = tokio::spawn(async move { pool.begin_with(BEGIN).await });
        begun.await.map_err(|gone| sqlx::Error::Io(std::io::Error::other(gone)))?
    }

    /// Creates missing tables, one process at a time: `alone` takes an advisory lock, since two
    /// concurrent calls can collide in the catalogue despite `IF NOT EXISTS`. A role that may not
    /// create tables succeeds if `columns` finds all of them.
    pub(super) async fn create(
        &self,
        alone: &'static str,
        schema: &'static str,
        columns: &'static str,
    ) -> Result<(), sqlx::Error> {
        let create = || async {
            let mut transaction = self.begin().await?;
            transaction.execute(alone).await?;
            transaction.execute(schema).await?;
            transaction.commit().await
        };
        match self.within(self.deadline(), self.repeated(create)).await {
            Err(error) if is_denied(&error) => {
                let found = self.within(self.deadline(), self.optional_row(sqlx::query(columns))).await;
                found.map_or(Err(error), |_| Ok(()))
            }
            created => created,
        }
    }

    /// Creates a statement to be sent inside a transaction.
    pub(super) fn query<'q>(&self, sql: &'static str) -> Query<'q> {
        self.query_with(sql.into_sql_str(), PgArguments::default())
    }

    /// Makes a call, and repeats it after a refusal that has passed or after the end of its
    /// session.
    pub(super) async fn repeated<T, F>(&self, call: impl Fn() -> F) -> Result<T, sqlx::Error>
    where
        F: Future<Output = Result<T, sqlx::Error>>,
    {
        self.sessions.check(&self.pool).await?;
        let (mut refusals, mut pause) = (REPEATS, PAUSE);
        // After a failover, every connection of the pool may lead to the old server.
        let mut endings = self.pool.options().get_max_connections();
        loop {
            match call().await {
                Err(error) if refusals > 0 && self.sessions.learn(&error) => {
                    refusals -= 1;
                    clock::sleep(pause).await;
                    pause *= 2;
                }
                Err(error) if endings > 0 && has_ended(&error) => endings -= 1,
                answer => return answer,
            }
        }
    }

    async fn send<T>(&self, mut query: Query<'_>, send: SendFn<T>) -> Result<T, sqlx::Error> {
        let arguments = query.take_arguments().map_err(sqlx::Error::Encode)?.unwrap_or_default();
        let sql = query.sql();
        // Boxed, as sqlx does for a pool: every operation in flight reserves room for futures
        // awaited here.
        self.repeated(|| Box::pin(self.send_once(self.query_with(sql.clone(), arguments.clone()), send))).await
    }

    async fn send_once<T>(&self, query: Query<'_>, send: SendFn<T>) -> Result<T, sqlx::Error> {
        if !self.sessions.need_transaction() {
            let mut connection = self.pool.acquire().await?;
            let answer = send(query, &mut connection).await;
            return or_left(answer, &mut connection).await;
        }
        let mut transaction = self.begin().await?;
        let answer = send(query, &mut transaction).await;
        commit(transaction, answer).await
    }

    /// Creates a query with these values, without a name if the sessions lose named statements.
    fn query_with<'q>(&self, sql: SqlStr, arguments: PgArguments) -> Query<'q> {
        if !self.sessions.lose_statements() {
            return sqlx::query_with(sql, arguments);
        }
        // Another text: sqlx finds prepared statements by their text, and may have this one under
        // an earlier name.
        let unnamed = format!("/* unnamed */ {}", sql.as_str());
        sqlx::query_with(AssertSqlSafe(unnamed), arguments).persistent(false)
    }
}

/// Ends a session with a read-only server, unless the session is new: the server's name may lead to
/// its successor by now.
///
/// The pool would keep the connection for its whole lifetime, and a [`Transaction`] cannot close
/// it.
pub(super) async fn leave(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    const LEAVE: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE pid = pg_backend_pid() AND backend_start < clock_timestamp() - interval '1 s'";
    connection.execute(LEAVE).await.map(|_| ())
}

async fn or_left<T>(answer: Result<T, sqlx::Error>, connection: &mut PgConnection) -> Result<T, sqlx::Error> {
    if answer.as_ref().is_err_and(is_read_only) {
        leave(connection).await?;
    }
    answer
}

/// Commits the transaction, or rolls it back after an error, and leaves a read-only server.
pub(super) async fn commit<T>(
    mut transaction: Transaction<'static, Postgres>,
    mut done: Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    if done.as_ref().is_err_and(is_read_only) {
        transaction.execute("ROLLBACK").await?;
        done = or_left(done, &mut transaction).await;
    }
    let (transaction, done) = or_rolled_back(transaction, done).await?;
    transaction.commit().await?;
    Ok(done)
}

/// Returns the transaction and the result. After an error, rolls the transaction back before
/// returning, since its locks would block a repeat.
pub(super) async fn or_rolled_back<T>(
    transaction: Transaction<'static, Postgres>,
    done: Result<T, sqlx::Error>,
) -> Result<(Transaction<'static, Postgres>, T), sqlx::Error> {
    match done {
        Ok(done) => Ok((transaction, done)),
        Err(error) => {
            // If the connection is broken, the database rolls back by itself.
            let _broken = transaction.rollback().await;
            Err(error)
        }
    }
}
